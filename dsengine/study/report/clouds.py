"""The section about embeddings: clouds of samples in two dimensions, and maps of a few patches as colours."""

import importlib.util
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from dsengine.corpus import Corpus, SeriesCorpus
from dsengine.errors import RunError, UsageError
from dsengine.study.report.chart import Group, cloud_box, cloud_scales, scatter
from dsengine.study.report.embeddings import Colouring, Embedded, colouring, embed, encoders_of, label_maps
from dsengine.study.report.folders import RunFolder
from dsengine.study.report.html import Html, join, missing, paragraph, tag
from dsengine.study.report.pictures import array_png

MOST_DRAWN = 2500  # points that are drawn one by one; more become a picture
_FINER = 3  # pixels of that picture in an SVG unit
_SHOWN_CLASSES = 24


def section(run: RunFolder, corpus: Corpus | SeriesCorpus | str, *, samples: int, label: str | None) -> Html:
    """Clouds and maps of each encoder of `run`, or why there are none. UsageError for a `label` that the corpus cannot give."""
    if isinstance(corpus, str):
        return missing(f"No embeddings: the corpus cannot be opened here ({corpus}); --corpus PATH names it where it lies now.")
    if label is not None:
        colouring(corpus, np.zeros(1, np.int64), label)  # before anything is computed
    try:
        keys = encoders_of(run)
        return join(_of_encoder(run, key, corpus, samples=samples, label=label, several=len(keys) > 1) for key in keys)
    except (UsageError, RunError) as error:
        return missing(f"No embeddings: {' '.join(str(error).split())}.")


