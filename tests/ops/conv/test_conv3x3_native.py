"""The C++ 3x3 convolution against the definition in float64."""

from __future__ import annotations

import pickle
import subprocess
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor
from torch import Tensor
from torch.nn.functional import conv2d, linear, pixel_shuffle

from bundle.networks.convolution import Conv3x3
from bundle.ops import conv3x3, native, own_convolution, use_backend
from bundle.ops.conv import dispatch
from bundle.ops.conv.native import conv3x3_native
from bundle.ops.native import Library, build
from bundle.ops.native import conv3x3 as caller

pytestmark = pytest.mark.skipif(native.load() is None, reason=f"NATIVE KERNELS NOT TESTED: {native.reason()}")

ONE_OF_EACH_FORM = [(48, 48), (1, 48), (48, 1), (64, 4), (5, 7)]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def layer(before: int, after: int, seed: int = 1) -> tuple[Tensor, Tensor]:
    return normal(after, before, 3, 3, seed=seed) * (9 * before) ** -0.5, normal(after, seed=seed + 1)


def definition(x: Tensor, weight: Tensor, bias: Tensor | None, addend: Tensor | None, relu: bool) -> Tensor:
    out = conv2d(x.double(), weight.double(), None if bias is None else bias.double(), padding=1)
    out = out if addend is None else out + addend.double()
    return out.relu() if relu else out


def channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@settings(max_examples=150, deadline=None)
@given(
    batch=st.integers(1, 3),
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    before=st.integers(1, 70),
    after=st.integers(1, 70),
    parts=st.tuples(st.booleans(), st.booleans(), st.booleans()),
)
def test_it_is_the_convolution(
    batch: int, height: int, width: int, before: int, after: int, parts: tuple[bool, bool, bool]
) -> None:
    has_bias, has_addend, relu = parts
    x, (weight, bias) = normal(batch, before, height, width), layer(before, after)
    addend = normal(batch, after, height, width, seed=9) if has_addend else None
    expected = definition(x, weight, bias if has_bias else None, addend, relu)
    out = conv3x3_native(x, [weight], [bias if has_bias else None], addend, relu)
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert (out - expected).abs().max() <= 4e-6 * max(1.0, float(expected.abs().max()))


@pytest.mark.parametrize(("before", "after"), [(1, 48), (48, 48), (64, 64), (48, 1)])
def test_its_error_is_at_most_three_times_that_of_the_plain_sum_in_float32(before: int, after: int) -> None:
    x, (weight, _) = normal(1, before, 64, 64).relu(), layer(before, after)
    expected = definition(x, weight, None, None, False)
    columns = torch.nn.functional.unfold(x, 3, padding=1)[0]
    total = torch.zeros(after, columns.shape[1])
    for k, column in enumerate(columns):
        total.addcmul_(weight.reshape(after, -1)[:, k : k + 1], column)
    plain = (total.view(1, after, 64, 64) - expected).square().mean().sqrt()
    own = (conv3x3_native(x, [weight], [None]) - expected).square().mean().sqrt()
    assert own <= 3 * plain


@pytest.mark.parametrize(("before", "after"), ONE_OF_EACH_FORM)
def test_a_scaled_input_gives_the_scaled_result(before: int, after: int) -> None:
    x, (weight, _) = normal(1, before, 13, 10), layer(before, after)
    out = conv3x3_native(x, [weight], [None], relu=True)
    assert torch.equal(conv3x3_native(0.25 * x, [weight], [None], relu=True), 0.25 * out)
    assert torch.allclose(conv3x3_native(0.3 * x, [weight], [None], relu=True), 0.3 * out, atol=1e-6)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize(("before", "after"), ONE_OF_EACH_FORM)
def test_every_run_on_any_number_of_threads_gives_the_same_bytes(before: int, after: int) -> None:
    x, (weight, bias) = normal(2, before, 41, 38), layer(before, after)
    torch.set_num_threads(1)
    expected = conv3x3_native(x, [weight], [bias])
    for count in (1, 2, 2, 5):
        torch.set_num_threads(count)
        assert torch.equal(conv3x3_native(x, [weight], [bias]), expected)


