"""Source `dfc2020`: the IEEE GRSS Data Fusion Contest 2020 patches with 10 m land-cover labels, 256 px, in either published layout.

Below --root lie `ROIs0000_validation/{s1,s2,lc,dfc}_validation/` or `.../{s1,s2,lc,dfc}_0/`, the same for `ROIs0000_test`, and in some copies
seasonal folders with named scenes (`ROIs0000_autumn/s2_CapeTown/`). S2 is L1C with 13 bands, S1 is in dB. Labels: dfc (10 or 8 classes), and
igbp (17 coarse classes) or lc_dfc, which is igbp in the classes of dfc.
"""

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING

from dsengine.errors import UsageError, nearest

if TYPE_CHECKING:
    from dsengine.corpus.build.plan import Plan

_FOLDER = re.compile(r"ROIs000\d_([a-z]+)")
_FIRST = ("validation", "test")  # a patch that occurs twice stays where the contest put it


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `corpus build --source dfc2020`."""
    parser.add_argument("--root", type=Path, required=True, metavar="DIR", help="folder that holds ROIs0000_validation, ROIs0000_test, ...")
    parser.add_argument("--parts", default="all", metavar="NAME,...", help="validation, test, autumn, ..., or all (default: all that are there)")
    parser.add_argument("--classes", type=int, choices=(10, 8), default=10, help="8: savanna and snow become the ignored value 255 (default: 10)")
    parser.add_argument("--lc", choices=("igbp", "dfc", "none"), default="igbp",
                        help="the coarse land cover as label igbp, or mapped to the classes of dfc as label lc_dfc (default: igbp)")
    parser.add_argument("--validation-as", choices=("val", "train"), default="val",
                        help="with --split given, which keeps validation and test and takes the seasons as train: split of validation (default: val)")
    parser.add_argument("--keep-duplicates", action="store_true",
                        help="do not compare patches, which takes about 1.5 ms each, 12 ms where two may be alike; some may then be there twice")
    parser.add_argument("--skip-incomplete", action="store_true", help="leave out patches that lack a file, and count them, instead of refusing")


def plan(args: argparse.Namespace) -> "Plan":
    """The corpus that the parsed flags describe. Raises UsageError for what the flags or files get wrong."""
    from dsengine.corpus.build.plan import Plan
    from dsengine.corpus.schema import SPLITS
    from dsengine.corpus.sources import _dfc2020, _roi

    if args.validation_as != "val" and args.split != "given":
        raise UsageError("--validation-as has a meaning only with --split given")
    layers = _dfc2020.layers(args.classes, args.lc)
    parts = list(dict.fromkeys(("s2", "s1", *(layer.part for layer in layers))))
    patches, left_out = _dfc2020.select(args.root, _folders(args), parts=parts, skip_incomplete=args.skip_incomplete)
    if not args.keep_duplicates:
        patches, duplicates = _dfc2020.distinct(args.root, patches)
        left_out |= {"same S1 and S2 pixels as an earlier patch": len(duplicates)}
    sites = _roi.check_first(args.root, patches, parts)
    splits = None
    if args.split == "given":
        role = {"validation": args.validation_as, "test": "test"}
        splits = [SPLITS.index(role.get(_part(patch.folder), "train")) for patch in patches]
    elif args.split in (None, "block"):
        _dfc2020.check_places(args.root, patches, sites)
    options = {"parts": args.parts, "classes": args.classes, "lc": args.lc, "validation_as": args.validation_as,
               "keep_duplicates": args.keep_duplicates, "split": args.split}
    made_by = _roi.made_by("dfc2020", args, options, patches, left_out=left_out, no_offset="published in 2020, before baseline 04.00")
    return Plan(layout=_roi.layout(layers), num_patches=len(patches), cut=_roi.Cut(args.root, patches, sites, layers, splits), made_by=made_by,
                columns={"scene": "str"}, seed=args.seed, split="block" if splits is None else "given")


def _folders(args: argparse.Namespace) -> list[str]:
    there = {match[1]: path.name for path in sorted(args.root.glob("ROIs000*")) if path.is_dir() and (match := _FOLDER.fullmatch(path.name))}
    if not there:
        raise UsageError(f"--root {args.root} holds no part of DFC2020; legal: a folder with ROIs0000_validation, ROIs0000_test or the like in it")
    order = [name for name in _FIRST if name in there] + [name for name in there if name not in _FIRST]
    chosen = order if args.parts == "all" else args.parts.split(",")
    for name in chosen:
        if name not in there:
            raise UsageError(f"--parts {args.parts}: {name!r}: {nearest(name, there)}")
    return [there[name] for name in order if name in chosen]


def _part(folder: str) -> str:
    return folder.partition("_")[2]
