"""One side in a process of its own: a line of JSON in, a line of JSON out. Started by __main__.py."""

import importlib
import json
import sys
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch  # noqa: E402
from peers import declare_torchvision_operators  # noqa: E402
from peers.job import TORCH_THREADS, Data, Job, Side  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

SIDES = {"ours": ("peers.ours", "Ours"), "torchgeo": ("peers.with_torchgeo", "TorchGeo"), "lightly": ("peers.with_lightly", "Lightly"),
         "tuned": ("peers.tuned", "Tuned"), "pil": ("peers.with_pil", "Pil")}


def make_side(name: str, job: Job) -> Side:
    """The side, its libraries imported."""
    if name != "ours":
        declare_torchvision_operators()
    module, kind = SIDES[name]
    return getattr(importlib.import_module(module), kind)(job, Data())


def answer(side: Side, job: Job, asked: dict) -> object:
    """What the line asks for: {"do": run | load | step, "count"} -> times; {"do": weights, "path"}; {"do": loss, "weights", "views"}."""
    if asked["do"] == "weights":
        from peers.ours import fresh_weights

        save_file(fresh_weights(job, Data()), asked["path"])
        return None
    if asked["do"] == "loss":
        views = load_file(asked["views"])
        return side.loss(load_file(asked["weights"]), (views["0"], views["1"]))
    return getattr(side, asked["do"])(asked["count"])


def main() -> None:
    name, job = sys.argv[1], Job(**json.loads(sys.argv[2]))
    warnings.simplefilter("ignore")
    torch.set_num_threads(TORCH_THREADS)
    out, sys.stdout = sys.stdout, sys.stderr  # libraries print
    side = make_side(name, job)
    print(json.dumps("ready"), file=out, flush=True)
    for line in sys.stdin:
        torch.manual_seed(0)
        print(json.dumps(answer(side, job, json.loads(line))), file=out, flush=True)


if __name__ == "__main__":
    main()
