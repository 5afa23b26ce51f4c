"""Series and pixels held whole in memory: the stored numbers of the sensors in use, one tensor a sensor, and rows of them as z-scores.

    gpu   on the device: a batch is one gather a sensor and one affine there
    ram   in host memory: a batch is gathered there and crosses the bus as stored numbers, page-locked where the device is a GPU

Every rank holds all rows of its split, for in each epoch it may be shown any of them. 14.4 million pixels of 12 + 36 int16 are 1.4 GB.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dsengine import noise
from dsengine.corpus import Band, SeriesCorpus
from dsengine.corpus.series import read_rows
from dsengine.data.sample import View, band_numbers
from dsengine.nn.noise import below, key

_LANES = 1024
_AGAIN = 2  # blocks of 4 further rows that a cell is looked for in, where the first had no data
_AGAIN_BLOCK = 1 << 30  # Philox blocks of one draw: those of the first rows lie below


class Part(NamedTuple):
    """What a view shows of one sensor."""

    sensor: str
    channels: tuple[int, ...]  # of its array, ascending


def parts_of(view: View, bands: Sequence[Band]) -> tuple[Part, ...]:
    """The sensors of `view` in corpus order, for a corpus of `bands`."""
    shown = [bands[k] for k in band_numbers(view, bands)]
    return tuple(Part(sensor, tuple(band.channel for band in shown if band.sensor == sensor)) for sensor in dict.fromkeys(b.sensor for b in shown))


class Table(NamedTuple):
    """One sensor's rows."""

    values: Tensor  # (N, T, C) or (N, C) as stored, int16 or float32; a date that is not valid is nodata in all bands
    nodata: int
    holes: bool  # whether any value is nodata


class Affine(NamedTuple):
    """A z-score is (stored - center) * gain + shift, exact to float32's rounding. Constants of some whole rows, one after the other: a
    constant a band would be spread over rows of 12, which costs a CPU more than the arithmetic."""

    center: Tensor  # (rows * T * C,) float32 stored value of the mean, rounded
    gain: Tensor  # standard deviations a stored unit
    shift: Tensor  # what rounding the center left
    rows: int
    channels: Tensor | None  # that the part takes; None: all


