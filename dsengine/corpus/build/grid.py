"""Where patches lie: windows on a raster, and the spatial blocks that keep train, val and test apart."""

import hashlib
import math
from collections.abc import Iterator

import numpy as np

from dsengine.corpus.schema import SPLITS
from dsengine.errors import UsageError

BLOCK_DEG = 0.25  # about 28 km north-south


def windows(height: int, width: int, *, size: int, stride: int) -> Iterator[tuple[int, int]]:
    """(y, x) of each whole window, row by row. What is left at the right and lower edge, less than a stride, is not covered."""
    if size < 1 or stride < 1:
        raise UsageError(f"size={size}, stride={stride}: both must be at least 1 pixel")
    for y in range(0, height - size + 1, stride):
        for x in range(0, width - size + 1, stride):
            yield y, x


def blocks(lon: np.ndarray, lat: np.ndarray, *, block_deg: float = BLOCK_DEG) -> np.ndarray:
    """(N, 2) int64 row and column of each point's block; columns are widened by 1/cos(latitude) to stay about square."""
    row = np.floor(lat / block_deg).astype(np.int64)
    middle = np.clip((row + 0.5) * block_deg, -89.0, 89.0)
    column = np.floor(lon * np.cos(np.radians(middle)) / block_deg).astype(np.int64)
    return np.stack([row, column], axis=1)


def split_codes(lon: np.ndarray, lat: np.ndarray, *, seed: int) -> np.ndarray:
    """(N,) uint8 split of each point: 80/10/10 by a hash of (seed, block), and never an empty val or train with two blocks or more.

    A block's split depends on the other blocks only through that last rule.
    """
    unique, inverse = np.unique(blocks(lon, lat), axis=0, return_inverse=True)
    draw = np.array([_uniform(seed, row, column) for row, column in unique.tolist()])
    code = np.searchsorted([0.8, 0.9], draw, side="right").astype(np.uint8)
    train, val = SPLITS.index("train"), SPLITS.index("val")
    # Train first: it may take the only val block, and then the highest draw, never the same block, becomes val.
    if len(unique) > 1 and not (code == train).any():
        code[np.argmin(draw)] = train
    if len(unique) > 1 and not (code == val).any():
        code[np.argmax(draw)] = val
    return code[inverse.reshape(-1)]


def _uniform(seed: int, row: int, column: int) -> float:
    digest = hashlib.blake2b(f"{seed} {row} {column}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") / math.ldexp(1.0, 64)
