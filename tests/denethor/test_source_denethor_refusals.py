"""Source denethor and damaged or hostile input: refused by name, nothing run, nothing large allocated."""

import datetime
import gzip
import os
import pickle
import resource
import zipfile
from pathlib import Path

import numpy as np
import pytest
from dateutil.tz import tzutc

from dsengine.corpus.build.eopatch_pickle import box, times
from dsengine.corpus.sources import _denethor_fields
from dsengine.errors import RunError, UsageError

from . import tree
from .test_source_denethor import build

PACK = "dlr_fusion_competition_germany_train_source_sentinel_2/dlr_fusion_competition_germany_train_source_sentinel_2_33N_18E_242N_2018"
PLANET = "dlr_fusion_competition_germany_train_source_planet/dlr_fusion_competition_germany_train_source_planet_33N_18E_242N_2018_04_01/sr.tif"
POINTS = ("--set", "points", "--pixels", "20")


@pytest.fixture
def mlhub(tmp_path: Path) -> Path:
    return tree.write(tmp_path / "tile", "mlhub")


class Evil:
    """Unpickling it makes a folder."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("name", ["bbox.pkl", "timestamp.pkl"])
def test_a_hostile_pickle_is_refused_by_name_and_runs_nothing(mlhub: Path, tmp_path: Path, name: str) -> None:
    (mlhub / PACK / name).write_bytes(pickle.dumps(Evil(tmp_path / "run")))
    with pytest.raises(UsageError, match=rf"{name} is refused: it names \w+\.mkdir"):
        build(mlhub, tmp_path / "out", *POINTS)
    assert not (tmp_path / "run").exists() and not (tmp_path / "out").exists()


def test_a_known_class_called_in_another_way_is_refused(tmp_path: Path) -> None:
    for content in (b"\x80\x03csentinelhub.geometry\nBBox\n)R.", b"\x80\x03csentinelhub.constants\nCRS\n.", pickle.dumps((1.0, 2.0, 3.0))):
        with pytest.raises(UsageError, match="bbox.pkl"):
            box(content, "bbox.pkl")


@pytest.mark.parametrize("module, attribute", [("sentinelhub.common", "crs"), ("sentinelhub.geometry", "_crs")])
def test_every_generation_of_bounding_box_is_read(module: str, attribute: str) -> None:
    expected = (tree.LEFT, tree.TOP - 240, tree.LEFT + 300, tree.TOP, tree.EPSG)
    assert box(tree.bbox_pickle(module, attribute), "bbox.pkl") == expected
    assert box(pickle.dumps((*map(float, expected[:4]), tree.EPSG), 3), "bbox.pkl") == expected


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("zone", [None, datetime.UTC, tzutc(), datetime.timezone(datetime.timedelta(hours=2))])
def test_times_are_read_whatever_the_protocol_and_time_zone(protocol: int, zone: datetime.tzinfo | None) -> None:
    moments = [datetime.datetime(2018, 12, 31, 23, 59, 59, 250_000, zone), datetime.datetime(2020, 2, 29, 1, tzinfo=zone)]
    expected = [m.replace(tzinfo=datetime.UTC) - (m.utcoffset() or datetime.timedelta(0)) for m in moments]
    found = times(pickle.dumps(moments, protocol), "timestamp.pkl")
    assert [round(int(t) / 1e9, 3) for t in found] == [m.timestamp() for m in expected]


def test_a_declared_huge_array_is_refused_without_memory(mlhub: Path, tmp_path: Path) -> None:
    path = mlhub / PACK / "bands.npy"
    content = path.read_bytes()
    shape = str(tree.truth().bands.shape).encode()
    huge = b"(6, 240000, 300000, 12)"
    path.write_bytes(content.replace(shape + b", }" + b" " * (len(huge) - len(shape)), huge + b", }", 1))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UsageError, match=r"bands.npy declares \(6, 240000, 300000, 12\).*but holds \d+; legal: a complete file"):
        build(mlhub, tmp_path / "out", *POINTS)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kB


def test_an_array_of_objects_is_refused(mlhub: Path, tmp_path: Path) -> None:
    np.save(mlhub / PACK / "clp.npy", np.array([Evil(tmp_path / "run")], object), allow_pickle=True)
    with pytest.raises(UsageError, match=r"clp.npy: the .npy header cannot be taken: dtype '\|O'"):
        build(mlhub, tmp_path / "out", *POINTS)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("change, match", [(lambda b: b + bytes(10), "holds more"), (lambda b: b[:-10], "holds [0-9]+; legal")])
def test_a_gzipped_array_that_is_not_what_it_declares_ends_the_build(tmp_path: Path, change: object, match: str) -> None:
    root = tree.write(tmp_path / "tile", "original")
    content = {}
    with zipfile.ZipFile(root / "s2_train.zip") as file:
        content = {name: file.read(name) for name in file.namelist()}
    name = "s2_train/data/CLP.npy.gz"
    content[name] = gzip.compress(change(gzip.decompress(content[name])))
    with zipfile.ZipFile(root / "s2_train.zip", "w") as file:
        for member, data in content.items():
            file.writestr(member, data)
    with pytest.raises(RunError, match=f"CLP.npy declares .*{match}"):
        build(root, tmp_path / "out", *POINTS)


def test_a_zip_member_that_leaves_the_archive_is_refused_by_name(tmp_path: Path) -> None:
    root = tree.write(tmp_path / "tile", "original")
    with zipfile.ZipFile(root / "s2_train.zip", "a") as file:
        file.writestr("s2_train/../../escaped.npy", b"x")
    with pytest.raises(UsageError, match="'s2_train/../../escaped.npy' leaves the archive"):
        build(root, tmp_path / "out", *POINTS)


def test_planet_images_that_lie_elsewhere_are_refused(mlhub: Path, tmp_path: Path) -> None:
    tree.tif(mlhub / PLANET, tree.truth().planet[0], left=tree.LEFT + 3)
    with pytest.raises(UsageError, match=r"sr.tif: .* off the Sentinel-2 grid by 3 m; legal: 4 bands of \(80, 100\), EPSG:32633"):
        build(mlhub, tmp_path / "out", *POINTS)


def test_planet_images_of_another_ground_are_refused_unless_allowed(tmp_path: Path) -> None:
    made = tree.truth()
    root = tree.write(tmp_path / "tile", "mlhub", made=made._replace(planet=made.planet[:, :, ::-1]))
    with pytest.raises(RunError, match="Sentinel-2 and Planet bands do not correlate"):
        build(root, tmp_path / "out", *POINTS)
    assert len(build(root, tmp_path / "out2", *POINTS, "--allow-unpaired")) == 100


def test_a_damaged_planet_image_ends_the_build_with_its_name(mlhub: Path, tmp_path: Path) -> None:
    path = mlhub / PLANET.replace("04_01", "04_05")
    content = bytearray(path.read_bytes())
    path.write_bytes(bytes(content[:len(content) // 3]))
    with pytest.raises(RunError, match="2018_04_05/sr.tif"):
        build(mlhub, tmp_path / "out", *POINTS)


def test_more_pixels_than_there_are_is_refused_with_the_number(mlhub: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--pixels 100000: the pretraining fields have \d+ pixels; legal: 1 to \d+"):
        build(mlhub, tmp_path / "out", "--set", "points")


def test_points_without_times_ask_for_them_and_take_them_from_a_file(mlhub: Path, tmp_path: Path) -> None:
    (mlhub / PACK / "timestamp.pkl").unlink()
    with pytest.raises(UsageError, match="--s2-dates FILE"):
        build(mlhub, tmp_path / "out", *POINTS)
    (tmp_path / "dates.txt").write_text("\n".join(f"{m:%Y-%m-%d}" for m in tree.MOMENTS))
    assert len(build(mlhub, tmp_path / "out", *POINTS, "--s2-dates", str(tmp_path / "dates.txt"))) == 100


@pytest.mark.parametrize("content, match", [
    ('[1]', "is not a GeoJSON of fields"), ('{"features": [{"properties": {"fid": 1}}]}', "is not a GeoJSON of fields with fid and crop_id"),
    ('{"features": [{"properties": {"fid": 1, "crop_id": 77}, "geometry": {"type": "Polygon", "coordinates": [[[13, 52], [14, 52], [14, 53], [13, 52]]]}}]}',
     "crop_id 77; legal: 1 Wheat"),
    ('{"features": [{"properties": {"fid": 1, "crop_id": 1}, "geometry": {"type": "Polygon", "coordinates": [[[1]]]}}]}', "is not a GeoJSON"),
    ('{"features": [{"properties": {"fid": 1, "crop_id": 1}, "geometry": {"type": "Point", "coordinates": [13, 52]}}]}', "no field larger than"),
    ('{"features": []}', "no field larger than"), ("[" * 100_000, "is not a GeoJSON")])
def test_labels_that_are_no_fields_are_refused_by_name(tmp_path: Path, content: str, match: str) -> None:
    (tmp_path / "labels.geojson").write_text(content)
    with pytest.raises(UsageError, match=f"labels.geojson.*{match}"):
        _denethor_fields.read(tmp_path / "labels.geojson", tree.EPSG)


def test_areas_count_holes_off_and_do_not_depend_on_direction() -> None:
    square = [[500_000, 5_800_000], [500_100, 5_800_000], [500_100, 5_800_100], [500_000, 5_800_100], [500_000, 5_800_000]]
    hole = [[500_010, 5_800_010], [500_020, 5_800_010], [500_020, 5_800_020], [500_010, 5_800_020], [500_010, 5_800_010]]
    assert _denethor_fields.area({"type": "Polygon", "coordinates": [square[::-1], hole]}) == 9900
    assert _denethor_fields.area({"type": "MultiPolygon", "coordinates": [[square], [hole]]}) == 10_100
