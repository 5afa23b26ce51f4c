"""OpenStreetMap extracts (.osm.pbf): one streamed pass keeps the features of the wanted tags, in memory and in a spatial index.

What is kept is the geometry of matching features only, one array a group and dimension: 1.3 kB a feature with the groups of the package, 12
times the file. Areas are closed ways and multipolygon relations that carry tags of their own, put together by libosmium.
"""

import os
from collections import defaultdict
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dsengine.corpus.build.labellers._groups import Group, keys
from dsengine.corpus.build.optional import need
from dsengine.errors import RunError, UsageError


MEMORY_PER_BYTE = 12  # of the file


class Extract(NamedTuple):
    """Matching features of one file, in EPSG:4326, by (position of the group, dimension)."""

    geometries: dict[tuple[int, int], np.ndarray]  # shapely
    trees: dict[tuple[int, int], Any]  # shapely.STRtree
    box: tuple[float, float, float, float]  # what the file covers
    incomplete: int  # matching features left out because nodes or members are missing


def check_pbf(path: Path, label: str) -> None:
    """UsageError unless `path` begins as an .osm.pbf file does (length of a header block, then its type) and would fit in memory."""
    if not path.is_file():
        raise UsageError(f"--label {label}: {path} is no local file")
    with open(path, "rb") as file:
        if b"OSMHeader" not in file.read(32):
            raise UsageError(f"--label {label}: {path} is not an .osm.pbf file")
    needed, there = path.stat().st_size * MEMORY_PER_BYTE, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > there:
        raise UsageError(f"--label {label}: {path} would take about {needed / 1e9:.0f} GB of memory, of {there / 1e9:.0f} GB; "
                         "convert it to GeoPackage, for example with ogr2ogr, which is read near each patch only")


@lru_cache(maxsize=2)  # a plan is unpickled for each shard, and the file must not be read again for each
def read_extract(path: Path, groups: tuple[Group, ...]) -> Extract:
    """The features of `groups`. Where the file states no box, it covers the box of these features."""
    shapely = need("shapely", "labels")
    found: dict[tuple[int, int], list[bytes]] = defaultdict(list)
    incomplete = 0
    for dimension, tags, wkb in _features(path, groups):
        for position, group in enumerate(groups):
            if group.takes(tags, dimension):
                incomplete += wkb is None
                if wkb is not None:
                    found[position, dimension].append(wkb)
    geometries = {key: shapely.from_wkb(values) for key, values in sorted(found.items())}
    trees = {key: shapely.STRtree(values) for key, values in geometries.items()}
    return Extract(geometries, trees, _header_box(path) or _bounds(geometries), incomplete)


def _features(path: Path, groups: tuple[Group, ...]) -> Iterator[tuple[int, dict[str, str], bytes | None]]:
    """(dimension, tags, WKB or None where parts are missing) of each node, way and area that has a key of the groups."""
    osmium = need("osmium", "labels")
    wanted = osmium.filter.KeyFilter(*sorted(keys(groups)))
    factory = osmium.geom.WKBFactory()
    try:
        for entity in osmium.FileProcessor(str(path)).with_areas(wanted).with_filter(wanted):
            make = {"n": (0, factory.create_point), "w": (1, factory.create_linestring), "a": (2, factory.create_multipolygon)}.get(entity.type_str())
            if make is None:
                continue
            tags = {tag.k: tag.v for tag in entity.tags}
            if make[0] == 1 and tags.get("area") == "yes" and entity.is_closed():  # comes again as an area
                continue
            if not any(group.takes(tags, make[0]) for group in groups):
                continue
            try:
                yield make[0], tags, bytes.fromhex(make[1](entity))
            except (osmium.InvalidLocationError, RuntimeError):
                yield make[0], tags, None
    except RuntimeError as error:
        raise RunError(f"{path} cannot be read: {error}") from error


def _header_box(path: Path) -> tuple[float, float, float, float] | None:
    with need("osmium", "labels").io.Reader(str(path)) as reader:
        box = reader.header().box()
        if not box.valid():
            return None
        return box.bottom_left.lon, box.bottom_left.lat, box.top_right.lon, box.top_right.lat


def _bounds(geometries: dict[tuple[int, int], np.ndarray]) -> tuple[float, float, float, float]:
    shapely = need("shapely", "labels")
    everything = np.array([shapely.total_bounds(values) for values in geometries.values()]).reshape(-1, 4)
    if not len(everything):
        return 0.0, 0.0, 0.0, 0.0
    return (*everything[:, :2].min(axis=0).tolist(), *everything[:, 2:].max(axis=0).tolist())
