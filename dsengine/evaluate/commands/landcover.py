"""Land-cover segmentation with the deconvolution head, weighted mean IoU (Table 9 of DeepSentinel)."""

import argparse

from dsengine.evaluate.commands import _common


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `evaluate landcover`."""
    _common.add_arguments(parser)
    parser.add_argument("--finetune", action="store_true", default=None, help="train the encoder too (default: the head alone, on frozen maps)")
    parser.add_argument("--epochs", type=int, metavar="N", help="at most (default: 100)")
    parser.add_argument("--class-weight", metavar="none|inverse", help="of the classes in the loss (default: none)")


def run(args: argparse.Namespace) -> int:
    """`evaluate landcover`."""
    from dsengine.evaluate import landcover

    return _common.run(args, landcover.evaluate, landcover.Setting, flags=("finetune", "epochs", "class_weight"))
