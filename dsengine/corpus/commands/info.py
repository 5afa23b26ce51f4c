"""What a corpus holds."""

import argparse
from pathlib import Path

from dsengine.corpus.commands._terminal import console, show


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `corpus info`."""
    parser.add_argument("path", type=Path, metavar="PATH")
    parser.add_argument("--where", metavar="CONDITION", help='count the patches that meet it, such as "cloud < 0.4 and gap <= 3"')


def run(args: argparse.Namespace) -> int:
    """`corpus info PATH`."""
    show(args.path)
    if args.where is not None:
        _count(args.path, args.where)
    return 0


def _count(path: Path, where: str) -> None:
    from dsengine.corpus import open_corpus
    from dsengine.corpus.schema import SPLITS

    corpus = open_corpus(path)
    counts = ", ".join(f"{name} {len(corpus.rows(name, where)):,} of {len(corpus.rows(name)):,}" for name in SPLITS)
    console().print(f"where {where}: {counts}", markup=False, soft_wrap=True)
