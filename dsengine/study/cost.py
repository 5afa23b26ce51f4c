"""What a study will cost, before it is begun: counted operations over a rate that is measured or given.

    seconds(cell) = START_S + operations(cell) / rate
    rate          = samples/s of the first training x operations of one of its samples
    n at a time   = each cell begun in the study's order, when a place is free and what it needs is done

The rate is given (--rate), or that of finished cells in the study's folder, or that of a few steps of the first training made now. One rate
for all networks is an estimate: small maps and narrow layers reach less of a machine than large ones.
"""

import heapq
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from dsengine import config as configuration
from dsengine.data.sample import Batch, num_channels, sized
from dsengine.engine.train import fresh_method
from dsengine.errors import UsageError
from dsengine.study import state
from dsengine.study.cells import Cell
from dsengine.study.operations import Images, batch_of, images_of, of_sample, operations, side_of
from dsengine.study.progress import duration, title
from dsengine.study.spec import Study

START_S = 10.0  # of a child: imports, opening, figures
_MEASURE_S, _MOST_BATCH = 4.0, 32


def report(study: Study, cells: Sequence[Cell], out: Path, *, num_slots: int, rate: float | None, device: str) -> str:
    """Every cell and what it will cost, then the whole. rate: samples/s of the first training; None: measured."""
    counted = {cell.id: operations(cell, cells) for cell in cells}
    finished = {cell.id for cell in cells if out.exists() and state.is_finished(out, cell)}
    per_s, how = _rate(cells, counted, out, finished, rate=rate, device=device)
    lasts = {id: START_S + (number or 0.0) / per_s for id, number in counted.items()}
    lines = [study.title, ""]
    for cell in cells:
        cost = "not known" if counted[cell.id] is None else f"{counted[cell.id] / 1e12:12,.2f} TFLOP  {duration(lasts[cell.id])}"
        lines.append(f"{'done' if cell.id in finished else 'to do':<6} {title(cell):<48} {cost}")
    total, unknown = sum(number or 0.0 for number in counted.values()), sum(number is None for number in counted.values())
    lines += ["", f"{len(cells)} cells, {len(finished)} done; {total / 1e12:,.1f} TFLOP counted, at {per_s / 1e12:,.3f} TFLOP/s ({how})"]
    lines += [f"{unknown} of them cannot be counted beforehand and are left out below"] if unknown else []
    todo = {id: 0.0 if id in finished else long for id, long in lasts.items()}
    return "\n".join([*lines, *(f"{slots} at a time: about {duration(makespan(cells, todo, slots=slots))}" for slots in dict.fromkeys((num_slots, 1, 8)))])


def makespan(cells: Sequence[Cell], lasts: Mapping[str, float], *, slots: int) -> float:
    """Seconds until the last cell ends, if each lasts so many."""
    waiting, ended, running, now = list(cells), set(), [], 0.0
    while waiting or running:
        for cell in list(waiting):
            if len(running) < slots and ended.issuperset(cell.needs):
                waiting.remove(cell)
                heapq.heappush(running, (now + lasts[cell.id], cell.id))
        now, id = heapq.heappop(running)
        ended.add(id)
    return now


def _rate(cells: Sequence[Cell], counted: Mapping[str, float | None], out: Path, finished: set[str], *, rate: float | None,
          device: str) -> tuple[float, str]:
    """Operations a second, and where that is from. UsageError where nothing can be counted."""
    first = next((cell for cell in cells if cell.kind == "train" and counted[cell.id]), None)
    if rate is None and (done := [cell for cell in cells if cell.id in finished and counted[cell.id] and cell.kind == "train"]):
        spent = sum(max(state.read(out, cell).seconds - START_S, 1.0) for cell in done)
        return sum(counted[cell.id] for cell in done) / spent, f"of the {len(done)} finished trainings in {out}"
    if first is None:
        raise UsageError("--dry-run: the study has no training whose operations can be counted (patches, no labels); legal: a study with one")
    images, config = images_of(first, cells), configuration.resolve(first.task)
    sample = of_sample(config, images)
    if rate is not None:
        return rate * sample, f"given: {rate:g} samples/s of {title(first)}"
    measured = _measured(config, images, torch.device(device))
    return measured * sample, f"measured now on {device}: {measured:.1f} samples/s of {title(first)}"


def _measured(config: configuration.RunConfig, images: Images, device: torch.device) -> float:
    """Samples/s of forward and backward alone, in fp32 on CPU and bf16 on a GPU."""
    method = fresh_method(config, images.bands).to(device)
    batch = min(batch_of(config, images), _MOST_BATCH)
    views = tuple(torch.randn(batch, num_channels(view, images.bands), view.size, view.size, device=device)
                  for view in sized(method.views, side_of(config, images)))
    given, count, started = Batch(views, torch.arange(batch, device=device)), -1, 0.0  # the first step is to warm up
    while count < 1 or time.perf_counter() - started < _MEASURE_S:
        started = time.perf_counter() if count == 0 else started
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            loss = method(given)["loss"]
        loss.backward()
        loss.item()  # wait for the device
        count += 1
    return count * batch / (time.perf_counter() - started)
