"""Index columns of a corpus that is there, written anew so that after a crash all of them are new or all are old."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from zarr.core.buffer import Buffer

from dsengine.corpus.build.metadata import add_columns
from dsengine.corpus.index import Corpus, Index
from dsengine.corpus.schema import INDEX_DTYPES
from dsengine.corpus.seal import staged
from dsengine.corpus.series import SeriesCorpus
from dsengine.corpus.shards import write_file
from dsengine.corpus.storage import storage_at
from dsengine.errors import UsageError


def write_column(corpus: Corpus | SeriesCorpus, name: str, values: np.ndarray) -> None:
    """Put `values` (N,) in the place of index column `name`, or add it; open the corpus again to see it. Errors as in `write_columns`."""
    write_columns(corpus, {name: values})


def write_columns(corpus: Corpus | SeriesCorpus, columns: Mapping[str, np.ndarray], *, root: Mapping[str, Any] | None = None) -> None:
    """Replace or add index columns, and update the attributes of the root by `root` (JSON), all at once.

    Standard columns (`schema.INDEX_DTYPES`) get their dtype, others keep that of `values`. UsageError when a column does not have one
    value a patch or holds what its dtype cannot, or another process changes the corpus; RunError when the disk refuses.
    """
    content: dict[str, Buffer] = {}
    add_columns(content, {name: _fitted(corpus, name, np.asarray(values)) for name, values in columns.items()}, folder="index")
    with staged(corpus.path, replaces=[f"index/{name}" for name in columns]) as folder:
        for key, value in content.items():
            if key.split("/")[:1] == ["index"] and key.count("/") > 1:  # not the metadata of the groups, which are there
                write_file(folder / key, [value.to_bytes()])
        if root:
            described = json.loads(storage_at(corpus.path).get("zarr.json"))
            described["attributes"]["dsengine"].update(root)
            write_file(folder / "zarr.json", [json.dumps(described, indent=2).encode()])


def _fitted(corpus: Corpus | SeriesCorpus, name: str, values: np.ndarray) -> np.ndarray:
    """`values` in the dtype of the column."""
    if name == "id" or not name.isidentifier():
        raise UsageError(f"index column {name!r} cannot be written; legal: letters, digits and _, other than id")
    if values.shape != (len(corpus),):
        raise UsageError(f"index column {name}: shape {values.shape}, expected {(len(corpus),)}")
    dtype = INDEX_DTYPES.get(name) if name in Index._fields else None
    if dtype is None or dtype == "str":
        return values
    fitted = values.astype(dtype)
    if dtype[0] in "iu" and not np.array_equal(fitted, values):
        raise UsageError(f"index column {name}: values do not fit {dtype}")
    return fitted
