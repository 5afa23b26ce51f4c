"""libdsengine by ctypes: struct layouts of csrc/dsengine.h, loading, and status codes as errors.

ctypes releases the GIL for the length of each call, so ops run beside Python threads.
"""

import ctypes
from ctypes import POINTER, Structure, c_char_p, c_float, c_int, c_int32, c_int64, c_void_p
from functools import cache
from pathlib import Path
from typing import Any

from dsengine.errors import RunError, UsageError

MAX_SOURCES = 8
MAX_BANDS = 64
MAX_OUT_CHANNELS = 80
CUDA_ERROR = 1000
BEST_ISA = 0
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


def _declare(function: Any, result: Any, *arguments: Any) -> None:
    function.restype = result
    function.argtypes = arguments
