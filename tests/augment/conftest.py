"""Made-up corpora and operators for the augmentation tests, as fixtures that are functions."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from dsengine.corpus.schema import Band, Contract

NODATA = -32768


def _contract(num_bands: int, *, patch_size: int, factor: int = 1) -> Contract:
    """Reflectance bands on a grid `factor` times coarser, the last two of 14 in dB on the finest."""
    rng = np.random.default_rng(num_bands)
    radar = max(0, num_bands - 12)
    optical = num_bands - radar
    bands = [Band(f"B{k}", "s2", "s2", k, factor) for k in range(optical)] + [Band(f"V{k}", "s1", "s1", k, 1) for k in range(radar)]
    return Contract(
        bands=tuple(bands), units=("reflectance",) * optical + ("dB",) * radar, scale=(1e-4,) * optical + (0.01,) * radar,
        offset=(0.0,) * num_bands, mean=(*rng.uniform(0.05, 0.3, optical), *rng.uniform(-20, -10, radar)),
        std=(*rng.uniform(0.02, 0.1, optical), *rng.uniform(2, 4, radar)), nodata=NODATA, patch_size=patch_size, resolution_m=10.0)


def _sources(num_samples: int, *, patch_size: int, factor: int = 1, absent: float = 0.0) -> list[Tensor]:
    """`s2` (B, 12, P / factor, P / factor) and `s1` (B, 2, P, P); each pixel lacks data with probability `absent`."""
    rng = np.random.default_rng(num_samples)
    s2 = rng.integers(0, 6000, (num_samples, 12, patch_size // factor, patch_size // factor))
    s1 = rng.integers(-2500, -500, (num_samples, 2, patch_size, patch_size))
    return [torch.from_numpy(np.where(rng.random(x.shape) < absent, NODATA, x).astype(np.int16)) for x in (s2, s1)]


def _operator(num_bands: int, *, num_views: int = 2, num_samples: int = 3, patch_size: int = 40, size: int = 33,
             factor: int = 1) -> dict[str, object]:
    """Random arguments of ops.augment over `sources`, with all dihedral codes; float64, to be cast."""
    g = torch.Generator().manual_seed(num_bands)
    table = [(0, k, factor) for k in range(min(num_bands, 12))] + [(1, k, 1) for k in range(num_bands - 12)]
    count = num_views * num_samples
    return {
        "bands": torch.tensor(table, dtype=torch.int32),
        "center": torch.rand(num_bands, generator=g) * 3000,
        "offset": torch.randint(0, patch_size - size + 1, (num_views, num_samples, 2), generator=g, dtype=torch.int32),
        "code": ((torch.arange(count) * 3 + 1) % 8).to(torch.int32).reshape(num_views, num_samples),
        "A": torch.randn(num_views, num_samples, num_bands, num_bands, generator=g) * 1e-3,
        "T": torch.randn(num_views, num_samples, num_bands, num_bands, generator=g) * 1e-3,
        "b": torch.randn(num_views, num_samples, num_bands, generator=g), "size": size}


@pytest.fixture(scope="session")
def make_contract() -> Callable[..., Contract]:
    return _contract


@pytest.fixture(scope="session")
def make_sources() -> Callable[..., list[Tensor]]:
    return _sources


@pytest.fixture(scope="session")
def make_operator() -> Callable[..., dict[str, object]]:
    return _operator
