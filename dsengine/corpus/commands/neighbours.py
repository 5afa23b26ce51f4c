"""Make the table of each patch's neighbours within a radius."""

import argparse
from pathlib import Path

from dsengine.corpus.commands._patches import open_patches
from dsengine.corpus.commands._terminal import console, progress_bar

RADIUS_KM = 111.2  # as corpus.neighbours has it, which is too heavy to import for --help


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `corpus neighbours`."""
    parser.add_argument("path", type=Path, metavar="PATH")
    parser.add_argument("--radius-km", type=float, default=RADIUS_KM, help=f"great-circle distance (default: {RADIUS_KM:g}, a degree of latitude)")
    parser.add_argument("--where", metavar="CONDITION", help='only patches that meet it, such as "cloud < 0.4 and gap <= 3"')


def run(args: argparse.Namespace) -> int:
    """`corpus neighbours PATH`."""
    from dsengine.corpus.neighbours import write_neighbours

    corpus = open_patches(args.path)
    with progress_bar("patches", len(corpus)) as advance:
        num_pairs = write_neighbours(corpus, radius_km=args.radius_km, where=args.where, progress=advance)
    num_rows = open_patches(args.path).neighbours.attributes["rows"]
    console().print(f"{corpus.path}: {num_pairs:,} neighbours of {num_rows:,} patches within {args.radius_km:g} km, "
                    f"{num_pairs / max(num_rows, 1):.1f} each", markup=False, soft_wrap=True)
    return 0
