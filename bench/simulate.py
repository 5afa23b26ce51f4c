"""What a step, a run and a corpus cost on machines that are not at hand: closed forms, and a simulation of steps with jitter, queues and failures.

`python bench/simulate.py` prints the tables of docs/scaling.md; `python bench/simulate.py --check` measures what this machine can (all-reduce
and training on 1 and 2 gloo ranks) and sets the predictions beside it. Bytes are bytes, times seconds, bandwidths bytes/s.
Sources: Thakur et al. 2005 (ring), Young 1974 and Daly 2006 (checkpoints), Blom 1958 (largest of n normal variables).
"""

import argparse
import sys
from dataclasses import dataclass, replace
from math import exp, expm1, sqrt
from pathlib import Path
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Nodes of `gpus` GPUs. Bandwidths are of one GPU, one way, as reached, not as sold."""

    gpus: int = 8
    inside: float = 400e9  # NVLink
    outside: float = 40e9  # network; 400 Gbit/s a GPU at 80 %
    hop_inside: float = 5e-6
    hop_outside: float = 15e-6
    bus: float = 55e9  # host to device
    disk: float = 20e9  # of a node
    mtbf: float = 16384 * 54 * 86400 / 419  # of one GPU and its share of the node


@dataclass(frozen=True, kw_only=True)
class Job:
    """One GPU's step and one sample."""

    batch: int = 1024  # samples a GPU
    compute: float = 0.1024  # of a step: 10,000 samples/s
    jitter: float = 0.01  # standard deviation of a rank's compute time, as a share of it
    load: float = 0.0  # of a batch by the loader, reading and decoding in the background
    depth: int = 2  # batches that the loader is ahead
    gradients: float = 46e6  # fp32
    hidden: float = 0.9  # share of the all-reduce that lies under backward
    gathered: float = 1024 * 512 * 4  # bytes of embeddings that each rank sends to all others
    checkpoint: float = 0.2  # that training stands still for one, which a thread writes meanwhile
    restart: float = 180.0  # from a failure to the first step after it


class Progress(NamedTuple):
    """How far a simulated run came."""

    seconds: float
    steps: int  # kept
    failures: int


def ring_all_reduce(num_bytes: float, ranks: int, *, bandwidth: float, hop: float = 0.0) -> float:
    """2 (n - 1) rounds, each of 1/n of the bytes."""
    return 2 * (ranks - 1) * (num_bytes / ranks / bandwidth + hop)


def all_gather(bytes_a_rank: float, ranks: int, *, bandwidth: float, hop: float = 0.0) -> float:
    """n - 1 rounds of one rank's bytes."""
    return (ranks - 1) * (bytes_a_rank / bandwidth + hop)


