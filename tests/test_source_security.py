"""Files that users hand over (tables, settings, rasters' side files): no code in them runs, no path in them leads out, none takes the memory."""

import ast
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.transform import from_origin

from dsengine import cli

# Calls that run code from data, or write where an archive says.
FORBIDDEN = {"pickle.load", "pickle.loads", "pickle.Unpickler", "cPickle.load", "dill.load", "cloudpickle.loads", "marshal.loads", "marshal.load",
             "shelve.open", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "yaml.load_all", "eval", "exec", "compile", "os.system", "os.popen",
             "pd.read_pickle", "pandas.read_pickle", "joblib.load", "shutil.unpack_archive", "zarr.open_consolidated"}
FORBIDDEN_METHODS = {"extractall", "extract"}
ATTACK = "!!python/object/apply:os.mkdir [{target}]"


def calls(checkout: Path) -> Iterator[tuple[str, ast.Call]]:
    """(file:line, call) of every call in the package."""
    for path in sorted((checkout / "dsengine").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                yield f"{path.relative_to(checkout)}:{node.lineno}", node


def keywords(call: ast.Call) -> dict[str, object]:
    return {k.arg: k.value.value if isinstance(k.value, ast.Constant) else None for k in call.keywords if k.arg}


def test_nothing_in_the_package_can_run_code_from_a_file(checkout: Path) -> None:
    wrong = []
    for where, call in calls(checkout):
        name, given = ast.unparse(call.func), keywords(call)
        attribute = call.func.attr if isinstance(call.func, ast.Attribute) else ""
        wrong += [f"{where}: {name}"] * (name in FORBIDDEN or attribute in FORBIDDEN_METHODS)
        wrong += [f"{where}: allow_pickle"] * bool(given.get("allow_pickle"))
        wrong += [f"{where}: torch.load without weights_only=True"] * (name == "torch.load" and given.get("weights_only") is not True)
        wrong += [f"{where}: shell=True"] * bool(given.get("shell"))
        # GDAL tells formats by content, and some of its formats are lists of other files and of URLs.
        wrong += [f"{where}: rasterio.open without a driver"] * (name == "rasterio.open" and "driver" not in given)
    assert not wrong, "\n".join(wrong)


def raster(path: Path, count: int, low: int, high: int) -> None:
    path.parent.mkdir(exist_ok=True)
    with rasterio.open(path, "w", driver="GTiff", width=16, height=16, count=count, dtype="int16", crs=32633,
                       transform=from_origin(500000, 5500000, 10, 10)) as file:
        file.write(np.random.default_rng(0).integers(low, high, (count, 16, 16)).astype(np.int16))


@pytest.fixture
def site(tmp_path: Path) -> list[str]:
    """The command line of a build of one site."""
    raster(tmp_path / "s2/a.tif", 12, 100, 4000)
    return ["corpus", "build", str(tmp_path / "out"), "--source", "geotiff", "--s2", str(tmp_path / "s2/*.tif"), "--size", "16"]


def refused(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line with which a command is refused."""
    assert cli.main(argv) == 2
    err = capsys.readouterr().err.strip()
    assert "\n" not in err and "Traceback" not in err
    return err


def laughs() -> str:
    """YAML of a few hundred bytes that stands for 9 ** 9 items."""
    lines = ["  a: &a [x, x, x, x, x, x, x, x, x]"]
    lines += [f"  {b}: &{b} [{', '.join([f'*{a}'] * 9)}]" for a, b in zip("abcdefgh", "bcdefghi")]
    return "all:\n" + "\n".join(lines)


@pytest.mark.parametrize("content", [ATTACK, "a: " + ATTACK, "!!python/name:os.system ''", "laughs", "[" * 5000, "a: [1, 2]", "a: {b: 1}", "- 1", "\0"])
def test_an_offset_table_with_anything_but_numbers_is_refused_by_name(site: list[str], tmp_path: Path, content: str,
                                                                     capsys: pytest.CaptureFixture[str]) -> None:
    target, table = tmp_path / "made", tmp_path / "offsets.yaml"
    table.write_text(laughs() if content == "laughs" else content.format(target=target) if content.count("target") else content)
    tracemalloc.start()
    err = refused([*site, "--s2-offset", str(table)], capsys)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert str(table) in err and not target.exists() and peak < 64 << 20 and len(err) < 2000


def test_an_offset_table_of_other_paths_reads_none_of_them(site: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = tmp_path / "offsets.csv"
    table.write_text("stem,offset\n../../etc/passwd,0\n")
    err = refused([*site, "--s2-offset", str(table)], capsys)
    assert "a" in err and str(table) in err and not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["../x", "a/b", "/x", "..", ".x"])
def test_a_label_cannot_be_named_out_of_the_corpus(site: list[str], tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    raster(tmp_path / "map/a.tif", 1, 0, 3)
    err = refused([*site, "--s2-offset", "0", "--label", f"{name}={tmp_path}/map/*.tif"], capsys)
    assert "--label" in err or "label" in err
    assert not (tmp_path / "out").exists() and not (tmp_path / "x").exists()


@pytest.mark.parametrize("content", [ATTACK, "train: " + ATTACK, "!!python/name:os.system ''"])
def test_settings_with_a_tag_are_refused_by_name_and_run_nothing(tmp_path: Path, content: str, capsys: pytest.CaptureFixture[str]) -> None:
    target, config = tmp_path / "made", tmp_path / "run.yaml"
    config.write_text(content.format(target=target))
    assert str(config) in refused(["train", "--config", str(config), "--print-config"], capsys)
    assert not target.exists()


def test_a_raster_that_is_a_list_of_other_files_is_not_followed(site: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """GDAL goes by content: a virtual raster named .tif could read any file or URL."""
    (tmp_path / "s2/a.tif").rename(tmp_path / "secret.tif")
    bands = "".join(f'<VRTRasterBand dataType="Int16" band="{b}"><SimpleSource><SourceFilename>{tmp_path}/secret.tif</SourceFilename>'
                    f"<SourceBand>{b}</SourceBand></SimpleSource></VRTRasterBand>" for b in range(1, 13))
    (tmp_path / "s2/a.tif").write_text('<VRTDataset rasterXSize="16" rasterYSize="16"><SRS>EPSG:32633</SRS><GeoTransform>500000,10,0,5500000,0,-10'
                                       f"</GeoTransform>{bands}</VRTDataset>")
    with rasterio.open(tmp_path / "s2/a.tif") as file:
        assert file.count == 12 and file.read(1).max() > 0  # it would be followed
    assert "a.tif cannot be opened as a raster" in refused([*site, "--s2-offset", "0"], capsys)
    assert not (tmp_path / "out").exists()


def test_a_raster_in_one_huge_piece_is_refused_before_it_is_unpacked(site: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with rasterio.open(tmp_path / "s2/a.tif", "w", driver="GTiff", width=40000, height=40000, count=12, dtype="int16", crs=32633, blockysize=40000,
                       transform=from_origin(500000, 5500000, 10, 10), compress="deflate", SPARSE_OK=True, BIGTIFF="YES"):
        pass
    assert (tmp_path / "s2/a.tif").stat().st_size < 10_000
    assert "pieces of 38,400,000,000 bytes" in refused([*site, "--s2-offset", "0"], capsys)