@pytest.mark.parametrize(("before", "after"), ONE_OF_EACH_FORM)
def test_an_image_of_a_batch_is_treated_as_alone(before: int, after: int) -> None:
    x, (weight, bias) = normal(3, before, 9, 14), layer(before, after)
    together = conv3x3_native(x, [weight], [bias])
    assert all(torch.equal(conv3x3_native(x[i : i + 1], [weight], [bias])[0], together[i]) for i in range(3))


@pytest.mark.parametrize("order", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize(("before", "after"), ONE_OF_EACH_FORM)
def test_in_place_the_addend_takes_the_sum(before: int, after: int, order: torch.memory_format) -> None:
    x, (weight, bias) = normal(2, before, 9, 14), layer(before, after)
    addend = normal(2, after, 9, 14, seed=5).contiguous(memory_format=order)
    expected = conv3x3_native(x, [weight], [bias], addend, relu=True)
    out = conv3x3_native(x, [weight], [bias], addend, relu=True, in_place=True)
    assert out is addend and torch.equal(out, expected)


def test_the_order_of_the_memory_does_not_matter() -> None:
    x, (weight, bias) = normal(2, 20, 9, 14), layer(20, 24)
    expected = conv3x3_native(x, [weight], [bias])
    wide = normal(2, 20, 18, 28)
    wide[..., ::2, ::2] = x
    for other in (channels_last(x), wide[..., ::2, ::2], x.transpose(2, 3).contiguous().transpose(2, 3)):
        assert torch.equal(conv3x3_native(other, [channels_last(weight)], [bias]), expected)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(("before", "after"), ONE_OF_EACH_FORM)
def test_what_is_not_finite_shows_around_its_pixel_and_not_far_away(before: int, after: int, value: float) -> None:
    x, (weight, bias) = normal(1, before, 24, 24), layer(before, after)
    x[0, 0, 11, 13] = value
    bad = ~conv3x3_native(x, [weight], [bias]).isfinite()
    assert bad[:, :, 10:13, 12:15].all()
    assert not bad[:, :, :8].any() and not bad[:, :, 16:].any()
    assert not bad[..., :8].any() and not bad[..., 20:].any()


# --- several layers


def chain(widths: Sequence[int]) -> tuple[list[Tensor], list[Tensor | None]]:
    layers = [layer(before, after, seed=10 * i) for i, (before, after) in enumerate(pairwise(widths))]
    return [weight for weight, _ in layers], [bias for _, bias in layers]


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("size", [(1, 1), (2, 300), (61, 35), (96, 128)], ids=str)
def test_several_layers_in_bands_give_the_bytes_of_one_after_the_other(
    size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    weights, biases = chain((1, 20, 20, 24, 20, 1))
    x = normal(2, 1, *size)
    maps = x
    for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
        maps = conv3x3_native(maps, [weight], [bias], relu=True)
    expected = conv3x3_native(maps, weights[-1:], biases[-1:], x)
    for pixels, count in ((1, 1), (400, 1), (400, 2), (1 << 20, 2)):
        monkeypatch.setattr(caller, "_BAND_PIXELS", pixels)
        torch.set_num_threads(count)
        assert torch.equal(conv3x3_native(x, weights, biases, x), expected)


@pytest.mark.parametrize("size", [(1, 1), (3, 40), (30, 17)], ids=str)
@pytest.mark.parametrize("widths", [(1, 20, 1), (2, 48, 48, 2), (1, 7, 1)], ids=str)
def test_the_linear_map_of_coarse_features_joins_the_first_layer(size: tuple[int, int], widths: list[int]) -> None:
    weights, biases = chain(widths)
    height, width = size
    x, coarse = normal(2, widths[0], 2 * height, 2 * width), normal(2, height, width, 11, seed=3)
    to_fine = normal(4 * widths[1], 11, seed=4) * 0.3
    added = pixel_shuffle(linear(coarse.double(), to_fine.double()).permute(0, 3, 1, 2), 2)
    maps = definition(x, weights[0], biases[0], added, True)
    for weight, bias in zip(weights[1:], biases[1:], strict=True):
        maps = definition(maps, weight, bias, None, weight is not weights[-1])
    out = conv3x3_native(x, weights, biases, None, False, coarse, to_fine)
    assert (out - maps).abs().max() <= 1e-5 * max(1.0, float(maps.abs().max()))


# --- builds


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Library:
    """The kernels for processors with AVX2."""
    if not {"avx2", "fma"} <= build._cpu_flags() or native.load().lanes != 16:
        pytest.skip("this processor has one form alone")
    path = tmp_path_factory.mktemp("avx2") / "narrow.so"
    sources = [str(source) for source in Path(build.__file__).parent.glob("*.cpp")]
    subprocess.run([*build._compiler(), *build._FLAGS, *build._AVX2, *sources, "-o", str(path)], check=True)
    return Library(path)


@pytest.mark.parametrize(("before", "after"), [*ONE_OF_EACH_FORM, (33, 70), (60, 60)])
def test_avx2_and_avx512_agree(narrow: Library, before: int, after: int) -> None:
    x, (weight, bias) = channels_last(normal(2, before, 19, 22)), layer(before, after)
    wide, out = conv3x3_native(x, [weight], [bias]), torch.empty(2, after, 19, 22, memory_format=torch.channels_last)
    caller.convolve(narrow, x, [weight], [bias], None, False, None, None, out)
    assert narrow.lanes == 8
    assert (wide - out).abs().max() <= 4e-6 * wide.abs().max()


# --- when it runs


def taken(x: Tensor, module: Conv3x3) -> bool:
    return own_convolution(x, (module.weight, module.bias)) is not None


def test_it_runs_for_inference_in_float32_alone() -> None:
    module, x = Conv3x3(3, 4), normal(1, 3, 28, 30)
    assert not taken(x, module)
    with torch.no_grad():
        assert taken(x, module)
        assert not taken(x.double(), module) and not taken(x, Conv3x3(3, 4).double())
        assert not taken(x.to("meta"), module)
        assert not taken(x[:, :, :20, :20], module)  # a small image
        with torch.autocast("cpu", torch.bfloat16):
            assert not taken(x, module)
            assert module(x).dtype == torch.bfloat16
        with use_backend("torch"):
            assert not taken(x, module)
        with use_backend("native"):
            assert taken(x, module)
    assert taken(x, module.requires_grad_(False))
    assert not taken(x.clone().requires_grad_(), module)


def test_gradients_are_those_of_pytorch() -> None:
    module, x, addend = Conv3x3(3, 4).double(), normal(2, 3, 5, 6).double(), normal(2, 4, 5, 6).double()
    out = module(x.requires_grad_(), addend.requires_grad_(), relu=True)
    expected = (conv2d(x, module.weight, module.bias, padding=1) + addend).relu()
    leaves = [x, addend, *module.parameters()]
    gradients = torch.autograd.grad(expected.square().sum(), leaves)
    for got, want in zip(torch.autograd.grad(out.square().sum(), leaves), gradients, strict=True):
        assert torch.allclose(got, want)


@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_in_training_has_the_gradients_of_the_definition(bias: bool) -> None:
    module, x = Conv3x3(5, 20, bias), normal(2, 5, 29, 37).requires_grad_()
    leaves = [x, *module.parameters()]
    dy = normal(2, 20, 29, 37, seed=7)
    out = module(x)
    assert "_Differentiable" in out.grad_fn.name()
    got = torch.autograd.grad(out, leaves, dy)
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    expected = torch.autograd.grad(conv2d(*exact, padding=1), exact, dy.double())
    for ours, theirs in zip(got, expected, strict=True):
        assert (ours - theirs).abs().max() <= 4e-6 * theirs.abs().max()
    (only,) = torch.autograd.grad(module(x.detach()), [module.weight], dy)
    assert torch.equal(only, got[1])


def test_what_has_no_gradients_says_so() -> None:
    x, (weight, biases) = normal(1, 3, 28, 30).requires_grad_(), layer(3, 3)
    for arguments in ({"relu": True}, {"addend": x}):
        with pytest.raises(ValueError, match="gradients"):
            conv3x3_native(x, [weight], [biases], **arguments)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_module_survives_copies_and_takes_other_kinds_of_tensors(mode: type) -> None:
    module, x = Conv3x3(3, 4).eval(), normal(1, 3, 28, 30)
    plain = torch.nn.Conv2d(3, 4, 3, padding=1)
    plain.load_state_dict(module.state_dict())
    with mode():
        expected = module(x)
        assert torch.allclose(plain(x), expected, atol=1e-6)
        assert torch.equal(pickle.loads(pickle.dumps(module))(x), expected)
        meta = module(MetaTensor(x, meta={"name": "kept"}))
        assert isinstance(meta, MetaTensor) and torch.equal(meta.as_tensor(), expected)
        assert meta.meta["name"] == "kept"
    assert module(x.to("meta").requires_grad_()).shape == expected.shape


def test_the_operators_pass_the_checks_of_pytorch() -> None:
    x, (weight, bias) = channels_last(normal(1, 3, 5, 6)), layer(3, 4)
    total = channels_last(normal(1, 4, 5, 6, seed=4))
    torch.library.opcheck(torch.ops.iconet.conv3x3.default, (x, [weight], [bias], total, True, None, None))
    torch.library.opcheck(torch.ops.iconet.conv3x3_add_.default, (total, x, weight, bias, False))


def test_a_traced_scripted_or_compiled_layer_holds_pytorchs_convolution() -> None:
    module, x = Conv3x3(3, 4).eval(), normal(1, 3, 5, 6)
    with torch.no_grad():
        traced, scripted = torch.jit.trace(module, x), torch.jit.script(module)
        compiled = torch.compile(module, backend="eager", fullgraph=True)
        for form in (traced, scripted, compiled):
            larger = normal(2, 3, 8, 7)
            assert torch.allclose(form(larger), conv2d(larger, module.weight, module.bias, padding=1), atol=1e-6)
    assert "iconet" not in str(traced.inlined_graph) + str(scripted.inlined_graph)


# --- refused


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((normal(3, 5, 6), [normal(4, 3, 3, 3)], [None]), "x must be"),
        ((normal(1, 3, 0, 6), [normal(4, 3, 3, 3)], [None]), "x must be"),
        ((normal(1, 3, 5, 6), [normal(4, 2, 3, 3)], [None]), r"weight must be \(channels, 3, 3, 3\)"),
        ((normal(1, 3, 5, 6), [normal(4, 3, 5, 5)], [None]), "weight must be"),
        ((normal(1, 3, 5, 6), [normal(4, 3, 3, 3)], [normal(3)]), r"bias must be \(4,\)"),
        ((normal(1, 3, 5, 6), [normal(4, 3, 3, 3)], [None], normal(1, 4, 5, 5)), "addend must be"),
        ((normal(1, 3, 5, 6), [normal(4, 3, 3, 3)] * 2, [None] * 2), "weight must be"),
        ((normal(1, 3, 4, 6), [normal(3, 3, 3, 3)] * 2, [None] * 2, None, False, normal(1, 2, 3, 8)), "come together"),
        (
            (normal(1, 3, 5, 6), [normal(3, 3, 3, 3)] * 2, [None] * 2, None, False, normal(1, 2, 3, 8), normal(12, 8)),
            "do not fit",
        ),
    ],
)
def test_shapes_that_do_not_fit_are_refused(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        conv3x3_native(*arguments)


def test_only_a_single_layer_with_an_addend_runs_in_place() -> None:
    with pytest.raises(ValueError, match="in place"):
        conv3x3_native(normal(1, 3, 5, 6), [normal(4, 3, 3, 3)], [None], in_place=True)


def test_other_types_are_refused_by_the_kernel_and_left_to_pytorch_by_the_function() -> None:
    x, (weight, bias) = normal(1, 3, 28, 30), layer(3, 4)
    with pytest.raises(TypeError, match="x is torch.float64 on cpu"):
        conv3x3_native(x.double(), [weight], [bias])
    with torch.no_grad(), pytest.raises(RuntimeError, match="dtype|type"):
        conv3x3(x, weight.double(), bias)


def test_without_a_compiler_pytorch_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    x, (weight, bias) = normal(1, 3, 28, 30), layer(3, 4)
    with torch.no_grad():
        expected = conv3x3(x, weight, bias)
        monkeypatch.setattr(native, "reason", lambda: "no C++ compiler was found")
        assert dispatch.own_convolution(x, (weight, bias)) is None
        assert torch.allclose(conv3x3(x, weight, bias), expected, atol=1e-6)


# --- what PyTorch does with gradients and subclasses


def loss(x: Tensor, weight: Tensor) -> Tensor:
    return conv3x3(conv3x3(x, weight, relu=True), weight, addend=x).square().mean()


def test_second_derivatives_are_those_of_the_definition() -> None:
    x, (weight, _) = normal(2, 6, 33, 33), layer(6, 6)
    results = []
    for dtype in (torch.float32, torch.float64):
        leaves = [x.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_()]
        first = torch.autograd.grad(loss(*leaves), leaves, create_graph=True)
        results.append(torch.autograd.grad(sum(g.square().sum() for g in first), leaves))
    for got, want in zip(*results, strict=True):
        assert (got - want).abs().max() <= 1e-5 * want.abs().max()


def test_transforms_of_torch_func_and_forward_mode_gradients_are_right() -> None:
    x, (weight, _) = normal(2, 6, 33, 33), layer(6, 6)
    tangent = normal(2, 6, 33, 33, seed=7)

    def total(x: Tensor) -> Tensor:
        return loss(x, weight.to(x.dtype))

    expected = torch.func.grad(total)(x.double())
    slope = float((expected * tangent).sum())
    assert (torch.func.grad(total)(x) - expected).abs().max() <= 1e-5 * expected.abs().max()
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            assert float(torch.func.jvp(total, (x,), (tangent,))[1]) == pytest.approx(slope, rel=1e-4)
            with torch.autograd.forward_ad.dual_level():
                dual = total(torch.autograd.forward_ad.make_dual(x, tangent))
                found = torch.autograd.forward_ad.unpack_dual(dual).tangent
            assert found is not None and float(found) == pytest.approx(slope, rel=1e-4)
            each = torch.func.vmap(lambda image: total(image[None]))(x)
            assert torch.allclose(each, torch.stack([total(x[i : i + 1]) for i in range(2)]), rtol=1e-5)
    whole = torch.autograd.functional.jacobian(lambda x: total(x)[None], x, vectorize=True)[0]
    assert (whole - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_a_meta_tensor_trains() -> None:
    x, (weight, _) = normal(2, 6, 33, 33), layer(6, 6)
    grads = []
    for image in (MetaTensor(x), x):
        leaf = weight.clone().requires_grad_()
        loss(image, leaf).backward()
        grads.append(leaf.grad.as_subclass(Tensor))
    assert torch.equal(*grads)


def test_in_place_the_input_may_be_the_addend() -> None:
    x, (weight, _) = channels_last(normal(1, 16, 30, 30)), layer(16, 16)
    expected = conv3x3_native(x, [weight], [None], x.clone())
    assert torch.equal(conv3x3_native(x, [weight], [None], x, in_place=True), expected)


@pytest.mark.parametrize("size", [(1, 1024), (2, 600), (600, 2)], ids=str)
def test_an_image_of_one_or_two_lines_stays_with_pytorch(size: tuple[int, int]) -> None:
    x, (weight, _) = normal(1, 16, *size), layer(16, 16)
    assert own_convolution(x, [weight]) is None
    assert own_convolution(normal(1, 16, 3, 600), [weight]) is not None
