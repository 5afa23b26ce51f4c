"""Damaged patches set aside: index column `quarantine`, which keeps a patch out of every split."""

from collections.abc import Iterable

import numpy as np

from dsengine.corpus.columns import write_column
from dsengine.corpus.index import Corpus
from dsengine.corpus.series import SeriesCorpus
from dsengine.corpus.verify import Problem

DAMAGED = 1  # what `verify` marks with; a source that sets a patch aside for another reason uses a higher number


def marks(corpus: Corpus | SeriesCorpus) -> np.ndarray:
    """(N,) column `quarantine`, 0 where there is none."""
    return corpus.index.quarantine if isinstance(corpus, Corpus) else corpus.index["quarantine"]


def damaged_rows(problems: Iterable[Problem], num_rows: int) -> np.ndarray:
    """(N,) bool: rows whose pixels or class map are damaged, or that have a label value without a class.

    Not those of a damaged label vector, one chunk of which holds the labels of thousands of patches: that file has to be restored.
    """
    rows = np.zeros(num_rows, bool)
    for problem in problems:
        about_rows = problem.patch >= 0 and problem.array != "index"
        if about_rows and (problem.num_patches == 1 or not problem.array.startswith("labels/")):
            rows[problem.patch:problem.patch + problem.num_patches] = True
    return rows


def left_over(problems: Iterable[Problem], quarantine: np.ndarray) -> list[Problem]:
    """Those that are about more than patches in quarantine."""
    return [p for p in problems if p.patch < 0 or not (quarantine[p.patch:p.patch + p.num_patches] != 0).all()]


def set_aside(corpus: Corpus | SeriesCorpus, problems: Iterable[Problem]) -> np.ndarray:
    """Mark the damaged rows that are in no quarantine yet; returns the new column, which is written only when it differs."""
    before = marks(corpus)
    return _written(corpus, before, np.where(damaged_rows(problems, len(before)) & (before == 0), DAMAGED, before))


def release(corpus: Corpus | SeriesCorpus, problems: Iterable[Problem]) -> np.ndarray:
    """Take the mark of damage off the rows that are whole again; returns the new column."""
    before = marks(corpus)
    return _written(corpus, before, np.where((before == DAMAGED) & ~damaged_rows(problems, len(before)), 0, before))


def _written(corpus: Corpus | SeriesCorpus, before: np.ndarray, after: np.ndarray) -> np.ndarray:
    if not np.array_equal(before, after):
        write_column(corpus, "quarantine", after)
    return after.astype(before.dtype)
