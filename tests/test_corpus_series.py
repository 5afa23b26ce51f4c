"""Corpora of series and pixels: readable by plain zarr-python, continued after a kill with the same bytes, checked, and refused where wrong."""

import json
import random
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec

from dsengine.cli import main
from dsengine.corpus import open_corpus
from dsengine.corpus.build.series_plan import build_series
from dsengine.corpus.build.series_writer import SeriesWriter
from dsengine.corpus.verify import verify_path
from dsengine.errors import RunError, UsageError

sys.path.insert(0, str(Path(__file__).parent / "workers"))
import build_series as small  # noqa: E402

SCRIPT = Path(__file__).parent / "workers" / "build_series.py"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_series(tmp_path_factory.mktemp("series") / "corpus", small.plan())


def tree(path: Path) -> dict[str, bytes]:
    """Every file below `path`."""
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}


def test_plain_zarr_reads_every_array(built: Path) -> None:
    group = zarr.open_group(built, mode="r")
    for key, expected in small.values().items():
        if key != "clear":
            np.testing.assert_array_equal(group[key][...], expected, err_msg=key)
    np.testing.assert_array_equal(group["time/s2"][...], [range(small.STEPS)])
    assert group["index/name"][3] == "Feld né 3"
    assert (group["index/id"][...] == np.arange(small.ROWS)).all()
    described = group.attrs["dsengine"]
    assert (described["version"], described["kind"], described["complete"], described["num_rows"]) == (1, "series", True, small.ROWS)
    assert described["bands"][3] == {"name": "rain", "sensor": "rain", "array": "series/rain", "channel": 0, "factor": 1}


@pytest.mark.parametrize("codec, expected", [("lz4", BloscCodec), ("zstd", ZstdCodec), ("none", Crc32cCodec)])
def test_every_codec_is_read_by_zarr_and_ends_with_a_checksum(tmp_path: Path, codec: str, expected: type) -> None:
    array = zarr.open_group(build_series(tmp_path / "out", small.plan(codec)), mode="r")["series/s2"]
    np.testing.assert_array_equal(array[...], small.values()["series/s2"])
    inner = array.metadata.codecs[0].codecs
    assert isinstance(inner[1], expected) and isinstance(inner[-1], Crc32cCodec)


def test_pixels_lie_in_blocks_of_rows(tmp_path: Path) -> None:
    corpus = open_corpus(build_series(tmp_path / "out", small.plan(kind="pixels")))
    assert corpus.kind == "pixels" and not corpus.series and not corpus.time
    np.testing.assert_array_equal(zarr.open_array(tmp_path / "out" / "pixels" / "s2")[...], small.values()["series/s2"][:, 0])
    np.testing.assert_array_equal(corpus.read_pixels([420, 0, 0], "s2"), small.values()["series/s2"][[420, 0, 0], 0])
    big = replace(small.layout(kind="pixels"), block_rows=0)
    assert big.rows_a_block() == big.rows_a_chunk(big.arrays[0]) == 65536


def test_statistics_are_in_physical_units_without_nodata(built: Path) -> None:
    contract, s2, rain = open_corpus(built).contract(), *(small.values()[key].astype(float) for key in ("series/s2", "series/rain"))
    columns = [s2[:, :, band][s2[:, :, band] != -32768] * 1e-4 for band in range(3)] + [rain[rain != -32768]]
    np.testing.assert_allclose(contract.mean, [c.mean() for c in columns], rtol=1e-12)
    np.testing.assert_allclose(contract.std, [c.std() for c in columns], rtol=1e-10)
    attrs = zarr.open_array(built / "series" / "s2").attrs
    assert attrs["count"] == [len(c) for c in columns[:3]]
    assert attrs["saturated"] == [7, 0, 14]
    assert [b.name for b in open_corpus(built).contract("rain").bands] == ["rain"]
    expected = ((s2 == -32768).sum(axis=(1, 2)) + (rain == -32768).sum(axis=(1, 2))) / (4 * small.STEPS)
    np.testing.assert_allclose(open_corpus(built).index["nodata_fraction"], expected, atol=1e-7)


def test_rows_are_read_in_the_order_asked_for(built: Path) -> None:
    corpus, v, rows = open_corpus(built), small.values(), [5, 400, 5, 0]
    for sensor in ("s2", "rain"):
        got = corpus.read_series(rows, sensor)
        np.testing.assert_array_equal(got.values, v[f"series/{sensor}"][rows])
        np.testing.assert_array_equal(got.valid, v[f"valid/{sensor}"][rows])
    np.testing.assert_array_equal(got.time, v["time/rain"][rows])
    assert corpus.read_series([], "s2").values.shape == (0, small.STEPS, 3)
    assert sum(len(corpus.rows(split)) for split in ("train", "val", "test")) == small.ROWS
    wanted = np.flatnonzero(v["index/field"] < 5)
    np.testing.assert_array_equal(corpus.rows("all", "field < 5"), wanted)


