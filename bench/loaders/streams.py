"""Loaders with workers of their own: `torch.utils.data.DataLoader` over one sample at a time, and DALI over zarr-python.

A pass is a whole epoch of some batches, so that nothing is read ahead while the other side is timed.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from dsengine.corpus import Corpus
from loaders import formats
from loaders.readers import open_arrays

WORKERS, BATCH = 2, 64
Pass = Callable[[], int]  # reads some batches, returns how many patches


class Draws(Sampler):
    """So many random ids a pass, others each time."""

    def __init__(self, num: int, *, count: int) -> None:
        self._num, self._count, self._rng = num, count, np.random.default_rng(1)

    def __iter__(self) -> Iterator[int]:
        return iter(self._rng.integers(0, self._num, self._count).tolist())

    def __len__(self) -> int:
        return self._count


class ZarrPatches(Dataset):
    """One sample by zarr-python; each worker opens the arrays itself."""

    def __init__(self, path: Path) -> None:
        self._path, self._arrays = path, None

    def __getitem__(self, k: int) -> list[torch.Tensor]:
        if self._arrays is None:
            self._arrays = open_arrays(self._path)
        return [torch.from_numpy(array[k]) for array in self._arrays]


class GeoTiffPatches(Dataset):
    """One sample by rasterio, a file a sensor, as torchgeo's datasets of patches read theirs."""

    def __init__(self, folder: Path, names: list[str]) -> None:
        self._folder, self._names = folder, names

    def __getitem__(self, k: int) -> list[torch.Tensor]:
        import rasterio

        out = []
        for name in self._names:
            with rasterio.open(self._folder / f"{name}_{k}.tif") as file:
                out.append(torch.from_numpy(file.read()))
        return out


def over_zarr(corpus: Corpus, *, batches: int) -> Pass:
    """DataLoader with two workers over zarr-python."""
    return _data_loader(ZarrPatches(corpus.path), len(corpus), batches=batches)


def over_geotiff(corpus: Corpus, *, batches: int) -> Pass:
    """DataLoader with two workers over GeoTIFF."""
    return _data_loader(GeoTiffPatches(formats.as_geotiff(corpus), list(corpus.arrays)), formats.few(corpus), batches=batches)


def _data_loader(dataset: Dataset, num: int, *, batches: int) -> Pass:
    loader = DataLoader(dataset, BATCH, sampler=Draws(num, count=batches * BATCH), num_workers=WORKERS, persistent_workers=True)
    return lambda: sum(len(batch[0]) for batch in loader)


class ZarrBatches:
    """What DALI's workers call: a batch by zarr-python, patch by patch."""

    def __init__(self, path: Path, num: int, *, batches: int) -> None:
        self._path, self._num, self._batches, self._arrays = path, num, batches, None

    def __call__(self, info: object) -> tuple[list[np.ndarray], ...]:
        if info.iteration >= self._batches:
            raise StopIteration
        if self._arrays is None:
            self._arrays = open_arrays(self._path)
        ids = np.random.default_rng([info.epoch_idx, info.iteration]).integers(0, self._num, BATCH).tolist()
        return tuple([array[k] for k in ids] for array in self._arrays)


def dali_over_zarr(corpus: Corpus, *, batches: int) -> Pass:
    """DALI's external_source with two worker processes over zarr-python."""
    from nvidia.dali import Pipeline, fn, types

    pipeline = Pipeline(batch_size=BATCH, num_threads=WORKERS, device_id=None, py_num_workers=WORKERS, py_start_method="spawn", prefetch_queue_depth=2)
    with pipeline:
        source = ZarrBatches(corpus.path, len(corpus), batches=batches)
        pipeline.set_outputs(*fn.external_source(source=source, num_outputs=2, parallel=True, batch=True, batch_info=True, dtype=types.INT16))
    pipeline.build()

    def one_pass() -> int:
        count = 0
        for _ in range(batches):
            count += len(torch.from_dlpack(pipeline.run()[0].as_tensor()))
        try:
            pipeline.run()
        except StopIteration:
            pipeline.reset()
        return count

    return one_pass
