"""Writes DeepSentinel trees in the published layout: what the original's downloaders put where, pixel by pixel."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyproj
import pytest

from dsengine.corpus import Corpus, open_corpus
from dsengine.corpus.commands import add_parser

GEE_S2 = ["B1", "B2", "B3", "B4", "B5", "B6", "B7", "B8", "B8A", "B9", "B11", "B12"]
DAY = "2018-06-21"
S2_ID = "projects/earthengine-public/assets/COPERNICUS/S2_SR/20180621T105031_20180621T105432_T32TPR"
S1_ID = "projects/earthengine-public/assets/COPERNICUS/S1_GRD/S1A_IW_GRDH_1SDV_20180620T053445_20180620T053510_022440_026E2B_8F6D"


def smooth(rng: np.random.Generator, bands: int, low: float, high: float) -> np.ndarray:
    """(256, 256, bands) float32: a coarse field with a little grain, height first and bands last as published."""
    rows = np.stack([np.interp(np.linspace(0, 8, 256), np.arange(9), rng.uniform(0, 1, 9)) for _ in range(bands)], axis=-1)
    columns = np.stack([np.interp(np.linspace(0, 8, 256), np.arange(9), rng.uniform(0, 1, 9)) for _ in range(bands)], axis=-1)
    fields = (rows[:, None] + columns[None] + rng.uniform(0, 0.05, (256, 256, 1))) / 2.05
    return (low + (high - low) * fields).astype(np.float32)


def box_around(lon: float, lat: float, epsg: int) -> tuple[float, float]:
    """Upper left corner of the unsnapped patch around a point."""
    x, y = pyproj.Transformer.from_crs(4326, epsg, always_xy=True).transform(lon, lat)
    return x - 1280, y + 1280


def tile_at(lon: float, lat: float, epsg: int) -> dict[str, Any]:
    """The grid-aligned tile that holds a point, as Descartes Labs describes it."""
    x, y = pyproj.Transformer.from_crs(4326, epsg, always_xy=True).transform(lon, lat)
    left, top = np.floor((x - 500000) / 2560) * 2560 + 500000, np.ceil(y / 2560) * 2560
    return {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": []},
            "properties": {"key": "256:0:10.0:32:-1:2000", "zone": epsg % 100, "geotrans": [left, 10.0, 0, top, 0, -10.0], "cs_code": f"EPSG:{epsg}"}}


class Tree:
    """Adds samples to <root>/<dataset>."""

    def __init__(self, root: Path, dataset: str = "DEMO_EU_labelled") -> None:
        self.root, self.folder = root, root / dataset

    def stem(self, idx: int, src: str, lon: float, lat: float) -> Path:
        folder = self.folder / str(idx)
        folder.mkdir(parents=True, exist_ok=True)
        return folder / f"{idx}_{src}_{DAY}_{lon}_{lat}"

    def gee(self, idx: int, lon: float, lat: float, *, crs_code: str, tile: dict[str, Any] | None = None, **changes: Any) -> dict[str, np.ndarray]:
        """One Earth Engine sample; `crs_code` may be the broken text. Returns the published arrays."""
        zone = int(crs_code[8:])
        epsg = int(crs_code[5:8]) * 100 + zone
        left, top = (tile["properties"]["geotrans"][i] for i in (0, 3)) if tile else box_around(lon, lat, epsg)
        rng = np.random.default_rng(idx)
        arrays = {"S2": smooth(rng, 12, 200, 6000).round(), "S1": smooth(rng, 2, -26, 3)}
        stem = self.stem(idx, "GEE", lon, lat)
        for sensor, x in arrays.items():
            np.savez(f"{stem}_{sensor}arr.npz", arr=x)
        meta = {"tile": tile, "S2_name": S2_ID, "S1_name": S1_ID, "S2_bands": GEE_S2, "S1_bands": ["VV", "VH"], "x_off": left, "y_off": top,
                "patch_size": 256, "crs_code": crs_code}
        Path(f"{stem}_meta.json").write_text(json.dumps(meta | changes))
        for thumb in ("S2thumb", "S1thumb"):
            Path(f"{stem}_{thumb}.png").write_bytes(b"\x89PNG")
        return arrays

    def dl(self, idx: int, lon: float, lat: float, *, epsg: int) -> dict[str, np.ndarray]:
        """One Descartes Labs sample: 14 bands with alpha, S1 in 0..255."""
        rng = np.random.default_rng(idx)
        s2 = smooth(rng, 14, 200, 6000).round()
        s2[..., 13] = 1
        s2[:5, :, 13] = 0
        arrays = {"S2": s2, "S1": smooth(rng, 2, 1, 255).round()}
        stem = self.stem(idx, "DL", lon, lat)
        for sensor, x in arrays.items():
            np.savez(f"{stem}_{sensor}arr.npz", arr=x)
            Path(f"{stem}_{sensor}meta.json").write_text("{}")
        Path(f"{stem}_tile.json").write_text(json.dumps(tile_at(lon, lat, epsg)))
        return arrays

    def land_cover(self, idx: int, lon: float, lat: float, x: np.ndarray, *, meta: dict[str, Any] | None = None) -> None:
        """The CORINE raster of a sample, index 0..47."""
        stem = self.stem(idx, "LC", lon, lat)
        np.savez(f"{stem}_LCarr.npz", arr=x.astype(np.uint8))
        Path(f"{stem}_LCmeta.json").write_text(json.dumps(meta or {}))

    def features(self, idx: int, lon: float, lat: float, features: list[dict[str, Any]]) -> Path:
        """The map features of a sample: no `type`, geometry as hex text."""
        path = Path(f"{self.stem(idx, 'OSMFC', lon, lat)}.geojson")
        path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
        return path

    def edit(self, idx: int, suffix: str, change: Callable[[np.ndarray], None]) -> None:
        """Change a published array in place."""
        path = next((self.folder / str(idx)).glob(f"*_{suffix}.npz"))
        with np.load(path) as file:
            x = file["arr"]
        change(x)
        np.savez(path, arr=x)

    def edit_meta(self, idx: int, **changes: Any) -> None:
        """Change entries of meta.json."""
        path = next((self.folder / str(idx)).glob("*_meta.json"))
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    def build(self, out: Path, *extra: str) -> Corpus:
        """`corpus build` as a user would type it."""
        parser = argparse.ArgumentParser()
        argv = ["corpus", "build", str(out), "--source", "deepsentinel", "--root", str(self.root), *extra]
        add_parser(parser.add_subparsers(), argv)
        args = parser.parse_args(argv)
        assert args.run(args) == 0
        return open_corpus(out)


@pytest.fixture
def new_tree(tmp_path: Path) -> Tree:
    """An empty tree."""
    return Tree(tmp_path / "data")


@pytest.fixture
def pair(new_tree: Tree) -> Tree:
    """Two whole Earth Engine samples in zone 32, on tiles."""
    for idx, lon, lat in ((7, 9.5, 48.25), (11, 9.75, 47.5)):
        new_tree.gee(idx, lon, lat, crs_code="EPSG:32632", tile=tile_at(lon, lat, 32632))
    return new_tree
