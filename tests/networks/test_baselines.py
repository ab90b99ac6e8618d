"""The baselines: one interface with ICONet, the grid, gradients, and the parameters of their papers."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from state_files import load_through_file
from torch import Tensor, nn

from bundle.networks import NETWORKS, ICONetOutput, build_network
from bundle.networks.upsample import aligned_bicubic_upsample, fourier_image_upsample
from bundle.physics import measure_grid_shift, truncate
from bundle.training.losses import MultiStageL1Loss

BASELINES = [name for name, entry in NETWORKS.items() if entry.is_baseline]
TINY: dict[str, dict[str, Any]] = {
    "vdsr": {"num_layers": 4, "features": 8},
    "t2net": {"num_blocks": 2, "features": 8},
    "divanet": {"features": 8},
    "swinir_light": {"features": 12, "depths": (2, 1), "num_heads": 2},
    "mambair_light": {"features": 8, "depths": (2, 1), "d_state": 2},
}
UPSAMPLERS = {"bicubic": aligned_bicubic_upsample, "fourier": fourier_image_upsample}


def tiny(name: str, scale: int = 2, seed: int = 0, **kwargs: Any) -> nn.Module:
    torch.manual_seed(seed)
    return build_network(name, scale, **TINY.get(name, {}), **kwargs)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def with_skip(name: str, scale: int, method: str) -> nn.Module:
    """A baseline whose image skip (or pre-upsampling that is the skip) is ``method``, in float64."""
    return tiny(name, scale, image_skip=method).double()


def silence(network: nn.Module) -> nn.Module:
    """Make the residual zero."""
    network.last.register_forward_hook(lambda module, args, out: torch.zeros_like(out))
    return network


# -------------------------------------------------------------------------------------------------------- interface


@pytest.mark.parametrize("size", [(1, 1), (7, 1), (5, 13)])
@pytest.mark.parametrize("name", BASELINES)
def test_any_matrix_is_super_resolved_to_scale_times_its_size(name: str, size: tuple[int, int]) -> None:
    out = tiny(name)(noise(2, 1, *size))
    assert out.shape == (2, 1, 2 * size[0], 2 * size[1])
    assert bool(out.isfinite().all())


@pytest.mark.parametrize("scale", [4, 8])
@pytest.mark.parametrize("name", BASELINES)
def test_images_of_several_channels_are_super_resolved_by_other_scales(name: str, scale: int) -> None:
    assert tiny(name, scale, in_channels=2)(noise(1, 2, 3, 5)).shape == (1, 2, 3 * scale, 5 * scale)


@pytest.mark.parametrize("name", BASELINES)
def test_the_stages_are_one_image_and_the_reconstructions_of_t2net(name: str) -> None:
    network, x = tiny(name, 4), noise(2, 1, 6, 5)
    out = network(x, return_stages=True)
    assert isinstance(out, ICONetOutput)
    assert [tuple(t.shape) for t in out.reconstructions] == ([(2, 1, 6, 5)] if name == "t2net" else [])
    (super_resolved,) = out.super_resolved
    assert torch.equal(super_resolved, network(x))


@pytest.mark.parametrize("shape", [(1, 2, 8, 8), (1, 8, 8), (1, 1, 8, 8, 8)])
@pytest.mark.parametrize("name", BASELINES)
def test_other_shapes_are_an_error(name: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected slices \(B, 1, h, w\)"):
        tiny(name)(noise(*shape))


@pytest.mark.parametrize("scale", [1, 3, 16])
@pytest.mark.parametrize("name", BASELINES)
def test_other_scales_are_an_error(name: str, scale: int) -> None:
    with pytest.raises(ValueError, match=r"scale must be one of \(2, 4, 8\)"):
        build_network(name, scale)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("fmisr", {"in_channels": 0}, "in_channels must be positive"),
        ("fmisr", {"image_skip": "nearest"}, "image_skip must be one of"),
        ("vdsr", {"image_skip": "none"}, "image_skip must be one of"),
        ("vdsr", {"num_layers": 1}, "num_layers must be at least 2"),
        ("divanet", {"features": 6}, "multiple of 4"),
        ("swinir_light", {"features": 10}, "multiple of num_heads"),
    ],
)
def test_an_argument_outside_its_range_is_an_error(name: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_network(name, **arguments)


# ------------------------------------------------------------------------------------------------------------- grid


@pytest.mark.parametrize("method", UPSAMPLERS)
@pytest.mark.parametrize("name", BASELINES)
def test_without_a_residual_a_baseline_is_its_aligned_image_skip(name: str, method: str) -> None:
    network, x = silence(with_skip(name, 4, method)), noise(1, 1, 6, 7).double()
    assert torch.allclose(network(x), UPSAMPLERS[method](x, 4))


@pytest.mark.parametrize("scale", [2, 4])
@pytest.mark.parametrize("name", ["vdsr", "divanet"])
def test_the_image_skips_of_the_papers_do_not_move_the_image(name: str, scale: int) -> None:
    network = silence(tiny(name, scale).double())
    assert measure_grid_shift(network, scale) == pytest.approx((0, 0), abs=1e-3)


@pytest.mark.parametrize("name", ["srcnn", "vdsr"])
def test_the_image_that_is_refined_at_full_size_has_not_moved(name: str) -> None:
    network, seen = tiny(name, 4).double(), []
    network.layers.register_forward_pre_hook(lambda module, args: seen.append(args[0]))

    def upsample(image: Tensor) -> Tensor:
        network(image)
        return seen[-1]

    assert measure_grid_shift(upsample, 4) == pytest.approx((0, 0), abs=1e-3)


@pytest.mark.parametrize("name", ["srcnn", "fmisr", "t2net", "swinir_light", "mambair_light"])
def test_baselines_that_were_published_without_an_image_skip_have_none(name: str) -> None:
    assert bool((silence(tiny(name))(noise(1, 1, 6, 7)) == 0).all())


@pytest.mark.parametrize("name", BASELINES)
def test_with_an_image_skip_an_untrained_baseline_is_near_it(name: str) -> None:
    # interpolation errors are about 0.015 of the range: training would first have to unlearn a start far above them
    torch.manual_seed(0)
    network, x = build_network(name, 2, image_skip="fourier"), noise(1, 1, 24, 24)
    with torch.no_grad():
        out = network(x, return_stages=True)
    assert float((out.super_resolved[0] - fourier_image_upsample(x, 2)).square().mean().sqrt()) < 0.01
    assert all(float((image - x).square().mean().sqrt()) < 0.01 for image in out.reconstructions)


@pytest.mark.parametrize(("skip", "read"), [("none", "bicubic"), ("fourier", "fourier")])
def test_srcnn_refines_the_interpolation_that_its_result_is_added_to(skip: str, read: str) -> None:
    network, x, seen = build_network("srcnn", 2, image_skip=skip), noise(1, 1, 8, 9), []
    network.layers.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    network(x)
    assert torch.equal(seen[0], UPSAMPLERS[read](x, 2))


# ------------------------------------------------------------------------------------------------------- parameters

COUNTS = [  # name, scale, channels, ours, millions as published or as counted in public code
    ("srcnn", 2, 1, 57_281, 0.057281),
    ("vdsr", 4, 1, 665_921, 0.665921),
    ("t2net", 2, 1, 1_399_426, 1.473 - 0.073856),  # its code never calls two of its convolutions
    ("t2net", 4, 1, 1_547_138, 1.621 - 0.073856),
    ("divanet", 2, 3, 902_364, 0.902),
    ("divanet", 4, 3, 939_740, 0.940),
    ("divanet", 2, 1, 900_056, 0.902),
    ("swinir_light", 2, 1, 904_744, 0.905),
    ("swinir_light", 2, 3, 910_152, 0.910),
    ("swinir_light", 4, 3, 929_628, 0.930),
    ("mambair_light", 2, 3, 905_016, 0.905),
    ("mambair_light", 2, 1, 899_608, 0.905),
]


@pytest.mark.parametrize(("name", "scale", "channels", "ours", "published"), COUNTS)
def test_the_baselines_have_the_parameters_of_their_papers(
    name: str, scale: int, channels: int, ours: int, published: float
) -> None:
    network = build_network(name, scale, in_channels=channels)
    assert sum(p.numel() for p in network.parameters()) == ours
    assert ours == pytest.approx(1e6 * published, rel=0.01)


def test_the_first_form_of_srcnn_is_smaller() -> None:
    network = build_network("srcnn", kernel_sizes=(9, 1, 5))
    assert sum(p.numel() for p in network.parameters()) == 8_129


@pytest.mark.parametrize("name", BASELINES)
def test_weights_are_plain_float32_and_give_the_same_result_when_loaded_or_copied(name: str) -> None:
    network, other, x = tiny(name, seed=0), tiny(name, seed=1), noise(1, 1, 9, 10)
    assert all(t.dtype == torch.float32 for t in network.state_dict().values())
    assert not torch.equal(network(x), other(x))
    load_through_file(network, other)
    assert torch.equal(network(x), other(x))
    assert torch.equal(network(x), copy.deepcopy(network)(x))


# --------------------------------------------------------------------------------------------------------- learning


@pytest.mark.parametrize("name", BASELINES)
def test_every_parameter_of_the_full_network_learns(name: str) -> None:
    torch.manual_seed(0)
    network, label = build_network(name), noise(2, 1, 18, 20)
    low = truncate(label, (9, 10))
    MultiStageL1Loss(alpha=0.8)(network(low, return_stages=True), label).backward()
    still = [n for n, p in network.named_parameters() if p.grad is None or not bool(p.grad.abs().max() > 0)]
    assert still == []
    assert all(bool(p.grad.isfinite().all()) for p in network.parameters())


@pytest.mark.parametrize("name", BASELINES)
def test_a_few_steps_of_training_lower_the_loss(name: str) -> None:
    network, loss_function = tiny(name), MultiStageL1Loss(alpha=0.8)
    optimizer = torch.optim.Adam(network.parameters(), 2e-3)
    rows = torch.linspace(0, 3, 24)
    label = (1 + torch.sin(rows[:, None] * rows[None, :] + torch.arange(3.0)[:, None, None]))[:, None] / 2
    low, losses = truncate(label, (12, 12)), []
    for _ in range(30):
        optimizer.zero_grad()
        loss = loss_function(network(low, return_stages=True), label)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.95 * losses[0]


# ----------------------------------------------------------------------------------------------------------- export


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", ["srcnn", "vdsr", "fmisr", "t2net", "mambair_light"])
def test_a_scripted_baseline_is_the_peer(name: str) -> None:
    network = tiny(name).double()
    scripted = torch.jit.script(network)
    assert scripted.scale == 2
    with torch.no_grad():
        for size in ((9, 6), (1, 7)):
            x = noise(1, 1, *size).double()
            assert torch.allclose(scripted(x), network(x), atol=1e-9)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("name", ["divanet", "swinir_light"])
def test_a_traced_baseline_is_the_baseline_at_the_size_it_was_traced_with(name: str) -> None:
    network, x = tiny(name).double().eval(), noise(1, 1, 9, 17).double()
    with torch.no_grad():
        traced = torch.jit.trace(network, x, check_trace=False)
        other = noise(1, 1, 9, 17, seed=1).double()
        assert torch.allclose(traced(other), network(other), atol=1e-9)
