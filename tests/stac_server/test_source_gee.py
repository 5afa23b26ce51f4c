"""Source `gee` against a fake of Earth Engine's REST interface: what is asked to the letter, what comes of the answers, no trace of a token."""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ee
import numpy as np
import pytest
import rasterio
import zarr
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from dsengine.cli import main
from dsengine.corpus.build.archive.http import Broken, Refused, Reply
from dsengine.corpus.build.gee import cut, images
from dsengine.corpus.build.plan import Grid

from . import archive, earth_engine

SIZE = 12
PUBLIC = "projects/earthengine-public/assets/COPERNICUS/"


@pytest.fixture
def engine(imagery: tuple[Path, list[dict[str, Any]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[earth_engine.EarthEngine]:
    """The fake, served, and the key file of a service account whose tokens it gives."""
    held = earth_engine.EarthEngine(*imagery)
    with earth_engine.serving(held) as root:
        key = rsa.generate_private_key(public_exponent=65537, key_size=2048).private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()).decode()
        account = {"type": "service_account", "project_id": "p", "private_key_id": "k", "private_key": key, "client_email": "a@b.c", "client_id": "1",
                   "token_uri": f"{root}/token"}
        (tmp_path / "account").mkdir()
        (tmp_path / "account" / "key.json").write_text(json.dumps(account))
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "account" / "key.json"))
        held.root = root
        yield held


def _command(engine: earth_engine.EarthEngine, out: Path, points: int, *more: str) -> list[str]:
    return ["corpus", "build", str(out), "--source", "gee", "--project", "my-project", "--api", engine.root, "--region",
            str(engine.folder.parent / "region.geojson"), "--points", str(points), "--size", str(SIZE), "--start", "2019-01-01", "--end", "2019-02-06",
            "--backoff", "0.01", "--no-quality", *more]


def test_every_value_is_earth_engines_by_band_name(engine: earth_engine.EarthEngine, tmp_path: Path) -> None:
    assert main(_command(engine, tmp_path / "out", 12)) == 0
    group = zarr.open_group(tmp_path / "out", mode="r")
    index = {name: group[f"index/{name}"][:] for name in ("x", "y", "scene_s2", "scene_s1", "cloud_fraction", "orbit", "time_s2", "time_s1")}
    data = {name: group[name][:] for name in group.array_keys()}
    nodata = 0
    for row in range(12):
        site = engine.folder / "_".join(index["scene_s2"][row].split("_")[-4:])
        x, y = index["x"][row], index["y"][row]
        for spec in group.attrs["dsengine"]["bands"]:
            with rasterio.open(site / f"{spec['name']}.tif") as file:
                raw = file.read(1, window=rasterio.windows.from_bounds(x, y - SIZE * 10, x + SIZE * 10, y, file.transform)).astype(float)
            expected = raw if spec["sensor"] == "s2" else np.where(raw > 0, np.rint(1000 * np.log10(np.maximum(raw, 1e-9))), -32768)
            nodata += int((expected == -32768).sum())
            assert np.abs(data[spec["array"]][row, spec["channel"]] - expected).max() <= (spec["sensor"] == "s1")  # dB come as float32
    assert nodata and set(index["orbit"]) <= {"ascending", "descending"} and np.nanmax(index["cloud_fraction"]) > 0
    assert (np.abs(index["time_s2"] - index["time_s1"]) <= 3 * 86_400 * 10**9).all()


def test_requests_are_what_the_interface_takes_to_the_letter(engine: earth_engine.EarthEngine, tmp_path: Path) -> None:
    assert main(_command(engine, tmp_path / "out", 1)) == 0
    group = zarr.open_group(tmp_path / "out", mode="r")
    epsg, x, y = (group[f"index/{name}"][0].item() for name in ("epsg", "x", "y"))
    s2, s1 = (group[f"index/scene_{sensor}"][0] for sensor in ("s2", "s1"))

    def grid(side: int, metres: float) -> dict[str, Any]:
        return {"dimensions": {"width": side, "height": side}, "crsCode": f"EPSG:{epsg}",
                "affineTransform": {"scaleX": metres, "shearX": 0, "translateX": x, "shearY": 0, "scaleY": -metres, "translateY": y}}

    pixels = sorted((asked for asked in engine.asked if asked.path.endswith("Pixels")), key=lambda asked: str(asked.body["bandIds"]))
    assert [(asked.method, asked.path, asked.body) for asked in pixels] == [
        ("POST", f"/v1/{PUBLIC}S2_SR_HARMONIZED/{s2}:getPixels", {"fileFormat": "NPY", "bandIds": ["B1", "B9"], "grid": grid(2, 60.0)}),
        ("POST", f"/v1/{PUBLIC}S2_SR_HARMONIZED/{s2}:getPixels", {"fileFormat": "NPY", "bandIds": ["B2", "B3", "B4", "B8"], "grid": grid(12, 10.0)}),
        ("POST", f"/v1/{PUBLIC}S2_SR_HARMONIZED/{s2}:getPixels",
         {"fileFormat": "NPY", "bandIds": ["B5", "B6", "B7", "B8A", "B11", "B12", "SCL"], "grid": grid(6, 20.0)}),
        ("POST", "/v1/projects/my-project/image:computePixels", {
            "fileFormat": "NPY", "bandIds": ["VV", "VH"], "grid": grid(12, 10.0), "expression": {"result": "0", "values": {"0": {
                "functionInvocationValue": {"functionName": "Image.unmask", "arguments": {
                    "input": {"functionInvocationValue": {"functionName": "Image.load", "arguments": {
                        "id": {"constantValue": f"COPERNICUS/S1_GRD/{s1}"}}}},
                    "value": {"functionInvocationValue": {"functionName": "Image.constant", "arguments": {"value": {"constantValue": -9999.0}}}},
                    "sameFootprint": {"constantValue": False}}}}}}})]
    assert all(asked.headers["Authorization"] in [f"Bearer {token}" for token in earth_engine.TOKENS] and asked.headers["X-Goog-User-Project"] == "my-project"
               and asked.headers["Content-Type"] == "application/json" for asked in pixels)


