"""What inflates the streams of a staged batch on a GPU: DALI for LZ4; nvCOMP for LZ4 and zstd, where it is installed.

Both take the buffer that was copied and the offsets and sizes of `staging`, and give one tensor (streams, decoded bytes) a group,
written in the order of the current stream. The streams were walked on the CPU (`frames`), so neither can be led out of its output.
"""

from collections.abc import Sequence
from importlib import import_module
from types import ModuleType
from typing import Any

import numpy as np
import torch
from nvidia.dali import Pipeline, fn, types
from nvidia.dali.data_node import DataNode
from torch import Tensor

from dsengine.data import frames
from dsengine.data.staging import Group
from dsengine.errors import UsageError

MOST_BYTES = 2**31 - 1  # DALI's offsets are 32 bits
SLOT_INPUTS = ("shape", "offsets", "sizes")
ALGORITHMS = {frames.LZ4: "LZ4", frames.ZSTD: "Zstd"}


def source(name: str, *, device: str, dtype: types.DALIDataType, ndim: int) -> DataNode:
    """A node that is fed a batch at once by `name`, not copied where DALI can do without."""
    return fn.external_source(name=name, device=device, batch=True, no_copy=True, dtype=dtype, ndim=ndim)


def inflate_graph(num_slots: int) -> tuple[DataNode, ...]:
    """`num_slots` inflates of one buffer on the GPU, (streams, decoded bytes) uint8 each; fed as "buffer", "shape0", "offsets0", "sizes0", ..."""
    buffer = source("buffer", device="gpu", dtype=types.UINT8, ndim=1)
    slots = [{name: source(f"{name}{k}", device="cpu", dtype=types.INT32, ndim=1) for name in SLOT_INPUTS} for k in range(num_slots)]
    return tuple(fn.decoders.inflate(buffer, device="gpu", algorithm="LZ4", dtype=types.UINT8, shape=slot["shape"],
                                     chunk_offsets=slot["offsets"], chunk_sizes=slot["sizes"]) for slot in slots)


def slot_inputs(groups: Sequence[Group], *, num_slots: int, void: int) -> dict[str, np.ndarray]:
    """What the CPU inputs of `inflate_graph` are fed, each (1, n) int32: a batch of one sample. Slots without a group inflate the one byte of VOID.

    DALI wants every slot to have a stream, and the graph is not built anew when a batch has fewer sizes.
    """
    fed = {}
    for k in range(num_slots):
        group = groups[k] if k < len(groups) else Group(frames.LZ4, 1, np.array([void]), np.array([2]))
        for name, values in zip(SLOT_INPUTS, ([group.decoded], group.offset, group.size), strict=True):
            fed[f"{name}{k}"] = np.asarray(values, dtype=np.int32)[None]
    return fed


def inflate_pipeline(num_slots: int, *, device_id: int) -> Pipeline:
    """The pipeline of `inflate_graph`, not built. The dynamic executor: its outputs are handed on through DLPack without a copy."""
    pipeline = Pipeline(batch_size=1, num_threads=1, device_id=device_id, prefetch_queue_depth=1, exec_dynamic=True)
    with pipeline:
        pipeline.set_outputs(*inflate_graph(num_slots))
    return pipeline


class DaliInflate:
    """LZ4 streams by DALI's `decoders.inflate`, all groups in one run."""

    codecs = frozenset({frames.LZ4})

    def __init__(self, device: torch.device) -> None:
        self._device_id = device.index or 0
        self._num_slots = 0
        self._pipeline: Pipeline | None = None
        self._fed: dict[str, np.ndarray] = {}  # DALI may read them until the next run

    def __call__(self, buffer: Tensor, groups: Sequence[Group], void: int) -> list[Tensor]:
        """One (streams, decoded) uint8 tensor a group. Raises UsageError for a buffer of 2 GiB or more."""
        if buffer.numel() > MOST_BYTES:
            raise UsageError(f"batch_size: a batch of {buffer.numel():,} compressed bytes is too large for DALI, legal: up to {MOST_BYTES:,}; "
                             "take a smaller batch, or more ranks")
        pipeline = self._ready(len(groups))
        stream = torch.cuda.current_stream(buffer.device)
        pipeline.feed_input("buffer", [buffer], cuda_stream=stream)
        self._fed = slot_inputs(groups, num_slots=self._num_slots, void=void)
        for name, values in self._fed.items():
            pipeline.feed_input(name, values)
        pipeline.schedule_run()
        outputs = pipeline.share_outputs(cuda_stream=stream)
        try:
            return [torch.from_dlpack(out.as_tensor()).view(len(group.offset), group.decoded) for out, group in zip(outputs, groups)]
        finally:
            pipeline.release_outputs()

    def _ready(self, num_groups: int) -> Pipeline:
        if self._pipeline is None or num_groups > self._num_slots:
            self._num_slots = max(num_groups, 2)  # full blocks and the short last one
            self._pipeline = inflate_pipeline(self._num_slots, device_id=self._device_id)
            self._pipeline.build()
        return self._pipeline


class NvcompInflate:
    """LZ4 or zstd streams by nvCOMP, one batched call a group. Raises ImportError where nvCOMP is not installed."""

    codecs = frozenset({frames.LZ4, frames.ZSTD})

    def __init__(self, device: torch.device) -> None:
        self._nvcomp: ModuleType = import_module("nvidia.nvcomp")
        self._device_id = device.index or 0
        self._codecs: dict[tuple[int, int, int], Any] = {}

    def __call__(self, buffer: Tensor, groups: Sequence[Group], void: int) -> list[Tensor]:
        """One (streams, decoded) uint8 tensor a group."""
        stream = torch.cuda.current_stream(buffer.device).cuda_stream
        return [self._inflate(buffer, group, stream) for group in groups]

    def _inflate(self, buffer: Tensor, group: Group, stream: int) -> Tensor:
        out = torch.empty((len(group.offset), group.decoded), dtype=torch.uint8, device=buffer.device)
        pieces = [buffer[at:at + size] for at, size in zip(group.offset.tolist(), group.size.tolist(), strict=True)]
        self._codec(group, stream).decode(self._nvcomp.as_arrays(pieces, cuda_stream=stream), out=list(out.unbind()))
        return out

    def _codec(self, group: Group, stream: int) -> Any:
        key = (group.codec, group.decoded, stream)
        if key not in self._codecs:
            self._codecs[key] = self._nvcomp.Codec(algorithm=ALGORITHMS[group.codec], device_id=self._device_id, cuda_stream=stream,
                                                   uncomp_chunk_size=group.decoded, bitstream_kind=self._nvcomp.BitstreamKind.RAW)
        return self._codecs[key]
