"""The path to a GPU: its DALI graph as far as it can be made without one, the choice of an inflater, batches; with a GPU, all of it."""

import types as python_types
import warnings
from collections.abc import Sequence
from pathlib import Path

import numcodecs
import numpy as np
import pytest
import torch
import zarr
from nvidia.dali import Pipeline, types
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, ShardingCodec, ZstdCodec

from dsengine.corpus import open_corpus
from dsengine.data import device as device_module
from dsengine.data import frames, inflate, loader
from dsengine.data.device import Chosen, DevicePipeline, choose, known_streams
from dsengine.data.inflate import DaliInflate, NvcompInflate, inflate_pipeline, slot_inputs, source
from dsengine.data.layout import ChunkLayout, chunk_layout
from dsengine.data.pipeline import RawPipeline, open_pipeline
from dsengine.data.plan import make_plan
from dsengine.data.sample import View
from dsengine.data.staging import Group
from dsengine.errors import RunError, UsageError
from dsengine.ops import build_info

CPU = torch.device("cpu")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here")


class HostInflate:
    """numcodecs in the place of a GPU's inflater."""

    codecs = frozenset({frames.LZ4, frames.ZSTD})

    def __init__(self, device: torch.device) -> None:
        pass

    def __call__(self, buffer: torch.Tensor, groups: Sequence[Group], void: int) -> list[torch.Tensor]:
        return [torch.from_numpy(np.stack([decoded(buffer[at:at + size].numpy(), group) for at, size in zip(group.offset, group.size, strict=True)]))
                for group in groups]


def decoded(piece: np.ndarray, group: Group) -> np.ndarray:
    if group.codec == frames.ZSTD:
        return np.frombuffer(numcodecs.Zstd().decode(piece.tobytes()), np.uint8)
    return np.frombuffer(numcodecs.LZ4().decode(group.decoded.to_bytes(4, "little") + piece.tobytes()), np.uint8)


class WrongInflate(HostInflate):
    """Gives bytes, but not the right ones."""

    def __call__(self, buffer: torch.Tensor, groups: Sequence[Group], void: int) -> list[torch.Tensor]:
        return [torch.zeros(len(group.offset), group.decoded, dtype=torch.uint8) for group in groups]


def failing(device: torch.device) -> HostInflate:
    raise OSError("libcuda.so is not there\nmore")


failing.codecs = HostInflate.codecs


def chosen_host() -> Chosen:
    return choose(CPU, [frames.LZ4, frames.ZSTD], {"numcodecs": HostInflate})


def layouts_at(root: Path, side: int = 61) -> tuple[list[ChunkLayout], list[np.ndarray]]:
    """Two arrays, Blosc LZ4 and zstd, and what is in them."""
    rng, layouts, written = np.random.default_rng(0), [], []
    group = zarr.open_group(root, mode="a")
    for name, chain in (("s2", [BloscCodec(cname="lz4", shuffle="shuffle", blocksize=4096, typesize=2), Crc32cCodec()]), ("s1", [ZstdCodec()])):
        x = (np.cumsum(rng.normal(0, 30, (12, 3, side, side)), axis=-1) + 900).astype("<i2")
        x[::3] = rng.integers(-32768, 32768, x[::3].shape)
        codec = ShardingCodec(chunk_shape=(1, 3, side, side), codecs=[BytesCodec(), *chain], index_codecs=[BytesCodec(), Crc32cCodec()])
        group.create_array(name, shape=x.shape, chunks=(4, 3, side, side), dtype="int16", fill_value=-32768, serializer=codec,
                           compressors=None, filters=None)[:] = x
        layouts.append(chunk_layout(group[name], root=root))
        written.append(x)
    return layouts, written


@pytest.mark.parametrize("num_slots", [1, 2, 9])
def test_the_graph_is_made_of_arguments_that_dali_knows(num_slots: int) -> None:
    pipeline = inflate_pipeline(num_slots, device_id=0)
    names = {op.name for op in pipeline._ops} if pipeline._ops else set()
    assert not names or {"buffer", *(f"{name}{k}" for name in inflate.SLOT_INPUTS for k in range(num_slots))} <= names


