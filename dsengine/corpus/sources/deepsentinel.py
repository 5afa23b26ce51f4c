"""Source `deepsentinel`: the published DeepSentinel samples, Earth Engine (GEE) or Descartes Labs (DL), with CORINE and OpenStreetMap labels.

Below --root lies `<dataset>/<idx>/<idx>_GEE_<date>_<lon>_<lat>_S2arr.npz` and so on, 256 px at 10 m. A pixel that is 0 in all bands of S2 has
no data, and so has a pixel of S1 that is exactly 0 or not finite, and one of DL with alpha 0: the files declare no nodata.
"""

import argparse
import random
from pathlib import Path
from typing import TYPE_CHECKING

from dsengine.errors import UsageError

if TYPE_CHECKING:
    from dsengine.corpus.build.plan import Plan
    from dsengine.corpus.sources._deepsentinel_labels import Features, LandCover
    from dsengine.corpus.sources._deepsentinel_tree import Record

_SEED, _ENDS = 5, (0.7, 0.9)  # of the split with which the labelled set was used: shuffled, 0.7 train, 0.2 val, 0.1 test


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `corpus build --source deepsentinel`."""
    parser.add_argument("--root", type=Path, required=True, metavar="DIR", help="folder that holds DEMO_unlabelled or the like")
    parser.add_argument("--dataset", metavar="NAME", help="folder below --root (default: the only one)")
    parser.add_argument("--provider", choices=("GEE", "DL"), help="whose imagery (default: the only one there)")
    parser.add_argument("--sensors", default="s2,s1", help="s2,s1 (default), s2 or s1")
    parser.add_argument("--dl-s1-range", metavar="LO,HI", help="dB of the numbers 0 and 255 of DL's S1; nobody has published them")
    parser.add_argument("--cirrus", action="store_true", help="keep band B10, which only DL has")
    parser.add_argument("--clc", metavar="0|1|2|3|groups|index|none",
                        help="label corine: level, first digits as seven groups, or index 0..47 (default: 0 where there is land cover)")
    parser.add_argument("--osm", metavar="default|FILE|none", default="none",
                        help="label osm by tag groups, those of labels/osm.py or of a YAML file (default: none)")
    parser.add_argument("--pts", type=Path, metavar="FILE", help="side table pts/<dataset>.parquet: scenes and times that the samples do not name")
    parser.add_argument("--s2-offset", default="auto", metavar="auto|0|-1000", help="what to add to S2 numbers (default: auto)")
    parser.add_argument("--skip-incomplete", action="store_true", help="leave out samples that lack a file, and count them, instead of refusing")


def plan(args: argparse.Namespace) -> "Plan":
    """The corpus that the parsed flags describe; `--split given` is the split of the original. Raises UsageError for what is not legal."""
    from dataclasses import replace

    from dsengine.corpus.build.plan import Plan
    from dsengine.corpus.schema import Layout
    from dsengine.corpus.sources import _deepsentinel, _patches

    sensors = _sensors(args)
    provider, folder, records, left_out, land_cover, features = _select(args, sensors)
    s1_range = _s1_range(args, provider, sensors)
    if args.cirrus and (provider != "DL" or "s2" not in sensors):
        raise UsageError("--cirrus: only S2 of DL has band B10")
    sample = _deepsentinel.open_samples(folder, provider, records, specs=_deepsentinel.specs(provider, sensors, cirrus=args.cirrus),
                                        s1_range=s1_range, pts=args.pts)
    sample = replace(sample, land_cover=land_cover, features=features)
    seen = _deepsentinel.look(sample, records, _patches.sampled(len(records)))
    decision = _patches.released_offset(args.s2_offset, _deepsentinel.stated_offset(records), seen) if seen else None
    sample = replace(sample, s2_shift=decision.offset if decision else 0)
    splits = _original_split(records) if args.split == "given" else None
    options = {name: getattr(args, name) for name in ("sensors", "dl_s1_range", "cirrus", "clc", "osm", "skip_incomplete")}
    made_by = {"command": "corpus build", "source": "deepsentinel", "root": str(args.root), "dataset": folder.name, "provider": provider,
               "options": {**options, "pts": str(args.pts) if args.pts else None}, "left_out": {"a file is missing": left_out},
               "records": _patches.digest(str(record) for record in records),
               "s2_offset": {"all": decision._asdict()} if decision else {}}
    labels = tuple(label.spec for label in (land_cover, features) if label)
    return Plan(layout=Layout(arrays=sample.specs, patch_size=sample.size, resolution_m=10.0, labels=labels), num_patches=len(records),
                cut=_deepsentinel.Cut(sample, records, splits), made_by=made_by, columns=_deepsentinel.COLUMNS, seed=args.seed,
                split="block" if splits is None else "given")


def _select(args: argparse.Namespace, sensors: list[str]) -> "tuple[str, Path, list[Record], int, LandCover | None, Features | None]":
    """(provider, folder, records, how many samples were left out, labels)."""
    from dsengine.corpus.sources import _deepsentinel_labels as labels
    from dsengine.corpus.sources import _deepsentinel_tree as tree

    scanned = tree.scan(tree.find_dataset(args.root, args.dataset))
    provider = scanned.provider(args.provider)
    clc = args.clc or ("0" if scanned.has("LC") else "none")
    land_cover = None if clc == "none" else labels.land_cover(clc)
    features = None if args.osm == "none" else labels.features(args.osm)
    wanted = [*(f"{sensor.upper()}arr.npz" for sensor in sensors), *(["meta.json"] if provider == "GEE" else []),
              *([tree.LAND_COVER] if land_cover else []), *([tree.FEATURES] if features else [])]
    records, missing = scanned.records(provider, wanted)
    if missing and not args.skip_incomplete or not records:
        raise UsageError(f"{len(missing)} of {len(missing) + len(records)} samples of {scanned.folder} lack a file; the first is "
                         f"{next(iter(missing.values()))}. Give --skip-incomplete to leave them out")
    return provider, scanned.folder, records, len(missing), land_cover, features


def _sensors(args: argparse.Namespace) -> list[str]:
    sensors = args.sensors.split(",")
    if sorted(sensors) not in (["s1", "s2"], ["s1"], ["s2"]):
        raise UsageError(f"--sensors {args.sensors}: legal: s2,s1 or s2 or s1")
    return sorted(sensors, reverse=True)


def _s1_range(args: argparse.Namespace, provider: str, sensors: list[str]) -> tuple[float, float] | None:
    if provider != "DL" or "s1" not in sensors:
        if args.dl_s1_range:
            raise UsageError("--dl-s1-range is for S1 of DL; S1 of GEE is in dB")
        return None
    if not args.dl_s1_range:
        raise UsageError("S1 of DL is in numbers 0..255 whose dB nobody has published: give --sensors s2, or --dl-s1-range LO,HI "
                         "with the dB of 0 and of 255")
    try:
        low, high = (float(part) for part in args.dl_s1_range.split(","))
    except ValueError:
        low = high = 0.0
    if not -100 <= low < high <= 100:
        raise UsageError(f"--dl-s1-range {args.dl_s1_range}: legal: LO,HI in dB with LO below HI")
    return low, high


def _original_split(records: "list[Record]") -> list[int]:
    """Position in SPLITS of each record: by idx, shuffled by Python's generator with seed 5, then 0.7, 0.2 and 0.1 of them."""
    order = list(range(len(records)))
    random.Random(_SEED).shuffle(order)
    ends = [int(share * len(order)) for share in _ENDS]
    splits = [0] * len(order)
    for position, row in enumerate(order):
        splits[row] = sum(position >= end for end in ends)
    return splits
