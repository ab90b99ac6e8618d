"""Each baseline against its equation, written out with plain operations."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import conv2d, fold, normalize, pad, unfold

from bundle.networks import build_network
from bundle.networks.baselines.divanet import DirectionalVarianceAttention, ResidualBlock, TwoBanks
from bundle.networks.baselines.mambair import ChannelAttention, StateSpaceBlock
from bundle.networks.baselines.swinir import WindowBlock
from bundle.networks.baselines.t2net import T2Net, TaskTransformer


def normals(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ------------------------------------------------------------------------------------------------------------ T2Net


def literal_transfer(sr: Tensor, rec: Tensor) -> tuple[Tensor, Tensor]:
    """Hard attention as in T2Net's code: unfold, normalise, product, maximum, gather, fold, a ninth."""
    patches = [normalize(unfold(x, 3, padding=1), dim=1) for x in (sr, rec)]
    score, index = (patches[1].transpose(1, 2) @ patches[0]).max(dim=1)
    gathered = unfold(rec, 3, padding=1).gather(2, index[:, None].expand(-1, 9 * rec.shape[1], -1))
    size = (sr.shape[2], sr.shape[3])
    return fold(gathered, size, 3, padding=1) / 9, score.view(sr.shape[0], 1, *size)


def test_the_task_transformer_is_that_of_the_public_code_inside_the_border() -> None:
    torch.manual_seed(0)
    block, sr, rec = TaskTransformer(5).double(), normals(2, 5, 7, 6), normals(2, 5, 7, 6, seed=1)
    transferred, score = literal_transfer(sr, rec)
    merged = conv2d(torch.cat([sr, transferred], dim=1), block.merge.weight, block.merge.bias)
    inside = (..., slice(1, -1), slice(1, -1))
    assert torch.allclose(block(sr, rec)[inside], (sr + merged * score)[inside])


def test_the_reconstruction_of_t2net_does_not_depend_on_the_other_branch() -> None:
    torch.manual_seed(0)
    network, x = T2Net(num_blocks=2, features=4), torch.rand(1, 1, 6, 7)
    (before,) = network(x, return_stages=True).reconstructions
    torch.nn.init.zeros_(network.sr_head.weight)
    out = network(x, return_stages=True)
    assert torch.equal(out.reconstructions[0], before)


# ---------------------------------------------------------------------------------------------------------- DiVANet


def test_the_attention_is_made_of_the_variances_of_rows_and_columns() -> None:
    torch.manual_seed(0)
    block, x = DirectionalVarianceAttention(4).double(), normals(2, 4, 5, 6)
    rows = ((x - x.mean(3, keepdim=True)) ** 2).sum(3, keepdim=True) / 6
    columns = ((x - x.mean(2, keepdim=True)) ** 2).sum(2, keepdim=True) / 5
    gates = [torch.sigmoid(conv2d(v, c.weight, c.bias)) for v, c in ((rows, block.rows), (columns, block.columns))]
    assert torch.allclose(block(x), x * gates[0] * gates[1])


def test_both_banks_and_the_input_make_the_output_of_a_group() -> None:
    torch.manual_seed(0)
    steps = [ResidualBlock(8).double() for _ in range(3)]
    group, x = TwoBanks(8, list(steps)).double(), normals(1, 8, 4, 5)
    features, attentions = [x], []
    for step in steps:
        body = step.body(features[-1])
        features.append(features[-1] + body)
        attentions.append(step.attention(body))
    fused = group.fuse_attention(torch.cat(attentions, 1))
    out, attention = group(x)
    assert torch.allclose(out, x + group.fuse_features(torch.cat(features, 1)) + fused)
    assert torch.allclose(attention, fused) and bool((attention >= 0).all())


# ----------------------------------------------------------------------------------------------------------- SwinIR


def reach(block: WindowBlock, pixel: tuple[int, int], size: int = 16) -> Tensor:
    """Which pixels of the output depend on this pixel of the input, (size, size)."""
    x = normals(1, size, size, 6)
    moved = x.clone()
    moved[0, pixel[0], pixel[1], 0] += 1.0  # one channel: layer norm would cancel the same change in all
    return ((block(x) - block(moved)).abs() > 1e-9).any(dim=-1)[0]


@pytest.mark.parametrize(
    ("shift", "pixel", "rows", "columns"),
    [
        (0, (3, 10), (0, 8), (8, 16)),
        (4, (6, 9), (4, 12), (4, 12)),
        (4, (0, 9), (0, 4), (4, 12)),  # the mask splits the window that wraps around the border
        (4, (15, 15), (12, 16), (12, 16)),
    ],
)
def test_a_pixel_reaches_its_window_and_not_across_the_border(
    shift: int, pixel: tuple[int, int], rows: tuple[int, int], columns: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    block = WindowBlock(6, num_heads=2, window_size=8, shift=shift, mlp_ratio=2.0).double()
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    expected = torch.zeros(16, 16, dtype=torch.bool)
    expected[slice(*rows), slice(*columns)] = True
    assert torch.equal(reach(block, pixel), expected)


def test_an_image_is_padded_to_whole_windows_by_replication() -> None:
    torch.manual_seed(0)
    network = build_network("swinir_light", features=12, depths=(2,), num_heads=2)
    x = torch.rand(1, 1, 9, 13)
    whole = network(pad(x, (0, 3, 0, 7), mode="replicate"))
    assert whole.shape == (1, 1, 32, 32)
    assert torch.equal(network(x), whole[..., :18, :26])


# ---------------------------------------------------------------------------------------------------------- MambaIR


def test_the_state_space_block_scales_both_of_its_skips() -> None:
    torch.manual_seed(0)
    block, x = StateSpaceBlock(6, d_state=2, expand=1.5).double(), normals(2, 5, 4, 6)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    y = block.scale1 * x + (block.vmb(x) - x)
    convolved = block.convolutions(block.norm(y).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    assert torch.allclose(block(x), block.scale2 * y + convolved)


def test_the_channel_attention_weighs_channels_by_their_means() -> None:
    torch.manual_seed(0)
    block, x = ChannelAttention(6, reduction=3).double(), normals(2, 6, 3, 4)
    mean = x.flatten(2).sum(2) / 12
    hidden = (mean @ block.squeeze.weight[:, :, 0, 0].T + block.squeeze.bias).clamp(min=0)
    weight = 1 / (1 + torch.exp(-(hidden @ block.excite.weight[:, :, 0, 0].T + block.excite.bias)))
    assert torch.allclose(block(x), x * weight[:, :, None, None])
