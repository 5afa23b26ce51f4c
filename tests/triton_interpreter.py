"""Runs Triton kernels on CPU tensors under the interpreter, for tests/test_triton_*.py.

Whether a kernel is interpreted is decided when its file is imported, so such a test file runs twice: in pytest's own
process on "cuda" (skipped without a GPU), and on "cpu" in a child process that `rerun_interpreted` starts.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"

_needs_device = pytest.mark.skipif(not INTERPRETED and not torch.cuda.is_available(),
                                   reason="no GPU; the same test runs interpreted in a child process")
only_here = pytest.mark.skipif(INTERPRETED, reason="not under the interpreter")


def needs_kernel(test: Callable) -> Callable:
    """Marks a test that runs on DEVICE, which is then part of its name; its file has the fixture `use_kernel`."""
    return pytest.mark.usefixtures("use_kernel")(_needs_device(test))


def rerun_interpreted(file: str, timeout_s: int = 300) -> None:
    """Runs the tests of `file` in a child under the interpreter; fails with the child's report."""
    command = [sys.executable, "-P", "-m", "pytest", "-q", "-p", "no:cacheprovider", file]
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout_s)
    assert done.returncode == 0 and " passed" in done.stdout, f"{done.stdout[-8000:]}\n{done.stderr[-2000:]}"


@contextmanager
def poisoned() -> Iterator[None]:
    """Memory from torch.empty and its kin is NaN: what a kernel forgets to write fails the comparison."""
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.utils.deterministic.fill_uninitialized_memory and torch.empty(2).isnan().all()
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def error(got: Tensor, exact: Tensor) -> float:
    """Largest deviation, in units of the largest exact value (or 1, where all are smaller than 1e-30)."""
    assert got.shape == exact.shape, f"{tuple(got.shape)} instead of {tuple(exact.shape)}"
    scale = exact.abs().max().item()
    gap = (got.double().cpu() - exact.double().cpu()).abs().max().item()
    return gap / (scale if scale > 1e-30 else 1.0)


def assert_as_good_as_stock(name: str, got: Tensor, stock: Tensor, exact: Tensor, *, times: float, floor: float) -> None:
    """The error is at most `times` that of stock torch in the same dtype, plus `floor`; NaN fails.

    Where stock torch itself fails (an epsilon that fp16 rounds to 0), the floor alone is allowed.
    """
    ours, theirs = error(got, exact), error(stock, exact) if stock.isfinite().all() else 0.0
    assert ours <= times * theirs + floor, f"{name}: error {ours:.2e}, stock {theirs:.2e}, allowed {times} x that + {floor:.0e}"


