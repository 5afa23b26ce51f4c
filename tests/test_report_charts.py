"""Charts and pictures of the report: what is drawn is what was logged, to the width of a line."""

import base64
import io
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))
from report_cases import Element, Page, made_records, make_run  # noqa: E402

from dsengine.study.report import axes
from dsengine.study.report.pictures import MOST_PIXELS, array_png, picture
from dsengine.study.report.write import write_report


def _value(text: str) -> float:
    """A tick as a reader reads it."""
    factor = {"k": 1e3, "M": 1e6}.get(text[-1], 1.0)
    return factor * float(text.rstrip("kM").replace(",", ""))


def _read_axis(figure: Element, *, vertical: bool, log: bool = False) -> tuple[float, float]:
    """Slope and intercept from places to values (their logarithm), fitted to the ticks as they are printed."""
    anchors = ("end",) if vertical else ("middle", "end")
    texts = [text for text in figure.all("text") if "label" not in (text.attributes.get("class") or "") and text.attributes["text-anchor"] in anchors]
    bottom = max(float(text.attributes["y"]) for text in texts)
    chosen = [text for text in texts if (float(text.attributes["y"]) == bottom) != vertical]
    at = [float(text.attributes["y"]) - 4 if vertical else float(text.attributes["x"]) for text in chosen]
    values = [_value(text.text) for text in chosen]
    slope, intercept = np.polyfit(at, np.log10(values) if log else values, 1)
    return slope, intercept


def _drawn(path: Element) -> np.ndarray:
    """(n, 2) corners of a path."""
    return np.array([[float(v) for v in point.split()] for point in path.attributes["d"].replace("M", "L").split("L")[1:]])


def _chart(page: Page, title: str) -> Element:
    return next(figure for figure in page.all("figure", "chart") if figure.all("strong")[0].text == title)


@pytest.mark.parametrize("losses, log", [(lambda k: 3 - k / 20, False), (lambda k: 10.0 ** (1 - k / 10), True)])
def test_a_curve_read_off_its_axes_is_what_was_logged(tmp_path: Path, losses, log: bool) -> None:
    records = [{**record, "loss": losses(record["step"]), "heldout_loss": None} for record in made_records(40)]
    for record in records:
        del record["heldout_loss"]
    page = Page(write_report([make_run(tmp_path / "run", records=records)], out=tmp_path / "r.html"))
    figure = _chart(page, "Loss")
    assert ("Logarithmic" in figure.text) == log
    corners = _drawn(figure.all("path", "line")[0])
    (a, b), (c, d) = _read_axis(figure, vertical=False), _read_axis(figure, vertical=True, log=log)
    steps, values = a * corners[:, 0] + b, c * corners[:, 1] + d
    np.testing.assert_allclose(steps, range(1, 41), atol=0.1)
    wanted = np.array([losses(k) for k in range(1, 41)])
    np.testing.assert_allclose(values, np.log10(wanted) if log else wanted, atol=0.005 * np.ptp(values))


def test_every_figure_names_both_axes_with_their_units(tmp_path: Path) -> None:
    records = [{**record, "error": 0.5, "kl": 0.1, "active": 0.3, "anything_else": 4.0} for record in made_records(9)]
    page = Page(write_report([make_run(tmp_path / "run", records=records)], out=tmp_path / "r.html"))
    figures = page.all("figure", "chart")
    assert len(figures) == 4 + 6
    for figure in figures:
        x, y = (text.text for text in figure.all("text", "label"))
        assert x == "optimiser step" and ("," in y or "/" in y), y
    assert [text.text for text in _chart(page, "Waiting for data").all("text", "label")][1] == "share of time, %"


def test_the_first_record_which_measured_nothing_is_in_no_curve_of_throughput(tmp_path: Path) -> None:
    records = made_records(5)
    records[0].update(samples_per_s=0.0, data_wait=0.9)
    page = Page(write_report([make_run(tmp_path / "run", records=records)], out=tmp_path / "r.html"))
    assert len(_drawn(_chart(page, "Throughput").all("path", "line")[0])) == 4 == len(_drawn(_chart(page, "Waiting for data").all("path", "line")[0]))


