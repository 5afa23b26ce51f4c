"""Fused kernels: each folder holds `reference.py` (the definition, runs on CPU) and `op.py` (the public function)."""

if __name__ != "dsengine.kernels":
    raise ImportError(
        f"kernels/ was imported as {__name__!r}: it is installed as dsengine.kernels. "
        "Run `pip install .` and import dsengine.kernels; start Python outside the checkout or with `python -P`"
    )

from dsengine.kernels.attention.op import attention
from dsengine.kernels.batchnorm.op import batch_norm
from dsengine.kernels.ntxent.op import info_nce, nt_xent
from dsengine.kernels.triplet.op import triplet

__all__ = ["attention", "batch_norm", "info_nce", "nt_xent", "triplet"]
