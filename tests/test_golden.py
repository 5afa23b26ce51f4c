"""What every method learns in its first steps stays what it was: a guard of every refactoring."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from golden_losses import EXPECTED, NAMES, STEPS, losses  # noqa: E402


@pytest.mark.parametrize("name", NAMES)
def test_the_first_losses_are_those_on_record(name: str) -> None:
    expected = json.loads(EXPECTED.read_text())[name]
    assert len(expected) == STEPS and len(set(expected)) == STEPS
    # Sums in another order differ by some 1e-13; a changed constant, order of views or missing update by far more.
    assert losses(name) == pytest.approx(expected, rel=1e-6, abs=1e-9), "python tests/golden_losses.py, if this was meant"


def test_the_record_holds_every_method_and_no_other() -> None:
    assert set(json.loads(EXPECTED.read_text())) == set(NAMES)
