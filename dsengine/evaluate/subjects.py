"""Who is judged: pretrained encoders, their untrained twins, and floors that learned nothing.

A floor is an nn.Module that returns `Features` like an encoder, so one code path judges all of them.
"""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsengine.corpus.schema import Contract
from dsengine.encoders import Features, build_encoder
from dsengine.errors import UsageError, nearest

FLOORS = ("statistics", "untrained", "rcf")


@dataclass(frozen=True, kw_only=True)
class Subject:
    """An encoder in eval mode on the CPU, and what it must be shown."""

    name: str  # its row in the tables
    kind: str  # pretrained | untrained | floor
    encoder: nn.Module
    contract: Contract  # bands that it was shown, in order, with units and statistics
    about: dict[str, Any]  # where it comes from, for results.json

    @property
    def channels(self) -> int:
        """Bands that it takes at once; fewer than the contract has: any of them."""
        return getattr(self.encoder, "in_channels", len(self.contract.bands))

    @property
    def takes_any(self) -> bool:
        """Whether it was shown bands drawn at random, so that each call must say which."""
        return self.channels < len(self.contract.bands)

    def digest(self) -> str:
        """sha256 of its weights and of what computes with them."""
        bands = [band.name for band in self.contract.bands]
        sha = hashlib.sha256(f"{type(self.encoder).__qualname__} {getattr(self.encoder, 'recipe', '')} {self.channels} {bands}".encode())
        for name, tensor in sorted(self.encoder.state_dict().items()):
            sha.update(name.encode())
            sha.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        return sha.hexdigest()


def pretrained(run: str, *, part: str | None = None) -> Subject:
    """The encoder of `run`: DIR or NAME=DIR, a run or checkpoint folder. part: which, where it has several. UsageError as of `load_encoder`."""
    from dsengine.engine.checkpoint import latest, load_encoder, read

    name, folder = run.split("=", 1) if "=" in run and not Path(run).exists() else (None, run)
    path = Path(folder)
    checkpoint = read(path) if (path / "manifest.json").exists() else latest(path)[0]
    encoder, contract = load_encoder(path, None if checkpoint is not None and len(checkpoint.inputs or ()) == 1 else part)
    about = {"path": str(path), "encoder": encoder.recipe, "input": part}
    if checkpoint is not None:
        config = checkpoint.config
        about |= {"checkpoint": checkpoint.path.name, "step": checkpoint.step, "method": config["method"], "pretrained_on": config["corpus"],
                  "seed": config["train"]["seed"]}
    return Subject(name=name or path.resolve().name, kind="pretrained", encoder=encoder, contract=contract, about=about)


def untrained(recipe: dict[str, Any], contract: Contract, *, seed: int, channels: int | None = None) -> Subject:
    """A freshly initialised encoder of that recipe (`build_encoder`): its name and the settings of its shape."""
    channels, settings = len(contract.bands) if channels is None else channels, dict(recipe)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = build_encoder(settings.pop("name"), channels, **settings).eval()
    return Subject(name=f"untrained {recipe['name']}", kind="untrained", encoder=encoder, contract=contract, about={"encoder": recipe, "seed": seed})


def twin(subject: Subject, *, seed: int) -> Subject:
    """The same encoder before any training. UsageError where nothing says how it was made."""
    inner = subject.encoder.encoder if isinstance(subject.encoder, Repeated) else subject.encoder
    recipe = getattr(inner, "recipe", None)
    if recipe is None:
        raise UsageError(f"floors: nothing says how the encoder of {subject.name} was made, so it has no untrained twin; "
                         "legal: other floors, or none")
    if inner is subject.encoder:
        return untrained(recipe, subject.contract, seed=seed, channels=subject.channels)
    fresh = untrained(recipe, subject.contract, seed=seed, channels=subject.encoder.times)
    return replace(fresh, name=f"{fresh.name}, band repeated", encoder=Repeated(fresh.encoder, subject.encoder.times))


def with_floors(subjects: list[Subject], names: tuple[str, ...], *, seed: int) -> list[Subject]:
    """`subjects`, then each floor of `names` once for each kind of input that they have. UsageError for a name that is none."""
    for name in names:
        if name not in FLOORS:
            raise UsageError(f"floors: {name!r} is unknown, {nearest(name, FLOORS)}; or none")
    known = {subject.digest() for subject in subjects}
    floors: dict[str, Subject] = {}
    for subject in subjects:
        for name in names:
            floor = _floor(name, subject, seed=seed)
            if (digest := floor.digest()) not in known:
                floors.setdefault(digest, floor)
    return _distinct([*subjects, *floors.values()])


def _distinct(subjects: list[Subject]) -> list[Subject]:
    """The same, with a number behind names that come twice."""
    names = [subject.name for subject in subjects]
    again = [names[:k].count(name) for k, name in enumerate(names)]
    return [replace(subject, name=f"{subject.name} ({count + 1})") if count else subject for subject, count in zip(subjects, again)]


def _floor(name: str, subject: Subject, *, seed: int) -> Subject:
    if name == "untrained":
        return twin(subject, seed=seed)
    module = Statistics(subject.channels) if name == "statistics" else RandomConvolutions(subject.channels, seed=seed)
    title = "image statistics" if name == "statistics" else "random convolutions"
    return Subject(name=title, kind="floor", encoder=module.eval(), contract=subject.contract, about={"floor": name, "seed": seed})


class Statistics(nn.Module):
    """(B, C, H, W) -> the mean and the standard deviation of each band over the crop: (B, 2C)."""

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.in_channels, self.dim = in_channels, 2 * in_channels

    def forward(self, x: Tensor) -> Features:
        """No map."""
        x = x.float()
        return Features(torch.cat((x.mean((2, 3)), x.std((2, 3), correction=0)), dim=1), None)


class RandomConvolutions(nn.Module):
    """(B, C, H, W) -> (B, 2K): K random 3x3 filters, both signs through a ReLU at a threshold, averaged over the crop.

    Rolf et al., "A generalizable and accessible approach to machine learning with global satellite imagery", Nature Communications 12
    (2021); Gaussian filters here, patches of the training set there. A filter's response to white noise has variance 1; the threshold is 1.
    """

    def __init__(self, in_channels: int, *, filters: int = 256, seed: int = 0) -> None:
        super().__init__()
        self.in_channels, self.dim = in_channels, 2 * filters
        weight = torch.randn(filters, in_channels, 3, 3, generator=torch.Generator().manual_seed(seed))
        self.register_buffer("weight", weight / (9 * in_channels) ** 0.5)

    def forward(self, x: Tensor) -> Features:
        """No map."""
        y = F.conv2d(x.float(), self.weight)
        return Features(torch.cat((F.relu(y - 1).mean((2, 3)), F.relu(-y - 1).mean((2, 3))), dim=1), None)


class Repeated(nn.Module):
    """An encoder of `times` channels shown one band `times` over, as the ImageNet row of the third paper's Table I."""

    in_channels = 1

    def __init__(self, encoder: nn.Module, times: int = 3) -> None:
        super().__init__()
        self.encoder, self.times, self.dim, self.recipe = encoder, times, encoder.dim, {"repeated": encoder.recipe}

    def forward(self, x: Tensor) -> Features:
        """x (B, 1, H, W)."""
        return self.encoder(x.expand(-1, self.times, -1, -1))
