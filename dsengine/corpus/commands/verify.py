"""Check every chunk, the index, the labels and the statistics, and set damaged patches aside."""

import argparse
from pathlib import Path

from dsengine.corpus.commands._terminal import console, progress_bar


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `corpus verify`."""
    parser.add_argument("path", type=Path, metavar="PATH")
    change = parser.add_mutually_exclusive_group()
    change.add_argument("--quarantine", action="store_true", help="leave damaged patches out of every split")
    change.add_argument("--release", action="store_true", help="let patches back in that were set aside as damaged and are whole again")
    change.add_argument("--seal", action="store_true", help="accept metadata and index as they are now: write the manifest anew")


def run(args: argparse.Namespace) -> int:
    """`corpus verify PATH`: exit code 1 when anything is damaged that is not in quarantine."""
    from dsengine.corpus.quarantine import left_over, marks, release, set_aside
    from dsengine.corpus.report import damage_table, verdict
    from dsengine.corpus.seal import seal
    from dsengine.corpus.storage import located
    from dsengine.corpus.verify import verify_path

    path = located(args.path)
    if args.seal:
        seal(path)
    with progress_bar("patches", None) as advance:
        result = verify_path(path, progress=advance)
    if result.problems:
        console().print(damage_table(result.problems, path))
    if result.corpus is None:
        console().print(f"{path}: cannot be opened, so its patches were not checked; {len(result.problems)} problems", markup=False, soft_wrap=True)
        return 1
    before = marks(result.corpus)
    after = (set_aside if args.quarantine else release)(result.corpus, result.problems) if args.quarantine or args.release else before
    rest = left_over(result.problems, after)
    console().print(verdict(path, result, before=before, after=after, rest=rest), markup=False, soft_wrap=True)
    return 1 if rest else 0
