"""Whether features still tell samples apart: two numbers that fall when an encoder collapses, cheap enough for every step."""

import torch
import torch.nn.functional as F
from torch import Tensor


@torch.no_grad()
def spread(x_BD: Tensor, name: str = "feature") -> dict[str, Tensor]:
    """{name_std, name_rank} of B rows, in at least fp32, detached.

    std: mean per-dimension std of the L2-normalised rows, times sqrt(D): 0 when all rows point one way, 1 when they point
    everywhere. rank: (sum of l)^2 / (sum of l^2) over the eigenvalues l of their covariance, in [1, min(B - 1, D)]: near 1
    when they vary along one line only. Statistics of this rank's rows; what is logged is their mean over ranks.
    """
    with torch.autocast(x_BD.device.type, enabled=False):
        unit = F.normalize(x_BD.to(torch.promote_types(x_BD.dtype, torch.float32)), dim=1)
        centred = unit - unit.mean(0)
        # The smaller of the two Gram matrices has the same eigenvalues; its trace and its Frobenius norm give both sums.
        gram = centred @ centred.T if len(centred) < centred.shape[1] else centred.T @ centred
    std = centred.square().mean(0).sqrt().mean() * x_BD.shape[1] ** 0.5
    rank = gram.diagonal().sum().square() / gram.square().sum().clamp(min=torch.finfo(gram.dtype).tiny)
    return {f"{name}_std": std, f"{name}_rank": rank}
