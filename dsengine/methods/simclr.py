"""SimCLR: two views of one place, or several sensors' looks at it, must find each other among all others of the batch.

    z_m = projector_m(encoder_m(x_m))                 one modality: m are two augmented views, one encoder
    loss = NT-Xent(z_1, ..., z_M), temperature 0.07   mean over unordered pairs of modalities

Sources: Chen et al., ICML 2020, eq. 1; the second paper (Patnala et al.), which aligns Sentinel-2 pixels with the Planet pixels in them
(`modalities=[s2, planet]` on a corpus of pixels) and series with series, each modality with its own encoder and projector, so that one of
them can be deployed alone. What to know, and where we depart:
- the paper gives two modalities; for more, the loss is the mean of the two-modality loss over pairs.
- temperature 0.07, heads 256/256, are the defaults of the paper's code; it swept 0.07, 0.7 and 1 and does not say which it reports.
- the projector has its BatchNorm before the ReLU, as in SimCLR; the paper's code has it after. It has as many parameters.
- the paper's code pairs each Sentinel-2 pixel with Planet pixels of other places by a wrong reshape; ours lie in it.
- of one modality, the views are those of SimSiam without colour jitter (see `_two_views`); `jitters` adds it.
"""

from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn

from dsengine.data.sample import Batch, View
from dsengine.errors import UsageError
from dsengine.kernels import nt_xent
from dsengine.methods import Method, by_view
from dsengine.methods._legal import TEMPERATURES, at_least_one, untouched, within
from dsengine.methods._two_views import TwoViews
from dsengine.nn.collapse import spread
from dsengine.nn.heads import mlp

PRESETS = {"parity": {"temperature": 0.07, "hidden": 256, "out": 256}}


@dataclass(frozen=True, kw_only=True)
class Config(TwoViews):
    """Settings of SimCLR, after those of the views of one modality."""

    modalities: tuple[str, ...] = ()  # sensors, one encoder each; none: one encoder, two augmented views of all bands
    temperature: float = 0.07
    hidden: int = 256  # of the projectors
    out: int = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        within(self, "temperature", *TEMPERATURES)
        at_least_one(self, "hidden", "out")
        if len(self.modalities) == 1 or len(set(self.modalities)) != len(self.modalities):
            raise UsageError(f"modalities={list(self.modalities)}: legal: none, or two sensors or more, each once")
        if self.modalities:
            untouched(self, *(field.name for field in fields(TwoViews)), where="modalities, which are shown as they are")


class SimCLR(Method):
    """One encoder and two augmented views, or one encoder and one view a modality."""

    def __init__(self, config: Config, encoders: dict[str, nn.Module]) -> None:
        super().__init__()
        self.config = config
        self.encoders = nn.ModuleDict(encoders)
        self.projectors = nn.ModuleDict({key: mlp(encoder.dim, config.hidden, config.out) for key, encoder in encoders.items()})
        self.views = config.views() if not config.modalities else tuple(View(sensor=sensor) for sensor in config.modalities)

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        one_for_all = len(self.encoders) == 1
        inputs = [torch.cat(batch.views)] if one_for_all else batch.views
        pooled = {key: encoder(x).pooled for (key, encoder), x in zip(self.encoders.items(), inputs)}
        z = [by_view(self.projectors[key](h), len(batch.views) // len(pooled)) for key, h in pooled.items()]
        return {"z": torch.cat(z), **{key: by_view(h.detach(), len(z[0])) for key, h in pooled.items()}}

    def score(self, embedded: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        scores = {"loss": nt_xent(embedded["z"], self.config.temperature, batch.world.group)}
        for key in self.encoders:  # each under its own name, where there are several
            scores |= spread(embedded[key].flatten(0, 1), "feature" if len(self.encoders) == 1 else f"{key}_feature")
        return scores


def inputs(config: Config) -> dict[str, View]:
    """One encoder for both views, or one a modality."""
    return {sensor: View(sensor=sensor) for sensor in config.modalities} or {"all": config.shown()}


def build(config: Config, encoders: dict[str, nn.Module]) -> SimCLR:
    """SimCLR around `encoders`: "all", or one for each of the modalities."""
    return SimCLR(config, encoders)
