"""Corpora stored with the fixed-width codec: made by convert, checked, appended to, read by the loader and by readers of objects, on a GPU if there is one."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr

from dsengine import cli
from dsengine.corpus import open_corpus
from dsengine.corpus.build.writer import Block, CorpusWriter
from dsengine.corpus.schema import NODATA, ArraySpec, LabelSpec, Layout
from dsengine.data import native
from dsengine.data.chunks import ShardIndex, read_chunks
from dsengine.data.decode import decode
from dsengine.data.device import open_on_device
from dsengine.data.layout import chunk_layout
from dsengine.data.loader import Loader
from dsengine.data.sample import View
from dsengine.errors import UsageError

CODECS = ("bitpack", "bitpack-lorenzo")
NUM, SIDE = 21, 20
ARRAYS = (ArraySpec(name="s2", sensor="s2", bands=("B02", "B03", "B04"), units="reflectance", scale_factor=1e-4),
          ArraySpec(name="s2_20m", sensor="s2", bands=("B05",), units="reflectance", scale_factor=1e-4, factor=2))
LABELS = (LabelSpec(name="cover", kind="classmap", classes={0: "water", 1: "land"}, ignore=255),
          LabelSpec(name="parcel", kind="classmap", classes={0: "none", 70_000: "much"}, dtype="int32"))


def write(path: Path, codec: str, seed: int = 0) -> Path:
    """21 patches, a part of each without data, class maps of one byte and of four."""
    rng, layout = np.random.default_rng(seed), Layout(arrays=ARRAYS, patch_size=SIDE, resolution_m=10.0, labels=LABELS, codec=codec, shard_patches=8)
    with CorpusWriter(path, layout=layout, num_patches=NUM, made_by={"seed": seed}, threads=1) as writer:
        while writer.next_row < NUM:
            n = writer.next_count
            arrays = {spec.name: rng.integers(0, 900, (n, len(spec.bands), layout.side(spec), layout.side(spec))).astype(np.int16) for spec in ARRAYS}
            arrays["s2"][:, :, :7, :7] = NODATA
            labels = {"cover": rng.integers(0, 2, (n, SIDE, SIDE)).astype(np.uint8), "parcel": rng.choice([0, 70_000], (n, SIDE, SIDE)).astype(np.int32)}
            writer.append(Block(arrays=arrays, index={"lon": rng.uniform(-9, 9, n), "lat": rng.uniform(-9, 9, n)}, labels=labels))
        return Path(writer.finish())


@pytest.fixture(scope="module", params=CODECS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The same patches as LZ4, and converted."""
    folder = tmp_path_factory.mktemp(request.param)
    usual = write(folder / "usual", "lz4")
    assert run("convert", usual, folder / "packed", "--codec", request.param) == 0
    return usual, folder / "packed"


def run(*words: object) -> int:
    return cli.main(["corpus", *map(str, words)])


def test_every_array_is_the_same_to_plain_zarr_and_says_what_it_is_stored_as(pair: tuple[Path, Path], capsys: pytest.CaptureFixture) -> None:
    before, after = (zarr.open_group(path, mode="r") for path in pair)
    for name in ("s2", "s2_20m", "labels/cover", "labels/parcel"):
        np.testing.assert_array_equal(after[name][...], before[name][...], err_msg=name)
    inner = {name: [codec["name"] for codec in json.loads((pair[1] / name / "zarr.json").read_text())["codecs"][0]["configuration"]["codecs"]]
             for name in ("s2", "labels/cover", "labels/parcel")}
    assert inner == {"s2": ["dsengine.bitpack", "crc32c"], "labels/cover": ["dsengine.bitpack", "crc32c"], "labels/parcel": ["bytes", "blosc", "crc32c"]}
    assert run("info", pair[1]) == 0
    assert f"dsengine.bitpack {'lorenzo' if 'lorenzo' in str(pair[1]) else 'none'}" in " ".join(capsys.readouterr().out.split())
    assert run("verify", pair[1]) == 0


def test_converting_and_writing_give_the_same_files(pair: tuple[Path, Path], tmp_path: Path) -> None:
    made = write(tmp_path / "made", "bitpack-lorenzo" if "lorenzo" in str(pair[1]) else "bitpack")
    for path in (made / "s2/c").rglob("0"):
        if path.is_file():
            assert path.read_bytes() == (pair[1] / path.relative_to(made)).read_bytes()


