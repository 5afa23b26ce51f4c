"""The journal of decisions: one JSON line a row beside the corpus, so that a build that was stopped goes on with the same scenes.

The first line holds what the decisions depend on; each further line a decision, in the order in which they were made. Lines are synced
before they count; a last line that a crash cut short is removed. The file stays beside the corpus as the record of what was chosen.
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dsengine.errors import RunError, UsageError

FORMAT = "dsengine matches 1"
_QUEUE = 4  # decisions under way or waiting, per thread


@dataclass(frozen=True)
class Matches:
    """The rows with a match, in order. Pickles as the file's name and a table; records are read when they are asked for."""

    path: str
    offsets: np.ndarray  # (N,) int64, of the lines
    sha256: str  # of the matched records' lines in row order
    missed: tuple[dict[str, Any], ...]  # records of rows without one

    def __len__(self) -> int:
        return len(self.offsets)

    def read(self, rows: range) -> list[dict[str, Any]]:
        """Records of the matches `rows`. RunError when the file is gone."""
        try:
            with open(self.path, "rb") as file:
                return [_line(file, int(offset)) for offset in self.offsets[rows.start:rows.stop]]
        except (OSError, ValueError) as error:
            raise RunError(f"{self.path}: the decisions of this build cannot be read: {error}") from error


def journal_path(out: str | os.PathLike[str], given: str | None) -> Path:
    """Where the decisions for the corpus `out` lie: `given`, else OUT.search.jsonl. UsageError for a URL without `given`."""
    if given:
        return Path(given)
    if "://" in os.fspath(out) or os.fspath(out).startswith(("s3:/", "gs:/", "az:/")):
        raise UsageError(f"{out}: give --matches FILE, the local file that keeps which scenes were chosen")
    return Path(os.fspath(out).rstrip("/") + ".search.jsonl")


def search(path: Path, num_rows: int, decide: Callable[[int], dict[str, Any]], *, key: dict[str, Any], threads: int,
           progress: Callable[[int, int], None] | None = None) -> Matches:
    """Decide every row that the journal lacks, `threads` at once, and return all matches.

    `key` is what the decisions depend on; UsageError when the journal was made with another. Raises what `decide` raises; what was
    decided before stays. More rows than the journal has go on from it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UsageError(f"{path}: another process is searching") from error
        done = _resume(file, path, json.loads(json.dumps(key)))
        _decide_rest(file, [row for row in range(num_rows) if row not in done], decide, threads=threads,
                     progress=lambda count: progress(num_rows - count, num_rows) if progress else None)
    return load(path, num_rows)


def load(path: Path, num_rows: int) -> Matches:
    """The matches of rows 0 to `num_rows`, all of which the journal has."""
    found: dict[int, tuple[int, bytes]] = {}
    missed, offset = {}, 0
    with open(path, "rb") as file:
        for line in file:
            record = json.loads(line)
            row = record.get("row", num_rows)
            if row < num_rows and "why" in record:
                missed[row] = record
            elif row < num_rows:
                found[row] = offset, hashlib.sha256(line).digest()
            offset += len(line)
    rows = sorted(found)
    digest = hashlib.sha256(b"".join(found[row][1] for row in rows)).hexdigest()
    return Matches(str(path), np.array([found[row][0] for row in rows], np.int64), digest, tuple(missed[row] for row in sorted(missed)))


def _line(file: Any, offset: int) -> dict[str, Any]:
    file.seek(offset)
    return json.loads(file.readline())


def _resume(file: Any, path: Path, key: dict[str, Any]) -> set[int]:
    """Rows that are decided; the file is cut back to its last whole line, and gets its first line when it is new."""
    file.seek(0)
    content = file.read()
    whole = content[:content.rfind(b"\n") + 1]
    if not whole:
        file.truncate(0)
        _append(file, [{"format": FORMAT, "key": key}])
        return set()
    lines = whole.splitlines()
    try:
        header, records = json.loads(lines[0]), [json.loads(line) for line in lines[1:]]
        theirs, rows = header["key"], {int(record["row"]) for record in records}
        if header["format"] != FORMAT:
            raise ValueError(header["format"])
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path} is not a journal of decisions ({error}); move it away, or give another --matches FILE") from error
    for name in sorted(theirs.keys() | key.keys()):
        if theirs.get(name) != key.get(name):
            raise UsageError(f"{path} was made with another {name}: {theirs.get(name)}, now {key.get(name)}; give the same options, "
                             "another OUT or another --matches FILE")
    file.truncate(len(whole))
    return rows


def _decide_rest(file: Any, rows: Sequence[int], decide: Callable[[int], dict[str, Any]], *, threads: int,
                 progress: Callable[[int], None]) -> None:
    left, waiting = list(rows)[::-1], set[Future[dict[str, Any]]]()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="dsengine-search")
    try:
        while left or waiting:
            while left and len(waiting) < _QUEUE * threads:
                waiting.add(pool.submit(decide, left.pop()))
            ready, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            failed = [error for future in ready if (error := future.exception())]
            _append(file, [future.result() for future in ready if not future.exception()])
            if failed:
                raise failed[0]
            progress(len(left) + len(waiting))
    finally:
        pool.shutdown(cancel_futures=True)


def _append(file: Any, records: Sequence[dict[str, Any]]) -> None:
    if records:
        file.seek(0, os.SEEK_END)
        file.write(b"".join(json.dumps(record, sort_keys=True, separators=(",", ":")).encode() + b"\n" for record in records))
        file.flush()
        os.fsync(file.fileno())
