"""What the build left: the CUDA half for three GPU generations where there is nvcc, no driver needed to load, no C++ beyond what machines have."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dsengine import ops
from dsengine.ops import library

ARCHITECTURES = {"sm_80", "sm_90", "sm_100"}
NO_GPU = {"CUDA_VISIBLE_DEVICES": ""}
needs_cuda_build = pytest.mark.skipif(shutil.which("nvcc") is None and not ops.build_info()["cuda"],
                                      reason="no nvcc on PATH: dsengine was built without its CUDA half")


def _disassembler() -> str:
    """A cuobjdump: the toolkit's, or the one that Triton brings."""
    if found := shutil.which("cuobjdump"):
        return found
    triton = pytest.importorskip("triton", reason="no cuobjdump on PATH, and Triton, which brings one, is not installed")
    return str(Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump")


@needs_cuda_build
def test_every_cuda_source_is_compiled_for_three_gpu_generations(checkout: Path) -> None:
    assert ops.build_info()["cuda"], "nvcc is on PATH, but the library was built without it: run `pip install .` again"
    listed = subprocess.run([_disassembler(), "--list-elf", str(library.library_path())], capture_output=True, text=True, check=True).stdout
    found = re.findall(r"\b(sm_\d+)\w*\.cubin", listed)
    sources = len(list((checkout / "csrc").rglob("*.cu")))
    assert sources and {arch: found.count(arch) for arch in ARCHITECTURES} == dict.fromkeys(ARCHITECTURES, sources)


@needs_cuda_build
def test_every_kernel_is_in_the_library_for_every_generation(checkout: Path) -> None:
    usage = subprocess.run([_disassembler(), "-res-usage", str(library.library_path())], capture_output=True, text=True, check=True)
    kernels = re.findall(r"Function (\S+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+)", usage.stdout + usage.stderr)
    names = [name for name, *_ in kernels]
    written = {name for path in (checkout / "csrc").rglob("*.cu") for name in re.findall(r"__global__ void (?:__\w+__\([^)]*\) )?(\w+)\(", path.read_text())}
    assert written and all(sum(kernel in name for name in names) >= len(ARCHITECTURES) for kernel in written), f"{written} in {names}"


@needs_cuda_build
def test_the_library_loads_without_a_driver_and_its_cuda_calls_say_so() -> None:
    code = """
import ctypes, torch
from dsengine.errors import RunError
from dsengine.ops import library
raw = torch.zeros(1, 64, dtype=torch.uint8)
args = library.UnfilterArgs(in_=raw.data_ptr(), out=raw.data_ptr(), num_chunks=1, chunk_bytes=64, block_bytes=64, typesize=2, filter=1)
status = library.library().dse_unfilter_cuda(ctypes.byref(args), None)
assert status > library.CUDA_ERROR, status
try:
    library.check_status("unfilter", status)
except RunError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-P", "-c", code], env=os.environ | NO_GPU, capture_output=True, text=True)
    assert done.returncode == 0 and re.fullmatch(r"unfilter: CUDA error \d+\n", done.stdout), done.stdout + done.stderr


def test_the_library_needs_neither_a_cuda_library_nor_torch() -> None:
    if shutil.which("ldd") is None:
        pytest.skip("no ldd")
    needed = subprocess.run(["ldd", str(library.library_path())], capture_output=True, text=True, check=True).stdout
    names = re.sub(r"\(0x[0-9a-f]+\)", "", needed)  # an address may read as a name: 0x7fc10...
    assert not re.search(r"cuda|torch|c10|python|not found", names), needed
