"""Fixtures that every test may use; no test downloads anything."""

import os
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent


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
