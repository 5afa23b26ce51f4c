"""The ops in plain torch, for any device and dtype: what the compiled forms are tested against and fall back to."""

import torch
from torch import Tensor


def augment_reference(sources: list[Tensor], bands: Tensor, center: Tensor, offset: Tensor, code: Tensor, A: Tensor,
                      T: Tensor, b: Tensor, size: int, *, out_channels: int | None = None,
                      dtype: torch.dtype = torch.float32, nodata: int = -32768) -> Tensor:
    """What ops.augment computes, in the dtype of A; see its docstring for the arguments."""
    num_views, num_samples, num_bands, _ = A.shape
    out = A.new_zeros((num_views * num_samples, size, size, out_channels or num_bands), dtype=dtype).permute(0, 3, 1, 2)
    grid = torch.stack([_fine(sources, row) for row in bands.tolist()], dim=1)
    places = torch.cat((offset, code[..., None]), dim=-1).reshape(-1, 3).tolist()
    for item, (y0, x0, turn) in enumerate(places):
        view, sample = divmod(item, num_samples)
        raw = dihedral(grid[sample, :, y0:y0 + size, x0:x0 + size], turn)
        out[item, :num_bands] = _affine(raw, center.to(A.dtype), A[view, sample], T[view, sample], b[view, sample], nodata)
    return out


def dihedral(x: Tensor, code: int) -> Tensor:
    """(..., S, S): code & 3 quarter turns, then with code & 4 mirrored in the last dimension."""
    turned = torch.rot90(x, code & 3, dims=(-2, -1))
    return turned.flip(-1) if code & 4 else turned


def _fine(sources: list[Tensor], row: list[int]) -> Tensor:
    """One band (B, H, W) on the finest grid."""
    source, channel, factor = row
    return sources[source][:, channel].repeat_interleave(factor, -1).repeat_interleave(factor, -2)


def _affine(raw: Tensor, center: Tensor, A: Tensor, T: Tensor, b: Tensor, nodata: int) -> Tensor:
    """(C, S, S) raw integers to y = A x + T m + b in the dtype of A."""
    present = raw.int() != nodata  # int16 would wrap a nodata value that it cannot hold
    x = torch.where(present, raw.to(A.dtype) - center[:, None, None], 0)
    m = x.sum((1, 2)) / present.sum((1, 2)).clamp(min=1)
    y = torch.einsum("ij,jyx->iyx", A, x) + (T @ m + b)[:, None, None]
    return torch.where(present, y, 0)
