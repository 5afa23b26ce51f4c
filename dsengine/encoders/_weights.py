"""Public ResNet weights: a state dict in one of the layouts that are published, put into one of our ResNets, whose keys are torchvision's.

    file -> tensors by key (`read`) -> one network of them, the classification head left off (`backbone`)
         -> first convolution by the names of bands (`adapt`) -> the encoder, every key and shape compared (`load_public`)

The rule for the first convolution W (64, n, 7, 7) of a file with n channels and an encoder with m bands:
- a band that the file has takes its channel's weights; a channel of the file that the encoder lacks is left out;
- a band that the file lacks takes the mean of all n channels, and then all m are multiplied by n / m: an input that is the same in every band
  gives as much as it gave in the file's network, where each band stands in for the mean.

A network that was shown physical values p (reflectance), not z = (p - mean) / std, takes W std, and its first BatchNorm's running mean less the
sum of W mean: W p = (W std) z + sum(W mean), exact but for the padding, which is then the mean and not 0.
"""

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dsengine.errors import UsageError

# Where the networks lie in published files: what their keys begin with, in the order in which they are looked for.
LAYOUTS = {
    "": "torchvision, timm, torchgeo",
    "module.": "torchvision in DataParallel",
    "module.encoder_q.": "MoCo, SSL4EO-S12",
    "encoder_q.": "MoCo",
    "module.base_encoder.": "MoCo v3",
    "base_encoder.": "MoCo v3",
    "module.backbone.": "DINO, SSL4EO-S12",
    "backbone.": "DINO; torchgeo's MoCo and SimCLR tasks",
    "model.": "torchgeo's classification task",
    "model.encoder.": "torchgeo's segmentation task",
    "model.backbone.model.": "torchgeo's BYOL task",
}
CONTAINERS = ("state_dict", "teacher", "model")  # of a checkpoint: where its state dict is; DINO's target network is its teacher
_L2A = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12")
# What the channels of a file are, where their number tells. SSL4EO-S12 has B10 of L1C between B09 and B11.
BANDS = {13: (*_L2A[:10], "B10", *_L2A[10:]), 12: _L2A, 3: ("B04", "B03", "B02"), 2: ("VV", "VH")}


class Adapted(NamedTuple):
    """A first convolution for other bands."""

    weight: Tensor  # (64, m, 7, 7)
    meant: list[str]  # bands that took the mean
    sentence: str  # what was done


def load_public(encoder: nn.Module, path: str | Path, bands: Sequence[str] | None, *, channels: Sequence[str] = (),
                statistics: tuple[Sequence[float], Sequence[float]] | None = None) -> str:
    """Put the ResNet in the file `path` into `encoder`, and say in one line what was done and what was left out.

    bands: names of the encoder's channels; None where they are drawn anew for each sample. channels: names of the file's, where their number
    does not tell. statistics: (mean, std) of `bands` in physical units, for a network that was shown those; None: it was shown z-scores.
    Raises UsageError for a file that is no such network, with the legal layouts, or whose keys or shapes are not the encoder's,
    with each of them.
    """
    if not hasattr(encoder, "conv1"):
        raise UsageError(f"encoder.weights={path}: public weights are of ResNets; legal: a run folder of {type(encoder).__name__}")
    layout, theirs, others = backbone(read(path), path)
    stem = theirs.pop("conv1.weight")
    names = _channels(stem, channels, path)
    ours = encoder.state_dict()
    fresh = _compare(theirs, ours, path)
    conv1 = adapt(stem, names, None if bands is None else tuple(bands), encoder.in_channels)
    if conv1.weight.shape != ours["conv1.weight"].shape:
        raise UsageError(f"encoder.weights={path}: conv1.weight is {tuple(stem.shape)}; legal: (64, any, 7, 7)")
    if statistics is not None:
        if conv1.meant:
            raise UsageError(f"encoder.weights_input=physical: {path} has no {', '.join(conv1.meant)}, whose units it cannot know; legal: zscore")
        mean, std = (torch.tensor(values)[None, :, None, None] for values in statistics)
        theirs["bn1.running_mean"] = theirs["bn1.running_mean"] - (conv1.weight * mean).sum((1, 2, 3))
        conv1 = conv1._replace(weight=conv1.weight * std, sentence=f"{conv1.sentence}; shown physical values")
    encoder.load_state_dict({**theirs, "conv1.weight": conv1.weight}, strict=False)
    pool = "" if encoder.pools else "; trained with a max-pool that this encoder has not (encoder.stem=imagenet has it)"
    notes = [f"; left out: {others}" if others else "", f"; as initialised: {fresh}" if fresh else "", pool]
    return f"weights of {path} ({LAYOUTS[layout]}); {conv1.sentence}{''.join(notes)}"


def read(path: str | Path) -> dict[str, Any]:
    """What a .safetensors file, or a file that torch.save wrote, holds; of the latter only tensors and plain values are ever read."""
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"encoder.weights={path}: no such file; legal: a state dict (.safetensors, .pth), a run folder or what dsengine export wrote")
    try:
        if path.suffix == ".safetensors":
            return _safetensors(path)
        with torch.serialization.safe_globals([argparse.Namespace]):  # DINO's checkpoints hold their command line, plain values
            found = torch.load(path, map_location="cpu", weights_only=True)
    except UsageError:
        raise
    except Exception as error:  # a damaged file, or one of another format, fails anywhere in either reader
        raise UsageError(f"encoder.weights={path}: not readable as tensors alone ({' '.join(str(error).split())[:200]}); "
                         "legal: a state dict as .safetensors or by torch.save") from error
    if not isinstance(found, dict):
        raise UsageError(f"encoder.weights={path}: holds a {type(found).__name__}; legal: a state dict")
    return found


