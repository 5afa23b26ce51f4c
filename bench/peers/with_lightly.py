"""lightly as its documentation has it: MultiViewTransform in a Dataset, a DataLoader, its projection head and NTXentLoss, a plain loop.

Kinder than its users are: an uncompressed .npy a patch, tensor transforms of torchvision v2 (its own SimCLRTransform is for RGB images of
Pillow), Adam, workers that persist.
"""

import numpy as np
import torch
from lightly.loss import NTXentLoss
from lightly.models.modules.heads import ProjectionHead
from lightly.transforms.multi_view_transform import MultiViewTransform
from peers import job as common
from peers import plain
from peers.job import Data, Job
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchvision.transforms import v2


class Scale(nn.Module):
    """z-score by band."""

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.mean, self.std = mean, std

    def forward(self, x: Tensor) -> Tensor:
        return (x.float() - self.mean) / self.std


class Light(nn.Module):
    """Brightness and contrast of all bands, as v2.ColorJitter has them for RGB; each with probability 0.8."""

    def forward(self, x: Tensor) -> Tensor:
        brightness, contrast, gate = torch.empty(2).uniform_(0.8, 1.2), torch.empty(2).uniform_(0.8, 1.2), torch.rand(2)
        x = x * brightness[0] if gate[0] < 0.8 else x
        return torch.lerp(x.mean((1, 2), keepdim=True), x, contrast[0]) if gate[1] < 0.8 else x


class Patches(Dataset):
    """One patch in two views."""

    def __init__(self, data: Data, size: int) -> None:
        self.folder, self.ids = data.npy(), data.ids
        view = v2.Compose([
            Scale(data.mean, data.std), v2.RandomResizedCrop(size, scale=common.CROP_AREA, ratio=common.CROP_RATIO), v2.RandomHorizontalFlip(),
            v2.RandomVerticalFlip(), Light(), v2.RandomApply([v2.GaussianBlur(11, common.BLUR_SIGMA)], p=common.BLUR)])
        self.transform = MultiViewTransform([view, view])

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> list[Tensor]:
        return self.transform(torch.from_numpy(np.load(self.folder / f"{self.ids[index]}.npy")))


class SimCLR(nn.Module):
    """The model of lightly's SimCLR example."""

    def __init__(self, job: Job) -> None:
        super().__init__()
        self.backbone = plain.encoder(job)
        self.projection_head = ProjectionHead([(self.backbone.num_features, common.HIDDEN, nn.BatchNorm1d(common.HIDDEN), nn.ReLU()),
                                               (common.HIDDEN, common.OUT, None, None)])

    def forward(self, x: Tensor) -> Tensor:
        return self.projection_head(self.backbone(x))


class Lightly(plain.Loop):
    """See `Side`."""

    def __init__(self, job: Job, data: Data) -> None:
        super().__init__(job, data)
        self.nt_xent = NTXentLoss(common.TEMPERATURE)

    def dataset(self) -> Dataset:
        return Patches(self.data, self.job.size)

    def model(self) -> nn.Module:
        return SimCLR(self.job)

    def criterion(self, first: Tensor, second: Tensor) -> Tensor:
        return self.nt_xent(first, second)

    def loss(self, weights: dict[str, Tensor], views: tuple[Tensor, Tensor]) -> tuple[float, float]:
        model = self.model()
        plain.load_weights(model.backbone, [model.projection_head], weights)
        loss = self.criterion(model(views[0]), model(views[1]))
        loss.backward()
        return loss.item(), plain.grad_norm([model])
