"""Asks Earth Engine for the pixels of decided scenes: `cut` of the plan of source `gee`."""

import io
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from dsengine.corpus.build.archive.http import Broken, Http, Patience, Refused, Reply, Unreachable
from dsengine.corpus.build.archive.matches import Matches
from dsengine.corpus.build.archive.patches import FACTORS, RESOLUTION_M, Outcome, Patch, Shape, block, cloud_fraction, reading_grid
from dsengine.corpus.build.gee.access import Access
from dsengine.corpus.build.gee.images import PUBLIC, request
from dsengine.corpus.build.plan import Grid
from dsengine.corpus.build.raster import Radiometry
from dsengine.corpus.build.writer import Block
from dsengine.corpus.schema import S1_BANDS, S2_BANDS
from dsengine.errors import RunError

MASKED_DB = -9999.0  # in place of masked Sentinel-1 pixels; 0 would be a legal number of decibels
_HEADER_BYTES = 1 << 16  # of a .npy file; its values come on top
SCL = "SCL"
_NAMES = {band: re.sub(r"^B0", "B", band) for band in S2_BANDS} | {SCL: SCL} | {band: band for band in S1_BANDS}


@dataclass(frozen=True, kw_only=True)
class Cut:
    """Patches of consecutive rows; connections and credentials belong to the call."""

    matches: Matches
    shape: Shape
    patience: Patience
    at_once: int  # requests, in this process
    api: str
    project: str

    def __call__(self, rows: range) -> Block:
        records, access = self.matches.read(rows), Access(self.project)
        with Http(self.patience, at_once=self.at_once, extra="gee") as http, ThreadPoolExecutor(self.at_once) as pool:
            jobs = [[(sensor, bands, pool.submit(self._read, http, access, record, sensor, bands)) for sensor in self.shape.sensors
                     for bands in _groups(sensor)] for record in records]
            outcomes = [self._outcome(record, job) for record, job in zip(records, jobs, strict=True)]
        return block(records, outcomes, layout=self.shape.layout(), first_row=rows.start)

    def _read(self, http: Http, access: Access, record: Mapping[str, Any], sensor: str, bands: Sequence[str]) -> np.ndarray:
        url, body = pixels_request(record[sensor]["name"], Grid(*record["grid"]), sensor, bands, project=self.project)
        side = body["grid"]["dimensions"]["width"]
        return request(http, access, f"{self.api.rstrip('/')}{url}", body=body, max_bytes=_HEADER_BYTES + side * side * len(bands) * 8,
                       accept=lambda reply: parse_pixels(reply, side, bands))

    def _outcome(self, record: Mapping[str, Any], job: Sequence[tuple[str, Sequence[str], Any]]) -> Outcome:
        raw, radiometry, cloud = {}, {}, float("nan")
        for sensor, bands, future in job:
            try:
                values = future.result()
            except RunError as error:
                kind = Unreachable if isinstance(error, Unreachable) else RunError
                return kind(f"{sensor} {record[sensor]['id']} {bands[0]}..{bands[-1]}: {error}")
            for band in bands:
                if band == SCL:
                    cloud = cloud_fraction(values[_NAMES[band]])
                else:
                    raw[band] = values[_NAMES[band]]
                    # S2_SR_HARMONIZED has no offset, whatever the baseline; 0 stands for masked pixels.
                    radiometry[band] = Radiometry(1.0, 0.0, 0.0, 0.0) if sensor == "s2" else Radiometry(100.0, 0.0, 0.0, MASKED_DB)
        return Patch(raw, radiometry, cloud)


def pixels_request(name: str, grid: Grid, sensor: str, bands: Sequence[str], *, project: str) -> tuple[str, dict[str, Any]]:
    """Path and body of a getPixels request (Sentinel-2) or computePixels request (Sentinel-1, masked pixels marked) for bands of one resolution."""
    factor = 2 if bands[0] == SCL else FACTORS[bands[0]]
    side, metres = reading_grid(grid, factor).size // factor, RESOLUTION_M * factor
    body: dict[str, Any] = {
        "fileFormat": "NPY", "bandIds": [_NAMES[band] for band in bands],
        "grid": {"dimensions": {"width": side, "height": side}, "crsCode": f"EPSG:{grid.epsg}",
                 "affineTransform": {"scaleX": metres, "shearX": 0, "translateX": grid.x, "shearY": 0, "scaleY": -metres, "translateY": grid.y}}}
    if sensor == "s2":
        return f"/v1/{name}:getPixels", body
    return f"/v1/projects/{project}/image:computePixels", {"expression": _unmasked(name.removeprefix(PUBLIC)), **body}


def parse_pixels(reply: Reply, side: int, bands: Sequence[str]) -> dict[str, np.ndarray]:
    """Band name -> (side, side) numbers of a .npy reply: one record a pixel. What it declares is compared before it is believed."""
    stream = io.BytesIO(reply.body)
    try:
        version = np.lib.format.read_magic(stream)
        shape, columns_first, dtype = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version](stream)
    except (ValueError, KeyError, SyntaxError, TypeError, MemoryError, RecursionError):
        raise Broken(f"no .npy array, {len(reply.body)} bytes") from None
    names = [_NAMES[band] for band in bands]
    if shape != (side, side) or columns_first or list(dtype.names or ()) != names or any(dtype[n].kind not in "uif" for n in names):
        raise Refused(f"pixels of shape {shape} and type {dtype}; expected ({side}, {side}) of {', '.join(names)}")
    if len(reply.body) - stream.tell() != side * side * dtype.itemsize:
        raise Broken(f"{len(reply.body) - stream.tell()} of {side * side * dtype.itemsize} bytes of pixels")
    values = np.frombuffer(reply.body, dtype, offset=stream.tell()).reshape(side, side)
    return {name: values[name] for name in names}


def _groups(sensor: str) -> list[tuple[str, ...]]:
    """Bands that share a ground resolution, each group one request."""
    if sensor == "s1":
        return [S1_BANDS]
    groups = {factor: tuple(band for band in S2_BANDS if FACTORS[band] == factor) for factor in (1, 2, 6)}
    return [groups[1], (*groups[2], SCL), groups[6]]


def _unmasked(asset: str) -> dict[str, Any]:
    """The expression Image.load(asset).unmask(-9999, false): masked pixels, and what lies outside the image, become -9999."""
    load = {"functionName": "Image.load", "arguments": {"id": {"constantValue": asset}}}
    mark = {"functionName": "Image.constant", "arguments": {"value": {"constantValue": MASKED_DB}}}
    call = {"functionName": "Image.unmask", "arguments": {
        "input": {"functionInvocationValue": load}, "value": {"functionInvocationValue": mark}, "sameFootprint": {"constantValue": False}}}
    return {"result": "0", "values": {"0": {"functionInvocationValue": call}}}
