"""What `--s2-offset` concludes from metadata and pixels, and when it refuses."""

from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.transform import from_origin

from dsengine.corpus.build.offset import Decision, decide, from_metadata, from_pixels, read_table
from dsengine.corpus.build.pairing import layers
from dsengine.corpus.build.radiometry import s2_offsets
from dsengine.corpus.schema import S2_BANDS
from dsengine.errors import UsageError


def bands(dark: list[int], bright: list[int]) -> dict[str, np.ndarray]:
    """12 bands of 10,000 values spread evenly from dark to bright."""
    return {band: np.linspace(low, high, 10_000).astype(np.int16) for band, low, high in zip(S2_BANDS, dark, bright, strict=True)}


FIELDS = [200, 150, 300, 250, 500, 900, 1000, 1000, 1100, 1200, 700, 300], [900, 1100, 1500, 1900, 2500, 4000, 4500, 4600, 4700, 4800, 3500, 2800]
LAKE = [20, 10, 15, 5, 5, 5, 5, 5, 5, 5, 5, 5], [900, 1100, 1500, 1900, 2500, 4000, 4500, 4600, 4700, 4800, 3500, 2800]
DESERT = [900, 1100, 1700, 2400, 2700, 2900, 3000, 3100, 3200, 3300, 4000, 3600], [1500, 1900, 2700, 3600, 3900, 4100, 4200, 4300, 4400, 4500, 5600, 5000]
LAVA = [930, 940, 960, 980, 1000, 1010, 1020, 1020, 1030, 1030, 1060, 1080], [1100, 1150, 1200, 1250, 1300, 1350, 1400, 1400, 1400, 1400, 1500, 1500]
HAZY_LAKE = [2200, 2000, 1700, 1500, 1300, 1150, 1100, 1050, 1000, 950, 750, 720], [3000] * 12


def shifted(scene: tuple[list[int], list[int]], by: int) -> dict[str, np.ndarray]:
    """The scene with `by` added to every number."""
    return bands([v + by for v in scene[0]], [v + by for v in scene[1]])


@pytest.mark.parametrize("scene", [FIELDS, LAKE])
def test_dark_pixels_prove_that_there_is_no_offset(scene: tuple[list[int], list[int]]) -> None:
    assert from_pixels(bands(*scene)).offset == 0


def test_a_common_floor_at_1000_under_bright_surfaces_shows_the_offset() -> None:
    assert from_pixels(shifted(LAKE, 1000)).offset == -1000


@pytest.mark.parametrize("scene", [DESERT, LAVA, HAZY_LAKE])
def test_scenes_without_dark_pixels_are_not_decided(scene: tuple[list[int], list[int]]) -> None:
    assert from_pixels(bands(*scene)).offset is None


@pytest.mark.parametrize("scene", [FIELDS, DESERT, LAVA, HAZY_LAKE])
@pytest.mark.parametrize("by", [0, 1000])
def test_no_scene_is_decided_wrongly(scene: tuple[list[int], list[int]], by: int) -> None:
    assert from_pixels(shifted(scene, by)).offset in (None, -by)


def test_an_offset_scene_with_a_little_overcorrection_is_not_called_clean() -> None:
    scene = shifted(LAKE, 1000)
    scene["B01"][:100] = 650  # 1 % of one band at a reflectance of -0.035
    assert from_pixels(scene).offset in (None, -1000)


