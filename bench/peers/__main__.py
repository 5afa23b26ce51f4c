"""The same pretraining job by ours and by others, each in a process of its own, turn by turn: `python bench/peers [JOB ...]`.

Every round asks each side in turn for a whole training run, its loader alone and its step alone; the side that is first changes from round to
round. A rate leaves out the first steps. Ratios are ours over theirs of the same round: median and 95 % bootstrap interval. First of all each
side says the loss and gradient norm of one batch with the same weights and views: if these differ, nothing is timed.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from peers.job import JOBS  # noqa: E402
from peers.measure import measure  # noqa: E402
from peers.table import machine, table  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(prog="python bench/peers", description="The same job by several libraries.")
    parser.add_argument("jobs", nargs="*", default=list(JOBS), metavar="JOB", help=f"of {', '.join(JOBS)} (default: all)")
    parser.add_argument("--rounds", type=int, default=7, help="interleaved repetitions (default 7)")
    parser.add_argument("--seconds", type=float, default=4.0, help="of training a side and round, after the warm-up (default 4)")
    parser.add_argument("--minutes", type=float, default=10.0, help="of a job, after which no round begins (default 10)")
    parser.add_argument("--only-loss", action="store_true", help="compare losses and stop")
    parser.add_argument("--batch", type=int, help="another batch size than the job's, for a try")
    parser.add_argument("--out", type=Path, metavar="DIR", help="also write DIR/JOB.md")
    args = parser.parse_args()
    if unknown := set(args.jobs) - set(JOBS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; legal: {', '.join(JOBS)}")
    for name in args.jobs:
        job = JOBS[name] if args.batch is None else replace(JOBS[name], batch=args.batch)
        head = machine()
        text = table(job, measure(job, rounds=0 if args.only_loss else args.rounds, seconds=args.seconds, minutes=args.minutes)) + head
        print(text, flush=True)
        if args.out is not None:
            args.out.mkdir(parents=True, exist_ok=True)
            (args.out / f"{name}.md").write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