def test_the_same_codec_is_kept_where_none_is_named(pair: tuple[Path, Path], tmp_path: Path) -> None:
    assert run("convert", pair[1], tmp_path / "again", "--shard-patches", 5) == 0
    codecs = [json.loads((path / "s2/zarr.json").read_text())["codecs"][0]["configuration"]["codecs"] for path in (pair[1], tmp_path / "again")]
    assert codecs[0] == codecs[1]
    assert run("append", tmp_path / "again", write(tmp_path / "more", "lz4", 1)) == 0
    assert run("verify", tmp_path / "again") == 0
    whole = zarr.open_array(tmp_path / "again/s2", mode="r")
    np.testing.assert_array_equal(whole[NUM:], zarr.open_array(tmp_path / "more/s2", mode="r")[...])


def test_verify_names_the_patch_of_a_changed_byte(pair: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert run("convert", pair[1], tmp_path / "hurt") == 0
    layout = chunk_layout(open_corpus(tmp_path / "hurt").arrays["s2"], root=tmp_path / "hurt")
    path, offset = Path(layout.shard_path(1)), int(ShardIndex(layout).locate(np.array([11])).offset[0])
    raw = bytearray(path.read_bytes())
    raw[offset + 300] ^= 4
    path.write_bytes(raw)
    assert run("verify", tmp_path / "hurt") == 1
    said = "".join("".join(capsys.readouterr()).split())
    assert "s2/c/1/0/0/0" in said and "crc32c" in said


def test_batches_of_the_loader_do_not_depend_on_the_codec(pair: tuple[Path, Path]) -> None:
    views = (View(size=16), View(size=12, bands=("B03", "B05")))
    batches = []
    for path in pair:
        with Loader(open_corpus(path), views, 4, seed=3, num_threads=2) as loader:
            batches.append(list(itertools.islice(loader, 9)))
    for ours, theirs in zip(*batches, strict=True):
        assert torch.equal(ours.sample_id, theirs.sample_id) and all(torch.equal(x, y) for x, y in zip(ours.views, theirs.views, strict=True))


def test_chunks_in_memory_and_one_at_a_time_are_decoded_too(pair: tuple[Path, Path]) -> None:
    """How chunks from object stores come, and what the library would refuse."""
    array = open_corpus(pair[1]).arrays["s2"]
    layout = chunk_layout(array, root=pair[1])
    located = ShardIndex(layout).locate(np.array([20, 3, 3, 9]))
    buffer, out = np.empty(int(located.size.sum()) + native.SLACK, np.uint8), np.empty((4, *layout.patch_shape), np.int16)
    chunks = read_chunks(layout, located, buffer)
    assert not native.decode_chunks(layout, located, buffer, out).size
    np.testing.assert_array_equal(out, array.oindex[[20, 3, 3, 9]])
    for chunk in chunks:
        decode(chunk, out[chunk.row].fill(0) or out[chunk.row])
    np.testing.assert_array_equal(out, array.oindex[[20, 3, 3, 9]])


def test_series_are_not_for_it() -> None:
    from dsengine.corpus.series_schema import SeriesLayout, SeriesSpec

    spec = SeriesSpec(sensor="s2", bands=("B02",), units="reflectance", steps=4)
    with pytest.raises(UsageError, match="codec='bitpack' is not legal in a corpus of series: lz4, zstd, none"):
        SeriesLayout(kind="series", arrays=(spec,), codec="bitpack")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_gets_the_patches_that_a_cpu_gets(pair: tuple[Path, Path]) -> None:
    corpus, ids = open_corpus(pair[1]), np.array([20, 3, 3, 9, 0])
    layouts = [chunk_layout(array, root=pair[1]) for array in corpus.arrays.values()]
    with open_on_device(layouts, num_threads=2, device=torch.device("cuda", torch.cuda.current_device())) as pipeline:
        for _ in range(3):
            with pipeline.lease(ids) as outs:
                for out, array in zip(outs, corpus.arrays.values(), strict=True):
                    np.testing.assert_array_equal(out.cpu().numpy(), array.oindex[ids])
