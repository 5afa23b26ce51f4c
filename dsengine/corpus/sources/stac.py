"""Source `stac`: pairs of Sentinel-2 and Sentinel-1 searched in a STAC archive, and only the patches' windows of their rasters read.

First each row's scenes are decided and written to a journal beside the corpus, then the windows are read. What cannot be read in the end
becomes a patch without data, in quarantine, and a line in the corpus's list of faults.
"""

import argparse
from typing import TYPE_CHECKING

from dsengine.corpus.sources import _places

if TYPE_CHECKING:
    from dsengine.corpus.build.plan import Plan


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `corpus build --source stac`."""
    parser.add_argument("--provider", default="planetary_computer", metavar="NAME|FILE.yaml",
                        help="planetary_computer, earth_search, cdse, or a file (default: planetary_computer)")
    parser.add_argument("--s1-provider", metavar="NAME|FILE.yaml", help="of Sentinel-1 RTC (default: the same)")
    parser.add_argument("--api", metavar="URL", help="search API in place of the provider's")
    parser.add_argument("--s2-collection", metavar="NAME", help="collection in place of the provider's")
    parser.add_argument("--s1-collection", metavar="NAME", help="collection in place of the provider's")
    parser.add_argument("--s2-offset", choices=("auto", "0", "-1000"), default="auto",
                        help="what to add to Sentinel-2 numbers (default: auto, from the item's metadata)")
    parser.add_argument("--resampling", choices=("bilinear", "nearest"), default="bilinear",
                        help="of rasters that are not on the patch's own grid, such as Sentinel-1 of the next zone (default: bilinear)")
    _places.add_arguments(parser)


def plan(args: argparse.Namespace) -> "Plan":
    """Search, or go on with the search, then the plan of what was found. Writes the journal of decisions and nothing else."""
    from dataclasses import asdict

    from dsengine.corpus.build.archive.http import Http
    from dsengine.corpus.build.archive.patches import COLUMNS
    from dsengine.corpus.build.plan import Plan
    from dsengine.corpus.build.stac.cut import Cut
    from dsengine.corpus.build.stac.search import Filters, Finder

    shape = _places.shape(args)
    providers = _providers(args, shape.sensors)
    wanted, num_rows = _places.wanted(args, shape)
    patience = _places.patience(args)
    key = {"source": "stac", **_places.options(args), "s2_offset": args.s2_offset,
           "providers": {sensor: asdict(provider) for sensor, provider in providers.items()}}
    with Http(patience, at_once=args.requests) as http:
        find = Finder(http, providers, Filters(max_cloud=args.max_cloud, orbit=args.orbit, s2_offset=args.s2_offset))
        found = _places.search(args, wanted, num_rows, find, key=key)
    cut = Cut(matches=found, providers=providers, shape=shape, patience=patience, at_once=args.requests, resampling=args.resampling)
    made_by = _places.made_by(found, num_rows, key=key, more={"bands_at": args.bands_at, "resampling": args.resampling})
    return Plan(layout=shape.layout(), num_patches=len(found), cut=cut, made_by=made_by, columns=COLUMNS, seed=args.seed)


def _providers(args: argparse.Namespace, sensors: tuple[str, ...]) -> dict:
    from dataclasses import replace

    from dsengine.corpus.build.stac.providers import load_provider

    found = {}
    for sensor in sensors:
        flag = "--s1-provider" if sensor == "s1" and args.s1_provider else "--provider"
        provider = load_provider(args.s1_provider if flag == "--s1-provider" else args.provider, flag=flag)
        collection = provider.collection(sensor)
        if name := getattr(args, f"{sensor}_collection"):
            collection = replace(collection, collection=name)
        found[sensor] = replace(provider, **{sensor: collection}, **({"api": args.api} if args.api else {}))
    return found
