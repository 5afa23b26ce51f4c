"""Join corpora of equal bands into a new one."""

import argparse

from dsengine.corpus.commands._terminal import progress_bar, show


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `corpus merge`."""
    parser.add_argument("out", metavar="OUT")
    parser.add_argument("paths", nargs="+", metavar="PATH", help="corpora to join, in this order; each keeps its splits")


def run(args: argparse.Namespace) -> int:
    """`corpus merge OUT PATH PATH ...`."""
    from dsengine.corpus.build.plan import build_corpus
    from dsengine.corpus.edit.copy import Changes, copy_plan

    plan = copy_plan(args.paths, Changes(), command="corpus merge")
    with progress_bar("patches", plan.num_patches) as advance:
        return show(build_corpus(args.out, plan, progress=advance))
