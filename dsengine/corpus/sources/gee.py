"""Source `gee`: pairs of Sentinel-2 (S2_SR_HARMONIZED) and Sentinel-1 (S1_GRD, dB) patches from Google Earth Engine.

As with source `stac`, first each row's scenes are decided and written to a journal beside the corpus, then their pixels are asked for.
"""

import argparse
from typing import TYPE_CHECKING

from dsengine.corpus.sources import _places
from dsengine.errors import UsageError

if TYPE_CHECKING:
    from dsengine.corpus.build.plan import Plan


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `corpus build --source gee`."""
    parser.add_argument("--project", required=True, metavar="NAME", help="Google Cloud project that is registered for Earth Engine")
    parser.add_argument("--api", metavar="URL", help="REST interface (default: https://earthengine.googleapis.com)")
    _places.add_arguments(parser)


def plan(args: argparse.Namespace) -> "Plan":
    """Search, or go on with the search, then the plan of what was found. Writes the journal of decisions and nothing else."""
    import re

    from dsengine.corpus.build.archive.http import Http
    from dsengine.corpus.build.archive.patches import COLUMNS
    from dsengine.corpus.build.gee.access import Access
    from dsengine.corpus.build.gee.cut import Cut
    from dsengine.corpus.build.gee.images import API, COLLECTIONS, Finder
    from dsengine.corpus.build.plan import Plan

    if not re.fullmatch(r"[a-z0-9][a-z0-9:.\-]*", args.project):
        raise UsageError(f"--project {args.project}: legal: the id of a Google Cloud project")
    shape = _places.shape(args)
    wanted, num_rows = _places.wanted(args, shape)
    patience, api, access = _places.patience(args), args.api or API, Access(args.project)
    key = {"source": "gee", **_places.options(args), "api": api, "collections": {sensor: COLLECTIONS[sensor] for sensor in shape.sensors}}
    with Http(patience, at_once=args.requests, extra="gee") as http:
        found = _places.search(args, wanted, num_rows, Finder(http, access, api=api, max_cloud=args.max_cloud, orbit=args.orbit), key=key)
    cut = Cut(matches=found, shape=shape, patience=patience, at_once=args.requests, api=api, project=args.project)
    made_by = _places.made_by(found, num_rows, key=key, more={"bands_at": args.bands_at})
    return Plan(layout=shape.layout(), num_patches=len(found), cut=cut, made_by=made_by, columns=COLUMNS, seed=args.seed)
