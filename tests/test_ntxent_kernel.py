"""The Triton kernels of NT-Xent: run by the interpreter, compiled ahead of time, and on a GPU where there is one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dsengine.kernels import info_nce, nt_xent
from dsengine.kernels.ntxent import reference

WORKER = Path(__file__).parent / "workers" / "ntxent_interpreted.py"


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """What the worker found."""
    pytest.importorskip("triton", reason="Triton is not installed")
    out = tmp_path_factory.mktemp("interpreted") / "errors.json"
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-P", str(WORKER), str(out)], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(out.read_text())


def test_interpreted_kernels_are_at_most_twice_as_wrong_as_stock_torch(interpreted: dict) -> None:
    assert interpreted["poisoned"], "empty tensors were not filled with NaN"
    assert len(interpreted["errors"]) == 15
    for case, quantities in interpreted["errors"].items():
        assert len(quantities) >= 2
        # At |s| = 100 a rounding of s alone moves loss and gradient by about 1e-5.
        floor = 2e-5 if " 0.01 " in case else 2e-6
        for q in quantities:
            assert q["ours"] <= 2 * q["stock"] + floor * max(q["scale"], 1e-3), (case, q)


def test_interpreted_kernels_give_own_rows_what_the_whole_batch_gives_them(interpreted: dict) -> None:
    assert interpreted["own_rows"] < 1e-5


def test_interpreted_kernels_read_strided_rows_in_place_and_pass_torchs_checks(interpreted: dict) -> None:
    assert interpreted["strided"] and interpreted["checked"] == 3


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(2, 1, 1), (2, 255, 7), (2, 1000, 128), (3, 257, 64), (2, 100, 512)])
@pytest.mark.parametrize("tau", [0.01, 0.1])
def test_gpu_kernels_are_at_most_twice_as_wrong_as_stock_torch(shape: tuple[int, ...], dtype: torch.dtype, tau: float) -> None:
    z = torch.randn(shape, device="cuda").to(dtype)
    results = []
    for x, loss_of in ((z.double(), reference.nt_xent), (z, nt_xent), (z, reference.nt_xent)):
        x = x.clone().requires_grad_()
        loss = loss_of(x, tau)
        results.append((loss.detach().double(), torch.autograd.grad(loss, x)[0].double()))
    for exact, ours, stock in zip(*results):
        floor = (2e-5 if tau == 0.01 else 2e-6) * max(exact.abs().max().item(), 1e-3)
        assert (ours - exact).abs().max() <= 2 * (stock - exact).abs().max() + floor


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_gpu_info_nce_and_temperature_match_float64() -> None:
    q, k = torch.randn(63, 33, device="cuda"), torch.randn(150, 33, device="cuda")
    results = []
    for loss_of, dtype in ((reference.info_nce, torch.float64), (info_nce, torch.float32)):
        inputs = [x.to(dtype, copy=True).requires_grad_() for x in (q, k, torch.tensor(0.2, device="cuda"))]
        loss = loss_of(*inputs)
        results.append([loss.detach(), *torch.autograd.grad(loss, inputs)])
    for exact, ours in zip(*results):
        assert (ours - exact).abs().max() <= 1e-5 * exact.abs().max()


def test_kernels_compile_ahead_of_time_without_spills(checkout: Path) -> None:
    """One case here, forward and backward; `bench/aot.py` goes over all of them."""
    pytest.importorskip("triton", reason="Triton is not installed")
    for only in ("forward", "backward"):
        command = [sys.executable, "-P", str(checkout / "bench" / "aot.py"), "--only", f"ntxent: {only} fp16, D 128"]
        environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
        assert f"ntxent: {only} fp16, D 128 | 8 |" in done.stdout and "no spills" in done.stdout
