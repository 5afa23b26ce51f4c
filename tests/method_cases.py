"""Any method at a size that runs in milliseconds: small settings, small encoders, and batches as the loader would make them."""

import sys

import torch
from torch import Tensor, nn

import dsengine
from dsengine import methods, plugin
from dsengine.data.sample import Batch, sized
from dsengine.encoders import Features
from dsengine.methods import Method
from dsengine.nn.dropout import set_keys
from dsengine.nn.heads import mlp
from dsengine.nn.norm import GroupedBatchNorm2d

METHODS = plugin.names("dsengine.methods")
SMALL = {
    "byol": {"hidden": 16, "out": 8}, "simsiam": {"dim": 16, "hidden": 8}, "vae": {"latent": 4},
    "simclr": {"hidden": 16, "out": 8},
    "scarf": {"hidden": 16, "out": 8, "temperature": 0.1},
    "supervised": {"label": "landcover", "kind": "classmap", "channels": 5},
}
ROWS = ("scarf",)  # methods of tables alone: a view is (B, C)
BANDS = 14
# Methods that take pixels and series, and the settings under which they do.
TABLES = {"scarf": {}, "simclr": {"modalities": ("s2", "planet")}, "supervised": {"kind": "class"}}
CHANNELS = {"all": 12, "s2": 12, "planet": 36}
DATES = {"all": 7, "s2": 7, "planet": 9}
SMALL_TABLE_ENCODERS = {
    "resmlp": {"width": 8, "blocks": 2, "dropout": 0.2},
    "temporal": {"width": 8, "heads": 2, "blocks": 2, "out": 6, "dates": 10, "dropout": 0.2},
}
# "scarf/temporal" is scarf with small encoders of that kind, fed with what they take.
CASES = [*METHODS, *(f"{method}/{encoder}" for method in TABLES for encoder in SMALL_TABLE_ENCODERS)]


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


def input_of(encoder: str) -> str:
    """What the encoder takes: "image", "pixel" or "series"."""
    return getattr(plugin.find("dsengine.encoders", encoder), "INPUT", "image")


def encoder_for(name: str, *, normed: bool = False) -> nn.Module | None:
    """A small encoder that the method `name` takes; None for a case whose name says which."""
    if "/" in name:
        return None
    if name in ROWS:
        return TinyRows(normed=normed)
    return Normed() if normed else Tiny()


def make(name: str, encoder: nn.Module | None = None, **settings) -> Method:
    """The method at small widths, around `encoder` or a small one; or the case `name`."""
    if "/" in name:
        return make_table(*name.split("/"), small=True, **settings)
    return dsengine.build_method(name, encoder=encoder or encoder_for(name), **{**SMALL.get(name, {}), **settings})


def make_table(name: str, encoder: str, *, small: bool, **settings) -> Method:
    """The method `name` of pixels or series, with an encoder for each of its inputs: of a small size or of its own."""
    settings = {**SMALL.get(name, {}), **TABLES[name], **settings}
    wanted = methods.inputs(name, plugin.configure("dsengine.methods", name, settings))
    own = SMALL_TABLE_ENCODERS[encoder] if small else {}
    return dsengine.build_method(name, encoders={key: dsengine.build_encoder(encoder, CHANNELS[key], **own) for key in wanted}, **settings)


def make_batch(method: Method, rows: int = 8, *, size: int = 16, step: int = 3, seed: int = 0, channels: int = BANDS) -> Batch:
    """Rows that differ in colour, each view with noise of its own, and labels where the method wants some. Dropout is told of them."""
    g = torch.Generator().manual_seed(seed)
    kinds = {key: getattr(sys.modules[type(encoder).__module__], "INPUT", "image") for key, encoder in method.encoders.items()}
    if "image" in kinds.values():
        views = _images(method, rows, size, channels, g)
    else:
        colour, views = torch.randn(rows, 1, generator=g), []
        for view in method.views:
            key = view.sensor or "all"
            # Marginals are cells of other rows.
            own = colour[torch.randperm(rows, generator=g)] if view.of == "marginals" else colour
            views.append(_table(own, DATES[key] if kinds[key] == "series" else None, CHANNELS[key], g))
    batch = Batch(tuple(views), torch.arange(rows) * 7 + 2, _labels(method, rows, size, g), seed=5, step=step)
    set_keys(method, batch.sample_id, seed=batch.seed, step=step)
    return batch


def _images(method: Method, rows: int, size: int, channels: int, g: torch.Generator) -> list[Tensor]:
    colour = torch.randn(rows, channels, 1, 1, generator=g)
    views = []
    for view in sized(method.views, size):
        own = colour + 0.7 * torch.randn(rows, channels, 1, 1, generator=g)
        views.append((own + 0.3 * torch.randn(rows, channels, view.size, view.size, generator=g))[:, :view.draw_bands])
    if type(method).__module__.rpartition(".")[2] in ROWS:
        return [view.mean((2, 3)) for view in views]
    return views


def _table(colour: Tensor, dates: int | None, channels: int, g: torch.Generator) -> Tensor:
    """Pixels (rows, channels); with `dates` series (rows, dates, channels), NaN where a date is missing. colour: (rows, 1), what all sensors see."""
    x = colour * torch.linspace(-1, 2, channels)
    if dates is None:
        return x + 0.5 * torch.randn(x.shape, generator=g)
    x = x[:, None] + 0.5 * torch.randn(len(x), dates, channels, generator=g)
    x[torch.rand(x.shape[:2], generator=g) < 0.2] = float("nan")
    return x


def _labels(method: Method, rows: int, size: int, g: torch.Generator) -> Tensor | None:
    if method.label is None:
        return None
    kind, classes = method.config.kind, method.config.channels
    if kind == "multilabel":
        return torch.randint(2, (rows, classes), generator=g).float()
    label = torch.randint(classes, (rows,), generator=g)
    if kind == "classmap":  # one class a patch, and a corner without any, of another size in each
        label = label[:, None, None].repeat(1, size, size)
        for row in range(rows):
            label[row, :row % 7, :3] = -1
    return label


def inputs(name: str) -> dict:
    """What `methods.inputs` says of the method at small widths."""
    return methods.inputs(name, plugin.configure("dsengine.methods", name, SMALL.get(name, {})))