def _safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        if "dsengine" in (file.metadata() or {}):
            raise UsageError(f"encoder.weights={path}: has a contract of its own; legal: dsengine.load_encoder, or train with --set encoder.weights")
        return {key: file.get_tensor(key) for key in file.keys()}


def backbone(found: dict[str, Any], path: str | Path) -> tuple[str, dict[str, Tensor], str]:
    """(layout, tensors of its network by torchvision's keys without the head, what else the file holds)."""
    for name in CONTAINERS:
        if isinstance(found.get(name), dict):
            found = found[name]
            break
    tensors = {key: value for key, value in found.items() if isinstance(value, Tensor)}
    layout = next((prefix for prefix in LAYOUTS if {f"{prefix}conv1.weight", f"{prefix}layer1.0.conv1.weight"} <= tensors.keys()), None)
    if layout is None:
        legal = ", ".join(f"{prefix}conv1.weight ({name})" for prefix, name in LAYOUTS.items())
        raise UsageError(f"encoder.weights={path}: no ResNet in a known layout; its keys begin {_listed(tensors) or 'with no tensor'}; legal: {legal}")
    network = {key.removeprefix(layout): value for key, value in tensors.items() if key.startswith(layout)}
    heads = [key for key in network if key.startswith("fc.")]
    groups = Counter(key.removeprefix("module.").partition(".")[0] for key in tensors if not key.startswith(layout))
    parts = [f"{name} ({count} tensors)" for name, count in groups.items()] + ([f"its head fc ({len(heads)} tensors)"] if heads else [])
    return layout, {key: value for key, value in network.items() if key not in heads}, ", ".join(parts)


def adapt(weight: Tensor, channels: tuple[str, ...], bands: tuple[str, ...] | None, in_channels: int) -> Adapted:
    """The first convolution (O, n, h, w) over `channels` as one over `bands`, by the rule at the top of this file.

    bands: None, or not `in_channels` of them, where those are drawn: each then stands in for the mean.
    """
    if bands is None or len(bands) != in_channels:
        bands = ("drawn",) * in_channels
    found = {name: k for k, name in enumerate(channels)}
    named = [band for band in bands if band in found]
    meant = [band for band in bands if band not in found]
    scale = len(channels) / len(bands) if meant else 1.0
    mean = weight.mean(1)
    adapted = torch.stack([weight[:, found[band]] if band in found else mean for band in bands], dim=1) * scale
    parts = [f"{', '.join(named)} by name"] if named else []
    parts += [f"{', '.join(dict.fromkeys(meant))} as the mean of its {len(channels)} channels, all times {len(channels)}/{len(bands)}"] if meant else []
    unused = [name for name in channels if name not in bands]
    parts += [f"its {', '.join(unused)} not used"] if unused and named else []
    return Adapted(adapted, meant, f"conv1: {'; '.join(parts)}")


def _channels(stem: Tensor, given: Sequence[str], path: str | Path) -> tuple[str, ...]:
    """Names of the file's channels."""
    count = stem.shape[1] if stem.ndim == 4 else 0
    if given and (len(given) != count or len(set(given)) != count):
        raise UsageError(f"encoder.weights_bands={list(given)}: conv1 of {path} has {count} channels; legal: as many names, each once")
    if not given and count not in BANDS:
        known = "; ".join(f"{n}: {', '.join(names)}" for n, names in BANDS.items())
        raise UsageError(f"encoder.weights={path}: conv1 has {count} channels, whose bands are not known; name them in encoder.weights_bands "
                         f"(known without: {known})")
    return tuple(given) or BANDS[count]


def _compare(theirs: dict[str, Tensor], ours: dict[str, Tensor], path: str | Path) -> str:
    """What stays as initialised: attention blocks, which no public file has. UsageError listing every other difference."""
    # Files older than torch 0.4.1 have no counts of batches, and nothing depends on them here.
    wanted = {key for key in ours if key != "conv1.weight" and not key.endswith("num_batches_tracked")}
    fresh = sorted({key.partition(".")[0] for key in wanted - theirs.keys() if key.startswith("attention")})
    missing = sorted(key for key in wanted - theirs.keys() if key.partition(".")[0] not in fresh)
    unexpected = sorted(theirs.keys() - ours.keys())
    shapes = [f"{key} {tuple(value.shape)} (legal: {tuple(ours[key].shape)})" for key, value in theirs.items()
              if key in ours and value.shape != ours[key].shape]
    bad = sorted(key for key, value in theirs.items() if not value.isfinite().all())
    found = [f"{what}: {_listed(keys)}" for what, keys in (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes),
                                                          ("not finite", bad)) if keys]
    if found:
        raise UsageError(f"encoder.weights={path}: is not this encoder; {'; '.join(found)}")
    return ", ".join(fresh)


def _listed(keys: Sequence[str], most: int = 6) -> str:
    """The first few of `keys`, and how many more there are."""
    keys = list(keys)
    return ", ".join(keys[:most]) + (f" and {len(keys) - most} more" if len(keys) > most else "")
