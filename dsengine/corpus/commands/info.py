"""What a corpus holds."""

import argparse
from pathlib import Path

from dsengine.corpus.commands._terminal import show


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `corpus info`."""
    parser.add_argument("path", type=Path, metavar="PATH")


def run(args: argparse.Namespace) -> int:
    """`corpus info PATH`."""
    return show(args.path)
