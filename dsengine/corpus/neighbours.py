"""The neighbour table of a corpus: for each patch all others within a radius, nearest first, as compressed sparse rows.

    neighbours/indptr       (N + 1,) int64   patch i's neighbours are entries indptr[i] to indptr[i + 1] - 1
    neighbours/indices      (M,) int32       their rows, nearest first, of equals the lower row first
    neighbours/distance_km  (M,) float32     great-circle distance between the centres

A pair is there in both directions, a patch is not its own neighbour. Patches in quarantine, or that do not meet `where`, have none.
Memory is bounded: pairs are counted first, then made for as many rows at a time as hold about `BLOCK_PAIRS` of them.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import zarr
from scipy.spatial import cKDTree
from zarr.storage import MemoryStore

from dsengine.corpus.build.metadata import compressors
from dsengine.corpus.seal import staged
from dsengine.corpus.shards import encoder
from dsengine.corpus.sphere import EARTH_RADIUS_KM, arc_km, chord, unit_vectors
from dsengine.errors import RunError, UsageError

if TYPE_CHECKING:
    from dsengine.corpus.index import Corpus

RADIUS_KM = 111.2  # a degree of latitude
BLOCK_PAIRS = 2_000_000  # about 150 MB while they are made and sorted
BLOCK_ROWS = 65_536  # so that a row within a block fits 16 bits
CHUNK = 1 << 18  # entries in one stored chunk
MOST_PAIRS = 2_000_000_000  # 16 GB before compression
FOLDER = "neighbours"


class Pairs(NamedTuple):
    """Neighbours of consecutive points."""

    counts: np.ndarray  # (n,) int64
    indices: np.ndarray  # (sum of counts,) int64 positions among all points
    km: np.ndarray  # (sum of counts,) float32


class Neighbours:
    """The stored table, opened by `Corpus.neighbours`."""

    def __init__(self, group: zarr.Group, num_patches: int, path: Path) -> None:
        self.attributes: dict[str, Any] = dict(group.attrs)
        self.radius_km = float(self.attributes["radius_km"])
        self._indices, self._km = group["indices"], group["distance_km"]
        self.indptr = np.asarray(group["indptr"][...])
        if self.indptr.shape != (num_patches + 1,):
            raise UsageError(f"{path}: its neighbour table is of {len(self.indptr) - 1} patches, the corpus has {num_patches}; "
                             f"run `dsengine corpus neighbours {path}`")

    def of(self, id: int) -> tuple[np.ndarray, np.ndarray]:  # noqa: A002
        """Rows (n,) int32 and distances (n,) float32 km of the neighbours of patch `id`, nearest first."""
        if not 0 <= id < len(self.indptr) - 1:
            raise UsageError(f"id={id} is not legal: 0 to {len(self.indptr) - 2}")
        span = slice(int(self.indptr[id]), int(self.indptr[id + 1]))
        return np.asarray(self._indices[span]), np.asarray(self._km[span])

    def load(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """All of indptr, indices and distance_km in memory."""
        return self.indptr, np.asarray(self._indices[...]), np.asarray(self._km[...])


def open_neighbours(group: zarr.Group, num_patches: int, path: Path) -> Neighbours:
    """The neighbour table of an opened corpus. UsageError when there is none or it is of another corpus, RunError when it is damaged."""
    if FOLDER not in group:
        raise UsageError(f"{path} has no neighbour table: run `dsengine corpus neighbours {path}`")
    try:
        return Neighbours(group[FOLDER], num_patches, path)
    except UsageError:
        raise
    except (KeyError, TypeError, ValueError, RuntimeError, OSError) as error:
        raise RunError(f"{path / FOLDER}: damaged ({error}); run `dsengine corpus neighbours {path}`") from error


def write_neighbours(corpus: "Corpus", *, radius_km: float = RADIUS_KM, where: str | None = None,
                     progress: Callable[[int, int], None] | None = None) -> int:
    """Make the table and put it in the place of the one there is, whole or not at all; returns the number of pairs.

    Patches without a place have none. UsageError for a radius that is not legal or makes too many pairs, RunError when the disk refuses.
    """
    if not 0 < radius_km <= np.pi * EARTH_RADIUS_KM:
        raise UsageError(f"radius_km={radius_km}: legal: above 0, to half way round the globe ({np.pi * EARTH_RADIUS_KM:.0f})")
    rows = corpus.rows("all", where)
    rows = rows[np.isfinite(corpus.index.lon[rows]) & np.isfinite(corpus.index.lat[rows])]
    with staged(corpus.path, replaces=[FOLDER]) as part:
        counts = np.zeros(len(corpus), np.int64)
        indices, km = _Stream(part / FOLDER / "indices", "int32"), _Stream(part / FOLDER / "distance_km", "float32")
        done = 0
        for pairs in find_pairs(corpus.index.lon[rows], corpus.index.lat[rows], radius_km=radius_km):
            counts[rows[done:done + len(pairs.counts)]] = pairs.counts
            indices.append(rows[pairs.indices].astype(np.int32))
            km.append(pairs.km)
            done += len(pairs.counts)
            if progress:
                progress(done, len(rows))
        indptr = _Stream(part / FOLDER / "indptr", "int64")
        indptr.append(np.concatenate([[0], np.cumsum(counts)]))
        group = zarr.create_group(MemoryStore(content := {}), attributes={
            "radius_km": radius_km, "earth_radius_km": EARTH_RADIUS_KM, "rows": len(rows), "pairs": int(counts.sum()), "where": where})
        (part / FOLDER / "zarr.json").write_bytes(content["zarr.json"].to_bytes())
        for stream in (indptr, indices, km):
            stream.close()
    return int(counts.sum())


def find_pairs(lon: np.ndarray, lat: np.ndarray, *, radius_km: float) -> Iterator[Pairs]:
    """All pairs of points (N,) in degrees within the radius, for consecutive points at a time, in the order of the points."""
    points = unit_vectors(lon, lat)
    tree = cKDTree(points, balanced_tree=False, compact_nodes=True)
    reach = chord(radius_km)
    start = 0
    for stop in _blocks(tree, points, reach):
        yield _pairs(tree, points, start, stop, reach)
        start = stop


def _blocks(tree: cKDTree, points: np.ndarray, reach: float) -> list[int]:
    """Where each block of rows ends. UsageError when all pairs together are too many."""
    ends, held, total = [], 0, 0
    for start in range(0, len(points), BLOCK_ROWS):
        counts = tree.query_ball_point(points[start:start + BLOCK_ROWS], reach, return_length=True)
        total += int(counts.sum())
        for row, count in enumerate(counts.tolist(), start):
            if row and (held + count > BLOCK_PAIRS or row - (ends[-1] if ends else 0) >= BLOCK_ROWS):
                ends.append(row)
                held = 0
            held += count
    if total > MOST_PAIRS:
        raise UsageError(f"{total:,} pairs of {len(points):,} patches lie within the radius; legal: at most {MOST_PAIRS:,}; give a smaller radius")
    return [*ends, len(points)] if len(points) else []


def _pairs(tree: cKDTree, points: np.ndarray, start: int, stop: int, reach: float) -> Pairs:
    block = cKDTree(points[start:stop], balanced_tree=False)
    # A little more than the radius, and then cut: where a cell of the tree lies wholly inside, scipy does not look at the radius again.
    found = block.sparse_distance_matrix(tree, reach * (1 + 1e-9), output_type="ndarray")
    found = found[(found["v"] <= reach) & (found["j"] != found["i"] + start)]
    order = np.argsort(found["i"].astype(np.uint16), kind="stable")  # a radix sort at this width
    counts = np.bincount(found["i"], minlength=stop - start)
    # Distances are not negative, so their bits are in their order, and one integer sorts by distance, then by row.
    key = arc_km(found["v"]).astype(np.float32).view(np.uint32).astype(np.uint64) << np.uint64(32) | found["j"].astype(np.uint64)
    key = key[order]
    ends = np.cumsum(counts).tolist()
    for lo, hi in zip([0, *ends[:-1]], ends):
        key[lo:hi].sort()
    return Pairs(counts, (key & np.uint64(0xFFFFFFFF)).astype(np.int64), (key >> np.uint64(32)).astype(np.uint32).view(np.float32))


class _Stream:
    """One array whose length is not known before its end, written chunk by chunk."""

    def __init__(self, folder: Path, dtype: str) -> None:
        self._folder, self._dtype = folder, np.dtype(dtype)
        self._encode = encoder("zstd", self._dtype.itemsize)
        self._held: list[np.ndarray] = []
        self._size = self._num_held = 0
        folder.mkdir(parents=True)

    def append(self, values: np.ndarray) -> None:
        self._held.append(values.astype(self._dtype, copy=False))
        self._num_held += len(values)
        if self._num_held >= CHUNK:
            joined = np.concatenate(self._held)
            whole = len(joined) // CHUNK * CHUNK
            for lo in range(0, whole, CHUNK):
                self._write(joined[lo:lo + CHUNK])
            self._held, self._num_held = [joined[whole:].copy()], len(joined) - whole

    def close(self) -> None:
        """Write what is held, filled up to a whole chunk, and the description of the array."""
        rest = np.concatenate(self._held) if self._held else np.zeros(0, self._dtype)
        total = self._size + len(rest)
        if len(rest):
            self._write(np.concatenate([rest, np.zeros(CHUNK - len(rest), self._dtype)]))
        zarr.create_array(MemoryStore(content := {}), shape=(total,), chunks=(CHUNK,), dtype=self._dtype, compressors=compressors("zstd", 1))
        described = json.loads(content["zarr.json"].to_bytes())
        (self._folder / "zarr.json").write_text(json.dumps(described, indent=2))

    def _write(self, chunk: np.ndarray) -> None:
        target = self._folder / "c" / str(self._size // CHUNK)
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(self._encode(np.ascontiguousarray(chunk)))
        self._size += CHUNK
