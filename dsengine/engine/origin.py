"""Where in a method a value that is not finite first appears, forward or backward. Costs a look at every tensor: for replays alone."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn


@dataclass
class Origin:
    """What the hooks of `watched` saw first; "" where nothing was wrong."""

    forward: str = ""  # the first module whose output is not finite
    backward: str = ""  # where the first gradient that is not finite came from
    _seen: dict[int, tuple[Tensor, list[str]]] = field(default_factory=dict)  # tensors kept alive, so that an id stays theirs


@contextmanager
def watched(module: nn.Module) -> Iterator[Origin]:
    """Look at what every module of `module` takes and returns, and at the gradients of both, until the context ends."""
    origin, handles = Origin(), []
    for name, part in module.named_modules():
        if name:
            title = f"{name} ({type(part).__name__})"
            handles += [part.register_forward_pre_hook(_entering(origin, title)), part.register_forward_hook(_leaving(origin, title))]
    try:
        yield origin
    finally:
        for handle in handles:
            handle.remove()


def _entering(origin: Origin, title: str) -> Any:
    def hook(part: nn.Module, args: tuple) -> None:
        for x in tensors_of(args):
            _follow(origin, x, f"in the backward pass of {title}")

    return hook


def _leaving(origin: Origin, title: str) -> Any:
    def hook(part: nn.Module, args: tuple, output: Any) -> None:
        made = tensors_of(output)
        if not origin.forward and not all(map(finite, made)):
            sound = all(map(finite, tensors_of(args)))
            given = "though its input is finite" if sound else "nor is its input: look at what lies between it and the modules before it"
            own = [name for name, p in part.named_parameters(recurse=False) if not finite(p)]
            origin.forward = f"the output of {title}, {given}" + (f"; its {', '.join(own)} is not finite" if own else "")
        for x in made:
            _follow(origin, x, f"behind {title}")

    return hook


def _follow(origin: Origin, x: Tensor, where: str) -> None:
    """Have the gradient of `x` looked at.

    The tensor between two modules is the output of one and the input of the next, which comes first backward; of several, the last that took it.
    """
    if not x.requires_grad:
        return
    if id(x) in origin._seen:
        origin._seen[id(x)][1].append(where)
        return
    places = [where]
    origin._seen[id(x)] = (x, places)

    def look(gradient: Tensor) -> None:
        if not origin.backward and not finite(gradient):
            origin.backward = next((place for place in reversed(places) if place.startswith("in ")), places[-1])

    x.register_hook(look)


def tensors_of(x: Any) -> list[Tensor]:
    """The floating-point tensors in what a module takes or returns."""
    if isinstance(x, Tensor):
        return [x] if x.is_floating_point() else []
    if isinstance(x, dict):
        x = tuple(x.values())
    return [t for part in x for t in tensors_of(part)] if isinstance(x, (tuple, list)) else []


def finite(x: Tensor) -> bool:
    """Whether every value is."""
    return bool(torch.isfinite(x.detach()).all())
