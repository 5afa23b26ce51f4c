"""Packages of extras: what is said when one is missing."""

from pathlib import Path

import pytest

from dsengine.corpus.build.optional import need
from dsengine.errors import UsageError


def test_a_missing_package_is_named_with_the_extra_that_brings_it() -> None:
    assert need("json.decoder", "stac").__name__ == "json.decoder"
    for module in ("no_such_package", "no_such_package.part"):
        with pytest.raises(UsageError, match=r"no_such_package: pip install 'dsengine\[stac\]'"):
            need(module, "stac")


def test_a_package_that_is_there_but_broken_is_not_taken_for_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "half_installed.py").write_text("import something_it_needs")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="something_it_needs"):
        need("half_installed", "stac")
