"""Flags that all evaluations share, and what they become."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dsengine.errors import UsageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """--run, --corpus, --out and the settings that are asked for most; `--set` reaches all others."""
    parser.add_argument("--run", nargs="+", required=True, metavar="DIR", dest="runs",
                        help="run or checkpoint folders, or NAME=DIR to name the row; `none` is an untrained --encoder")
    parser.add_argument("--corpus", required=True, metavar="PATH", help="corpus of patches with labels")
    parser.add_argument("--out", required=True, metavar="DIR", help="results.json, table.md, figures/; a stopped evaluation continues")
    parser.add_argument("--label", metavar="NAME", help="label of the corpus (default: the only one that fits)")
    parser.add_argument("--split", metavar="RULE", help="corpus (default), block, random, column:NAME, or leave-out:NAME, a fold a value")
    parser.add_argument("--fractions", metavar="TRAIN,VAL,TEST", help="of block, random and column:NAME (default: 0.7,0.2,0.1)")
    parser.add_argument("--label-fractions", metavar="F,...", help="shares of the train labels, a row each, such as 0.01,0.1,1")
    parser.add_argument("--size", type=int, metavar="PX", help="side of the crop (default: whole patches)")
    parser.add_argument("--floors", metavar="NAME,...", help="floors beside the runs, or none (default: all)")
    parser.add_argument("--encoder", default="resnet18", metavar="NAME", help="of `--run none` (default: resnet18)")
    parser.add_argument("--features", metavar="DIR", help="feature files, to share among evaluations (default: OUT/features)")
    parser.add_argument("--seed", type=int, metavar="N", help="of everything that is drawn (default: 0)")
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda or cuda:N (default: a GPU if there is one)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="any other setting (docs/evaluate.md lists them)")


_FLAGS = ("label", "split", "fractions", "label_fractions", "size", "floors", "seed", "device")
_LISTS = {"fractions", "label_fractions", "floors", "bands", "probes", "strengths", "k"}


def run(args: argparse.Namespace, evaluate: Callable[..., Path], setting: type, *, flags: tuple[str, ...] = (), **more: Any) -> int:
    """Carry `evaluate` out with the settings of the command line, print the table. flags: those of the command's own that are settings."""
    from dsengine import typed

    given: dict[str, Any] = {}
    for name in (*_FLAGS, *flags):
        if (value := getattr(args, name)) is not None:
            given[name] = _listed(name, value)
    for text in args.set:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise UsageError(f"--set {text}: must be KEY=VALUE")
        given[key.strip()] = _listed(key.strip(), value)
    filled = typed.fill(setting, given, prefix="evaluate")
    path = evaluate(args.runs, args.corpus, args.out, filled, features=args.features, encoder=args.encoder, **more)
    print((path.parent / "table.md").read_text())
    print(f"results  {path}\nfigures  {path.parent / 'figures'}")
    return 0


def _listed(name: str, value: Any) -> Any:
    """`a,b` as a list, for settings that are lists; none is the empty one."""
    if name not in _LISTS or not isinstance(value, str) or value.lstrip().startswith("["):
        return value
    return [] if value == "none" else [part.strip() for part in value.split(",")]
