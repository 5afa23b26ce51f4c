"""`dsengine corpus ...`: flags, and tables that a person can read."""

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from types import ModuleType

from dsengine.errors import UsageError, nearest


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `corpus` with its own subcommands; each sets `run`, a function of the parsed flags that returns the exit code."""
    corpus = subparsers.add_parser("corpus", help="make and inspect corpora")
    commands = corpus.add_subparsers(dest="corpus_command", required=True, metavar="synth|build|info|stats|verify")
    synth = commands.add_parser("synth", help="write a synthetic land-cover world")
    synth.add_argument("out", type=Path, metavar="OUT")
    synth.add_argument("--patches", type=int, required=True, metavar="N", help="number of patches")
    synth.add_argument("--size", type=int, default=128, help="pixels a side (default: 128)")
    synth.add_argument("--seed", type=int, default=0)
    synth.add_argument("--workers", type=int, default=1, help="threads that paint patches (default: 1)")
    synth.set_defaults(run=run_synth)
    build = commands.add_parser("build", help="cut imagery into a corpus")
    build.add_argument("out", type=Path, metavar="OUT")
    build.add_argument("--source", required=True, metavar="NAME", help=", ".join(source_names()))
    build.add_argument("--size", type=int, default=128, help="pixels a side (default: 128)")
    build.add_argument("--stride", type=int, help="pixels between windows (default: the size)")
    build.add_argument("--seed", type=int, default=0, help="of the split into train, val and test (default: 0)")
    for name in source_names():
        _source(name).add_arguments(build)
    build.set_defaults(run=run_build)
    for name, handler, text in (("info", run_info, "what a corpus holds"), ("stats", run_stats, "recompute and store mean, std and count per band"),
                                ("verify", run_verify, "check every chunk, the index and the statistics")):
        command = commands.add_parser(name, help=text)
        command.add_argument("path", type=Path, metavar="PATH")
        command.set_defaults(run=handler)


def source_names() -> list[str]:
    """Names of the files in sources/: the legal values of --source."""
    from dsengine.corpus import sources

    return sorted(module.name for module in iter_modules(sources.__path__))


def run_synth(args: argparse.Namespace) -> int:
    """`corpus synth OUT --patches N`."""
    from dsengine.corpus.synth import synthesize

    with _bar("patches", args.patches) as advance:
        path = synthesize(args.out, num_patches=args.patches, size=args.size, seed=args.seed, workers=args.workers, progress=advance)
    return _show(path)


def run_build(args: argparse.Namespace) -> int:
    """`corpus build OUT --source NAME ...`."""
    if args.source not in source_names():
        raise UsageError(f"--source {args.source}: {nearest(args.source, source_names())}")
    with _bar("patches", None) as advance:
        path = _source(args.source).build(args, progress=advance)
    return _show(path)


def run_info(args: argparse.Namespace) -> int:
    """`corpus info PATH`."""
    return _show(args.path)


def run_stats(args: argparse.Namespace) -> int:
    """`corpus stats PATH`."""
    from dsengine.corpus import open_corpus
    from dsengine.corpus.report import stats_table
    from dsengine.corpus.stats import measure, store

    corpus = open_corpus(args.path)
    with _bar("patches", len(corpus)) as advance:
        measured = measure(corpus, progress=advance)
    store(corpus, measured)
    _console().print(stats_table(open_corpus(args.path)))
    return 0


def run_verify(args: argparse.Namespace) -> int:
    """`corpus verify PATH`: exit code 1 when anything is damaged."""
    from dsengine.corpus import open_corpus
    from dsengine.corpus.report import damage_table
    from dsengine.corpus.verify import verify

    corpus = open_corpus(args.path)
    with _bar("patches", len(corpus)) as advance:
        result = verify(corpus, progress=advance)
    if result.problems:
        _console().print(damage_table(result.problems))
    _console().print(f"{args.path}: {result.num_chunks} chunks of {len(corpus)} patches checked, {len(result.problems)} problems", markup=False, soft_wrap=True)
    return 1 if result.problems else 0


def _show(path: Path) -> int:
    from dsengine.corpus import open_corpus
    from dsengine.corpus.report import print_info

    print_info(open_corpus(path), _console())
    return 0


def _source(name: str) -> ModuleType:
    return import_module(f"dsengine.corpus.sources.{name}")


def _console():  # noqa: ANN202 - rich is imported late
    from rich.console import Console

    return Console()


@contextmanager
def _bar(what: str, total: int | None) -> Iterator[Callable[[int, int], None]]:
    """A progress bar; yields `advance(done, total)`."""
    from rich.console import Console
    from rich.progress import Progress

    with Progress(*Progress.get_default_columns(), console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done, total: bar.update(task, completed=done, total=total)
