"""The shard writer: readable by plain zarr-python, continues after a kill, ends with the same bytes, loses nothing."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec

from dsengine.corpus import open_corpus
from dsengine.corpus.build.writer import Block, CorpusWriter
from dsengine.corpus.schema import NODATA, S2_BANDS, LabelSpec, Layout, standard_layout
from dsengine.corpus.bitpack import BitpackCodec
from dsengine.corpus.shards import read_table
from dsengine.errors import RunError, UsageError

N, SIZE = 150, 16
LABELS = (LabelSpec(name="cover", kind="classmap", classes={0: "none", 1: "some"}, ignore=0),
          LabelSpec(name="crop", kind="class", classes={0: "wheat", 7: "rye"}, dtype="int16"),
          LabelSpec(name="tags", kind="multilabel", classes={0: "a", 1: "b", 2: "c"}))


def pixels(sensor: str) -> np.ndarray:
    """(N, C, SIZE, SIZE): smooth in places so that Blosc compresses, noise elsewhere, 5 % nodata in one band."""
    rng = np.random.default_rng(1)
    x = rng.integers(-3000, 12000, (N, {"s2": 12, "s1": 2}[sensor], SIZE, SIZE)).astype(np.int16)
    x[::3] = 77
    x[:, 1][rng.random((N, SIZE, SIZE)) < 0.05] = NODATA
    x[5] = NODATA
    return x


def block(start: int, count: int) -> Block:
    """Rows start..start+count of the test corpus."""
    rng, rows = np.random.default_rng(2), slice(start, start + count)
    lon, lat = rng.uniform(-170, 170, N), rng.uniform(-60, 70, N)
    labels = {"cover": np.broadcast_to(np.arange(N, dtype=np.uint8)[:, None, None] % 2, (N, SIZE, SIZE))[rows],
              "crop": (np.arange(N) % 2 * 7).astype(np.int16)[rows], "tags": (np.arange(3 * N).reshape(N, 3) % 2).astype(np.uint8)[rows]}
    index = {"lon": lon[rows], "lat": lat[rows], "source": [f"sité {i}" for i in range(N)][rows], "time_s2": np.arange(N)[rows]}
    return Block({"s2": pixels("s2")[rows], "s1": pixels("s1")[rows]}, index, labels, {"s1": [1, 2]})


def write(path: Path, *, stop: int | None = None, codec: str = "lz4", threads: int = 2) -> Path:
    """Write the test corpus, or only its first `stop` shards."""
    layout = standard_layout(SIZE, labels=LABELS, codec=codec)
    with CorpusWriter(path, layout=layout, num_patches=N, made_by={"by": "test"}, threads=threads) as writer:
        while writer.next_row < N and (stop is None or writer.next_row < stop * 64):
            writer.append(block(writer.next_row, writer.next_count))
        if stop is None:
            writer.finish()
    return path


def tree(path: Path) -> dict[str, bytes]:
    """Every file below `path`."""
    return {str(f.relative_to(path)): f.read_bytes() for f in sorted(path.rglob("*")) if f.is_file() and f.name != "workers"}


@pytest.mark.parametrize("codec", ["lz4", "zstd", "none", "bitpack", "bitpack-lorenzo"])
def test_plain_zarr_reads_every_value_back(tmp_path: Path, codec: str) -> None:
    group = zarr.open_group(write(tmp_path / "c", codec=codec), mode="r")
    for sensor in ("s2", "s1"):
        np.testing.assert_array_equal(group[sensor][...], pixels(sensor))
    for name, expected in block(0, N).labels.items():
        np.testing.assert_array_equal(group[f"labels/{name}"][...], expected)
    assert list(group["index/source"][...]) == [f"sité {i}" for i in range(N)]
    assert group["s2"].metadata.dimension_names == ("patch", "band", "y", "x") and group["s2"].fill_value == NODATA
    assert group["s2"].chunks == (1, 12, SIZE, SIZE) and group["s2"].shards == (64, 12, SIZE, SIZE)


@pytest.mark.parametrize("codec", ["lz4", "zstd", "none", "bitpack", "bitpack-lorenzo"])
def test_shard_chunks_are_the_bytes_zarr_python_writes(tmp_path: Path, codec: str) -> None:
    path = write(tmp_path / "c", codec=codec)
    compress = {"lz4": [BloscCodec(cname="lz4", clevel=5, shuffle="shuffle", typesize=2, blocksize=65536)],
                "zstd": [ZstdCodec(level=3)]}.get(codec, [])
    first = BitpackCodec(predictor="lorenzo" if codec == "bitpack-lorenzo" else "none", nodata=NODATA) if "bitpack" in codec else "auto"
    theirs = zarr.create_array(tmp_path / "z", shape=(N, 12, SIZE, SIZE), chunks=(1, 12, SIZE, SIZE), shards=(64, 12, SIZE, SIZE), dtype="int16",
                               fill_value=NODATA, serializer=first, compressors=[*compress, Crc32cCodec()], config={"write_empty_chunks": True})
    theirs[...] = pixels("s2")
    ours = zarr.open_group(path, mode="r")["s2"]
    assert [c.to_dict() for c in ours.metadata.codecs] == [c.to_dict() for c in theirs.metadata.codecs]
    for shard in range(3):
        mine, other = path / f"s2/c/{shard}/0/0/0", tmp_path / f"z/c/{shard}/0/0/0"
        rows = min(64, N - 64 * shard)
        for (a, n), (b, m) in zip(read_table(mine, 64)[:rows].tolist(), read_table(other, 64)[:rows].tolist(), strict=True):
            assert mine.read_bytes()[a:a + n] == other.read_bytes()[b:b + m]


@settings(max_examples=20, deadline=None)
@given(ids=st.lists(st.integers(0, N - 1), max_size=12))
def test_read_gives_any_rows_in_any_order(ids: list[int], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "any-order"
    corpus = open_corpus(path if path.exists() else write(path))
    np.testing.assert_array_equal(corpus.read(ids, "s1"), pixels("s1")[ids])


def test_statistics_and_nodata_fraction_equal_numpy(tmp_path: Path) -> None:
    corpus = open_corpus(write(tmp_path / "c"))
    contract = corpus.contract()
    for position, band in enumerate(corpus.bands):
        x = pixels(band.array)[:, band.channel].astype(np.float64)
        physical = x[x != NODATA] * {"s2": 1e-4, "s1": 0.01}[band.array]
        np.testing.assert_allclose([contract.mean[position], contract.std[position]], [physical.mean(), physical.std()], rtol=1e-12)
        assert corpus.arrays[band.array].attrs["count"][band.channel] == physical.size
    both = np.concatenate([pixels("s2"), pixels("s1")], axis=1)
    np.testing.assert_allclose(corpus.index.nodata_fraction, (both == NODATA).mean(axis=(1, 2, 3)), atol=1e-7)
    assert corpus.arrays["s1"].attrs["saturated"] == [3, 6]  # [1, 2] in each of three shards


@pytest.mark.parametrize("stop", [0, 1, 2, 3])
def test_a_stopped_build_continues_and_ends_with_the_same_bytes(tmp_path: Path, stop: int) -> None:
    write(tmp_path / "part", stop=stop)
    with pytest.raises(UsageError, match="unfinished"):
        open_corpus(tmp_path / "part")
    assert tree(write(tmp_path / "part", threads=1)) == tree(write(tmp_path / "whole"))


def test_killed_between_files_of_a_shard_it_continues(tmp_path: Path) -> None:
    code = f"""
