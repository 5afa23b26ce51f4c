"""What networks are trained on: the series themselves, or what a frozen encoder makes of them.

Either is (N, T, C) float32, NaN where a date is missing. A network sees it z-scored per channel with mean and standard deviation over the
dates of the train rows, and 0, that mean, where there is nothing.
"""

import hashlib
import os
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dsengine.corpus import Band, SeriesCorpus
from dsengine.errors import RunError, UsageError, nearest
from dsengine.evaluate.book import digest
from dsengine.evaluate.progress import Progress
from dsengine.evaluate.subjects import Subject

RAW = "raw"
_AT_ONCE = 4096  # rows read
_ENCODED = 256  # series that an encoder sees at once


class Input(NamedTuple):
    """One thing to train on."""

    name: str
    kind: str  # raw | pretrained | untrained
    about: dict[str, Any]
    x: np.ndarray  # (N, T, C) float32
    digest: str  # sha256 of x


def raw(corpus: SeriesCorpus, rows: np.ndarray, sensor: str | None) -> Input:
    """The series of one sensor, physical values; None: s2, or the corpus's first."""
    name = sensor or ("s2" if "s2" in corpus.sensors else corpus.sensors[0])
    if name not in corpus.sensors:
        raise UsageError(f"sensor={name} is not in {corpus.path}, {nearest(name, corpus.sensors)}")
    bands = [band for band in corpus.bands if band.sensor == name]
    x = read(corpus, rows, bands)
    return Input(RAW, RAW, {"sensor": name, "bands": [band.name for band in bands]}, x, _sha256(x))


def read(corpus: SeriesCorpus, rows: np.ndarray, bands: Sequence[Band]) -> np.ndarray:
    """(N, T, C) physical values of the bands, side by side; NaN where there is no data. UsageError where sensors differ in their dates."""
    sensors = list(dict.fromkeys(band.sensor for band in bands))
    dates = {sensor: corpus.series[sensor].shape[1] for sensor in sensors}
    if len(set(dates.values())) > 1:
        raise UsageError("sensors differ in their number of dates (" + ", ".join(f"{name} {count}" for name, count in dates.items()) +
                         "); legal: sensors that have equally many, or one")
    out = np.empty((len(rows), dates[sensors[0]], len(bands)), np.float32)
    for sensor in sensors:
        at = [k for k, band in enumerate(bands) if band.sensor == sensor]
        for lo in range(0, len(rows), _AT_ONCE):
            out[lo:lo + _AT_ONCE, :, at] = _physical(corpus, rows[lo:lo + _AT_ONCE], sensor, [bands[k].channel for k in at])
    return out


def _physical(corpus: SeriesCorpus, rows: np.ndarray, sensor: str, channels: list[int]) -> np.ndarray:
    attrs = corpus.series[sensor].attrs
    series = corpus.read_series(rows, sensor)
    stored = series.values[..., channels].astype(np.float64)
    gone = (stored == attrs["nodata"]) | ~np.isfinite(stored) | ~series.valid[..., None]
    return np.where(gone, np.nan, stored * attrs["scale_factor"] + attrs["add_offset"])


def encoded(subject: Subject, corpus: SeriesCorpus, rows: np.ndarray, *, per: str, missing: str, folder: Path, progress: Progress,
            device: torch.device) -> Input:
    """The features of `rows`, made once and kept in `folder`. per: dates or series. UsageError for an encoder or bands that do not fit."""
    places = _places(subject, corpus, missing)
    bands = [corpus.bands[k] for k in places if k is not None]
    about = {**subject.about, "bands": [band.name for band in bands], "features": per}
    x = read(corpus, rows, bands)
    key = digest({"encoder": subject.digest(), "x": _sha256(x), "places": places, "per": per})
    path = folder / f"{key[:24]}.npy"
    if not path.exists():
        _save(path, _encode(subject, _shown(subject, x, places), per=per, progress=progress, device=device))
    made = _load(path)
    return Input(subject.name, subject.kind, about, made, _sha256(made))


def standardised(x: np.ndarray, train: slice, device: torch.device) -> Tensor:
    """(N, T, C) float32 on `device`: z-scores by the train rows; NaN and channels that are constant there are 0."""
    mean, std = _statistics(x[train])
    gain = np.where(std > 1e-6 * np.abs(mean), 1 / np.where(std > 0, std, 1), 0)
    out = torch.empty(x.shape)
    for lo in range(0, len(x), _AT_ONCE):
        out[lo:lo + _AT_ONCE] = torch.from_numpy(np.nan_to_num((x[lo:lo + _AT_ONCE] - mean) * gain, nan=0.0).astype(np.float32))
    return out.to(device)