def directions(vectors: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """(N, count) coordinates of vectors (N, D) along their directions of largest variance, and the share of the variance on each.

    Each direction points to where its largest entry is positive, so that two runs of this give one picture. Zero where there are fewer.
    """
    centred = vectors.astype(np.float64) - vectors.mean(0, dtype=np.float64)
    u, s, vt = np.linalg.svd(centred, full_matrices=False)
    kept = min(count, len(s))
    signs = np.sign(vt[np.arange(kept), np.abs(vt[:kept]).argmax(1)])
    found, shares = np.zeros((len(vectors), count)), np.zeros(count)
    found[:, :kept] = u[:, :kept] * s[:kept] * signs
    shares[:kept] = s[:kept] ** 2 / max((s ** 2).sum(), 1e-300)
    return found, shares


def unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors (N, D) of length 1, so that a few long ones do not decide all directions; as cosine similarity sees them."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def map_colours(dense_NDhw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(N, h, w, 3) colours in [0, 1] of dense maps: the three main directions of all their cells as unit vectors, 2nd to 98th percentile.

    Returns the directions' shares of the variance too.
    """
    n, d, h, w = dense_NDhw.shape
    found, shares = directions(unit(dense_NDhw.transpose(0, 2, 3, 1).reshape(-1, d)), 3)
    low, high = np.percentile(found, (2, 98), axis=0)
    return np.clip((found - low) / np.maximum(high - low, 1e-12), 0, 1).reshape(n, h, w, 3), shares


def _of_encoder(run: RunFolder, key: str, corpus: Corpus | SeriesCorpus, *, samples: int, label: str | None, several: bool) -> Html:
    embedded = embed(run, key, corpus, samples=samples)
    chosen = colouring(corpus, embedded.rows, label)
    dim = embedded.pooled.shape[1]
    said = (f"{len(embedded.rows):,} {corpus.kind} of {embedded.splits}, one vector of {dim:,} features each, scaled to length 1, of whole samples "
            f"without augmentation; colours are the {chosen.name}.")
    title = tag("h4", None, f"Encoder {key}") if several else None
    return join([title, paragraph(said, kind="note"), _clouds(embedded, chosen), _maps(embedded, corpus, label)])


def _clouds(embedded: Embedded, chosen: Colouring) -> Html:
    if len(embedded.rows) < 3:
        return missing(f"No scatter: {len(embedded.rows)} samples are fewer than 3.")
    vectors = unit(embedded.pooled)
    found, shares = directions(vectors, 2)
    axes = [f"direction {k + 1}, {100 * share:.3g} % of the variance" for k, share in enumerate(shares)]
    charts = [_cloud("Embeddings, PCA", found, chosen, axes)]
    if importlib.util.find_spec("umap") is None:
        charts.append(missing("No UMAP: umap-learn is not installed; `pip install umap-learn` adds it to the next report."))
    else:
        charts.append(_cloud("Embeddings, UMAP", _umap(vectors), chosen, ["UMAP 1, no unit", "UMAP 2, no unit"]))
    return tag("div", {"class": "grid"}, *charts)


def _cloud(title: str, points: np.ndarray, chosen: Colouring, labels: Sequence[str]) -> Html:
    """The commonest classes first, so that rare ones lie on top."""
    order = np.argsort(-np.bincount(chosen.classes, minlength=len(chosen.names)), kind="stable")
    groups = [Group(chosen.names[k], points[chosen.classes == k], chosen.colours[k]) for k in order if (chosen.classes == k).any()]
    described = f"{title}: {len(points):,} samples, {', '.join(f'{group.name} {len(group.points)}' for group in groups[:_SHOWN_CLASSES])}"
    raster = _raster(groups) if len(points) > MOST_DRAWN else None
    drawn = scatter(groups, x_label=labels[0], y_label=labels[1], described=described, raster=raster)
    names = [tag("li", None, tag("i", {"style": f"background:{group.colour}"}), tag("span", None, f"{group.name} ({len(group.points):,})"))
             for group in groups[:_SHOWN_CLASSES]]
    rest = tag("li", None, f"and {len(groups) - _SHOWN_CLASSES} more classes") if len(groups) > _SHOWN_CLASSES else None
    return tag("figure", {"class": "chart"}, tag("figcaption", None, tag("strong", None, title)), drawn, tag("ul", {"class": "legend"}, *names, rest))


def _raster(groups: Sequence[Group]) -> str:
    """The points of a scatter as a transparent picture."""
    left, top, width, height = cloud_box()
    x, y = cloud_scales(groups)
    image = Image.new("RGBA", (round(width * _FINER), round(height * _FINER)))
    pen, r = ImageDraw.Draw(image), 1.6 * _FINER
    for group in groups:
        for a, b in zip((x(group.points[:, 0]) - left) * _FINER, (y(group.points[:, 1]) - top) * _FINER):
            pen.ellipse((a - r, b - r, a + r, b + r), fill=group.colour, outline="#59636e")
    return array_png(np.asarray(image) / 255)


def _umap(vectors: np.ndarray) -> np.ndarray:
    import umap

    return umap.UMAP(n_neighbors=min(15, len(vectors) - 1), random_state=0, n_jobs=1).fit_transform(vectors.astype(np.float32))


def _maps(embedded: Embedded, corpus: Corpus | SeriesCorpus, label: str | None) -> Html:
    if isinstance(corpus, SeriesCorpus):
        return missing(f"No embedding maps: {corpus.kind} have no map.")
    if embedded.dense is None or embedded.images is None:
        return missing("No embedding maps: the encoder makes one vector a patch and no map.")
    colours, shares = map_colours(embedded.dense)
    truth = label_maps(corpus, embedded.map_rows, label)
    h, w = embedded.dense.shape[2:]
    same = len(set(embedded.image_bands)) == 1
    bands = embedded.image_bands[0] if same else " ".join(embedded.image_bands)
    cell = corpus.patch_size * corpus.resolution_m / h
    said = (f"{h} x {w} cells of {cell:g} m a patch; red, green and blue are the three main directions of all cells shown "
            f"({shares.sum():.0%} of their variance), so like colours are like embeddings. ")
    said += f"Beside them {bands} as the encoder was shown it" + (f" and the label {truth[0]}." if truth else "; the corpus has no class map.")
    images = [_figure(corpus, int(row), bands, _stretch(embedded.images[k]), colours[k], None if truth is None else (truth[0], truth[1][k]))
              for k, row in enumerate(embedded.map_rows)]
    legend = [] if truth is None else [tag("li", None, tag("i", {"style": f"background:{colour}"}), name) for name, colour in truth[2].items()]
    return join([tag("h4", None, "Embedding maps"), paragraph(said, kind="note"), tag("div", {"class": "maps"}, *images),
                 tag("ul", {"class": "legend"}, *legend) if legend else None])


def _figure(corpus: Corpus, row: int, bands: str, image: np.ndarray, colours: np.ndarray, truth: tuple[str, np.ndarray] | None) -> Html:
    lon, lat = corpus.index.lon[row], corpus.index.lat[row]
    known = np.isfinite([lon, lat]).all()
    place = f"{abs(lat):.3f}° {'S' if lat < 0 else 'N'}, {abs(lon):.3f}° {'W' if lon < 0 else 'E'}" if known else "place unknown"
    panels = [(bands, image, f"patch {row}, bands {bands}"), ("embedding", colours, f"patch {row}, embedding as colours")]
    if truth is not None:
        panels.append((truth[0], truth[1], f"patch {row}, label {truth[0]}"))
    cells = [tag("div", None, tag("img", {"src": array_png(picture), "alt": alt, "loading": "lazy"}), name) for name, picture, alt in panels]
    side = corpus.patch_size * corpus.resolution_m / 1000
    return tag("figure", None, tag("figcaption", None, f"Patch {row}, {place}, {side:g} km a side"), tag("div", {"class": "trio"}, *cells))


def _stretch(image_3HW: np.ndarray) -> np.ndarray:
    """z-scores of -2 ... 2.5 as 0 ... 1, as in figures/views.png."""
    return np.clip((image_3HW.transpose(1, 2, 0) + 2) / 4.5, 0, 1)
