"""How inputs compare over the configurations of one network, as Patnala et al. compare them.

    W[i, j] = #(acc_i > acc_j) / #(acc_i != acc_j)           over the configurations; ties do not count, all ties: undefined (NaN)
    gain_i  = 100 (acc_i - acc_raw) / acc_raw                per cent, of each configuration; acc_raw = 0: undefined (NaN)

The paper prints no formula for either; the win matrix is that of SCARF (Bahri et al., 2022), with configurations for its data sets.
"""

from typing import NamedTuple

import numpy as np


class Wins(NamedTuple):
    """Of M inputs, (M, M) each."""

    won: np.ndarray  # int64: configurations in which i is better than j
    ties: np.ndarray  # int64
    share: np.ndarray  # float64 W


def wins(accuracy: np.ndarray) -> Wins:
    """accuracy (M, N): of M inputs in N configurations."""
    better = (accuracy[:, None] > accuracy[None]).sum(2)
    decided = better + better.T
    share = np.divide(better, decided, out=np.full(better.shape, np.nan), where=decided > 0)
    return Wins(better, (accuracy[:, None] == accuracy[None]).sum(2), share)


def gains(accuracy: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """(M, N) per cent: accuracy (M, N) relative to that of the reference (N,)."""
    over = np.broadcast_to(reference, accuracy.shape)
    return np.divide(100 * (accuracy - over), over, out=np.full(accuracy.shape, np.nan), where=over > 0)
