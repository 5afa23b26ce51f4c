"""What fits amount to: accuracies by input and configuration, win matrices, gains, and what stands in results.json."""

from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np

from dsengine.corpus import SeriesCorpus
from dsengine.evaluate import metrics
from dsengine.evaluate.bootstrap import Interval, of_counts
from dsengine.evaluate.book import versions
from dsengine.evaluate.crops.compare import Wins, gains, wins
from dsengine.evaluate.crops.fit import Recipe
from dsengine.evaluate.crops.inputs import Input
from dsengine.evaluate.crops.parts import JUDGED, Task, described
from dsengine.evaluate.crops.runs import EVALUATION, Run, score
from dsengine.evaluate.crops.search import Configuration
from dsengine.evaluate.crops.settings import Setting
from dsengine.evaluate.probes import grouped

FIGURES = ("accuracy", "f1_macro")


@dataclass(frozen=True)
class Results:
    """All fits of a study."""

    task: Task
    setting: Setting
    configurations: dict[str, list[Configuration]]
    inputs: list[Input]
    runs: list[Run]

    @property
    def names(self) -> list[str]:
        """Of the inputs; the first is raw."""
        return [given.name for given in self.inputs]

    @property
    def judged(self) -> list[str]:
        """Parts that figures are of: test, and elsewhere where there is a task 2."""
        return [name for name in JUDGED if name in self.task.parts]

    @cached_property
    def _by(self) -> dict[tuple[str, int, str], list[Run]]:
        found: dict[tuple[str, int, str], list[Run]] = {}
        for run in self.runs:
            found.setdefault((run.network, run.configuration, run.input), []).append(run)
        return found

    def of(self, network: str, number: int, name: str) -> list[Run]:
        """The fits of one configuration on one input, one a seed."""
        return self._by[network, number, name]

    def figure(self, network: str, part: str, figure: str = "accuracy") -> np.ndarray:
        """(M, N) of M inputs in N configurations: the mean over seeds."""
        truth, classes = self.task.parts[part].classes, len(self.task.names)
        return np.array([[np.mean([score(run, part, truth, classes, figure=figure) for run in self.of(network, c.number, name)])
                          for c in self.configurations[network]] for name in self.names])

    def wins(self, network: str, part: str) -> Wins:
        """Of the inputs by accuracy."""
        return wins(self.figure(network, part))

    def gains(self, network: str, part: str) -> np.ndarray:
        """(M - 1, N) per cent over raw, of the inputs after it."""
        accuracy = self.figure(network, part)
        return gains(accuracy[1:], accuracy[0])

    def chosen(self, network: str, name: str) -> int:
        """The configuration with the highest accuracy on val, the first of equals."""
        return int(self.figure(network, "val")[self.names.index(name)].argmax())

    def intervals(self, network: str, name: str, part: str) -> dict[str, Interval]:
        """Figures of the chosen configuration's first seed with 95 % intervals, fields drawn whole."""
        of = self.task.parts[part]
        predicted = np.array(self.of(network, self.chosen(network, name), name)[0].predicted[part])
        counts = grouped(of.classes, predicted, of.fields, len(self.task.names))
        found = of_counts(counts, lambda c: np.stack([metrics.scores(c)[figure] for figure in FIGURES], -1), num_draws=self.setting.num_draws,
                          seed=self.setting.seed)
        return dict(zip(FIGURES, found))

    def commonest(self, part: str) -> float:
        """Accuracy on `part` of always saying the commonest class of train."""
        return float(np.mean(self.task.parts[part].classes == np.bincount(self.task.parts["train"].classes).argmax()))


def document(results: Results, corpus: SeriesCorpus, recipe: Recipe) -> dict[str, Any]:
    """results.json."""
    task, setting = results.task, results.setting
    parts = {name: {"rows": len(part.rows), "fields": len(np.unique(part.fields)),
                    "by_class": np.bincount(part.classes, minlength=len(task.names)).tolist()} for name, part in task.parts.items()}
    return {"evaluation": EVALUATION, "corpus": {"path": str(corpus.path), "num_rows": len(corpus), "label": task.label}, "classes": list(task.names),
            "setting": asdict(setting), "split": described(setting, corpus), "field": task.field or "row", "parts": parts, "left_out": task.left_out,
            "recipe": {"optimizer": "Adam", **asdict(recipe)}, "floor": {part: results.commonest(part) for part in results.judged},
            "inputs": [{"name": given.name, "kind": given.kind, "dates": given.x.shape[1], "channels": given.x.shape[2], "sha256": given.digest,
                        "about": given.about} for given in results.inputs],
            "networks": {network: _network(results, network) for network in results.configurations}, "versions": _versions()}


def _network(results: Results, network: str) -> dict[str, Any]:
    names = results.names
    described: dict[str, Any] = {"configurations": [c.to_json() for c in results.configurations[network]]}
    for part in results.judged:
        found = results.wins(network, part)
        described[part] = {
            **{figure: dict(zip(names, results.figure(network, part, figure).tolist())) for figure in FIGURES},
            "chosen": {name: {"configuration": results.chosen(network, name), **{figure: interval.to_json() for figure, interval in
                                                                                results.intervals(network, name, part).items()}} for name in names},
            "wins": {"inputs": names, "won": found.won.tolist(), "ties": found.ties.tolist(), "share": _numbers(found.share)},
            "gain_percent": dict(zip(names[1:], _numbers(results.gains(network, part))))}
    return described


def _numbers(x: np.ndarray) -> list[Any]:
    """NaN as null."""
    return [_numbers(row) for row in x] if x.ndim > 1 else [float(value) if np.isfinite(value) else None for value in x]


def _versions() -> dict[str, str]:
    import optuna

    return {**versions(), "optuna": optuna.__version__}
