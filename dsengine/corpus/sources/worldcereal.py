"""Source `worldcereal`: WorldCereal time series, as parquet extractions (long or wide) or as a NetCDF cube.

Sentinel-2 and Sentinel-1 go to series/s2 and series/s1, weather to series/temperature and series/precipitation, terrain to the index.
Numbers are uint16 with 65535 for no data: reflectance x 10000, S1 dB = 20 log10(number) - 83, kelvin x 100, millimetres x 100.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from dsengine.errors import UsageError

if TYPE_CHECKING:
    from dsengine.corpus.build.series_plan import SeriesPlan


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `corpus build --source worldcereal`."""
    parser.add_argument("--root", type=Path, required=True, metavar="PATH",
                        help="a .parquet or .nc file, or a folder of .parquet files of one layout (sub-folders too)")
    parser.add_argument("--predictions", type=Path, metavar="FILE.nc",
                        help="class map on the cube's grid; its band `classification` becomes label `predicted` (a model's output, not ground truth)")
    parser.add_argument("--place-m", type=float, default=50.0, metavar="M",
                        help="points closer than this are one place and never in two splits (default: 50)")
    parser.add_argument("--max-gib", type=float, default=8.0, metavar="GIB", help="refuse tables that would need more memory (default: 8)")


def plan(args: argparse.Namespace) -> "SeriesPlan":
    """The corpus that the parsed flags describe. Raises UsageError for what the flags or files get wrong."""
    from dsengine.corpus.sources import _worldcereal_cube, _worldcereal_tables

    if not args.root.exists():
        raise UsageError(f"--root {args.root}: there is no such file or folder")
    if args.root.suffix == ".nc":
        return _worldcereal_cube.plan(args.root, predictions=args.predictions, seed=args.seed, max_gib=args.max_gib)
    if args.predictions:
        raise UsageError("--predictions goes with a .nc cube as --root")
    files = sorted(path for path in args.root.rglob("*.parquet") if path.is_file()) if args.root.is_dir() else [args.root]
    if not files:
        raise UsageError(f"--root {args.root}: no .parquet file in it; legal: a .parquet or .nc file, or a folder of .parquet files")
    return _worldcereal_tables.plan(files, place_m=args.place_m, seed=args.seed, max_gib=args.max_gib)
