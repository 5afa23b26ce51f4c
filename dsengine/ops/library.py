"""libdsengine by ctypes: struct layouts of csrc/dsengine.h, loading, and status codes as errors.

ctypes releases the GIL for the length of each call, so ops run beside Python threads.
"""

import ctypes
import warnings
from ctypes import POINTER, Structure, c_char_p, c_float, c_int, c_int32, c_int64, c_void_p
from functools import cache
from pathlib import Path
from typing import Any

import torch

from dsengine.errors import RunError, UsageError

MAX_SOURCES = 8
MAX_BANDS = 64
MAX_OUT_CHANNELS = 80
MAX_STREAM_SOURCES = 32
CUDA_ERROR = 1000
BEST_ISA = 0
OUT_TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}  # dse_type
_ISA_NAMES = {1: "portable", 2: "avx2", 3: "avx512"}


class Source(Structure):
    """dse_source."""

    _fields_ = [("data", c_void_p), ("channels", c_int32), ("height", c_int32), ("width", c_int32)]


class AugmentArgs(Structure):
    """dse_augment_args."""

    _fields_ = [
        ("source", Source * MAX_SOURCES), ("bands", c_void_p), ("center", c_void_p), ("offset", c_void_p),
        ("code", c_void_p), ("A", c_void_p), ("T", c_void_p), ("b", c_void_p), ("out", c_void_p),
        ("num_views", c_int64), ("num_samples", c_int64), ("num_sources", c_int32), ("num_bands", c_int32),
        ("out_channels", c_int32), ("size", c_int32), ("nodata", c_int32), ("out_type", c_int32)]


class UnfilterArgs(Structure):
    """dse_unfilter_args."""

    _fields_ = [("in_", c_void_p), ("out", c_void_p), ("num_chunks", c_int64), ("chunk_bytes", c_int64), ("block_bytes", c_int32),
                ("typesize", c_int32), ("filter", c_int32)]


class UnfilterStreamsArgs(Structure):
    """dse_unfilter_streams_args."""

    _fields_ = [("source", c_void_p * MAX_STREAM_SOURCES), ("source_bytes", c_int64 * MAX_STREAM_SOURCES), ("out", c_void_p), ("blocks", c_void_p),
                ("streams", c_void_p), ("out_bytes", c_int64), ("num_blocks", c_int64), ("num_streams", c_int64), ("block_bytes", c_int64),
                ("num_sources", c_int32)]


class ReadArray(Structure):
    """dse_read_array."""

    _fields_ = [("prefix", c_char_p), ("suffix", c_char_p), ("data", c_void_p), ("out", c_void_p), ("data_bytes", c_int64), ("num_patches", c_int64),
                ("patch_bytes", c_int64), ("compressor", c_int32), ("checked", c_int32), ("fill", c_int32), ("height", c_int32), ("width", c_int32)]


class ReadArgs(Structure):
    """dse_read_args."""

    _fields_ = [("arrays", c_void_p), ("chunks", c_void_p), ("status", c_void_p), ("scratch", c_void_p), ("num_arrays", c_int64),
                ("num_chunks", c_int64), ("scratch_bytes", c_int64)]


class BitpackArgs(Structure):
    """dse_bitpack_args."""

    _fields_ = [("in_", c_void_p), ("out", c_void_p), ("chunks", c_void_p), ("in_bytes", c_int64), ("out_bytes", c_int64), ("num_chunks", c_int64),
                ("planes", c_int64), ("height", c_int32), ("width", c_int32), ("itemsize", c_int32), ("window_height", c_int32),
                ("window_width", c_int32)]


class WarpArgs(Structure):
    """dse_warp_args."""

    _fields_ = [("in_", c_void_p), ("out", c_void_p), ("theta", c_void_p), ("num_samples", c_int64), ("height", c_int32), ("width", c_int32),
                ("out_height", c_int32), ("out_width", c_int32), ("channels", c_int32), ("border", c_int32), ("type", c_int32)]


class BlurArgs(Structure):
    """dse_blur_args."""

    _fields_ = [("in_", c_void_p), ("out", c_void_p), ("sigma", c_void_p), ("scratch", c_void_p), ("num_samples", c_int64), ("height", c_int32),
                ("width", c_int32), ("channels", c_int32), ("radius", c_int32), ("type", c_int32)]


