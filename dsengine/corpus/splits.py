"""Parting the patches of a corpus that is there into train, val and test by another rule."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from dsengine.corpus.build.grid import SplitRule, assign
from dsengine.errors import UsageError

if TYPE_CHECKING:
    from dsengine.corpus.index import Corpus
    from dsengine.corpus.series import SeriesCorpus


def resplit(corpus: "Corpus | SeriesCorpus", rule: SplitRule, *, seed: int) -> None:
    """Write index column `split` and root attribute `splits` anew, both or neither. UsageError for a rule that does not fit the corpus."""
    from dsengine.corpus.columns import write_columns

    if rule.by == "given":
        raise UsageError("split=given is what a source knew when the corpus was built; legal here: block, random, column:NAME")
    columns = _columns(corpus)
    lon, lat = site_places(columns, rule.block_deg)
    codes = assign({**columns, "split_lon": lon, "split_lat": lat}, rule, seed=seed)
    write_columns(corpus, {"split": codes}, root={"splits": rule.described(seed)})


def _columns(corpus: "Corpus | SeriesCorpus") -> dict[str, np.ndarray]:
    if isinstance(corpus.index, Mapping):
        return dict(corpus.index)
    return {**corpus.index._asdict(), **{name: np.asarray(column[...]) for name, column in corpus.columns.items()}}


def site_places(columns: Mapping[str, np.ndarray], block_deg: float) -> tuple[np.ndarray, np.ndarray]:
    """(N,) degrees each: the place that decides a patch's split, from the index columns.

    It is the middle of all patches of the same source where they lie within a block's size of each other, because patches of one raster
    may overlap; else it is the patch itself.
    """
    lon, lat = columns["lon"].copy(), columns["lat"].copy()
    if "source" not in columns:
        return lon, lat
    sources, group = np.unique(columns["source"].astype(str), return_inverse=True)
    least, most = (np.full((2, len(sources)), fill) for fill in (np.inf, -np.inf))
    for axis, values in enumerate((lon, lat)):
        np.minimum.at(least[axis], group, values)
        np.maximum.at(most[axis], group, values)
    extent = most - least
    extent[0] *= np.cos(np.radians(np.clip((least[1] + most[1]) / 2, -89, 89)))
    small = (extent <= block_deg).all(axis=0) & (sources != "")
    middle = (least + most) / 2
    inside = small[group]
    lon[inside], lat[inside] = middle[0, group[inside]], middle[1, group[inside]]
    return lon, lat
