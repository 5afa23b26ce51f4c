"""What an embedding file says of itself: which encoder, contract and source made it, and by which rule. JSON under `dsengine`."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dsengine import __version__
from dsengine.errors import UsageError
from dsengine.export.encode import Encoding
from dsengine.export.model import Model

VERSION = 1


def facts(model: Model, *, kind: str, source: Mapping[str, Any], rule: Mapping[str, Any]) -> dict[str, Any]:
    """kind: raster or patches. `job` is the sha256 of all that decides the values."""
    contract = model.contract.to_json()
    decided = {"version": VERSION, "kind": kind, "encoder_sha256": model.sha256, "contract": contract, "contract_sha256": digest(contract),
               "source": dict(source), "rule": dict(rule)}
    decided = json.loads(json.dumps(decided))
    return {**decided, "job": digest(decided), "made_by": f"dsengine {__version__}"}


def with_encoding(found: Mapping[str, Any], encoding: Encoding) -> dict[str, Any]:
    """`found` and the number type of the file."""
    return {**found, "encoding": encoding._asdict()}


def digest(value: Any) -> str:
    """sha256 of JSON with sorted keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def is_finished(out: Path, found: Mapping[str, Any], dtype: str) -> bool:
    """Whether `out` is this very job, done. UsageError when something else is there, which is never written over."""
    if not (out.exists() or out.is_symlink()):
        return False
    try:
        there = read_facts(out)
    except UsageError:
        there = {}
    if there.get("job") == found["job"] and there.get("encoding", {}).get("dtype") == dtype:
        return True
    raise UsageError(f"--out {out} exists{' and holds embeddings of another job' if there else ''}; legal: a new name")


def read_facts(path: Path) -> dict[str, Any]:
    """The facts of an embedding file. UsageError when there are none."""
    readers = {".zarr": _of_zarr, ".tif": _of_tiff, ".tiff": _of_tiff, ".parquet": _of_parquet}
    reader = readers.get(path.suffix)
    try:
        found = None if reader is None or not path.exists() else reader(path)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path}: not an embedding file ({type(error).__name__}: {error})") from error
    if not isinstance(found, dict):
        raise UsageError(f"{path}: not an embedding file; legal: what `dsengine embed` writes, {', '.join(readers)}")
    return found


def _of_zarr(path: Path) -> Any:
    import zarr

    return zarr.open_group(path, mode="r").attrs.get("dsengine")


def _of_tiff(path: Path) -> Any:
    import rasterio

    with rasterio.open(path, driver="GTiff") as file:
        return json.loads(file.tags().get("DSENGINE", "null"))


def _of_parquet(path: Path) -> Any:
    from dsengine.corpus.build.optional import need

    return json.loads((need("pyarrow.parquet", "export").read_metadata(path).metadata or {}).get(b"dsengine", b"null"))
