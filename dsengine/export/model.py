"""What embedding needs to know about an encoder: its contract, its hash, and how its cells lie on the pixels.

A cell is one column of the encoder's dense map. Its geometry is measured, not declared, so an encoder of the user's own needs nothing
more than `Features`: a block of NaN in an image of zeros makes every cell NaN that depends on the block, whatever the weights are.
"""

import bisect
import hashlib
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dsengine.corpus.schema import Contract
from dsengine.encoders import Features
from dsengine.errors import UsageError, nearest
from dsengine.export.load import load_encoder
from dsengine.nn.fold import folded

_SPANS = (32, 64, 128)  # cells of a probe; an encoder that reaches further than half of the last is treated as one that sees everything


class Model(NamedTuple):
    """An encoder ready for inference."""

    encoder: nn.Module  # evaluation mode, BatchNorm folded where that is possible
    contract: Contract  # of the bands it is given
    sha256: str  # of the encoder's tensors


class Cells(NamedTuple):
    """How the dense map of an encoder lies on its input, along either axis."""

    stride: int  # pixels a cell; cell i has the pixels from i * stride on
    dim: int  # features of a cell
    before: int | None  # cells whose pixels reach into cell i: i - before ... i + after; None: all of them
    after: int | None
    rounds_up: bool  # a rest of pixels smaller than a cell makes a cell of its own
    sees: tuple[int, int] | None  # pixels that cell i depends on, from its first one: i * stride + sees[0] ... i * stride + sees[1]

    def count(self, pixels: int) -> int:
        """Cells along a side of `pixels`."""
        return -(-pixels // self.stride) if self.rounds_up else pixels // self.stride


Encoder = str | Path | nn.Module | tuple[nn.Module, Contract]


def as_model(encoder: Encoder, *, name: str | None = None, bands: Sequence[str] | None = None, contract: Contract | None = None) -> Model:
    """The model of a run folder, an exported file, a (module, contract) pair, or a module to be used with `contract`.

    name: which encoder of a run with several. bands: the ones to show an encoder that was trained on bands drawn at random; others take
    all bands of their contract, and naming fewer is a UsageError.
    """
    if isinstance(encoder, nn.Module):
        if contract is None:
            raise UsageError("encoder: a module without a contract; legal: a run folder, an exported encoder, or (module, contract)")
        module = encoder
    else:
        module, contract = encoder if isinstance(encoder, tuple) else load_encoder(encoder, name)
    shown = _chosen(contract, bands, getattr(module, "in_channels", None))
    return Model(_ready(module), shown, sha256_of(module))


def input_of(module: nn.Module) -> str:
    """What an encoder takes: image (B, C, H, W), pixel (B, C) or series (B, T, C)."""
    return getattr(module, "input", None) or getattr(sys.modules.get(type(module).__module__), "INPUT", "image")


class Pixelwise(nn.Module):
    """An encoder of single pixels as one of images: every pixel is a cell."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, x: Tensor) -> Features:
        """(B, C, H, W) -> Features((B, D), (B, D, H, W))."""
        cells = self.encoder(x.permute(0, 2, 3, 1).flatten(0, 2)).pooled
        dense = cells.unflatten(0, (x.shape[0], *x.shape[2:])).permute(0, 3, 1, 2)
        return Features(dense.mean((2, 3)), dense)


def sha256_of(module: nn.Module) -> str:
    """Of every tensor by name, type, shape and bytes; of the file for an encoder that is one."""
    if isinstance(stated := getattr(module, "sha256", None), str):
        return stated
    digest = hashlib.sha256()
    for key, tensor in sorted(module.state_dict().items()):
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)};".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def normalised(stored_BCHW: Tensor, contract: Contract) -> Tensor:
    """float32 z-scores of stored integers, nodata 0, on the device of the input: what training shows an encoder, without augmentation."""
    rows = [torch.tensor(row, dtype=torch.float64, device=stored_BCHW.device)[:, None, None]
            for row in (contract.scale, contract.offset, contract.mean, contract.std)]
    scale, offset, mean, std = rows
    # One multiplication and one addition in float32; their factors are rounded once.
    gain, bias = (scale / std).float(), ((offset - mean) / std).float()
    return torch.where(stored_BCHW == contract.nodata, 0.0, stored_BCHW.float() * gain + bias)


def measure(encoder: nn.Module, in_channels: int) -> Cells:
    """The geometry of a dense encoder. UsageError for one without a dense map or whose cells do not grow with the image."""
    narrow, wide = (_dense(encoder, torch.zeros(1, in_channels, 64, side)) for side in (256, 512))
    if wide.shape[3] <= narrow.shape[3] or 256 % (wide.shape[3] - narrow.shape[3]):
        raise UsageError(f"encoder: 256 pixels more make {wide.shape[3] - narrow.shape[3]} cells more; legal: a whole number of pixels a cell")
    stride, dim = 256 // (wide.shape[3] - narrow.shape[3]), wide.shape[1]
    rounds_up = _dense(encoder, torch.zeros(1, in_channels, 2 * stride, 4 * stride + 1)).shape[3] == 5
    for span in _SPANS:
        found = _touched(encoder, in_channels, stride, span=span, first=span // 2 * stride, width=stride)
        if found is not None:
            before, after = found[1] - span // 2, span // 2 - found[0]
            return Cells(stride, dim, before, after, rounds_up, _sees(encoder, in_channels, stride, span, found))
    return Cells(stride, dim, None, None, rounds_up, None)


def patch_cells(model: Model, side: int) -> Cells:
    """Patches of `side` pixels as cells: one pooled vector each."""
    if side < 1:
        raise UsageError(f"--window {side}: legal: 1 pixel or more")
    pooled = probe(model.encoder, torch.zeros(1, len(model.contract.bands), side, side)).pooled
    return Cells(side, pooled.shape[1], 0, 0, False, (0, side - 1))


def _sees(encoder: nn.Module, in_channels: int, stride: int, span: int, reach: tuple[int, int]) -> tuple[int, int]:
    """First and last pixel that a cell depends on, counted from its own first pixel; reach: first and last cell that depend on a block.

    Of the pixels of a block, those from some one on touch the last cell, and those up to some one touch the first.
    """
    def touches(phase: int, which: int) -> bool:
        found = _touched(encoder, in_channels, stride, span=span, first=span // 2 * stride + phase, width=1)
        return found is not None and found[which] == reach[which]

    first = bisect.bisect_left(range(stride), True, key=lambda phase: touches(phase, 1))
    last = bisect.bisect_left(range(stride), True, key=lambda phase: not touches(phase, 0)) - 1
    return (span // 2 - reach[1]) * stride + first, (span // 2 - reach[0]) * stride + last


def _touched(encoder: nn.Module, in_channels: int, stride: int, *, span: int, first: int, width: int) -> tuple[int, int] | None:
    """First and last of `span` cells that depend on pixel columns first ... first + width - 1; None when they go to an end."""
    x = torch.zeros(1, in_channels, 2 * stride, span * stride)
    x[..., first:first + width] = torch.nan
    cells = _dense(encoder, x)[0].isnan().any(0).any(0).nonzero().flatten().tolist()
    return None if not cells or cells[0] == 0 or cells[-1] == span - 1 else (cells[0], cells[-1])


def probe(encoder: nn.Module, x: Tensor) -> Features:
    """What the encoder gives for images x (B, C, H, W). UsageError for an encoder that does not take them."""
    try:
        with torch.inference_mode():
            return encoder(x)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise UsageError(f"encoder: it does not take images of shape {tuple(x.shape)}: {error}; legal: encoders of images") from error


def _dense(encoder: nn.Module, x: Tensor) -> Tensor:
    dense = probe(encoder, x).dense
    if dense is None:
        raise UsageError("encoder: it has no dense map; legal: pooled embeddings (--pooled)")
    return dense


def _ready(module: nn.Module) -> nn.Module:
    if (kind := input_of(module)) == "series":
        raise UsageError("encoder: it takes series of dates; legal: encoders of images or of pixels")
    if kind == "pixel":
        return Pixelwise(module.eval())
    try:
        return folded(module)
    except UsageError:  # a norm without a convolution before it stays as it is
        return module.eval()


def _chosen(contract: Contract, bands: Sequence[str] | None, in_channels: int | None) -> Contract:
    """`contract` of the bands that the encoder is to see."""
    legal = [band.name for band in contract.bands]
    wanted = len(legal) if in_channels is None else in_channels
    if bands is None and wanted != len(legal):
        raise UsageError(f"bands: the encoder takes {wanted} bands at a time of {', '.join(legal)}; name {wanted} of them (--bands)")
    names = list(legal if bands is None else bands)
    for name in names:
        if name not in legal:
            raise UsageError(f"bands: {name!r} is not among the encoder's; {nearest(name, legal)}")
    if len(names) != wanted or len(set(names)) != wanted:
        raise UsageError(f"bands: {', '.join(names)}: the encoder takes {wanted} different bands; legal: {', '.join(legal)}")
    numbers = [legal.index(name) for name in names]
    parts = {key: tuple(getattr(contract, key)[n] for n in numbers) for key in ("bands", "units", "scale", "offset", "mean", "std")}
    return replace(contract, **parts)
