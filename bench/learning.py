"""What each method learns on the synthetic corpora: a probe of its frozen features against its floors, for several seeds, one JSON file a run.

    python bench/learning.py OUT [--seeds 0 1 2] [--methods simclr series-scarf ...] [--epochs 8]

Images by the method's name, pixels and series by kind and method. A file that is there is not made again. The settings are those of
tests/learning_cases.py, which `pytest -m learning` trains too (it leaves the same file in each test's folder, which is kept with
`-o tmp_path_retention_policy=all`). `taught` is the network trained on the probe's own labels: it says what the corpus of images lets a network
learn.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
import learning_cases as cases  # noqa: E402
from learned import learned, learned_from_labels, learned_of_rows  # noqa: E402

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
    if name == "taught":
        wanted = {"train": {"epochs": epochs or cases.TAUGHT_EPOCHS}}
    else:
        wanted = cases.TABLES[ROWS[name]] if name in ROWS else cases.settings_of(name, seed=seed, epochs=epochs)
    if (found := json.loads(file.read_text())["settings"]) != json.loads(json.dumps(wanted)):
        raise SystemExit(f"{file} was made with other settings: {found}, not {wanted}; move it away or name another OUT")


def result(scratch: Path, name: str, *, seed: int, epochs: int | None) -> dict:
    """One method on its corpus, which is made where it is missing."""
    corpus, out = scratch / (name if name in ROWS else "images"), scratch / f"{name}{seed}"
    if name in ROWS:
        return learned_of_rows(corpus if corpus.exists() else cases.make_rows(corpus, *ROWS[name]), out, *ROWS[name], seed=seed)
    corpus = corpus if corpus.exists() else cases.make_corpus(corpus)
    if name == "taught":
        return learned_from_labels(corpus, out, seed=seed, epochs=epochs or cases.TAUGHT_EPOCHS)
    return learned(corpus, out, name, seed=seed, epochs=epochs)


if __name__ == "__main__":
    main()
