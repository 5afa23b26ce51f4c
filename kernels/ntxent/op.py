"""Public NT-Xent and InfoNCE: checks, gather or ring across ranks, and the autograd nodes around the two passes."""

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.distributed import ProcessGroup

from dsengine.dist import gather_rows, rank_in
from dsengine.kernels.ntxent import passes, reference, ring
from dsengine.kernels.ranks import checked_sizes, gather


# Unit rows of the global batch beyond this are not gathered but visit in turn: half a million of 128 features in fp32.
RING_BYTES = 1 << 28


class _NTXent(torch.autograd.Function):
    """Keeps the unit rows of the global batch, own weights and own norms; the others' weights are gathered in backward."""

    @staticmethod
    def forward(ctx: FunctionCtx, z: Tensor, temperature: float | Tensor, denominator: str, sizes: tuple[int, ...],
                group: ProcessGroup | None) -> Tensor:
        V, B, _ = z.shape
        own, inv_norm = passes.normalise(z)
        cols, start = gather(own, sizes, group).transpose(0, 1), sum(sizes[:rank_in(group)])
        inv_tau, ctx.bounded = _inverse(temperature, inv_norm)
        rows = own.transpose(0, 1)
        lse = passes.forward(rows, cols, inv_tau, start, True, ctx.bounded)
        total, weight = reference.finish(lse, reference.positives(rows, rows, inv_tau), denominator)
        # Means over ranks of the losses and gradients are the global mean and its gradient.
        ctx.share = len(sizes) / (V * (V - 1) * sum(sizes))
        ctx.start, ctx.sizes, ctx.group, ctx.dtype = start, sizes, group, z.dtype
        ctx.like = _like(temperature)
        ctx.save_for_backward(cols, weight, inv_norm, inv_tau)
        return total * ctx.share

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        cols, weight, inv_norm, inv_tau = ctx.saved_tensors
        B = weight.shape[1]
        col_weight = gather(weight.transpose(0, 1), ctx.sizes, ctx.group).transpose(0, 1).contiguous()
        scale = grad_loss * ctx.share * inv_tau
        grad, along = passes.backward(cols[:, ctx.start:ctx.start + B], cols, weight, col_weight, inv_norm * scale, inv_tau,
                                ctx.start, B, True, ctx.bounded)
        return grad.to(ctx.dtype), _temperature_grad(ctx.like, -0.5 * scale * inv_tau * along.sum()), None, None, None


class _NTXentRing(torch.autograd.Function):
    """The same with own rows alone kept; the others' visit once in forward, and again with their weights in backward."""

    @staticmethod
    def forward(ctx: FunctionCtx, z: Tensor, temperature: float | Tensor, denominator: str, sizes: tuple[int, ...],
                group: ProcessGroup) -> Tensor:
        V = len(z)
        own, inv_norm = passes.normalise(z)
        rows = own.transpose(0, 1)
        inv_tau, ctx.bounded = _inverse(temperature, inv_norm)
        lse = ring.forward(own, inv_tau, ctx.bounded, sizes, group)
        total, weight = reference.finish(lse, reference.positives(rows, rows, inv_tau), denominator)
        ctx.share = len(sizes) / (V * (V - 1) * sum(sizes))
        ctx.sizes, ctx.group, ctx.dtype, ctx.like = sizes, group, z.dtype, _like(temperature)
        ctx.save_for_backward(own, weight, inv_norm, inv_tau)
        return total * ctx.share

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        own, weight, inv_norm, inv_tau = ctx.saved_tensors
        scale = grad_loss * ctx.share * inv_tau
        grad, along = ring.backward(own, weight, inv_norm * scale, inv_tau, ctx.bounded, ctx.sizes, ctx.group)
        return grad.to(ctx.dtype), _temperature_grad(ctx.like, -0.5 * scale * inv_tau * along), None, None, None


class _InfoNCE(torch.autograd.Function):
    """The same passes with queries as rows and keys as columns, and the other way round for the gradient of the keys."""

    @staticmethod
    def forward(ctx: FunctionCtx, queries: Tensor, keys: Tensor, temperature: float | Tensor, group: ProcessGroup | None) -> Tensor:
        q, inv_norm = passes.normalise(queries.unsqueeze(0))
        k, key_inv_norm = passes.normalise(keys.unsqueeze(0))
        ctx.rank, ctx.group = rank_in(group), group
        inv_tau, ctx.bounded = _inverse(temperature, inv_norm)
        all_keys = gather_rows(k, group).transpose(0, 1)
        lse = passes.forward(q.transpose(0, 1), all_keys, inv_tau, ctx.rank * len(k), False, ctx.bounded)
        positive = reference.positives(q.transpose(0, 1), k.transpose(0, 1), inv_tau)
        ctx.dtypes, ctx.like = (queries.dtype, keys.dtype), _like(temperature)
        ctx.save_for_backward(q.transpose(0, 1), all_keys, -lse, inv_norm, key_inv_norm, inv_tau)
        return (lse - positive).mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        q, keys, weight, inv_norm, key_inv_norm, inv_tau = ctx.saved_tensors
        B, K = q.shape[1], key_inv_norm.shape[1]
        scale = grad_loss * inv_tau / B
        absent = torch.full_like(keys[:, :, :1], -torch.inf, dtype=weight.dtype)
        grad, along = passes.backward(q, keys, weight, absent, inv_norm * scale, inv_tau, ctx.rank * K, B, False, ctx.bounded)
        grad_keys = None
        if ctx.needs_input_grad[1]:
            queries = gather_rows(q.transpose(0, 1), ctx.group).transpose(0, 1)
            weights = gather_rows(weight.transpose(0, 1), ctx.group).transpose(0, 1).contiguous()
            own = keys[:, ctx.rank * K:(ctx.rank + 1) * K]
            grad_keys, _ = passes.backward(own, queries, absent[:, :K], weights, key_inv_norm * scale, inv_tau, ctx.rank * B, B,
                                     False, ctx.bounded)
            grad_keys = grad_keys[0].to(ctx.dtypes[1])
        return grad[0].to(ctx.dtypes[0]), grad_keys, _temperature_grad(ctx.like, -scale * inv_tau * along.sum()), None


