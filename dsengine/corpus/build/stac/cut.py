"""Reads the windows of decided scenes: `cut` of the plan of source `stac`."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, NamedTuple
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

_READS = 3  # of a window whose bytes arrived but do not decode: they may have been damaged on the way
_EMPTY = {"s2": 0.0, "linear": 0.0, "dB": float("nan")}  # where a file does not declare its nodata


class Window(NamedTuple):
    """One patch's window of one file."""

    position: int  # of its record
    band: str
    grid: Grid


Values = tuple[np.ndarray, float]  # numbers and the one that stands for no data


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
        windows: dict[tuple[str, str], list[Window]] = {}
        for position, record in enumerate(records):
            for sensor in self.shape.sensors:
                for band, url in assets(record[sensor]).items():
                    windows.setdefault((sensor, url), []).append(Window(position, band, Grid(*record["grid"])))
        with Http(self.patience, at_once=self.at_once) as http, ThreadPoolExecutor(self.at_once, thread_name_prefix="dsengine-read") as pool:
            signers = {sensor: Signer(http, provider.sign) for sensor, provider in self.providers.items()}
            jobs = [pool.submit(self._read_file, http, signers[sensor], sensor, url, wanted) for (sensor, url), wanted in windows.items()]
            read: list[dict[tuple[str, str], Values | RunError]] = [{} for _ in records]
            for (sensor, _), wanted, job in zip(windows, windows.values(), jobs, strict=True):
                for window, values in zip(wanted, job.result(), strict=True):
                    read[window.position][sensor, window.band] = values
        outcomes = [self._outcome(record, values) for record, values in zip(records, read, strict=True)]
        return block(records, outcomes, layout=self.shape.layout(), first_row=rows.start)

    def _read_file(self, http: Http, signer: Signer, sensor: str, url: str, wanted: Sequence[Window]) -> list[Values | RunError]:
        """All windows of one file: its header is fetched once, and so are blocks that windows share. Faults take the place of values."""
        read: list[Values | RunError] = []
        lost: RunError | None = None  # what keeps the whole file from being read
        with ExitStack() as opened:
            raster = None
            for window in wanted:
                values, failures = lost, 0
                while values is None:
                    try:
                        raster = raster or opened.enter_context(self._raster(http, signer, sensor, url))
                        values = self._read(raster, sensor, window)
                    except (Refused, Unreachable) as error:
                        opened.close()
                        raster, failures = None, failures + 1
                        if isinstance(error, Unreachable) or error.status:
                            values = lost = error
                        elif failures == _READS:
                            values = error
                read.append(values)
        return read

    def _read(self, raster: RemoteRaster | S3Raster, sensor: str, window: Window) -> Values:
        factor = 2 if window.band == SCL else FACTORS[window.band]
        empty = _EMPTY[self.providers[sensor].collection(sensor).units if sensor == "s1" else "s2"]
        return read_patch(raster, reading_grid(window.grid, factor), resolution_m=RESOLUTION_M * factor, empty=empty,
                          resampling="nearest" if window.band == SCL else self.resampling)

    def _raster(self, http: Http, signer: Signer, sensor: str, url: str) -> RemoteRaster | S3Raster:
        if urlsplit(url).scheme == "s3":
            return S3Raster(url, self.providers[sensor].s3, self.patience)
        return RemoteRaster(http, lambda renew: signer.sign(url, renew))

    def _outcome(self, record: Mapping[str, Any], read: Mapping[tuple[str, str], Values | RunError]) -> Outcome:
        raw, radiometry, cloud = {}, {}, float("nan")
        for (sensor, band), found in read.items():
            if isinstance(found, RunError):
                kind = Unreachable if isinstance(found, Unreachable) else RunError
                return kind(f"{sensor} {record[sensor]['id']} {band}: {found}")
            values, nodata = found
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
