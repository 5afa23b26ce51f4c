"""Measure cloud fraction and the shift between S1 and S2 where they are unknown."""

import argparse
from pathlib import Path

from dsengine.corpus.commands._patches import open_patches
from dsengine.corpus.commands._terminal import console, progress_bar


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `corpus quality`."""
    parser.add_argument("path", type=Path, metavar="PATH")
    parser.add_argument("--again", action="store_true", help="also where there is a value, such as the source's own cloud fraction")


def run(args: argparse.Namespace) -> int:
    """`corpus quality PATH`: only index columns are written."""
    import numpy as np

    from dsengine.corpus.build.quality import measure_corpus

    corpus = open_patches(args.path)
    with progress_bar("patches", len(corpus)) as advance:
        found = measure_corpus(corpus, again=args.again, progress=advance)
    known = {"cloud fraction": found.cloud_fraction, "shift": found.shift_y}
    counts = ", ".join(f"{name} of {np.count_nonzero(~np.isnan(values)):,}" for name, values in known.items())
    console().print(f"{corpus.path}: {counts} of {len(corpus):,} patches", markup=False, soft_wrap=True)
    return 0
