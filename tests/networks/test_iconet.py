"""The whole network: sizes, wiring, parameters, gradients."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, asdict
from typing import Any

import pytest
import torch
from state_files import load_through_file
from torch import Tensor, nn

from bundle.networks import NETWORK_SIZES, ICONet, ICONetConfig, ICONetOutput, iconet
from bundle.networks.heads import FullResolutionHead, ImageHead
from bundle.networks.upsample import fourier_image_upsample
from bundle.ops import native, use_backend
from bundle.physics import measure_grid_shift, smooth_truncate, truncate
from bundle.training.losses import MultiStageL1Loss

TINY: dict[str, Any] = {
    "features": 8,
    "num_blocks": 1,
    "d_state": 2,
    "match_features": 4,
    "head_features": 8,
    "head_layers": 4,
}


def tiny(scale: int = 2, seed: int = 0, **kwargs: Any) -> ICONet:
    torch.manual_seed(seed)
    return iconet("small", scale, **{**TINY, **kwargs})


def image(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def objects(count: int, size: int) -> Tensor:
    """Random discs of different brightness on a dark background, (count, 1, size, size)."""
    generator = torch.Generator().manual_seed(1)
    y, x = torch.meshgrid(torch.linspace(-1, 1, size), torch.linspace(-1, 1, size), indexing="ij")
    discs = []
    for _ in range(count):
        r, c, radius, level = torch.rand(4, generator=generator)
        discs.append(((y - r + 0.5) ** 2 + (x - c + 0.5) ** 2 < 0.2 + 0.4 * radius) * (0.3 + level))
    return torch.stack(discs)[:, None]


def silence(head: ImageHead | FullResolutionHead, offset: float = 0.0) -> None:
    """Make a residual constant: set the weights of the last convolution to zero."""
    last = head.last if isinstance(head, FullResolutionHead) else head.residual[-1]
    nn.init.zeros_(last.weight)
    nn.init.constant_(last.bias, offset)


def inputs_of(module: nn.Module) -> list[Tensor]:
    seen: list[Tensor] = []
    module.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    return seen


def count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


# ------------------------------------------------------------------------------------------------------------ sizes


@pytest.mark.parametrize("scale", [2, 4])
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (7, 1), (8, 8), (9, 6), (5, 13)])
def test_any_matrix_is_super_resolved_to_scale_times_its_size(scale: int, size: tuple[int, int]) -> None:
    out = tiny(scale)(image(2, 1, *size))
    assert out.shape == (2, 1, scale * size[0], scale * size[1])
    assert bool(out.isfinite().all())


@pytest.mark.parametrize("window", [0, 2, 3])
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 2), (12, 21)])
def test_a_window_takes_images_larger_and_smaller_than_itself(window: int, size: tuple[int, int]) -> None:
    near, everywhere = (tiny(match_window=w).eval() for w in (window, None))
    with torch.no_grad():
        out, expected = near(image(1, 1, *size)), everywhere(image(1, 1, *size))
        with use_backend("reference"):
            assert torch.allclose(out, near(image(1, 1, *size)), atol=1e-5)
    assert torch.equal(out, expected) == ((max(size) + 1) // 2 - 1 <= window)


@pytest.mark.parametrize(("scale", "stages"), [(2, 1), (4, 2), (8, 3)])
def test_every_stage_returns_its_reconstruction_and_twice_the_size(scale: int, stages: int) -> None:
    network, x = tiny(scale), image(1, 1, 5, 4)
    out = network(x, return_stages=True)
    assert isinstance(out, ICONetOutput)
    assert [tuple(t.shape[2:]) for t in out.reconstructions] == [(5 * 2**i, 4 * 2**i) for i in range(stages)]
    assert [tuple(t.shape[2:]) for t in out.super_resolved] == [(10 * 2**i, 8 * 2**i) for i in range(stages)]
    assert torch.equal(out.super_resolved[-1], network(x))


def test_images_may_have_several_channels() -> None:
    assert tiny(in_channels=3)(image(1, 3, 6, 5)).shape == (1, 3, 12, 10)


@pytest.mark.parametrize("shape", [(1, 2, 8, 8), (1, 8, 8), (8, 8), (1, 1, 8, 8, 8)])
def test_other_shapes_are_an_error(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected slices \(B, 1, h, w\)"):
        tiny()(image(*shape))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scale": 3}, "scale must be"),
        ({"scale": 1}, "scale must be"),
        ({"order": "both"}, "order must be"),
        ({"upsampler": "bicubic"}, "upsampler must be"),
        ({"num_blocks": 0}, "must be positive"),
        ({"features": 0}, "must be positive"),
        ({"head_features": 0}, "head_features must be positive"),
        ({"head_layers": 1}, "head_layers at least 2"),
        ({"match_stride": 0}, "match_stride must be at least 1"),
        ({"match_window": -1}, "match_window must be at least 0 or None"),
    ],
)
def test_an_argument_outside_its_range_is_an_error(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ICONet(**{**TINY, **arguments})


def test_the_keywords_of_the_network_are_the_fields_of_its_config() -> None:
    config = ICONetConfig(**TINY, scale=4, order="parallel")
    torch.manual_seed(0)
    by_config = ICONet(config).state_dict()
    torch.manual_seed(0)
    by_keywords = ICONet(**asdict(config)).state_dict()
    assert list(by_config) == list(by_keywords)
    assert all(torch.equal(by_config[name], by_keywords[name]) for name in by_config)


def test_keywords_go_before_the_config() -> None:
    network = ICONet(ICONetConfig(**TINY, scale=4), scale=2, num_blocks=2)
    assert network.scale == 2 and len(network.stages[0].sr_branch.body) == 2


def test_the_config_of_a_named_size_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        NETWORK_SIZES["small"].features = 64


@pytest.mark.parametrize("build", [ICONet, iconet, ICONetConfig])
def test_an_unknown_keyword_is_an_error_that_names_it(build) -> None:
    with pytest.raises(TypeError, match="num_block'"):
        build(num_block=3)


def test_an_unknown_size_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"'small'.*'huge'"):
        iconet("huge")


# ----------------------------------------------------------------------------------------------------------- wiring


@pytest.mark.parametrize("order", ["serial", "parallel"])
def test_without_residuals_the_network_is_fourier_upsampling(order: str) -> None:
    network, x = tiny(4, order=order).double(), image(1, 1, 6, 7).double()
    for stage in network.stages:
        silence(stage.rec_head)
        silence(stage.sr_head)
    out = network(x, return_stages=True)
    assert torch.allclose(out.super_resolved[1], fourier_image_upsample(x, 4))
    assert torch.allclose(out.reconstructions[1], fourier_image_upsample(x, 2))
    assert torch.equal(out.reconstructions[0], x)


@pytest.mark.parametrize("scale", [2, 4])
def test_without_residuals_the_network_does_not_move_the_image(scale: int) -> None:
    network = tiny(scale).double()
    for stage in network.stages:
        silence(stage.rec_head)
        silence(stage.sr_head)
    assert measure_grid_shift(network, scale, size=(25, 28)) == pytest.approx((0, 0), abs=1e-6)


@pytest.mark.parametrize("upsampler", ["pixelshuffle", "full_resolution"])
@pytest.mark.parametrize("size", ["small", "paper"])
def test_an_untrained_network_is_near_fourier_upsampling(size: str, upsampler: str) -> None:
    """Closer than Fourier interpolation is to the truth; otherwise training would begin by unlearning noise."""
    torch.manual_seed(0)
    x = objects(2, 16)
    difference = iconet(size, 2, upsampler=upsampler)(x) - fourier_image_upsample(x, 2)
    assert float(difference.detach().abs().mean()) < 0.02


@pytest.mark.parametrize("order", ["serial", "parallel"])
def test_the_super_resolution_branch_reads_the_reconstruction_when_serial(order: str) -> None:
    network, x = tiny(order=order), image(1, 1, 6, 6)
    (stage,) = network.stages
    silence(stage.rec_head, offset=10.0)
    silence(stage.sr_head)
    rec_input, sr_input = inputs_of(stage.rec_branch), inputs_of(stage.sr_branch)
    out = network(x, return_stages=True)
    source = x + 1.0 if order == "serial" else x
    assert torch.equal(rec_input[0], x)
    assert torch.equal(sr_input[0], source)
    assert torch.allclose(out.reconstructions[0], x + 1.0)
    assert torch.allclose(out.super_resolved[0], fourier_image_upsample(source, 2), atol=1e-6)


def test_the_full_resolution_head_reads_the_interpolated_reconstruction() -> None:
    network, x = tiny(), image(1, 1, 6, 5)
    (stage,) = network.stages
    heads: list[Tensor] = []
    stage.sr_head.register_forward_pre_hook(lambda _, args: heads.extend(args))
    out = network(x, return_stages=True)
    assert torch.allclose(heads[1], fourier_image_upsample(out.reconstructions[0], 2))


def test_the_full_resolution_head_puts_features_on_the_four_samples_of_their_place() -> None:
    """With one convolution after them, a coarse sample reaches its 2x2 fine ones and their neighbours, no other."""
    torch.manual_seed(0)
    head, skip = FullResolutionHead(4, 1, width=6, num_layers=2).double(), torch.ones(1, 1, 16, 20).double()
    features = torch.rand(1, 8, 10, 4).double().requires_grad_()
    nn.init.constant_(head.first.bias, 100.0)  # no ReLU at zero
    (gradient,) = torch.autograd.grad(head(features, skip)[0, 0, 8, 12], features)
    reached = (gradient[0].abs().sum(dim=-1) > 0).nonzero().tolist()
    assert reached == [[3, 5], [3, 6], [4, 5], [4, 6]], "fine (8, 12) and neighbours (7..9, 11..13)"


def test_the_full_resolution_head_sees_as_far_as_its_convolutions() -> None:
    torch.manual_seed(0)
    head, features = FullResolutionHead(4, 1, width=6, num_layers=5).double(), torch.zeros(1, 20, 20, 4).double()
    flat = torch.ones(1, 1, 40, 40).double()
    point = flat.clone()
    point[0, 0, 20, 20] += 1
    moved = ((head(features, point) - head(features, flat))[0, 0] != 0).nonzero()
    assert moved.min(dim=0).values.tolist() == [15, 15] and moved.max(dim=0).values.tolist() == [25, 25]


def test_each_stage_reads_the_super_resolved_image_of_the_stage_before() -> None:
    network, x = tiny(8), image(1, 1, 3, 4)
    seen = [inputs_of(stage) for stage in network.stages]
    out = network(x, return_stages=True)
    assert [torch.equal(s[0], e) for s, e in zip(seen, [x, *out.super_resolved[:-1]], strict=True)] == [True] * 3


def test_the_fusion_is_added_to_the_features_before_the_upsampler() -> None:
    network, x = tiny(), image(1, 1, 5, 6)
    (stage,) = network.stages
    features: dict[str, Tensor] = {}
    for name in ("rec_branch", "sr_branch", "fusion"):
        stage.get_submodule(name).register_forward_hook(lambda _, args, out, name=name: features.update({name: out}))
    fusion_inputs: list[Tensor] = []
    stage.fusion.register_forward_pre_hook(lambda _, args: fusion_inputs.extend(args))
    head = inputs_of(stage.sr_head)
    network(x)
    assert torch.equal(head[0], features["sr_branch"] + features["fusion"])
    assert torch.equal(fusion_inputs[0], features["sr_branch"])
    assert torch.equal(fusion_inputs[1], features["rec_branch"])


def test_without_a_reconstruction_branch_there_is_none() -> None:
    network, x = tiny(4, reconstruction=False), image(1, 1, 4, 5)
    assert not [name for name, _ in network.named_parameters() if "rec" in name or "fusion" in name]
    out = network(x, return_stages=True)
    assert out.reconstructions == [] and len(out.super_resolved) == 2


def test_without_fusion_there_are_both_branches_and_no_fusion() -> None:
    network = tiny(fusion=False)
    names = [name for name, _ in network.named_parameters()]
    assert not [name for name in names if "fusion" in name] and [name for name in names if "rec_branch" in name]
    assert len(network(image(1, 1, 4, 5), return_stages=True).reconstructions) == 1


def test_shared_stages_have_the_parameters_of_one_stage_and_run_it_again() -> None:
    shared, apart, x = tiny(4, share_stages=True), tiny(4), image(1, 1, 4, 5)
    assert count(shared) == count(tiny(2)) and count(apart) == 2 * count(tiny(2))
    for stage in apart.stages:
        stage.load_state_dict(shared.stages[0].state_dict())
    both = [network(x, return_stages=True) for network in (shared, apart)]
    for a, b in zip(*(out.reconstructions + out.super_resolved for out in both), strict=True):
        assert torch.equal(a, b)


# ------------------------------------------------------------------------------------------------------- parameters


@pytest.mark.parametrize(
    ("size", "scale", "parameters"),
    [
        ("small", 2, 295_186),
        ("small", 4, 590_372),
        ("paper", 2, 1_922_006),
        ("paper", 4, 3_844_012),
    ],
)
def test_the_named_sizes_have_these_many_parameters(size: str, scale: int, parameters: int) -> None:
    assert count(iconet(size, scale)) == parameters


def test_the_paper_size_has_the_width_and_depth_of_the_paper() -> None:
    (stage,) = iconet("paper").stages
    for branch in (stage.rec_branch, stage.sr_branch):
        assert branch.head.out_channels == 96 and len(branch.body) == 7
        assert branch.body[0].vmb.ss2d.A_log.shape == (4, 192, 16)
        assert branch.body[0].vmb.ss2d.dt_weight.shape == (4, 192, 6)


def test_arguments_override_those_of_a_named_size() -> None:
    assert len(iconet("small", num_blocks=2).stages[0].sr_branch.body) == 2
    assert NETWORK_SIZES["small"].num_blocks == 4


@pytest.mark.parametrize("share_stages", [False, True])
def test_weights_saved_and_loaded_give_the_same_result(share_stages: bool) -> None:
    network, other, x = tiny(4, 0, share_stages=share_stages), tiny(4, 1, share_stages=share_stages), image(1, 1, 6, 5)
    assert not torch.equal(network(x), other(x))
    load_through_file(network, other)
    assert torch.equal(network(x), other(x))


def test_the_same_seed_and_input_give_the_same_bytes() -> None:
    x = image(2, 1, 12, 11)
    first, second, again = (tiny(4, seed)(x) for seed in (3, 3, 4))
    assert torch.equal(first, second) and not torch.equal(first, again)
    network = tiny(4)
    assert torch.equal(network(x), network(x))


# -------------------------------------------------------------------------------------------------------- gradients

VARIANTS: dict[str, dict[str, Any]] = {
    "small-x2": {"scale": 2},
    "small-x4": {"scale": 4},
    "paper-x2": {"size": "paper", "num_blocks": 2},
    "paper-x4": {"size": "paper", "scale": 4, "num_blocks": 1},
    "pixelshuffle": {"upsampler": "pixelshuffle"},
    "parallel": {"scale": 4, "order": "parallel", "num_blocks": 1},
    "no fusion": {"scale": 4, "fusion": False, "num_blocks": 1},
    "no reconstruction": {"scale": 4, "reconstruction": False, "num_blocks": 1},
    "shared": {"scale": 4, "share_stages": True, "num_blocks": 1},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_parameter_learns(variant: str) -> None:
    torch.manual_seed(1)  # the ReLU of a channel attention can be dead at the start; with this seed, none is
    network = iconet(**VARIANTS[variant])
    label = objects(3, 8 * network.scale)
    loss = MultiStageL1Loss()(network(truncate(label, (8, 8)), return_stages=True), label)
    loss.backward()
    still = [name for name, p in network.named_parameters() if p.grad is None or not bool(p.grad.abs().max() > 0)]
    assert still == []
    assert all(bool(p.grad.isfinite().all()) for p in network.parameters())


def test_a_few_steps_of_training_lower_the_loss() -> None:
    network, loss_function = tiny(), MultiStageL1Loss()
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    label = objects(4, 24)
    x, losses = truncate(label, (12, 12)), []
    for _ in range(30):
        optimizer.zero_grad()
        loss = loss_function(network(x, return_stages=True), label)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.9 * losses[0]  # the first is that of Fourier upsampling


def test_the_first_reconstruction_has_something_to_learn() -> None:
    label = objects(2, 32)
    low = truncate(label, (16, 16))
    assert float((smooth_truncate(label, (16, 16)) - low).abs().mean()) > 1e-3


# ------------------------------------------------------------------------------------------------ kernels and dtypes


def test_the_network_does_not_depend_on_the_back_end() -> None:
    network, x = tiny(4).double(), image(1, 1, 5, 6).double()
    with use_backend("reference"):
        expected = network(x)
    with use_backend("torch"):
        assert torch.allclose(network(x), expected, atol=1e-9)


@pytest.mark.skipif(native.load() is None, reason=f"NATIVE KERNELS NOT TESTED: {native.reason()}")
def test_the_native_kernels_give_the_result_of_plain_torch() -> None:
    network, x = tiny(2), image(2, 1, 9, 10)
    results = []
    for name in ("torch", "native"):
        with use_backend(name), torch.no_grad():
            results.append(network(x))
    assert torch.allclose(*results, atol=1e-4)


def test_single_precision_agrees_with_double() -> None:
    network, x = tiny(2), image(1, 1, 8, 9)
    single = network(x)
    assert torch.allclose(single.double(), network.double()(x.double()), atol=1e-4)


def test_mixed_precision_stays_near_single_and_learns() -> None:
    network, x = tiny(4), objects(2, 8)
    with torch.autocast("cpu", torch.bfloat16):
        out = network(x)
    assert float((out.float() - network(x)).detach().abs().max()) < 0.05
    out.float().square().mean().backward()
    grads = [p.grad for p in network.stages[0].sr_branch.parameters()]
    assert all(bool(g.isfinite().all()) and bool(g.abs().max() > 0) for g in grads)


@pytest.mark.skipif(native.load() is None, reason=f"NATIVE KERNELS NOT TESTED: {native.reason()}")
def test_the_network_is_captured_by_torch_compile_in_one_graph() -> None:
    network, x = tiny(2), image(1, 1, 8, 9)
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
    assert torch.allclose(compiled(x), network(x), atol=1e-5)
    compiled(x).sum().backward()
    got = [p.grad.clone() for p in network.parameters() if p.grad is not None]
    network.zero_grad()
    network(x).sum().backward()
    assert len(got) == len(list(network.parameters()))
    assert all(torch.allclose(a, p.grad, atol=1e-4) for a, p in zip(got, network.parameters(), strict=True))