@pytest.mark.parametrize(("names", "tags", "scale", "offset", "expected"), [
    (["S2A_MSIL2A_20220201T101031_N0400_R022_T33UUP_20220201T130000.tif"], {}, 1.0, 0.0, -1000),
    (["S2A_MSIL2A_20200201T101031_N0500_R022_T33UUP_20230201T130000.tif"], {}, 1.0, 0.0, -1000),  # reprocessed
    (["S2A_MSIL2A_20200201T101031_N0214_R022_T33UUP_20200201T130000_B02.tif"], {}, 1.0, 0.0, 0),
    (["S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP_26_57.tif"], {}, 1.0, 0.0, None),
    (["a.tif"], {"PROCESSING_BASELINE": "05.09"}, 1.0, 0.0, -1000), (["a.tif"], {"s2:processing_baseline": "03.01"}, 1.0, 0.0, 0),
    (["a.tif"], {"BOA_ADD_OFFSET_1": "-1000", "BOA_ADD_OFFSET_2": "-1000"}, 1.0, 0.0, -1000),
    (["a.tif"], {}, 0.0001, -0.1, -1000), (["a.tif"], {}, 0.0001, 0.0, None), (["a.tif"], {"datetime": "2023-01-01"}, 1.0, 0.0, None),
    (["a.tif"], {"PROCESSING_BASELINE": "unknown"}, 1.0, 0.0, None)])
def test_metadata_is_read(names: list[str], tags: dict[str, str], scale: float, offset: float, expected: int | None) -> None:
    assert from_metadata(names, tags, scale=scale, offset=offset).offset == expected


def test_metadata_decides_unless_the_pixels_prove_it_wrong() -> None:
    unknown, clean, offset = Decision(None, "m"), Decision(0, "p"), Decision(-1000, "m")
    assert decide(offset, unknown) == offset
    assert decide(unknown, clean).offset == 0
    contradiction = decide(offset, clean)
    assert contradiction.offset is None and "says -1000, but p" in contradiction.reason


def test_auto_refuses_by_file_and_shows_how_to_write_the_table(tmp_path: Path) -> None:
    for stem, scene in (("dune", DESERT), ("lake", LAKE)):
        x = np.stack(list(bands(*scene).values())).reshape(12, 100, 100)
        with rasterio.open(tmp_path / f"{stem}.tif", "w", driver="GTiff", height=100, width=100, count=12, dtype="int16", crs="EPSG:32632",
                           transform=from_origin(500000, 5200000, 10, 10)) as file:
            file.write(x)
    sites = {site: {"s2": layer} for site, layer in layers([f"{tmp_path}/*.tif"], S2_BANDS, what="--s2").items()}
    with pytest.raises(UsageError, match=r"auto cannot tell for 1 of 2 sites \(\S+dune.tif: .*`dune,-1000`") as error:
        s2_offsets(sites, "auto", nodata=None)
    assert "lake.tif" not in str(error.value) and "\n" not in str(error.value)
    (tmp_path / "t.csv").write_text("dune,-1000\nlake,0\n")
    assert {k: d.offset for k, d in s2_offsets(sites, str(tmp_path / "t.csv"), nodata=None).items()} == {"dune": -1000, "lake": 0}
    (tmp_path / "t.csv").write_text("dune,-1000\n")
    with pytest.raises(UsageError, match="has no line for lake"):
        s2_offsets(sites, str(tmp_path / "t.csv"), nodata=None)
    assert {d.offset for d in s2_offsets(sites, "-1000", nodata=None).values()} == {-1000}


@pytest.mark.parametrize(("name", "text"), [
    ("t.csv", "stem,offset\na b,-1000\n# comment\n\nc,0\n"), ("t.csv", "a b,-1000\nc,0"), ("t.yaml", "a b: -1000\nc: 0\n")])
def test_tables_are_read_as_csv_and_yaml(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    assert read_table(tmp_path / name) == {"a b": -1000, "c": 0}


@pytest.mark.parametrize(("name", "text"), [("t.csv", "a,-1000\nb,x\n"), ("t.csv", "a\n"), ("t.yaml", "- a\n"), ("t.yaml", "a: [1]\n"), ("none.csv", None)])
def test_a_bad_table_is_a_usage_error(tmp_path: Path, name: str, text: str | None) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(UsageError, match="--s2-offset .*legal: auto, 0, -1000"):
        read_table(tmp_path / name)
