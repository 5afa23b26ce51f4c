"""Frozen features on disk, computed once: every probe reads the same memory-mapped file.

A folder FEATURES/NAME-KEY has features.npy ((N, D) pooled, or (N, D, h, w) maps; float32), rows.npy (N,) and features.json with the encoder's
contract and hash, the corpus's hash and, when all is there, the sha256 of features.npy. KEY is a hash of all that decides the numbers. What
a stopped extraction wrote stays, and the next one goes on behind it.
"""

import fcntl
import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from dsengine.corpus import Corpus
from dsengine.corpus.manifest import MANIFEST
from dsengine.errors import RunError, UsageError
from dsengine.evaluate.book import digest
from dsengine.evaluate.progress import Progress
from dsengine.evaluate.shown import Shown, arranged, once, plan_of
from dsengine.evaluate.subjects import Subject

VERSION = 1
_EVERY = 16  # batches between two notes of how far it is


class FeatureFile(NamedTuple):
    """Features of `rows`, ascending; `x` is memory-mapped and read-only."""

    path: Path
    rows: np.ndarray  # (N,) int64
    x: np.ndarray  # (N, ...) float32

    def of(self, rows: np.ndarray) -> np.ndarray:
        """(n, ...) the features of some of the rows, in memory."""
        at = np.searchsorted(self.rows, rows)
        if len(rows) and (at.max() >= len(self.rows) or (self.rows[at] != rows).any()):
            raise ValueError(f"{self.path} lacks some of the rows asked for")
        return np.asarray(self.x[at])


def corpus_digest(corpus: Corpus) -> str:
    """sha256 of the corpus's manifest; of its root metadata where it has none."""
    for name in (MANIFEST, "zarr.json"):
        try:
            return hashlib.sha256(corpus.storage.get(name)).hexdigest()
        except FileNotFoundError:
            continue
    raise RunError(f"{corpus.path}: has no zarr.json")


def features(subject: Subject, corpus: Corpus, what: Shown, rows: np.ndarray, *, folder: Path, progress: Progress, batch_size: int = 64,
             device: torch.device | str = "cpu", dense: bool = False) -> FeatureFile:
    """The features of `rows` (ascending), read or made. dense: maps instead of pooled vectors.

    Raises UsageError for an encoder without maps, RunError for a damaged file or a full disk.
    """
    key = {"version": VERSION, "encoder": subject.digest(), "corpus": corpus_digest(corpus), "shown": what.to_json(), "dense": dense,
           "rows": hashlib.sha256(np.ascontiguousarray(rows, np.int64)).hexdigest()}
    home = folder / f"{re.sub(r'[^A-Za-z0-9_.-]+', '_', subject.name)}-{digest(key)[:16]}"
    try:
        home.mkdir(parents=True, exist_ok=True)
        with _only_writer(home):
            if not _described(home).get("sha256"):
                about = {**key, "name": subject.name, "contract": subject.contract.to_json(), "num_rows": len(rows)}
                _extract(subject, corpus, what, rows, home=home, about=about, progress=progress, batch_size=batch_size, device=device, dense=dense)
            return _opened(home)
    except OSError as error:
        raise RunError(f"{home}: {error.strerror or error}") from error


@torch.inference_mode()
def _extract(subject: Subject, corpus: Corpus, what: Shown, rows: np.ndarray, *, home: Path, about: dict[str, Any], progress: Progress,
             batch_size: int, device: torch.device | str, dense: bool) -> None:
    done = _described(home).get("done", 0) if (home / "features.npy").exists() else 0
    out = np.lib.format.open_memmap(home / "features.npy", mode="r+") if done else None
    np.save(home / "rows.npy", rows)
    encoder = subject.encoder.to(device, memory_format=torch.channels_last)
    with progress.task(f"features of {subject.name}", len(rows), done=done) as advance, once(
            plan_of(corpus, what, rows[done:], batch_size=batch_size, device=device)) as views:
        for k, batch in enumerate(views if done < len(rows) else ()):
            found = encoder(arranged(batch.views[0], what))
            x = found.dense if dense else found.pooled
            if x is None:
                raise UsageError(f"{subject.name} makes no maps; legal here: an encoder of images, such as resnet18")
            x = x.float().cpu().numpy()
            if out is None:
                out = np.lib.format.open_memmap(home / "features.npy", mode="w+", dtype=np.float32, shape=(len(rows), *x.shape[1:]))
            out[done:done + len(x)] = x
            done += len(x)
            advance(len(x))
            if k % _EVERY == _EVERY - 1:
                out.flush()
                _describe(home, {**about, "done": done})
    encoder.to("cpu")
    out.flush()
    _describe(home, {**about, "done": done, "sha256": _sha256(home / "features.npy")})


def _opened(home: Path) -> FeatureFile:
    described, path = _described(home), home / "features.npy"
    if not path.exists() or _sha256(path) != described["sha256"]:
        raise RunError(f"{path}: does not match its sha256, the file is damaged; remove {home} and it is made again")
    return FeatureFile(path, np.load(home / "rows.npy"), np.load(path, mmap_mode="r"))


def _described(home: Path) -> dict[str, Any]:
    """features.json; nothing where it is not there or cut off, so that all is made again."""
    try:
        return json.loads((home / "features.json").read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return {}


def _describe(home: Path, described: dict[str, Any]) -> None:
    part = home / ".features.json.part"
    part.write_text(json.dumps(described, indent=1))
    os.replace(part, home / "features.json")


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _only_writer(home: Path) -> Iterator[None]:
    """Hold the folder's lock, which the kernel gives back however this process ends; a second process waits and then reads."""
    with open(home / ".lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
