"""Every Triton kernel compiles ahead of time for three GPU generations, within its registers and shared memory."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = sorted(path.parent.name for path in (ROOT / "kernels").glob("*/kernel.py"))


def _compile(folder: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", str(ROOT / "bench" / "aot.py"), "--only", f"{folder}: "]
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_kernel_spills_or_asks_for_more_shared_memory_than_there_is(folder: str) -> None:
    done = _compile(folder)
    assert done.returncode == 0, f"{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    rows = re.findall(rf"^\| {folder}: .*\|$", done.stdout, re.MULTILINE)
    assert rows and all(len(re.findall(r"\d+ / 0 / [\d.]+", row)) == 3 for row in rows), done.stdout


def test_sizes_of_one_which_triton_makes_constants_compile() -> None:
    """The interpreter never sees them so: there they stay numbers."""
    code = """
import aot
for kernel, (name, kernel, types, constants) in {case[1]: case for case in aot.cases()}.items():
    ones = {p.name: 1 for p in kernel.params if p.name not in constants and types[p.name][:3] in ("i32", "i64")
            and not p.do_not_specialize and not p.annotation_type}
    assert not aot.compile_case((name, kernel, types, constants | ones), 90).problem
    print(*sorted(ones))
"""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"PYTHONPATH": str(ROOT / "bench")}
    done = subprocess.run([sys.executable, "-P", "-c", code], env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0 and "channels parts" in done.stdout, f"{done.stdout}\n{done.stderr[-4000:]}"


def test_a_spill_and_too_much_shared_memory_are_reported() -> None:
    sys.path.append(str(ROOT / "bench"))
    import aot

    assert aot._problem(0, 100 << 10, 80) == ""
    assert aot._problem(8, 200 << 10, 80) == "spills 8 B, 204800 B shared, the limit is 166912"
    assert aot._problem(0, 200 << 10, 90) == ""


def test_importing_the_kernels_package_loads_no_triton() -> None:
    code = "import sys, dsengine.kernels; print('triton' in sys.modules, any(m.endswith('.kernel') for m in sys.modules))"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
