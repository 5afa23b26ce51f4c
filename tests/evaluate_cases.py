"""Small corpora and runs for the tests of evaluations."""

from pathlib import Path

import numpy as np

import dsengine
from dsengine.corpus.build.plan import Plan, build_corpus
from dsengine.corpus.build.shard import Block
from dsengine.corpus.schema import ArraySpec, LabelSpec, Layout
from dsengine.engine.checkpoint import save

SIZE, ROWS = 16, 120
CLASSES = {10: "low", 20: "middle", 30: "high"}


class Planted:
    """Patches whose class is told by the mean of B02 alone, and whose class map by each pixel's B02; two dozen places, six sites."""

    def __init__(self, bands: tuple[str, ...]) -> None:
        self.bands = bands

    def __call__(self, rows: range) -> Block:
        rng = np.random.default_rng(7)
        every, level, maps = [], rng.integers(0, 3, ROWS), []
        for row in range(ROWS):
            pixels = rng.normal(0, 60, (len(self.bands), SIZE, SIZE))
            which = np.full((SIZE, SIZE), level[row])
            which[: SIZE // 4] = (level[row] + 1) % 3
            pixels[self.bands.index("B02")] += 1000 * which
            every.append(pixels + 2000)
            maps.append(np.array(list(CLASSES))[which])
            maps[-1][0, 0] = 0  # no label
        at = list(rows)
        index = {"lon": 10 + (np.array(at) % 24) * 0.5, "lat": np.full(len(at), 45.0), "epsg": np.full(len(at), 32632),
                 "x": 500_000.0 + 1000 * np.array(at), "y": np.full(len(at), 5_000_000.0), "source": [f"site {row % 6}" for row in at]}
        return Block({"s2": np.stack(every)[at].astype(np.int16)}, index,
                     {"scene": np.array(list(CLASSES))[level[at]].astype(np.uint8), "cover": np.stack(maps)[at].astype(np.uint8),
                      "there": (level[at] == 2).astype(np.uint8), "many": np.eye(3)[level[at]].astype(np.uint8)})


def planted(out: Path, bands: tuple[str, ...] = ("B01", "B02", "B03", "B04"), *, scale: float = 1e-4) -> Path:
    """A corpus of `Planted` patches, its bands in the order given."""
    labels = (LabelSpec(name="scene", kind="class", classes=CLASSES),
              LabelSpec(name="cover", kind="classmap", classes={0: "none", **CLASSES}, ignore=0),
              LabelSpec(name="there", kind="class", classes={0: "without", 1: "with"}),
              LabelSpec(name="many", kind="multilabel", classes=dict(enumerate("abc"))))
    array = ArraySpec(name="s2", sensor="s2", bands=bands, units="reflectance", scale_factor=scale)
    layout = Layout(arrays=(array,), patch_size=SIZE, resolution_m=10.0, labels=labels)
    return build_corpus(out, Plan(layout=layout, num_patches=ROWS, cut=Planted(bands), made_by={"source": "test"}, seed=0))


def untrained_run(out: Path, corpus: Path, *, encoder: str = "resnet18", bands: list[int] | None = None, in_channels: int | None = None) -> Path:
    """A run folder with one checkpoint of a fresh encoder of these bands of `corpus`, as training would have left it."""
    import torch
    from torch import nn

    contract = dsengine.open_corpus(corpus).contract()
    places = list(range(len(contract.bands))) if bands is None else bands
    channels = len(places) if in_channels is None else in_channels
    torch.manual_seed(5)
    method = nn.Module()
    method.encoders = nn.ModuleDict({"all": dsengine.build_encoder(encoder, channels)})
    save(out, step=3, method=method, optimizer=torch.optim.Adam(method.parameters()), loader={"step": 3}, contract=contract, keep=2,
         config={"encoder": {"name": encoder, "stem": "paper"}, "method": {"name": "csf"}, "corpus": str(corpus), "train": {"seed": 0}},
         inputs={"all": {"bands": places, "in_channels": channels}})
    return out
