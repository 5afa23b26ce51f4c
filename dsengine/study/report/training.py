"""What training looked like: loss, learning rate, throughput, data wait, and what else the method returned, of several runs over each other."""

from collections.abc import Sequence

import numpy as np

from dsengine.engine import alarms
from dsengine.engine.history import HISTORY
from dsengine.study.report.axes import duration
from dsengine.study.report.chart import Line, line_chart
from dsengine.study.report.folders import RunFolder, ended
from dsengine.study.report.html import Html, join, missing, paragraph, prose, tag

STEP = "optimiser step"
_KNOWN = {"step", "epoch", "loss", "heldout_loss", "lr", "samples_per_s", "data_wait", "ids_crc", "alarm"}
_TERMS = {  # title and y label of what methods are known to log
    "feature_std": ("Spread of features", "std of unit features × √D, 1"), "feature_rank": ("Rank of features", "effective rank, dimensions"),
    "feature_uniformity": ("Uniformity of features", "log mean exp(-2 d²), 1"), "gradient_norm": ("Norm of the gradient", "loss / parameter, 1"),
    "memory_gb": ("Memory of the process", "resident, GB"), "gpu_memory_gb": ("Memory of the GPU", "allocated at most, GB"),
    "knn_accuracy": ("Nearest neighbours", "share right, 1"),
    "error": ("Reconstruction error", "mean squared error, z-scores²"), "kl": ("KL divergence", "nats / value of the image"),
    "active": ("Triplets with a loss", "share of the batch, 1"),
}
_MOST_TERMS = 12


def curves(runs: Sequence[RunFolder]) -> Html:
    """The charts of all runs."""
    if not any(run.records for run in runs):
        return missing("No curves: metrics.jsonl holds no record; a run logs its first one after its first step.")
    charts = [_losses(runs), _chart(runs, "lr", "Learning rate", "learning rate, per step", zero=True),
              _chart(runs, "samples_per_s", "Throughput", "samples / s", zero=True, drop_first=True),
              _chart(runs, "data_wait", "Waiting for data", "share of time, %", zero=True, factor=100, drop_first=True), *_terms(runs)]
    absent = [paragraph(f"{run.name} has no held-out loss: it was not logged yet, or too few samples were held out.", kind="missing")
              for run in runs if run.records and not len(run.values("heldout_loss")[0])]
    return join([tag("div", {"class": "grid"}, *charts), *absent])


def alarm_list(runs: Sequence[RunFolder]) -> Html:
    """What went wrong, or that nothing did."""
    found = [f"{run.name + ': ' if len(runs) > 1 else ''}{sentence}" for run in runs for sentence in _alarms(run)]
    if not found:
        return paragraph("No alarm was raised.", kind="note")
    return tag("div", {"class": "alarm"}, tag("strong", None, "Alarms"), tag("ul", None, *(tag("li", None, prose(sentence)) for sentence in found)))


def last(run: RunFolder, name: str) -> float | None:
    """The last finite value of an entry."""
    _, values = run.values(name)
    values = values[np.isfinite(values)]
    return float(values[-1]) if len(values) else None


def lowest(run: RunFolder, name: str) -> tuple[float, int] | None:
    """The lowest value of an entry and its step."""
    steps, values = run.values(name)
    if not np.isfinite(values).any():
        return None
    best = int(np.nanargmin(values))
    return float(values[best]), int(steps[best])


def typical(run: RunFolder, name: str) -> float | None:
    """The median of an entry, without the record of the first step, in which nothing is measured yet."""
    _, values = run.values(name)
    values = values[1:][np.isfinite(values[1:])]
    return float(np.median(values)) if len(values) else None


