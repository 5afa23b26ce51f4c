"""`dsengine.embed(...)`: embeddings of a corpus or of rasters, to a file that says what made them."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import rasterio
import torch

from dsengine.corpus import Corpus, open_corpus
from dsengine.corpus.storage import Url
from dsengine.errors import UsageError
from dsengine.export.model import Encoder, Model, as_model, measure, patch_cells
from dsengine.export.scene import CACHE_MB, Scene, find_scenes
from dsengine.export.tiles import Rule, tile_side

Progress = Callable[[int, int], None]
SUFFIXES = {".zarr": "zarr", ".tif": "tif", ".tiff": "tif", ".parquet": "parquet"}


def embed(encoder: Encoder, corpus_or_raster: Corpus | str | os.PathLike[str] | Url, out: str | os.PathLike[str], *, pooled: bool | None = None,
          dtype: str = "float32", window: int | None = None, bands: Sequence[str] | None = None, name: str | None = None,
          s2_offset: str = "auto", where: str | None = None, device: str | torch.device = "cpu", picture: bool = False,
          progress: Progress | None = None) -> list[Path]:
    """Embed every cell or patch and write the result; returns the files written.

    encoder: a run folder, an exported encoder, (module, contract), or for a corpus a module alone. corpus_or_raster: a corpus of patches, a
    raster, a folder of rasters, or a STAC item (.json) (`scene.find_scenes`).
    out: a new name ending in .zarr, .tif (rasters) or .parquet says the format; for several scenes a folder, which gets a .zarr each, or with
    a name like out/*.tif one of that suffix each.
    pooled: one vector a patch of the training size, True for a corpus by default; False: one a cell of the dense map.
    dtype: float32, float16 or int8 (`encode`). window: pixels; windows of this side, half overlapping and blended, instead of the exact rule
    (`tiles`); encoders with attention always take them, of the training size by default.
    bands: for an encoder trained on bands drawn at random. name: which encoder of a run with several. where: a condition on the index of a corpus.
    picture: also write OUT.png, the three main directions of the embedding as colours beside the imagery. progress(done, total) counts blocks.
    Interrupted, the same call goes on; finished, it does nothing. Raises UsageError or RunError.
    """
    source = _opened(corpus_or_raster)
    place = torch.device(device)
    if isinstance(source, Corpus):
        from dsengine.export.patches import embed_corpus

        model = as_model(encoder, name=name, bands=bands, contract=source.contract() if isinstance(encoder, torch.nn.Module) else None)
        return [embed_corpus(_moved(model, place), source, _single(out), pooled=pooled is not False, dtype=dtype, where=where, device=place,
                             picture=picture, progress=progress)]
    if where is not None:
        raise UsageError(f"--where {where}: it is a condition on the index of a corpus, and {source} is none")
    from dsengine.export.rasters import embed_scene

    model = as_model(encoder, name=name, bands=bands)
    with rasterio.Env(GDAL_CACHEMAX=CACHE_MB):
        scenes = find_scenes(source, model.contract, s2_offset=s2_offset)
    rule = choose_rule(model, pooled=bool(pooled), window=window)
    moved, targets = _moved(model, place), targets_of(out, scenes)
    for scene, target in zip(scenes, targets, strict=True):
        embed_scene(moved, scene, rule, target, dtype=dtype, device=place, picture=picture, progress=progress)
    return targets


def choose_rule(model: Model, *, pooled: bool, window: int | None) -> Rule:
    """How windows are laid for this model; `window` in pixels. UsageError where it is no whole number of cells."""
    patch = model.contract.patch_size
    if pooled:
        side = patch if window is None else window
        return Rule("patches", patch_cells(model, side), 1)
    cells = measure(model.encoder, len(model.contract.bands))
    if window is None and cells.before is not None:
        return Rule("exact", cells, tile_side(cells))
    side = max(2, patch // cells.stride) * cells.stride if window is None else window
    if side % cells.stride or side < 2 * cells.stride:
        raise UsageError(f"--window {side}: legal: multiples of {cells.stride} px, a cell of this encoder, from {2 * cells.stride} on")
    return Rule("blended", cells, side // cells.stride)


def targets_of(out: str | os.PathLike[str], scenes: Sequence[Scene]) -> list[Path]:
    """The file of each scene. UsageError for an unknown suffix, or scenes of one name."""
    path = Path(out)
    if len(scenes) == 1 and "*" not in path.name and path.suffix:
        return [_single(path)]
    if "*" in path.name:
        _single(path)
    elif path.suffix:
        raise UsageError(f"--out {path}: {len(scenes)} scenes do not go into one file; legal: a folder, or a name like {path.parent / ('*' + path.suffix)}")
    names = [scene.name for scene in scenes]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UsageError(f"--out {path}: two scenes are named {twice[0]}")
    return [path.with_name(path.name.replace("*", name)) if "*" in path.name else path / f"{name}.zarr" for name in names]


def _single(out: str | os.PathLike[str]) -> Path:
    path = Path(out)
    if path.suffix not in SUFFIXES:
        raise UsageError(f"--out {path}: legal: a name that ends in {', '.join(SUFFIXES)}")
    return path


def _opened(source: Corpus | str | os.PathLike[str] | Url) -> Corpus | Path:
    """A corpus, or the path of what is to be read as a raster."""
    if isinstance(source, Corpus):
        return source
    if isinstance(source, Url) or "://" in str(source) or (Path(source) / "zarr.json").exists():
        found = open_corpus(source)
        if not isinstance(found, Corpus):
            raise UsageError(f"--corpus {source}: it holds {found.kind}; legal: a corpus of patches")
        return found
    return Path(source)


def _moved(model: Model, device: torch.device) -> Model:
    try:
        return model._replace(encoder=model.encoder.to(device, memory_format=torch.channels_last))
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"device: {device} is not there ({error}); legal: cpu, or a GPU that torch sees") from error


def default_device() -> torch.device:
    """A GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
