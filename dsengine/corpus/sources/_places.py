"""Flags of sources that search an archive: where, when, how many, and how patiently."""

import argparse
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsengine.errors import UsageError

if TYPE_CHECKING:
    from dsengine.corpus.build.archive.http import Patience
    from dsengine.corpus.build.archive.matches import Matches
    from dsengine.corpus.build.archive.patches import Shape
    from dsengine.corpus.build.archive.scenes import Find, Lattice, Points, Wanted


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags that `stac` and `gee` share."""
    parser.add_argument("--points", type=int, metavar="N", help="number of patches around points drawn over the land or region")
    parser.add_argument("--cover", choices=("touches", "within"), help="instead of points: every patch of a lattice that touches the region, or lies in it")
    parser.add_argument("--region", metavar="CODE,...|FILE", help="ISO codes of countries (needs --land with an ISO column), or a vector file of polygons")
    parser.add_argument("--land", metavar="FILE", help="vector file of land or countries, such as Natural Earth's")
    parser.add_argument("--parity", action="store_true", help="points uniform in degrees, 70 S to 80 N, as DeepSentinel's (default: uniform in area)")
    parser.add_argument("--size", type=int, default=132, help="pixels of 10 m a side (default: 132)")
    parser.add_argument("--bands-at", choices=("native", "10m"), default="native",
                        help="one array per ground resolution, or all bands at 10 m, larger pixels repeated (default: native)")
    parser.add_argument("--sensors", default="s2,s1", metavar="LIST", help="s2,s1, s2 or s1 (default: s2,s1)")
    parser.add_argument("--start", required=True, metavar="DATE", help="first day, yyyy-mm-dd")
    parser.add_argument("--end", required=True, metavar="DATE", help="day after the last")
    parser.add_argument("--window-days", type=int, default=12, help="length of the date windows that patches are spread over (default: 12)")
    parser.add_argument("--max-gap-days", type=float, default=3.0, help="most days between the two scenes of a pair (default: 3)")
    parser.add_argument("--max-cloud", type=float, default=100.0, metavar="PERCENT", help="of a Sentinel-2 scene (default: 100)")
    parser.add_argument("--orbit", choices=("ascending", "descending", "any"), default="any", help="of Sentinel-1 (default: any)")
    parser.add_argument("--attempts", type=int, default=20, metavar="N", help="places tried for a point, or date windows for a patch of a cover, before it is given up (default: 20)")
    parser.add_argument("--matches", metavar="FILE", help="journal of the scenes chosen (default: OUT.search.jsonl)")
    parser.add_argument("--requests", type=int, default=8, metavar="N", help="requests at once, in each worker (default: 8)")
    parser.add_argument("--tries", type=int, default=6, metavar="N", help="of a request before it is given up (default: 6)")
    parser.add_argument("--timeout", type=float, default=60.0, metavar="SECONDS", help="for one request, to its last byte (default: 60)")
    parser.add_argument("--backoff", type=float, default=1.0, metavar="SECONDS", help="wait after the first failure; doubles each time (default: 1)")


def wanted(args: argparse.Namespace, shape: "Shape") -> tuple["Wanted", int]:
    """What the flags ask for, and the number of rows. UsageError for what they get wrong."""
    from dsengine.corpus.build import dates
    from dsengine.corpus.build.archive.scenes import Wanted

    shape.layout()
    windows = dates.windows(args.start, args.end, days=args.window_days)
    for flag, value, low in (("--max-gap-days", args.max_gap_days, 0.0), ("--attempts", args.attempts, 1), ("--requests", args.requests, 1),
                             ("--tries", args.tries, 1), ("--timeout", args.timeout, 1e-3), ("--backoff", args.backoff, 0.0)):
        if not value >= low:
            raise UsageError(f"{flag} {value}: legal: at least {low:g}")
    places, num_rows = _places(args, shape)
    # Another attempt for a given patch is another date window: there are no more of them than windows.
    attempts = min(args.attempts, len(windows)) if args.cover else args.attempts
    return Wanted(places=places, windows=windows, sensors=shape.sensors, max_gap_ns=round(args.max_gap_days * dates.DAY_NS), attempts=attempts,
                  seed=args.seed), num_rows


def shape(args: argparse.Namespace) -> "Shape":
    """How patches are to be stored."""
    from dsengine.corpus.build.archive.patches import Shape

    sensors = tuple(args.sensors.split(","))
    if sensors not in (("s2", "s1"), ("s2",), ("s1",)):
        raise UsageError(f"--sensors {args.sensors}: legal: s2,s1, s2 or s1")
    return Shape(size=args.size, sensors=sensors, native=args.bands_at == "native")


def patience(args: argparse.Namespace) -> "Patience":
    """How long to go on trying."""
    from dsengine.corpus.build.archive.http import Patience

    return Patience(tries=args.tries, backoff_s=args.backoff, timeout_s=args.timeout)


def options(args: argparse.Namespace) -> dict[str, Any]:
    """JSON: what decisions depend on, without what only says how patiently they are made, and without the number of points."""
    named = ("cover", "region", "land", "parity", "size", "sensors", "start", "end", "window_days", "max_gap_days", "max_cloud", "orbit", "attempts", "seed")
    files = {name: _digest(value) for name in ("region", "land") if (value := getattr(args, name)) and Path(value).is_file()}
    # A file counts by what it holds, not by where it lies.
    return {**{name: Path(getattr(args, name)).name if name in files else getattr(args, name) for name in named}, "files": files}


def search(args: argparse.Namespace, wanted: "Wanted", num_rows: int, find: "Find", *, key: dict[str, Any]) -> "Matches":
    """Decide what the journal lacks, under a progress bar. UsageError when no row has a match."""
    from dsengine.corpus.build.archive import matches, scenes
    from dsengine.corpus.commands._terminal import progress_bar

    path = matches.journal_path(args.out, args.matches)
    with progress_bar("searching", num_rows) as advance:
        found = matches.search(path, num_rows, lambda row: scenes.decide(row, wanted, find), key=key, threads=args.requests, progress=advance)
    if not len(found):
        raise UsageError(f"no scenes for any of {num_rows} patches; the first: {found.missed[0]['why']}")
    return found


def made_by(found: "Matches", num_rows: int, *, key: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """How the corpus came about, for its root attributes."""
    return {"command": "corpus build", "source": key["source"], "options": {**key, **more}, "rows": num_rows, "rows_without_match": len(found.missed),
            "matches_sha256": found.sha256}


def _digest(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _places(args: argparse.Namespace, shape: "Shape") -> tuple["Points | Lattice", int]:
    from dsengine.corpus.build import geography
    from dsengine.corpus.build.archive.patches import RESOLUTION_M
    from dsengine.corpus.build.archive.scenes import Lattice, Points

    if (args.points is None) == (args.cover is None):
        raise UsageError("give either --points N or --cover touches|within")
    is_file = args.region and (Path(args.region).is_file() or Path(args.region).suffix or "/" in args.region)
    if is_file:
        region = geography.read_region(args.region)
    elif not args.land:
        raise UsageError(f"--land FILE is needed {'for --region ' + args.region if args.region else 'without --region FILE'}: {geography.NATURAL_EARTH}")
    else:
        region = geography.read_region(args.land, codes=tuple(args.region.split(",")) if args.region else ())
    if args.cover:
        grids = geography.cover(region, size=args.size, resolution_m=RESOLUTION_M, within=args.cover == "within")
        return Lattice(grids), len(grids)
    if args.points < 1:
        raise UsageError(f"--points {args.points}: legal: at least 1")
    return Points(region, args.seed, args.parity, args.size, RESOLUTION_M), args.points