class Tables:
    """Rows `rows` (N,) int64, ascending, of the sensors of `parts`, kept in memory of `home` for batches on `device`.

    Reads them here, a shard at a time in each of `num_threads` threads. Raises RunError naming the array when its bytes are damaged.
    """

    def __init__(self, corpus: SeriesCorpus, parts: Sequence[Part], rows: np.ndarray, *, home: torch.device, device: torch.device,
                 num_threads: int = 1) -> None:
        self._is_series = corpus.kind == "series"
        self._device, self._pinned = device, device.type == "cuda" and home.type == "cpu"
        self._num_rows = len(rows)
        self._place = np.zeros(len(corpus), np.int32)  # of a row of the corpus in the tables
        self._place[rows] = np.arange(len(rows), dtype=np.int32)
        with ThreadPoolExecutor(num_threads, thread_name_prefix="dsengine-tables") as pool:
            self._tables = {sensor: _read(corpus, sensor, rows, home, pool) for sensor in dict.fromkeys(part.sensor for part in parts)}
        self._affine = {part: _affine(corpus, part, device) for part in parts}
        if home.type == "cuda":
            torch.cuda.current_stream(home).synchronize()  # other streams read from here on

    def take(self, parts: Sequence[Part], ids: np.ndarray, *, dtype: torch.dtype) -> Tensor:
        """(B, T, C) or (B, C) z-scores of rows `ids` (B,) of the corpus, the bands of `parts` side by side, on the device.

        A date without data in any band is NaN in all of them. Other bands without data, and those of a pixel, are 0.
        """
        at = torch.from_numpy(self._place[ids])
        x = _side_by_side([self._zscores(part, self._gathered(part, at), len(ids)) for part in parts])
        if self._have_holes(parts):
            empty = x.isnan()
            x.masked_fill_(empty & ~empty.all(-1, keepdim=True) if self._is_series else empty, 0)
        return x.to(dtype)

    def marginals(self, parts: Sequence[Part], ids: np.ndarray, *, dtype: torch.dtype, seed: int, epoch: int, view: int) -> Tensor:
        """As `take`, but every cell is of a row drawn for it alone out of all that have data there: the empirical marginals of the rows held.

        A function of (seed, epoch, view's number, sample id, cell). NaN where the sample itself has no data, or none of nine rows drawn had.
        """
        drawn = [self._drawn(part, ids, seed=seed, epoch=epoch, site=f"tables.marginals.{view}.{part.sensor}") for part in parts]
        return _side_by_side([self._zscores(part, raw, len(ids)) for part, raw in zip(parts, drawn, strict=True)]).to(dtype)

    def _have_holes(self, parts: Sequence[Part]) -> bool:
        return any(self._tables[part.sensor].holes for part in parts)

    def _room(self, part: Part, count: int) -> Tensor:
        """Memory beside the table for stored numbers of `count` rows, and some more: whole ones of the affine's."""
        values, rows = self._tables[part.sensor].values, self._affine[part].rows
        return torch.empty((-(-count // rows) * rows, *values.shape[1:]), dtype=values.dtype, device=values.device, pin_memory=self._pinned)

    def _gathered(self, part: Part, at: Tensor) -> Tensor:
        """Rows `at` of the part's sensor and what lies behind them in `_room`, on the device."""
        values, raw = self._tables[part.sensor].values, self._room(part, len(at))
        torch.index_select(values, 0, at.to(values.device), out=raw[:len(at)])
        return raw.to(self._device, non_blocking=True)

    def _zscores(self, part: Part, raw: Tensor, count: int) -> Tensor:
        """float32 of `count` rows of stored numbers in `_room`, which it may overwrite, the part's channels alone; NaN where there is no data."""
        table, affine = self._tables[part.sensor], self._affine[part]
        if affine.channels is not None:
            raw = raw.index_select(-1, affine.channels)
        empty = raw[:count] == table.nodata if table.holes else None
        x = raw.float()
        # Three roundings: a fused multiply-add would depend on where in the batch a row lies.
        x.view(-1, len(affine.center)).sub_(affine.center).mul_(affine.gain).add_(affine.shift)
        return x[:count] if empty is None else x[:count].masked_fill_(empty, torch.nan)

    def _drawn(self, part: Part, ids: np.ndarray, *, seed: int, epoch: int, site: str) -> Tensor:
        """Stored numbers in `_room`, each out of a row of its own, on the device."""
        table = self._tables[part.sensor]
        shape, flat = table.values.shape[1:], table.values.flatten()
        cells = shape.numel()
        rows = below(torch.from_numpy(ids).to(flat.device), cells, self._num_rows, seed=seed, site=key(site), step=epoch)
        room = self._room(part, len(ids))
        raw = room[:len(ids)].flatten(1)
        torch.take(flat, rows.mul_(cells).add_(torch.arange(cells, device=flat.device)), out=raw)
        if table.holes:
            own = table.values.index_select(0, torch.from_numpy(self._place[ids]).to(flat.device)).flatten(1)
            self._draw_again(raw, own != table.nodata, table, ids, seed=seed, site=key(site), epoch=epoch)
            raw.masked_fill_(own == table.nodata, table.nodata)
        return room.to(self._device, non_blocking=True)

    def _draw_again(self, raw: Tensor, wanted: Tensor, table: Table, ids: np.ndarray, *, seed: int, site: int, epoch: int) -> None:
        """Put the first of eight more rows that has data into each wanted cell of raw (B, T * C) that has none, in place."""
        sample, cell = (wanted & (raw == table.nodata)).cpu().numpy().nonzero()
        counters = np.empty((len(cell), _AGAIN, 4), np.uint64)
        counters[..., 0], counters[..., 1] = (ids[sample] & 0xFFFFFFFF)[:, None], (ids[sample] >> 32)[:, None]
        counters[..., 2], counters[..., 3] = epoch, _AGAIN_BLOCK + cell[:, None] * _AGAIN + np.arange(_AGAIN)
        rows = noise.to_range(noise.uint32((seed, site), counters).reshape(len(cell), _AGAIN * 4), self._num_rows)
        where = torch.from_numpy(rows * raw.shape[1] + cell[:, None]).to(raw.device)
        found = table.values.flatten().take(where)
        first = (found != table.nodata).byte().argmax(1, keepdim=True)
        raw[torch.from_numpy(sample).to(raw.device), torch.from_numpy(cell).to(raw.device)] = found.gather(1, first)[:, 0]


def table_bytes(corpus: SeriesCorpus, parts: Sequence[Part], num_rows: int) -> int:
    """Memory of `Tables` of so many rows."""
    arrays = [corpus.values[sensor] for sensor in dict.fromkeys(part.sensor for part in parts)]
    return sum(num_rows * int(np.prod(array.shape[1:])) * array.dtype.itemsize for array in arrays)


def _side_by_side(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)


def _affine(corpus: SeriesCorpus, part: Part, device: torch.device) -> Affine:
    """Of as many rows as take about `_LANES` numbers."""
    contract, chosen = corpus.contract(part.sensor), list(part.channels)
    scale, offset, mean, std = (np.array(x)[chosen] for x in (contract.scale, contract.offset, contract.mean, contract.std))
    raw_mean = (mean - offset) / scale
    center = raw_mean.astype(np.float32)
    constants = center, scale / std, (center.astype(np.float64) - raw_mean) * scale / std
    dates = int(np.prod(corpus.values[part.sensor].shape[1:-1]))
    rows = -(-_LANES // (dates * len(chosen)))
    tiles = [torch.from_numpy(np.tile(x.astype(np.float32), rows * dates)).to(device) for x in constants]
    return Affine(*tiles, rows, None if len(chosen) == len(contract.bands) else torch.tensor(chosen, device=device))


def _read(corpus: SeriesCorpus, sensor: str, rows: np.ndarray, home: torch.device, pool: ThreadPoolExecutor) -> Table:
    """The sensor's rows in memory of `home`."""
    array = corpus.values[sensor]
    step, nodata = (array.shards or array.chunks)[0], array.attrs["nodata"]
    out = torch.from_numpy(np.empty((len(rows), *array.shape[1:]), array.dtype))  # NumPy asks for huge pages: random rows take 0.6 of the time
    if home.type == "cuda":
        out = torch.empty_like(out, device=home)

    def read(start: int) -> bool:
        first, last = np.searchsorted(rows, (start, start + step))
        if first == last:
            return False
        block = _read_block(corpus, sensor, rows[first:last], start, nodata)
        out[first:last] = torch.from_numpy(block)
        return bool((block == nodata).any())

    return Table(out, nodata, any(list(pool.map(read, range(0, len(corpus), step)))))


def _read_block(corpus: SeriesCorpus, sensor: str, rows: np.ndarray, start: int, nodata: int) -> np.ndarray:
    """Rows of the shard that begins at row `start`."""
    array, path = corpus.values[sensor], corpus.path
    step, folder = (array.shards or array.chunks)[0], corpus.kind
    # Whole shards, but where fewer chunks than that hold all that is wanted.
    few = len(rows) * array.chunks[0] < step
    part, of = (rows, slice(None)) if few else (slice(start, start + step), rows - start)
    block = np.array(read_rows(array, part, path / folder / sensor)[of])
    if corpus.kind == "series":
        block[~read_rows(corpus.valid[sensor], part, path / "valid" / sensor)[of]] = nodata
    if block.dtype.kind == "f":
        block[~np.isfinite(block)] = nodata
    return block
