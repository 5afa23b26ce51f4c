"""torchgeo's SimCLRTask and BYOLTask as its tutorials run them: a NonGeoDataset of GeoTIFFs, its datamodule, kornia on the batch, Lightning.

Kinder to torchgeo than its users are: two files a patch (SSL4EO-S12 has one a band), Adam (the task's own LARS updates tensor by tensor in
Python), no memory bank, no validation, no TensorBoard, the patch's own 112 px instead of BYOLTask's fixed 224.
"""

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import kornia.augmentation as K
import lightning
import numpy as np
import rasterio
import timm
import torch
from lightly.models.modules.heads import ProjectionHead
from lightning.pytorch.loggers import CSVLogger
from peers import job as common
from peers import plain
from peers.job import Data, Job
from torch import Tensor, nn
from torchgeo.datamodules import NonGeoDataModule
from torchgeo.datasets import NonGeoDataset
from torchgeo.trainers import BYOLTask, SimCLRTask
from torchgeo.trainers.simclr import simclr_augmentations


@timm.models.register_model
def peers_convnet(pretrained: bool = False, in_chans: int = 14, **_: object) -> nn.Module:
    """The small encoder under a name that torchgeo's tasks can ask timm for."""
    return plain.Plain(in_chans)


class Patches(NonGeoDataset):
    """One patch: a GeoTIFF a sensor."""

    def __init__(self, folder: Path, names: tuple[str, ...], ids: np.ndarray) -> None:
        self.folder, self.names, self.ids = folder, names, ids

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        images = []
        for name in self.names:
            with rasterio.open(self.folder / f"{name}_{self.ids[index]}.tif") as file:
                images.append(torch.from_numpy(file.read().astype(np.float32)))
        return {"image": torch.cat(images)}


class PatchModule(NonGeoDataModule):
    """As torchgeo's SSL4EOS12DataModule: divided by 10,000 on the batch, workers that persist."""

    mean, std = torch.tensor(0), torch.tensor(10000)

    def __init__(self, data: Data, batch_size: int) -> None:
        super().__init__(Patches, batch_size, common.WORKERS, folder=data.geotiff(), names=data.names, ids=data.ids)

    def setup(self, stage: str) -> None:
        self.dataset = Patches(**self.kwargs)


class Clock(lightning.Callback):
    """When steps began, after the batch is there."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_train_batch_start(self, *_: object) -> None:
        self.times.append(time.perf_counter())


class _Adam:
    """Both tasks with Adam and no schedule."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam([p for p in self.parameters() if p.requires_grad], lr=common.LR)


class SimCLR(_Adam, SimCLRTask):
    """SimCLR v1."""


class BYOL(_Adam, BYOLTask):
    """BYOL; the target shares the trunk of the online network, in torchgeo 0.8.1 (two wrappers of one model)."""


class TorchGeo:
    """See `Side`."""

    def __init__(self, job: Job, data: Data) -> None:
        self.job, self.data = job, data

    def run(self, steps: int) -> list[float]:
        clock = Clock()
        with tempfile.TemporaryDirectory(prefix="peers-torchgeo-") as out:
            self._trainer(out, steps, [clock]).fit(self._task(), datamodule=PatchModule(self.data, self.job.batch))
        return clock.times

    def load(self, batches: int) -> list[float]:
        task, module = self._task(), PatchModule(self.data, self.job.batch)
        module.setup("fit")
        augment, times = self._augmentations(task), []
        for batch in self._batches(module):
            with torch.no_grad(), plain.autocast(self.job):
                x = module.aug(batch)["image"]
                augment(x), augment(x)
            times.append(time.perf_counter())
            if len(times) == batches:
                return times

    def step(self, steps: int) -> list[float]:
        task, times = self._task(), []
        self._without_views(task)
        optimizer = task.configure_optimizers()
        batch = {"image": torch.randn(self.job.batch, 28, self.job.size, self.job.size)}
        for k in range(steps):
            optimizer.zero_grad()
            with plain.autocast(self.job):
                loss = task.training_step(batch, k)
            loss.backward()
            optimizer.step()
            times.append(time.perf_counter())
        return times

    def loss(self, weights: dict[str, Tensor], views: tuple[Tensor, Tensor]) -> tuple[float, float]:
        task = self._task()
        self._without_views(task)
        if self.job.method == "simclr":
            plain.load_weights(task.backbone, [task.projection_head], weights)
        else:
            plain.load_weights(task.model.backbone.model, [task.model.backbone.projector, task.model.predictor], weights)
            task.model.target.projector.load_state_dict(task.model.backbone.projector.state_dict())
        loss = task.training_step({"image": torch.cat(views, 1)}, 0)
        loss.backward()
        return loss.item(), plain.grad_norm([task])

    def _task(self) -> lightning.LightningModule:
        if self.job.method == "byol":
            task = BYOL("peers_convnet", in_channels=14)
            task.model.augment = simclr_augmentations(self.job.size, torch.ones(14))
            return task
        task = SimCLR("peers_convnet", in_channels=14, version=1, layers=2, hidden_dim=common.HIDDEN, output_dim=common.OUT,
                      temperature=common.TEMPERATURE, memory_bank_size=0, size=self.job.size)
        # The task's own head has one more BatchNorm at its end.
        first = (task.backbone.num_features, common.HIDDEN, nn.BatchNorm1d(common.HIDDEN), nn.ReLU())
        task.projection_head = ProjectionHead([first, (common.HIDDEN, common.OUT, None, None)])
        return task

    def _trainer(self, out: str, steps: int, callbacks: list[lightning.Callback]) -> lightning.Trainer:
        return lightning.Trainer(accelerator="cpu", max_steps=steps, precision="bf16-mixed" if self.job.precision == "bf16" else "32-true",
                                 callbacks=callbacks, logger=CSVLogger(out), default_root_dir=out, enable_progress_bar=False,
                                 enable_model_summary=False, limit_val_batches=0)

    @staticmethod
    def _augmentations(task: lightning.LightningModule) -> nn.Module:
        return task.model.augment if isinstance(task, BYOL) else task.augmentations

    @staticmethod
    def _without_views(task: lightning.LightningModule) -> None:
        task.log = lambda *_, **__: None
        if isinstance(task, BYOL):
            task.model.augment = nn.Identity()
        else:
            task.augmentations = nn.Identity()

    @staticmethod
    def _batches(module: PatchModule) -> Iterator[dict[str, Tensor]]:
        return plain.endless(module.train_dataloader())
