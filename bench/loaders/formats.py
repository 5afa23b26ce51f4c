"""The bench corpus and the same patches in other formats, made once in the user's cache and reused.

Formats that take minutes to write hold the first MOST_FILES patches only: fewer files are easier to read, so this favours them.
"""

import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path

import numpy as np

from dsengine.corpus import Corpus, open_corpus
from dsengine.corpus.default import cache_folder
from dsengine.corpus.synth import WORLD_VERSION, synthesize

SIZE, SEED, MOST_FILES = 128, 0, 1024
PATCH_BYTES = 14 * SIZE * SIZE * 2
DEFAULT_MB = 2000


def asked_mb(enabled: bool) -> int:
    """Megabytes of decoded patches: $DSENGINE_BENCH_MB, else 2,000, or 30 where benches only run once as tests."""
    return int(os.environ.get("DSENGINE_BENCH_MB") or (DEFAULT_MB if enabled else 30))


def bench_corpus(megabytes: int) -> Corpus:
    """Whole shards of synthetic patches of 14 x 128 x 128, at least `megabytes` decoded."""
    num = -(-megabytes * 1_000_000 // PATCH_BYTES // 64) * 64
    return open_corpus(_once(f"synth-v{WORLD_VERSION}-{num}x{SIZE}-seed{SEED}", lambda path: synthesize(path, num_patches=num, size=SIZE, seed=SEED)))


def as_hdf5(corpus: Corpus) -> Path:
    """One file, one dataset an array, a chunk a patch, zstd after shuffle."""
    import h5py
    import hdf5plugin

    def write(path: Path) -> None:
        with h5py.File(path, "w") as file:
            for name, array in corpus.arrays.items():
                made = file.create_dataset(name, array.shape, array.dtype, chunks=(1, *array.shape[1:]), shuffle=True, **hdf5plugin.Zstd())
                for lo in range(0, len(corpus), 64):
                    made[lo:lo + 64] = array[lo:lo + 64]

    return _once(f"{corpus.path.name}.h5", write)


def as_npy(corpus: Corpus) -> Path:
    """A folder of one uncompressed .npy an array."""
    def write(path: Path) -> None:
        path.mkdir()
        for name, array in corpus.arrays.items():
            made = np.lib.format.open_memmap(path / f"{name}.npy", mode="w+", dtype=array.dtype, shape=array.shape)
            for lo in range(0, len(corpus), 64):
                made[lo:lo + 64] = array[lo:lo + 64]

    return _once(f"{corpus.path.name}.npy", write)


def as_npz(corpus: Corpus) -> Path:
    """A folder of one compressed .npz a patch."""
    def write(path: Path) -> None:
        path.mkdir()
        for k in range(few(corpus)):
            np.savez_compressed(path / f"{k}.npz", **{name: array[k] for name, array in corpus.arrays.items()})

    return _once(f"{corpus.path.name}.npz", write)


def as_geotiff(corpus: Corpus) -> Path:
    """A folder of one GeoTIFF a patch and sensor: deflate with the horizontal predictor, as benchmark sets of Sentinel-2 come."""
    import rasterio
    from rasterio.transform import from_origin

    def write(path: Path) -> None:
        path.mkdir()
        for name, array in corpus.arrays.items():
            for k in range(few(corpus)):
                with rasterio.open(path / f"{name}_{k}.tif", "w", driver="GTiff", width=SIZE, height=SIZE, count=array.shape[1], dtype="int16",
                                   crs="EPSG:32633", transform=from_origin(4e5, 5e6, 10, 10), compress="deflate", predictor=2) as file:
                    file.write(array[k])

    return _once(f"{corpus.path.name}.tif", write)


def few(corpus: Corpus) -> int:
    """Patches of the formats of one file a patch."""
    return min(MOST_FILES, len(corpus))


def _once(name: str, write: Callable[[Path], object]) -> Path:
    path = cache_folder() / "bench" / name
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{uuid.uuid4().hex}.{name}")
        try:
            write(part)
            os.rename(part, path)
        finally:
            shutil.rmtree(part, ignore_errors=True)
            part.unlink(missing_ok=True)
    return path