@without_gpu
def test_building_the_graph_without_a_gpu_says_what_is_missing() -> None:
    with pytest.raises(RuntimeError, match="CUDA is not available"):
        inflate_pipeline(1, device_id=0).build()


def test_a_slot_without_a_group_inflates_the_one_byte_of_void() -> None:
    groups = [Group(frames.LZ4, 4096, np.array([7, 90]), np.array([80, 33]))]
    fed = slot_inputs(groups, num_slots=2, void=500)
    assert {name: values.tolist() for name, values in fed.items()} == {
        "shape0": [[4096]], "offsets0": [[7, 90]], "sizes0": [[80, 33]], "shape1": [[1]], "offsets1": [[500]], "sizes1": [[2]]}


def test_dali_takes_the_inputs_of_the_graph_as_they_are_fed() -> None:
    fed = slot_inputs([Group(frames.LZ4, 4096, np.arange(9), np.arange(1, 10))], num_slots=2, void=3)
    pipeline = Pipeline(batch_size=1, num_threads=1, device_id=None, prefetch_queue_depth=1, exec_dynamic=True)
    with pipeline:
        pipeline.set_outputs(*(source(name, device="cpu", dtype=types.INT32, ndim=1) for name in fed))
    pipeline.build()
    for name, values in fed.items():
        pipeline.feed_input(name, values)
    for values, out in zip(fed.values(), pipeline.run(), strict=True):
        np.testing.assert_array_equal(torch.from_dlpack(out.as_tensor()).numpy(), values)


def test_a_buffer_of_2_gib_is_refused_for_dali() -> None:
    with pytest.raises(UsageError, match="batch_size: a batch of 2,147,483,648 compressed bytes is too large for DALI"):
        DaliInflate(torch.device("cuda"))(torch.empty(2**31, dtype=torch.uint8, device="meta"), [], 0)


@pytest.mark.parametrize("codec", [frames.LZ4, frames.ZSTD])
def test_the_streams_of_the_trial_are_what_they_say(codec: int) -> None:
    buffer, groups, expected = known_streams(codec)
    for out, y in zip(HostInflate(CPU)(torch.from_numpy(buffer), groups, 0), expected, strict=True):
        np.testing.assert_array_equal(out.numpy(), y)


def test_the_first_inflater_that_gives_the_right_bytes_is_chosen() -> None:
    chosen = choose(CPU, [frames.LZ4, frames.ZSTD], {"absent": failing, "wrong": WrongInflate, "good": HostInflate, "never asked": failing})
    assert all(type(x) is HostInflate for x in chosen.by_codec.values()) and set(chosen.by_codec) == {frames.LZ4, frames.ZSTD}
    assert chosen.words.startswith("LZ4 by absent: OSError: libcuda.so is not there; LZ4 by wrong: wrong bytes; LZ4 by good: works; zstd by absent")
    assert choose(CPU, [frames.ZSTD], {"wrong": WrongInflate}) == ({}, "zstd by wrong: wrong bytes; zstd is decoded on the CPU")


@without_gpu
def test_without_a_gpu_neither_dali_nor_nvcomp_is_chosen_and_the_reasons_are_said() -> None:
    chosen = choose(torch.device("cuda"), [frames.LZ4])
    assert not chosen.by_codec and "LZ4 by DALI: " in chosen.words and "LZ4 by nvCOMP: " in chosen.words


def test_groups_of_several_codecs_come_back_in_their_order() -> None:
    lz4, zstd = known_streams(frames.LZ4), known_streams(frames.ZSTD)
    shifted = [group._replace(offset=group.offset + len(lz4[0])) for group in zstd[1]]
    buffer = torch.from_numpy(np.concatenate([lz4[0], zstd[0]]))
    out = chosen_host().inflate(buffer, [lz4[1][0], shifted[0], lz4[1][1], shifted[1]], 0)
    for x, y in zip(out, [lz4[2][0], zstd[2][0], lz4[2][1], zstd[2][1]], strict=True):
        np.testing.assert_array_equal(x.numpy(), y)


