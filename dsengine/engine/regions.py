"""Regions of a step that run in another form while training: what `engine.compiled` and `engine.graphs` put in an encoder's place."""

import types
from collections.abc import Callable, Iterator

from torch import Tensor, nn

from dsengine.encoders import Features


class Replaced:
    """An encoder's forward while it trains. In evaluation the encoder runs as it is; so does a copy of it, whose weights are others."""

    def __init__(self, encoder: nn.Module, training: Callable[[Tensor], Features]) -> None:
        self.encoder, self.training = encoder, training

    def __call__(self, x: Tensor) -> Features:
        return self.training(x) if self.encoder.training else own_forward(self.encoder)(x)

    def __deepcopy__(self, memo: dict) -> types.MethodType:
        return own_forward(memo[id(self.encoder)])


def own_forward(encoder: nn.Module) -> types.MethodType:
    """The forward that the encoder's class defines."""
    return types.MethodType(type(encoder).forward, encoder)


def encoders_of(method: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """(name, module) of the method's encoders and of networks of their kind, such as targets that follow them."""
    kinds = {type(encoder) for encoder in method.encoders.values()}
    return ((name, module) for name, module in method.named_modules() if type(module) in kinds and hasattr(module, "dim"))
