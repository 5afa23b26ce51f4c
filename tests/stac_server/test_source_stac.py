"""Source `stac` against a real HTTP server on loopback: every value, a killed build, an archive on a bad day."""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import zarr
from . import archive, server

from dsengine.cli import main

SIZE = 12


@pytest.fixture(scope="module")
def world(imagery: tuple[Path, list[dict[str, Any]]]) -> Iterator[server.Archive]:
    """Three sites of six Sentinel-2 and six Sentinel-1 scenes, served."""
    held = server.Archive(*imagery)
    with server.serving(held):
        yield held


@pytest.fixture(autouse=True)
def good_day(world: server.Archive) -> Iterator[None]:
    """Faults are planted by tests and end with them."""
    yield
    world.fault, world.token = (lambda number, path: ""), ""
    world.requests.clear()


def _command(world: server.Archive, out: Path, points: int, *more: str) -> list[str]:
    return ["corpus", "build", str(out), "--source", "stac", "--api", f"{world.root}/", "--region", str(world.folder.parent / "region.geojson"),
            "--points", str(points), "--size", str(SIZE), "--start", "2019-01-01", "--end", "2019-02-06", "--backoff", "0.01", "--no-quality", *more]


def _hashes(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.rglob("*")) if p.is_file()}


def _window(world: server.Archive, site: str, name: str, x: float, y: float) -> np.ndarray:
    """The patch's pixels of one raster by rasterio's own bounds arithmetic."""
    with rasterio.open(world.folder / site / f"{name}.tif") as file:
        return file.read(1, window=rasterio.windows.from_bounds(x, y - SIZE * 10, x + SIZE * 10, y, file.transform))


