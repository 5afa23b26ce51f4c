"""Cut imagery into a corpus."""

import argparse
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from types import ModuleType

from dsengine.corpus.commands._terminal import progress_bar, show
from dsengine.errors import UsageError, nearest


def add_arguments(parser: argparse.ArgumentParser, argv: Sequence[str]) -> None:
    """Flags of `corpus build`, and those of the source that `argv` names. UsageError when there is no such source."""
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("--source", required=True, metavar="NAME", help=", ".join(source_names()) + "; `--source NAME --help` lists its flags")
    parser.add_argument("--seed", type=int, default=0, help="of the split into train, val and test (default: 0)")
    name = _named_source(argv) if "corpus" in argv and "build" in argv else None
    if name is not None:
        _source(name).add_arguments(parser.add_argument_group(f"source {name}"))


def run(args: argparse.Namespace) -> int:
    """`corpus build OUT --source NAME ...`."""
    from dsengine.corpus.build.plan import build_corpus
    from dsengine.corpus.build.series_plan import SeriesPlan, build_series

    plan = _source(args.source).plan(args)
    series = isinstance(plan, SeriesPlan)
    with progress_bar("rows" if series else "patches", plan.num_patches) as advance:
        path = (build_series if series else build_corpus)(args.out, plan, progress=advance)
    return show(path)


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
