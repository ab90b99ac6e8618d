"""The residual network: its output scales with its input."""

from __future__ import annotations

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from state_files import load_through_file
from torch import Tensor, nn

from bundle.networks import ICONetOutput, build_network
from bundle.networks.convolution import Conv3x3
from bundle.networks.residual_sr import ResidualSR
from bundle.networks.upsample import FourierUpsample, fourier_image_upsample


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def small(scale: int = 2, seed: int = 0, loud: bool = True, **kwargs: int) -> ResidualSR:
    """A few blocks; `loud`, with a residual that is not nearly zero as at the start."""
    torch.manual_seed(seed)
    network = ResidualSR(scale, **{"features": 8, "blocks": 3, **kwargs})
    if loud:
        nn.init.kaiming_normal_(network.last.weight)
    return network


@settings(max_examples=30, deadline=None)
@given(factor=st.floats(0.1, 10.0), size=st.tuples(st.integers(1, 17), st.integers(1, 17)), seed=st.integers(0, 99))
def test_a_brighter_input_gives_the_same_result_as_much_brighter(factor, size, seed):
    network, x = small(seed=seed), noise(1, 1, *size, seed=seed)
    with torch.no_grad():
        expected = factor * network(x)
        assert float((network(factor * x) - expected).abs().max()) <= 1e-5 * float(expected.abs().max())


@pytest.mark.parametrize("factor", [0.1, 0.37, 10.0])
def test_so_does_the_whole_network(factor):
    torch.manual_seed(0)
    network, x = build_network("residual_sr"), noise(1, 1, 24, 20)
    with torch.no_grad():
        expected = factor * network(x)
        assert float((network(factor * x) - expected).abs().max()) <= 1e-5 * float(expected.abs().max())


def test_a_dark_image_stays_dark():
    assert bool((small()(torch.zeros(2, 1, 7, 9)) == 0).all())


@pytest.mark.parametrize("scale", [2, 4, 8])
@pytest.mark.parametrize("size", [(1, 1), (7, 1), (5, 12)])
def test_any_matrix_is_super_resolved_to_scale_times_its_size(scale, size):
    network, x = small(scale, in_channels=2), noise(3, 2, *size)
    out = network(x)
    assert out.shape == (3, 2, scale * size[0], scale * size[1]) and bool(out.isfinite().all())
    stages = network(x, return_stages=True)
    assert isinstance(stages, ICONetOutput) and stages.reconstructions == []
    assert len(stages.super_resolved) == 1 and torch.equal(stages.super_resolved[0], out)


def test_nothing_in_it_depends_on_absolute_brightness():
    network = build_network("residual_sr")
    assert not [name for name, _ in network.named_parameters() if not name.endswith("weight")]
    assert {type(m) for m in network.modules() if not list(m.children())} == {Conv3x3, FourierUpsample}


def test_the_maps_of_all_blocks_have_their_channels_last() -> None:
    network, last = build_network("residual_sr"), []
    for block in network.body:
        block.register_forward_hook(
            lambda _m, _i, out: last.append(out.is_contiguous(memory_format=torch.channels_last))
        )
    network(torch.rand(2, 1, 12, 10))
    assert len(last) == 16 and all(last)
    assert all(m.bias is None for m in network.modules() if isinstance(m, nn.Conv2d))
    assert not list(network.buffers())


def test_every_parameter_learns():
    network, x = small(loud=False), noise(2, 1, 9, 10)
    (network(x) - noise(2, 1, 18, 20, seed=1)).abs().mean().backward()
    assert all(bool(p.grad.isfinite().all()) and float(p.grad.abs().max()) > 0 for p in network.parameters())


def test_the_docstring_gives_the_number_of_parameters():
    count = sum(p.numel() for p in build_network("residual_sr", 2).parameters())
    (said,) = re.findall(r"([\d,]+) parameters", ResidualSR.__doc__ or "")
    assert int(said.replace(",", "")) == count


@pytest.mark.parametrize("scale", [2, 4])
def test_an_untrained_network_is_near_zero_filled_interpolation(scale):
    torch.manual_seed(0)
    network, x = build_network("residual_sr", scale), noise(1, 1, 24, 24)
    with torch.no_grad():
        off = network(x) - fourier_image_upsample(x, scale)
    assert 0 < float(off.square().mean().sqrt()) < 0.01


def test_weights_are_plain_float32_and_give_the_same_result_when_loaded():
    network, other, x = small(seed=0), small(seed=1), noise(1, 1, 9, 10)
    assert all(t.dtype == torch.float32 for t in network.state_dict().values())
    assert not torch.equal(network(x), other(x))
    load_through_file(network, other)
    assert torch.equal(network(x), other(x))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_scripted_network_is_the_network():
    network = small().double()
    scripted = torch.jit.script(network)
    with torch.no_grad():
        for size in ((9, 6), (1, 7)):
            x = noise(1, 1, *size).double()
            assert torch.allclose(scripted(x), network(x), atol=1e-9)


@pytest.mark.parametrize("arguments", [{"features": 0}, {"blocks": 0}])
def test_a_network_without_maps_or_blocks_is_an_error(arguments):
    with pytest.raises(ValueError, match="features and blocks must be at least 1"):
        ResidualSR(2, **arguments)
