"""Embeddings of corpora, and similarity search in embeddings of either kind."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr

sys.path.insert(0, str(Path(__file__).parent))
from embed_cases import BANDS, Small, contract, numbers, write  # noqa: E402

import dsengine
from dsengine import cli
from dsengine.corpus import Corpus, open_corpus
from dsengine.data.loader import Loader
from dsengine.data.sample import View
from dsengine.errors import UsageError
from dsengine.export.facts import read_facts


@pytest.fixture(scope="module")
def corpus(small_corpus: Path) -> Corpus:
    return open_corpus(small_corpus)


@pytest.fixture(scope="module")
def encoder() -> Small:
    torch.manual_seed(0)
    return Small(14).eval()


def as_trained(encoder: Small, corpus: Corpus) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """Row -> (pooled, dense) of the views that a loader makes without augmentation: what training would show."""
    found = {}
    with Loader.heldout(corpus, [View(size=corpus.patch_size)], 16, split="all") as batches:
        for batch in batches:
            with torch.no_grad():
                pooled, dense = encoder(batch.views[0])
            found |= {int(k): (p.numpy(), d.numpy()) for k, p, d in zip(batch.sample_id, pooled, dense, strict=True)}
    return found


@pytest.mark.parametrize("suffix", [".zarr", ".parquet"])
def test_a_corpus_is_embedded_as_training_shows_it(encoder: Small, corpus: Corpus, tmp_path: Path, suffix: str) -> None:
    out, = dsengine.embed(encoder, corpus, tmp_path / f"a{suffix}")
    want = as_trained(encoder, corpus)
    if suffix == ".zarr":
        group = zarr.open_group(out, mode="r")
        rows, vectors, lon = group["id"][...], group["embedding"][...], group["lon"][...]
    else:
        table = pytest.importorskip("pyarrow.parquet").read_table(out)
        rows, vectors, lon = table["id"].to_numpy(), np.stack(table["embedding"].to_pylist()), table["lon"].to_numpy()
    np.testing.assert_array_equal(rows, corpus.rows("all"))
    np.testing.assert_allclose(vectors, [want[row][0] for row in rows], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(lon, corpus.index.lon[rows])
    facts = read_facts(out)
    assert facts["source"]["manifest_sha256"] and facts["contract"]["bands"][0]["name"] == "B01"


def test_dense_maps_of_a_corpus_and_a_condition_on_its_index(encoder: Small, corpus: Corpus, tmp_path: Path) -> None:
    out, = dsengine.embed((encoder, corpus.contract()), corpus.path, tmp_path / "a.zarr", pooled=False, dtype="int8", where="split == 'val'")
    group = zarr.open_group(out, mode="r")
    want = as_trained(encoder, corpus)
    scale = group["embedding"].attrs["scale_factor"]
    values = group["embedding"][...] * scale + group["embedding"].attrs["add_offset"]
    assert group["embedding"].metadata.dimension_names == ("patch", "feature", "row", "column")
    np.testing.assert_array_equal(group["id"][...], corpus.rows("val"))
    np.testing.assert_allclose(values, [want[row][1] for row in corpus.rows("val")], atol=scale / 2 + 1e-5)
    xarray = pytest.importorskip("xarray", reason="xarray is not installed (extra `test`)")
    data = xarray.open_zarr(out, consolidated=False)
    assert set(data.embedding.coords) >= {"lon", "lat", "id"} and data.embedding.dims[0] == "patch"
    with pytest.raises(UsageError, match="dense maps of a corpus; legal: pooled"):
        dsengine.nearest(out, 0)


def test_a_raster_has_the_embedding_of_the_corpus_that_is_cut_from_it(encoder: Small, tmp_path: Path) -> None:
    values = numbers(128, 192)
    values[:12] = np.round(values[:12])
    write(tmp_path / "s2" / "a.tif", values[:12])
    write(tmp_path / "s1" / "a.tif", values[12:], bands=BANDS[12:])
    argv = ["corpus", "build", tmp_path / "corpus", "--source", "geotiff", "--s2", tmp_path / "s2" / "*.tif", "--s1", tmp_path / "s1" / "*.tif",
            "--size", 64, "--s2-offset", 0]
    assert cli.main([str(a) for a in argv]) == 0
    model = (encoder, contract())
    of_corpus = zarr.open_group(dsengine.embed(model, tmp_path / "corpus", tmp_path / "c.zarr")[0])
    (tmp_path / "both").mkdir()
    for sensor in ("s2", "s1"):
        (tmp_path / "both" / f"{sensor}.tif").symlink_to(tmp_path / sensor / "a.tif")
    of_raster = zarr.open_group(dsengine.embed(model, tmp_path / "both", tmp_path / "r.zarr", pooled=True, s2_offset="0")[0])
    assert of_raster["embedding"].shape == (6, 2, 3)
    cells = {(x, y): v for x, y, v in zip(of_corpus["x"][...], of_corpus["y"][...], of_corpus["embedding"][...], strict=True)}
    for row, y in enumerate(of_raster["y"][...] + 320):
        for column, x in enumerate(of_raster["x"][...] - 320):  # upper left corners of 640 m
            np.testing.assert_allclose(of_raster["embedding"][:, row, column], cells[x, y], rtol=1e-5, atol=1e-6)


def test_corpora_that_do_not_fit_the_encoder_are_refused(encoder: Small, corpus: Corpus, tmp_path: Path) -> None:
    other = contract((*BANDS[:12], "HH", "VH"))
    with pytest.raises(UsageError, match="HH missing; legal: corpora with all of B01"):
        dsengine.embed((encoder, other), corpus, tmp_path / "a.zarr")
    with pytest.raises(UsageError, match="legal: a name that ends in .zarr, .parquet"):
        dsengine.embed(encoder, corpus, tmp_path / "a.tif")
    with pytest.raises(UsageError, match="takes 14 different bands"):
        dsengine.embed(encoder, corpus, tmp_path / "a.zarr", bands=["B02", "B03"])
    with pytest.raises(UsageError, match="without a contract"):
        dsengine.embed(encoder, tmp_path, tmp_path / "a.zarr")
    assert list(tmp_path.iterdir()) == []


def test_an_encoder_of_drawn_bands_is_shown_the_named_ones(corpus: Corpus, tmp_path: Path) -> None:
    three = Small(3).eval()
    with pytest.raises(UsageError, match="takes 3 bands at a time of B01.*--bands"):
        dsengine.embed(three, corpus, tmp_path / "a.zarr")
    out, = dsengine.embed(three, corpus, tmp_path / "a.zarr", bands=["B04", "B03", "B02"])
    raw = corpus.read([5], "s2")[:, [3, 2, 1]].astype(np.float64)
    c = corpus.contract()
    x = np.stack([(raw[:, k] * 1e-4 - c.mean[b]) / c.std[b] for k, b in enumerate((3, 2, 1))], axis=1)
    x[raw == -32768] = 0
    with torch.no_grad():
        want = three(torch.from_numpy(x).float()).pooled.numpy()
    np.testing.assert_allclose(zarr.open_group(out)["embedding"][5], want[0], rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def searched(encoder: Small, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """One raster's embedding in the three formats, with a hole."""
    folder = tmp_path_factory.mktemp("searched")
    values = numbers(200, 264)
    values[0, :40, :80] = 0
    raster = write(folder / "a.tif", values)
    return [dsengine.embed((encoder, contract()), raster, folder / f"e{suffix}", s2_offset="0")[0] for suffix in (".zarr", ".tif", ".parquet")]


