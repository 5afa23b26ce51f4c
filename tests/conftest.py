"""Fixtures that every test may use; no test downloads anything."""

import ctypes
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

# Workers of pytest-xdist share the cores: one thread each, here and in what their tests start, or OpenMP's threads wait for each other.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch  # noqa: E402  (reads the variable above)

ROOT = Path(__file__).resolve().parent.parent


class ShownAtOnce:
    """What fails is printed when it fails: a run that is stopped never comes to pytest's summary."""

    def __init__(self, terminal: pytest.TerminalReporter) -> None:
        self._terminal = terminal

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self._terminal.write_line(f"\nFAILED {report.nodeid} ({report.when})\n{report.longreprtext[-4000:]}", red=True)


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    """Workers of pytest-xdist have no terminal, and tell the process that has one."""
    if (terminal := config.pluginmanager.get_plugin("terminalreporter")) is not None:
        config.pluginmanager.register(ShownAtOnce(terminal))


@pytest.fixture(scope="session")
def checkout() -> Path:
    """The root of the checkout the tests lie in (the package under test is the installed one)."""
    return ROOT


@pytest.fixture(scope="session")
def sample_data() -> Path:
    """Folder of real sample imagery, or a skip that says where it was looked for."""
    folder = Path(os.environ.get("DSENGINE_SAMPLE_DATA", ROOT.parent / "shared" / "data"))
    if not (folder / "pairs").is_dir():
        pytest.skip(f"no sample imagery at {folder}: set DSENGINE_SAMPLE_DATA")
    return folder


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    """A test's random inputs are the same every time."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def small_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """96 synthetic patches of 32 px, made once a session; do not write to it."""
    from dsengine.corpus.synth import synthesize

    return synthesize(tmp_path_factory.mktemp("corpus") / "small", num_patches=96, size=32, seed=3)


@pytest.fixture(scope="session")
def host_cuda(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], ctypes.CDLL]:
    """Function that builds csrc/NAME/NAME_cuda.cu as C++ against the stand-in runtime of tests/cuda_on_host, so that it runs without a GPU."""
    stand_in, folder = ROOT / "tests" / "cuda_on_host", tmp_path_factory.mktemp("cuda_on_host")

    def build(name: str) -> ctypes.CDLL:
        compiler = shutil.which("g++") or shutil.which("c++")
        if compiler is None:
            pytest.skip("no C++ compiler to build the CUDA source for the host")
        target = folder / f"lib{name}.so"
        flags = ["-std=c++20", "-O1", "-shared", "-fPIC", "-pthread", f"-I{stand_in}", f"-I{ROOT / 'csrc'}"]
        subprocess.run([compiler, *flags, str(stand_in / f"{name}.cpp"), "-o", str(target)], check=True)
        return ctypes.CDLL(str(target))

    return build
