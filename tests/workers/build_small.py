"""Builds a corpus of 4 patches a shard, as a process that tests may kill.

OUT SHARDS [--workers N] [--dask N] [--pause S] [--fail SHARD] [--die SHARD]
"""

import argparse
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dsengine.corpus.build.plan import Plan, build_corpus
from dsengine.corpus.build.writer import Block
from dsengine.corpus.schema import NODATA, LabelSpec, Layout, standard_layout
from dsengine.errors import RunError

SIZE, PER_SHARD = 8, 4
LABELS = (LabelSpec(name="cover", kind="classmap", classes={0: "none", 1: "some"}), LabelSpec(name="crop", kind="class", classes={0: "a", 1: "b"}))


@dataclass(frozen=True)
class Cut:
    """Pixels drawn from the row alone; pauses so that kills find it at work, and fails, or ends its process, at one shard."""

    pause_s: float = 0.0
    fail: int = -1
    die: int = -1

    def __call__(self, rows: range) -> Block:
        # What comes after the shard that fails takes long, so that it cannot all be done before that shard's worker has started.
        time.sleep(1.5 if 0 <= self.fail < rows.start // PER_SHARD else self.pause_s)
        if rows.start // PER_SHARD == self.fail:
            raise RunError(f"/input/{rows.start}.tif: cannot be read")
        if rows.start // PER_SHARD == self.die:
            os._exit(9)
        drawn = [np.random.default_rng(row) for row in rows]
        arrays = {name: np.stack([rng.integers(-500, 9000, (count, SIZE, SIZE)).astype(np.int16) for rng in drawn])
                  for name, count in (("s2", 12), ("s1", 2))}
        arrays["s1"][:, 0, :2] = NODATA
        index = {"lon": [rng.uniform(-170, 170) for rng in drawn], "lat": [rng.uniform(-60, 70) for rng in drawn],
                 "source": [f"sité {row}" for row in rows], "scene": [f"S{row % 3}" for row in rows], "quarantine": [row % 7 == 3 for row in rows]}
        labels = {"cover": (arrays["s2"][:, 0] > 4000).astype(np.uint8), "crop": np.array([row % 2 for row in rows], np.uint8)}
        return Block(arrays, index, labels, {"s1": [1, 0]}, [f"row {row}: no scene" for row in rows if row % 7 == 3])


def plan(num_shards: int, cut: Cut) -> Plan:
    """The last shard is not full."""
    layout: Layout = standard_layout(SIZE, labels=LABELS)
    layout = Layout(arrays=layout.arrays, patch_size=SIZE, resolution_m=10.0, labels=LABELS, shard_patches=PER_SHARD)
    return Plan(layout=layout, num_patches=num_shards * PER_SHARD - 1, cut=cut, made_by={"command": "test"}, columns={"scene": "str"})


def main() -> int:
    """Build; exit code 1 and the error on standard error when it fails."""
    parser = argparse.ArgumentParser()
    parser.add_argument("out")
    parser.add_argument("shards", type=int)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--dask", type=int, default=0)
    for name, kind in (("pause", float), ("fail", int), ("die", int)):
        parser.add_argument(f"--{name}", type=kind, default=0.0 if name == "pause" else -1)
    args = parser.parse_args()
    what = plan(args.shards, Cut(args.pause, args.fail, args.die))
    report = lambda done, total: print(f"{done}/{total}", flush=True)  # noqa: E731
    try:
        if args.dask:
            from distributed import LocalCluster

            with LocalCluster(n_workers=args.dask, threads_per_worker=1, dashboard_address=None) as cluster:
                build_corpus(args.out, what, scheduler=cluster.scheduler_address, progress=report)
        else:
            build_corpus(Path(args.out) if "://" not in args.out else args.out, what, workers=args.workers, progress=report)
    except RunError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
