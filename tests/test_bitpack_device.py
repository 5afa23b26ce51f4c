"""The fixed-width codec on its way to a GPU: its CUDA source run on the host, hostile tables and chunks, and the plan of a batch run on the CPU."""

import ctypes
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, ShardingCodec

from dsengine import ops
from dsengine.corpus import bitpack
from dsengine.corpus.bitpack import BitpackCodec
from dsengine.data.layout import ChunkLayout, chunk_layout
from dsengine.data.staging import Slab, Stager, expand
from dsengine.errors import RunError, UsageError
from dsengine.ops.bitpack_op import bitpack_arguments
from dsengine.ops.bitpack_reference import reference_decode, reference_encode

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
Case = tuple[torch.Tensor, torch.Tensor, list[np.ndarray]]


@pytest.fixture(scope="module")
def host_kernel(host_cuda: Callable[[str], ctypes.CDLL]) -> Callable[..., int]:
    """dse_bitpack_cuda compiled as C++."""
    return host_cuda("bitpack").dse_bitpack_cuda


def pixels(shape: tuple[int, ...], dtype: str, seed: int) -> np.ndarray:
    """Noise of every width in rows and planes, drift, and the least value here and there."""
    rng, info = np.random.default_rng(seed), np.iinfo(dtype)
    x = rng.integers(0, 2, shape) * rng.integers(0, 2 ** rng.integers(0, 8 * info.dtype.itemsize - 1, (*shape[:2], 1)), shape)
    x = (x + np.arange(shape[2]) * 3).astype(dtype)
    x[rng.random(shape) < 0.02] = info.min
    x[0, :9, :9] = info.min
    return x


