"""What makes a folder of files trustworthy: sha256 of files and of JSON."""

import hashlib
import json
from pathlib import Path
from typing import Any


def sha256(path: Path) -> str:
    """Of the file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(described: dict[str, Any]) -> str:
    """sha256 of plain values as JSON with sorted keys."""
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()
