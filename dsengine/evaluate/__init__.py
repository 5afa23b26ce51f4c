"""What pretrained encoders are worth on labels: probes of frozen features, fine-tuning, floors and intervals. See docs/evaluate.md.

`dsengine evaluate NAME` is one file of `evaluate.commands` each; what a command calls is the function `evaluate` of the module of that name.
"""
