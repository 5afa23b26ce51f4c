"""The folder form that timm reads with `timm.create_model("local-dir:FOLDER", pretrained=True)`, and torchgeo with its weights alone.

timm's ResNets have the same key names. They have a max-pool behind the first convolution, so only encoders with the stem `imagenet` are
the same network; one with the paper's stem gives the same features in timm after `model.maxpool = torch.nn.Identity()`.
"""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import nn

from dsengine.errors import UsageError
from dsengine.nn.whitening import without_whitening

NETWORKS = ("resnet18", "resnet34", "resnet50")


def has_timm(encoder: nn.Module, card: dict[str, Any]) -> bool:
    """Whether timm has the network of this encoder."""
    return card["encoder"]["name"] in NETWORKS and getattr(encoder, "pools", False)


def write_timm(encoder: nn.Module, card: dict[str, Any], folder: Path) -> None:
    """config.json and model.safetensors. UsageError where timm has no such network."""
    name = card["encoder"]["name"]
    if not has_timm(encoder, card):
        raise UsageError(f"--formats timm: this encoder ({name}) is not a network of timm; legal: {', '.join(NETWORKS)} with encoder.stem=imagenet "
                         "(others: the format safetensors, see docs/embed.md)")
    save_file({key: value.contiguous() for key, value in without_whitening(encoder.state_dict()).items()}, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config(name, card), indent=1))


def config(name: str, card: dict[str, Any]) -> dict[str, Any]:
    """What timm's loader reads. `first_conv` is None: timm would otherwise try to turn three colour channels into ours."""
    shape = [card["in_channels"], card["patch_size"], card["patch_size"]]
    weights = {"input_size": shape, "fixed_input_size": False, "num_classes": 0, "first_conv": None, "classifier": "fc", "mean": [0.0] * shape[0],
               "std": [1.0] * shape[0], "license": "", "custom_load": False}
    return {"architecture": name, "num_classes": 0, "num_features": card["dim"], "global_pool": "avg", "pretrained_cfg": weights,
            "model_args": {"in_chans": card["in_channels"], "num_classes": 0}}
