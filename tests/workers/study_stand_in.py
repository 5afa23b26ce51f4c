"""Stands in for `dsengine ARGV` where a test is about the study and not about training: writes what the real command would, and a line of CALLS.

    python study_stand_in.py CALLS ARGV...     the command itself; needs the standard library alone
    python study_stand_in.py study FILE OUT CALLS      a study with it, as a process that can be killed

What fails or takes its time is said by the names of runs and folders: a part `bad` fails, `resnet18-slow` takes a minute unless it is resumed.
"""

import json
import sys
import time
import zlib
from pathlib import Path


def stand_in(calls: Path, argv: list[str]) -> int:
    """The exit code."""
    with open(calls, "a") as file:
        file.write(" ".join(argv) + "\n")
    if argv[0] == "corpus":
        Path(argv[2]).mkdir(parents=True, exist_ok=True)
        (Path(argv[2]) / "zarr.json").write_text("{}")
        return 0
    out = Path(argv[argv.index("--out") + 1])
    out.mkdir(parents=True, exist_ok=True)
    if "-bad-" in out.name:
        print("dsengine: a line before", "dsengine: it is bad, 100 % & more", sep="\n", file=sys.stderr)
        return 1
    if argv[0] == "train":
        (out / "config.yaml").write_text("{}")
        if out.name.startswith("resnet18-slow-") and "--resume" not in argv:
            time.sleep(60)
        (out / "checkpoints").mkdir(exist_ok=True)
    else:
        (out / "results.json").write_text(json.dumps(results(argv)))
    return 0


def results(argv: list[str]) -> dict:
    """Figures that are a function of who is judged alone."""
    runs = argv[argv.index("--run") + 1:argv.index("--corpus")]
    name, kind = ("untrained", "untrained") if runs[0] == "none" else (runs[0].partition("=")[0], "pretrained")
    value = zlib.crc32((argv[argv.index("--encoder") + 1] if kind == "untrained" else name).encode()) % 1000 / 1000
    scores = {"value": value, "low": value / 2, "high": (1 + value) / 2}
    row = {"name": name, "kind": kind, "label_fraction": 1.0, "figures": {"accuracy": scores}, "num_groups": 4, "confusion": [], "about": {},
           "classes": {"a": {"iou": value, "f1": value, "support": 3, "f1_interval": scores}}, "protocol": {}}
    return {"evaluation": argv[1], "figure": "accuracy", "classes": ["a"], "rows": [row]}


def study(file: str, out: str, calls: str) -> int:
    """`dsengine study FILE --out OUT` with the stand-in for children."""
    from dsengine.study import command, processes, spec
    from dsengine.study.processes import Slot

    processes.command_line = lambda argv: [sys.executable, "-S", __file__, calls, *argv]
    return command.carry_out(spec.load(file), Path(out), [Slot(None, 1)])


if __name__ == "__main__":
    sys.exit(study(*sys.argv[2:]) if sys.argv[1] == "study" else stand_in(Path(sys.argv[1]), sys.argv[2:]))