class TripletArgs(Structure):
    """dse_triplet_args."""

    _fields_ = [("anchor", c_void_p), ("positive", c_void_p), ("negative", c_void_p), ("grad_anchor", c_void_p), ("grad_positive", c_void_p),
                ("grad_negative", c_void_p), ("hinge", c_void_p), ("rows", c_int64), ("shift", c_int64), ("channels", c_int32), ("cells", c_int32),
                ("channels_last", c_int32), ("distance", c_int32), ("soft", c_int32), ("margin", c_float), ("scale", c_float)]


def library_path() -> Path:
    """Where the build puts the library: beside this file."""
    return Path(__file__).with_name("libdsengine.so")


@cache
def library() -> ctypes.CDLL:
    """The loaded library with its signatures. Raises RunError when it is not built or does not load."""
    try:
        lib = ctypes.CDLL(str(library_path()))
    except OSError as error:
        raise RunError(f"{library_path()} does not load ({error}): run `pip install .` in the checkout") from error
    _declare(lib.dse_augment_cpu, c_int, POINTER(AugmentArgs), c_int32, c_int32)
    _declare(lib.dse_augment_cuda, c_int, POINTER(AugmentArgs), c_void_p, c_void_p)
    _declare(lib.dse_unfilter_cpu, c_int, POINTER(UnfilterArgs), c_int32)
    _declare(lib.dse_unfilter_cuda, c_int, POINTER(UnfilterArgs), c_void_p)
    _declare(lib.dse_unfilter_streams_cpu, c_int, POINTER(UnfilterStreamsArgs), c_int32)
    _declare(lib.dse_unfilter_streams_cuda, c_int, POINTER(UnfilterStreamsArgs), c_void_p)
    _declare(lib.dse_bitpack_cpu, c_int, POINTER(BitpackArgs), c_int32, c_int32)
    _declare(lib.dse_bitpack_cuda, c_int, POINTER(BitpackArgs), c_void_p)
    _declare(lib.dse_read_cpu, c_int, POINTER(ReadArgs), c_int32, c_int32)
    _declare(lib.dse_read_scratch, c_int64, c_int64, c_int64)
    _declare(lib.dse_warp_cpu, c_int, POINTER(WarpArgs), c_int32, c_int32)
    _declare(lib.dse_warp_cuda, c_int, POINTER(WarpArgs), c_void_p)
    _declare(lib.dse_blur_cpu, c_int, POINTER(BlurArgs), c_int32, c_int32)
    _declare(lib.dse_blur_cuda, c_int, POINTER(BlurArgs), c_void_p)
    _declare(lib.dse_triplet_cpu, c_int, POINTER(TripletArgs), c_int32, c_int32)
    _declare(lib.dse_message, c_char_p, c_int)
    _declare(lib.dse_best_isa, c_int)
    _declare(lib.dse_has_cuda, c_int)
    return lib


def build_info() -> dict[str, Any]:
    """What was built and what it uses here: path, isa (avx512 | avx2 | portable), cuda (compiled in or not)."""
    lib = library()
    return {"path": str(library_path()), "isa": _ISA_NAMES[lib.dse_best_isa()], "cuda": bool(lib.dse_has_cuda())}


def check_status(op: str, status: int) -> None:
    """Raise what a status other than 0 means: UsageError for an argument, RunError for the device."""
    if status == 0:
        return
    message = library().dse_message(status).decode()
    if status >= CUDA_ERROR:
        raise RunError(f"{op}: {message} {status - CUDA_ERROR}")
    raise UsageError(f"{op}: {message}")


@cache
def warn_slow(op: str, device: str) -> None:
    """Say once for each op and kind of device that the torch form is used."""
    warnings.warn(f"dsengine was built without a kernel for {device}: {op} uses its slower torch form "
                  "(put nvcc on PATH and run `pip install .` again)", stacklevel=3)


def _declare(function: Any, result: Any, *arguments: Any) -> None:
    function.restype = result
    function.argtypes = arguments
