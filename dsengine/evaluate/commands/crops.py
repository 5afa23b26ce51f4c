"""Crop types from time series: three networks on raw and on pretrained input, win matrices and gains (Patnala et al.)."""

import argparse

from dsengine.errors import UsageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `evaluate crops`; `--set` reaches all other settings."""
    parser.add_argument("--corpus", required=True, metavar="PATH", help="corpus of series with a label of classes")
    parser.add_argument("--out", required=True, metavar="DIR", help="results.json, tables, figures/; a stopped study continues")
    parser.add_argument("--run", nargs="+", default=[], metavar="DIR", dest="runs",
                        help="run or checkpoint folders of encoders of pixels or series, or NAME=DIR (default: raw input alone)")
    parser.add_argument("--label", metavar="NAME", help="label of the corpus (default: crop, or the only one of classes)")
    parser.add_argument("--networks", metavar="NAME,...", help="bilstm, inception, transformer (default: all)")
    parser.add_argument("--configs", type=int, metavar="N", help="configurations of each network (default: 10)")
    parser.add_argument("--epochs", type=int, metavar="N", help="at most (default: 20)")
    parser.add_argument("--shrink", type=int, metavar="N", help="divide the widths of the paper's spaces by 1, 2 or 4 (default: 1)")
    parser.add_argument("--split", metavar="RULE", help="fields (default), corpus, block, or column:NAME; no field is in two parts")
    parser.add_argument("--where", metavar="CONDITION", help="only rows that meet it")
    parser.add_argument("--test-where", metavar="CONDITION", help="task 2: rows that meet it are judged apart, as of another region and year")
    parser.add_argument("--per", dest="features", choices=("dates", "series"), help="features a date (default) or a series")
    parser.add_argument("--floors", metavar="NAME,...", help="inputs beside the runs: untrained (default), or none")
    parser.add_argument("--parity", action="store_true", default=None, help="as the original code: learning rate drawn linearly, the last epoch kept")
    parser.add_argument("--seed", type=int, metavar="N", help="of everything that is drawn (default: 0)")
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda or cuda:N (default: a GPU if there is one)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="any setting of the study (docs/crops.md lists them)")


_FLAGS = ("label", "networks", "configs", "epochs", "shrink", "split", "where", "test_where", "features", "floors", "parity", "seed", "device")
_LISTS = ("networks", "floors", "fractions")


def run(args: argparse.Namespace) -> int:
    """`evaluate crops`."""
    from dsengine import typed
    from dsengine.evaluate.crops.settings import Setting
    from dsengine.evaluate.crops.study import evaluate

    given = {name: value for name in _FLAGS if (value := getattr(args, name)) is not None}
    for text in args.set:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise UsageError(f"--set {text}: must be KEY=VALUE")
        given[key.strip()] = value
    for name in _LISTS:
        if isinstance(given.get(name), str) and not given[name].lstrip().startswith("["):
            given[name] = [] if given[name] == "none" else [part.strip() for part in given[name].split(",")]
    path = evaluate(args.runs, args.corpus, args.out, typed.fill(Setting, given, prefix="evaluate"))
    print((path.parent / "table.md").read_text())
    print(f"results  {path}\nfigures  {path.parent / 'figures'}")
    return 0
