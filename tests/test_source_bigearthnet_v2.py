"""Source bigearthnet, release 2.0: a tree in the published layout against rasterio and pyarrow, with the published reference map; and what it refuses."""

import argparse
import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import rasterio
import zarr
from rasterio.transform import from_origin

from dsengine.corpus import Corpus, open_corpus
from dsengine.corpus.commands import add_parser
from dsengine.corpus.schema import SPLITS
from dsengine.errors import RunError, UsageError

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

PIXELS = {"B01": 20, "B02": 120, "B03": 120, "B04": 120, "B05": 60, "B06": 60, "B07": 60, "B08": 120, "B8A": 60, "B09": 20, "B11": 60, "B12": 60}
TILES = {"T33UUP": (32633, 300000, 5400000, "S2A_MSIL2A_20170613T101031_N9999_R022", "S1A_IW_GRDH_1SDV_20170613T165043"),
         "T29UPU": (32629, 600000, 5900040, "S2B_MSIL2A_20180421T114349_N9999_R123", "S1B_IW_GRDH_1SDV_20180420T182441")}


class Patch(NamedTuple):
    tile: str
    column: int
    line: int
    split: str
    labels: tuple[str, ...]
    country: str

    @property
    def s2(self) -> str:
        return f"{TILES[self.tile][3]}_{self.tile}_{self.column}_{self.line}"

    @property
    def s1(self) -> str:
        return f"{TILES[self.tile][4]}_{self.tile[1:]}_{self.column}_{self.line}"

    def folder(self, root: Path, kind: str) -> Path:
        if kind == "BigEarthNet-S1":
            return root / kind / TILES[self.tile][4] / self.s1
        return root / kind / f"{TILES[self.tile][3]}_{self.tile}" / self.s2


PATCHES = [Patch("T33UUP", 26, 57, "train", ("Pastures", "Mixed forest"), "Austria"),
           Patch("T33UUP", 27, 57, "validation", ("Arable land",), "Austria"),
           Patch("T29UPU", 4, 55, "test", ("Marine waters", "Beaches, dunes, sands"), "Ireland")]


