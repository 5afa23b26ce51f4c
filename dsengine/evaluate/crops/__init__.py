"""Crop types from time series: three networks on raw and on pretrained input, compared as in Patnala et al. See docs/crops.md.

`study.evaluate` is the whole of it; `networks`, `search`, `fit`, `compare` are its parts.
"""
