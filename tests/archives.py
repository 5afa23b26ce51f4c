"""Sample archives, unpacked by any Python this project runs on."""

import re
import tarfile
from pathlib import Path


def unpack(path: Path, into: Path, wanted: str = ".*") -> None:
    """Write those members of the tar file `path` below `into` whose names match the pattern `wanted`. Python 3.11.0 to 3.11.3 know no filters."""
    with tarfile.open(path) as archive:
        members = [member for member in archive.getmembers() if re.fullmatch(wanted, member.name)]
        archive.extractall(into, members, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