def test_nvcomp_is_given_each_stream_and_a_row_of_the_output_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    class Codec:
        def __init__(self, **options: object) -> None:
            made.append(options)

        def decode(self, pieces: list[torch.Tensor], out: list[torch.Tensor]) -> None:
            for piece, row in zip(pieces, out, strict=True):
                group = Group({"LZ4": frames.LZ4, "Zstd": frames.ZSTD}[made[-1]["algorithm"]], row.numel(), None, None)
                row.copy_(torch.from_numpy(decoded(piece.numpy(), group).copy()))

    fake = python_types.SimpleNamespace(Codec=Codec, as_arrays=lambda pieces, cuda_stream: pieces, BitstreamKind=python_types.SimpleNamespace(RAW="raw"))
    monkeypatch.setattr(inflate, "import_module", lambda name: {"nvidia.nvcomp": fake}[name])
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: python_types.SimpleNamespace(cuda_stream=0))
    for codec in (frames.LZ4, frames.ZSTD):
        buffer, groups, expected = known_streams(codec)
        for out, y in zip(NvcompInflate(CPU)(torch.from_numpy(buffer), groups, 0), expected, strict=True):
            np.testing.assert_array_equal(out.numpy(), y)
    assert [(m["algorithm"], m["uncomp_chunk_size"], m["bitstream_kind"]) for m in made] == [
        ("LZ4", 4096, "raw"), ("LZ4", 100, "raw"), ("Zstd", 4096, "raw"), ("Zstd", 100, "raw")]


def test_leases_of_every_size_give_what_zarr_python_reads(tmp_path: Path) -> None:
    layouts, _ = layouts_at(tmp_path)
    arrays = [zarr.open_array(tmp_path / name)[:] for name in ("s2", "s1")]
    with DevicePipeline(layouts, num_threads=2, device=CPU, chosen=chosen_host()) as pipeline:
        for ids in ([3], list(range(12)), [11, 0, 0], [5, 4], list(range(11, -1, -1))):
            with pipeline.lease(np.array(ids)) as out:
                for x, y in zip(out, arrays, strict=True):
                    np.testing.assert_array_equal(x.numpy(), y[ids])


def test_damage_ends_a_lease_and_the_next_one_works(tmp_path: Path) -> None:
    layouts, written = layouts_at(tmp_path)
    path = Path(layouts[0].shard_path(2))
    raw = bytearray(path.read_bytes())
    raw[40] ^= 1
    path.write_bytes(raw)
    with DevicePipeline(layouts, num_threads=2, device=CPU, chosen=chosen_host()) as pipeline:
        with pytest.raises(RunError, match="array s2, patch 8: the chunk fails its crc32c"), pipeline.lease(np.arange(12)):
            pass
        with pipeline.lease(np.arange(8)) as out:
            np.testing.assert_array_equal(out[0].numpy(), written[0][:8])


def test_batches_of_the_loader_are_bitwise_those_of_the_cpu_path(small_corpus: Path) -> None:
    plan = make_plan(open_corpus(small_corpus), [View(size=20), View(size=13, bands=("B03", "B06", "VH"))], global_batch=16)
    ids = plan.rows[[5, 0, 3, 3, 9]]
    with RawPipeline(plan.layouts, max_batch=16, num_threads=1) as pipeline:
        expected = loader.read_views(plan, pipeline, ids, epoch=0, level=1.0)
    with DevicePipeline(plan.layouts, num_threads=2, device=CPU, chosen=chosen_host()) as pipeline:
        assert all(map(torch.equal, loader.read_views(plan, pipeline, ids, epoch=0, level=1.0), expected))


def test_what_cannot_be_inflated_on_the_device_is_decoded_before_the_copy(tmp_path: Path) -> None:
    layouts, written = layouts_at(tmp_path)
    with DevicePipeline(layouts, num_threads=2, device=CPU, chosen=Chosen({}, "nobody")) as pipeline, pipeline.lease(np.arange(12)) as out:
        for x, y in zip(out, written, strict=True):
            np.testing.assert_array_equal(x.numpy(), y)


