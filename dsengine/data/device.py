"""From patch numbers to raw integers on a GPU: compressed bytes are staged, copied once a batch, inflated and unfiltered there.

    ids -> staging (read, crc32c, parse) -> one copy from page-locked memory -> inflate -> ops.unfilter_streams -> torch

What inflates is chosen at start by trying it on known bytes; a codec for which nothing works is decoded on the CPU before the copy.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from numcodecs import lz4, zstd
from torch import Tensor

from dsengine.data import frames
from dsengine.data.inflate import DaliInflate, NvcompInflate
from dsengine.data.layout import ChunkLayout
from dsengine.data.staging import VOID, Group, Inflate, Slab, Stager, expand

MAKERS = {"DALI": DaliInflate, "nvCOMP": NvcompInflate}  # in the order of preference
CODEC_NAMES = {frames.LZ4: "LZ4", frames.ZSTD: "zstd"}
SLABS = 2  # one is filled while the other is copied


class Chosen(NamedTuple):
    """Who inflates each codec on the device, and why nobody else does."""

    by_codec: dict[int, Inflate]
    words: str

    def inflate(self, buffer: Tensor, groups: Sequence[Group], void: int) -> list[Tensor]:
        """One tensor a group, in order; each codec's groups in one call."""
        found: dict[int, Tensor] = {}
        for codec, inflate in self.by_codec.items():
            mine = [k for k, group in enumerate(groups) if group.codec == codec]
            if mine:
                found.update(zip(mine, inflate(buffer, [groups[k] for k in mine], void), strict=True))
        return [found[k] for k in range(len(groups))]


def choose(device: torch.device, codecs: Sequence[int], makers: dict[str, Callable[[torch.device], Inflate]] | None = None) -> Chosen:
    """For each of `codecs` the first of `makers` (default: DALI, nvCOMP) that inflates known bytes rightly on `device`."""
    by_codec, words = {}, []
    for codec in codecs:
        for name, make in (MAKERS if makers is None else makers).items():
            if codec not in make.codecs:
                continue
            problem = _problem(make, device, codec)
            words.append(f"{CODEC_NAMES[codec]} by {name}: {problem or 'works'}")
            if not problem:
                by_codec[codec] = make(device)
                break
        else:
            words.append(f"{CODEC_NAMES[codec]} is decoded on the CPU")
    return Chosen(by_codec, "; ".join(words))


def _problem(make: Callable[[torch.device], Inflate], device: torch.device, codec: int) -> str:
    """Why an inflater cannot be used; "" where it gives known bytes back, several streams of two sizes."""
    try:
        buffer, groups, expected = known_streams(codec)
        out = make(device)(torch.from_numpy(buffer).to(device), groups, 0)
        same = all(torch.equal(x.cpu(), torch.from_numpy(y)) for x, y in zip(out, expected, strict=True))
    except Exception as error:  # a driver, a version, a missing library: whatever it is, the CPU can do the work
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return "" if same else "wrong bytes"


def known_streams(codec: int) -> tuple[np.ndarray, list[Group], list[np.ndarray]]:
    """(buffer, groups, what they inflate to): 5 streams of 4096 bytes and one of 100, at odd offsets after VOID at 0."""
    body, groups, expected = bytearray(VOID + b"\xff"), [], []
    for num, decoded in ((5, 4096), (1, 100)):
        x = (np.arange(num * decoded).reshape(num, decoded) // 7 % 50).astype(np.uint8)
        packed = [bytes(lz4.compress(row))[4:] if codec == frames.LZ4 else bytes(zstd.compress(row)) for row in x]
        size = np.array([len(piece) for piece in packed])
        groups.append(Group(codec, decoded, len(body) + np.cumsum(size) - size, size))
        expected.append(x)
        body += b"".join(packed)
    return np.frombuffer(body, dtype=np.uint8).copy(), groups, expected


class DevicePipeline:
    """Reads patches of some arrays to `device` with `num_threads` threads. One user at a time, always on the same stream."""

    def __init__(self, layouts: Sequence[ChunkLayout], *, num_threads: int, device: torch.device, chosen: Chosen) -> None:
        self._device, self._chosen = device, chosen
        self._stager = Stager(layouts, num_threads=num_threads, lz4=frames.LZ4 in chosen.by_codec, zstd=frames.ZSTD in chosen.by_codec)
        self._slabs = [Slab(pinned=device.type == "cuda") for _ in range(SLABS)]
        self._copied: list[torch.cuda.Event | None] = [None] * SLABS
        self._turn = 0
        self._buffer = torch.empty(0, dtype=torch.uint8, device=device)

    @contextmanager
    def lease(self, ids: np.ndarray) -> Iterator[tuple[Tensor, ...]]:
        """Stored integers of patches `ids` (B,) int64, B >= 1: (B, C, H, W) int16 on the device for each layout, in order.

        Raises RunError for damaged chunks.
        """
        turn, self._turn = self._turn, (self._turn + 1) % SLABS
        if self._copied[turn] is not None:
            self._copied[turn].synchronize()
        staged = self._stager.stage(ids, self._slabs[turn])
        buffer = self._copy(self._slabs[turn].tensor[:staged.num_bytes], turn)
        yield expand(buffer, staged, self._chosen.inflate)

    def close(self) -> None:
        """End the threads of the reader."""
        self._stager.close()

    def __enter__(self) -> "DevicePipeline":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _copy(self, staged: Tensor, turn: int) -> Tensor:
        """The staged bytes in one device buffer that is used again: work on it is in the order of one stream."""
        if self._buffer.numel() < staged.numel():
            self._buffer = torch.empty(staged.numel() + staged.numel() // 8, dtype=torch.uint8, device=self._device)
        buffer = self._buffer[:staged.numel()]
        buffer.copy_(staged, non_blocking=True)
        if self._device.type == "cuda":
            self._copied[turn] = torch.cuda.current_stream(self._device).record_event()
        return buffer


def open_on_device(layouts: Sequence[ChunkLayout], *, num_threads: int, device: torch.device) -> DevicePipeline:
    """The pipeline that inflates what it can on `device`; a warning says what it cannot."""
    wanted = [frames.LZ4] * any(layout.cname in ("lz4", "lz4hc") for layout in layouts)
    wanted += [frames.ZSTD] * any(layout.compressor == "zstd" for layout in layouts)
    chosen = choose(device, wanted)
    if len(chosen.by_codec) < len(wanted):
        warnings.warn(f"chunks are decoded on the CPU and copied whole: {chosen.words}", stacklevel=2)
    return DevicePipeline(layouts, num_threads=num_threads, device=device, chosen=chosen)
