"""Starts the ranks of tests/workers/NAME.py as processes that talk by gloo, for the tests of losses across ranks."""

import importlib.util
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import torch

WORKERS = Path(__file__).parent / "workers"


def load_worker(name: str) -> ModuleType:
    """The worker's module, for the inputs it makes."""
    spec = importlib.util.spec_from_file_location(name, WORKERS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_ranks(name: str, folder: Path, sizes: list[int]) -> list[dict]:
    """Runs one process a rank, with `sizes` rows each; what every rank left in `folder`."""
    with socket.socket() as s:
        s.bind(("localhost", 0))
        port = s.getsockname()[1]
    processes = []
    for rank in range(len(sizes)):
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "RANK": str(rank), "WORLD_SIZE": str(len(sizes)),
                       "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
        command = [sys.executable, "-P", str(WORKERS / f"{name}.py"), str(folder), ",".join(map(str, sizes))]
        processes.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
    errors = [p.communicate(timeout=240)[1] for p in processes]
    assert all(p.returncode == 0 for p in processes), errors
    return [torch.load(folder / str(rank), weights_only=True) for rank in range(len(sizes))]
