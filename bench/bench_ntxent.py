"""NT-Xent of two views on CPU, forward and backward, against the usual form with every similarity in memory, eager and compiled,
and against lightly's loss where it is installed.

Run `pytest bench/bench_ntxent.py --benchmark-enable -s`. Both sides use torch's threads (OMP_NUM_THREADS) and the same allocator:
first glibc's own settings, then big blocks kept by the process (mallopt), which favours the materialised form.
The side of a tile and the triangle of tiles in kernels/ntxent/reference.py move the numbers. Run it on an idle machine, or with
one thread: with neighbours torch's threads wait for each other, which the many small operations of a tile feel most.
"""

import ctypes
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from paired import paired_ratio
from peers import lightly_nt_xent
from torch import Tensor

from dsengine.kernels import nt_xent

ROWS, FEATURES, TEMPERATURE = 16384, 128, 0.1  # two views of 8 ranks' 1,024 samples
MEMORY = """
import sys, torch
from dsengine.kernels import nt_xent
def memory(field):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(field)) / 1024
nt_xent(torch.randn(2, 600, 128, requires_grad=True)).backward()
z = torch.randn(2, int(sys.argv[1]) // 2, 128, requires_grad=True)
before = memory("VmRSS")
nt_xent(z).backward()
print(memory("VmHWM") - before)
"""


def keep_big_blocks() -> None:
    """glibc: no mmap for big blocks, no handing back of the heap's end (MALLOC_MMAP_MAX_=0, MALLOC_TRIM_THRESHOLD_ large)."""
    libc = ctypes.CDLL(None)
    assert libc.mallopt(-4, 0) == 1 and libc.mallopt(-1, 2**31 - 1) == 1


def materialised(z: Tensor) -> Tensor:
    """(2, B, D) -> loss: cross entropy over the (2B, 2B) similarities."""
    x = F.normalize(z.flatten(0, 1), dim=1)
    s = x @ x.T / TEMPERATURE
    s.fill_diagonal_(-torch.inf)
    rows = torch.arange(len(x))
    return F.cross_entropy(s, rows.roll(len(x) // 2))


def lightly() -> Callable[[Tensor], Tensor]:
    """lightly's NTXentLoss, or a skip."""
    loss = lightly_nt_xent(TEMPERATURE)
    return lambda z: loss(z[0], z[1])


BASELINES = {"eager": lambda: materialised, "compiled": lambda: torch.compile(materialised), "lightly": lightly}


# The allocator's setting cannot be taken back, so it comes last: it is the slowest of the two to change.
@pytest.mark.parametrize("baseline", BASELINES)
@pytest.mark.parametrize("allocator", ["default", "keeps big blocks"])
def test_nt_xent_against_the_materialised_form(baseline: str, allocator: str, benchmark: Callable) -> None:
    theirs = BASELINES[baseline]()
    if allocator == "keeps big blocks":
        keep_big_blocks()
    z = torch.randn(2, ROWS // 2, FEATURES, requires_grad=True)

    def step(loss_of: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        loss = loss_of(z)
        return loss.detach(), torch.autograd.grad(loss, z)[0]

    for mine, other in zip(step(lambda z: nt_xent(z, TEMPERATURE)), step(theirs), strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-5 * other.abs().max().item())
    ratio = paired_ratio(lambda: step(theirs), lambda: step(lambda z: nt_xent(z, TEMPERATURE)), pairs=7)
    benchmark.pedantic(lambda: step(lambda z: nt_xent(z, TEMPERATURE)), rounds=5, warmup_rounds=1)
    seconds = "" if benchmark.stats is None else f", ours {benchmark.stats.stats.median:.2f} s"
    print(f"\n{baseline}, allocator {allocator}: {ratio} x faster{seconds} (N {ROWS}, D {FEATURES}, {torch.get_num_threads()} threads)")


@pytest.mark.parametrize("rows, limit_mb", [(16384, 100), (65536, 600)])
def test_memory_above_the_inputs(rows: int, limit_mb: float) -> None:
    """Not a timing: forward and backward in a fresh process, peak resident size above that before the call."""
    done = subprocess.run([sys.executable, "-P", "-c", MEMORY, str(rows)], capture_output=True, text=True, check=True)
    print(f"\nN {rows}, D 128: {float(done.stdout):.0f} MB above the inputs")
    assert float(done.stdout) < limit_mb