def nt_xent(z: Tensor, temperature: float | Tensor = 0.1, group: ProcessGroup | None = None, *,
            denominator: str = "pairs", sizes: tuple[int, ...] | None = None) -> Tensor:
    """NT-Xent loss (definition in `reference.py`) in memory O(V B D).

    z: (V, B, D), V >= 2 views or modalities of B samples, any float dtype, not normalised; computed in at least fp32 on a
    CPU, by half-precision products summed in fp32 on a GPU when z is half precision.
    temperature: > 0, a number or a tensor of one element, which then gets a gradient.
    group: ranks whose rows make up the global batch; None is this process alone.
    denominator: "pairs", the mean over pairs of views of the two-view loss, or "all", one over the rows of all views.
    sizes: B of every rank, where they differ.
    Returns the loss (), the mean over this rank's rows; gradients averaged over ranks are those of the mean over the
    global batch (with unequal sizes a rank's loss is weighted so that this still holds). Where the unit rows of the global
    batch take more than RING_BYTES, ranks pass them round instead of gathering them. Raises ValueError naming the argument.
    """
    _check(z, temperature, denominator)
    sizes = checked_sizes("nt_xent", z.shape[1], sizes, group)
    with torch.autocast(z.device.type, enabled=False):
        form = _NTXentRing if len(sizes) > 1 and _gathered_bytes(z, sizes) > RING_BYTES else _NTXent
        return form.apply(z, temperature, denominator, sizes, group)


def info_nce(queries: Tensor, keys: Tensor, temperature: float | Tensor = 0.1, group: ProcessGroup | None = None) -> Tensor:
    """InfoNCE, one direction: key i is the positive of query i, all other keys are negatives.

    queries: (B, D). keys: (K, D), K >= B; keys past B are negatives alone. Any float dtype, not normalised; no gradient of
    the keys is computed when they need none. temperature, group: as `nt_xent`; B and K are equal on all ranks.
    Returns the loss (), the mean over this rank's queries. Raises ValueError naming the argument.
    """
    if queries.ndim != 2 or 0 in queries.shape:
        raise ValueError(f"info_nce: queries must be (B, D), not empty, got {tuple(queries.shape)}")
    if keys.ndim != 2 or keys.shape[1] != queries.shape[1] or len(keys) < len(queries):
        raise ValueError(f"info_nce: keys must be (K, {queries.shape[1]}) with K >= {len(queries)} like queries, got {tuple(keys.shape)}")
    if keys.dtype != queries.dtype:
        raise ValueError(f"info_nce: keys must be {queries.dtype} like queries, got {keys.dtype}")
    _check_float("info_nce: queries", queries)
    _check_temperature("info_nce", temperature)
    with torch.autocast(queries.device.type, enabled=False):
        return _InfoNCE.apply(queries, keys, temperature, group)


def _gathered_bytes(z: Tensor, sizes: tuple[int, ...]) -> int:
    """Of the unit rows of all ranks; the same number on each."""
    return z.shape[0] * sum(sizes) * z.shape[2] * z.element_size()


def _inverse(temperature: float | Tensor, like: Tensor) -> tuple[Tensor, bool]:
    """1 / temperature () in the dtype of `like`, and whether it is known, without asking the device, to be within BOUND."""
    if isinstance(temperature, Tensor):
        return 1 / temperature.detach().to(like.device, like.dtype).reshape(()), False
    return torch.full((), 1 / temperature, dtype=like.dtype, device=like.device), 1 / temperature <= reference.BOUND


def _like(temperature: float | Tensor) -> tuple[torch.Size, torch.dtype, torch.device] | None:
    """What the gradient of the temperature must look like; None for a number."""
    return (temperature.shape, temperature.dtype, temperature.device) if isinstance(temperature, Tensor) else None


def _temperature_grad(like: tuple[torch.Size, torch.dtype, torch.device] | None, grad: Tensor) -> Tensor | None:
    return None if like is None else grad.reshape(like[0]).to(like[2], like[1])


def _check(z: Tensor, temperature: float | Tensor, denominator: str) -> None:
    if z.ndim != 3 or z.shape[0] < 2 or 0 in z.shape:
        raise ValueError(f"nt_xent: z must be (V, B, D) with V >= 2 and not empty, got {tuple(z.shape)}")
    _check_float("nt_xent: z", z)
    _check_temperature("nt_xent", temperature)
    if denominator not in reference.DENOMINATORS:
        raise ValueError(f"nt_xent: denominator {denominator!r} is unknown; legal: {', '.join(reference.DENOMINATORS)}")


def _check_float(name: str, x: Tensor) -> None:
    if not x.dtype.is_floating_point:
        raise ValueError(f"{name} must be floating point, got {x.dtype}")


def _check_temperature(op: str, temperature: float | Tensor) -> None:
    if isinstance(temperature, Tensor):
        if temperature.numel() != 1 or not temperature.dtype.is_floating_point:
            raise ValueError(f"{op}: temperature must be one floating-point element, got {tuple(temperature.shape)} {temperature.dtype}")
    elif not 0 < temperature < float("inf"):
        raise ValueError(f"{op}: temperature must be positive and finite, got {temperature}")
