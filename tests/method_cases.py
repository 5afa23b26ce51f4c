"""Any method at a size that runs in milliseconds: small settings, small encoders, and batches as the loader would make them."""

import torch
from torch import Tensor, nn

import dsengine
from dsengine import methods, plugin
from dsengine.data.sample import Batch, sized
from dsengine.encoders import Features
from dsengine.methods import Method
from dsengine.nn.heads import mlp
from dsengine.nn.norm import GroupedBatchNorm2d

METHODS = plugin.names("dsengine.methods")
SMALL = {
    "byol": {"hidden": 16, "out": 8}, "simsiam": {"dim": 16, "hidden": 8}, "vae": {"latent": 4},
    "simclr": {"hidden": 16, "out": 8},
    "scarf": {"hidden": 16, "out": 8, "temperature": 0.1},
    "supervised": {"label": "landcover", "kind": "classmap", "channels": 5},
}
ROWS = ("scarf",)  # methods of tables: a view is (B, C)
BANDS = 14


class Tiny(nn.Module):
    """An encoder small enough to compile in a second."""

    dim = 6

    def __init__(self, in_channels: int = BANDS) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.conv = nn.Conv2d(in_channels, self.dim, 8, 8)

    def forward(self, x: Tensor) -> Features:
        dense = self.conv(x)
        return Features(dense.mean((2, 3)), dense)


class Normed(nn.Module):
    """Convolution, grouped BatchNorm, ReLU, convolution: what ranks have to agree about."""

    dim = 6

    def __init__(self, in_channels: int = BANDS) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.conv1, self.norm, self.conv2 = nn.Conv2d(in_channels, 8, 4, 4), GroupedBatchNorm2d(8), nn.Conv2d(8, self.dim, 2, 2)

    def forward(self, x: Tensor) -> Features:
        dense = self.conv2(self.norm(self.conv1(x), relu=True))
        return Features(dense.mean((2, 3)), dense)


class TinyRows(nn.Module):
    """Of tables: Linear, or with `normed` Linear, grouped BatchNorm, ReLU, Linear."""

    dim = 6

    def __init__(self, in_channels: int = BANDS, normed: bool = False) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.layers = mlp(in_channels, 8, self.dim) if normed else nn.Linear(in_channels, self.dim)

    def forward(self, x: Tensor) -> Features:
        return Features(self.layers(x), None)


def encoder_for(name: str, *, normed: bool = False) -> nn.Module:
    """A small encoder that the method `name` takes."""
    if name in ROWS:
        return TinyRows(normed=normed)
    return Normed() if normed else Tiny()


def make(name: str, encoder: nn.Module | None = None, **settings) -> Method:
    """The method at small widths, around `encoder` or a small one."""
    return dsengine.build_method(name, encoder=encoder or encoder_for(name), **{**SMALL.get(name, {}), **settings})


def make_batch(method: Method, rows: int = 8, *, size: int = 16, step: int = 3, seed: int = 0, channels: int = BANDS) -> Batch:
    """Rows that differ in colour, each view with noise of its own, and labels where the method wants some."""
    g = torch.Generator().manual_seed(seed)
    colour = torch.randn(rows, channels, 1, 1, generator=g)
    views = []
    for view in sized(method.views, size):
        own = colour + 0.7 * torch.randn(rows, channels, 1, 1, generator=g)
        views.append((own + 0.3 * torch.randn(rows, channels, view.size, view.size, generator=g))[:, :view.draw_bands])
    if type(method).__module__.rpartition(".")[2] in ROWS:
        views = [view.mean((2, 3)) for view in views]
    label = None
    if method.label is not None:
        kind, classes = method.config.kind, method.config.channels
        shape = {"classmap": (rows, size, size), "class": (rows,), "multilabel": (rows, classes)}[kind]
        label = torch.randint(2 if kind == "multilabel" else classes, shape[:2] if kind == "multilabel" else shape[:1], generator=g)
        label = label.float() if kind == "multilabel" else label
        if kind == "classmap":  # one class a patch, and a corner without any, of another size in each
            label = label[:, None, None].repeat(1, size, size)
            for row in range(rows):
                label[row, :row % 7, :3] = -1
    return Batch(tuple(views), torch.arange(rows) * 7 + 2, label, seed=5, step=step)


def inputs(name: str) -> dict:
    """What `methods.inputs` says of the method at small widths."""
    return methods.inputs(name, plugin.configure("dsengine.methods", name, SMALL.get(name, {})))