def test_lists_are_asked_for_as_googles_own_client_does(engine: earth_engine.EarthEngine, tmp_path: Path) -> None:
    assert main(_command(engine, tmp_path / "out", 1, "--sensors", "s2", "--end", "2019-01-13")) == 0
    asked = next(asked for asked in engine.asked if asked.path.endswith(":listAssets"))
    lon, lat = (zarr.open_group(tmp_path / "out", mode="r")[f"index/{name}"][0].item() for name in ("lon", "lat"))
    theirs = ee._cloud_api_utils.convert_list_images_params_to_list_assets_params({
        "startTime": "2019-01-01T00:00:00.000Z", "endTime": "2019-01-13T00:01:00.000Z", "region": {"type": "Point", "coordinates": [lon, lat]}})
    assert asked.path == f"/v1/{PUBLIC}S2_SR_HARMONIZED:listAssets"
    assert asked.query | {"pageToken": []} == {"pageSize": ["100"], "view": ["FULL"], "filter": [theirs["filter"]], "pageToken": []}


def test_a_token_that_ends_is_renewed_and_none_is_shown_or_stored(
        engine: earth_engine.EarthEngine, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> None:
    engine.valid = 2  # the first token is refused
    with caplog.at_level("DEBUG"):
        assert main(_command(engine, tmp_path / "out", 2)) == 0
        engine.change = lambda data: b"" if len(data) > 600 else data
        assert main(_command(engine, tmp_path / "worse", 2, "--tries", "1")) == 0
    assert engine.tokens >= 2
    written = capfd.readouterr()
    assert "SECRET" not in caplog.text + written.out + written.err and "PRIVATE" not in caplog.text + written.out + written.err
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and b"SECRET" in p.read_bytes()]
    faults = zarr.open_group(tmp_path / "worse", mode="r").attrs["dsengine"]["faults"]
    assert len(faults) == 2 and all("no .npy array, 0 bytes" in fault for fault in faults)


@pytest.mark.parametrize(("array", "error"), [
    (np.zeros((3, 2), [("B1", "u2"), ("B9", "u2")]), Refused), (np.zeros((2, 2), [("B9", "u2"), ("B1", "u2")]), Refused),
    (np.zeros((2, 2), np.uint16), Refused), (np.zeros((2, 2), [("B1", "u2"), ("B9", "S4")]), Refused),
    (np.array([[({}, 1), ({}, 2)]] * 2, [("B1", "O"), ("B9", "u2")]), Refused), (np.zeros((2, 2), [("B1", "u2"), ("B9", "f8")], order="F"), Refused)])
def test_pixels_that_are_not_what_was_asked_for_are_refused(array: np.ndarray, error: type[Exception]) -> None:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    with pytest.raises(error):
        cut.parse_pixels(Reply(200, {}, buffer.getvalue()), 2, ("B01", "B09"))


def test_declared_sizes_are_checked_before_memory_is_taken() -> None:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": [("B1", "<u2"), ("B9", "<u2")], "fortran_order": False, "shape": (2, 2)})
    for size, side, error in ((16, 2, None), (15, 2, Broken), (17, 2, Broken), (16, 60000, Refused)):
        reply = Reply(200, {}, buffer.getvalue() + bytes(size))
        if error is None:
            assert cut.parse_pixels(reply, side, ("B01", "B09"))["B9"].shape == (2, 2)
        else:
            with pytest.raises(error):
                cut.parse_pixels(reply, side, ("B01", "B09"))


def test_names_from_the_server_stay_within_the_catalogue() -> None:
    asset = {"type": "IMAGE", "startTime": "2019-01-01T00:00:00.123456789Z", "properties": {}}
    for name in (f"{PUBLIC}S1_GRD/../../x", "projects/evil/assets/S1_GRD/x", f"{PUBLIC}S1_GRD/a//b"):
        assert images.scene({**asset, "name": name}, "s1", max_cloud=100, orbit="any") is None
    good = images.scene({**asset, "name": f"{PUBLIC}S1_GRD/x"}, "s1", max_cloud=100, orbit="any")
    assert good.time == 1546300800 * 10**9 + 123456000 and good.id == "x"


def test_without_credentials_or_with_a_wrong_project_the_error_says_what_to_do(
        engine: earth_engine.EarthEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "no.json"))
    assert main(_command(engine, tmp_path / "out", 1)) == 2
    assert "earthengine authenticate" in capsys.readouterr().err
    assert main(_command(engine, tmp_path / "out", 1, "--project", "../x")) == 2
    assert not engine.asked and archive.SITES


def test_the_grid_of_a_request_is_that_of_the_patch_at_each_resolution() -> None:
    for band, side in (("B02", 10), ("B05", 5), ("B01", 2)):  # 10 pixels of 10 m: the 60 m pixels reach over the edge
        body = cut.pixels_request(f"{PUBLIC}S2_SR_HARMONIZED/x", Grid(32631, 600000.0, 4500000.0, 10, 10.0), "s2", (band,), project="p")[1]
        assert body["grid"]["dimensions"] == {"width": side, "height": side}
