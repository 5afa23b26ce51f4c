"""ResNets as others publish them, made here: torchvision's keys by its naming, the layouts around them, and the network as a function."""

from argparse import Namespace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCKS = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3)}
L1C = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B10", "B11", "B12")
L2A = tuple(band for band in L1C if band != "B10")


def network(depth: int, channels: int, *, seed: int = 0, classes: int = 7) -> dict[str, Tensor]:
    """Weights of torchvision's ResNet of 18 or 50 layers, with statistics as after training."""
    g = torch.Generator().manual_seed(seed)
    w: dict[str, Tensor] = {}

    def conv(key: str, out: int, into: int, side: int) -> None:
        w[f"{key}.weight"] = torch.randn(out, into, side, side, generator=g) * (2 / (into * side * side)) ** 0.5

    def norm(key: str, size: int) -> None:
        for name, low in (("weight", 0.5), ("bias", -0.5), ("running_mean", -0.5), ("running_var", 0.5)):
            w[f"{key}.{name}"] = torch.rand(size, generator=g) + low
        w[f"{key}.num_batches_tracked"] = torch.tensor(100)

    conv("conv1", 64, channels, 7)
    norm("bn1", 64)
    into, growth = 64, 4 if depth == 50 else 1
    for layer, (blocks, width) in enumerate(zip(BLOCKS[depth], (64, 128, 256, 512)), 1):
        for block in range(blocks):
            key = f"layer{layer}.{block}"
            sides = (1, 3, 1) if depth == 50 else (3, 3)
            widths = [into, *[width] * (len(sides) - 1), growth * width]
            for k, side in enumerate(sides):
                conv(f"{key}.conv{k + 1}", widths[k + 1], widths[k], side)
                norm(f"{key}.bn{k + 1}", widths[k + 1])
            if block == 0 and (layer > 1 or depth == 50):
                conv(f"{key}.downsample.0", growth * width, into, 1)
                norm(f"{key}.downsample.1", growth * width)
            into = growth * width
    w["fc.weight"], w["fc.bias"] = torch.randn(classes, into, generator=g), torch.randn(classes, generator=g)
    return w


def features(w: dict[str, Tensor], x: Tensor, *, depth: int) -> Tensor:
    """The last map of the network of weights `w`, in evaluation, by torch's own operators; max-pool behind the stem, as torchvision has it."""

    def norm(x: Tensor, key: str) -> Tensor:
        return F.batch_norm(x, w[f"{key}.running_mean"], w[f"{key}.running_var"], w[f"{key}.weight"], w[f"{key}.bias"])

    x = F.max_pool2d(norm(F.conv2d(x, w["conv1.weight"], stride=2, padding=3), "bn1").relu(), 3, 2, 1)
    for layer, blocks in enumerate(BLOCKS[depth], 1):
        for block in range(blocks):
            key, stride = f"layer{layer}.{block}", 2 if layer > 1 and block == 0 else 1
            if depth == 50:
                y = norm(F.conv2d(x, w[f"{key}.conv1.weight"]), f"{key}.bn1").relu()
                y = norm(F.conv2d(y, w[f"{key}.conv2.weight"], stride=stride, padding=1), f"{key}.bn2").relu()
                y = norm(F.conv2d(y, w[f"{key}.conv3.weight"]), f"{key}.bn3")
            else:
                y = norm(F.conv2d(x, w[f"{key}.conv1.weight"], stride=stride, padding=1), f"{key}.bn1").relu()
                y = norm(F.conv2d(y, w[f"{key}.conv2.weight"], padding=1), f"{key}.bn2")
            if f"{key}.downsample.0.weight" in w:
                x = norm(F.conv2d(x, w[f"{key}.downsample.0.weight"], stride=stride), f"{key}.downsample.1")
            x = (x + y).relu()
    return x


def _under(prefix: str, tensors: dict[str, Tensor], *, head: bool = True) -> dict[str, Tensor]:
    return {f"{prefix}{key}": value for key, value in tensors.items() if head or not key.startswith("fc.")}


def published(layout: str, w: dict[str, Tensor], other: dict[str, Tensor]) -> dict:
    """`w` as the checkpoint of `layout` holds it; `other` is the network beside it that nobody wants (key encoder, student, momentum)."""
    bare = {key: value for key, value in w.items() if not key.startswith("fc.")}
    small = torch.zeros(3)
    if layout == "torchvision":
        return w
    if layout == "torchgeo":  # its converted files have no head
        return bare
    if layout == "moco":  # SSL4EO-S12, main_moco_v2: DistributedDataParallel, two networks, an MLP head, a queue
        head = {"module.encoder_q.fc.0.weight": small, "module.encoder_q.fc.2.bias": small, "module.queue": small, "module.queue_ptr": torch.zeros(1)}
        state = _under("module.encoder_q.", bare) | _under("module.encoder_k.", other) | head
        return {"epoch": 100, "arch": "resnet50", "state_dict": state, "optimizer": {"state": {}, "param_groups": [{"lr": 0.03}]}}
    if layout == "dino":  # SSL4EO-S12, main_dino: student and teacher in DistributedDataParallel, the command line beside them
        nets = {name: _under("module.backbone.", net, head=False) | {"module.head.mlp.0.weight": small} for name, net in (("teacher", w), ("student", other))}
        return {"student": nets["student"], "teacher": nets["teacher"], "epoch": 100, "args": Namespace(arch="resnet50", bands="B13"), "optimizer": {}}
    if layout == "torchgeo classification":
        return {"state_dict": _under("model.", w), "hyper_parameters": {"model": "resnet18", "in_channels": 13}, "pytorch-lightning_version": "2.0"}
    if layout == "torchgeo moco":
        state = _under("backbone_momentum.", bare) | _under("backbone.", bare) | {"projection_head.layers.0.weight": small}
        return {"state_dict": state | _under("backbone_momentum.", other, head=False), "hyper_parameters": {"model": "resnet18"}}
    if layout == "torchgeo byol":
        return {"state_dict": _under("model.backbone.model.", w) | _under("model.target.model.", other), "hyper_parameters": {"backbone": "resnet18"}}
    if layout == "torchgeo segmentation":
        return {"state_dict": _under("model.encoder.", bare) | {"model.decoder.blocks.0.weight": small, "criterion.weight": small}}
    raise ValueError(layout)


def save(found: dict, path: Path) -> Path:
    """As .safetensors, or by torch.save."""
    if path.suffix == ".safetensors":
        from safetensors.torch import save_file

        save_file(found, path)
    else:
        torch.save(found, path)
    return path
