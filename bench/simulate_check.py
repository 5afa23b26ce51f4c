"""What this machine can say about simulate.py: gloo's all-reduce between two processes, and training steps alone and on two ranks.

Bandwidth and time a hop are fitted to the smallest and the largest message and predict the ones between. A step on two ranks is predicted from
steps of two processes that run beside each other and share nothing but the machine, plus what the all-reduce of DDP adds.
"""

import json
import os
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from simulate import Job, Machine, all_gather, largest_normal, ring_all_reduce, simulate_steps

import dsengine
from dsengine import dist
from dsengine.data.sample import Batch
from dsengine.engine.optim import make_optimizer
from dsengine.engine.precision import place
from dsengine.engine.settings import TrainConfig
from dsengine.engine.step import Step
from dsengine.nn.norm import set_groups

SIZES = (1 << 12, 1 << 20, 1 << 22, 1 << 24, 46_000_000)
ROWS, SIZE, STEPS, WARM = 8, 48, 30, 4
REPEATS = 15


def check() -> None:
    """Measure, predict, print Markdown."""
    messages = _pair("messages", together=True)[0]
    small, large = messages[0], messages[-1]
    slope = (large - small) / (SIZES[-1] - SIZES[0])  # of 2 (n - 1) (bytes / n / bandwidth + hop) with n = 2
    bandwidth, hop = 1 / slope, max(small - SIZES[0] * slope, 0) / 2
    print(f"gloo, 2 processes: {bandwidth / 1e9:.2f} GB/s, {hop * 1e6:.0f} us a hop (fitted to the first and last row)\n")
    print("| all-reduce of | measured, ms | predicted, ms |\n| ---: | ---: | ---: |")
    for num_bytes, seconds in zip(SIZES, messages):
        predicted = ring_all_reduce(num_bytes, 2, bandwidth=bandwidth, hop=hop)
        print(f"| {num_bytes / 1e6:.3f} MB | {seconds * 1e3:.2f} | {predicted * 1e3:.2f} |")
    one, apart, together = (_pair("steps", together=x) if x is not None else _alone("steps") for x in (None, False, True))
    compute, jitter = np.median(np.concatenate(apart)), _spread(np.concatenate(apart))
    gradients = 4 * sum(p.numel() for p in _method().parameters())
    exchange = ring_all_reduce(gradients, 2, bandwidth=bandwidth, hop=hop)
    embeddings = all_gather(ROWS * 512 * 4, 2, bandwidth=bandwidth, hop=hop)
    machine = Machine(gpus=2, inside=bandwidth, hop_inside=hop)
    job = Job(batch=ROWS, compute=compute, jitter=jitter, gradients=gradients, gathered=ROWS * 512 * 4, hidden=0.0)
    bounds = [compute * (1 + jitter * largest_normal(2)) + embeddings + part * exchange for part in (0.0, 1.0)]
    simulated = [float(np.median(simulate_steps(replace(job, hidden=hidden), machine, 2, steps=2000))) for hidden in (1.0, 0.0)]
    print(f"\nA step of CSF, ResNet18, {ROWS} views of 14 x {SIZE} x {SIZE}, fp32, a thread a rank, gradients {gradients / 1e6:.0f} MB\n")
    print("| | ms |\n| --- | ---: |")
    print(f"| one rank, the machine to itself, measured | {np.median(one[0]) * 1e3:.1f} |")
    print(f"| two processes beside each other, nothing exchanged, measured | {compute * 1e3:.1f} (spread {jitter:.1%}) |")
    print(f"| two ranks, predicted: all-reduce hidden, and not | {bounds[0] * 1e3:.1f}, {bounds[1] * 1e3:.1f} |")
    print(f"| the same, simulated | {simulated[0] * 1e3:.1f}, {simulated[1] * 1e3:.1f} |")
    print(f"| two ranks, measured | {np.median(np.maximum(*together)) * 1e3:.1f} |")


def _spread(times: np.ndarray) -> float:
    """Standard deviation as a share of the median, from the quartiles, which single outliers do not move."""
    low, middle, high = np.quantile(times, (0.25, 0.5, 0.75))
    return float((high - low) / 1.349 / middle)


def _alone(what: str) -> list[np.ndarray]:
    return [_finish(_start(what, {}))]


def _pair(what: str, *, together: bool) -> list[np.ndarray]:
    """Times of two processes at once: as ranks of one group, or each for itself."""
    with socket.socket() as s:
        s.bind(("localhost", 0))
        port = s.getsockname()[1]
    group = {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    started = [_start(what, {**group, "RANK": str(rank)} if together else {}) for rank in range(2)]
    return [_finish(process) for process in started]


def _start(what: str, env: dict[str, str]) -> subprocess.Popen:
    command = [sys.executable, __file__, what]
    return subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1", **env}, stdout=subprocess.PIPE, text=True)


def _finish(process: subprocess.Popen) -> np.ndarray:
    out, _ = process.communicate(timeout=300)
    if process.returncode:
        raise SystemExit(f"simulate_check: a process ended with {process.returncode}")
    return np.array(json.loads(out.splitlines()[-1]))


def _method() -> torch.nn.Module:
    torch.manual_seed(0)
    return dsengine.build_method("csf", encoder=dsengine.build_encoder("resnet18"))


def _messages(world: dist.World) -> list[float]:
    """Median seconds of an all-reduce of each size."""
    found = []
    for num_bytes in SIZES:
        x, times = torch.zeros(num_bytes // 4), []
        for _ in range(REPEATS):
            torch.distributed.barrier(world.group)
            start = time.perf_counter()
            torch.distributed.all_reduce(x, group=world.group)
            times.append(time.perf_counter() - start)
        found.append(float(np.median(times[2:])))
    return found


def _steps(world: dist.World) -> list[float]:
    """Seconds of each training step after the first."""
    method = place(_method(), "fp32", torch.device("cpu"))
    set_groups(method, ROWS, ROWS)
    step = Step(method, make_optimizer(method, TrainConfig()), precision="fp32", world=world)
    batch = Batch(tuple(torch.randn(ROWS, 14, SIZE, SIZE).to(memory_format=torch.channels_last) for _ in range(2)), torch.arange(ROWS), world=world)
    times = [time.perf_counter()]
    for number in range(STEPS):
        step(batch._replace(step=number), lr=1e-4)
        times.append(time.perf_counter())
    return np.diff(times)[WARM:].tolist()


if __name__ == "__main__":
    torch.set_num_threads(1)
    joined = dist.join(torch.device("cpu"))
    print(json.dumps({"messages": _messages, "steps": _steps}[sys.argv[1]](joined)), flush=True)
    if joined.group is not None:
        torch.distributed.barrier(joined.group)  # the first rank keeps the store that the other still asks
    dist.leave(joined)
    os._exit(0)  # gloo's threads may still run when Python has gone