def test_a_long_run_is_drawn_as_means_inside_the_range_of_its_records(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    records = [{"step": k, "epoch": 0, "loss": float(v), "lr": 1e-3} for k, v in enumerate(rng.normal(5, 1, 10_000), 1)]
    path = write_report([make_run(tmp_path / "run", records=records)], out=tmp_path / "r.html")
    figure = _chart(Page(path), "Loss")
    assert "each point is the mean of 32 records" in figure.text.lower() and len(_drawn(figure.all("path", "line")[0])) == math.ceil(10_000 / 32)
    assert figure.all("path", "band") and path.stat().st_size < 120_000


def test_values_that_are_not_finite_are_gaps(tmp_path: Path) -> None:
    records = made_records(7)
    records[3]["loss"] = float("nan")
    page = Page(write_report([make_run(tmp_path / "run", records=records)], out=tmp_path / "r.html"))
    line = _chart(page, "Loss").all("path", "line")[0].attributes["d"]
    assert line.count("M") == 2 and line.count("L") == 4 and "nan" not in page.source.partition("<pre>")[0].lower().replace("finance", "")


@settings(deadline=None)
@given(st.integers(0, 400), st.integers(1, 50), st.integers(0, 9))
def test_thinning_keeps_the_mean_of_every_run_of_neighbours(count: int, most: int, seed: int) -> None:
    y = np.random.default_rng(seed).normal(size=count)
    x, mean, low, high, length = axes.thinned(np.arange(count, dtype=float), y, most)
    chunks = [y[k:k + length] for k in range(0, count, length)]
    assert len(mean) == len(chunks) <= most
    np.testing.assert_allclose(mean, [chunk.mean() for chunk in chunks], atol=1e-12)
    assert low.tolist() == [chunk.min() for chunk in chunks] and high.tolist() == [chunk.max() for chunk in chunks]
    np.testing.assert_allclose(x, [np.mean(range(k, min(k + length, count))) for k in range(0, count, length)])


@settings(deadline=None)
@given(st.floats(-1e6, 1e6), st.floats(1e-4, 1e6), st.integers(2, 8))
def test_ticks_lie_on_the_axis_rise_and_are_told_apart_in_print(low: float, span: float, about: int) -> None:
    scale = axes.scale_of(np.array([low, low + span]), start=0, end=100, about=about)
    assert scale.low <= low + 1e-7 * span and scale.high >= low + span - 1e-7 * span
    ticks = scale.ticks(about)
    texts = axes.written(ticks)
    assert ticks == sorted(ticks) and 2 <= len(ticks) <= 2 * about + 2
    if span > 1e-4 * abs(low):
        assert len(set(texts)) == len(ticks)
        assert all(abs(_value(text) - tick) <= 0.02 * (ticks[1] - ticks[0]) for text, tick in zip(texts, ticks)), (ticks, texts)


@settings(deadline=None)
@given(st.floats(1e-12, 1e9), st.floats(1.001, 1e12))
def test_a_logarithmic_axis_holds_its_values_and_has_ticks(low: float, factor: float) -> None:
    scale = axes.scale_of(np.array([low, low * factor]), start=0, end=100, log=True)
    places = scale(np.array([low, low * factor]))
    assert -1e-6 <= places[0] < places[1] <= 100 + 1e-6 and len(scale.ticks(5)) >= 2


@pytest.mark.parametrize("value, text", [(None, "-"), (math.nan, "-"), (0.0, "0.000"), (1234.5678, "1,235"), (0.12345, "0.1235"), (5e-4, "5e-4"), (123456789.0, "123,456,789")])
def test_numbers_are_written_with_four_digits(value: float | None, text: str) -> None:
    assert axes.number(value) == text


@pytest.mark.parametrize("seconds, text", [(4.26, "4.3 s"), (45, "45 s"), (600, "10 min"), (3 * 3600 + 1200, "3.3 h"), (86400 * 3, "3.0 days")])
def test_durations_are_written_in_the_unit_that_fits(seconds: float, text: str) -> None:
    assert axes.duration(seconds) == text


def test_a_large_picture_goes_in_smaller_and_a_small_one_as_it_is(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (900, 2400, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "large.png")
    Image.fromarray(noise[:20, :20]).save(tmp_path / "small.png")
    (tmp_path / "p.html").write_text(f"<html>{picture(tmp_path / 'large.png', 'a', alt='a')}{picture(tmp_path / 'small.png', 'b', alt='b')}</html>")
    large, small = (image.attributes for image in Page(tmp_path / "p.html").all("img"))
    assert base64.b64decode(small["src"].split(",")[1]) == (tmp_path / "small.png").read_bytes() and small["width"] == "20"
    content = base64.b64decode(large["src"].split(",")[1])
    assert large["src"].startswith("data:image/webp") and len(content) < (tmp_path / "large.png").stat().st_size / 3
    assert Image.open(io.BytesIO(content)).size == (MOST_PIXELS, MOST_PIXELS * 900 // 2400) == (int(large["width"]), int(large["height"]))


def test_an_array_is_in_the_page_pixel_by_pixel() -> None:
    values = np.random.default_rng(0).random((5, 7, 3))
    image = Image.open(io.BytesIO(base64.b64decode(array_png(values).split(",")[1])))
    np.testing.assert_allclose(np.asarray(image) / 255, values, atol=0.5 / 255 + 1e-9)


def test_one_record_is_a_dot(tmp_path: Path) -> None:
    (run := make_run(tmp_path / "run", records=made_records(1))).joinpath("metrics.jsonl").write_text(json.dumps(made_records(1)[0]) + "\n")
    page = Page(write_report([run], out=tmp_path / "r.html"))
    assert _chart(page, "Loss").all("circle")[0].all("title")[0].text == "training: 1.000 at 1"
