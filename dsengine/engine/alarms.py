"""What a run warns of, each a function of what it logged: records of metrics.jsonl in, sentences out. They stop nothing.

    loss spike      the loss lies far above the last ones, measured by their median and median absolute deviation
    collapse        features no longer tell samples apart: `nn.collapse` explains the three numbers
    dead gradients  parameters whose gradient has been zero or absent at one look after the other
    data wait       the loop waits for its loader
    slow rank       one rank needs far longer than the others for what it does alone

A loss or gradient that is not finite is none of these: it ends the run (`engine.capture`). How the limits were found: docs/methods.md.
"""

import math
import os
import statistics
from collections import deque
from collections.abc import Sequence

SPREAD = 0.05  # std of unit features times sqrt(D)
ONE_LINE = 1.5  # effective rank
ONE_HEAP = -0.6  # uniformity
WINDOW = 50  # records that a spike is measured against
_LEAST = 10  # of these, before anything is called a spike
_SPIKE = 10.0  # robust standard deviations
_MAD = 1.4826  # of a normal distribution's standard deviation in median absolute deviations
_ROOM = 0.05  # share of the loss's size that is never a spike: a loss that hardly varies has no scale of its own
_LOOKS = 5  # records in a row after which a gradient counts as dead, and features as lying along a line
WAIT = 0.10  # share of the time
_WAITS = 10  # records that it is taken over
_SLOW = 1.5  # times the median of the other ranks
_SLOW_LOOKS = 3  # records in a row
OF_A_STEP = ("loss spike", "collapse", "dead gradients")  # kinds that a captured step can explain, and that every rank finds alike


class Watch:
    """The records of a run so far, as far back as alarms look, and the alarms that are on."""

    def __init__(self, advice: str = "", *, attracts: bool = True) -> None:
        self._advice, self._attracts = advice, attracts
        self._records: deque[dict] = deque(maxlen=WINDOW + 1)
        self._on: set[str] = set()

    def look(self, record: dict) -> dict[str, str]:
        """{kind: sentence} of the alarms that begin with `record`; it gets an entry "alarm" with all that are on."""
        self._records.append(record)
        now = found(list(self._records), self._advice, attracts=self._attracts)
        if now:
            record["alarm"] = "; ".join(f"{kind}: {sentence}" for kind, sentence in now.items())
        begun = {kind: sentence for kind, sentence in now.items() if kind not in self._on}
        self._on = set(now)
        return begun


def found(records: Sequence[dict], advice: str = "", *, attracts: bool = True) -> dict[str, str]:
    """{kind: sentence} of what the last of `records` (ascending, at least the last WINDOW + 1 there are) warns of.

    advice: what to do about waiting for data (`advice`), the end of that sentence. attracts: whether the loss draws features together (`collapsed`).
    """
    asked = {"loss spike": _spike(records), "collapse": collapsed(records, attracts=attracts), "dead gradients": _dead(records),
             "data wait": _waiting(records, advice), "slow rank": _slow(records)}
    return {kind: sentence for kind, sentence in asked.items() if sentence}


def collapsed(records: Sequence[dict], *, attracts: bool = True) -> str:
    """What has collapsed by the last of `records`, such as "feature_std 0.004"; "" when nothing has.

    One point: at once. One line: by the median of the last records, of rank and uniformity both, for a single batch of few samples says little
    of either, and features that lie along a line but far apart still tell samples apart. Not asked of a loss that does not draw features together
    (`attracts`): a network that draws images again learns brightness first, which is one line.
    """
    told, last = [], records[-1]
    for name in [key.removesuffix("_std") for key in last if key.endswith("_std")]:
        if last[f"{name}_std"] < SPREAD:
            told.append(f"{name}_std {last[f'{name}_std']:.3g}")
        looks = [(r[f"{name}_rank"], r.get(f"{name}_uniformity", 0.0)) for r in records[-_LOOKS:] if f"{name}_rank" in r]
        rank, uniformity = (statistics.median(values) for values in zip(*looks)) if len(looks) == _LOOKS else (math.inf, -math.inf)
        if attracts and rank < ONE_LINE and uniformity > ONE_HEAP:
            told.append(f"{name}_rank {rank:.3g} with {name}_uniformity {uniformity:.3g}")
    return ", ".join(told)