def took(run: RunFolder) -> str:
    """How long the run's starts took together."""
    seconds = [record["seconds"] for record in run.history if isinstance(record.get("seconds"), (int, float))]
    starts = sum(record.get("event") == "start" for record in run.history)
    if not starts:
        return f"not recorded (no {HISTORY})"
    again = f" in {starts} starts" if starts > 1 else ""
    unknown = f", and {starts - len(seconds)} without a recorded end" if 0 < len(seconds) < starts else ""
    return f"{duration(sum(seconds))}{again}{unknown}" if seconds else "no end recorded"


def _losses(runs: Sequence[RunFolder]) -> Html:
    lines = []
    for k, run in enumerate(runs):
        several = f"{run.name}, " if len(runs) > 1 else ""
        lines.append(Line(f"{several}training", *run.values("loss"), colour=k if len(runs) > 1 else 0))
        heldout = run.values("heldout_loss")
        if len(heldout[0]):
            lines.append(Line(f"{several}held-out", *heldout, colour=k if len(runs) > 1 else 1, thick=True, dots=True))
    methods = {str(run.setting("method", "name")) for run in runs}
    note = "losses of different methods do not compare" if len(methods) > 1 else ""
    return line_chart("Loss", lines, x_label=STEP, y_label="loss, 1", note=note)


def _chart(runs: Sequence[RunFolder], name: str, title: str, y_label: str, *, zero: bool = False, factor: float = 1.0, drop_first: bool = False,
           limit: float | None = None) -> Html | None:
    """One entry of all runs; nothing where no run has it. drop_first: the record of step 1 measured nothing."""
    lines = []
    for k, run in enumerate(runs):
        steps, values = run.values(name)
        kept = steps > 1 if drop_first and (steps > 1).any() else np.ones(len(steps), bool)
        lines.append(Line(run.name, steps[kept], factor * values[kept], colour=k))
    if not any(len(line.x) for line in lines):
        return None
    condition = f", where uniformity is above {alarms.ONE_HEAP:g} and the loss draws features together" if name.endswith("_rank") else ""
    note = "" if limit is None else f"red: an alarm below this{condition}"
    return line_chart(title, lines, x_label=STEP, y_label=y_label, zero=zero, limit=limit, note=note, named=len(runs) > 1)


def _terms(runs: Sequence[RunFolder]) -> list[Html | None]:
    """What the methods returned beside their loss."""
    names = dict.fromkeys(name for run in runs for record in (*run.records[:1], *run.records[-1:]) for name, value in record.items()
                          if name not in _KNOWN and isinstance(value, float))
    charts = []
    for name in list(names)[:_MOST_TERMS]:
        title, label = _TERMS.get(name, (name.replace("_", " "), f"{name.replace('_', ' ')}, 1"))
        limit = alarms.SPREAD if name.endswith("_std") else alarms.ONE_LINE if name.endswith("_rank") else None
        charts.append(_chart(runs, name, title, label, limit=limit, zero=limit is not None))
    return charts


def _alarms(run: RunFolder) -> list[str]:
    found = []
    raised = [record for record in run.records if "alarm" in record]
    if raised:
        first, final = raised[0], raised[-1]
        where = f"at step {first.get('step')}" if len(raised) == 1 else f"{len(raised)} times from step {first.get('step')} to {final.get('step')}"
        found.append(f"{where}: {first['alarm']}")
    _, losses = run.values("loss")
    if len(losses) and not np.isfinite(losses).all():
        found.append(f"{int((~np.isfinite(losses)).sum())} logged losses are not finite")
    wait = typical(run, "data_wait")
    if wait is not None and wait > alarms.WAIT and not any("data wait" in record["alarm"] for record in raised):
        found.append(f"training waited for data {wait:.0%} of the time (median)")
    how = ended(run)
    if how not in ("done", "not recorded"):
        found.append(f"its last start ended with {how}" if "end recorded" not in how else how)
    total = run.setting("train", "max_steps")
    if isinstance(total, int) and run.records and run.records[-1].get("step", 0) < total and how == "done":
        found.append(f"it stopped at step {run.records[-1]['step']:,} of {total:,}")
    return [*found, *run.damage]
