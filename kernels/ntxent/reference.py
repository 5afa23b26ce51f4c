"""Definition of NT-Xent and InfoNCE, and the same in two passes over blocks of rows with a closed-form gradient.

    z = u / |u|,   s_ij = z_i . z_j / tau,   row i of view v has its positive p_w(i) in each other view w
    pairs   l_iw = log sum_{j != i, j in views v and w} exp(s_ij) - s_{i,p_w(i)}: the two-view loss, mean over pairs of views
    all     l_iw = log sum_{j != i, j in any view} exp(s_ij) - s_{i,p_w(i)}
    loss    mean of l_iw over rows i and views w != v;   InfoNCE: l_i = log sum_j exp(s_ij) - s_{i,p(i)} over the keys

Sources: Chen et al., "A Simple Framework for Contrastive Learning", ICML 2020, eq. 1; Oord et al., 2018, eq. 4.

One forward pass keeps M_iw = log sum_{j in w, j != i} exp(s_ij), from which both losses follow. With weights W_iw (`finish`)
the derivative of loss / c in s_ij is exp(s_ij + W_{i,view(j)}), so by the symmetry of s

    dloss/dz_i = c / tau [sum_j (exp(s_ij + W_{i,view(j)}) + exp(s_ij + W_{j,view(i)})) z_j - 2 sum_w z_{p_w(i)}]

is one backward pass: a rank needs (z_j, W_j) of the others and no gradient travels. Projected through the normalisation,
dloss/du_i = (g - (g . z_i) z_i) / |u_i|; and since loss depends on z only by z_i . z_j / tau, dloss/dtau is
-1/(2 tau) sum_i g_i . z_i (without the 2 for InfoNCE, where queries and keys differ).
Legend: V views (U of the rows, W of the columns), B rows a view, R own rows, C columns a view, D features.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

DENOMINATORS = ("pairs", "all")
# exp(s) and exp(-s) need no shift in fp32 while |s| <= BOUND, so a pass needs no running maximum.
BOUND = 40.0
SIDE = 512  # of a tile of similarities: 1 MB in fp32, which stays in a core's second-level cache


def nt_xent(z: Tensor, temperature: float | Tensor = 0.1, denominator: str = "pairs") -> Tensor:
    """(V, B, D) -> loss (): the plain form with every similarity in memory, the oracle of everything else here."""
    V, B, D = z.shape
    x = F.normalize(z.reshape(V * B, D), dim=1)
    s = (x @ x.T / temperature).masked_fill(torch.eye(V * B, dtype=torch.bool, device=z.device), -math.inf)
    s = s.view(V, B, V, B)
    losses = []
    for v in range(V):
        for w in range(V):
            if w != v:
                rows = s[v][:, [v, w]] if denominator == "pairs" else s[v]
                losses.append(torch.logsumexp(rows.flatten(1), 1) - s[v, :, w].diagonal())
    return torch.stack(losses).mean()


def info_nce(queries: Tensor, keys: Tensor, temperature: float | Tensor = 0.1) -> Tensor:
    """(B, D), (K, D) with K >= B -> loss (): key i is the positive of query i, all other keys are negatives. Plain form."""
    s = F.normalize(queries, dim=1) @ F.normalize(keys, dim=1).T / temperature
    return F.cross_entropy(s, torch.arange(len(queries), device=s.device))


def normalise(u: Tensor) -> tuple[Tensor, Tensor]:
    """(V, B, D) any float -> unit rows (B, V, D) in at least fp32, 1 / |u| (V, B). A row of zeros stays one and gets no gradient."""
    u = u if u.dtype == torch.float64 else u.float()
    norm = torch.linalg.vector_norm(u, dim=2)
    inverse = torch.where(norm == 0, 0.0, 1 / norm)
    z_BVD = u.new_empty(u.shape[1], u.shape[0], u.shape[2])
    torch.mul(u, inverse.unsqueeze(2), out=z_BVD.transpose(0, 1))
    return z_BVD, inverse


def forward(rows: Tensor, cols: Tensor, inv_tau: Tensor, start: int, symmetric: bool, bounded: bool) -> Tensor:
    """The pass over similarities that keeps their logsumexp.

    rows (U, R, D), cols (W, C, D): unit rows. inv_tau (). start: the positive of row i is column start + i (of each view).
    symmetric: rows are cols[:, start:start + R], and a row is no column of its own. bounded: 1 / tau <= BOUND.
    Returns M (U, R, W).
    """
    total = torch.full((len(rows), rows.shape[1], len(cols)), 0.0 if bounded else -math.inf, dtype=rows.dtype, device=rows.device)
    add, reduce = (torch.add, torch.sum) if bounded else (torch.logaddexp, torch.logsumexp)
    for t, s in _tiles(rows, cols, inv_tau, symmetric):
        if symmetric and t.u == t.w:
            _own_diagonal(s, t, start).fill_(-math.inf)
        if bounded:
            s.exp_()
        total[t.u, t.row, t.w] = add(total[t.u, t.row, t.w], reduce(s, 1))
        if t.mirrored:
            total[t.w, t.col, t.u] = add(total[t.w, t.col, t.u], reduce(s, 0))
    return total.log_() if bounded else total


def positives(rows: Tensor, cols: Tensor, inv_tau: Tensor) -> Tensor:
    """Similarities of row i to column i of each view (U, R, W), in the dtype of inv_tau; columns from R on have no row."""
    return torch.stack([(rows * view).sum(2, dtype=inv_tau.dtype) for view in cols[:, :rows.shape[1]]], dim=2) * inv_tau


def backward(rows: Tensor, cols: Tensor, row_weight: Tensor, col_weight: Tensor, row_scale: Tensor, inv_tau: Tensor,
             start: int, num_positive: int, symmetric: bool, bounded: bool) -> tuple[Tensor, Tensor]:
    """The pass that recomputes the similarities and yields the gradient of `rows`, projected through the normalisation.

    As `forward`, with row_weight (U, R, W) and col_weight (W, C, U), -inf where a term is absent; row_scale (U, R), which
    multiplies the result; num_positive: rows from here on have no positive. Returns the gradient (U, R, D) and, before
    scaling, its component along the row (U, R).
    """
    grad = torch.zeros(rows.shape, dtype=rows.dtype, device=rows.device)
    row_factor, col_factor = (row_weight.exp(), col_weight.exp()) if bounded else (row_weight, col_weight)
    for t, s in _tiles(rows, cols, inv_tau, symmetric):
        coefficient = _coefficients(s, row_factor[t.u, t.row, t.w, None], col_factor[t.w, t.col, t.u], bounded)
        if symmetric and t.u == t.w:
            _own_diagonal(coefficient, t, start).zero_()
        grad[t.u, t.row].addmm_(coefficient, cols[t.w, t.col])
        if t.mirrored:
            grad[t.w, t.col].addmm_(coefficient.T, rows[t.u, t.row])
    for u in range(len(rows)):
        for w in range(len(cols)):
            if not (symmetric and u == w):
                grad[u, :num_positive].sub_(cols[w, start:start + num_positive], alpha=2 if symmetric else 1)
    along = (grad * rows).sum(2)
    return grad.addcmul_(along.unsqueeze(2), rows, value=-1).mul_(row_scale.unsqueeze(2)), along


class _Tile(NamedTuple):
    """Rows `row` of view u against columns `col` of view w; `mirrored`: it stands for its transpose too."""

    u: int
    row: slice
    w: int
    col: slice
    mirrored: bool


def _tiles(rows: Tensor, cols: Tensor, inv_tau: Tensor, symmetric: bool) -> Iterator[tuple[_Tile, Tensor]]:
    """Every tile with its similarities, in a reused buffer.

    Where the rows are all the columns, the similarities are a symmetric matrix and only one triangle of it is made.
    """
    whole = symmetric and rows.shape[1] == cols.shape[1]
    buffer = rows.new_empty(SIDE * SIDE)
    for a, (u, row) in enumerate(_blocks(rows)):
        scaled = rows[u, row] * inv_tau
        for b, (w, col) in enumerate(_blocks(cols)):
            if not whole or a <= b:
                s = buffer[:len(scaled) * (col.stop - col.start)].view(len(scaled), -1)
                yield _Tile(u, row, w, col, whole and a < b), torch.mm(scaled, cols[w, col].T, out=s)


def _blocks(x: Tensor) -> Iterator[tuple[int, slice]]:
    """Each view in blocks of SIDE rows."""
    for view in range(len(x)):
        for first in range(0, x.shape[1], SIDE):
            yield view, slice(first, min(first + SIDE, x.shape[1]))


def _own_diagonal(s: Tensor, t: _Tile, start: int) -> Tensor:
    """The entries of a tile (of one view) where a row meets itself; empty where the tile has none."""
    offset = start + t.row.start - t.col.start
    return s.diagonal(offset) if -s.shape[0] < offset < s.shape[1] else s[:0, 0]


def _coefficients(s: Tensor, row: Tensor, col: Tensor, bounded: bool) -> Tensor:
    """exp(s + row weight) + exp(s + col weight), in place of s; `row`, `col` are exponentials already when bounded."""
    if bounded:
        return s.exp_().mul_(row + col)
    by_row = (s + row).exp_()
    return s.add_(col).exp_().add_(by_row)


def finish(lse: Tensor, positive: Tensor, denominator: str) -> tuple[Tensor, Tensor]:
    """M and positives (V, B, V) -> the sum of l_iw () and the weights W (V, B, V) of the gradient."""
    V = len(lse)
    own = torch.eye(V, dtype=torch.bool, device=lse.device).unsqueeze(1)
    if denominator == "all":
        total = torch.logsumexp(lse, 2, keepdim=True).expand_as(lse)
        weight = math.log(V - 1) - total
    else:
        total = torch.logaddexp(lse.diagonal(dim1=0, dim2=2).T.unsqueeze(2), lse)
        others = (-total).masked_fill(own, -math.inf)
        weight = torch.where(own, torch.logsumexp(others, 2, keepdim=True), others)
    return (total - positive).masked_fill(own, 0).sum(), weight.contiguous()
