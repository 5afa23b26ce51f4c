"""Source `planet_sentinel`: the published HDF5 of paired Sentinel-2 and Planet pixels (DENETHOR, after Patnala et al.), as they are.

--set points reads pretraining_point2.h5, times pretraining_time2.h5, crops train_ and val_sentinel_ts.hdf5 or, with --tile test,
validation_train_ and validation_val_sentinel_ts.hdf5. Pairs are tested by band correlation, because the point file may be scrambled.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from dsengine.errors import UsageError

if TYPE_CHECKING:
    from dsengine.corpus.build.series_plan import SeriesPlan


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `corpus build --source planet_sentinel`."""
    parser.add_argument("--root", type=Path, required=True, metavar="DIR", help="folder with the HDF5 files")
    parser.add_argument("--set", choices=("points", "times", "crops"), required=True, help="which of the files")
    parser.add_argument("--tile", choices=("train", "test"), default="train", help="of --set crops (default: train)")
    parser.add_argument("--allow-scrambled", action="store_true", help="take pairs that fail the test; the result stays recorded in the corpus")
    parser.add_argument("--s2-scale", default="auto", metavar="auto|1|0.0001", help="reflectance per Sentinel-2 number (default: auto)")
    parser.add_argument("--planet-scale", default="auto", metavar="auto|1|0.0001", help="reflectance per Planet number (default: auto)")


def plan(args: argparse.Namespace) -> "SeriesPlan":
    """The corpus that the parsed flags describe. Raises UsageError for what the flags or files get wrong."""
    from dsengine.corpus.sources import _planet_sentinel

    if not args.root.is_dir():
        raise UsageError(f"--root {args.root}: there is no such folder")
    scales = {"s2": args.s2_scale, "planet": args.planet_scale}
    if args.set == "crops":
        return _planet_sentinel.plan_crops(args.root, tile=args.tile, scales=scales, seed=args.seed)
    return _planet_sentinel.plan_pairs(args.root, which=args.set, scales=scales, allow_scrambled=args.allow_scrambled, seed=args.seed)
