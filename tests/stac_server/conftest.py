"""The archive's imagery, made once."""

from pathlib import Path
from typing import Any

import pytest

from . import archive


@pytest.fixture(scope="session")
def imagery(sample_data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """Folder of rasters and the items about them; beside the folder lies region.geojson."""
    folder = tmp_path_factory.mktemp("archive")
    items = archive.make(folder / "files", sample_data)
    archive.region(folder / "region.geojson", items)
    return folder / "files", items
