"""Other ways to get a batch of random patches, each as its documentation has it: a function from (B,) ids to one (B, C, H, W) array a sensor."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import zarr

from dsengine.corpus import Corpus
from loaders import formats

Batch = list[np.ndarray]
Read = Callable[[np.ndarray], Batch]
THREADS = 2


def zarr_loop(corpus: Corpus) -> Read:
    """Index the array once a sample, then collate."""
    arrays = open_arrays(corpus.path)
    return lambda ids: [np.stack([array[k] for k in ids.tolist()]) for array in arrays]


def zarr_threads(corpus: Corpus) -> Read:
    """The same by two threads."""
    return _in_threads(open_arrays(corpus.path))


def zarrs_loop(corpus: Corpus) -> Read:
    """The loop with zarrs (Rust) as zarr-python's codec pipeline."""
    arrays = zarrs_arrays(corpus.path)
    return lambda ids: [np.stack([array[k] for k in ids.tolist()]) for array in arrays]


def zarrs_threads(corpus: Corpus) -> Read:
    """The same by two threads."""
    return _in_threads(zarrs_arrays(corpus.path))


def hdf5_loop(corpus: Corpus) -> Read:
    """h5py straight into the batch, one chunk a patch."""
    import h5py
    import hdf5plugin  # noqa: F401  registers zstd

    file = h5py.File(formats.as_hdf5(corpus))
    sets = [file[name] for name in corpus.arrays]

    def read(ids: np.ndarray) -> Batch:
        outs = [np.empty((len(ids), *x.shape[1:]), dtype=x.dtype) for x in sets]
        for x, out in zip(sets, outs, strict=True):
            for row, k in enumerate(ids.tolist()):
                x.read_direct(out, np.s_[k], np.s_[row])
        return outs

    return read


def npz_loop(corpus: Corpus) -> Read:
    """np.load of one compressed file a patch."""
    folder = formats.as_npz(corpus)
    return lambda ids: [np.stack(x) for x in zip(*(_npz(folder / f"{k}.npz") for k in ids.tolist()), strict=True)]


def memmap(corpus: Corpus) -> Read:
    """Fancy indexing of uncompressed memory maps: twice the bytes on disk, nothing to decode."""
    folder = formats.as_npy(corpus)
    arrays = [np.load(folder / f"{name}.npy", mmap_mode="r") for name in corpus.arrays]
    return lambda ids: [array[ids] for array in arrays]


def open_arrays(path: Path) -> list[zarr.Array]:
    """The sensors' arrays by plain zarr-python, S2 first as everywhere."""
    group = zarr.open_group(path, mode="r")
    return [group["s2"], group["s1"]]


def zarrs_arrays(path: Path) -> list[zarr.Array]:
    """The same with zarrs's codec pipeline, which an array takes up when it is opened."""
    with zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}):
        return open_arrays(path)


def _npz(path: Path) -> Batch:
    with np.load(path) as file:
        return [file["s2"], file["s1"]]


def _in_threads(arrays: list[zarr.Array]) -> Read:
    pool = ThreadPoolExecutor(THREADS)

    def read(ids: np.ndarray) -> Batch:
        outs = [np.empty((len(ids), *array.shape[1:]), dtype=array.dtype) for array in arrays]

        def one(item: tuple[int, int]) -> None:
            for array, out in zip(arrays, outs, strict=True):
                out[item[0]] = array[item[1]]

        list(pool.map(one, enumerate(ids.tolist())))
        return outs

    return read
