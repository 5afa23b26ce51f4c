"""Write a synthetic land-cover world: image patches, pixels or time series."""

import argparse
from pathlib import Path

from dsengine.corpus.commands._terminal import progress_bar, show
from dsengine.errors import UsageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `corpus synth`."""
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("--kind", choices=("patches", "pixels", "series"), default="patches", help="what to write (default: patches)")
    parser.add_argument("--patches", type=int, metavar="N", help="number of patches")
    parser.add_argument("--rows", type=int, metavar="N", help="number of pixels or series")
    parser.add_argument("--size", type=int, help="pixels a side of a patch (default: 128)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--world", type=int, help="version of the world of patches (default: 1)")
    parser.add_argument("--workers", type=int, default=1, help="threads that paint patches, processes that write rows (default: 1)")


def run(args: argparse.Namespace) -> int:
    """`corpus synth OUT --patches N`, `corpus synth OUT --kind pixels|series --rows N`."""
    needed, other = ("patches", "rows") if args.kind == "patches" else ("rows", "patches")
    if getattr(args, needed) is None:
        raise UsageError(f"--{needed} N: how many; --kind {args.kind} needs it")
    for name in (other,) if args.kind == "patches" else (other, "size", "world"):
        if (value := getattr(args, name)) is not None:
            raise UsageError(f"--{name} {value}: does not go with --kind {args.kind}")
    return show(_patches(args) if args.kind == "patches" else _rows(args))


def _patches(args: argparse.Namespace) -> Path:
    from dsengine.corpus.synth import WORLD_VERSION, synthesize

    size = 128 if args.size is None else args.size
    world = WORLD_VERSION if args.world is None else args.world
    with progress_bar("patches", args.patches) as advance:
        return synthesize(args.out, num_patches=args.patches, size=size, seed=args.seed, world=world, workers=args.workers, progress=advance)


def _rows(args: argparse.Namespace) -> Path:
    from dsengine.corpus.synth.series import synthesize_series

    with progress_bar(args.kind, args.rows) as advance:
        return synthesize_series(args.out, kind=args.kind, num_rows=args.rows, seed=args.seed, workers=args.workers, progress=advance)
