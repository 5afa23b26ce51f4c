"""Compiles every Triton kernel ahead of time, no GPU needed, and prints what each one takes of a multiprocessor.

    python -P bench/aot.py [--out bench/results/aot.md] [--only NAME]

Walks dsengine.kernels.*.kernel.aot_cases(): (name, kernel, signature, constants). A signature value is a Triton type,
":16" behind it promises divisibility by 16; constants that are no parameter of the kernel (num_warps, num_stages) are
compile options. Exits with 1 when a kernel spills registers or asks for more shared memory than the GPU has.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from pkgutil import iter_modules
from typing import NamedTuple

# Capability -> (name, largest dynamic shared memory of one block, bytes): CUDA programming guide, table of compute capabilities.
ARCHITECTURES = {80: ("sm_80 (A100)", 163 << 10), 90: ("sm_90 (H100, H200)", 227 << 10), 100: ("sm_100 (B200)", 227 << 10)}


class Usage(NamedTuple):
    """What one compiled kernel takes; `problem` is empty or says what is wrong."""

    name: str
    capability: int
    registers: int  # per thread
    spills: int  # bytes per thread of local memory for spilled registers
    shared: int  # bytes per block
    warps: int
    problem: str


def cases() -> list[tuple[str, object, dict[str, str], dict[str, object]]]:
    """The cases of all kernels, their names led by that of the folder."""
    import dsengine.kernels

    folders = [m.name for m in iter_modules(dsengine.kernels.__path__) if m.ispkg and find_spec(f"dsengine.kernels.{m.name}.kernel")]
    return [(f"{folder}: {name}", *rest) for folder in folders
            for name, *rest in import_module(f"dsengine.kernels.{folder}.kernel").aot_cases()]


def compile_case(case: tuple[str, object, dict[str, str], dict[str, object]], capability: int) -> Usage:
    """Compiles one case for one architecture and reads the cubin's resource usage."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    name, kernel, types, constants = case
    options = {k: v for k, v in constants.items() if k not in kernel.arg_names}
    constexprs = {k: v for k, v in constants.items() if k in kernel.arg_names}
    signature = {k: "constexpr" if k in constexprs else types[k].partition(":")[0] for k in kernel.arg_names}
    attrs = {(i,): [["tt.divisibility", 16]] for i, k in enumerate(kernel.arg_names)
             if k not in constexprs and types[k].endswith(":16")}
    compiled = triton.compile(ASTSource(kernel, signature, constexprs, attrs), GPUTarget("cuda", capability, 32), options)
    registers, spills = _resources(compiled.asm["cubin"])
    return Usage(name, capability, registers, spills, compiled.metadata.shared, compiled.metadata.num_warps,
                 _problem(spills, compiled.metadata.shared, capability))


def _problem(spills: int, shared: int, capability: int) -> str:
    limit = ARCHITECTURES[capability][1]
    over = f"{shared} B shared, the limit is {limit}" if shared > limit else ""
    return ", ".join(filter(None, [f"spills {spills} B" if spills else "", over]))


def _resources(cubin: bytes) -> tuple[int, int]:
    """(registers, spilled bytes) per thread. A Triton kernel has no local arrays: its stack is what it spills."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    registers, stack = re.search(r"REG:(\d+) STACK:(\d+)", text).groups()
    return int(registers), int(stack)


def table(rows: list[Usage]) -> str:
    """A markdown table, one line per kernel, one column per architecture."""
    lines = ["| kernel | warps | " + " | ".join(name for name, _ in ARCHITECTURES.values()) + " |",
             "| --- | --- |" + " --- |" * len(ARCHITECTURES)]
    for name in dict.fromkeys(row.name for row in rows):
        same = [row for row in rows if row.name == name]
        cells = [f"{r.registers} / {r.spills} / {r.shared / 1024:.1f}" for r in same]
        lines.append(f"| {name} | {same[0].warps} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> int:
    """Compile, print, optionally write; the number of problems decides the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="write the table here too")
    parser.add_argument("--only", default="", help="only kernels whose name contains this")
    arguments = parser.parse_args()
    if os.environ.get("TRITON_INTERPRET"):
        sys.exit("TRITON_INTERPRET is set: interpreted kernels cannot be compiled")
    import torch
    import triton

    rows = [compile_case(case, arch) for case in cases() if arguments.only in case[0] for arch in ARCHITECTURES]
    text = (f"# Kernels compiled ahead of time\n\nRegisters per thread / spilled bytes per thread / shared memory per block in KiB. "
            f"Triton {triton.__version__}, torch {torch.__version__}; compiled, not run: `python -P bench/aot.py`.\n\n{table(rows)}\n")
    print(text)
    if arguments.out:
        arguments.out.write_text(text)
    problems = [f"{row.name} on {ARCHITECTURES[row.capability][0]}: {row.problem}" for row in rows if row.problem]
    print("\n".join(problems) or "no spills, all within shared memory")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
