"""Is there one in this patch: ROC-AUC from points, polygons or a label of two classes (DeepSentinel's coal mines)."""

import argparse

from dsengine.evaluate.commands import _common


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `evaluate patches`."""
    _common.add_arguments(parser)
    parser.add_argument("--things", metavar="KIND:PATH[,option=value...]",
                        help="where they lie: points:FILE or vector:FILE, options as of `corpus build --label` (default: a label of the corpus)")


def run(args: argparse.Namespace) -> int:
    """`evaluate patches`."""
    from dsengine.evaluate import patches

    return _common.run(args, patches.evaluate, patches.Setting, things=args.things)
