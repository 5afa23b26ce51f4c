"""Writes a small DENETHOR tile, in the layout of DENETHOR itself and in that of Radiant MLHub, pickles as eo-learn wrote them.

Nothing of the package under test is used. 24 x 30 Sentinel-2 pixels, 80 x 100 Planet pixels, 6 steps and 10 days.
"""

import datetime
import gzip
import io
import json
import pickle
import struct
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import rasterio
from rasterio.crs import CRS
from rasterio.transform import from_origin
from rasterio.warp import transform_geom

HEIGHT, WIDTH, STEPS, DAYS = 24, 30, 6, 10
LEFT, TOP, EPSG = 400_000.0, 5_800_000.0, 32633
FIRST = datetime.date(2018, 4, 1)
# Steps are two days apart; the last lies behind the last Planet day.
MOMENTS = [datetime.datetime(2018, 4, 1 + 2 * i, 10, 7, 31) for i in range(STEPS)]
NAMES = {1: "Wheat", 2: "Rye", 3: "Barley", 4: "Oats", 5: "Corn", 6: "Oil Seeds", 7: "Root Crops", 8: "Meadows", 9: "Forage Crops"}


class Truth(NamedTuple):
    """What is in the files."""

    bands: np.ndarray  # (T, H, W, 12) float32 reflectance
    clp: np.ndarray  # (T, H, W, 1) uint8
    planet: np.ndarray  # (days, 4, 80, 100) int16 reflectance x 10000
    fields: list[tuple[int, int, list[tuple[float, float]]]]  # fid, crop, corners in metres


