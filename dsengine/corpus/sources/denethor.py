"""Source `denethor`: DENETHOR tiles (Sentinel-2 and daily Planet Fusion, crop fields of Brandenburg), as the sets that paper 2 draws.

Both published layouts are read: the original one (PlanetL3H, s2_train.zip, crops_train_2018.geojson) and that of Radiant MLHub.
--set points: pixels of one date, each Sentinel-2 pixel with its 3 x 3 Planet pixels; times: their series; crops: series with labels.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from dsengine.errors import UsageError

if TYPE_CHECKING:
    from dsengine.corpus.build.series_plan import SeriesPlan

PIXELS = {"points": 100_000, "times": 150_000}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `corpus build --source denethor`."""
    parser.add_argument("--root", type=Path, required=True, metavar="DIR", help="folder with both tiles or one, as published")
    parser.add_argument("--set", choices=("points", "times", "crops"), required=True, help="what to draw")
    parser.add_argument("--tile", choices=("train", "test"), default="train", help="33N_18E_242N of 2018 or 33N_17E_243N of 2019 (default: train)")
    parser.add_argument("--pixels", type=int, metavar="N",
                        help=f"points: a date (default: {PIXELS['points']}); times: in all (default: {PIXELS['times']})")
    parser.add_argument("--per-class", metavar="TRAIN,VAL", default="5000,1000", help="pixels a class of --set crops (default: 5000,1000)")
    parser.add_argument("--with-planet", action="store_true", help="add the Planet series to --set crops")
    parser.add_argument("--touched", choices=("all", "centre"), default="all",
                        help="a pixel is of a field when it touches it, or when its centre lies in it (default: all, as DENETHOR's own readers)")
    parser.add_argument("--max-clp", type=float, default=40, metavar="CLP",
                        help="a Sentinel-2 step is valid below this cloud probability, 0-255 (default: 40)")
    parser.add_argument("--s2-dates", type=Path, metavar="FILE", help="acquisition times, one ISO date a line, where the tile has no timestamp.pkl")
    parser.add_argument("--s2-scale", default="auto", metavar="auto|1|0.0001", help="reflectance per Sentinel-2 number (default: auto)")
    parser.add_argument("--planet-scale", default="auto", metavar="auto|1|0.0001", help="reflectance per Planet number (default: auto)")
    parser.add_argument("--allow-unpaired", action="store_true", help="go on where Sentinel-2 and Planet bands do not correlate")
    parser.add_argument("--scratch", type=Path, metavar="DIR", help="where zipped arrays are unpacked (default: OUT.scratch, removed at the end)")


def plan(args: argparse.Namespace) -> "SeriesPlan":
    """The corpus that the parsed flags describe. Raises UsageError for what the flags or files get wrong."""
    from dsengine.corpus.sources import _denethor_plan

    if not args.root.is_dir():
        raise UsageError(f"--root {args.root}: there is no such folder")
    if args.set == "crops" and args.pixels is not None:
        raise UsageError("--pixels goes with --set points and times; legal with crops: --per-class TRAIN,VAL")
    pixels = PIXELS.get(args.set, 0) if args.pixels is None else args.pixels
    if args.set != "crops" and pixels < 1:
        raise UsageError(f"--pixels {pixels}: legal: at least 1")
    if args.set != "crops" and args.tile == "test":
        raise UsageError("--tile test goes with --set crops; legal: the train tile, on whose pretraining fields points and times are drawn")
    return _denethor_plan.make(args, pixels=pixels, per_class=_per_class(args.per_class))


def _per_class(text: str) -> tuple[int, int]:
    try:
        train, val = (int(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"--per-class {text}: legal: two numbers such as 5000,1000") from None
    if train < 1 or val < 1:
        raise UsageError(f"--per-class {text}: legal: at least 1 each")
    return train, val
