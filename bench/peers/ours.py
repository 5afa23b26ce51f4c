"""Ours: `dsengine.train` with its defaults, on the corpus."""

import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import torch
from peers import job as common
from peers.job import Data, Job
from peers.plain import grad_norm
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

import dsengine
from dsengine import config as configuration
from dsengine.data.open import open_loader
from dsengine.data.sample import Batch, sized
from dsengine.dist import SOLO
from dsengine.engine.optim import make_optimizer
from dsengine.engine.precision import place, view_dtype
from dsengine.engine.step import Step
from dsengine.methods import Method
from dsengine.nn.norm import set_groups

# One jitter of a random triple stands beside the peers' brightness and contrast of all bands.
TWO_VIEWS = {"crop_area": common.CROP_AREA, "crop_ratio": common.CROP_RATIO, "blur": common.BLUR, "blur_sigma": common.BLUR_SIGMA,
             "dihedral": "independent", "jitters": 1, "jitter_strength": 0.2}
METHODS = {
    "simclr": {**TWO_VIEWS, "temperature": common.TEMPERATURE, "hidden": common.HIDDEN, "out": common.OUT},
    "byol": {**TWO_VIEWS, "hidden": 4096, "out": 256, "tau": 0.99},
    "csf": {"jitters": (common.JITTERS,) * 2, "jitter_strength": (common.STRENGTH,) * 2, "band_dropout": (common.DROPOUT,) * 2,
            "shift_px": (common.SHIFT,) * 2, "margin": common.MARGIN, "warmup": 0, "ramp": 0},
}


class Ours:
    """See `Side`."""

    def __init__(self, job: Job, data: Data) -> None:
        self.job, self.data = job, data
        self.encoder = "peers.convnet" if job.encoder == "convnet" else job.encoder
        self.train = {"batch_size": job.batch, "precision": job.precision, "lr": common.LR, "epochs": 1_000_000, "heldout_samples": 2}

    def run(self, steps: int) -> list[float]:
        out, times = Path(tempfile.mkdtemp(prefix="peers-ours-")), []
        settings = {"corpus": str(self.data.corpus.path), "out": str(out / "run"), "encoder": self.encoder,
                    "method": {"name": self.job.method, **METHODS[self.job.method]}, "data": {"size": self.job.size},
                    "train": {**self.train, "max_steps": steps}}
        try:
            with _noting_steps(times):
                dsengine.train(**settings)
        finally:
            shutil.rmtree(out)
        return times

    def load(self, batches: int) -> list[float]:
        method = self._method()
        epoch = len(self.data.ids) // self.job.batch
        with open_loader(self.data.corpus, sized(method.views, self.job.size), self.job.batch, dtype=view_dtype(self.job.precision),
                         num_threads=common.TORCH_THREADS) as loader:
            for _ in islice(loader, epoch):  # fills the tier that `auto` chose
                pass
            return [time.perf_counter() for _ in islice(loader, batches)]

    def step(self, steps: int) -> list[float]:
        method = place(self._method(), self.job.precision, torch.device("cpu"))
        set_groups(method, self.job.batch, self.job.batch)
        setting = configuration.resolve({"train": self.train}).train
        step = Step(method, make_optimizer(method, setting), precision=self.job.precision, world=SOLO)
        shape, dtype = (self.job.batch, 14, self.job.size, self.job.size), view_dtype(self.job.precision)
        views = tuple(torch.randn(shape).to(dtype, memory_format=torch.channels_last) for _ in range(2))
        batch, times = Batch(views, torch.arange(self.job.batch)), []
        for k in range(steps):
            step(batch._replace(step=k), lr=common.LR)
            method.after_step(0.5)
            times.append(time.perf_counter())
        return times

    def loss(self, weights: dict[str, Tensor], views: tuple[Tensor, Tensor]) -> tuple[float, float]:
        method = self._method()
        (encoder,) = method.encoders.values()
        encoder.load_state_dict({name.removeprefix("encoder."): w for name, w in weights.items() if name.startswith("encoder.")})
        for k, parameter in enumerate(head_parameters(method)):
            parameter.data.copy_(weights[f"head.{k}"])
        if self.job.method == "byol":
            method.target_encoder.load_state_dict(encoder.state_dict())
            method.target_projector.load_state_dict(method.projector.state_dict())
        set_groups(method, len(views[0]), len(views[0]))
        loss = method(Batch(views, torch.arange(len(views[0]))))["loss"]
        loss.backward()
        return loss.item(), grad_norm([method])

    def _method(self) -> Method:
        return dsengine.build_method(self.job.method, encoder=dsengine.build_encoder(self.encoder, 14), **METHODS[self.job.method])


def head_parameters(method: Method) -> list[nn.Parameter]:
    """Of projector, then predictor, as far as there are any."""
    heads = [*method.projectors.values()] if hasattr(method, "projectors") else [getattr(method, name, None) for name in ("projector", "predictor")]
    return [p for head in heads if head is not None for p in head.parameters()]


def fresh_weights(job: Job, data: Data) -> dict[str, Tensor]:
    """Weights as `Side.loss` takes them, from seed 0."""
    torch.manual_seed(0)
    method = Ours(job, data)._method()
    (encoder,) = method.encoders.values()
    return {**{f"encoder.{name}": w.clone() for name, w in encoder.state_dict().items()},
            **{f"head.{k}": p.detach().clone() for k, p in enumerate(head_parameters(method))}}


@contextmanager
def _noting_steps(times: list[float]) -> Iterator[None]:
    """The time of each forward pass of a method in training goes to `times`."""
    def note(module: nn.Module, _: object) -> None:
        if isinstance(module, Method) and module.training:
            times.append(time.perf_counter())

    handle = register_module_forward_pre_hook(note)
    try:
        yield
    finally:
        handle.remove()
