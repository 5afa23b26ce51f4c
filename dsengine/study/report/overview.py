"""What was run: facts, settings, versions, machine."""

from collections.abc import Sequence
from typing import Any

from dsengine.config import flatten
from dsengine.corpus import Corpus, SeriesCorpus, open_corpus
from dsengine.errors import RunError, UsageError
from dsengine.study.report.axes import number
from dsengine.study.report.folders import RunFolder, num_parameters
from dsengine.study.report.html import Html, facts, folded, missing, paragraph, table, tag
from dsengine.study.report.style import NUM_SERIES
from dsengine.study.report.training import last, lowest, took, typical

_HEAD = ("run", "method", "encoder", "seed", "steps", "samples seen", "loss", "held-out loss", "lowest held-out", "samples / s", "data wait", "time")
_SAME_EVERYWHERE = ("out",)


def find_corpus(path: object) -> Corpus | SeriesCorpus | str:
    """The corpus that a configuration names, or why it cannot be opened."""
    if not isinstance(path, str):
        return "the configuration names no corpus"
    try:
        return open_corpus(path)
    except (UsageError, RunError) as error:
        return " ".join(str(error).split())


def summary(run: RunFolder, corpus: Corpus | SeriesCorpus | str) -> Html:
    """One run's facts."""
    best = lowest(run, "heldout_loss")
    pairs: list[tuple[str, object]] = [
        ("Method", run.setting("method", "name") or "-"), ("Encoder", _encoder(run)), ("Corpus", _corpus(run, corpus)),
        ("Steps", _steps(run)), ("Samples seen", _seen(run)), ("Batch", _batch(run)),
        ("Loss, first to last", _from_to(run, "loss")), ("Held-out loss, first to last", _from_to(run, "heldout_loss")),
        ("Lowest held-out loss", f"{number(best[0])} at step {best[1]:,}" if best else "-"),
        ("Throughput, median", _unit(typical(run, "samples_per_s"), "samples / s", 3)), ("Waiting for data, median", _share(run)),
        ("Time", took(run)), ("Checkpoint", run.saved.path.name if run.saved else "none that is whole")]
    return facts(pairs)


def comparison(runs: Sequence[RunFolder]) -> Html:
    """A line a run, and the settings that differ."""
    rows = []
    for k, run in enumerate(runs):
        best = lowest(run, "heldout_loss")
        name = tag("span", {"class": f"swatch c{k % NUM_SERIES}"}, run.name)
        rows.append([name, run.setting("method", "name") or "-", run.setting("encoder", "name") or "-", _text(run.setting("train", "seed")),
                     _steps(run), _seen(run), number(last(run, "loss")), number(last(run, "heldout_loss")),
                     f"{number(best[0])} at {best[1]:,}" if best else "-", number(typical(run, "samples_per_s"), 3), _share(run), took(run)])
    return table(_HEAD, rows, caption="Runs: last values, medians of throughput and data wait", numbers=range(3, 11))


def differences(runs: Sequence[RunFolder]) -> Html:
    """Settings in which the runs differ."""
    flat = [flatten(run.config) for run in runs]
    keys = [key for key in dict.fromkeys(key for one in flat for key in one) if key not in _SAME_EVERYWHERE]
    rows = [[key, *(_text(one.get(key)) for one in flat)] for key in keys if len({str(one.get(key)) for one in flat}) > 1]
    if not rows:
        return paragraph("All settings of these runs are the same.", kind="note")
    return table(["setting", *(run.name for run in runs)], rows, caption="Settings that differ")


def configuration(run: RunFolder) -> Html:
    """The whole configuration, folded."""
    command = f"dsengine train --config {run.path.name}/config.yaml --out NEW"
    again = paragraph(f"It can be run again: `{command}`", kind="note")
    return folded(f"Configuration of {run.name}", again, tag("pre", None, run.config_text))


def surroundings(run: RunFolder) -> Html:
    """Machine and versions of the last start."""
    starts = [record for record in run.history if record.get("event") == "start"]
    if not starts:
        return missing("Machine and versions were not recorded: the run has no history.jsonl.")
    start = starts[-1]
    machine, versions = (start.get(key) if isinstance(start.get(key), dict) else {} for key in ("machine", "versions"))
    pairs: list[tuple[str, object]] = [("Started", f"{start.get('time')}{', resumed' if start.get('resumed') else ''}")]
    if len(starts) > 1:
        pairs.append(("First started", starts[0].get("time")))
    ranks, gpus = start.get("ranks"), machine.get("gpus")
    pairs += [("Ranks", f"{ranks} on {'GPU' if machine.get('device') == 'cuda' else 'CPU'}"),
              ("CPU", f"{machine.get('cpu')}, {machine.get('cores')} cores usable"),
              ("Memory", f"{machine.get('memory_gib')} GiB"), ("System", machine.get("system"))]
    if gpus:
        pairs.append(("GPUs", f"{len(gpus)}: {', '.join(sorted(set(map(str, gpus))))}"))
    return facts([*pairs, *((name, version) for name, version in versions.items())])


def _encoder(run: RunFolder) -> str:
    name = str(run.setting("encoder", "name") or "-")
    counts = num_parameters(run.saved) if run.saved else {}
    sizes = [f"{key + ': ' if key != 'all' else ''}{count / 1e6:.2f} M parameters" for key, count in counts.items() if key]
    return ", ".join([name, *sizes])


def _corpus(run: RunFolder, corpus: Corpus | SeriesCorpus | str) -> str:
    path = str(run.setting("corpus") or "-")
    if isinstance(corpus, str):
        return f"{path}: {corpus}" if path not in corpus else corpus
    size = f" of {corpus.patch_size} px, {corpus.resolution_m:g} m" if isinstance(corpus, Corpus) else ""
    return f"{path}: {len(corpus):,} {corpus.kind}{size}; {', '.join(corpus.sensors)}; {len(corpus.bands)} bands"


def _steps(run: RunFolder) -> str:
    if not run.records:
        return "none logged"
    end = run.records[-1]
    return f"{end.get('step', 0):,} ({end.get('epoch', 0) + 1:,} epochs)"


def _seen(run: RunFolder) -> str:
    batch = run.setting("train", "batch_size")
    return f"{run.records[-1].get('step', 0) * batch:,}" if run.records and isinstance(batch, int) else "-"


def _batch(run: RunFolder) -> str:
    size, group, precision = (_text(run.setting("train", key)) for key in ("batch_size", "bn_group", "precision"))
    return f"{size}, norm over {group}, {precision}"


def _from_to(run: RunFolder, name: str) -> str:
    _, values = run.values(name)
    return f"{number(float(values[0]))} → {number(float(values[-1]))}" if len(values) else "-"


def _unit(value: float | None, unit: str, digits: int) -> str:
    return "-" if value is None else f"{number(value, digits)} {unit}"


def _share(run: RunFolder) -> str:
    wait = typical(run, "data_wait")
    return "-" if wait is None else f"{wait:.1%}"


def _text(value: Any) -> str:
    return "-" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
