"""Reads the windows of decided scenes: `cut` of the plan of source `stac`."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from dsengine.corpus.build.archive.cog import RemoteRaster, read_patch
from dsengine.corpus.build.archive.http import Http, Patience, Refused, Unreachable
from dsengine.corpus.build.archive.matches import Matches
from dsengine.corpus.build.archive.patches import FACTORS, RESOLUTION_M, Outcome, Patch, Shape, block, cloud_fraction, decibels, reading_grid
from dsengine.corpus.build.plan import Grid
from dsengine.corpus.build.raster import Radiometry
from dsengine.corpus.build.stac.items import SCL, assets
from dsengine.corpus.build.stac.providers import Provider
from dsengine.corpus.build.stac.s3 import S3Raster
from dsengine.corpus.build.stac.signing import Signer
from dsengine.corpus.build.writer import Block
from dsengine.corpus.schema import S1_BANDS
from dsengine.errors import RunError

_READS = 2  # of a file whose bytes arrived but do not decode: they may have been damaged on the way
_EMPTY = {"s2": 0.0, "linear": 0.0, "dB": float("nan")}  # where a file does not declare its nodata


@dataclass(frozen=True, kw_only=True)
class Cut:
    """Patches of consecutive rows; connections belong to the call."""

    matches: Matches
    providers: Mapping[str, Provider]  # sensor -> archive
    shape: Shape
    patience: Patience
    at_once: int  # requests, in this process
    resampling: str

    def __call__(self, rows: range) -> Block:
        records = self.matches.read(rows)
        with Http(self.patience, at_once=self.at_once) as http, ThreadPoolExecutor(self.at_once, thread_name_prefix="dsengine-read") as pool:
            signers = {sensor: Signer(http, provider.sign) for sensor, provider in self.providers.items()}
            jobs = [[(sensor, band, pool.submit(self._read, http, signers[sensor], record, sensor, band, url))
                     for sensor in self.shape.sensors for band, url in assets(record[sensor]).items()] for record in records]
            outcomes = [self._outcome(record, job) for record, job in zip(records, jobs, strict=True)]
        return block(records, outcomes, layout=self.shape.layout(), first_row=rows.start)

    def _read(self, http: Http, signer: Signer, record: Mapping[str, Any], sensor: str, band: str, url: str) -> tuple[np.ndarray, float]:
        factor = 2 if band == SCL else FACTORS[band]
        grid = reading_grid(Grid(*record["grid"]), factor)
        empty = _EMPTY[self.providers[sensor].collection(sensor).units if sensor == "s1" else "s2"]
        resampling = "nearest" if band == SCL else self.resampling
        for again in range(_READS):
            try:
                with self._raster(http, signer, sensor, url) as raster:
                    return read_patch(raster, grid, resolution_m=RESOLUTION_M * factor, empty=empty, resampling=resampling)
            except Refused as error:
                if error.status or again == _READS - 1:
                    raise
        raise AssertionError("unreachable: the last read returns or raises")

    def _raster(self, http: Http, signer: Signer, sensor: str, url: str) -> RemoteRaster | S3Raster:
        if urlsplit(url).scheme == "s3":
            return S3Raster(url, self.providers[sensor].s3, self.patience)
        return RemoteRaster(http, lambda renew: signer.sign(url, renew))

    def _outcome(self, record: Mapping[str, Any], job: Sequence[tuple[str, str, Any]]) -> Outcome:
        raw, radiometry, cloud = {}, {}, float("nan")
        for sensor, band, future in job:
            try:
                values, nodata = future.result()
            except RunError as error:
                kind = Unreachable if isinstance(error, Unreachable) else RunError
                for _, _, other in job:
                    other.cancel()
                return kind(f"{sensor} {record[sensor]['id']} {band}: {error}")
            if band == SCL:
                cloud = cloud_fraction(values)
            elif band in S1_BANDS:
                linear = self.providers["s1"].collection("s1").units == "linear"
                raw[band] = decibels(values, nodata) if linear else values
                radiometry[band] = Radiometry(100.0, 0.0, 0.0, None if linear else nodata)
            else:
                gain = record[sensor]["scale"] / 1e-4
                raw[band] = values
                radiometry[band] = Radiometry(1.0 if np.isclose(gain, 1.0, rtol=1e-9) else gain, 0.0, float(record[sensor]["offset"]), nodata)
        return Patch(raw, radiometry, cloud)
