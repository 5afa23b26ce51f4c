"""Source `sen12ms`: the 180,662 Sentinel-1/2 and land-cover triplets of SEN12MS, 256 px at 10 m, as published.

Below --root lie `ROIs1158_spring/s2_1/ROIs1158_spring_s2_1_p30.tif` and the same with s1 and lc, four seasons in all. S2 is L1C with 13 bands,
S1 is in dB, and the four bands of lc become the labels igbp, lccs_lc, lccs_lu and lccs_sh.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from dsengine.errors import UsageError, nearest

if TYPE_CHECKING:
    from dsengine.corpus.build.plan import Plan

SEASONS = {"spring": "ROIs1158_spring", "summer": "ROIs1868_summer", "fall": "ROIs1970_fall", "winter": "ROIs2017_winter"}
LABELS = ("igbp", "lccs_lc", "lccs_lu", "lccs_sh")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `corpus build --source sen12ms`."""
    parser.add_argument("--root", type=Path, required=True, metavar="DIR", help="folder that holds ROIs1158_spring, ROIs1868_summer, ...")
    parser.add_argument("--seasons", default="all", metavar="NAME,...", help=f"{', '.join(SEASONS)} or all (default: all that are there)")
    parser.add_argument("--labels", default=",".join(LABELS), metavar="NAME,...", help=f"of {', '.join(LABELS)}, or none (default: all four)")
    parser.add_argument("--list", action="append", default=[], metavar="SPLIT=FILE",
                        help="patches or scenes of train, val or test, .txt or .pkl; may be repeated (default: splits by place, scenes stay whole)")
    parser.add_argument("--rest", choices=("leave-out", "train"), default="leave-out", help="patches that are in no --list (default: leave-out)")
    parser.add_argument("--val-share", type=float, default=0.0, metavar="FRACTION",
                        help="with --list: this share of the training scenes, drawn by --seed, becomes val (the set ships no val list; default: 0)")
    parser.add_argument("--skip-incomplete", action="store_true", help="leave out patches that lack a file, and count them, instead of refusing")


def plan(args: argparse.Namespace) -> "Plan":
    """The corpus that the parsed flags describe. Raises UsageError for what the flags or files get wrong."""
    from dsengine.corpus.build.plan import Plan
    from dsengine.corpus.sources import _roi, _sen12ms

    labels = _names(args.labels, LABELS, flag="--labels", none=True)
    if not 0 <= args.val_share < 1:
        raise UsageError(f"--val-share {args.val_share}: legal: 0 up to, but not including, 1")
    if not args.list and (args.val_share or args.rest != "leave-out"):
        raise UsageError("--val-share and --rest say what to do with lists: give --list train=FILE or the like")
    patches, left_out = _sen12ms.select(args.root, _seasons(args), parts=("s1", "lc") if labels else ("s1",), skip_incomplete=args.skip_incomplete)
    splits, options = None, {"seasons": args.seasons, "labels": list(labels)}
    if args.list:
        patches, splits, unlisted = _sen12ms.given(patches, args.list, rest=args.rest, val_share=args.val_share, seed=args.seed)
        left_out |= {"in no list": unlisted}
        options |= {"list": args.list, "rest": args.rest, "val_share": args.val_share}
    layers = _sen12ms.layers(labels)
    sites = _roi.check_first(args.root, patches, ("s2", "s1", "lc") if labels else ("s2", "s1"))
    _sen12ms.check_places(args.root, patches, sites)
    made_by = _roi.made_by("sen12ms", args, options, patches, left_out=left_out, no_offset="acquired in 2016 and 2017, before baseline 04.00")
    return Plan(layout=_roi.layout(layers), num_patches=len(patches), cut=_roi.Cut(args.root, patches, sites, layers, splits), made_by=made_by,
                columns={"scene": "str"}, seed=args.seed, split="block" if splits is None else "given")


def _seasons(args: argparse.Namespace) -> list[str]:
    there = [name for name, folder in SEASONS.items() if (args.root / folder).is_dir()]
    if not there:
        raise UsageError(f"--root {args.root} holds no season of SEN12MS; legal: a folder with {', '.join(SEASONS.values())} in it")
    chosen = there if args.seasons == "all" else _names(args.seasons, SEASONS, flag="--seasons", none=False)
    if missing := [SEASONS[name] for name in chosen if name not in there]:
        raise UsageError(f"--seasons {args.seasons}: {args.root} has no folder {missing[0]}")
    return [SEASONS[name] for name in chosen]


def _names(text: str, legal: "tuple[str, ...] | dict[str, str]", *, flag: str, none: bool) -> list[str]:
    """The names in a comma-separated list, in legal order."""
    if none and text == "none":
        return []
    names = text.split(",")
    for name in names:
        if name not in legal:
            raise UsageError(f"{flag} {text}: {name!r}: {nearest(name, legal)}")
    return [name for name in legal if name in names]