def case(shape: tuple[int, ...], window: Sequence[int], dtype: str, predictor: str, *, gap: int = 3) -> Case:
    """A buffer with two chunks `gap` bytes in and apart, three windows of them in any order, and what those hold."""
    xs = [pixels(shape, dtype, seed) for seed in range(2)]
    chunks = [reference_encode(x, predictor=predictor, nodata=int(np.iinfo(dtype).min)) for x in xs]
    buffer = torch.frombuffer(bytearray(b"".join(b"\xff" * gap + chunk for chunk in chunks)), dtype=torch.uint8)
    start = [gap, 2 * gap + len(chunks[0])]
    most = [shape[1] - window[0], shape[2] - window[1]]
    rows, table, want = [(1, 0, 0), (0, most[0], most[1]), (0, most[0] // 2, most[1] // 2)], [], []
    step = shape[0] * window[0] * window[1] * np.dtype(dtype).itemsize
    for k, (chunk, y, x) in enumerate(rows):
        table.append([start[chunk], len(chunks[chunk]), (2 - k) * step, y, x])
        want.insert(0, reference_decode(chunks[chunk], dtype)[:, y:y + window[0], x:x + window[1]])
    return buffer, torch.tensor(table), want


SHAPES = [((1, 8, 8), (8, 8)), ((2, 16, 128), (16, 128)), ((2, 21, 13), (21, 13)), ((1, 17, 300), (17, 300)), ((1, 30, 290), (9, 150)), ((2, 24, 136), (8, 16)),
          ((1, 1, 1), (1, 1)), ((1, 12, 40), (1, 1)), ((3, 10, 8), (2, 8))]


@pytest.mark.parametrize("predictor", bitpack.PREDICTORS)
@pytest.mark.parametrize("dtype", ["int16", "uint8"])
@pytest.mark.parametrize("shape, window", SHAPES, ids=str)
def test_the_cuda_source_run_on_the_host_equals_the_definition(host_kernel: Callable[..., int], shape: tuple[int, ...], window: tuple[int, int], dtype: str,
                                                               predictor: str) -> None:
    for gap in (0, 3):
        buffer, table, want = case(shape, window, dtype, predictor, gap=gap)
        out = torch.full((sum(x.nbytes for x in want),), 0xAB, dtype=torch.uint8)
        args = bitpack_arguments(buffer, table, out, shape=shape, window=window, itemsize=np.dtype(dtype).itemsize)
        assert host_kernel(ctypes.byref(args), None) == 0
        np.testing.assert_array_equal(out.numpy().view(dtype).reshape(3, *want[0].shape), np.stack(want))


@needs_gpu
@pytest.mark.parametrize("dtype, predictor", [("int16", "none"), ("int16", "lorenzo"), ("uint8", "lorenzo")])
@pytest.mark.parametrize("shape, window", [*SHAPES, ((14, 128, 128), (128, 128)), ((12, 120, 120), (120, 120)), ((14, 256, 256), (144, 144))], ids=str)
def test_the_cuda_op_equals_the_definition(shape: tuple[int, ...], window: tuple[int, int], dtype: str, predictor: str) -> None:
    if not ops.build_info()["cuda"]:
        pytest.skip("dsengine was built without CUDA")
    buffer, table, want = case(shape, window, dtype, predictor)
    out = ops.bitpack_decode(buffer.cuda(), table[:, [0, 1, 3, 4]].cuda(), shape, window, getattr(torch, dtype))
    np.testing.assert_array_equal(out.cpu().numpy(), np.stack(want[::-1]))


HOSTILE = {"before the buffer": (0, -1), "past the buffer": (0, 10**6), "past it by overflow": (0, 2**63 - 1), "negative size": (1, -1), "large size": (1, 2**62),
           "cut": (1, 50), "before the output": (2, -2), "past the output": (2, 2**62), "between two pixels": (2, 1), "above the window": (3, -1),
           "below the chunk": (3, 2**40), "left of it": (4, -1), "right of it": (4, 14)}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_row_is_refused_on_the_cpu_and_skipped_by_the_cuda_source(host_kernel: Callable[..., int], name: str) -> None:
    column, value = HOSTILE[name]
    buffer, table, want = case((2, 21, 13), (5, 7), "int16", "lorenzo")
    table[1, column] = value
    room = torch.full((128 + sum(x.nbytes for x in want),), 0xAB, dtype=torch.uint8)  # nothing around the output may change
    out = room[64:-64]
    with pytest.raises(UsageError):
        ops.bitpack_decode_into(buffer, table, out.clone(), (2, 21, 13), (5, 7), torch.int16)
    args = bitpack_arguments(buffer, table, out, shape=(2, 21, 13), window=(5, 7), itemsize=2)
    assert host_kernel(ctypes.byref(args), None) == 0
    got = out.numpy().view("int16").reshape(3, *want[0].shape)
    np.testing.assert_array_equal(got[[0, 2]], np.stack(want)[[0, 2]])
    assert set(got[1].tobytes()) == {0xAB} and set(room[:64].tolist() + room[-64:].tolist()) == {0xAB}


def test_damaged_chunks_never_make_the_cuda_source_write_elsewhere(host_kernel: Callable[..., int]) -> None:
    """Random bytes changed; neighbours of the damaged window stay right, whatever becomes of it."""
    rng, shape, window = np.random.default_rng(0), (2, 21, 140), (21, 139)
    buffer, table, want = case(shape, window, "int16", "lorenzo")
    lo, size = table[0, 0].item(), table[0, 1].item()
    for _ in range(20):
        hurt = buffer.clone()
        at = lo + rng.integers(0, size if rng.random() < 0.5 else 150, 3)
        hurt[at] = torch.from_numpy(rng.choice(np.array([0, 1, 31, 96, 255], "u1"), 3))
        room = torch.full((64 + sum(x.nbytes for x in want),), 0xAB, dtype=torch.uint8)
        args = bitpack_arguments(hurt, table, room[:-64], shape=shape, window=window, itemsize=2)
        assert host_kernel(ctypes.byref(args), None) == 0
        got = room[:-64].numpy().view("int16").reshape(3, *want[0].shape)
        np.testing.assert_array_equal(got[:2], np.stack(want)[:2])
        assert set(room[-64:].tolist()) == {0xAB}


def write(root: Path, name: str, x_NCHW: np.ndarray, codecs: list) -> ChunkLayout:
    group = zarr.open_group(root, mode="a")
    codec = ShardingCodec(chunk_shape=(1, *x_NCHW.shape[1:]), codecs=codecs, index_codecs=[BytesCodec(), Crc32cCodec()])
    group.create_array(name, shape=x_NCHW.shape, chunks=(4, *x_NCHW.shape[1:]), dtype="int16", fill_value=-32768, serializer=codec, compressors=None,
                       filters=None)[:] = x_NCHW
    return chunk_layout(group[name], root=root)


def staged_patches(layouts: Sequence[ChunkLayout], ids: np.ndarray) -> tuple[torch.Tensor, ...]:
    """What the plan makes of patches `ids`; nothing here is to be inflated."""
    stager, slab = Stager(layouts, num_threads=2), Slab(pinned=False)
    try:
        staged = stager.stage(ids, slab)
    finally:
        stager.close()
    return expand(slab.tensor[:staged.num_bytes].clone(), staged, lambda *_: pytest.fail("no stream here is compressed"))


def patches(num: int, shape: tuple[int, int, int], seed: int = 0) -> np.ndarray:
    """Some of them noise, one all fill value, one nodata in part."""
    rng = np.random.default_rng(seed)
    x = (np.cumsum(rng.normal(0, 8, (num, *shape)), axis=-1) + 900).astype("<i2")
    x[1] = rng.integers(-32768, 32768, shape)
    x[2] = -32768
    x[3, :, shape[1] // 2:] = -32768
    return x


@pytest.mark.parametrize("predictor", bitpack.PREDICTORS)
@pytest.mark.parametrize("checked", [True, False])
@pytest.mark.parametrize("shape", [(14, 64, 64), (3, 31, 37), (1, 7, 150)], ids=str)
def test_the_plan_for_a_gpu_equals_zarr_python(tmp_path: Path, predictor: str, checked: bool, shape: tuple[int, int, int]) -> None:
    layout = write(tmp_path, "s2", patches(9, shape), [BitpackCodec(predictor=predictor, nodata=-32768), *[Crc32cCodec()] * checked])
    ids = np.array([8, 0, 2, 3, 3, 1, 2, 5])
    np.testing.assert_array_equal(staged_patches([layout], ids)[0].numpy(), zarr.open_array(tmp_path / "s2")[:][ids])


def test_arrays_of_this_and_of_other_codecs_go_in_one_batch(tmp_path: Path) -> None:
    plain = BloscCodec(cname="lz4", clevel=0, typesize=2)  # stored raw, so that no inflater is asked
    chains = {"s2": [BitpackCodec(predictor="lorenzo"), Crc32cCodec()], "s2_20m": [BytesCodec(), Crc32cCodec()], "s1": [BitpackCodec(), Crc32cCodec()],
              "dem": [BytesCodec(), plain]}
    written = {name: patches(6, (2 + k, 32 // (1 + k % 2), 32 // (1 + k % 2)), k) for k, name in enumerate(chains)}
    layouts = [write(tmp_path, name, x, chains[name]) for name, x in written.items()]
    ids = np.array([5, 2, 0, 0, 1, 3])
    for x, out in zip(written.values(), staged_patches(layouts, ids), strict=True):
        np.testing.assert_array_equal(out.numpy(), x[ids])


@pytest.mark.parametrize("damage", ["flip", "shape"])
def test_damage_on_the_way_to_a_gpu_names_file_and_patch(tmp_path: Path, damage: str) -> None:
    layout = write(tmp_path, "s2", patches(4, (2, 16, 24)), [BitpackCodec(), Crc32cCodec()])
    path = Path(layout.shard_path(0))
    if damage == "flip":
        raw = bytearray(path.read_bytes())
        raw[40] ^= 1
        path.write_bytes(raw)
    else:  # as good a chunk, of 24 x 16
        write(tmp_path, "other", patches(4, (2, 24, 16)), [BitpackCodec(), Crc32cCodec()])
        path.write_bytes((tmp_path / "other/c/0/0/0/0").read_bytes())
    with pytest.raises(RunError, match=r"c/0/0/0/0: array s2, patch \d: .*(crc32c|header says \(bytes, planes, H, W\) \(2, 2, 24, 16\))"):
        staged_patches([layout], np.arange(4))
