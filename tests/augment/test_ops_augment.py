"""ops.augment against its definition in torch, in every instruction set, dtype and layout, and what it refuses."""

import ctypes

import pytest
import torch

from dsengine import ops
from dsengine.errors import UsageError
from dsengine.ops import augment_op, library
from dsengine.ops.reference import augment_reference, dihedral

ISAS = {"portable": 1, "avx2": 2, "avx512": 3}


def cast(arguments: dict, dtype: torch.dtype) -> dict:
    return {key: value.to(dtype) if torch.is_tensor(value) and value.is_floating_point() else value
            for key, value in arguments.items()}


def run_on(isa: str, sources, arguments: dict, *, num_threads: int = 1, out_channels: int | None = None, nodata: int = -32768):
    """The CPU form in one instruction set, or a skip; output poisoned with NaN first."""
    rest = {key: value for key, value in arguments.items() if key != "size"}
    out = augment_op._empty(arguments["A"], arguments["size"], out_channels, torch.float32).fill_(float("nan"))
    args = augment_op._arguments(sources, **rest, out=out, nodata=nodata)
    status = library.library().dse_augment_cpu(ctypes.byref(args), num_threads, ISAS[isa])
    if status == 6:
        pytest.skip(f"this CPU has no {isa}")
    library.check_status("augment", status)
    return out


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("num_bands, out_channels", [(1, None), (2, 8), (5, None), (14, None), (14, 16), (14, 24), (14, 37)])
@pytest.mark.parametrize("size, factor", [(33, 1), (17, 2), (16, 3), (1, 1)])
def test_every_instruction_set_equals_the_definition(make_sources, make_operator, isa, num_bands, out_channels, size, factor):
    sources = make_sources(3, patch_size=48, factor=factor, absent=0.05)
    arguments = make_operator(num_bands, patch_size=48, size=size, factor=factor)
    out = run_on(isa, sources, arguments, out_channels=out_channels)
    truth = augment_reference(sources, **cast(arguments, torch.float64), out_channels=out_channels, dtype=torch.float64)
    assert (out - truth).abs().max() <= 2e-6 * truth.abs().max()
    assert not out[:, num_bands:].any()