def truth() -> Truth:
    """Both sensors show the same ground, so their bands correlate; a third of one step is empty."""
    rng = np.random.default_rng(5)
    ground = rng.gamma(3.0, 0.05, (4, HEIGHT, WIDTH))
    bands = rng.gamma(2.0, 0.1, (STEPS, HEIGHT, WIDTH, 12))
    for step in range(STEPS):
        for twin, band in enumerate((1, 2, 3, 7)):
            bands[step, :, :, band] = ground[twin] + 0.02 * step + rng.normal(0, 0.002, (HEIGHT, WIDTH))
    bands[2, :, ::3] = 0
    big = np.repeat(np.repeat(ground, 10, axis=1), 10, axis=2)[:, 1::3, 1::3][:, :HEIGHT * 10 // 3, :WIDTH * 10 // 3]
    planet = np.stack([np.rint((big + 0.01 * day + rng.normal(0, 0.001, big.shape)) * 1e4) for day in range(DAYS)])
    clp = rng.integers(0, 255, (STEPS, HEIGHT, WIDTH, 1)).astype(np.uint8)
    return Truth(np.rint(bands * 1e4).astype(np.float32) / np.float32(1e4), clp, planet.astype(np.int16), fields())


def fields() -> list[tuple[int, int, list[tuple[float, float]]]]:
    """Ten fields of each crop, 30 m x 20 m = 600 m2 apart from those of 60 m x 20 m; fid 0 is one of the large."""
    made, fid = [], 0
    for crop in (1, 5):
        for number in range(10):
            column, row = (number % 5) * 60.0, (number // 5) * 40.0 + (80.0 if crop == 5 else 0.0)
            width = 58.0 if number != 3 else 30.0  # number 3 has 600 m2
            x, y = LEFT + column + 1, TOP - row - 1
            made.append((fid, crop, [(x, y), (x + width, y), (x + width, y - 20), (x, y - 20), (x, y)]))
            fid += 1
    return made


def write(root: Path, layout: str, *, tile: str = "train", made: Truth | None = None, degrees: bool = True) -> Path:
    """The tile at `root`; `degrees`: the labels are in WGS 84, not in the CRS of the images."""
    made = made or truth()
    name, year = {"train": ("33N_18E_242N", 2018), "test": ("33N_17E_243N", 2019)}[tile]
    if layout == "mlhub":
        base = f"dlr_fusion_competition_germany_{tile}"
        pack = root / f"{base}_source_sentinel_2" / f"{base}_source_sentinel_2_{name}_{year}"
        pack.mkdir(parents=True)
        np.save(pack / "bands.npy", made.bands)
        np.save(pack / "clp.npy", made.clp)
        (pack / "bbox.pkl").write_bytes(bbox_pickle("sentinelhub.geometry", "_crs"))
        (pack / "timestamp.pkl").write_bytes(pickle.dumps([m.replace(tzinfo=datetime.UTC) for m in MOMENTS], 4))
        planet = [root / f"{base}_source_planet" / f"{base}_source_planet_{name}_{day:%Y_%m_%d}" / "sr.tif" for day in days()]
        labels = root / f"{base}_labels" / f"{base}_labels_{name}" / "labels.geojson"
    else:
        root.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(root / f"s2_{tile}.zip", "w") as file:
            for member, content in (("data/BANDS.npy.gz", npy(made.bands)), ("data/CLP.npy.gz", npy(made.clp)),
                                    ("bbox.pkl.gz", bbox_pickle("sentinelhub.common", "crs")), ("timestamp.pkl.gz", pickle.dumps(MOMENTS, 3))):
                file.writestr(f"s2_{tile}/{member}", gzip.compress(content, 1))
        planet = [root / "PlanetL3H" / tile.capitalize() / "PF-SR" / f"{day:%Y-%m-%d}.tif" for day in days()]
        labels = root / f"crops_{tile}_{year}.geojson"
    for path, image in zip(planet, made.planet, strict=True):
        tif(path, image)
    labels.parent.mkdir(parents=True, exist_ok=True)
    labels.write_text(json.dumps(geojson(made.fields, degrees=degrees)))
    return root


def days() -> list[datetime.date]:
    """The days with a Planet image."""
    return [FIRST + datetime.timedelta(days=i) for i in range(DAYS)]


def npy(array: np.ndarray) -> bytes:
    """As np.save writes it."""
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def tif(path: Path, image: np.ndarray, *, left: float = LEFT) -> None:
    """One Planet day: blue, green, red, nir."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(path, "w", driver="GTiff", dtype=image.dtype, count=len(image), height=image.shape[1], width=image.shape[2],
                       crs=CRS.from_epsg(EPSG), transform=from_origin(left, TOP, 3, 3), tiled=True, blockxsize=16, blockysize=16) as file:
        file.write(image)


def geojson(made: list[tuple[int, int, list[tuple[float, float]]]], *, degrees: bool) -> dict:
    """A FeatureCollection as DENETHOR's."""
    features = []
    for fid, crop, corners in made:
        geometry = {"type": "Polygon", "coordinates": [corners]}
        if degrees:
            geometry = transform_geom(CRS.from_epsg(EPSG), "OGC:CRS84", geometry)
        features.append({"type": "Feature", "geometry": geometry,
                         "properties": {"fid": fid, "crop_id": crop, "crop_name": NAMES[crop], "SHAPE_AREA": 1.0}})
    crs = {} if degrees else {"crs": {"type": "name", "properties": {"name": f"urn:ogc:def:crs:EPSG::{EPSG}"}}}
    return {"type": "FeatureCollection", **crs, "features": features}


def bbox_pickle(module: str, crs_name: str) -> bytes:
    """A protocol 3 pickle of a sentinelhub BBox, opcode by opcode: the class is not needed to write it."""
    def text(value: str) -> bytes:
        return b"X" + struct.pack("<I", len(value)) + value.encode()

    numbers = {"min_x": LEFT, "min_y": TOP - 10 * HEIGHT, "max_x": LEFT + 10 * WIDTH, "max_y": TOP}
    state = b"".join(text(key) + b"G" + struct.pack(">d", value) for key, value in numbers.items())
    crs = text(crs_name) + b"csentinelhub.constants\nCRS\n" + text(str(EPSG)) + b"\x85R"
    return b"\x80\x03c" + f"{module}\nBBox\n".encode() + b")\x81}(" + state + crs + b"ub."
