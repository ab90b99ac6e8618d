"""Networks whose modules have been replaced, changed or watched give the same on every back end."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.utils.prune
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from bundle.networks.baselines.vdsr import VDSR
from bundle.networks.convolution import Conv3x3
from bundle.networks.fusion import SRRecFusion
from bundle.networks.heads import FullResolutionHead
from bundle.networks.residual_sr import ResidualSR
from bundle.networks.rscfl import RSCFL
from bundle.ops import native, use_backend

pytestmark = pytest.mark.skipif(native.load() is None, reason=f"NATIVE KERNELS NOT TESTED: {native.reason()}")


def normals(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def with_lively_weights(module: nn.Module) -> nn.Module:
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0.0, 0.2, generator=random)
    return module.requires_grad_(False).eval()


def on_each_back_end(run: Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
    results = []
    for name in ("native", "torch"):
        with torch.no_grad(), use_backend(name):
            results.append(run())
    return results[0], results[1]


class Fivefold(nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        return 5 * super().forward(x)


def threefold(module: nn.Module, args: object, out: Tensor) -> Tensor:
    return 3 * out


def stale_weight(layer: nn.Module) -> None:
    """The weight is made anew before each call; the attribute holds an old one."""
    torch.nn.utils.prune.l1_unstructured(layer, "weight", amount=0.5)
    layer.weight_orig.mul_(3)


HEAD_SURGERY = {
    "a hook on a convolution": lambda head: head.body[0].register_forward_hook(threefold),
    "a hook on the linear map": lambda head: head.to_fine.register_forward_hook(threefold),
    "another activation": lambda head: head.body.__setitem__(1, nn.Tanh()),
    "no activation": lambda head: head.body.__setitem__(1, nn.Identity()),
    "a larger kernel": lambda head: head.body.__setitem__(0, nn.Conv2d(16, 16, 5, padding=2)),
    "two modules for one": lambda head: head.body.__setitem__(0, nn.Sequential(Conv3x3(16, 16), nn.Sigmoid())),
    "a pruned convolution": lambda head: stale_weight(head.body[0]),
    "a pruned linear map": lambda head: stale_weight(head.to_fine),
}


@pytest.mark.parametrize("name", HEAD_SURGERY)
def test_the_head_runs_what_its_modules_say(name: str) -> None:
    head = with_lively_weights(FullResolutionHead(8, 1, 16, 4))
    features, skip = normals(1, 32, 32, 8), normals(1, 1, 64, 64)
    untouched, _ = on_each_back_end(lambda: head(features, skip))
    HEAD_SURGERY[name](head)
    own, plain = on_each_back_end(lambda: head(features, skip))
    torch.testing.assert_close(own, plain, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(own, untouched, rtol=1e-2, atol=1e-2)


def test_vdsr_runs_what_its_modules_say() -> None:
    network = VDSR(2, 1, num_layers=4, features=16)
    with_lively_weights(network)
    network.layers[3] = nn.Tanh()
    own, plain = on_each_back_end(lambda: network.estimate(normals(1, 1, 24, 24))[1])
    torch.testing.assert_close(own, plain, rtol=1e-4, atol=1e-4)


BLOCK_SURGERY = {
    "another epsilon": lambda block: setattr(block.vmb.norm, "eps", 0.5),
    "dilation": lambda block: setattr(
        block.vmb, "dwconv", nn.Conv2d(16, 16, 3, padding=2, dilation=2, groups=16).requires_grad_(False)
    ),
    "another border": lambda block: setattr(block.vmb.dwconv, "padding_mode", "reflect"),
    "a smaller kernel": lambda block: setattr(block.vmb, "dwconv", nn.Conv2d(16, 16, 1, groups=16)),
    "a norm over columns": lambda block: setattr(block.vmb, "norm", nn.LayerNorm((32, 8))),
    "a subclass": lambda block: setattr(block.vmb, "out_norm", Fivefold(16)),
    "a forward of its own": lambda block: setattr(block.crb, "forward", lambda x: 3 * x),
    "a hook": lambda block: block.vmb.in_proj.register_forward_hook(threefold),
    "a pruned layer": lambda block: stale_weight(block.vmb.in_proj),
}


@pytest.mark.parametrize("name", BLOCK_SURGERY)
def test_the_block_runs_what_its_modules_say(name: str) -> None:
    block, x = with_lively_weights(RSCFL(8)), normals(1, 32, 32, 8)
    untouched, _ = on_each_back_end(lambda: block(x))
    BLOCK_SURGERY[name](block)
    own, plain = on_each_back_end(lambda: block(x))
    torch.testing.assert_close(own, plain, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(own, untouched, rtol=1e-3, atol=1e-3)


def test_a_hook_for_all_modules_sees_those_inside_a_block() -> None:
    block, x, seen = with_lively_weights(RSCFL(8)), normals(1, 8, 8, 8), []
    with register_module_forward_hook(lambda module, args, out: seen.append(type(module))):
        on_each_back_end(lambda: block(x))
    assert seen.count(nn.LayerNorm) == 4 and seen.count(nn.Linear) == 6


def test_the_fusion_calls_maps_that_are_not_plain() -> None:
    fusion = with_lively_weights(SRRecFusion(8, match_window=2))
    a, b = normals(1, 12, 12, 8), normals(1, 12, 12, 8).flip(1)
    untouched, _ = on_each_back_end(lambda: fusion(a, b))
    fusion.sr_maps.register_forward_hook(threefold)
    with torch.no_grad():
        changed = fusion(a, b)
    with torch.enable_grad():
        torch.testing.assert_close(changed, fusion(a, b), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(changed, untouched, rtol=1e-2, atol=1e-2)


class Adapter(nn.Module):
    """Stands for another layer, of which only the call is known."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return 2 * self.layer(x)


@pytest.mark.parametrize("name", ["vmb.in_proj", "vmb.out_proj", "vmb.ss2d.x_proj", "crb.excite"])
def test_an_adapter_around_a_layer_of_a_block_takes_part_in_training_too(name: str) -> None:
    block, x = with_lively_weights(RSCFL(8)), normals(1, 8, 8, 8)
    layer = block.get_submodule(name)
    block.set_submodule(name, Adapter(layer))
    with torch.no_grad():
        adapted = block(x)
    torch.testing.assert_close(block(x.requires_grad_()), adapted, rtol=1e-4, atol=1e-4)
    block.set_submodule(name, layer)
    assert not torch.allclose(block(x), adapted, rtol=1e-3, atol=1e-3)


def test_features_that_a_hook_keeps_are_not_overwritten() -> None:
    network, x = with_lively_weights(ResidualSR(2, 1, 16, 3)), normals(1, 1, 40, 40)
    kept: list[Tensor] = []
    copies: list[Tensor] = []
    for block in network.body:
        block.register_forward_hook(lambda module, args, out: kept.append(out))
        block.register_forward_hook(lambda module, args, out: copies.append(out.clone()))
    with torch.no_grad():
        network(x)
    assert len(kept) == 3 and all(torch.equal(a, b) for a, b in zip(kept, copies, strict=True))


def test_a_replaced_residual_block_needs_no_special_arguments() -> None:
    network, x = with_lively_weights(ResidualSR(2, 1, 16, 3)), normals(1, 1, 40, 40)
    network.body[1] = nn.Identity()
    own, plain = on_each_back_end(lambda: network.estimate(x)[1])
    torch.testing.assert_close(own, plain, rtol=1e-4, atol=1e-4)
