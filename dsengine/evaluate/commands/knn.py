"""Nearest-neighbour probe of frozen features by cosine, k chosen on val."""

import argparse

from dsengine.evaluate.commands import _common


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `evaluate knn`."""
    _common.add_arguments(parser)
    parser.add_argument("--k", metavar="K,...", help="numbers of neighbours (default: 1,5,10,20,50)")


def run(args: argparse.Namespace) -> int:
    """`evaluate knn`."""
    from dsengine.evaluate import knn

    return _common.run(args, knn.evaluate, knn.Setting, flags=("k",))