def all_reduce(num_bytes: float, ranks: int, machine: Machine) -> float:
    """In the node down to a share a GPU, these round rings of nodes, and back; one level where one node holds all."""
    local = min(ranks, machine.gpus)
    nodes = -(-ranks // local)
    inside = ring_all_reduce(num_bytes, local, bandwidth=machine.inside, hop=machine.hop_inside)
    return inside + ring_all_reduce(num_bytes / local, nodes, bandwidth=machine.outside, hop=machine.hop_outside)


def gather(bytes_a_rank: float, ranks: int, machine: Machine) -> float:
    """Across nodes first, a GPU of each, then everything inside."""
    local = min(ranks, machine.gpus)
    nodes = -(-ranks // local)
    outside = all_gather(bytes_a_rank, nodes, bandwidth=machine.outside, hop=machine.hop_outside)
    return outside + all_gather(bytes_a_rank * nodes, local, bandwidth=machine.inside, hop=machine.hop_inside)


def largest_normal(count: int) -> float:
    """Expected largest of `count` standard normal variables, within 0.01 beyond 1; 0 for one."""
    return NormalDist().inv_cdf((count - 0.375) / (count + 0.25)) if count > 1 else 0.0


def queue_wait(service: float, *, utilisation: float) -> float:
    """M/D/1: mean wait before service where requests of equal length come at random."""
    return service * utilisation / (2 * (1 - utilisation))


def step_seconds(job: Job, machine: Machine, ranks: int) -> float:
    """Expected step: the slowest rank's compute or its loader, what is not hidden of the all-reduce, and the gather."""
    compute = job.compute * (1 + job.jitter * largest_normal(ranks))
    exchange = (1 - job.hidden) * all_reduce(job.gradients, ranks, machine) + gather(job.gathered, ranks, machine)
    return max(compute + exchange, job.load)


def simulate_steps(job: Job, machine: Machine, ranks: int, *, steps: int, seed: int = 0, load_jitter: float = 0.0) -> np.ndarray:
    """(steps,) seconds: ranks wait for their own loader, which is at most `depth` batches ahead, and then for one another."""
    rng = np.random.default_rng(seed)
    exchange = (1 - job.hidden) * all_reduce(job.gradients, ranks, machine) + gather(job.gathered, ranks, machine)
    made, ends = np.zeros(ranks), np.zeros(steps + 1)
    taken = np.zeros((steps + job.depth, ranks))  # when a place in the queue was free for batch k
    for k in range(steps):
        load = job.load * (1 + load_jitter * rng.standard_normal(ranks)).clip(0.1) if job.load else 0.0
        made = np.maximum(made, taken[k]) + load
        begins = np.maximum(made, ends[k])
        taken[k + job.depth] = begins
        compute = job.compute * (1 + job.jitter * rng.standard_normal(ranks)).clip(0.1)
        ends[k + 1] = (begins + compute).max() + exchange
    return np.diff(ends)


def best_interval(mtbf: float, cost: float) -> float:
    """Young's time between checkpoints."""
    return sqrt(2 * mtbf * cost)


def run_seconds(work: float, *, interval: float, cost: float, restart: float, mtbf: float) -> float:
    """Daly: expected time of `work` seconds of training with failures at random, of which any part of a run may be hit."""
    return mtbf * exp(restart / mtbf) * expm1((interval + cost) / mtbf) * work / interval


def simulate_run(steps: int, *, step: float, every: int, cost: float, restart: float, mtbf: float, seed: int = 0) -> Progress:
    """`steps` of equal length, a checkpoint after each `every`; a failure goes back to the last one and costs `restart`, which may fail too."""
    rng = np.random.default_rng(seed)
    now, done, failures = 0.0, 0, 0
    fails = rng.exponential(mtbf)
    while done < steps:
        block = min(every, steps - done)
        ends = now + block * step + cost
        if ends <= fails:
            now, done = ends, done + block
            continue
        failures += 1
        now = fails
        fails = now + rng.exponential(mtbf)
        while fails < now + restart:
            failures += 1
            now = fails
            fails = now + rng.exponential(mtbf)
        now += restart
    return Progress(now, done, failures)


def scaling_rows(job: Job, machine: Machine, *, ranks: tuple[int, ...] = (1, 8, 16, 64, 256, 1024)) -> list[str]:
    """Weak scaling, in Markdown: closed form and simulation side by side."""
    rows = []
    for count in ranks:
        step, simulated = step_seconds(job, machine, count), float(simulate_steps(job, machine, count, steps=400)[5:].mean())
        reduce, gathered = all_reduce(job.gradients, count, machine), gather(job.gathered, count, machine)
        rows.append(f"| {count:,} | {count * job.batch:,} | {reduce * 1e3:.2f} | {gathered * 1e3:.2f} | {step * 1e3:.1f} | {simulated * 1e3:.1f} "
                    f"| {count * job.batch / step / 1e6:.3f} | {job.compute / step:.1%} |")
    return rows


def failure_rows(job: Job, machine: Machine, *, work: float, ranks: tuple[int, ...] = (8, 64, 256, 1024)) -> list[str]:
    """What failures cost over `work` seconds, at Young's interval and at an hour; the time lost beside pure training."""
    rows = []
    for count in ranks:
        mtbf, step = machine.mtbf / count, step_seconds(job, machine, count)
        young = best_interval(mtbf, job.checkpoint)
        lost = [run_seconds(work, interval=x, cost=job.checkpoint, restart=job.restart, mtbf=mtbf) / work - 1 for x in (young, 3600)]
        every, steps = max(1, round(young / step)), round(work / step)
        seen = [simulate_run(steps, step=step, every=every, cost=job.checkpoint, restart=job.restart, mtbf=mtbf, seed=k) for k in range(50)]
        simulated = np.mean([run.seconds for run in seen]) / (steps * step) - 1
        rows.append(f"| {count:,} | {mtbf / 3600:,.0f} h | {work / mtbf:.2f} | {young / 60:.0f} min | {lost[0]:.2%} | {simulated:.2%} | {lost[1]:.2%} |")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="measure on this machine and compare (a minute)")
    if parser.parse_args().check:
        from simulate_check import check

        check()
        return
    head = ("| GPUs | global batch | all-reduce, ms | gather, ms | step, ms | simulated, ms | million samples/s | of linear |\n" + "| ---: " * 8 + "|")
    networks = {"400 Gbit/s a GPU": Machine(), "100 Gbit/s a node": Machine(outside=1.25e9, hop_outside=30e-6)}
    for name, machine in networks.items():
        print(f"\nResNet18-Attn, {name}\n\n{head}", *scaling_rows(Job(), machine), sep="\n")
    small = replace(Job(), batch=128, compute=0.0135, gathered=128 * 512 * 4)
    print(f"\nThe same, 128 samples a GPU, 400 Gbit/s a GPU\n\n{head}", *scaling_rows(small, Machine()), sep="\n")
    print("\n| GPUs | time between failures | failures a week | Young's interval | lost | simulated | lost, checkpoints hourly |\n" + "| ---: " * 7 + "|",
          *failure_rows(Job(), Machine(), work=7 * 86400), sep="\n")


if __name__ == "__main__":
    main()
