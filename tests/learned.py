"""One training run of learning_cases and what its features are worth, as a record for JSON: of `-m learning` and of bench/learning.py alike."""

import os
import platform
import time
from pathlib import Path

import learning_cases as cases
import torch
from probe import compare, compare_rows, taught

import dsengine
from dsengine.corpus.synth.worlds import WORLDS


def learned(corpus: Path, out: Path, name: str, *, seed: int = 0, epochs: int | None = None) -> dict:
    """A method on images, for its own number of epochs unless told."""
    clock = _Clock()
    run = cases.run_of(corpus, out, name, seed=seed, epochs=epochs)
    settings = cases.settings_of(name, seed=seed, epochs=epochs)
    return {**_head(name, seed, settings, run.encoder), "epochs": settings["train"]["epochs"], "corpus": _images(), **_alarms(run.metrics), **clock.read(),
            "found": compare(str(corpus), run.encoder, size=cases.SIZE, seed=seed)}


def learned_of_rows(corpus: Path, out: Path, kind: str, method: str, *, seed: int = 0) -> dict:
    """A method on pixels or series, for its own number of epochs."""
    clock = _Clock()
    run = cases.run_of_rows(corpus, out, kind, method, seed=seed)
    rows, sensor = cases.ROWS[kind, method]
    encoder, _ = dsengine.load_encoder(run.dir, sensor)
    return {**_head(f"{kind}-{method}", seed, cases.TABLES[kind, method], encoder), "sensor": sensor, "corpus": {"rows": rows, "seed": 0},
            **_alarms(run.metrics), **clock.read(), "found": compare_rows(str(corpus), encoder, sensor=sensor, seed=seed)}


def learned_from_labels(corpus: Path, out: Path, *, seed: int = 0, epochs: int = cases.TAUGHT_EPOCHS) -> dict:
    """The network taught the probe's own labels. The run of one step is there for what a run begins with, its weights and its z-scores."""
    clock = _Clock()
    started = dsengine.train(corpus=str(corpus), out=str(out), device={"gpus": 0}, encoder=cases.ENCODER, method="supervised", data={"size": cases.CROP},
                             train={"max_steps": 1, "batch_size": 64, "lr": 1e-9, "seed": seed})
    encoder = taught(dsengine.open_corpus(corpus), started.encoder, epochs=epochs)
    return {**_head("taught", seed, {"train": {"epochs": epochs}}, encoder), "epochs": epochs, "corpus": _images(), **_alarms([]), **clock.read(),
            "found": compare(str(corpus), encoder, size=cases.SIZE, seed=seed)}


class _Clock:
    """Of training alone."""

    def __init__(self) -> None:
        self._begun = time.perf_counter(), time.process_time()

    def read(self) -> dict:
        wall, cpu = self._begun
        return {"seconds": round(time.perf_counter() - wall, 1), "cpu_s": round(time.process_time() - cpu, 1), "machine": _machine()}


def _head(name: str, seed: int, settings: dict, encoder: torch.nn.Module) -> dict:
    return {"method": name, "seed": seed, "settings": settings, "encoder": encoder.recipe}


def _images() -> dict:
    return {"patches": cases.NUM_PATCHES, "fractions": cases.FRACTIONS, "size": cases.SIZE, "seed": cases.CORPUS_SEED, "world": cases.WORLD,
            "constants": WORLDS[cases.WORLD]._asdict()}


def _alarms(metrics: list[dict]) -> dict:
    """Records with an alarm, and the steps of those of a collapse."""
    return {"alarms": sum("alarm" in record for record in metrics), "collapses": [record["step"] for record in metrics if "collapse" in record.get("alarm", "")]}


def _machine() -> dict:
    return {"cpus": len(os.sched_getaffinity(0)), "threads": torch.get_num_threads(), "processor": platform.processor(), "torch": torch.__version__,
            "load": os.getloadavg()[0]}
