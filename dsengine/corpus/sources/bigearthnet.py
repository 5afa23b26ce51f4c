"""BigEarthNet 1.0 and 2.0 (reBEN): Sentinel-1 and -2 patches of 120 px with CORINE multi-labels, as published.

Bands keep their 10, 20 and 60 m grids (arrays s2, s2_20m, s2_60m), S1 is dB. Planning lists folders and opens 16 patches; without
split tables, release 1.0 also needs one small JSON file of each S1 patch, which is where the pairs are written.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsengine.errors import UsageError

if TYPE_CHECKING:
    from dsengine.corpus.build.offset import Decision
    from dsengine.corpus.build.plan import Plan
    from dsengine.corpus.schema import LabelSpec
    from dsengine.corpus.sources._bigearthnet_release import Release

_OFFSET_REASON = {"1.0": "release 1.0 was made from products of baseline 02.05 and 02.06, 2017 and 2018",
                  "2.0": "the published band means of release 2.0, about 440 in B02, leave no room for an offset"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `corpus build --source bigearthnet`."""
    parser.add_argument("--root", type=Path, required=True, metavar="DIR", help="holds BigEarthNet-v1.0 or BigEarthNet-S2, BigEarthNet-S1...")
    parser.add_argument("--sensors", default="s2,s1", help="s2,s1 (default), s2 or s1")
    parser.add_argument("--classes", type=int, default=19, choices=(19, 43), help="multi-label nomenclature (default: 19; 43 for release 1.0 only)")
    parser.add_argument("--splits", type=Path, metavar="DIR", help="release 1.0: folder of train.csv, val.csv, test.csv with S2 and S1 patch names")
    parser.add_argument("--exclude", type=Path, nargs="+", default=[], metavar="FILE", help="lists of patches to leave out, such as those with snow or cloud")
    parser.add_argument("--partial", action="store_true", help="build from the patches that are on disk, where tables or pairs name more")
    parser.add_argument("--flagged", action="store_true", help="release 2.0: also the patches with snow, cloud or shadow (their own table)")
    parser.add_argument("--maps", choices=("clc", "19"), help="release 2.0: reference maps as CORINE codes, or as the 19 classes")
    parser.add_argument("--s2-offset", default="auto", metavar="auto|0|-1000", help="what to add to S2 numbers (default: auto)")


def plan(args: argparse.Namespace) -> "Plan":
    """The corpus of a release. Raises UsageError for flags and files that do not fit."""
    from dsengine.corpus.build.offset import Decision
    from dsengine.corpus.build.plan import Plan
    from dsengine.corpus.schema import S2_BANDS, Layout
    from dsengine.corpus.sources import _patches
    from dsengine.corpus.sources._bigearthnet_cut import SIDE, Cut, look
    from dsengine.corpus.sources._bigearthnet_table import EXTRA_DTYPES

    release = _release(args)
    specs = tuple(spec for sensor in release.names for spec in
                  (_patches.s2_specs(S2_BANDS, native=True) if sensor == "s2" else (_patches.s1_spec(),)))
    cut = Cut(release, specs, args.classes, args.maps, 0)
    decision = look(cut, choice=args.s2_offset, stated=Decision(0, _OFFSET_REASON[release.version]))
    layout = Layout(arrays=specs, patch_size=SIDE, resolution_m=10.0, labels=_labels(args))
    return Plan(layout=layout, num_patches=len(release), cut=Cut(release, specs, args.classes, args.maps, decision.offset if decision else 0),
                made_by=_made_by(args, release, decision), seed=args.seed, split="block" if release.split is None else "given",
                columns={"tile": "str", **{name: EXTRA_DTYPES[name] for name in release.columns}})


def _release(args: argparse.Namespace) -> "Release":
    from dsengine.corpus.sources._bigearthnet_release import find_roots, read_v1
    from dsengine.corpus.sources._bigearthnet_table import read_v2

    sensors = args.sensors.split(",")
    if sorted(sensors) not in (["s1", "s2"], ["s1"], ["s2"]):
        raise UsageError(f"--sensors {args.sensors}: legal: s2,s1 or s2 or s1")
    sensors.sort(reverse=True)  # S2 first
    root = args.root.absolute()  # workers may run in another folder
    version, roots = find_roots(root)
    if missing := [sensor for sensor in sensors if sensor not in roots]:
        raise UsageError(f"--root {args.root} has no folder of {missing[0]}; legal: --sensors {','.join(s for s in ('s2', 's1') if s in roots)}")
    wrong = {"1.0": {"--flagged": args.flagged, "--maps": args.maps}, "2.0": {"--splits": args.splits, "--classes 43": args.classes == 43}}[version]
    if flags := [flag for flag, given in wrong.items() if given]:
        raise UsageError(f"{flags[0]}: not for release {version}, which {args.root} holds")
    if args.maps and ("maps" not in roots or "s2" not in sensors):
        raise UsageError(f"--maps {args.maps}: needs a folder Reference_Maps in {args.root} and S2, whose names its files have")
    exclude = frozenset(line.strip() for path in args.exclude for line in _lines(path))
    if version == "1.0":
        return read_v1(roots, sensors=sensors, splits=args.splits, exclude=exclude, partial=args.partial)
    return read_v2(root, roots, sensors=sensors, flagged=args.flagged, exclude=exclude, partial=args.partial)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--exclude {path}: cannot be read ({error})") from error


def _labels(args: argparse.Namespace) -> "tuple[LabelSpec, ...]":
    from dsengine.corpus.schema import LabelSpec
    from dsengine.corpus.sources import _bigearthnet_classes as tables

    names = tables.NAMES_19 if args.classes == 19 else tables.NAMES_43
    made = [LabelSpec(name="land_cover", kind="multilabel", classes=dict(enumerate(names)))]
    if args.maps == "clc":
        made.append(LabelSpec(name="reference_map", kind="classmap", classes=dict(tables.CODES), ignore=tables.MAP_NODATA, dtype="uint16"))
    elif args.maps == "19":
        made.append(LabelSpec(name="reference_map", kind="classmap", classes=dict(enumerate(tables.NAMES_19)), ignore=tables.IGNORE_19))
    return tuple(made)


def _made_by(args: argparse.Namespace, release: "Release", decision: "Decision | None") -> dict[str, Any]:
    from dsengine.corpus.sources._patches import digest

    options = {"sensors": list(release.names), "classes": args.classes, "maps": args.maps, "flagged": args.flagged, "s2_offset": args.s2_offset}
    listing = [repr((names, release.split is not None and int(release.split[row]), release.hot is not None and release.hot[row].tolist()))
               for row, names in enumerate(zip(*release.names.values(), strict=True))]
    return {"command": "corpus build", "source": "bigearthnet", "release": release.version, "root": str(args.root.absolute()), "options": options,
            "patches": {"count": len(release), "sha256": digest(listing)},
            **({"s2_offset": {f"all {len(release)} patches": decision._asdict()}} if decision else {})}
