"""The Triton kernels of NT-Xent under the interpreter, for test_ntxent_kernel.py: errors against float64 as JSON.

Runs in a process of its own with TRITON_INTERPRET=1, which is read when the kernels are imported. Argument: output file.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from dsengine.kernels.ntxent import kernel, op, passes, reference

# (shape, dtype, temperature, denominator); D below and beyond one block of features, B below and beyond one block of rows.
CASES = [((2, 1, 1), torch.float32, 0.1, "pairs"), ((2, 63, 7), torch.float32, 0.01, "pairs"),
         ((3, 100, 64), torch.float32, torch.tensor(0.1), "pairs"), ((3, 100, 33), torch.float32, 0.1, "all"),
         ((2, 129, 70), torch.float32, 1.0, "pairs"), ((4, 33, 130), torch.float16, 0.1, "pairs"),
         ((2, 200, 128), torch.bfloat16, 0.05, "pairs"), ((2, 100, 64), torch.float16, 0.01, "pairs"),
         ((3, 63, 128), torch.bfloat16, torch.tensor(0.05), "all"), ((2, 2, 512), torch.bfloat16, 0.1, "pairs"),
         ((2, 255, 1), torch.float16, 0.1, "pairs"), ((2, 257, 128), torch.float32, 0.1, "all"), ((2, 1000, 7), torch.float32, 0.1, "pairs")]


def _gradients(loss_of: Callable[..., Tensor], inputs: list[Tensor]) -> list[Tensor]:
    """Loss, then its gradients."""
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    loss = loss_of(*leaves)
    return [loss.detach(), *torch.autograd.grad(loss, leaves)]


def _errors(ours: Callable[..., Tensor], plain: Callable[..., Tensor], inputs: list[Tensor]) -> list[dict[str, float]]:
    """For loss and each gradient: largest value, largest error of ours and of the plain form in the same dtype."""
    exact = _gradients(plain, [x.double() for x in inputs])
    return [dict(scale=e.abs().max().item(), ours=(o.double() - e).abs().max().item(), stock=(s.double() - e).abs().max().item())
            for e, o, s in zip(exact, _gradients(ours, inputs), _gradients(plain, inputs))]


def _nt_xent(shape: tuple[int, ...], dtype: torch.dtype, tau: float | Tensor, denominator: str) -> list[dict[str, float]]:
    inputs = [(3 * torch.randn(shape)).to(dtype), *([tau] if isinstance(tau, Tensor) else [])]
    return _errors(lambda z, t=tau: op.nt_xent(z, t, denominator=denominator),
                   lambda z, t=tau: reference.nt_xent(z, t, denominator), inputs)


def _own_rows() -> float:
    """Largest difference between rows 40 to 70 of the whole passes and passes over those rows alone."""
    z_BVD, inverse = kernel.normalise(torch.randn(3, 100, 20))
    z, inv_tau, own = z_BVD.transpose(0, 1), torch.tensor(10.0), slice(40, 70)
    lse = kernel.forward(z, z, inv_tau, 0, True, True)
    _, weight = reference.finish(lse, reference.positives(z, z, inv_tau), "pairs")
    whole = *kernel.backward(z, z, weight, weight, inverse, inv_tau, 0, 100, True, True), lse
    part_lse = kernel.forward(z[:, own], z, inv_tau, 40, True, True)
    part = *kernel.backward(z[:, own], z, weight[:, own], weight, inverse[:, own], inv_tau, 40, 30, True, True), part_lse
    return max((w[:, own] - p).abs().max().item() for w, p in zip(whole, part))


def _strided() -> bool:
    """Whether rows that are apart in memory, features too, give what copied ones give, bit for bit."""
    apart = torch.randn(63, 40, 6).permute(2, 0, 1)[::2, :, ::3]
    strided, copied = (_gradients(op.nt_xent, [x]) for x in (apart, apart.contiguous()))
    loss = op.nt_xent(apart.requires_grad_())
    in_place = [loss.detach(), torch.autograd.grad(loss, apart)[0]]
    return not apart.is_contiguous() and all(torch.equal(a, b) for other in (strided, in_place) for a, b in zip(other, copied))


def _checked() -> int:
    """Operators that torch's own checks passed, with the kernels behind them; a compiled loss equals the eager one."""
    z = torch.randn(2, 9, 5)
    z_BVD, inverse = torch.ops.dsengine.ntxent_normalise(z)
    rows, inv_tau, weight = z_BVD.transpose(0, 1), torch.tensor(10.0), torch.zeros(2, 9, 2)
    for name, arguments in (("normalise", (z,)), ("forward", (rows, rows, inv_tau, 0, True, True)),
                            ("backward", (rows, rows, weight, weight, inverse, inv_tau, 0, 9, True, True))):
        torch.library.opcheck(getattr(torch.ops.dsengine, f"ntxent_{name}").default, arguments)
    compiled = torch.compile(op.nt_xent, fullgraph=True, backend="aot_eager")
    assert all(torch.equal(a, b) for a, b in zip(_gradients(compiled, [z]), _gradients(op.nt_xent, [z])))
    return 3


def main(out: str) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True)  # which also fills every empty tensor with NaN
    passes._passes = lambda x: kernel if x.dtype != torch.float64 else reference
    results = {f"{shape} {dtype} {float(tau):.2f} {denominator}": _nt_xent(shape, dtype, tau, denominator)
               for shape, dtype, tau, denominator in CASES}
    for dtype in (torch.float32, torch.bfloat16):
        inputs = [torch.randn(63, 33).to(dtype), torch.randn(150, 33).to(dtype), torch.tensor(0.2)]
        results[f"info_nce {dtype}"] = _errors(op.info_nce, reference.info_nce, inputs)
    Path(out).write_text(json.dumps(dict(poisoned=bool(torch.empty(3).isnan().all()), own_rows=_own_rows(), strided=_strided(), checked=_checked(),
                                         errors=results)))


if __name__ == "__main__":
    main(*sys.argv[1:])
