"""`dsengine study FILE.yaml`: encoders x methods x seeds x evaluations, and the tables that come of them."""

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING

from dsengine.errors import UsageError

if TYPE_CHECKING:
    from dsengine.study.processes import Slot
    from dsengine.study.spec import Study


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `study`."""
    parser = subparsers.add_parser("study", help="many runs and evaluations from one file, and their tables", description=(
        "Train and judge encoders x methods x seeds as a YAML file says. What is done is not done again: the same command goes on with a stopped "
        "study, and with one whose file has grown. Exit code 1 when a cell failed."))
    parser.add_argument("file", metavar="FILE.yaml", help="a study, or the name of one that ships: deepsentinel, jain, patnala")
    parser.add_argument("--out", metavar="DIR", help="cells, tables, figures, study.json (default: ./studies/NAME)")
    parser.add_argument("--corpus", metavar="PATH", help="corpus of the study, over the file's")
    parser.add_argument("--variant", metavar="NAME", help="one of the file's variants, such as reduced")
    parser.add_argument("--gpus", type=int, metavar="N", help="GPUs, a cell each (default: all; 0 is CPU)")
    parser.add_argument("--procs", type=int, metavar="N", help="cells at once on CPU (default: 1)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="anything in the file by its dotted key, e.g. seeds=[0,1,2]")
    parser.add_argument("--dry-run", action="store_true", help="print the cells and what they will cost, and stop")
    parser.add_argument("--rate", type=float, metavar="SAMPLES/S", help="with --dry-run: of the first training, instead of measuring here")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """`study`."""
    from dsengine.study import spec

    if args.rate is not None and not (args.dry_run and args.rate > 0):
        raise UsageError(f"--rate {args.rate:g}: legal: above 0, with --dry-run")
    given = [*args.set, *([f"corpus={args.corpus}"] if args.corpus is not None else [])]
    study = spec.load(args.file, variant=args.variant, settings=given)
    slots = _slots(args)
    out = Path(args.out or Path("studies") / "-".join([Path(args.file).stem, *([args.variant] if args.variant else [])]))
    if args.dry_run:
        return _dry_run(study, out, slots, rate=args.rate)
    return carry_out(study, out, slots)


def carry_out(study: "Study", out: Path, slots: "list[Slot]") -> int:
    """The exit code: 0, or 1 when a cell failed. Raises UsageError before anything begins, RunError for a disk that refuses."""
    from dsengine.study import cells, outputs, state
    from dsengine.study.progress import Progress, duration
    from dsengine.study.runner import Runner

    planned, started = cells.plan(study), time.monotonic()
    with state.only_one(out), Progress(num_slots=len(slots)) as progress:
        runner = Runner(out, planned, slots, progress)
        try:
            runner.run()
        finally:
            tables = outputs.write(study, planned, runner.outcomes, out, wall_s=time.monotonic() - started)
    failed = sum(outcome.status != state.DONE for outcome in runner.outcomes.values())
    print(tables.read_text())
    print(f"{len(planned) - failed} of {len(planned)} cells done, {failed} failed, {duration(time.monotonic() - started)}\n"
          f"tables   {out / 'tables'}\nfigures  {out / 'figures'}\nlogs     {out / 'logs'}")
    return 1 if failed else 0


def _slots(args: argparse.Namespace) -> "list[Slot]":
    from dsengine.engine.plan import choose_device
    from dsengine.study.runner import slots

    if args.procs is not None and args.procs < 1:
        raise UsageError(f"--procs {args.procs}: must be at least 1")
    if args.procs is not None and args.gpus:
        raise UsageError(f"--procs {args.procs} is of cells on CPU, --gpus {args.gpus} of cells on GPUs; legal: one of them")
    _, gpus = choose_device(0 if args.procs is not None else args.gpus)
    return slots(gpus=gpus, procs=args.procs or 1)


def _dry_run(study: "Study", out: Path, slots: "list[Slot]", *, rate: float | None) -> int:
    from dsengine.study import cells, cost

    print(cost.report(study, cells.plan(study), out, num_slots=len(slots), rate=rate, device="cpu" if slots[0].gpu is None else "cuda"))
    return 0
