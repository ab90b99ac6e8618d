"""The training inferer: single precision out, and data consistency only with what was measured."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from bundle.networks import ICONet, build_network
from bundle.physics import restore_magnitude
from bundle.training.inferers import StageInferer

NETWORKS = {
    "residual_sr": lambda: build_network("residual_sr", features=16, blocks=2),
    "iconet": lambda: ICONet(scale=2, features=16, num_blocks=1, d_state=2),
}


def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    return NETWORKS[name]()


def image(count: int = 2) -> Tensor:
    return torch.rand(count, 1, 12, 14, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("consistency", [False, True])
def test_bfloat16_gives_single_precision_close_to_its_own_and_finite_gradients(name, consistency):
    x, gradients, images = image(), [], []
    for bf16 in (False, True):
        model = network(name)
        out = StageInferer(data_consistency=consistency, bf16=bf16)(x, model)
        images.append([*out.reconstructions, *out.super_resolved])
        sum(i.square().mean() for i in images[-1]).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert len(images[0]) == len(images[1]) and all(i.dtype == torch.float32 for i in images[1])
    for exact, rough in zip(*images, strict=True):
        assert not torch.equal(exact, rough)
        assert float((exact - rough).norm()) < 0.01 * float(exact.norm())
    assert gradients[1].dtype == torch.float32 and bool(gradients[1].isfinite().all())
    assert float((gradients[0] - gradients[1]).norm()) < 0.05 * float(gradients[0].norm())


def test_without_stages_the_image_is_single_precision_too():
    out = StageInferer(return_stages=False, bf16=True)(image(), network("residual_sr"))
    assert isinstance(out, Tensor) and out.dtype == torch.float32


def test_inputs_that_are_not_as_measured_keep_the_image_of_the_network():
    x, model = image(3), network("residual_sr")
    measured = torch.tensor([True, False, True])
    alone, last = StageInferer(data_consistency=True)(x, model, measured=measured).super_resolved
    restored = restore_magnitude(alone, x)
    assert torch.equal(last[1], alone[1]) and not torch.allclose(restored[1], alone[1])
    assert torch.equal(last[::2], restored[::2])
    assert torch.equal(StageInferer(data_consistency=True)(x, model).super_resolved[-1], restored)


def test_the_mask_of_measured_inputs_is_of_no_account_without_data_consistency():
    x, model = image(), network("residual_sr")
    (only,) = StageInferer()(x, model, measured=torch.tensor([True, False])).super_resolved
    assert torch.equal(only, model(x))
