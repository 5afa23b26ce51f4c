"""Scene classification band by band, weighted F1 (Table I of Jain et al.)."""

import argparse

from dsengine.evaluate.commands import _common


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `evaluate scene`."""
    _common.add_arguments(parser)
    parser.add_argument("--bands", metavar="NAME,...", help="judged one by one (default: the paper's ten)")
    parser.add_argument("--imagenet", metavar="FILE", help="public ResNet50 weights of three channels, as a row that gets each band three times")


def run(args: argparse.Namespace) -> int:
    """`evaluate scene`."""
    from dsengine.evaluate import scene

    return _common.run(args, scene.evaluate, scene.Setting, flags=("bands",), imagenet=args.imagenet)
