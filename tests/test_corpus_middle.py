"""`convert --size` and `--drop`: what is kept is the middle of what was there, and corpora of several sizes and labels can be joined."""

import sys
from pathlib import Path

import numpy as np
import pytest
import zarr

sys.path.insert(0, str(Path(__file__).parent))
from test_corpus_edit import everything, run, write  # noqa: E402

from dsengine.corpus import open_corpus
from dsengine.corpus.build.writer import Block, CorpusWriter
from dsengine.corpus.schema import ArraySpec, Layout


def coarse(path: Path) -> Path:
    """Three patches of 12 px with a band of three times that pixel, each pixel its own number."""
    arrays = (ArraySpec(name="s2", sensor="s2", bands=("B02",), units="reflectance", scale_factor=1e-4),
              ArraySpec(name="s2_30m", sensor="s2", bands=("B05",), units="reflectance", scale_factor=1e-4, factor=3))
    with CorpusWriter(path, layout=Layout(arrays=arrays, patch_size=12, resolution_m=10.0, codec="none", shard_patches=2), num_patches=3,
                      made_by={}) as writer:
        while writer.next_row < 3:
            k, first = writer.next_count, writer.next_row
            fine = (np.arange(k * 144) + 144 * first).reshape(k, 1, 12, 12).astype(np.int16)
            wide = (np.arange(k * 16) + 16 * first).reshape(k, 1, 4, 4).astype(np.int16)
            writer.append(Block({"s2": fine, "s2_30m": wide}, {"lon": np.zeros(k), "lat": np.zeros(k), "epsg": np.full(k, 32633), "x": np.full(k, 500_000.0),
                                                              "y": np.full(k, 4_000_000.0)}))
        return writer.finish()


@pytest.mark.parametrize("size, first", [(12, 0), (9, 0), (6, 3), (3, 3)])
def test_the_middle_begins_at_a_whole_pixel_of_the_coarsest_band_and_its_corner_moves(tmp_path: Path, size: int, first: int) -> None:
    before = everything(coarse(tmp_path / "a"))
    assert run("convert", tmp_path / "a", tmp_path / "b", "--size", size) == 0
    after = everything(tmp_path / "b")
    np.testing.assert_array_equal(after["s2"], before["s2"][:, :, first:first + size, first:first + size])
    np.testing.assert_array_equal(after["s2_30m"], before["s2_30m"][:, :, first // 3:(first + size) // 3, first // 3:(first + size) // 3])
    assert (after["index/x"] == 500_000 + 10 * first).all() and (after["index/y"] == 4_000_000 - 10 * first).all()
    assert run("verify", tmp_path / "b") == 0
    corpus = open_corpus(tmp_path / "b")
    assert corpus.patch_size == size and corpus.contract().patch_size == size
    mean = zarr.open_group(tmp_path / "b", mode="r")["s2"].attrs["mean"]
    np.testing.assert_allclose(mean, after["s2"].mean() * 1e-4)  # statistics are those of what is kept


def test_labels_are_cut_with_the_pixels_or_left_out_and_the_rest_stays(tmp_path: Path) -> None:
    a = write(tmp_path / "a", 5, 1)
    before = everything(a)
    assert run("convert", a, tmp_path / "b", "--size", 8, "--drop", "tags", "--drop", "region") == 0
    after = everything(tmp_path / "b")
    np.testing.assert_array_equal(after["labels/cover"], before["labels/cover"][:, 2:10, 2:10])
    np.testing.assert_array_equal(after["labels/scene"], before["labels/scene"])
    assert "labels/tags" not in after and "index/region" not in after
    for name in ("lon", "lat", "split", "cloud_fraction"):
        np.testing.assert_array_equal(after[f"index/{name}"], before[f"index/{name}"])


def test_corpora_of_two_sizes_and_labels_join_once_they_are_made_alike(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    large, small = write(tmp_path / "large", 3, 1, size=24), write(tmp_path / "small", 2, 2, columns=False)
    assert run("merge", tmp_path / "m", large, small) == 2
    assert "cuts to a size and drops labels and columns" in capsys.readouterr().err
    for path, more in ((large, ["--drop", "region", "--size", 12]), (small, [])):
        assert run("convert", path, tmp_path / f"{path.name}12", "--drop", "tags", *more) == 0
    assert run("merge", tmp_path / "m", tmp_path / "large12", tmp_path / "small12") == 0
    found = everything(tmp_path / "m")
    np.testing.assert_array_equal(found["s1"], np.concatenate([everything(large)["s1"][:, :, 6:18, 6:18], everything(small)["s1"]]))


@pytest.mark.parametrize("words, message", [
    (["--size", "0"], "--size 0: legal: 1 or more"),
    (["--size", "15"], "--size 15: patches have 12 px; legal: 1 to 12"),
    (["--size", "8"], "patch size 8 is not a multiple of 3"),
    (["--size", "8", "--group", "s2_10m:1=B05"], "--size 8: legal: multiples of 3"),
    (["--drop", "cover"], "--drop cover: no label or further index column of that name; legal: none"),
])
def test_a_size_or_name_that_cannot_be_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture, words: list[str], message: str) -> None:
    assert run("convert", coarse(tmp_path / "a"), tmp_path / "c", *words) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "c").exists()
