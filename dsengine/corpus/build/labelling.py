"""Labels for patches of any source that says where they lie: `corpus build --label NAME=KIND:PATH[,option=value...]`.

A labeller knows nothing of sources: it gets the grid of a patch, from the index columns epsg, x and y, and gives back its label.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dsengine.corpus.build.labellers import kinds
from dsengine.corpus.build.labellers._base import Drawn, Labeller
from dsengine.corpus.build.plan import Grid, Plan
from dsengine.corpus.build.writer import Block
from dsengine.errors import RunError, UsageError, nearest


class Request(NamedTuple):
    """One --label of a known kind."""

    name: str
    kind: str
    path: Path
    options: dict[str, str]


def parse(texts: Sequence[str]) -> tuple[list[Request], list[str]]:
    """Requests of a known kind, and the texts NAME=GLOB that are left for the source. UsageError for a text that is neither."""
    requests, globs = [], []
    for text in texts:
        name, equals, rest = text.partition("=")
        if not (equals and name.isidentifier() and rest):
            raise UsageError(f"--label {text}: legal: NAME=GLOB (source geotiff), or NAME=KIND:PATH[,option=value...] with KIND one of "
                             f"{', '.join(kinds())}; NAME has letters, digits and _")
        kind, colon, rest = rest.partition(":")
        if not (colon and kind in kinds()):
            if colon and re.fullmatch("[a-z_]+", kind):
                raise UsageError(f"--label {text}: kind {kind}: {nearest(kind, kinds())}")
            globs.append(text)
            continue
        requests.append(_request(name, kind, rest, text))
    names = [text.partition("=")[0] for text in globs] + [request.name for request in requests]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UsageError(f"--label {twice[0]} is given twice")
    return requests, globs


def add_labels(plan: Plan, requests: Sequence[Request]) -> Plan:
    """`plan` with these labels. Each class map also adds index column `labelled_NAME`, the share of pixels that are not ignored."""
    if not requests:
        return plan
    taken = {label.name for label in plan.layout.labels}
    if twice := [request.name for request in requests if request.name in taken]:
        raise UsageError(f"--label {twice[0]}: the source has a label of that name; legal: any name but {', '.join(sorted(taken))}")
    labellers = tuple(make_labeller(request) for request in requests)
    step = LabelBlock(labellers, plan.layout.patch_size, plan.layout.resolution_m)
    columns = {f"labelled_{labeller.spec.name}": "float32" for labeller in labellers if labeller.spec.kind == "classmap"}
    made_by = {**plan.made_by, "labels": {request.name: _record(request) for request in requests}}
    plan = replace(plan, made_by=made_by, columns={**plan.columns, **columns})
    return plan.then(step, labels=tuple(labeller.spec for labeller in labellers))


def make_labeller(request: Request) -> Labeller:
    """The labeller of one request. UsageError for options, files and columns that are not legal."""
    module = import_module(f"dsengine.corpus.build.labellers.{request.kind}")
    for key in request.options:
        if key not in module.OPTIONS:
            raise UsageError(f"--label {request.name}: kind {request.kind} has no option {key}: {nearest(key, module.OPTIONS)}")
    # Absolute, because a worker on a cluster has a working folder of its own.
    return module.labeller(request.name, request.path.absolute(), request.options)


@dataclass(frozen=True)
class LabelBlock:
    """A step of a plan: labels every patch of a block."""

    labellers: tuple[Labeller, ...]
    size: int  # pixels of the finest grid
    resolution_m: float

    def __call__(self, block: Block) -> Block:
        grids = _grids(block.index, size=self.size, resolution_m=self.resolution_m)
        labels, index, faults = dict(block.labels), dict(block.index), list(block.faults)
        for labeller in self.labellers:
            name = labeller.spec.name
            drawn = [labeller.draw(grid) for grid in grids]
            labels[name] = np.stack([one.values for one in drawn])
            faults += [f"label {name}: {fault}" for fault in dict.fromkeys(fault for one in drawn for fault in one.faults)]
            if labeller.spec.kind == "classmap":
                index[f"labelled_{name}"] = _labelled(drawn, labeller.spec.ignore)
        return block._replace(labels=labels, index=index, faults=faults)


def _labelled(drawn: Sequence[Drawn], ignore: int | None) -> np.ndarray:
    return np.array([1.0 if ignore is None else (one.values != ignore).mean() for one in drawn], np.float32)


def _grids(index: Mapping[str, Any], *, size: int, resolution_m: float) -> list[Grid]:
    """The grid of each patch. RunError where one has no place, or none in metres."""
    count = len(index["lon"])
    columns = [np.broadcast_to(index.get(name, missing), count) for name, missing in (("epsg", 0), ("x", np.nan), ("y", np.nan))]
    grids = [Grid(int(epsg), float(x), float(y), size, resolution_m) for epsg, x, y in zip(*columns, strict=True)]
    for row, grid in enumerate(grids):
        if grid.epsg == 0 or not np.isfinite([grid.x, grid.y]).all():
            raise RunError(f"--label: the patch at lon {index['lon'][row]:g} lat {index['lat'][row]:g} has epsg {grid.epsg} "
                           f"x {grid.x:g} y {grid.y:g}; labels need patches whose source says their EPSG code and corner")
    for epsg in {grid.epsg for grid in grids}:
        _check_metres(epsg)
    return grids


def _check_metres(epsg: int) -> None:
    from rasterio.crs import CRS
    from rasterio.errors import CRSError

    from dsengine.corpus.build.raster import in_metres

    try:
        usable = in_metres(CRS.from_epsg(epsg))
    except CRSError:
        usable = False
    if not usable:
        raise RunError(f"--label: patches are in EPSG:{epsg}; labels need a projected CRS in metres")


def _request(name: str, kind: str, rest: str, text: str) -> Request:
    # A path may have commas: only a comma before option= ends it.
    path, *parts = re.split(r",(?=[A-Za-z_]+=)", rest)
    options = dict(part.split("=", 1) for part in parts)
    if not path or len(options) < len(parts):
        raise UsageError(f"--label {text}: {'an option is given twice' if path else 'no PATH'}; legal: NAME={kind}:PATH[,option=value...]")
    return Request(name, kind, Path(path), options)


def _record(request: Request) -> dict[str, Any]:
    """What the corpus says of its label's origin; a build continues only under an equal one."""
    size = request.path.stat().st_size if request.path.is_file() else None
    return {"kind": request.kind, "path": str(request.path), "bytes": size, "options": request.options}
