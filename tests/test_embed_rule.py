"""Windows and seams: tiled embeddings against the encoder run once over the whole raster, and against literal loops."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))
from embed_cases import Looking, Small, contract, numbers, write, zscored  # noqa: E402

from dsengine.encoders import Features, build_encoder
from dsengine.errors import UsageError
from dsengine.export.compute import compute, grid_shape
from dsengine.export.embed import choose_rule
from dsengine.export.model import Cells, Model, as_model, measure
from dsengine.export.scene import find_scenes, opened
from dsengine.export.tiles import Rule, lattice, tiles, weights

CPU = torch.device("cpu")


def field_of_view(layers: list[tuple[int, int]]) -> int:
    """Pixels that a cell of convolutions (kernel, stride) sees: the sum of (kernel - 1) times the strides before it, and 1."""
    seen, jump = 1, 1
    for kernel, stride in layers:
        seen, jump = seen + (kernel - 1) * jump, jump * stride
    return seen


def basic(blocks: tuple[int, ...]) -> list[tuple[int, int]]:
    """The 7x7 convolution and the 3x3 ones of a ResNet of basic blocks."""
    return [(7, 2)] + [(3, 2 if stage and not k else 1) for stage, count in enumerate(blocks) for k in range(2 * count)]


@pytest.mark.parametrize("name, blocks", [("resnet18", (2, 2, 2, 2)), ("resnet34", (3, 4, 6, 3))])
def test_the_measured_field_of_view_is_the_one_that_kernels_and_strides_give(name: str, blocks: tuple[int, ...]) -> None:
    cells = measure(build_encoder(name, 2).eval(), 2)
    first, last = cells.sees
    assert last - first + 1 == field_of_view(basic(blocks)) and first == -last  # odd kernels: centred on the cell's first pixel
    assert cells.stride == 16 and cells.dim == 512 and cells.rounds_up
    assert (cells.before, cells.after) == (-(first // 16), last // 16)


def test_attention_sees_everything_and_patch_embedding_only_its_patch() -> None:
    assert measure(build_encoder("resnet18_attn", 2).eval(), 2).before is None

    class Patchify(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(2, 3, 4, 4)

        def forward(self, x: torch.Tensor) -> Features:
            return Features(self.conv(x).mean((2, 3)), self.conv(x))

    assert measure(Patchify(), 2) == Cells(4, 3, 0, 0, False, (0, 3))


def tiled(model: Model, rule: Rule, path: Path, *, side: int) -> np.ndarray:
    """All cells, `side` at a time."""
    scene, = find_scenes(path, model.contract, s2_offset="0")
    shape = grid_shape(rule, scene.shape)
    out = np.full((rule.cells.dim, *shape), np.nan, np.float32)
    with opened(scene, model.contract.nodata) as reader:
        for tile in tiles(shape, side):
            out[:, tile.rows.start:tile.rows.stop, tile.columns.start:tile.columns.stop] = compute(model, rule, source=reader, tile=tile, device=CPU).embedding
    return out


def relative(found: np.ndarray, want: torch.Tensor) -> float:
    """Largest difference over the largest value."""
    return float(np.abs(found - want.numpy()).max() / want.abs().max())


@pytest.mark.parametrize("height, width", [(200, 333), (64, 500), (7, 9)])
def test_tiles_with_margins_equal_the_encoder_run_once_over_the_raster(tmp_path: Path, height: int, width: int) -> None:
    values = numbers(height, width)
    model = as_model((Small(14), contract()))
    rule = choose_rule(model, pooled=False, window=None)
    path = write(tmp_path / "a.tif", values)
    want = model.encoder(zscored(values, model.contract)).dense[0].detach()
    assert rule.mode == "exact" and relative(tiled(model, rule, path, side=5), want) < 1e-5
    short = rule._replace(cells=rule.cells._replace(before=rule.cells.before - 1))
    assert width < 16 or relative(tiled(model, short, path, side=5), want) > 1e-4  # each cell of the margin is needed


def test_a_real_network_on_real_imagery_has_no_seams(tmp_path: Path, sample_data: Path) -> None:
    name = "38D_378R_2_3.tif"
    for part in ("S2L2A", "S1RTC"):
        (tmp_path / part).mkdir()
        (tmp_path / part / name).symlink_to(sample_data / "pairs" / "terramesh" / part / name)
    torch.manual_seed(1)
    model = as_model((build_encoder("resnet18", 14).eval(), contract()))
    rule = choose_rule(model, pooled=False, window=None)
    scene, = find_scenes(tmp_path, model.contract)
    with opened(scene, model.contract.nodata) as reader:
        from dsengine.export.model import normalised
        from dsengine.export.tiles import Span

        stored = reader.read(Span(0, 224), Span(0, 224))
        with torch.no_grad():
            want = model.encoder(normalised(torch.from_numpy(stored)[None], model.contract)).dense[0]
    found = tiled(model, rule, tmp_path, side=3)
    difference = np.abs(found - want.numpy())
    assert found.shape == (512, 14, 14) and difference.max() / want.abs().max() < 1e-5
    seams = difference[:, :, 2:12:3].max(), difference[:, 2:12:3].max()  # the last cells of tiles
    assert max(seams) / float(want.abs().max()) < 1e-5


def test_windows_half_overlap_and_their_weights_sum_to_one() -> None:
    for count, window in [(40, 8), (41, 8), (8, 8), (9, 8), (3, 8), (13, 2), (100, 16), (40, 7), (9, 3)]:
        windows = lattice(count, window)
        total = np.zeros(count)
        for w, weight in zip(windows, weights(windows, count), strict=True):
            assert 0 <= w.start < w.stop <= count and w.size == min(window, count) and (weight > 0).all()
            total[w.start:w.stop] += weight
        np.testing.assert_allclose(total, 1.0, rtol=1e-12)
        assert all(b.start - a.start <= window // 2 for a, b in zip(windows, windows[1:], strict=False))


def blended(model: Model, values: np.ndarray, window: int) -> np.ndarray:
    """The rule as a literal loop over windows of the whole raster, in float64."""
    x = zscored(values, model.contract)
    height, width = (-(-n // 8) for n in values.shape[1:])
    total, out = np.zeros((height, width)), np.zeros((6, height, width))
    for y in sorted({*range(0, max(height - window, 0) + 1, window // 2), max(height - window, 0)}):
        for x0 in sorted({*range(0, max(width - window, 0) + 1, window // 2), max(width - window, 0)}):
            dense = model.encoder(x[:, :, 8 * y:8 * (y + window), 8 * x0:8 * (x0 + window)]).dense[0].detach().double().numpy()
            rows, columns = dense.shape[1:]
            bell = [np.sin(np.pi * (np.arange(n) + 0.5) / n) ** 2 for n in (rows, columns)]
            out[:, y:y + rows, x0:x0 + columns] += dense * np.outer(*bell)
            total[y:y + rows, x0:x0 + columns] += np.outer(*bell)
    return out / total


@pytest.mark.parametrize("height, width", [(205, 300), (30, 200)])
def test_blended_windows_equal_a_literal_loop_and_do_not_depend_on_tiles(tmp_path: Path, height: int, width: int) -> None:
    values = numbers(height, width)
    model = as_model((Looking(14), contract()))
    rule = choose_rule(model, pooled=False, window=None)
    path = write(tmp_path / "a.tif", values)
    assert (rule.mode, rule.window) == ("blended", 8)
    want = torch.from_numpy(blended(model, values, 8))
    for side in (3, 7, 64):
        assert relative(tiled(model, rule, path, side=side), want) < 1e-5


def test_a_raster_that_fits_a_window_is_the_encoder_run_once(tmp_path: Path) -> None:
    values = numbers(64, 50)
    model = as_model((Looking(14), contract()))
    found = tiled(model, choose_rule(model, pooled=False, window=None), write(tmp_path / "a.tif", values), side=64)
    assert relative(found, model.encoder(zscored(values, model.contract)).dense[0].detach()) < 1e-5


def test_blending_leaves_no_step_where_windows_end(tmp_path: Path) -> None:
    values = numbers(512, 512, seed=4)
    model = as_model((Looking(14), contract()))
    rule = choose_rule(model, pooled=False, window=None)
    found = tiled(model, rule, write(tmp_path / "a.tif", values), side=64)
    steps = np.abs(np.diff(found, axis=2)).mean((0, 1))  # between columns k and k + 1
    edges = np.arange(3, 60, 4)  # windows begin and end every 4 cells
    others = np.setdiff1d(np.arange(4, 59), edges)
    ratio = steps[edges].mean() / steps[others].mean()
    apart = np.concatenate([model.encoder(zscored(values[:, :, k:k + 64], model.contract)).dense[0].detach().numpy() for k in range(0, 512, 64)], axis=2)
    cut = np.abs(np.diff(apart, axis=2)).mean((0, 1))
    assert ratio < 1.1 and cut[7::8].mean() / np.delete(cut, np.arange(7, 63, 8)).mean() > ratio  # windows side by side do leave steps


@pytest.mark.parametrize("window", [0, 8, 20, -16])
def test_a_window_of_no_whole_number_of_cells_or_of_one_is_refused(window: int) -> None:
    with pytest.raises(UsageError, match="multiples of 8 px.* from 16 on"):
        choose_rule(as_model((Small(14), contract())), pooled=False, window=window)


@pytest.mark.parametrize("patch, cells", [(64, 8), (120, 15), (60, 7), (8, 2), (1, 2)])
def test_a_window_is_the_training_patch_in_whole_cells(patch: int, cells: int) -> None:
    assert choose_rule(as_model((Looking(14), contract(patch_size=patch))), pooled=False, window=None).window == cells
