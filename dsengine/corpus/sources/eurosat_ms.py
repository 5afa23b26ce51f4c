"""EuroSAT multispectral: 27,000 Sentinel-2 L1C patches of 64 px, 13 bands, ten scene classes, as published.

B8A is the last band of each file; the corpus has it after B08. Planning lists the files and opens 16 of them.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dsengine.corpus.build.plan import Plan


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `corpus build --source eurosat_ms`."""
    parser.add_argument("--root", type=Path, required=True, metavar="DIR", help="holds the class folders, at any depth the archives use")
    parser.add_argument("--splits", type=Path, metavar="DIR[/PREFIX]",
                        help="official lists eurosat-{train,val,test}.txt, or DIR/eurosat-spatial (default: split by place)")
    parser.add_argument("--partial", action="store_true", help="build from the files that are both listed and on disk")
    parser.add_argument("--s2-offset", default="auto", metavar="auto|0|-1000", help="what to add to the numbers (default: auto, by pixels)")


def plan(args: argparse.Namespace) -> "Plan":
    """The corpus of the images below --root. Raises UsageError for unknown classes, incomplete lists, damaged files."""
    from dsengine.corpus.build.plan import Plan
    from dsengine.corpus.schema import LabelSpec, Layout
    from dsengine.corpus.sources import _eurosat_ms as eurosat
    from dsengine.corpus.sources._patches import L1C_BANDS, digest, s2_specs

    files, split = eurosat.find(args.root.absolute()), None
    if args.splits:
        files, split = eurosat.read_splits(args.splits, files, partial=args.partial)
    decision = eurosat.decide_offset(files, args.s2_offset)
    names = [str(path) for path in files]
    label = LabelSpec(name="scene", kind="class", classes=dict(enumerate(eurosat.CLASSES)))
    layout = Layout(arrays=s2_specs(L1C_BANDS, native=False, level="l1c"), patch_size=eurosat.SIDE, resolution_m=10.0, labels=(label,))
    made_by = {"command": "corpus build", "source": "eurosat_ms", "root": str(args.root.absolute()), "splits": str(args.splits) if args.splits else None,
               "files": {"count": len(files), "sha256": digest(names if split is None else map(repr, zip(names, split.tolist(), strict=True)))}, "s2_offset": {f"all {len(files)} files": decision._asdict()}}
    return Plan(layout=layout, num_patches=len(files), cut=eurosat.Cut(tuple(names), split, decision.offset), made_by=made_by, seed=args.seed,
                split="block" if split is None else "given")
