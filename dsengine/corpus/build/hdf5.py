"""Opening HDF5 files from strangers: what a dataset declares must be in the file, and nothing is read from elsewhere."""

from pathlib import Path
from typing import Any

from dsengine.corpus.build.optional import need
from dsengine.errors import UsageError

MAX_CHUNK_BYTES = 256 << 20  # HDF5 inflates a whole chunk at once


def open_file(path: Path) -> Any:
    """An h5py File, read only. UsageError when it is not one."""
    h5py = need("h5py", "series")
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise UsageError(f"{path} cannot be read as HDF5: {error}") from error


def dataset(file: Any, name: str, path: Path) -> Any:
    """Dataset `name`, all of which is stored in this file. UsageError naming file and dataset when it is missing, linked to another file, or
    declares more than is there."""
    h5py = need("h5py", "series")
    link = file.get(name, getlink=True)
    if isinstance(link, h5py.ExternalLink):
        raise UsageError(f"{path}: {name} is a link to another file; legal: a dataset in this file")
    found = file.get(name)
    if not isinstance(found, h5py.Dataset):
        raise UsageError(f"{path}: no dataset {name}; legal: a file that has it (it has {', '.join(sorted(file)[:12])})")
    if found.is_virtual or found.external:
        raise UsageError(f"{path}: {name} keeps its values in other files; legal: a dataset in this file")
    if found.chunks:
        _check_chunks(found, name, path)
    elif found.nbytes > found.id.get_storage_size():
        raise UsageError(f"{path}: {name} declares {size(found.nbytes)} but stores {size(found.id.get_storage_size())}; legal: a complete file")
    return found


def size(num_bytes: int) -> str:
    """Bytes for a person."""
    return f"{num_bytes / 2**30:.2f} GiB" if num_bytes >= 2**29 else f"{num_bytes / 2**20:.2f} MiB" if num_bytes >= 2**19 else f"{num_bytes} bytes"


def _check_chunks(found: Any, name: str, path: Path) -> None:
    per_chunk, expected = found.dtype.itemsize, 1
    for length, chunk in zip(found.shape, found.chunks, strict=True):
        per_chunk *= chunk
        expected *= -(-length // chunk)
    if per_chunk > MAX_CHUNK_BYTES:
        raise UsageError(f"{path}: {name} has chunks of {size(per_chunk)}; legal: at most {size(MAX_CHUNK_BYTES)}")
    if (stored := found.id.get_num_chunks()) < expected:
        raise UsageError(f"{path}: {name} declares {size(found.nbytes)} in {expected} chunks but stores {stored} of them; legal: a complete file")
