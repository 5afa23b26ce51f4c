"""An embedding under construction: a Zarr group of float32 beside the output, and a journal of what is in it.

`NAME.part/` holds job.json (what is made of what: another job is refused), journal (a line a finished block, synced after its data), and
data.zarr. A stopped job finds its blocks again; the journal's last line counts only when it is whole.
"""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import zarr

from dsengine.errors import RunError, UsageError

LEVEL = 1  # of zstd: embeddings of a ReLU are half zeros, and more effort buys little


class Field(NamedTuple):
    """One array of the group."""

    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    dtype: str
    dimensions: tuple[str, ...]


class Stage:
    """Blocks that are done, and where to put the next; made by `staged`."""

    def __init__(self, folder: Path, job: Mapping[str, Any], fields: Mapping[str, Field], journal: IO[bytes]) -> None:
        self.folder = folder
        self.job = job
        self.done = _whole_lines(folder / "journal")
        self.group = zarr.open_group(folder / "data.zarr", mode="a", zarr_format=3)
        for name, field in fields.items():
            if name not in self.group:
                make_array(self.group, name, field)
        self._journal = journal

    def finish(self, number: int) -> None:
        """Note block `number`, whose data was just written."""
        self.done.add(number)
        self._journal.write(f"{number}\n".encode())
        self._journal.flush()
        os.fsync(self._journal.fileno())


def make_array(group: zarr.Group, name: str, field: Field, *, fill: Any = None) -> zarr.Array:
    """A Zarr v3 array with named dimensions; floats start as NaN, or as `fill`, so that what has no data needs no chunk."""
    floats = np.dtype(field.dtype).kind == "f"
    return group.create_array(name, shape=field.shape, chunks=field.chunks, dtype=field.dtype, dimension_names=field.dimensions,
                              fill_value=fill if fill is not None else np.nan if floats else 0,
                              compressors=[zarr.codecs.ZstdCodec(level=LEVEL)])


@contextmanager
def staged(out: Path, job: Mapping[str, Any], fields: Mapping[str, Field]) -> Iterator[Stage]:
    """The stage of `out`, one user at a time; it stays when the body fails, and goes when the body is through.

    UsageError when an unfinished output of another job lies there, or another process writes it; RunError when the disk refuses.
    """
    folder = out.with_name(f"{out.name}.part")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / "journal", "ab") as journal:
            _lock(journal, folder)
            _agree(folder / "job.json", json.loads(json.dumps(job)), out)
            yield Stage(folder, job, fields, journal)
        shutil.rmtree(folder)
    except OSError as error:
        raise RunError(f"{folder}: {error.strerror or error}; the same command goes on from what is done") from error


def _lock(journal: IO[bytes], folder: Path) -> None:
    try:
        fcntl.flock(journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise UsageError(f"{folder}: another process is writing this embedding") from error
    if journal.tell() and not _ends_line(folder / "journal"):
        journal.write(b"x\n")  # the torn line of a stopped job becomes one that no number is


def _agree(path: Path, job: Mapping[str, Any], out: Path) -> None:
    """Write `job` to `path`, or compare it with what is there."""
    if not path.exists():
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(job))
        os.replace(temporary, path)
        return
    begun = json.loads(path.read_text())
    if begun != job:
        differing = sorted(key for key in {*begun, *job} if begun.get(key) != job.get(key))
        raise UsageError(f"{path.parent}: an unfinished embedding of another job ({', '.join(differing)} differ); legal: the command that began it, "
                         f"another --out, or remove {path.parent}")


def _ends_line(path: Path) -> bool:
    with open(path, "rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"


def _whole_lines(path: Path) -> set[int]:
    lines = path.read_bytes().split(b"\n")[:-1]
    return {int(line) for line in lines if line.isdigit()}
