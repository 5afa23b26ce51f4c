"""Add the patches of other corpora to a corpus, in place."""

import argparse

from dsengine.corpus.commands._terminal import progress_bar, show


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `corpus append`."""
    parser.add_argument("path", metavar="PATH", help="corpus that grows")
    parser.add_argument("others", nargs="+", metavar="OTHER", help="corpora of equal bands, sizes and labels; they stay as they are")


def run(args: argparse.Namespace) -> int:
    """`corpus append PATH OTHER ...`."""
    from dsengine.corpus.edit.append import append

    with progress_bar("patches", None) as advance:
        append(args.path, args.others, progress=advance)
    return show(args.path)