def test_every_value_is_the_archives_with_offset_units_and_nodata_resolved(world: server.Archive, tmp_path: Path) -> None:
    assert main(_command(world, tmp_path / "out", 40)) == 0
    group = zarr.open_group(tmp_path / "out", mode="r")
    index = {name: group[f"index/{name}"][:] for name in ("x", "y", "epsg", "scene_s2", "cloud_fraction", "quarantine")}
    data = {name: group[name][:] for name in group.array_keys()}
    offsets, clouds, nodata = set(), 0, 0
    for row in range(40):
        x, y = index["x"][row], index["y"][row]
        site = "_".join(index["scene_s2"][row].split("_")[-4:])
        late = "_late" if "N0511" in index["scene_s2"][row] else ""
        offsets.add(late)
        for spec in group.attrs["dsengine"]["bands"]:
            if spec["sensor"] == "s2":
                expected = _window(world, site, spec["name"] + late, x, y).astype(int) - (1000 if late else 0)
            else:
                power = _window(world, site, spec["name"], x, y).astype(float)
                expected = np.where(power > 0, np.rint(1000 * np.log10(np.maximum(power, 1e-9))), -32768)
                nodata += int((expected == -32768).sum())
            stored = data[spec["array"]][row, spec["channel"]]
            assert stored.shape == (SIZE // spec["factor"],) * 2 and np.array_equal(stored, expected), (row, spec)
        scl = _window(world, site, "SCL", x, y)
        known = scl > 0
        assert index["cloud_fraction"][row] == pytest.approx((scl[known] == 9).mean() if known.any() else np.nan, nan_ok=True)
        clouds += bool((scl == 9).any())
    assert offsets == {"", "_late"}
    assert clouds
    assert nodata
    assert {int(epsg) for epsg in index["epsg"]} == {32718, 32736, 32632} and not index["quarantine"].any()


def test_a_cover_takes_every_patch_of_a_lattice_and_goes_on_to_dates_that_have_scenes(world: server.Archive, tmp_path: Path) -> None:
    command = [part for part in _command(world, tmp_path / "out", 0, "--cover", "within", "--max-cloud", "5") if part not in ("--points", "0")]
    assert main(command) == 0
    group = zarr.open_group(tmp_path / "out", mode="r")
    places = list(zip(*(group[f"index/{name}"][:].tolist() for name in ("epsg", "x", "y")), strict=True))
    assert len(set(places)) == len(places) == group.attrs["dsengine"]["made_by"]["rows"] > 100
    assert all(x % (SIZE * 10) == 0 for _, x, _ in places)
    assert set(group["index/time_s2"][:].tolist()) == {1546596000 * 10**9}  # the one scene of the first window without clouds


def test_pairs_are_close_in_time_spread_over_windows_and_filtered(world: server.Archive, tmp_path: Path) -> None:
    assert main(_command(world, tmp_path / "out", 24, "--max-cloud", "25", "--orbit", "descending")) == 0
    group = zarr.open_group(tmp_path / "out", mode="r")
    s2, s1 = (group[f"index/time_{sensor}"][:] for sensor in ("s2", "s1"))
    assert (np.abs(s2 - s1) <= 3 * 86_400 * 10**9).all()
    assert set(group["index/orbit"][:]) == {"descending"}
    days = (s2 - 1546300800 * 10**9) // (86_400 * 10**9)
    assert set(days.tolist()) <= {9, 15}  # scene 0 has an ascending partner, scenes 3 to 5 are too cloudy
    record = [json.loads(line) for line in (tmp_path / "out.search.jsonl").read_text().splitlines()]
    why = [r["why"] for r in record[1:] if "why" in r]  # all scenes of one window of three are too cloudy
    assert len(record) == 25 and len(why) == 8 and all("s2 cloud cover above 25 %" in text for text in why)


def test_more_points_go_on_from_the_journal_and_other_options_are_refused(world: server.Archive, tmp_path: Path) -> None:
    common = ("--matches", str(tmp_path / "m.jsonl"), "--sensors", "s2", "--bands-at", "10m")
    assert main(_command(world, tmp_path / "a", 6, *common)) == 0
    searches = len([path for method, path in world.requests if method == "POST"])
    assert main(_command(world, tmp_path / "b", 9, *common)) == 0
    assert len([path for method, path in world.requests if method == "POST"]) < 3 * searches
    a, b = (zarr.open_group(tmp_path / name, mode="r") for name in "ab")
    assert np.array_equal(a["s2"][:], b["s2"][:6]) and a["s2"].shape == (6, 12, SIZE, SIZE)
    assert main(_command(world, tmp_path / "c", 9, *common, "--max-cloud", "50")) == 2


def test_a_build_killed_twice_continues_with_the_same_scenes_and_ends_with_the_same_bytes(world: server.Archive, tmp_path: Path) -> None:
    assert main(_command(world, tmp_path / "undisturbed", 200)) == 0
    out, journal = tmp_path / "killed", tmp_path / "killed.search.jsonl"
    _run_until(_command(world, out, 200), lambda: journal.exists() and journal.read_bytes().count(b"\n") > 40)
    assert not out.exists() and 40 < journal.read_bytes().count(b"\n") < 201
    early = journal.read_bytes()
    _run_until(_command(world, out, 200), lambda: (out / ".journal").is_dir() and any((out / "s2_60m" / "c").rglob("0")))
    assert (out / ".journal").is_dir() and journal.read_bytes().startswith(early[:early.rfind(b"\n") + 1])
    decided = journal.read_bytes()
    assert main(_command(world, out, 200, "--workers", "2")) == 0
    assert journal.read_bytes() == decided
    assert _hashes(out) == _hashes(tmp_path / "undisturbed")


def _run_until(command: list[str], reached: Callable[[], bool]) -> None:
    """Run the command in a process of its own and SIGKILL it when `reached`."""
    with tempfile.TemporaryFile() as said, \
            subprocess.Popen([sys.executable, "-P", "-m", "dsengine.cli", *command], stdout=subprocess.DEVNULL, stderr=said) as process:
        try:
            deadline = time.monotonic() + 120
            while not reached():
                if process.poll() is not None or time.monotonic() > deadline:
                    said.seek(0)
                    raise AssertionError(f"it could not be killed, for it ended with {process.poll()}: {said.read().decode()[-2000:]}")
                time.sleep(0.002)
        finally:
            process.kill()


def test_a_bad_day_ends_with_a_complete_corpus_and_a_report_of_what_failed(world: server.Archive, tmp_path: Path) -> None:
    kinds = ("429", "500", "503", "truncated", "slow", "damaged")

    def fault(number: int, path: str) -> str:
        if path.startswith(f"/files/{archive.SITES[0]}/B09"):
            return "500"
        if path.startswith(f"/files/{archive.SITES[1]}/VH"):
            return "404"
        kind = kinds[number // 7 % len(kinds)] if number % 7 == 0 else ""
        return "" if kind == "damaged" and not path.startswith("/files") else kind

    assert main(_command(world, tmp_path / "good", 48)) == 0
    world.fault = fault
    # Other flags of patience are no other build: the same journal of decisions serves.
    matches = ("--matches", str(tmp_path / "good.search.jsonl"), "--timeout", "0.5", "--tries", "8")
    assert main(_command(world, tmp_path / "bad", 48, *matches)) == 0
    good, bad = (zarr.open_group(tmp_path / name, mode="r") for name in ("good", "bad"))
    lost = bad["index/quarantine"][:] == 1
    sites = np.array(["_".join(scene.split("_")[-4:]) for scene in good["index/scene_s2"][:]])
    assert np.array_equal(lost, np.isin(sites, archive.SITES[:2])) and 0 < lost.sum() < 48
    for name in ("s2", "s2_20m", "s2_60m", "s1"):
        assert np.array_equal(good[name][:][~lost], bad[name][:][~lost]) and (bad[name][:][lost] == -32768).all()
    faults = bad.attrs["dsengine"]["faults"]
    assert len(faults) == lost.sum()
    assert any("B09: http://" in fault and fault.endswith("B09.tif: status 500, after 8 tries") for fault in faults), faults
    assert any("VH: http://" in fault and fault.endswith("VH.tif: status 404") for fault in faults), faults


def test_tokens_are_asked_for_where_they_belong_and_leave_no_trace(
        world: server.Archive, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> None:
    world.token = "sig=TOPSECRET"
    assets = {band: band for band in archive.BANDS}
    provider = {"api": f"{world.root}/", "s2": {"collection": "sentinel-2-l2a", "assets": assets, "scl": "SCL"},
                "s1": {"collection": "sentinel-1-rtc", "assets": {"VV": "vv", "VH": "vh"}, "units": "linear"},
                "sign": {"kind": "sas", "url": f"{world.root}/token", "hosts": ["127.0.0.1"]}}
    (tmp_path / "mine.yaml").write_text(json.dumps(provider))  # JSON is YAML
    world.fault = lambda number, path: "404" if "/VH.tif" in path and zlib.crc32(path.encode()) % 2 else ""  # some scenes, always the same
    with caplog.at_level("DEBUG"):
        assert main(_command(world, tmp_path / "out", 8, "--provider", str(tmp_path / "mine.yaml"))) == 0
    signed = [path for _, path in world.requests if path.startswith("/files")]
    assert signed and all(path.endswith("?sig=TOPSECRET") for path in signed)
    assert len([path for _, path in world.requests if path.startswith("/token/127/files")]) <= 4  # one a sensor and shard
    assert any(r.name.startswith("urllib3") for r in caplog.records)
    traces = [p for p in tmp_path.rglob("*") if p.is_file() and b"TOPSECRET" in p.read_bytes()]
    written = capfd.readouterr()
    assert not traces and "TOPSECRET" not in caplog.text + written.out + written.err
    assert zarr.open_group(tmp_path / "out", mode="r").attrs["dsengine"]["faults"]


def test_an_archive_out_of_reach_stops_the_build_and_does_not_fill_a_corpus_with_nothing(
        world: server.Archive, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    world.fault = lambda number, path: "503" if path.startswith("/files") else ""
    assert main(_command(world, tmp_path / "out", 8, "--tries", "2")) == 1
    assert "out of reach" in capsys.readouterr().err
    world.fault = lambda number, path: ""
    assert main(_command(world, tmp_path / "out", 8)) == 0


@pytest.mark.parametrize(("more", "says"), [
    (("--size", "16"), "multiple of 6, such as 12 or 18"), (("--provider", "earth_search"), "earth_search has no Sentinel-1 RTC"),
    (("--provider", "erth_search"), "did you mean earth_search"), (("--region", "FR"), "--land FILE is needed"),
    (("--cover", "within"), "either --points N or --cover"), (("--sensors", "s1,s2"), "legal: s2,s1, s2 or s1"), (("--tries", "0"), "at least 1")])
def test_what_flags_get_wrong_is_said_before_anything_is_asked_or_written(
        world: server.Archive, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: tuple[str, ...], says: str) -> None:
    assert main(_command(world, tmp_path / "out", 8, *more)) == 2
    assert says in capsys.readouterr().err
    assert not world.requests and not list(tmp_path.iterdir())
