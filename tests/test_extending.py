"""docs/extending.md keeps its word: its method lies outside the repository, has 30 lines, and trains."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from dsengine.engine.log import read_metrics


@pytest.fixture()
def outside(checkout: Path, tmp_path: Path) -> Path:
    """A folder with the package that docs/extending.md describes."""
    (code,) = re.findall(r"```python\n(.*?)```", (checkout / "docs" / "extending.md").read_text(), re.DOTALL)
    (tmp_path / "mypkg").mkdir()
    (tmp_path / "mypkg" / "__init__.py").touch()
    (tmp_path / "mypkg" / "mymethod.py").write_text(code)
    return tmp_path


def test_its_method_has_at_most_thirty_lines(outside: Path) -> None:
    lines = (outside / "mypkg" / "mymethod.py").read_text().splitlines()
    assert 10 < sum(1 for line in lines if line.strip()) <= 30


def test_its_method_trains_by_its_dotted_path_and_resumes(outside: Path, small_corpus: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(outside)}
    command = [sys.executable, "-P", "-m", "dsengine.cli", "train", "--out", str(outside / "run")]
    first = [*command, "--method", "mypkg.mymethod", "--corpus", str(small_corpus), "--gpus", "0", "--batch-size", "16", "--epochs", "1",
             "--set", "method.label_smoothing=0.1", "--set", "train.log_steps=1"]
    for extra in (first, [*command, "--resume", "--epochs", "2"]):
        done = subprocess.run(extra, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
    records = read_metrics(outside / "run")
    assert records[-1]["epoch"] == 1 and {"loss", "accuracy", "feature_std", "heldout_loss"} <= records[-1].keys()
    assert "mypkg.mymethod" in (outside / "run" / "config.yaml").read_text()