def test_a_build_killed_again_and_again_ends_with_the_same_bytes(built: Path, tmp_path: Path) -> None:
    draw, kills = random.Random(3), 0
    while True:
        process = subprocess.Popen([sys.executable, SCRIPT, tmp_path / "out", "0.02"], stdout=subprocess.PIPE, text=True)
        for _ in range(draw.randint(1, 2)):
            line = process.stdout.readline()
        if kills < 2 and line:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.communicate()
        if process.returncode == 0:
            break
        with pytest.raises(UsageError, match="unfinished build"):
            open_corpus(tmp_path / "out")
    assert kills == 2
    assert tree(tmp_path / "out") == tree(built)


@pytest.mark.parametrize("workers", [2, 4])
def test_any_number_of_processes_writes_the_same_bytes(built: Path, tmp_path: Path, workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(SCRIPT.parent))
    assert tree(build_series(tmp_path / "out", small.plan(), workers=workers)) == tree(built)


def test_a_cluster_writes_the_same_bytes(built: Path, tmp_path: Path) -> None:
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=False, dashboard_address=None) as cluster:
        assert tree(build_series(tmp_path / "out", small.plan(), scheduler=cluster.scheduler_address)) == tree(built)


def test_an_unfinished_build_continues_only_under_equal_options(tmp_path: Path) -> None:
    plan = small.plan()
    with SeriesWriter(tmp_path / "out", layout=plan.layout, num_rows=small.ROWS, made_by={}, columns=plan.columns) as writer:
        writer.append(plan.cut(range(0, 64)))
        assert writer.num_written == 64
    with pytest.raises(UsageError, match="another made_by"):
        build_series(tmp_path / "out", plan)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="not empty"):
        build_series(tmp_path / "other", plan)
    assert (tmp_path / "other" / "notes.txt").read_text() == "mine"


def test_flipped_bytes_are_found_and_named(built: Path, tmp_path: Path) -> None:
    copy, draw = tmp_path / "copy", random.Random(1)
    for key, content in tree(built).items():
        (copy / key).parent.mkdir(parents=True, exist_ok=True)
        (copy / key).write_bytes(content)
    assert verify_path(copy).problems == []
    for key in ("series/s2/c/2/0/0", "series/rain/c/0/0/0", "valid/s2/c/1/0", "time/rain/c/3/0", "time/s2/c/0/0", "index/field/c/0",
                "labels/crop/c/0", "series/s2/zarr.json", "zarr.json"):
        original = (copy / key).read_bytes()
        at = draw.randrange(len(original) // 4)
        (copy / key).write_bytes(original[:at] + bytes([original[at] ^ 0x40]) + original[at + 1:])
        problems = verify_path(copy).problems
        assert any(str(problem.file).endswith(key) for problem in problems), (key, at, problems)
        (copy / key).write_bytes(original)


def test_wrong_requests_end_in_one_line(built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    corpus = open_corpus(built)
    for wrong, match in ((lambda: corpus.read_series([421], "s2"), "0..420"), (lambda: corpus.read_series([0.5], "s2"), "whole numbers"),
                         (lambda: corpus.read_series([0], "s3"), "legal: s2, rain"), (lambda: corpus.read_pixels([0], "s2"), "holds series"),
                         (lambda: corpus.rows("dev"), "train, val, test, all"), (lambda: corpus.patch_size, "not image patches")):
        with pytest.raises(UsageError, match=match):
            wrong()
    assert main(["train", "--corpus", str(built), "--out", str(tmp_path / "run")]) == 2
    err = capsys.readouterr().err
    assert "method csf takes patches" in err and "holds series; legal: scarf, simclr, supervised" in err and len(err.splitlines()) == 1


def test_a_split_by_place_needs_places_and_one_by_column_keeps_groups(tmp_path: Path) -> None:
    corpus = open_corpus(build_series(tmp_path / "out", small.plan(split="column:field")))
    split, field = corpus.index["split"], corpus.index["field"]
    assert all(len(set(split[field == f].tolist())) == 1 for f in set(field.tolist())) and set(split.tolist()) == {0, 1, 2}
    plan = small.plan()
    nowhere = replace(plan, cut=lambda rows: (block := plan.cut(rows))._replace(index={**block.index, "lon": np.nan, "lat": np.nan}))
    with pytest.raises(UsageError, match="have no place; legal: random"):
        build_series(tmp_path / "nowhere", nowhere)


def test_recomputed_statistics_equal_those_of_the_build(built: Path, tmp_path: Path) -> None:
    from dsengine.corpus.series_stats import measure_series

    for name, measured in measure_series(open_corpus(built)).items():
        stored = json.loads((built / name / "zarr.json").read_text())["attributes"]
        assert {key: stored[key] for key in measured} == measured


def test_a_damaged_chunk_is_an_error_that_names_it(tmp_path: Path) -> None:
    path = build_series(tmp_path / "out", small.plan())
    target = path / "series" / "s2" / "c" / "1" / "0" / "0"
    content = bytearray(target.read_bytes())
    content[100] ^= 1
    target.write_bytes(bytes(content))
    with pytest.raises(RunError, match="series/s2: cannot be read"):
        open_corpus(path).read_series([64], "s2")
    np.testing.assert_array_equal(open_corpus(path).read_series([3], "s2").values[0], small.values()["series/s2"][3])