def test_a_corpus_for_a_device_without_inflaters_is_opened_with_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_module, "MAKERS", {"absent": failing})
    monkeypatch.setattr(device_module, "DevicePipeline", lambda layouts, **options: options["chosen"])
    with pytest.warns(UserWarning, match="chunks are decoded on the CPU and copied whole: LZ4 by absent: OSError.*zstd by absent"):
        assert not open_pipeline(layouts_at(tmp_path)[0], max_batch=4, num_threads=1, device=torch.device("cuda")).by_codec


@needs_gpu
@pytest.mark.parametrize("maker", [DaliInflate, NvcompInflate])
@pytest.mark.parametrize("codec", [frames.LZ4, frames.ZSTD])
def test_each_inflater_of_the_gpu_is_byte_exact(maker: type, codec: int) -> None:
    if codec not in maker.codecs:
        pytest.skip(f"{maker.__name__} has no {device_module.CODEC_NAMES[codec]}")
    if maker is NvcompInflate:
        pytest.importorskip("nvidia.nvcomp")
    buffer, groups, expected = known_streams(codec)
    inflater = maker(torch.device("cuda", 0))
    for _ in range(3):  # the pipeline is used again, with fewer groups as well
        for part in (groups, groups[:1], groups):
            for out, y in zip(inflater(torch.from_numpy(buffer).cuda(), part, 0), expected):
                np.testing.assert_array_equal(out.cpu().numpy(), y)


@needs_gpu
@pytest.mark.parametrize("side", [61, 128])
def test_patches_decoded_on_the_gpu_are_byte_exact(tmp_path: Path, side: int) -> None:
    layouts, written = layouts_at(tmp_path, side)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zstd without nvCOMP
        pipeline = open_pipeline(layouts, max_batch=12, num_threads=2, device=torch.device("cuda", 0))
    assert frames.LZ4 in pipeline._chosen.by_codec, pipeline._chosen.words
    with pipeline:
        for ids in ([3], list(range(12)), [11, 0, 0], list(range(11, -1, -1))):
            with pipeline.lease(np.array(ids)) as out:
                for x, y in zip(out, written, strict=True):
                    assert x.is_cuda
                    np.testing.assert_array_equal(x.cpu().numpy(), y[ids])


@needs_gpu
def test_batches_of_the_loader_on_the_gpu_hold_the_pixels_of_the_cpu(small_corpus: Path) -> None:
    if not build_info()["cuda"]:
        pytest.skip("dsengine was built without CUDA")
    views = [View(size=20), View(size=13, bands=("B03", "B06", "VH"))]
    with loader.Loader(open_corpus(small_corpus), views, 16, device="cuda") as fast, loader.Loader(open_corpus(small_corpus), views, 16) as slow:
        for _ in range(8):
            a, b = next(fast), next(slow)
            assert torch.equal(a.sample_id.cpu(), b.sample_id)
            for x, y in zip(a.views, b.views, strict=True):
                assert (x.cpu() - y).abs().max() <= 1e-4 * y.abs().max()


@needs_gpu
@pytest.mark.parametrize("kept", ["gpu", "ram"])
def test_kept_patches_give_the_batches_of_those_that_are_read_bitwise(small_corpus: Path, kept: str) -> None:
    if not build_info()["cuda"]:
        pytest.skip("dsengine was built without CUDA")
    views = [View(size=20), View(size=13, bands=("B03", "B06", "VH"))]
    common = dict(split="all", device="cuda", seed=5)
    with (loader.Loader(open_corpus(small_corpus), views, 16, resident=kept, **common) as ours,
          loader.Loader(open_corpus(small_corpus), views, 16, resident="none", **common) as read):
        for _ in range(2 * read.steps_per_epoch + 1):  # the first epoch fills the tier, the second lives on it
            a, b = next(ours), next(read)
            assert torch.equal(a.sample_id, b.sample_id) and all(torch.equal(x, y) for x, y in zip(a.views, b.views, strict=True))
