"""What users of torch write around any of the libraries: the encoder without grouped BatchNorm, autocast, weights by order, times of steps."""

import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from typing import TypeVar

import torch
from peers import declare_torchvision_operators
from peers import job as common
from peers.convnet import Plain
from peers.job import Data, Job
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

T = TypeVar("T")


class Loop(ABC):
    """A `Side` that is a Dataset of pairs of views, a DataLoader with workers that persist, a model, a criterion and a plain loop."""

    def __init__(self, job: Job, data: Data) -> None:
        self.job, self.data = job, data

    @abstractmethod
    def dataset(self) -> Dataset:
        """Of pairs of views (14, s, s)."""

    @abstractmethod
    def model(self) -> nn.Module:
        """(B, 14, s, s) -> (B, D)."""

    @abstractmethod
    def criterion(self, first: Tensor, second: Tensor) -> Tensor:
        """The loss () of what the model made of both views."""

    def run(self, steps: int) -> list[float]:
        times: list[float] = []
        self._train(stamped(self._batches(), times), steps)
        return times[:steps]

    def load(self, batches: int) -> list[float]:
        times: list[float] = []
        for _, _ in zip(range(batches), stamped(self._batches(), times)):
            pass
        return times

    def step(self, steps: int) -> list[float]:
        views = [torch.randn(self.job.batch, 14, self.job.size, self.job.size) for _ in range(2)]
        return self._train(iter(lambda: views, None), steps)

    def _batches(self) -> Iterator[list[Tensor]]:
        return endless(DataLoader(self.dataset(), self.job.batch, shuffle=True, drop_last=True, num_workers=common.WORKERS, persistent_workers=True))

    def _train(self, batches: Iterator[list[Tensor]], steps: int) -> list[float]:
        model, times = self.model(), []
        optimizer = torch.optim.Adam(model.parameters(), lr=common.LR)
        for _, (first, second) in zip(range(steps), batches):
            with autocast(self.job):
                loss = self.criterion(model(first), model(second))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            times.append(time.perf_counter())
        return times


def encoder(job: Job) -> nn.Module:
    """(B, 14, s, s) -> (B, D), the same network as ours, with torch's BatchNorm; state_dict names are ours too."""
    if job.encoder == "convnet":
        return Plain(14)
    declare_torchvision_operators()
    from torchvision.models import resnet18

    net = resnet18(weights=None)
    net.conv1 = nn.Conv2d(14, 64, 7, 2, 3, bias=False)
    net.maxpool, net.fc = nn.Identity(), nn.Identity()
    net.num_features = 512
    return net


def autocast(job: Job) -> AbstractContextManager:
    """bf16 where the job asks for it."""
    return torch.autocast("cpu", dtype=torch.bfloat16, enabled=job.precision == "bf16")


def load_weights(net: nn.Module, heads: Iterable[nn.Module], weights: dict[str, Tensor]) -> None:
    """Weights as `Side.loss` has them. A bias before a BatchNorm, which ours has not, becomes 0: the BatchNorm takes it off."""
    net.load_state_dict({name.removeprefix("encoder."): w for name, w in weights.items() if name.startswith("encoder.")})
    left = [weights[f"head.{k}"] for k in range(sum(name.startswith("head.") for name in weights))]
    for head in heads:
        layers = [layer for layer in head.modules() if isinstance(layer, nn.Linear | nn.BatchNorm1d)]
        for layer, after in zip(layers, [*layers[1:], None]):
            layer.weight.data.copy_(left.pop(0))
            if isinstance(layer, nn.Linear) and isinstance(after, nn.BatchNorm1d):
                if layer.bias is not None:
                    layer.bias.data.zero_()
            else:
                layer.bias.data.copy_(left.pop(0))
    assert not left


def grad_norm(modules: Iterable[nn.Module]) -> float:
    """Norm of all gradients; one layer's more or less of zeros changes nothing."""
    grads = [p.grad for module in modules for p in module.parameters() if p.grad is not None]
    return float(torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in grads])))


def stamped(items: Iterable[T], times: list[float]) -> Iterator[T]:
    """`items`, each noted in `times` when it is there."""
    for item in items:
        times.append(time.perf_counter())
        yield item


def endless(loader: Iterable[T]) -> Iterator[T]:
    """Epoch after epoch."""
    while True:
        yield from loader
