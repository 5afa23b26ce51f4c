"""The fixed-width codec against its definition in numpy and through zarr-python: bytes, pixels, metadata, windows."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from zarr.codecs import Crc32cCodec
from zarr.storage import MemoryStore

from dsengine import ops
from dsengine.corpus import bitpack
from dsengine.corpus.bitpack import BitpackCodec
from dsengine.errors import UsageError
from dsengine.ops.bitpack_reference import reference_decode, reference_encode

KINDS = ("noise", "drift", "gaps", "constant", "extremes", "empty")


def pixels(kind: str, shape: tuple[int, ...], dtype: str, seed: int = 0) -> np.ndarray:
    """Values that fill their type, that neighbours foretell, with nodata among them, of one value, of the two furthest, or nodata alone."""
    rng, info = np.random.default_rng(seed), np.iinfo(dtype)
    if kind == "noise":
        return rng.integers(info.min, info.max, shape, dtype=dtype, endpoint=True)
    if kind == "constant":
        return np.full(shape, info.max // 3, dtype)
    if kind == "extremes":
        return rng.choice(np.array([info.min, info.max], dtype), shape)
    drift = (np.cumsum(rng.normal(0, 3, shape), axis=-1) + 40).astype("int16").astype(dtype)
    if kind == "gaps":
        drift[rng.random(shape) < rng.random()] = info.min
    return np.full(shape, info.min, dtype) if kind == "empty" else drift


@settings(max_examples=150, deadline=None)
@given(kind=st.sampled_from(KINDS), shape=st.tuples(st.integers(1, 3), st.integers(1, 30), st.integers(1, 30) | st.integers(120, 150)),
       dtype=st.sampled_from(bitpack.DTYPES), predictor=st.sampled_from(bitpack.PREDICTORS), masks=st.booleans(), seed=st.integers(0, 999))
def test_chunks_are_those_of_the_definition_and_hold_the_pixels(kind: str, shape: tuple[int, ...], dtype: str, predictor: str, masks: bool, seed: int) -> None:
    x, nodata = pixels(kind, shape, dtype, seed), int(np.iinfo(dtype).min) if masks else None
    chunk = bitpack.encode(x, predictor=predictor, nodata=nodata)
    assert chunk == reference_encode(x, predictor=predictor, nodata=nodata)
    np.testing.assert_array_equal(reference_decode(chunk, dtype), x)
    out = np.empty_like(x)
    bitpack.decode(chunk, out)
    np.testing.assert_array_equal(out, x)


def test_a_tile_is_what_the_format_says_bit_for_bit() -> None:
    """By hand: 2 x 3 pixels, base 100, values 0 1 2 / 3 3 3 of 2 bits each, the rows equally wide."""
    x = np.array([[[100, 101, 102], [103, 103, 103]]], "int16")
    header = b"dsb1" + bytes([2, 8, 0, 0]) + b"\1\0\0\0" + b"\2\0\0\0" + b"\3\0\0\0"
    offsets = (28).to_bytes(4, "little") + (35).to_bytes(4, "little")
    head = bytes([100, 0, 0, 0, 2])
    assert bitpack.encode(x, predictor="none") == header + offsets + head + bytes([0b100100, 0b111111])


def test_a_predicted_tile_is_what_the_format_says_bit_for_bit() -> None:
    """Residuals 0 1 1 / 3 -1 0 above 2^(w - 1): rows of 2 and 3 bits."""
    x = np.array([[[-5, -4, -3], [-2, -2, -1]]], "int16")
    chunk = bitpack.encode(x, predictor="lorenzo")
    plain = bitpack.encode(x, predictor="none")
    assert chunk == plain  # of equal length here: 3 bits of 0..4 in both rows take as much
    forced = chunk[:28] + bytes([0xFB, 0xFF, 1, 0, 3 | 32]) + bytes([2 | 3 << 2 | 3 << 4, (7 | 3 << 3 | 4 << 6) & 255, (7 | 3 << 3 | 4 << 6) >> 8])
    forced = forced[:24] + len(forced).to_bytes(4, "little") + forced[28:]
    out = np.empty_like(x)
    bitpack.decode(forced, out)
    np.testing.assert_array_equal(out, x)


def test_tiles_without_noise_take_five_bytes_and_a_hole_of_nodata_does_not_widen_its_tile() -> None:
    bare = len(bitpack.encode(np.full((1, 8, 8), -32768, "int16"), predictor="none", nodata=-32768))
    assert bare == 20 + 8 + 5
    ramp = np.arange(64, dtype="int16").reshape(1, 8, 8) % 16 + 900
    whole = len(bitpack.encode(ramp, predictor="none", nodata=-32768))
    ramp[0, 3, 3:5] = -32768
    assert len(bitpack.encode(ramp, predictor="none", nodata=-32768)) == whole + 8  # a mask
    assert len(bitpack.encode(ramp, predictor="none")) > whole + 60


@pytest.mark.parametrize("shape, chunks, shards", [((5, 3, 31, 37), (1, 3, 31, 37), (2, 3, 31, 37)), ((5, 3, 31, 37), (2, 2, 16, 16), None), ((9, 20), (4, 20), None),
                                                   ((50,), (7,), None), ((3, 2, 2, 17, 9), (1, 2, 2, 17, 9), (3, 2, 2, 17, 9))])
@pytest.mark.parametrize("dtype", ["int16", ">i2", "uint16", "uint8", "int8"])
@pytest.mark.parametrize("predictor", bitpack.PREDICTORS)
def test_zarr_python_writes_and_reads_it_with_and_without_shards(shape: tuple[int, ...], chunks: tuple[int, ...], shards: tuple[int, ...] | None, dtype: str,
                                                                  predictor: str) -> None:
    x = pixels("gaps", shape, np.dtype(dtype).newbyteorder("=").name).astype(dtype)
    x[1] = 3  # fill value
    store = MemoryStore()
    zarr.create_array(store, shape=shape, chunks=chunks, shards=shards, dtype=dtype, fill_value=3, compressors=[Crc32cCodec()],
                      serializer=BitpackCodec(predictor=predictor, nodata=int(np.iinfo(dtype).min)))[...] = x
    found = zarr.open_array(store, mode="r")
    np.testing.assert_array_equal(found[...], x)
    assert found.dtype.name == np.dtype(dtype).name
    rows = [0, 2, len(x) - 1]
    np.testing.assert_array_equal(found.oindex[rows], x[rows])


def test_an_interpreter_that_imports_zarr_alone_finds_the_codec(tmp_path: Path) -> None:
    x = pixels("drift", (2, 3, 20, 20), "int16")
    zarr.create_array(tmp_path / "a", shape=x.shape, chunks=(1, 3, 20, 20), dtype="int16", serializer=BitpackCodec(predictor="lorenzo"), compressors=[])[...] = x
    code = f"import sys, zarr; x = zarr.open_array({str(tmp_path / 'a')!r})[...]; print(int(x.sum(dtype='int64')), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(int(x.sum(dtype="int64"))), "False"]


def test_the_configuration_survives_json_and_nothing_else_is_taken() -> None:
    codec = BitpackCodec(predictor="lorenzo", nodata=-32768)
    assert json.loads(json.dumps(codec.to_dict())) == {"name": "dsengine.bitpack", "configuration": {"tile": 8, "predictor": "lorenzo", "nodata": -32768}}
    assert BitpackCodec.from_dict(codec.to_dict()) == codec and BitpackCodec.from_dict({"name": "dsengine.bitpack"}) == BitpackCodec()
    for wrong in ({"predictor": "left"}, {"tile": 4}, {"nodata": 1 << 16}, {"nodata": 0.5}, {"nodata": True}, {"level": 3}):
        with pytest.raises(ValueError, match="legal"):
            BitpackCodec.from_dict({"name": "dsengine.bitpack", "configuration": wrong})
    for dtype in ("float32", "int32", "bool"):
        with pytest.raises(ValueError, match="legal: int8, uint8, int16, uint16"):
            zarr.create_array(MemoryStore(), shape=(4, 4), chunks=(4, 4), dtype=dtype, serializer=codec, compressors=[])


@settings(max_examples=100, deadline=None)
@given(shape=st.tuples(st.integers(1, 3), st.integers(1, 40), st.integers(1, 40) | st.integers(125, 300)), data=st.data(), predictor=st.sampled_from(bitpack.PREDICTORS),
       dtype=st.sampled_from(bitpack.DTYPES))
def test_a_window_is_the_slice_of_the_whole(shape: tuple[int, ...], data: st.DataObject, predictor: str, dtype: str) -> None:
    planes = [pixels("gaps", shape, dtype, seed) for seed in range(3)]
    chunks = [bitpack.encode(x, predictor=predictor, nodata=int(np.iinfo(dtype).min)) for x in planes]
    size = [data.draw(st.integers(1, n)) for n in shape[1:]]
    corner = [[data.draw(st.integers(0, n - w)) for n, w in zip(shape[1:], size)] for _ in range(4)]
    which = [0, 2, 2, 1]
    starts = np.cumsum([3, *map(len, chunks)])
    table = torch.tensor([[int(starts[k]), len(chunks[k]), *at] for k, at in zip(which, corner)])
    out = ops.bitpack_decode(torch.frombuffer(bytearray(b"abc" + b"".join(chunks)), dtype=torch.uint8), table, shape, size, getattr(torch, dtype))
    want = [planes[k][:, y:y + size[0], x:x + size[1]] for k, (y, x) in zip(which, corner)]
    np.testing.assert_array_equal(out.numpy(), np.stack(want))


def test_the_op_passes_torchs_own_checks_and_compiles_whole() -> None:
    chunk = bitpack.encode(pixels("drift", (2, 20, 20), "int16"), predictor="lorenzo")
    buffer, table = torch.frombuffer(bytearray(chunk), dtype=torch.uint8), torch.tensor([[0, len(chunk), 3, 4]])
    torch.library.opcheck(ops.bitpack_decode, (buffer, table, [2, 20, 20], [9, 11], torch.int16))
    into = torch.zeros(2 * 2 * 9 * 11, dtype=torch.uint8)
    torch.library.opcheck(ops.bitpack_decode_into, (buffer, torch.tensor([[0, len(chunk), 0, 3, 4]]), into, [2, 20, 20], [9, 11], torch.int16))
    compiled = torch.compile(lambda b, t: ops.bitpack_decode(b, t, [2, 20, 20], [9, 11], torch.int16) + 1, fullgraph=True, backend="eager")
    assert torch.equal(compiled(buffer, table), ops.bitpack_decode(buffer, table, [2, 20, 20], [9, 11], torch.int16) + 1)


@pytest.mark.parametrize("change, words", [
    ({"buffer": torch.zeros(4)}, "buffer is torch.float32"), ({"chunks": torch.zeros(1, 3, dtype=torch.int64)}, r"must be \(K, 4\)"),
    ({"chunks": torch.zeros(1, 4)}, "chunks is torch.float32"), ({"shape": [2, 20]}, "shape is"), ({"shape": [0, 20, 20]}, "shape is"),
    ({"window": [21, 3]}, "window is"), ({"window": [0, 3]}, "window is"), ({"dtype": torch.int32}, "dtype is torch.int32"),
    ({"chunks": torch.tensor([[0, 9999, 0, 0]])}, "leaves its buffer"), ({"chunks": torch.tensor([[-1, 99, 0, 0]])}, "leaves its buffer"),
    ({"chunks": torch.tensor([[0, 99, 15, 0]])}, "leaves its buffer"), ({"chunks": torch.tensor([[0, 99, 0, -1]])}, "leaves its buffer"),
    ({"chunks": torch.tensor([[2**62, 2**62, 0, 0]])}, "leaves its buffer"), ({"chunks": torch.tensor([[1, 99, 0, 0]])}, "does not decode")], ids=str)
def test_illegal_arguments_are_named(change: dict, words: str) -> None:
    chunk = bitpack.encode(pixels("drift", (2, 20, 20), "int16"), predictor="none")
    given = {"buffer": torch.frombuffer(bytearray(chunk), dtype=torch.uint8), "chunks": torch.tensor([[0, len(chunk), 0, 0]]), "shape": [2, 20, 20],
             "window": [8, 8], "dtype": torch.int16}
    with pytest.raises(UsageError, match=words):
        ops.bitpack_decode(**(given | change))
