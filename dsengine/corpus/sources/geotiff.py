"""Source `geotiff`: co-registered rasters, one or several files a site, cut into patches through rasterio windows.

S2 is surface reflectance in digital numbers, S1 is backscatter in dB. Nothing is resampled: all files of a site share one grid.
"""

import argparse
from typing import TYPE_CHECKING

from dsengine.errors import UsageError

if TYPE_CHECKING:
    from dsengine.corpus.build.plan import Plan

LABEL_GLOBS = True  # this source takes `--label NAME=GLOB`: class maps on the grids of its sites


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `corpus build --source geotiff`."""
    parser.add_argument("--size", type=int, default=128, help="pixels a side (default: 128)")
    parser.add_argument("--stride", type=int, help="pixels between windows (default: the size)")
    parser.add_argument("--s2", nargs="+", metavar="GLOB", help="Sentinel-2 L2A files, 12 bands")
    parser.add_argument("--s1", nargs="+", metavar="GLOB", help="Sentinel-1 files, VV and VH in dB")
    parser.add_argument("--s2-offset", default="auto", metavar="auto|0|-1000|FILE",
                       help="what to add to S2 numbers to take out the offset of baseline 04.00; FILE is a table file stem -> offset (default: auto)")
    for flag in ("--s2-bands", "--s1-bands"):
        parser.add_argument(flag, metavar="NAME,NAME,...", help="bands of each file in file order, where the files do not name them" + (
            "; one alone, such as VV, makes a corpus of that one" if flag == "--s1-bands" else ""))
    parser.add_argument("--s2-scale", type=float, help="reflectance per number (default: declared by the file, else 0.0001)")
    parser.add_argument("--s1-scale", type=float, help="dB per number (default: declared by the file, else 1)")
    parser.add_argument("--s1-offset", type=float, help="dB to add after scaling (default: declared by the file, else 0)")
    parser.add_argument("--s2-nodata", metavar="NUMBER|none", help="S2 number of pixels without data (default: declared by the file, else 0)")
    parser.add_argument("--s1-nodata", metavar="NUMBER|none", help="S1 number of pixels without data besides NaN (default: declared by the file)")


def plan(args: argparse.Namespace) -> "Plan":
    """The corpus that the parsed flags describe. Raises UsageError for what the flags or files get wrong."""
    from dsengine.corpus.build import pairing, sampling
    from dsengine.corpus.schema import S1_BANDS, S2_BANDS

    if not (args.s2 or args.s1):
        raise UsageError("--source geotiff needs --s2 GLOB, --s1 GLOB or both")
    parts, s1_bands = {}, _polarisations(args.s1_bands, S1_BANDS)
    for sensor, bands in (("s2", S2_BANDS), ("s1", s1_bands)):
        if getattr(args, sensor):
            named = getattr(args, f"{sensor}_bands")
            names = [pairing.canonical_band(name) for name in named.split(",")] if named else None
            parts[sensor] = pairing.layers(getattr(args, sensor), bands, what=f"--{sensor}", names=names)
    for text in args.label:
        name, _, pattern = text.partition("=")
        parts[f"label {name}"] = pairing.layers([pattern], ("class",), what=f"--label {name}")
    sites = pairing.pair(parts)
    options = sampling.Options(
        size=args.size, stride=args.size if args.stride is None else args.stride, seed=args.seed, s2_offset=args.s2_offset, s2_scale=args.s2_scale,
        s1_scale=args.s1_scale, s1_offset=args.s1_offset, s2_nodata=_nodata(args.s2_nodata, "--s2-nodata"),
        s1_nodata=_nodata(args.s1_nodata, "--s1-nodata"), s1_bands=s1_bands)
    return sampling.plan_sites(sites, options)


def _polarisations(named: str | None, bands: tuple[str, ...]) -> tuple[str, ...]:
    """Both, or the one that --s1-bands names alone: many products have only one."""
    names = {name.strip().upper() for name in named.split(",")} if named else set()
    return tuple(band for band in bands if band in names) if names and names < set(bands) else bands


def _nodata(text: str | None, flag: str) -> float | str | None:
    if text is None or text == "none":
        return text
    try:
        return float(text)
    except ValueError:
        raise UsageError(f"{flag} {text}: legal: a number or none") from None
