"""Cut imagery into a corpus."""

import argparse
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from types import ModuleType
from typing import TYPE_CHECKING

from dsengine.corpus.commands._splits import add_split_arguments, with_split
from dsengine.corpus.commands._terminal import progress_bar, show
from dsengine.errors import UsageError, nearest

if TYPE_CHECKING:
    from dsengine.corpus.build.plan import Plan
    from dsengine.corpus.build.series_plan import SeriesPlan


def add_arguments(parser: argparse.ArgumentParser, argv: Sequence[str]) -> None:
    """Flags of `corpus build`, and those of the source that `argv` names. UsageError when there is no such source."""
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("--source", required=True, metavar="NAME", help=", ".join(source_names()) + "; `--source NAME --help` lists its flags")
    parser.add_argument("--seed", type=int, default=0, help="of the split into train, val and test (default: 0)")
    add_split_arguments(parser, flag="--split", legal="block|random|column:NAME|given")
    parser.add_argument("--label", action="append", default=[], metavar="NAME=KIND:PATH,...", help=(
        "a label from a map of its own, KIND corine, osm, raster, vector or points; with source geotiff also NAME=GLOB, class maps on the "
        "grids of its files; may be repeated"))
    parser.add_argument("--no-quality", action="store_true", help="do not measure cloud fraction and S1/S2 shift where the source gives none")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="processes on this machine; the corpus does not depend on it (default: 1)")
    parser.add_argument("--scheduler", metavar="ADDRESS", help="make the shards on the Dask cluster with this scheduler, such as tcp://host:8786")
    name = _named_source(argv) if "corpus" in argv and "build" in argv else None
    if name is not None:
        _source(name).add_arguments(parser.add_argument_group(f"source {name}"))


def run(args: argparse.Namespace) -> int:
    """`corpus build OUT --source NAME ...`."""
    from dsengine.corpus.build.plan import build_corpus
    from dsengine.corpus.build.quality import with_quality
    from dsengine.corpus.build.series_plan import SeriesPlan, build_series

    plan = with_split(_labelled_plan(args), args)
    series = isinstance(plan, SeriesPlan)
    with progress_bar("rows" if series else "patches", plan.num_patches) as advance:
        if series:
            path = build_series(args.out, plan, workers=args.workers, scheduler=args.scheduler, progress=advance)
        else:
            plan = plan if args.no_quality else with_quality(plan)
            path = build_corpus(args.out, plan, workers=args.workers, scheduler=args.scheduler, progress=advance)
    return show(path)


def _labelled_plan(args: argparse.Namespace) -> "Plan | SeriesPlan":
    """The plan of the source, with the labels of --label. UsageError where the source cannot have them."""
    from dsengine.corpus.build import labelling
    from dsengine.corpus.build.plan import Plan

    source = _source(args.source)
    requests, args.label = labelling.parse(args.label)
    if args.label and not getattr(source, "LABEL_GLOBS", False):
        raise UsageError(f"--label {args.label[0]}: source {args.source} has no class maps beside its files; legal: NAME=KIND:PATH[,option=value...] "
                         f"with KIND one of {', '.join(labelling.kinds())}")
    plan = source.plan(args)
    if isinstance(plan, Plan):
        return labelling.add_labels(plan, requests)
    if requests:
        raise UsageError(f"--label {requests[0].name}: source {args.source} makes series, not patches; labels are drawn on patches")
    return plan


def source_names() -> list[str]:
    """Names of the files in sources/: the legal values of --source."""
    from dsengine.corpus import sources

    return sorted(module.name for module in iter_modules(sources.__path__) if not module.name.startswith("_"))


def _named_source(argv: Sequence[str]) -> str | None:
    """What follows --source, so that each source has its own flags and they never clash."""
    for word, following in zip(argv, [*argv[1:], None]):
        if word == "--source":
            return following
        if word.startswith("--source="):
            return word.removeprefix("--source=")
    return None


def _source(name: str) -> ModuleType:
    if name not in source_names():
        raise UsageError(f"--source {name}: {nearest(name, source_names())}")
    return import_module(f"dsengine.corpus.sources.{name}")