def test_search_finds_what_a_literal_comparison_finds_in_every_format(searched: list[Path]) -> None:
    vectors = zarr.open_group(searched[0])["embedding"][...].reshape(6, -1).T.astype(np.float64)
    query = 500
    cosine = vectors @ vectors[query] / np.linalg.norm(vectors, axis=1) / np.linalg.norm(vectors[query])
    cosine[query] = np.nan
    want = np.argsort(-cosine)[: np.isfinite(cosine).sum()]
    for path in searched:
        found = dsengine.nearest(path, query, top=7)
        np.testing.assert_array_equal(found.id, want[:7])
        np.testing.assert_allclose(found.cosine, cosine[want[:7]], atol=1e-6)
        rows, columns = np.divmod(found.id, 33)
        apart = np.hypot(rows - query // 33, columns - query % 33) * 0.08
        np.testing.assert_allclose(found.km, apart, rtol=5e-3)  # of a sphere, not an ellipsoid
        far = dsengine.nearest(path, query, top=5, min_km=1.033)  # no cell is within 0.6 % of this
        rows, columns = np.divmod(want, 33)
        np.testing.assert_array_equal(far.id, want[np.hypot(rows - query // 33, columns - query % 33) * 0.08 > 1.033][:5])
        assert dsengine.nearest(path, (float(found.lon[0]), float(found.lat[0])), top=1).query == found.id[0]


def test_a_search_that_cannot_be_is_refused(searched: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for path in searched:
        with pytest.raises(UsageError, match="outside|no patch"):
            dsengine.nearest(path, (10.0, 10.0))
        with pytest.raises(UsageError, match="has cells 0 to 824|no such id"):
            dsengine.nearest(path, 25 * 33)
        with pytest.raises(UsageError, match="has no data|no such id"):
            dsengine.nearest(path, 0)
    (tmp_path / "x.zarr").mkdir()
    with pytest.raises(UsageError, match="not an embedding file"):
        dsengine.nearest(tmp_path / "x.zarr", 0)
    for text in ("here", "1,2,3", "200,0"):
        assert cli.main(["embed", "--out", str(searched[0]), "--nearest", text]) == 2
        assert "--nearest" in capsys.readouterr().err


def test_the_command_embeds_a_corpus_draws_it_and_searches(encoder: Small, corpus: Corpus, tmp_path: Path, capsys: pytest.CaptureFixture,
                                                            monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dsengine.export.model.load_encoder", lambda path, name: (encoder, corpus.contract()))
    out = str(tmp_path / "a.parquet")
    assert cli.main(["embed", "--run", "r", "--corpus", str(corpus.path), "--out", out, "--device", "cpu", "--map", "--nearest", "7", "--top", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == out and lines[1].startswith("most similar to 7") and len(lines) == 6
    assert (tmp_path / "a.png").stat().st_size > 10_000
    assert cli.main(["embed", "--out", out, "--nearest", f"{corpus.index.lon[7]},{corpus.index.lat[7]}", "--top", "3"]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == lines[2:]
    assert cli.main(["embed", "--out", out]) == 2 and "give --run" in capsys.readouterr().err
