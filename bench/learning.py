"""What each method learns on the synthetic corpora: a probe of its frozen features against its floors, for several seeds, one JSON file a run.

    python bench/learning.py OUT [--seeds 0 1 2] [--methods simclr series-scarf ...] [--epochs 8]

Images by the method's name, pixels and series by kind and method. A file that is there is not made again. The settings are those of
tests/learning_cases.py, which `pytest -m learning` trains too. `taught` is the network trained on the probe's own labels: it says what the
corpus of images lets a network learn.
"""

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
import learning_cases as cases  # noqa: E402
from probe import compare, compare_rows, taught  # noqa: E402

import dsengine  # noqa: E402
from dsengine.corpus.synth.worlds import WORLDS  # noqa: E402

ROWS = {"-".join(case): case for case in cases.TABLES}
NAMES = ("taught", *cases.METHODS, *ROWS)


def main() -> None:
    """Train, probe and write."""
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", choices=NAMES, default=NAMES)
    parser.add_argument("--epochs", type=int, help="of image methods, instead of their own")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        for seed in args.seeds:
            for name in args.methods:
                file = args.out / f"{name}-seed{seed}.json"
                if file.exists():
                    same_settings(file, name, seed=seed, epochs=args.epochs)
                    continue
                found = result(Path(scratch), name, seed=seed, epochs=args.epochs)
                file.write_text(json.dumps(found, indent=1) + "\n")
                print(name, seed, found["found"], f"{found['seconds']:.0f} s", flush=True)


def same_settings(file: Path, name: str, *, seed: int, epochs: int | None) -> None:
    """Ends the script where a file that is there is of other settings than those that were asked for."""
    wanted = None if name == "taught" else cases.TABLES[ROWS[name]] if name in ROWS else cases.settings_of(name, seed=seed, epochs=epochs)
    if (found := json.loads(file.read_text())["settings"]) != json.loads(json.dumps(wanted)):
        raise SystemExit(f"{file} was made with other settings: {found}, not {wanted}; move it away or name another OUT")


def result(scratch: Path, name: str, *, seed: int, epochs: int | None) -> dict:
    """One method on its corpus, which is made where it is missing."""
    corpus, out = scratch / (name if name in ROWS else "images"), scratch / f"{name}{seed}"
    if name in ROWS:
        if not corpus.exists():
            cases.make_rows(corpus, *ROWS[name])
        return measure_rows(corpus, out, name, seed=seed)
    return measure(corpus if corpus.exists() else cases.make_corpus(corpus), out, name, seed=seed, epochs=epochs)


def measure_rows(corpus: Path, out: Path, name: str, *, seed: int) -> dict:
    """One run on pixels or series, for its own number of epochs, and what its features are worth."""
    begun, used = time.perf_counter(), time.process_time()
    rows, sensor = cases.ROWS[ROWS[name]]
    trained = cases.run_of_rows(corpus, out, *ROWS[name], seed=seed)
    seconds, cpu_s = time.perf_counter() - begun, time.process_time() - used
    encoder, _ = dsengine.load_encoder(trained.dir, sensor)
    return {"method": name, "seed": seed, "settings": cases.TABLES[ROWS[name]], "encoder": encoder.recipe, "sensor": sensor,
            "corpus": {"rows": rows, "seed": 0}, "found": compare_rows(str(corpus), encoder, sensor=sensor, seed=seed),
            "alarms": sum("alarm" in record for record in trained.metrics), "seconds": round(seconds, 1), "cpu_s": round(cpu_s, 1), "machine": machine()}


def measure(corpus: Path, out: Path, name: str, *, seed: int, epochs: int | None) -> dict:
    """One run on images and what its features are worth."""
    begun, used = time.perf_counter(), time.process_time()
    settings = None if name == "taught" else cases.settings_of(name, seed=seed, epochs=epochs)
    epochs = epochs or (settings or {"train": cases.TRAIN})["train"]["epochs"]
    if name == "taught":
        encoder, alarms = _taught(corpus, out, seed=seed, epochs=epochs), 0
    else:
        run = cases.run_of(corpus, out, name, seed=seed, epochs=epochs)
        encoder, alarms = run.encoder, sum("alarm" in record for record in run.metrics)
    seconds, cpu_s = time.perf_counter() - begun, time.process_time() - used
    return {"method": name, "seed": seed, "settings": settings, "encoder": encoder.recipe, "epochs": epochs,
            "corpus": {"patches": cases.NUM_PATCHES, "fractions": cases.FRACTIONS, "size": cases.SIZE, "seed": cases.CORPUS_SEED, "world": cases.WORLD,
                       "constants": WORLDS[cases.WORLD]._asdict()},
            "found": compare(str(corpus), encoder, size=cases.SIZE, seed=seed), "alarms": alarms, "seconds": round(seconds, 1),
            "cpu_s": round(cpu_s, 1), "machine": machine()}


def machine() -> dict:
    """Where it ran."""
    return {"cpus": len(os.sched_getaffinity(0)), "threads": torch.get_num_threads(), "processor": platform.processor(), "torch": torch.__version__,
            "load": os.getloadavg()[0]}


def _taught(corpus: Path, out: Path, *, seed: int, epochs: int) -> torch.nn.Module:
    """Trained on the labels. The run of one step is there for what a run begins with: weights by the seed, and a whitening where the encoder has one."""
    started = dsengine.train(corpus=str(corpus), out=str(out), device={"gpus": 0}, encoder=cases.ENCODER, method="supervised", data={"size": cases.CROP},
                             train={"max_steps": 1, "batch_size": 64, "lr": 1e-9, "seed": seed})
    return taught(dsengine.open_corpus(corpus), started.encoder, epochs=epochs)


if __name__ == "__main__":
    main()