import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
import os, signal, test_corpus_writer as t, dsengine.corpus.storage as w
real, calls = w.write_file, []
def dying(path, parts):
    real(path, parts)
    calls.append(path)
    if sum("/c/" in str(p) for p in calls) == 5: os.kill(os.getpid(), signal.SIGKILL)
w.write_file = dying
t.write(t.Path({str(tmp_path / "part")!r}))
"""
    assert subprocess.run([sys.executable, "-P", "-c", code], env=os.environ).returncode == -signal.SIGKILL
    assert (tmp_path / "part/s1/c/1/0/0/0").exists()  # the shard whose journal entry was not written
    assert tree(write(tmp_path / "part")) == tree(write(tmp_path / "whole"))


def test_a_full_disk_keeps_what_is_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, parts: list[bytes]) -> None:
        raise OSError(28, "No space left on device")

    write(tmp_path / "c", stop=1)
    before = tree(tmp_path / "c")
    with monkeypatch.context() as patched, pytest.raises(RunError, match=r"s2/c/1/0/0/0: No space left on device"):
        patched.setattr("dsengine.corpus.storage.write_file", full)
        write(tmp_path / "c")
    assert tree(tmp_path / "c") == before
    assert len(open_corpus(write(tmp_path / "c"))) == N


def test_other_options_do_not_continue_a_build(tmp_path: Path) -> None:
    write(tmp_path / "c", stop=1)
    with pytest.raises(UsageError, match="another made_by"):
        CorpusWriter(tmp_path / "c", layout=standard_layout(SIZE, labels=LABELS), num_patches=N, made_by={"by": "else"})
    assert len(open_corpus(write(tmp_path / "c"))) == N


def test_the_first_difference_to_an_unfinished_build_is_named_in_few_words(tmp_path: Path) -> None:
    made_by = {"files": {f"site {i}": {"s2": [f"folder/{i}.tif"]} for i in range(2000)}}
    CorpusWriter(tmp_path / "c", layout=standard_layout(SIZE), num_patches=N, made_by=made_by).close()
    other = {"files": {**made_by["files"], "site 1234": {"s2": ["else" * 1000]}}}
    with pytest.raises(UsageError, match=r"made_by\.files\.site 1234\.s2\.0 was 'folder/1234\.tif', now 'elseelse") as caught:
        CorpusWriter(tmp_path / "c", layout=standard_layout(SIZE), num_patches=N, made_by=other)
    assert len(str(caught.value)) < 700
    with pytest.raises(UsageError, match=r"another num_patches: num_patches was \d+, now \d+;"):
        CorpusWriter(tmp_path / "c", layout=standard_layout(SIZE), num_patches=N + 1, made_by=made_by)


def test_a_folder_with_anything_in_it_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "keep.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(UsageError, match="is not empty"):
            CorpusWriter(tmp_path, layout=standard_layout(SIZE), num_patches=1, made_by={}, overwrite=overwrite)
    assert tree(tmp_path) == {"keep.txt": b"mine"}


def test_a_finished_corpus_is_refused_unless_overwritten(tmp_path: Path) -> None:
    write(tmp_path / "c")
    with pytest.raises(UsageError, match="is not empty"):
        write(tmp_path / "c")
    CorpusWriter(tmp_path / "c", layout=standard_layout(SIZE), num_patches=1, made_by={}, overwrite=True).close()


def test_two_writers_do_not_share_a_folder(tmp_path: Path) -> None:
    layout = standard_layout(SIZE)
    with CorpusWriter(tmp_path / "c", layout=layout, num_patches=1, made_by={}), pytest.raises(UsageError, match="another process"):
        CorpusWriter(tmp_path / "c", layout=layout, num_patches=1, made_by={})


def test_a_folder_that_cannot_be_made_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot write the corpus folder"):
        CorpusWriter(tmp_path / "file/c", layout=standard_layout(SIZE), num_patches=1, made_by={})


def test_a_wrong_block_is_refused_by_array_shape_and_dtype(tmp_path: Path) -> None:
    good = block(0, 64)
    with CorpusWriter(tmp_path / "c", layout=standard_layout(SIZE), num_patches=N, made_by={}) as writer:
        with pytest.raises(ValueError, match=r"s2: expected \(64, 12, 16, 16\) int16, got \(3, 12, 16, 16\)"):
            writer.append(good._replace(arrays={k: v[:3] for k, v in good.arrays.items()}))
        with pytest.raises(ValueError, match="uint16"):
            writer.append(good._replace(arrays={k: v.astype(np.uint16) for k, v in good.arrays.items()}))
        assert writer.next_row == 0


def test_a_sensor_in_groups_of_two_resolutions_reads_as_one_grid(tmp_path: Path) -> None:
    specs = standard_layout(SIZE, sensors=("s2",)).arrays[0]
    fine = type(specs)(name="s2", sensor="s2", bands=S2_BANDS[1:4], units="reflectance", scale_factor=1e-4)
    coarse = type(specs)(name="s2_20m", sensor="s2", bands=("B05", "B06"), units="reflectance", scale_factor=1e-4, factor=2)
    layout = Layout(arrays=(fine, coarse), patch_size=SIZE, resolution_m=10.0)
    x = {"s2": pixels("s2")[:2, :3], "s2_20m": pixels("s2")[:2, 3:5, ::2, ::2]}
    with CorpusWriter(tmp_path / "c", layout=layout, num_patches=2, made_by={}) as writer:
        writer.append(Block({k: np.ascontiguousarray(v) for k, v in x.items()}, {"lon": [1.0, 2.0], "lat": [3.0, 4.0]}))
        corpus = open_corpus(writer.finish())
    read = corpus.read([0, 1], "s2")
    np.testing.assert_array_equal(read[:, :3], x["s2"])
    for y, col in ((0, 0), (5, 7), (15, 15)):
        np.testing.assert_array_equal(read[:, 3:, y, col], x["s2_20m"][:, :, y // 2, col // 2])
    assert corpus.arrays["s2_20m"].attrs["resolution_m"] == 20.0
