"""Scenes of the archive: COGs of real TerraMesh imagery, and STAC items made from real ones with links, places and times rewritten."""

import copy
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyproj
import rasterio
import shapely
import yaml
from rasterio.transform import from_origin

BANDS = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12")
METRES = {"B01": 60, "B09": 60, "B02": 10, "B03": 10, "B04": 10, "B08": 10}
SITES = ("433D_629L_3_1", "38D_378R_2_3", "637U_59R_1_3")  # two south, one north of the equator
SIDE_M = 1080
START = datetime(2019, 1, 1, tzinfo=UTC)
ITEM_DAYS = (3, 9, 15, 21, 27, 33)


def make(folder: Path, data: Path) -> list[dict[str, Any]]:
    """Write the rasters of all sites below `folder` and return the items, hrefs beginning with `{root}`."""
    items = []
    for site in SITES:
        crs, x, y = _write_site(folder, data, site)
        for number, day in enumerate(ITEM_DAYS):
            late = number % 2 == 1  # every other scene has the offset of baseline 05.11 in its numbers
            items.append(_s2_item(data, site, crs, x, y, time=START + timedelta(days=day, hours=10), late=late, cloud=10.0 * number))
            items.append(_s1_item(data, site, crs, x, y, time=START + timedelta(days=day + 1, hours=5), ascending=number % 3 == 0))
    return items


def stored(folder: Path, site: str, band: str) -> np.ndarray:
    """The numbers in a band's raster, by rasterio."""
    with rasterio.open(folder / site / f"{band}.tif") as file:
        return file.read(1)


def region(path: Path, items: list[dict[str, Any]]) -> Path:
    """A vector file of the sites."""
    shapes = {json.dumps(item["geometry"]): item["geometry"] for item in items}
    features = [{"type": "Feature", "properties": {}, "geometry": shape} for shape in shapes.values()]
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return path


def _write_site(folder: Path, data: Path, site: str) -> tuple[int, float, float]:
    (folder / site).mkdir(parents=True)
    with rasterio.open(data / "pairs" / "terramesh" / "S2L2A" / f"{site}.tif") as file:
        crs, s2 = file.crs.to_epsg(), np.maximum(file.read(), 1).astype(np.uint16)
        north = 0 if crs // 100 == 326 else 10_000_000
        x, y = file.transform.c // 60 * 60, (file.transform.f - north) // 60 * 60 + north
    for band, image in zip(BANDS, s2, strict=True):
        step = METRES.get(band, 20) // 10
        image = image[:108:step, :108:step]
        _write(folder / site / f"{band}.tif", image, crs, x, y, 10 * step, nodata=0)
        _write(folder / site / f"{band}_late.tif", image + np.uint16(1000), crs, x, y, 10 * step, nodata=0)
    scl = np.where(s2[3, :108:2, :108:2] > np.percentile(s2[3], 80), 9, 4).astype(np.uint8)
    scl[:, :4] = 0
    _write(folder / site / "SCL.tif", scl, crs, x, y, 20, nodata=0)
    with rasterio.open(data / "pairs" / "terramesh" / "S1RTC" / f"{site}.tif") as file:
        power = (10.0 ** (file.read() / 10.0)).astype(np.float32)[:, :108, :108]
    power[:, 40:60, 40:60] = -32768.0
    for band, image in zip(("VV", "VH"), power, strict=True):
        _write(folder / site / f"{band}.tif", image, crs, x, y, 10, nodata=-32768.0)
    return crs, x, y


def _write(path: Path, image: np.ndarray, crs: int, x: float, y: float, metres: float, *, nodata: float) -> None:
    with rasterio.open(path, "w", driver="COG", height=image.shape[0], width=image.shape[1], count=1, dtype=image.dtype, crs=f"EPSG:{crs}",
                       transform=from_origin(x, y, metres, metres), nodata=nodata, compress="deflate", predictor="yes", blocksize=128,
                       overview_count=1) as file:
        file.write(image, 1)


def _geometry(crs: int, x: float, y: float) -> dict[str, Any]:
    to = pyproj.Transformer.from_crs(crs, 4326, always_xy=True)
    box = shapely.box(x, y - SIDE_M, x + SIDE_M, y)
    return shapely.geometry.mapping(shapely.transform(box, lambda xy: np.stack(to.transform(xy[:, 0], xy[:, 1]), axis=1)))


def _placed(item: dict[str, Any], name: str, collection: str, crs: int, x: float, y: float, time: datetime) -> dict[str, Any]:
    geometry = _geometry(crs, x, y)
    item |= {"id": name, "collection": collection, "geometry": geometry, "bbox": list(shapely.geometry.shape(geometry).bounds), "links": []}
    item["properties"] |= {"datetime": time.isoformat().replace("+00:00", "Z"), "proj:epsg": crs}
    return item


def _s2_item(data: Path, site: str, crs: int, x: float, y: float, *, time: datetime, late: bool, cloud: float) -> dict[str, Any]:
    """From a real Planetary Computer item."""
    item = copy.deepcopy(_pc_item(data))
    baseline = "05.11" if late else "02.12"
    name = f"S2A_MSIL2A_{time:%Y%m%dT%H%M%S}_N{baseline.replace('.', '')}_R001_{site}"
    _placed(item, name, "sentinel-2-l2a", crs, x, y, time)
    item["properties"] |= {"s2:processing_baseline": baseline, "s2:mgrs_tile": site, "eo:cloud_cover": cloud, "s2:product_uri": f"{name}.SAFE"}
    for band in (*BANDS, "SCL"):
        metres = 20 if band == "SCL" else METRES.get(band, 20)
        item["assets"][band] |= {"href": f"{{root}}/{site}/{band}{'_late' if late and band != 'SCL' else ''}.tif", "proj:shape": [SIDE_M // metres] * 2,
                                 "proj:transform": [metres, 0, x, 0, -metres, y], "proj:bbox": [x, y - SIDE_M, x + SIDE_M, y]}
    return item


def _s1_item(data: Path, site: str, crs: int, x: float, y: float, *, time: datetime, ascending: bool) -> dict[str, Any]:
    """From a real Sentinel-1 item of the Planetary Computer, as its RTC collection describes them."""
    item = copy.deepcopy(json.loads((data / "stac" / "pc_sentinel-1-grd_items.json").read_text())[0])
    orbit = "ascending" if ascending else "descending"
    _placed(item, f"S1A_IW_GRDH_1SDV_{time:%Y%m%dT%H%M%S}_{site}_rtc", "sentinel-1-rtc", crs, x, y, time)
    item["properties"] |= {"sat:orbit_state": orbit, "start_datetime": time.isoformat(), "end_datetime": (time + timedelta(seconds=25)).isoformat()}
    item["assets"] = {band.lower(): {**item["assets"][band.lower()], "href": f"{{root}}/{site}/{band}.tif"} for band in ("VV", "VH")}
    return item


def _pc_item(data: Path) -> dict[str, Any]:
    cassette = yaml.load((data / "stac" / "cassettes" / "pc_sentinel-2-l2a_datetime.yaml").read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    return json.loads(cassette["interactions"][0]["response"]["body"]["string"])["features"][0]
