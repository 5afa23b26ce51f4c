"""SSL4EO-S12 1.0 (folders of GeoTIFFs) and 1.1 (Zarr v2 zip files of 64 locations): Sentinel-1 and -2 of 264 px at up to four seasons.

One row is one location in one season, with the S1 image nearest in time. All seasons of a location are in one split. Planning release 1.0 lists
each location's folders, planning 1.1 reads the directory and headers of each zip file; both read 16 patches.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsengine.errors import UsageError

if TYPE_CHECKING:
    from dsengine.corpus.build.offset import Decision
    from dsengine.corpus.build.plan import Plan


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `corpus build --source ssl4eo_s12`."""
    parser.add_argument("--root", type=Path, required=True, metavar="DIR", help="holds s1 and s2a or s2c (1.0), or S1GRD and S2L2A or S2L1C (1.1)")
    parser.add_argument("--level", choices=("l2a", "l1c"), default="l2a", help="Sentinel-2 level (default: l2a)")
    parser.add_argument("--sensors", default="s2,s1", help="s2,s1 (default), s2 or s1")
    parser.add_argument("--seasons", default="all", metavar="all|first|N", help="how many of a location's images, earliest first (default: all)")
    parser.add_argument("--s2-offset", default="auto", metavar="auto|0|-1000", help="what to add to S2 numbers (default: auto)")


def plan(args: argparse.Namespace) -> "Plan":
    """The corpus of the release at --root. Raises UsageError for flags and files that do not fit."""
    from dsengine.corpus.sources import _patches
    from dsengine.corpus.sources._patches import L1C_BANDS, s1_spec

    if args.s2_offset != "auto" and not args.s2_offset.lstrip("+-").isdecimal():
        raise UsageError(f"--s2-offset {args.s2_offset}: legal: auto or a whole number, 0 or -1000")
    sensors = [sensor for sensor in ("s2", "s1") if sensor in args.sensors.split(",")]
    if not sensors or set(args.sensors.split(",")) - {"s2", "s1"}:
        raise UsageError(f"--sensors {args.sensors}: legal: s2,s1 or s2 or s1")
    bands = L1C_BANDS if args.level == "l1c" else tuple(band for band in L1C_BANDS if band != "B10")
    specs = lambda native: tuple(spec for sensor in sensors for spec in (  # noqa: E731
        _patches.s2_specs(bands, native=native, level=args.level) if sensor == "s2" else (s1_spec(),)))
    made = _plan_zips(args, sensors, specs(False)) or _plan_folders(args, sensors, specs(True))
    if made is None:
        raise UsageError(f"--root {args.root} holds neither s1, s2a, s2c (release 1.0) nor S1GRD, S2L2A, S2L1C (release 1.1) for --level {args.level}")
    return made


def _plan_zips(args: argparse.Namespace, sensors: list[str], specs: tuple[Any, ...]) -> "Plan | None":
    from dataclasses import replace

    from dsengine.corpus.build.plan import Plan
    from dsengine.corpus.schema import Layout
    from dsengine.corpus.sources import _ssl4eo_zips as zips

    parts = zips.find_parts(args.root.absolute(), args.level, sensors)
    if parts is None:
        return None
    given = parts[0].split >= 0  # by folders train and val
    cut = zips.Cut(tuple(parts), specs, _seasons(args.seasons), 0, given)
    decision = zips.look(cut, choice=args.s2_offset)
    offsets = {f"all {len(parts)} files": decision} if decision else {}
    return Plan(layout=Layout(arrays=specs, patch_size=zips.SIDE, resolution_m=10.0), num_patches=int(cut.counts().sum()),
                cut=replace(cut, shift=decision.offset if decision else 0), seed=args.seed, split="given" if given else "block",
                columns={"location": "str", "season": "uint8"},
                made_by=_made_by(args, "1.1", [f"{part.split} {part.name} {part.num_samples}" for part in parts], offsets))


def _plan_folders(args: argparse.Namespace, sensors: list[str], specs: tuple[Any, ...]) -> "Plan | None":
    from dsengine.corpus.build.plan import Plan
    from dsengine.corpus.schema import Layout
    from dsengine.corpus.sources import _ssl4eo_folders as folders

    found = folders.find_folders(args.root.absolute(), args.level, sensors)
    if found is None:
        return None
    rows = folders.pairs(found, seasons=_seasons(args.seasons))
    cut = folders.Cut(found, tuple(rows), specs, args.s2_offset)
    listing = [f"{pair.location} {pair.s2} {pair.s1}" for pair in rows]
    return Plan(layout=Layout(arrays=specs, patch_size=folders.SIDE, resolution_m=10.0), num_patches=len(rows), cut=cut, seed=args.seed,
                columns={"location": "str", "season": "uint8", "scene_cloud": "float32"}, made_by=_made_by(args, "1.0", listing, folders.look(cut)))


def _seasons(text: str) -> int | None:
    if text == "all":
        return None
    if text == "first":
        return 1
    if not text.isdecimal() or int(text) < 1:
        raise UsageError(f"--seasons {text}: legal: all, first or a number from 1")
    return int(text)


def _made_by(args: argparse.Namespace, release: str, listing: list[str], offsets: "dict[str, Decision]") -> dict[str, Any]:
    from dsengine.corpus.sources._patches import digest

    options = {"level": args.level, "sensors": args.sensors, "seasons": args.seasons, "s2_offset": args.s2_offset}
    return {"command": "corpus build", "source": "ssl4eo_s12", "release": release, "root": str(args.root.absolute()), "options": options,
            "files": {"count": len(listing), "sha256": digest(listing)}, "s2_offset": {name: found._asdict() for name, found in offsets.items()}}
