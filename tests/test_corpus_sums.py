"""The compiled loops over pixels against plain numpy and Python integers, at the edges of their types and blocks."""

from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from dsengine.corpus import open_corpus
from dsengine.corpus.build.raster import Radiometry, to_stored
from dsengine.corpus.build.writer import Block, CorpusWriter
from dsengine.corpus.scan import scan
from dsengine.corpus.schema import NODATA, standard_layout
from dsengine.corpus.stats import band_sums, measure
from dsengine.corpus.storage import LocalStorage
from dsengine.errors import RunError


@settings(max_examples=40, deadline=None)
@given(side=st.sampled_from([1, 7, 90, 91, 128, 181]), seed=st.integers(0, 99), nodata=st.sampled_from([NODATA, 0, 32767]),
       kind=st.sampled_from(["any", "most", "least", "empty"]))
def test_sums_are_those_of_python_integers(side: int, seed: int, nodata: int, kind: str) -> None:
    """90 and 91 squared lie on both sides of a block of 8192 pixels; full ones would overflow 32 bits first."""
    x = np.random.default_rng(seed).integers(-32768, 32768, (2, 3, side, side)).astype(np.int16)
    x[...] = {"any": x, "most": np.int16(32767), "least": np.int16(-32768), "empty": np.int16(nodata)}[kind]
    x[1, 2, 0, 0] = nodata
    sums, valid = band_sums(x, nodata=nodata)
    for band in range(3):
        values = [int(v) for v in x[:, band].ravel().tolist() if v != nodata]
        assert [column[band] for column in sums] == [len(values), sum(values), sum(v * v for v in values)]
    np.testing.assert_array_equal(valid, (x != nodata).sum(axis=(2, 3)))


def plainly(raw: np.ndarray, r: Radiometry) -> tuple[np.ndarray, np.ndarray]:
    """to_stored step by step in float64."""
    valid = np.isfinite(raw.astype(np.float64))
    if r.nodata is not None and not np.isnan(r.nodata):
        with np.errstate(over="ignore"):
            valid &= raw != (raw.dtype.type(r.nodata) if raw.dtype.kind == "f" else r.nodata)
    values = np.rint((np.where(valid, raw, 0).astype(np.float64) + r.shift) * r.gain + r.bias)
    kept = np.clip(values, -32767, 32767)
    return np.where(valid, kept, NODATA).astype(np.int16), ((kept != values) & valid).sum(axis=(1, 2))


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", ">u2", "int32", "float16", "float32", ">f4", "float64"])
@pytest.mark.parametrize("radiometry", [
    Radiometry(1.0, 0.0), Radiometry(1.0, 0.0, -1000.0, 0.0), Radiometry(1.0, 0.0, 7.0, 0.5), Radiometry(1.0, 0.0, 0.5, 65535.0),
    Radiometry(100.0, 0.0, 0.0, None), Radiometry(33.3, 7.5, 0.0, -9999.0), Radiometry(1.0, 0.0, 0.0, 0.1), Radiometry(-2.5, 3.0, 0.0, float("nan")),
    Radiometry(1.0, 0.0, 0.0, -3.4028234663852886e38), Radiometry(1.0, 0.0, 0.0, 1e300)], ids=str)
def test_numbers_of_any_kind_are_stored_as_float64_says(dtype: str, radiometry: Radiometry) -> None:
    kind, rng = np.dtype(dtype), np.random.default_rng(0)
    if kind.kind == "f":
        raw = rng.normal(0, 4000, (3, 40, 41)).astype(kind)
        raw[0, 0, :8] = np.array([np.nan, np.inf, -np.inf, 0.1, -9999, 0.5, 1.5, 2.5]).astype(kind)
    else:
        raw = rng.integers(np.iinfo(kind).min, np.iinfo(kind).max, (3, 40, 41), endpoint=True).astype(kind)
        raw[0, 0, :3] = np.array([0, np.iinfo(kind).max, np.iinfo(kind).min]).astype(kind)
    stored, cut = to_stored(raw, radiometry)
    want, want_cut = plainly(raw, radiometry)
    np.testing.assert_array_equal(stored, want)
    assert cut.tolist() == want_cut.tolist()
    slab = np.zeros((2, *raw.shape), np.int16)
    to_stored(raw, radiometry, slab[1])
    np.testing.assert_array_equal(slab[1], want)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Three shards of 8 px, the last not full, with nodata."""
    x = {name: np.random.default_rng(1).integers(-5000, 9000, (150, n, 8, 8)).astype(np.int16) for name, n in (("s2", 12), ("s1", 2))}
    x["s1"][3:9, 0] = NODATA
    with CorpusWriter(tmp_path / "c", layout=standard_layout(8), num_patches=150, made_by={}) as writer:
        while writer.next_row < 150:
            rows = slice(writer.next_row, writer.next_row + writer.next_count)
            writer.append(Block({k: v[rows] for k, v in x.items()}, {"lon": np.ones(150)[rows], "lat": np.ones(150)[rows]}))
        return writer.finish()


def test_a_scan_sees_every_value_once_and_in_order(path: Path) -> None:
    array = zarr.open_group(path, mode="r")["s2"]
    seen = list(scan(LocalStorage(path), "s2", array, np.copy))
    assert [row for rows, _ in seen for row in rows] == list(range(150))
    np.testing.assert_array_equal(np.concatenate([values for _, values in seen]), array[...])


def test_chunks_that_are_not_stored_and_arrays_without_shards_are_measured_too(path: Path) -> None:
    group = zarr.open_group(path, mode="a")
    values = group["s1"][...]
    other = zarr.create_array(path / "s1", shape=values.shape, chunks=(10, *values.shape[1:]), dtype="int16", fill_value=NODATA,
                              attributes=dict(group["s1"].attrs), overwrite=True)
    other[...] = values
    before = open_corpus(path, checked=False)
    physical = values[:, 0][values[:, 0] != NODATA] * 0.01
    assert measure(before)["s1"]["mean"][0] == pytest.approx(physical.mean(), rel=1e-12)
    group["s2"][70:100] = NODATA  # zarr-python leaves such chunks out
    assert measure(open_corpus(path, checked=False))["s2"]["count"][5] == 120 * 64


def test_a_scan_names_file_array_and_patch_of_what_is_damaged(path: Path) -> None:
    file = path / "s2/c/1/0/0/0"
    data = bytearray(file.read_bytes())
    data[40] ^= 1
    file.write_bytes(data)
    with pytest.raises(RunError, match=r"s2/c/1/0/0/0: array s2, patch 64: cannot be read \(crc32c"):
        measure(open_corpus(path))
    file.unlink()
    with pytest.raises(RunError, match=r"s2/c/1/0/0/0: missing file"):
        measure(open_corpus(path))
