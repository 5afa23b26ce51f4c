"""Embeddings in the report: the vectors are the encoder's, the directions are those of largest variance, the colours are the label's."""

import base64
import io
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.decomposition import PCA

sys.path.insert(0, str(Path(__file__).parent))
from report_cases import Page, add_checkpoint, make_run  # noqa: E402

from dsengine.corpus import open_corpus
from dsengine.corpus.colours import class_colours
from dsengine.errors import UsageError
from dsengine.study.report import clouds
from dsengine.study.report.embeddings import colouring, embed, label_maps
from dsengine.study.report.folders import read_run
from dsengine.study.report.write import write_report


@pytest.fixture(scope="module")
def run(small_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with freshly initialised weights; do not write to it."""
    folder = make_run(tmp_path_factory.mktemp("embedded") / "run", corpus=small_corpus)
    add_checkpoint(folder, small_corpus)
    return folder


@pytest.fixture(scope="module")
def page(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Page:
    """The report of `run`."""
    return Page(write_report([run], out=tmp_path_factory.mktemp("page") / "r.html", samples=40))


def test_vectors_are_the_encoder_s_of_whole_patches_z_scored_with_the_contract(run: Path, small_corpus: Path) -> None:
    read, corpus = read_run(run), open_corpus(small_corpus)
    found = embed(read, "all", corpus, samples=10)
    contract = corpus.contract()
    stored = np.concatenate([corpus.read(found.rows, sensor) for sensor in corpus.sensors], axis=1).astype(np.float64)
    scale, offset, mean, std = (np.array(getattr(contract, key))[:, None, None] for key in ("scale", "offset", "mean", "std"))
    x = np.where(stored == contract.nodata, 0.0, (stored * scale + offset - mean) / std)
    import dsengine

    encoder, _ = dsengine.load_encoder(run)
    with torch.no_grad():
        wanted = encoder(torch.from_numpy(x).float())
    np.testing.assert_allclose(found.pooled, wanted.pooled, rtol=1e-3, atol=1e-4)
    at = [found.rows.tolist().index(row) for row in found.map_rows]
    np.testing.assert_allclose(found.dense, wanted.dense[at], rtol=1e-3, atol=1e-4)
    names = [band.name for band in corpus.bands]
    np.testing.assert_allclose(found.images, x[at][:, [names.index(band) for band in ("B04", "B03", "B02")]], atol=1e-4)
    assert found.image_bands == ("B04", "B03", "B02") and len(set(found.rows.tolist())) == 10


@pytest.mark.parametrize("n, d", [(50, 8), (5, 300), (3, 2)])
def test_directions_are_those_of_scikit_learn_s_pca(n: int, d: int) -> None:
    x = np.random.default_rng(0).normal(size=(n, d)) * np.linspace(3, 1, d) + 7
    count = min(2, n - 1, d)
    ours, shares = clouds.directions(x, 2)
    theirs = PCA(count, svd_solver="full").fit(x)
    wanted = theirs.transform(x)
    np.testing.assert_allclose(np.abs(ours[:, :count]), np.abs(wanted), atol=1e-9)
    np.testing.assert_allclose(shares[:count], theirs.explained_variance_ratio_, atol=1e-12)
    np.testing.assert_allclose(clouds.directions(x[::-1], 2)[0][::-1], ours, atol=1e-9)  # signs depend on the set alone


def test_directions_of_equal_vectors_are_zero_and_no_error() -> None:
    found, shares = clouds.directions(np.ones((4, 3)), 3)
    assert not found.any() and not shares.any() and np.isfinite(clouds.map_colours(np.ones((2, 3, 2, 2)))[0]).all()


def test_cells_of_equal_features_have_equal_colours_and_others_do_not() -> None:
    rng = np.random.default_rng(0)
    kinds = rng.normal(size=(5, 12))
    which = rng.integers(0, 5, (3, 4, 4))
    colours, shares = clouds.map_colours(kinds[which].transpose(0, 3, 1, 2) * rng.uniform(1, 2, (3, 1, 4, 4)))
    for k in range(5):
        assert np.ptp(colours[which == k], axis=0).max() < 1e-9
    assert len(np.unique(colours.reshape(-1, 3).round(6), axis=0)) == 5 and 0 < shares.sum() <= 1


def test_a_patch_is_coloured_by_the_commonest_class_of_its_map(small_corpus: Path) -> None:
    corpus = open_corpus(small_corpus)
    rows = np.arange(0, 96, 5)
    found = colouring(corpus, rows, None)
    attrs, stored = corpus.labels["landcover"].attrs, np.asarray(corpus.labels["landcover"][:])
    table = {int(value): name for value, name in attrs["classes"].items() if int(value) != attrs["ignore"]}
    for row, k in zip(rows, found.classes):
        counts = {name: int((stored[row] == value).sum()) for value, name in table.items()}
        assert counts[found.names[k]] == max(counts.values())
    assert found.colours[:-1] == list(class_colours(table).values()) and found.names[-1] == "no label"
    assert "landcover" in found.name


def test_label_maps_have_the_colours_of_their_legend(small_corpus: Path) -> None:
    corpus = open_corpus(small_corpus)
    rows = np.array([3, 50])
    name, pictures, legend = label_maps(corpus, rows, None)
    stored = np.asarray(corpus.labels["landcover"][:])[rows]
    attrs = corpus.labels["landcover"].attrs
    for value, text in attrs["classes"].items():
        if (stored == int(value)).any() and int(value) != attrs["ignore"]:
            assert {"#" + "".join(f"{round(255 * c):02x}" for c in colour) for colour in pictures[stored == int(value)]} == {legend[text]}
    assert name == "landcover" and pictures.shape == (2, 32, 32, 3)


def test_an_unknown_label_is_refused_with_the_legal_ones(run: Path, small_corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--label landcovr: did you mean landcover"):
        write_report([run], out=tmp_path / "r.html", label="landcovr")
    assert not (tmp_path / "r.html").exists()


def test_the_page_shows_the_cloud_by_class_and_maps_beside_imagery_and_label(page: Page) -> None:
    section = page.section("Views and embeddings")
    cloud = section.all("figure", "chart")[0]
    counts = [int(item.text.rpartition("(")[2].rstrip(")")) for item in cloud.all("li")]
    points = [path.attributes["d"].count("M") for path in cloud.all("path", "points")]
    assert counts == points == sorted(counts, reverse=True) and sum(counts) == 40
    assert [text.text.split(",")[0] for text in cloud.all("text", "label")] == ["direction 1", "direction 2"]
    assert "% of the variance" in cloud.all("text", "label")[0].text
    trios = section.all("div", "trio")
    assert len(trios) == 6
    for trio in trios:
        assert [cell.text for cell in trio.all("div")] == ["B04 B03 B02", "embedding", "landcover"]
        sizes = [Image.open(io.BytesIO(base64.b64decode(image.attributes["src"].split(",")[1]))).size for image in trio.all("img")]
        assert sizes == [(32, 32), (2, 2), (32, 32)]
    assert "No UMAP" in section.text or "UMAP" in section.all("figure", "chart")[1].text


def test_umap_is_drawn_where_it_is_installed(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class UMAP:
        def __init__(self, *, n_neighbors: int, random_state: int, n_jobs: int) -> None:
            assert n_neighbors == 11 and random_state == 0

        def fit_transform(self, x: np.ndarray) -> np.ndarray:
            return x[:, :2]

    stand_in = types.ModuleType("umap")
    stand_in.UMAP = UMAP
    stand_in.__spec__ = types.SimpleNamespace(name="umap")
    monkeypatch.setitem(sys.modules, "umap", stand_in)
    section = Page(write_report([run], out=tmp_path / "r.html", samples=12)).section("Views and embeddings")
    assert [figure.all("strong")[0].text for figure in section.all("figure", "chart")] == ["Embeddings, PCA", "Embeddings, UMAP"]


def test_many_points_become_a_picture_that_shows_them_all(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one_by_one = Page(write_report([run], out=tmp_path / "r.html", samples=12)).section("Views and embeddings").all("figure", "chart")[0]
    places = [point.split("h")[0].split() for path in one_by_one.all("path", "points") for point in path.attributes["d"].split("M")[1:]]
    monkeypatch.setattr(clouds, "MOST_DRAWN", 10)
    cloud = Page(write_report([run], out=tmp_path / "r.html", samples=12)).section("Views and embeddings").all("figure", "chart")[0]
    (image,) = cloud.all("image")
    assert not cloud.all("path", "points") and len(places) == 12
    drawn = np.asarray(Image.open(io.BytesIO(base64.b64decode(image.attributes["href"].split(",")[1]))))
    left, top, width, height = (float(image.attributes[key]) for key in ("x", "y", "width", "height"))
    assert drawn.shape[2] == 4 and 0 < (drawn[..., 3] > 0).mean() < 0.1
    for x, y in places:
        assert drawn[int((float(y) - top) / height * len(drawn)), int((float(x) - left) / width * drawn.shape[1]), 3] == 255


def test_a_corpus_of_another_contract_makes_no_embeddings_and_says_so(run: Path, tmp_path: Path) -> None:
    from dsengine.corpus.synth import synthesize

    other = synthesize(tmp_path / "other", num_patches=70, size=32, seed=9)
    page = Page(write_report([run], out=tmp_path / "r.html", corpus=str(other), samples=8))
    assert any(text.text.startswith("No embeddings") and "legal" in text.text for text in page.all("p", "missing"))