@pytest.mark.parametrize("code", range(8))
def test_codes_turn_then_mirror(code):
    image = torch.arange(9, dtype=torch.int16).reshape(1, 1, 3, 3)
    out = ops.augment([image], torch.tensor([[0, 0, 1]], dtype=torch.int32), torch.zeros(1), torch.zeros(1, 1, 2, dtype=torch.int32),
                      torch.tensor([[code]], dtype=torch.int32), torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 1), 3)
    turned = torch.rot90(image[0, 0], code % 4)
    expected = turned.fliplr() if code >= 4 else turned
    assert torch.equal(out[0, 0].to(torch.int16), expected) and torch.equal(dihedral(image[0, 0], code), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("out_channels, size", [(None, 33), (16, 32), (24, 17)])
def test_half_precision_is_the_rounded_fp32_result(make_sources, make_operator, dtype, out_channels, size):
    sources, arguments = make_sources(3, patch_size=40, absent=0.02), make_operator(14, size=size)
    # Down to subnormal halves, up to overflow, and NaN.
    arguments["A"] *= torch.tensor([1e-9, 1e-5, 1.0, 1e3])[torch.randint(4, (2, 3, 14, 1))]
    arguments["T"] *= 1e-3
    arguments["b"] *= (arguments["A"].abs().amax(3) > 1e-7)
    arguments["b"][0, 0, 0] = float("nan")
    full = ops.augment(sources, **arguments, out_channels=out_channels)
    half = ops.augment(sources, **arguments, out_channels=out_channels, dtype=dtype)
    torch.testing.assert_close(half, full.to(dtype), rtol=0, atol=0, equal_nan=True)
    assert half.dtype == dtype and half.isnan().any()


def test_output_is_channels_last_with_views_outermost(make_sources, make_operator):
    sources, arguments = make_sources(3, patch_size=40), make_operator(14)
    out = ops.augment(sources, **arguments, out_channels=16)
    assert out.shape == (6, 16, 33, 33) and out.is_contiguous(memory_format=torch.channels_last)
    second = {key: arguments[key][1:].contiguous() for key in ("offset", "code", "A", "T", "b")}
    assert torch.equal(out[3:], ops.augment(sources, **(arguments | second), out_channels=16))


@pytest.mark.parametrize("num_threads", [2, 3, 16])
def test_the_number_of_threads_does_not_change_a_bit(make_sources, make_operator, num_threads):
    sources, arguments = make_sources(3, patch_size=40, absent=0.05), make_operator(14)
    isa = ops.build_info()["isa"]
    assert torch.equal(run_on(isa, sources, arguments), run_on(isa, sources, arguments, num_threads=num_threads))


def test_another_nodata_value_is_honoured_and_none_can_be_asked_for(make_sources, make_operator):
    sources, arguments = make_sources(3, patch_size=40), make_operator(5)
    sources[0][0, 0, 10:30] = 77
    marked = augment_reference(sources, **cast(arguments, torch.float64), dtype=torch.float64, nodata=77)
    torch.testing.assert_close(ops.augment(sources, **arguments, nodata=77).double(), marked, rtol=0, atol=1e-5)
    sources[0][0, 0, 10:30] = -32768
    plain = augment_reference(sources, **cast(arguments, torch.float64), dtype=torch.float64, nodata=1 << 20)
    torch.testing.assert_close(ops.augment(sources, **arguments, nodata=1 << 20).double(), plain, rtol=0, atol=1e-4)


def test_means_of_a_large_crop_do_not_overflow(make_operator):
    arguments = make_operator(1, num_views=1, num_samples=1, patch_size=700, size=700)
    sources = [torch.full((1, 1, 700, 700), 32767, dtype=torch.int16)]
    out = ops.augment(sources, **arguments)
    truth = augment_reference(sources, **cast(arguments, torch.float64), dtype=torch.float64)
    torch.testing.assert_close(out.double(), truth, rtol=1e-6, atol=0)


def test_an_empty_batch_gives_an_empty_view(make_sources, make_operator):
    arguments = make_operator(5, num_samples=0)
    assert ops.augment(make_sources(0, patch_size=40), **arguments).shape == (0, 5, 33, 33)


def test_the_op_passes_opcheck_and_compiles_without_a_break(make_sources, make_operator):
    sources, arguments = make_sources(3, patch_size=40), make_operator(5)
    keywords = {"out_channels": 8, "dtype": torch.bfloat16}
    positional = tuple(arguments[key] for key in ("bands", "center", "offset", "code", "A", "T", "b", "size"))
    torch.library.opcheck(torch.ops.dsengine.augment.default, (sources, *positional), keywords)
    compiled = torch.compile(lambda s, *a: ops.augment(s, *a, **keywords) * 2, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(sources, *positional), ops.augment(sources, *positional, **keywords) * 2)


def test_it_writes_into_memory_that_is_there_and_refuses_what_does_not_fit(make_sources, make_operator):
    sources, arguments = make_sources(3, patch_size=40), make_operator(5)
    rest = {key: value for key, value in arguments.items() if key != "size"}
    expected = ops.augment(sources, **arguments, out_channels=8, dtype=torch.bfloat16)
    out = torch.full_like(expected, float("nan"))
    ops.augment_into(sources, **rest, out=out)
    assert torch.equal(out, expected)
    torch.library.opcheck(torch.ops.dsengine.augment_into.default, (sources, *rest.values(), out))
    for wrong, message in ((out.contiguous(), "out has strides"), (out[1:], "out is"), (out[:, :4], "out has strides"), (out[..., :9], "out is")):
        with pytest.raises(UsageError, match=f"^augment: {message}"):
            ops.augment_into(sources, **rest, out=wrong)


@pytest.mark.parametrize("name, change, message", [
    ("A", lambda x: x.double(), "A is torch.float64, it must be torch.float32"),
    ("A", lambda x: x.mT, r"A has strides .*, it must be contiguous"),
    ("A", lambda x: x[0], r"A is \(3, 5, 5\), it must be \(V, B, C, C\)"),
    ("T", lambda x: x[:, :, :4], r"T is \(2, 3, 4, 5\), it must be \(2, 3, 5, 5\)"),
    ("b", lambda x: x.half(), "b is torch.float16"),
    ("bands", lambda x: x.long(), "bands is torch.int64"),
    ("center", lambda x: x[:2], r"center is \(2,\), it must be \(5,\)"),
    ("offset", lambda x: x[..., :1], r"offset is \(2, 3, 1\)"),
    ("code", lambda x: x.mT.contiguous(), r"code is \(3, 2\)"),
    ("code", lambda x: x + 8, "code: a dihedral code is not 0..7"),
    ("offset", lambda x: x + 8, "offset: a crop leaves the patch"),
    ("offset", lambda x: x - 8, "offset: a crop leaves the patch"),
    ("bands", lambda x: x + torch.tensor([0, 12, 0], dtype=torch.int32), "bands: a row names no source or channel"),
    ("bands", lambda x: x * torch.tensor([[1, 1, 2]] + [[1, 1, 1]] * 4, dtype=torch.int32), "differs in extent"),
    ("size", lambda x: 0, "size is 0"), ("size", lambda x: 41, "offset: a crop leaves the patch"),
    ("out_channels", lambda x: 4, "out_channels is 4, legal: 5 to 80"), ("dtype", lambda x: torch.int32, "dtype is torch.int32, legal"),
])
def test_a_wrong_argument_is_refused_by_name(make_sources, make_operator, name, change, message):
    arguments = make_operator(5)
    arguments[name] = change(arguments.get(name))
    with pytest.raises(UsageError, match=f"^augment: .*{message}"):
        ops.augment(make_sources(3, patch_size=40), **arguments)


@pytest.mark.parametrize("change, message", [
    (lambda s: s.int(), r"sources\[0\] is torch.int32, it must be torch.int16"), (lambda s: s[0], r"sources\[0\] is \(12, 40, 40\)"),
    (lambda s: s.mT, r"sources\[0\] has strides"), (lambda s: s[:2], r"sources\[0\] is \(2, 12, 40, 40\), it must be \(3, 12, 40, 40\)")])
def test_a_wrong_source_is_refused_by_name(make_sources, make_operator, change, message):
    first, second = make_sources(3, patch_size=40)
    with pytest.raises(UsageError, match=message):
        ops.augment([change(first), second], **make_operator(5))
