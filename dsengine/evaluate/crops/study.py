"""The crop study: every network, configuration, input and seed is one fit; then how the inputs compare."""

import json
import os
import time
import zlib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from dsengine.corpus import SeriesCorpus, open_corpus
from dsengine.corpus.build.optional import need
from dsengine.errors import UsageError
from dsengine.evaluate.crops.fit import Part, Recipe, fit, predict
from dsengine.evaluate.crops.inputs import Input, encoded, raw, standardised
from dsengine.evaluate.crops.networks import build
from dsengine.evaluate.crops.parts import JUDGED, Task, make_task
from dsengine.evaluate.crops.results import Results, document
from dsengine.evaluate.crops.runs import Run, Runs
from dsengine.evaluate.crops.search import Configuration, configurations
from dsengine.evaluate.crops.settings import Setting
from dsengine.evaluate.progress import Progress
from dsengine.evaluate.session import choose_device
from dsengine.evaluate.subjects import pretrained, with_floors


class Bench(NamedTuple):
    """What all fits share."""

    task: Task
    setting: Setting
    recipe: Recipe
    configurations: dict[str, list[Configuration]]  # by network
    runs: Runs
    device: torch.device


def evaluate(runs: Sequence[str], corpus: str | os.PathLike[str], out: str | os.PathLike[str], setting: Setting = Setting()) -> Path:
    """Carry out the study; runs: DIR or NAME=DIR, may be none. Returns OUT/results.json, beside tables and figures.

    What an earlier call with the same `out` finished is not done again. Raises UsageError for a request that is not legal.
    """
    need("optuna", "evaluate")
    opened = open_corpus(corpus)
    if not isinstance(opened, SeriesCorpus) or opened.kind != "series":
        raise UsageError(f"corpus: {corpus} holds {opened.kind}; legal here: a corpus of series")
    task = make_task(opened, setting)
    drawn = {network: configurations(network, setting.configs, seed=setting.seed, parity=setting.parity, shrink=setting.shrink)
             for network in setting.networks}
    bench = Bench(task, setting, recipe_of(setting), drawn, Runs(out), choose_device(setting.device))
    with Progress() as progress:
        inputs = _inputs(runs, opened, bench, progress)
        done = _fit_all(bench, inputs, progress)
    results = Results(task, setting, drawn, inputs, done)
    return _write(results, opened, bench)


def recipe_of(setting: Setting) -> Recipe:
    """How networks are trained under `setting`."""
    return Recipe(epochs=setting.epochs, patience=None if setting.parity else setting.patience, keep="last" if setting.parity else "best",
                  batch_size=setting.batch_size, weight_decay=setting.weight_decay, class_weight=setting.class_weight)


def _inputs(runs: Sequence[str], corpus: SeriesCorpus, bench: Bench, progress: Progress) -> list[Input]:
    setting, rows = bench.setting, bench.task.rows
    subjects = [pretrained(run, part=setting.input) for run in runs]
    names = [subject.name for subject in subjects]
    if twice := [name for name in ("raw", *names) if ("raw", *names).count(name) > 1]:
        raise UsageError(f"run: {twice[0]} is the name of two inputs; legal: NAME=DIR")
    subjects = with_floors(subjects, setting.floors, seed=setting.seed)
    made = [encoded(subject, corpus, rows, per=setting.features, missing=setting.missing, folder=bench.runs.out / "features", progress=progress,
                    device=bench.device) for subject in subjects]
    return [raw(corpus, rows, setting.sensor), *(_with_overlap(given, corpus, bench.task) for given in made)]


def _with_overlap(given: Input, corpus: SeriesCorpus, task: Task) -> Input:
    """Say how many judged rows lie in the train split of the corpus, where the encoder was pretrained on that."""
    if given.kind != "pretrained" or os.path.realpath(str(given.about.get("pretrained_on"))) != os.path.realpath(str(corpus.path)):
        return given
    seen = {name: int(np.isin(part.rows, corpus.rows("train")).sum()) for name, part in task.parts.items() if name in JUDGED}
    return given._replace(about={**given.about, "judged_rows_in_its_train_split": seen})


def _fit_all(bench: Bench, inputs: list[Input], progress: Progress) -> list[Run]:
    """One input after the other, of which one is in memory at a time."""
    every = [c for of_network in bench.configurations.values() for c in of_network]
    fits = [(given, c, seed) for given in inputs for c in every for seed in range(bench.setting.seeds)]
    runs = [bench.runs.load(_key(bench, *of)) for of in fits]
    x, shown = None, None
    with progress.task("fits", len(fits), done=sum(run is not None for run in runs)) as advance:
        for at, (given, configuration, seed) in enumerate(fits):
            if runs[at] is not None:
                continue
            if shown is not given:
                x, shown = standardised(given.x, bench.task.slices()["train"], bench.device), given
            advance(0, note=f"{given.name} {configuration.network} {configuration.number}")
            runs[at] = _fit(bench, given, x, configuration, seed)
            bench.runs.save(_key(bench, given, configuration, seed), runs[at])
            advance(1)
    return runs


def _key(bench: Bench, given: Input, configuration: Configuration, seed: int) -> dict[str, Any]:
    """All that decides a fit."""
    classes = {name: zlib.crc32(part.classes.tobytes()) for name, part in bench.task.parts.items()}
    rows = {name: zlib.crc32(part.rows.tobytes()) for name, part in bench.task.parts.items()}
    return {"configuration": configuration.to_json(), "recipe": asdict(bench.recipe), "input": given.digest, "name": given.name, "rows": rows,
            "classes": classes, "seed": [bench.setting.seed, seed]}


def _fit(bench: Bench, given: Input, x: torch.Tensor, configuration: Configuration, seed: int) -> Run:
    slices, parts, classes = bench.task.slices(), bench.task.parts, len(bench.task.names)
    started, key = time.perf_counter(), zlib.crc32(f"{bench.setting.seed} {seed} {configuration.network} {configuration.number}".encode())
    train, val = (Part(x[slices[name]], torch.from_numpy(parts[name].classes).to(bench.device)) for name in ("train", "val"))
    with torch.random.fork_rng(devices=[bench.device] if bench.device.type == "cuda" else []):
        torch.manual_seed(key)
        network = build(configuration.shape, x.shape[2], classes, x.shape[1]).to(bench.device)
        fitted = fit(network, train, val, bench.recipe, lr=configuration.lr, classes=classes, seed=key,
                     what=f"{configuration.network} configuration {configuration.number} on {given.name}")
    predicted = {name: predict(fitted.network, x[slices[name]]).tolist() for name in ("val", *JUDGED) if name in parts}
    return Run(network=configuration.network, configuration=configuration.number, input=given.name, seed=seed,
               num_parameters=sum(p.numel() for p in network.parameters()), best_epoch=fitted.best_epoch, history=fitted.history,
               seconds=round(time.perf_counter() - started, 3), predicted=predicted)


def _write(results: Results, corpus: SeriesCorpus, bench: Bench) -> Path:
    from dsengine.evaluate.crops import figures, tables

    described = document(results, corpus, bench.recipe)
    figures.draw(results, bench.runs.out / "figures")
    bench.runs.write("table.md", tables.markdown(results, described))
    for name, text in tables.sheets(results).items():
        bench.runs.write(name, text)
    return bench.runs.write("results.json", json.dumps(described, indent=1, allow_nan=False))
