"""Whether features still tell samples apart: three numbers that show an encoder's collapse, cheap enough for every step."""

import torch
import torch.nn.functional as F
from torch import Tensor

_PAIRED = 256  # rows of which all pairs are compared; 32,640 pairs


@torch.no_grad()
def spread(x_BD: Tensor, name: str = "feature") -> dict[str, Tensor]:
    """{name_std, name_rank, name_uniformity} of B rows, in at least fp32, detached.

    std: mean per-dimension std of the L2-normalised rows, times sqrt(D): 0 when all rows point one way, 1 when they point
    everywhere. rank: (sum of l)^2 / (sum of l^2) over the eigenvalues l of their covariance, in [1, min(B - 1, D)]: near 1
    when they vary along one line only. uniformity: log of the mean of exp(-2 |x - y|^2) over pairs of the first 256 rows, in [-8, 0]: 0 when all
    are one point, about -4 when they lie everywhere (Wang, Isola, "Understanding contrastive representation learning through alignment and
    uniformity on the hypersphere", ICML 2020). Statistics of this rank's rows; what is logged is their mean over ranks.
    """
    with torch.autocast(x_BD.device.type, enabled=False):
        unit = F.normalize(x_BD.to(torch.promote_types(x_BD.dtype, torch.float32)), dim=1)
        centred = unit - unit.mean(0)
        # The smaller of the two Gram matrices has the same eigenvalues; its trace and its Frobenius norm give both sums.
        gram = centred @ centred.T if len(centred) < centred.shape[1] else centred.T @ centred
        some = centred[:_PAIRED]
        square = some.square().sum(1)
        near = torch.exp(-2 * (square[:, None] + square - 2 * some @ some.T).clamp(min=0))
    pairs = max(1, len(some) * (len(some) - 1))
    uniformity = ((near.sum() - near.diagonal().sum()) / pairs).clamp(min=torch.finfo(near.dtype).tiny).log()
    std = centred.square().mean(0).sqrt().mean() * x_BD.shape[1] ** 0.5
    rank = gram.diagonal().sum().square() / gram.square().sum().clamp(min=torch.finfo(gram.dtype).tiny)
    return {f"{name}_std": std, f"{name}_rank": rank, f"{name}_uniformity": uniformity}
