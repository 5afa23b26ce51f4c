"""Write a synthetic land-cover world."""

import argparse
from pathlib import Path

from dsengine.corpus.commands._terminal import progress_bar, show


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `corpus synth`."""
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("--patches", type=int, required=True, metavar="N", help="number of patches")
    parser.add_argument("--size", type=int, default=128, help="pixels a side (default: 128)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1, help="threads that paint patches (default: 1)")


def run(args: argparse.Namespace) -> int:
    """`corpus synth OUT --patches N`."""
    from dsengine.corpus.synth import synthesize

    with progress_bar("patches", args.patches) as advance:
        path = synthesize(args.out, num_patches=args.patches, size=args.size, seed=args.seed, workers=args.workers, progress=advance)
    return show(path)