def _statistics(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation (C,) float64 of what is there in x (N, T, C), block by block."""
    def total(of: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        return sum(of(x[lo:lo + _AT_ONCE].astype(np.float64)) for lo in range(0, len(x), _AT_ONCE))

    count = total(lambda part: (~np.isnan(part)).sum((0, 1))).clip(min=1)
    mean = total(lambda part: np.nansum(part, (0, 1))) / count
    return mean, np.sqrt(total(lambda part: np.nansum((part - mean) ** 2, (0, 1))) / count)


def _places(subject: Subject, corpus: SeriesCorpus, missing: str) -> list[int | None]:
    """Of each band that the encoder takes, its place in the corpus's band table, or None."""
    if (kind := takes(subject)) == "image":
        raise UsageError(f"run: {subject.name} is an encoder of images; legal: one of pixels or of series, such as resmlp or temporal")
    if subject.takes_any:
        raise UsageError(f"run: {subject.name} was shown bands drawn at random; legal here: an encoder of {kind}s with bands of its own")
    known = {(band.sensor, band.name): k for k, band in enumerate(corpus.bands)}
    wanted = [(band.sensor, band.name) for band in subject.contract.bands]
    lacking = [" ".join(band) for band in wanted if band not in known]
    if lacking and (missing == "refuse" or len(lacking) == len(wanted)):
        raise UsageError(f"{subject.name} takes {', '.join(map(' '.join, wanted))}; {corpus.path} has {', '.join(map(' '.join, known))} and lacks "
                         f"{', '.join(lacking)}; legal: a corpus with these, or, if some are there, missing=zero")
    for band, unit in zip(wanted, subject.contract.units, strict=True):
        if band in known and (theirs := corpus.series[band[0]].attrs["units"]) != unit:
            raise UsageError(f"{corpus.path}: {' '.join(band)} is in {theirs}, not {unit}; legal: the units that {subject.name} was trained on")
    return [known.get(band) for band in wanted]


def takes(subject: Subject) -> str:
    """image, pixel or series."""
    return getattr(import_module(type(subject.encoder).__module__), "INPUT", "image")


def _shown(subject: Subject, x: np.ndarray, places: list[int | None]) -> np.ndarray:
    """(N, T, channels): z-scores by the encoder's statistics; NaN in all channels of a missing date, 0 in a missing band of another."""
    out = np.zeros((*x.shape[:2], len(places)), np.float32)
    at = [k for k, place in enumerate(places) if place is not None]
    mean, std = (np.array(values)[at] for values in (subject.contract.mean, subject.contract.std))
    z = ((x - mean) / std).astype(np.float32)
    gone = np.isnan(z)
    out[..., at] = np.where(gone, 0, z)
    out[gone.all(-1)] = np.nan
    return out


@torch.inference_mode()
def _encode(subject: Subject, x: np.ndarray, *, per: str, progress: Progress, device: torch.device) -> np.ndarray:
    encoder, parts = subject.encoder.to(device).eval(), []
    of = _ENCODERS[takes(subject), per]
    with progress.task(f"features of {subject.name}", len(x)) as advance:
        for lo in range(0, len(x), _ENCODED):
            batch = torch.from_numpy(x[lo:lo + _ENCODED]).to(device)
            parts.append(of(encoder, batch).float().cpu().numpy())
            advance(len(batch))
    encoder.to("cpu")
    return np.concatenate(parts)


def _dates_of_pixels(encoder: torch.nn.Module, x: Tensor) -> Tensor:
    """(B, T, D) of x (B, T, C): each date for itself."""
    gone = x.isnan().any(-1)
    found = encoder(x.nan_to_num(0).flatten(0, 1)).pooled.unflatten(0, x.shape[:2])
    return found.masked_fill(gone[..., None], torch.nan)


def _series_of_pixels(encoder: torch.nn.Module, x: Tensor) -> Tensor:
    """(B, 1, D): the mean over the dates that are there."""
    return _dates_of_pixels(encoder, x).nanmean(1, keepdim=True)


def _dates_of_series(encoder: torch.nn.Module, x: Tensor) -> Tensor:
    """(B, T, D): the tokens of the dates."""
    if not hasattr(encoder, "embed_dates"):
        raise UsageError("features=dates: this encoder of series has one vector a series; legal: features=series")
    return encoder.embed_dates(x).masked_fill(x.isnan().any(-1, keepdim=True), torch.nan)


def _series_of_series(encoder: torch.nn.Module, x: Tensor) -> Tensor:
    """(B, 1, D)."""
    return encoder(x).pooled[:, None]


_ENCODERS = {("pixel", "dates"): _dates_of_pixels, ("pixel", "series"): _series_of_pixels, ("series", "dates"): _dates_of_series,
             ("series", "series"): _series_of_series}


def _sha256(x: np.ndarray) -> str:
    sha = hashlib.sha256(str(x.shape).encode())
    sha.update(np.ascontiguousarray(x))
    return sha.hexdigest()


def _load(path: Path) -> np.ndarray:
    """Memory-mapped: features of all inputs need not fit in memory."""
    try:
        return np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError) as error:
        raise RunError(f"{path}: not readable ({error}); remove it and it is made again") from error


def _save(path: Path, x: np.ndarray) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(part, "wb") as file:
            np.save(file, x)
        os.replace(part, path)
    except OSError as error:
        raise RunError(f"{path}: cannot be written ({error.strerror or error})") from error