def of_gradients(norms: dict[str, float]) -> dict[str, float | list[str]]:
    """What a record says of the gradients' norms by parameter: "gradient_norm" of all, and in "no_gradient" those that have none or zero."""
    silent = [name for name, norm in norms.items() if norm == 0]
    return {"gradient_norm": math.sqrt(sum(norm * norm for norm in norms.values())), **({"no_gradient": silent} if silent else {})}


def advice(*, kept: str, kept_why: str, threads: int, prefetch: int, device: str) -> str:
    """What to do about waiting for data, where patches are kept (`kept`: gpu, ram or none) and so many threads read."""
    tips, cores = [], len(os.sched_getaffinity(0))
    if kept == "none":
        tips.append(f"keep decoded patches in memory, data.resident=ram{' or gpu' if device == 'cuda' else ''} (now none: {kept_why})")
    if threads < cores:
        tips.append(f"more threads, data.threads={cores} (now {threads})")
    if prefetch == 0 and device == "cpu":
        tips.append("if it is the disk that is slow, data.prefetch=2 (now 0, as loading and training share the cores)")
    elif prefetch < 4:
        tips.append(f"read further ahead, data.prefetch={max(2, 2 * prefetch)} (now {prefetch})")
    tips.append("fewer jitters and warps, or smaller crops" if device == "cuda" else "`--profile` shows which part of loading it is")
    return "; ".join(tips)


def _spike(records: Sequence[dict]) -> str:
    past = [r["loss"] for r in records[-WINDOW - 1:-1] if math.isfinite(r.get("loss", math.nan))]
    now = records[-1].get("loss", math.nan)
    if len(past) < _LEAST or not math.isfinite(now):
        return ""
    middle = statistics.median(past)
    deviation = statistics.median(abs(loss - middle) for loss in past)
    size = statistics.median(abs(loss) for loss in past)
    limit = middle + max(_SPIKE * _MAD * deviation, _ROOM * size)
    return f"loss {now:.4g}, the last {len(past)} logged ones lie about {middle:.4g} and below {limit:.4g}" if now > limit else ""


def _dead(records: Sequence[dict]) -> str:
    if len(records) < _LOOKS:
        return ""
    silent = set.intersection(*(set(r.get("no_gradient", ())) for r in records[-_LOOKS:]))
    names = [name for name in records[-1].get("no_gradient", ()) if name in silent]
    shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
    return f"{len(names)} parameters had none at the last {_LOOKS} looks: {shown}" if names else ""


def _waiting(records: Sequence[dict], advice: str) -> str:
    """Of most of the last records, and of their time: a single long wait, such as for the first batch after an evaluation, is none."""
    logged = [r for r in records if "data_wait" in r and r["step"] > 1][-_WAITS:]  # at step 1 the loader has just started
    if len(logged) < _WAITS:
        return ""
    seconds = [(now["step"] - before["step"]) / max(now.get("samples_per_s", 1.0), 1e-9) for before, now in zip(logged, logged[1:])]
    mean = sum(s * r["data_wait"] for s, r in zip(seconds, logged[1:])) / max(sum(seconds), 1e-9)
    share = min(mean, statistics.median(r["data_wait"] for r in logged))
    return f"{share:.0%} of the time over the last {_WAITS} records; {advice}".removesuffix("; ") if share > WAIT else ""


def _slow(records: Sequence[dict]) -> str:
    """Named where it is the same rank at each of the last looks."""
    looks = [r["rank_s"] for r in records[-_SLOW_LOOKS:] if len(r.get("rank_s", ())) > 1]
    worst = {max(range(len(seconds)), key=seconds.__getitem__) for seconds in looks}
    if len(looks) < _SLOW_LOOKS or len(worst) > 1:
        return ""
    (rank,) = worst
    ratios = [seconds[rank] / max(statistics.median(seconds[:rank] + seconds[rank + 1:]), 1e-9) for seconds in looks]
    if min(ratios) < _SLOW:
        return ""
    return f"rank {rank} takes {looks[-1][rank] * 1e3:.1f} ms for its data and encoders, {ratios[-1]:.1f} times the others' median"