def write(path: Path, x: np.ndarray, patch: Patch, nodata: float | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    epsg, left, top = TILES[patch.tile][:3]
    transform = from_origin(left + 1200 * patch.column, top - 1200 * patch.line, 1200 / x.shape[1], 1200 / x.shape[0])
    with rasterio.open(path, "w", driver="GTiff", height=x.shape[0], width=x.shape[1], count=1, dtype=x.dtype, crs=f"EPSG:{epsg}", nodata=nodata,
                       transform=transform) as file:
        file.write(x, 1)


def write_table(path: Path, patches: list[Patch], **changes: list) -> None:
    columns = {"patch_id": [p.s2 for p in patches], "labels": [list(p.labels) for p in patches], "split": [p.split for p in patches],
               "country": [p.country for p in patches], "s1_name": [p.s1 for p in patches], "s2v1_name": ["" for _ in patches],
               "contains_seasonal_snow": [False for _ in patches], "contains_cloud_or_shadow": [False for _ in patches], **changes}
    parquet.write_table(pyarrow.table({name: column for name, column in columns.items() if column}), path)


@pytest.fixture
def tree(sample_data: Path, tmp_path: Path) -> Path:
    root, rng = tmp_path / "release", np.random.default_rng(0)
    for patch in PATCHES:
        for band, side in PIXELS.items():
            write(patch.folder(root, "BigEarthNet-S2") / f"{patch.s2}_{band}.tif", rng.integers(1, 4000, (side, side), np.uint16), patch)
        for band in ("VV", "VH"):
            write(patch.folder(root, "BigEarthNet-S1") / f"{patch.s1}_{band}.tif", rng.normal(-14, 4, (120, 120)).astype(np.float32), patch)
        codes = rng.choice([0, 111, 122, 211, 335, 523], (120, 120)).astype(np.uint16)
        write(patch.folder(root, "Reference_Maps") / f"{patch.s2}_reference_map.tif", codes, patch, nodata=0)
    published = next((sample_data / "pairs" / "bigearthnet").glob("*_reference_map.tif"))
    shutil.copyfile(published, PATCHES[0].folder(root, "Reference_Maps") / published.name)
    write_table(root / "metadata.parquet", PATCHES)
    return root


def build(root: Path, out: Path, *extra: str) -> Corpus:
    parser = argparse.ArgumentParser()
    argv = ["corpus", "build", str(out), "--source", "bigearthnet", "--root", str(root), *extra]
    add_parser(parser.add_subparsers(), argv)
    args = parser.parse_args(argv)
    assert args.run(args) == 0
    return open_corpus(out)


def order(corpus: Corpus) -> list[Patch]:
    """The patches in the corpus's rows."""
    return [{p.s2: p for p in PATCHES}[source] for source in corpus.index.source]


def test_every_value_of_every_band_is_the_file(tree: Path, tmp_path: Path) -> None:
    corpus = build(tree, tmp_path / "c")
    group = zarr.open_group(corpus.path, mode="r")
    assert len(corpus) == 3
    for row, patch in enumerate(order(corpus)):
        for name in ("s2", "s2_20m", "s2_60m", "s1"):
            for channel, band in enumerate(group[name].attrs["bands"]):
                kind, stem = ("BigEarthNet-S1", patch.s1) if name == "s1" else ("BigEarthNet-S2", patch.s2)
                with rasterio.open(patch.folder(tree, kind) / f"{stem}_{band}.tif") as file:
                    expected = np.rint(file.read(1).astype(np.float64) * 100) if name == "s1" else file.read(1)
                np.testing.assert_array_equal(group[name][row, channel], expected, err_msg=f"{patch.s2} {band}")


def test_table_gives_labels_split_country_and_times(tree: Path, tmp_path: Path) -> None:
    corpus = build(tree, tmp_path / "c")
    names = corpus.labels["land_cover"].attrs["classes"]
    for row, patch in enumerate(order(corpus)):
        assert {names[str(i)] for i in np.flatnonzero(corpus.labels["land_cover"][row])} == set(patch.labels)
        assert SPLITS[corpus.index.split[row]] == patch.split.replace("validation", "val")
        assert corpus.columns["country"][row] == patch.country and corpus.columns["tile"][row] == patch.tile[1:]
        for sensor, name in (("s2", patch.s2.split("_")[2]), ("s1", patch.s1.split("_")[4])):
            stamp = f"{name[:4]}-{name[4:6]}-{name[6:11]}:{name[11:13]}:{name[13:]}"
            assert getattr(corpus.index, f"time_{sensor}")[row] == np.datetime64(stamp, "ns").astype(np.int64)


def test_reference_maps_keep_their_codes_and_nodata_is_ignored(tree: Path, tmp_path: Path) -> None:
    corpus = build(tree, tmp_path / "c", "--maps", "clc")
    attrs = dict(corpus.labels["reference_map"].attrs)
    assert attrs["ignore"] == 0 and attrs["classes"]["312"] == "Coniferous forest" and corpus.labels["reference_map"].dtype == np.uint16
    for row, patch in enumerate(order(corpus)):
        with rasterio.open(patch.folder(tree, "Reference_Maps") / f"{patch.s2}_reference_map.tif") as file:
            np.testing.assert_array_equal(corpus.labels["reference_map"][row], file.read(1))


def test_reference_maps_of_nineteen_classes_ignore_what_belongs_to_none(tree: Path, tmp_path: Path) -> None:
    corpus = build(tree, tmp_path / "c", "--maps", "19")
    attrs = dict(corpus.labels["reference_map"].attrs)
    # Road networks (122) and glaciers (335) are in none of the 19; the published map has 211, 231, 311 and 313.
    names = {0: None, 111: "Urban fabric", 122: None, 211: "Arable land", 231: "Pastures", 311: "Broad-leaved forest", 313: "Mixed forest", 335: None,
             523: "Marine waters"}
    for row, patch in enumerate(order(corpus)):
        with rasterio.open(patch.folder(tree, "Reference_Maps") / f"{patch.s2}_reference_map.tif") as file:
            codes = file.read(1)
        for code in np.unique(codes).tolist():
            (value,) = np.unique(corpus.labels["reference_map"][row][codes == code]).tolist()
            assert (attrs["ignore"] if names[code] is None else names[code]) == (value if names[code] is None else attrs["classes"][str(value)])


def test_patches_with_snow_or_cloud_come_only_on_request(tree: Path, tmp_path: Path) -> None:
    write_table(tree / "metadata.parquet", PATCHES[1:])
    write_table(tree / "metadata_for_patches_with_snow_cloud_or_shadow.parquet", PATCHES[:1], contains_seasonal_snow=[True])
    assert PATCHES[0].s2 not in build(tree, tmp_path / "c").index.source
    corpus = build(tree, tmp_path / "d", "--flagged")
    assert {p.s2: flag for p, flag in zip(order(corpus), corpus.columns["snow"][...].tolist(), strict=True)} == {p.s2: int(p is PATCHES[0]) for p in PATCHES}


def test_a_table_without_splits_leaves_it_to_the_tile(tree: Path, tmp_path: Path) -> None:
    write_table(tree / "metadata.parquet", PATCHES, split=[])
    for seed in range(4):
        corpus = build(tree, tmp_path / str(seed), "--seed", str(seed))
        split = dict(zip((p.s2 for p in order(corpus)), corpus.index.split.tolist(), strict=True))
        assert corpus.attributes["splits"]["by"] == "block" and split[PATCHES[0].s2] == split[PATCHES[1].s2] != split[PATCHES[2].s2]


def test_patches_that_are_not_on_disk_are_named_or_left_out_on_request(tree: Path, tmp_path: Path) -> None:
    shutil.rmtree(PATCHES[2].folder(tree, "BigEarthNet-S1").parent)
    with pytest.raises(UsageError, match=f"1 of 3 patches of .*metadata.parquet are not on disk, such as {PATCHES[2].s2}.*--partial"):
        build(tree, tmp_path / "c")
    assert len(build(tree, tmp_path / "c", "--partial")) == 2


@pytest.mark.parametrize(("changes", "message"), [
    ({"patch_id": ["../../etc/passwd", *(p.s2 for p in PATCHES[1:])]}, "'../../etc/passwd' is not the name of a patch"),
    ({"s1_name": ["/etc/passwd", *(p.s1 for p in PATCHES[1:])]}, "'/etc/passwd' is not the name of a patch"),
    ({"labels": [["Pasture"], ["Arable land"], ["Pastures"]]}, "unknown class 'Pasture'; did you mean Pastures"),
    ({"split": ["train", "dev", "test"]}, "split 'dev' is not legal: train, val, test, validation"),
    ({"labels": []}, "has no column labels"),
])
def test_a_table_that_says_something_else_is_refused(tree: Path, tmp_path: Path, changes: dict[str, list], message: str) -> None:
    write_table(tree / "metadata.parquet", PATCHES, **changes)
    with pytest.raises(UsageError, match=message):
        build(tree, tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_a_file_that_is_no_table_and_a_map_of_other_codes_are_named(tree: Path, tmp_path: Path) -> None:
    folder = PATCHES[1].folder(tree, "Reference_Maps")
    write(folder / f"{folder.name}_reference_map.tif", np.full((120, 120), 777, np.uint16), PATCHES[1])
    with pytest.raises(RunError, match=f"{folder.name}_reference_map.tif has value 777; legal: level-3 codes"):
        build(tree, tmp_path / "c", "--maps", "19")
    (tree / "metadata.parquet").write_bytes(b"PAR1 and then nothing")
    with pytest.raises(UsageError, match="metadata.parquet cannot be read as a table"):
        build(tree, tmp_path / "d")


@pytest.mark.parametrize(("flags", "message"), [
    (("--classes", "43"), "--classes 43: not for release 2.0"),
    (("--splits", "."), "--splits: not for release 2.0"),
    (("--sensors", "s3"), "--sensors s3: legal: s2,s1 or s2 or s1"),
    (("--maps", "19", "--sensors", "s1"), "--maps 19: needs"),
])
def test_flags_of_the_other_release_are_refused(tree: Path, tmp_path: Path, flags: tuple[str, ...], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build(tree, tmp_path / "c", *flags)


def test_a_raster_of_huge_internal_tiles_is_refused_before_it_is_read(tree: Path, tmp_path: Path) -> None:
    path = PATCHES[0].folder(tree, "BigEarthNet-S2") / f"{PATCHES[0].s2}_B08.tif"
    with rasterio.open(path) as file:
        profile = file.profile
    path.unlink()
    with rasterio.open(path, "w", **{**profile, "tiled": True, "blockxsize": 65536, "blockysize": 65536, "SPARSE_OK": True}):
        pass
    with pytest.raises(UsageError, match="_B08.tif has internal tiles of 65536 pixels; legal: up to 4096"):
        build(tree, tmp_path / "c")


def test_a_changed_label_table_does_not_continue_a_stopped_build(tree: Path, tmp_path: Path) -> None:
    recorded = [build(tree, tmp_path / name).attributes["made_by"] for name in "ab"]
    write_table(tree / "metadata.parquet", PATCHES, labels=[["Pastures"] for _ in PATCHES])
    assert recorded[0] == recorded[1] != build(tree, tmp_path / "c").attributes["made_by"]
