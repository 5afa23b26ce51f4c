"""What items mean, which scenes make a pair, and the journal that keeps it: real items, recorded answers, planted faults."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pyproj
import pytest
import shapely
import yaml

from dsengine.corpus.build import utm
from dsengine.corpus.build.archive import matches, scenes
from dsengine.corpus.build.archive.http import Http, Patience
from dsengine.corpus.build.dates import DAY_NS, Window, to_ns
from dsengine.corpus.build.plan import Grid
from dsengine.corpus.build.stac import items
from dsengine.corpus.build.stac.providers import PRESETS, Provider, load_provider
from dsengine.corpus.build.stac.search import Filters, Finder
from dsengine.errors import RunError, UsageError

ALL = Filters(max_cloud=100.0, orbit="any", s2_offset="auto")


def _cassette(sample_data: Path, name: str) -> list[dict[str, Any]]:
    text = (sample_data / "stac" / "cassettes" / name).read_text()
    return yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))["interactions"]


@contextmanager
def _replaying(interactions: list[dict[str, Any]], *, more: dict[str, Any] | None = None) -> Iterator[tuple[str, list[Any]]]:
    """The recorded bodies, their host replaced: the landing page, then pages in turn by their `next`; the bodies of requests are noted."""
    asked: list[Any] = []
    host = interactions[-1]["request"]["uri"].removesuffix("/search")

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            landing = next((i["response"]["body"]["string"] for i in interactions if i["request"]["method"] == "GET"), json.dumps({
                "type": "Catalog", "stac_version": "1.0.0", "id": "x", "description": "x", "conformsTo": ["https://api.stacspec.org/v1.0.0/item-search"],
                "links": [{"rel": "search", "href": f"{host}/search", "type": "application/geo+json", "method": "POST"}]}))
            self._send(landing)

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append(body)
            pages = [i["response"]["body"]["string"] for i in interactions if i["request"]["method"] == "POST"]
            if len(asked) <= len(pages):
                self._send(json.dumps({**json.loads(pages[len(asked) - 1]), **(more or {})}))
            else:
                self._send(json.dumps({"type": "FeatureCollection", "features": [], "links": []}))

        def _send(self, text: str) -> None:
            content = text.replace(host, f"http://127.0.0.1:{self.server.server_address[1]}").encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{running.server_address[1]}", asked
    finally:
        running.shutdown()
        running.server_close()
        thread.join()


def _with_api(provider: Provider, api: str, collection: str) -> Provider:
    from dataclasses import replace

    return replace(provider, api=api, s2=replace(provider.s2, collection=collection))


@pytest.mark.parametrize(("collection", "offset", "reason"), [("sentinel-2-c1-l2a", -1000, "the file declares offset -0.1 at scale 0.0001"),
                                                            ("sentinel-2-l2a", 0, "earthsearch:boa_offset_applied")])
def test_recorded_earth_search_pages_give_their_scenes_and_offsets(sample_data: Path, collection: str, offset: int, reason: str) -> None:
    """Both collections declare an offset of -0.1 in raster:bands; in one of them it is no longer in the numbers."""
    recorded = _cassette(sample_data, "earthsearch_filter_s1grd_s2.yaml")
    features = [f for i in recorded[1:] for f in json.loads(i["response"]["body"]["string"])["features"] if f["collection"] == collection]
    with _replaying(recorded) as (api, asked), Http(Patience(tries=1)) as http:
        find = Finder(http, {"s2": _with_api(PRESETS["earth_search"], api, collection)}, ALL)
        found = find("s2", Grid(32724, 600000.0, 9500020.0, 132, 10.0), Window(to_ns("2025-07-31"), to_ns("2025-08-01")))
    assert [s.id for s in found] == [f["id"] for f in features] and len(found) == 6
    assert asked[0]["collections"] == [collection] and asked[0]["datetime"] == "2025-07-31T00:00:00.000Z/2025-08-01T00:00:00.000Z"
    assert asked[1] == {"next": json.loads(recorded[1]["response"]["body"]["string"])["links"][0]["body"]["next"]}
    for scene, feature in zip(found, features, strict=True):
        assert scene.payload["offset"] == offset and scene.payload["reason"] == reason and scene.payload["scale"] == 1e-4 and not scene.unfit
        assert scene.time == np.datetime64(feature["properties"]["datetime"].rstrip("Z"), "ns").astype(int)
        assert items.assets(scene.payload)["B8A"] == feature["assets"]["nir08"]["href"]
        x, y = feature["assets"]["red"]["proj:transform"][2::3]
        assert scene.tile == (feature["properties"]["proj:epsg"], x, y - 109800, x + 109800, y)


def test_recorded_planetary_computer_items_are_read_and_their_footprints_hold_what_lies_in_them(sample_data: Path) -> None:
    recorded = _cassette(sample_data, "pc_sentinel-2-l2a_datetime.yaml")
    features = json.loads(recorded[0]["response"]["body"]["string"])["features"]
    with _replaying(recorded[:1]) as (api, _), Http(Patience(tries=1)) as http:
        find = Finder(http, {"s2": _with_api(PRESETS["planetary_computer"], api, "sentinel-2-l2a")}, ALL)
        found = find("s2", Grid(32659, 600000.0, 6400020.0, 132, 10.0), Window(to_ns("2019-01-01"), to_ns("2019-01-02")))
    assert len(found) == 33 and {s.payload["offset"] for s in found} == {0} and {s.payload["reason"] for s in found} == {"tag processing baseline 02.12"}
    assert all(set(items.assets(s.payload)) == {*PRESETS["planetary_computer"].s2.assets, "SCL"} for s in found)
    held = 0
    for scene, feature in zip(found, features, strict=True):
        footprint = shapely.geometry.shape(feature["geometry"])
        to = pyproj.Transformer.from_crs(4326, feature["properties"]["proj:epsg"], always_xy=True)
        x, y = to.transform(*footprint.representative_point().coords[0])
        for east in range(-40000, 40001, 8000):
            grid = Grid(scene.tile[0], x + east, y, 132, 10.0)
            left, bottom, right, top = utm.bounds(grid)
            box = shapely.box(left, bottom, right, top)
            degrees = shapely.transform(box, lambda xy: np.stack(to.transform(xy[:, 0], xy[:, 1], direction="INVERSE"), axis=1))
            within = degrees.within(footprint) and box.within(shapely.box(*scene.tile[1:]))
            # The footprint's edges are straight in degrees here, in metres there: a box within 500 m of an edge may go either way.
            if within == degrees.buffer(0.008).within(footprint) == box.buffer(500).within(shapely.box(*scene.tile[1:])) or not degrees.intersects(footprint):
                assert scenes.holds(scene, grid) == within
                held += within
    assert held > 20


@pytest.mark.parametrize(("properties", "declared", "expected"), [
    ({"s2:processing_baseline": "05.11"}, {}, -1000), ({"s2:processing_baseline": "02.12"}, {}, 0), ({"s2:processing_baseline": "99.99"}, {}, None), ({}, {}, None),
    ({"processing:version": "05.10"}, {}, -1000), ({"s2:product_uri": "S2A_MSIL2A_20240422T173911_N0510_R098_T13TDE_20240423T004950.SAFE"}, {}, -1000),
    ({"s2:processing_baseline": "05.11"}, {"raster:bands": [{"scale": 1e-4, "offset": -0.1}]}, -1000),
    ({"s2:processing_baseline": "05.11"}, {"raster:bands": [{"scale": 1e-4, "offset": 0}]}, None),
    ({"s2:processing_baseline": "05.11"}, {"raster:scale": 1e-4, "raster:offset": -0.1}, -1000),
    ({"s2:processing_baseline": "05.11", "earthsearch:boa_offset_applied": True}, {"raster:bands": [{"scale": 1e-4, "offset": -0.1}]}, 0),
    ({"s2:processing_baseline": "05.11", "earthsearch:boa_offset_applied": False}, {}, -1000),
    ({"s2:processing_baseline": "02.12"}, {"raster:bands": [{"scale": 1e-4, "offset": 0}]}, 0)])
def test_the_offset_is_what_the_metadata_say_and_unknown_where_they_disagree(properties: dict[str, Any], declared: dict[str, Any], expected: int | None) -> None:
    decision, scale = items.s2_numbers({"id": "x", "properties": properties}, [declared, declared], "auto")
    assert decision.offset == expected and scale == 1e-4
    assert items.s2_numbers({"id": "x", "properties": properties}, [declared, declared], "-1000")[0].offset == -1000
    assert items.s2_numbers({"id": "x", "properties": properties}, [declared, {"raster:bands": [{"scale": 1e-4, "offset": -0.2}]}], "auto")[0].offset is None


def test_answers_that_point_elsewhere_are_not_followed(sample_data: Path, tmp_path: Path) -> None:
    (tmp_path / "page.json").write_text('{"type": "FeatureCollection", "features": [{"id": "read from disk"}], "links": []}')
    recorded = _cassette(sample_data, "pc_sentinel-2-l2a_datetime.yaml")[:1]
    for href in (str(tmp_path / "page.json"), f"file://{tmp_path / 'page.json'}"):
        with _replaying(recorded, more={"links": [{"rel": "next", "href": href}]}) as (api, _), Http(Patience(tries=1)) as http:
            find = Finder(http, {"s2": _with_api(PRESETS["planetary_computer"], api, "sentinel-2-l2a")}, ALL)
            with pytest.raises(RunError, match="no http"):
                find("s2", Grid(32659, 600000.0, 6400020.0, 132, 10.0), Window(0, DAY_NS))
    with Http(Patience(tries=1)) as http, pytest.raises(RunError, match="no http"):
        Finder(http, {"s2": _with_api(PRESETS["planetary_computer"], str(tmp_path / "page.json"), "sentinel-2-l2a")}, ALL)


def _square(lon: float, *, lat: float = 10.0, half: float = 0.5) -> dict[str, Any]:
    return shapely.geometry.mapping(shapely.box(lon - half, lat - half, lon + half, lat + half))


def _scene(name: str, day: float, footprint: dict[str, Any], **more: Any) -> scenes.Scene:
    fields = {"same": (name,), "version": ("",), "payload": {}, **more}
    return scenes.Scene(name, round(day * DAY_NS), footprint, **fields)


def test_footprints_over_the_date_line_hold_their_patches_however_they_are_written() -> None:
    halves = {"type": "MultiPolygon", "coordinates": [_box(179.5, 180), _box(-180, -179.5)]}
    wrapped = {"type": "Polygon", "coordinates": _box(179.5, 180.5)}
    crossing = {"type": "Polygon", "coordinates": [[[179.5, 9.5], [-179.5, 9.5], [-179.5, 10.5], [179.5, 10.5], [179.5, 9.5]]]}
    for lon in (179.9999, -179.9999):
        grid = utm.patch_at(lon, 10.0, size=132, resolution_m=10.0)
        for footprint in (halves, wrapped, crossing):
            assert scenes.holds(_scene("a", 0, footprint), grid)
    assert not scenes.holds(_scene("a", 0, halves), utm.patch_at(179.4999, 10.0, size=132, resolution_m=10.0))
    assert not scenes.holds(_scene("a", 0, {}), grid) and not scenes.holds(_scene("a", 0, {"type": "Polygon", "coordinates": "x"}), grid)


def _box(west: float, east: float) -> list[list[list[float]]]:
    return [[[west, 9.5], [east, 9.5], [east, 10.5], [west, 10.5], [west, 9.5]]]


def _wanted(**more: Any) -> scenes.Wanted:
    grids = [utm.patch_at(5.0 + 0.001 * i, 10.0, size=12, resolution_m=10.0) for i in range(120)]
    return scenes.Wanted(**{"places": scenes.Lattice(grids), "windows": [Window(0, 12 * DAY_NS)], "sensors": ("s2", "s1"), "max_gap_ns": 3 * DAY_NS,
                            "attempts": 1, "seed": 0, **more})


def test_pairs_lie_within_three_days_inside_both_footprints_and_are_drawn_evenly() -> None:
    here = _square(5.1)
    listed = {"s2": [_scene("a", 5, here), _scene("late", 12, here), _scene("off", 5, _square(7.0)), _scene("cloudy", 5, here, unfit="cloud")],
              "s1": [_scene("x", 2, here), _scene("y", 8, here), _scene("z", 8.001, here), _scene("w", 1.99, here)]}
    drawn = [scenes.decide(row, _wanted(), lambda sensor, grid, window: listed[sensor]) for row in range(120)]
    assert {(d["s2"]["id"], d["s1"]["id"]) for d in drawn} == {("a", "x"), ("a", "y")}
    assert 40 < sum(d["s1"]["id"] == "x" for d in drawn) < 80
    again = scenes.decide(7, _wanted(), lambda sensor, grid, window: listed[sensor][::-1])
    assert again == drawn[7], "the order of the answer does not decide"


def test_of_versions_of_one_acquisition_the_latest_counts_and_another_zone_does_not() -> None:
    here = _square(5.1)
    listed = [_scene("old", 5, here, same=("t",), version=("02.12",)), _scene("new", 5, here, same=("t",), version=("05.11",)),
              _scene("zone", 5, here, tile=(32632, 0.0, 0.0, 1e7, 1e7))]
    drawn = {scenes.decide(row, _wanted(sensors=("s2",)), lambda sensor, grid, window: listed)["s2"]["id"] for row in range(30)}
    assert drawn == {"new"}


def _decide(row: int) -> dict[str, Any]:
    return {"row": row, "why": "none"} if row % 5 == 4 else {"row": row, "value": row * row}


def test_a_torn_last_line_is_cut_off_and_the_rest_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    whole = matches.search(path, 20, _decide, key={"a": (1, 2)}, threads=2)
    assert len(whole) == 16 and [record["row"] for record in whole.missed] == [4, 9, 14, 19]
    lines = path.read_bytes().splitlines(keepends=True)
    asked: list[int] = []
    for cut in (1, 30, len(b"".join(lines[:8])) + 3):
        path.write_bytes(b"".join(lines)[:cut])
        asked.clear()
        again = matches.search(path, 20, lambda row: asked.append(row) or _decide(row), key={"a": [1, 2]}, threads=3)
        assert again.sha256 == whole.sha256 and len(asked) == (13 if cut > 30 else 20)
    assert [record["value"] for record in again.read(range(2, 6))] == [4, 9, 25, 36]


def test_a_decision_that_fails_keeps_the_others_and_another_key_or_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"

    def failing(row: int) -> dict[str, Any]:
        if row == 10:
            raise RunError("archive gone")
        return _decide(row)

    with pytest.raises(RunError, match="archive gone"):
        matches.search(path, 20, failing, key={"a": 1}, threads=1)
    assert path.read_bytes().count(b"\n") >= 10
    with pytest.raises(UsageError, match="another a: 1, now 2"):
        matches.search(path, 20, _decide, key={"a": 2}, threads=1)
    path.write_text("hello\n")
    with pytest.raises(UsageError, match="not a journal of decisions"):
        matches.search(path, 20, _decide, key={"a": 1}, threads=1)
    assert path.read_text() == "hello\n"


@pytest.mark.parametrize(("text", "says"), [
    ("api: x\ns3x: 1", "key s3x.*did you mean s3"), ("- 1", "not a mapping"), ("!!python/object/apply:os.system [echo]", "cannot be read as YAML"),
    ("api: x\ns2: {collection: c, assets: {B02: b}}", "must map each of B01"), ("api: x\nsign: {kind: sas}", "sas with url and hosts"), ("s2: null", "api")])
def test_provider_files_are_checked_by_name(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "p.yaml").write_text(text)
    with pytest.raises(UsageError, match=says):
        load_provider(str(tmp_path / "p.yaml"), flag="--provider")


def test_journal_of_an_object_store_must_be_named() -> None:
    assert matches.journal_path("a/b", None) == Path("a/b.search.jsonl")
    with pytest.raises(UsageError, match="--matches FILE"):
        matches.journal_path("s3://bucket/corpus", None)
