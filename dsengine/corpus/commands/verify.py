"""Check every chunk, the index and the statistics."""

import argparse
from pathlib import Path

from dsengine.corpus.commands._terminal import console, progress_bar


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `corpus verify`."""
    parser.add_argument("path", type=Path, metavar="PATH")


def run(args: argparse.Namespace) -> int:
    """`corpus verify PATH`: exit code 1 when anything is damaged."""
    from dsengine.corpus import open_corpus
    from dsengine.corpus.report import damage_table
    from dsengine.corpus.verify import verify

    corpus = open_corpus(args.path)
    with progress_bar("patches", len(corpus)) as advance:
        result = verify(corpus, progress=advance)
    if result.problems:
        console().print(damage_table(result.problems))
    console().print(f"{args.path}: {result.num_chunks} chunks of {len(corpus)} patches checked, {len(result.problems)} problems", markup=False, soft_wrap=True)
    return 1 if result.problems else 0
