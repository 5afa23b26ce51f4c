"""Recompute and store mean, std and count per band."""

import argparse
from pathlib import Path

from dsengine.corpus.commands._terminal import console, progress_bar


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `corpus stats`."""
    parser.add_argument("path", type=Path, metavar="PATH")


def run(args: argparse.Namespace) -> int:
    """`corpus stats PATH`."""
    from dsengine.corpus import open_corpus
    from dsengine.corpus.report import stats_table
    from dsengine.corpus.series import SeriesCorpus
    from dsengine.corpus.series_stats import measure_series
    from dsengine.corpus.stats import measure, store

    corpus = open_corpus(args.path)
    with progress_bar("rows", len(corpus)) as advance:
        measured = (measure_series if isinstance(corpus, SeriesCorpus) else measure)(corpus, progress=advance)
    store(corpus, measured)
    console().print(stats_table(open_corpus(args.path)))
    return 0
