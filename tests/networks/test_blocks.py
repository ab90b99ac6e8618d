"""Each block against its equation, written out with plain operations, in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import fold, unfold

from bundle.networks import fusion
from bundle.networks.fusion import SemanticAttentionBlock, SRRecFusion, _blocks
from bundle.networks.rscfl import RSCFL, ChannelRankingBlock
from bundle.networks.ss2d import DT_MAX, DT_MIN, SS2D
from bundle.networks.vision_mamba import VisionMambaBlock
from bundle.ops import patch_match
from bundle.ops.scan.reference import selective_scan_2d_reference

SHAPE = (2, 5, 4, 8)  # B, H, W, features


def normals(shape: tuple[int, ...] = SHAPE, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def make(kind: type[nn.Module], *args, **kwargs) -> nn.Module:
    """A block in float64 whose parameters are all random (a fresh layer norm or ``D`` of ones would hide mistakes)."""
    torch.manual_seed(0)
    block = kind(*args, **kwargs).double()
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return block


# ------------------------------------------------------------------------------------------------- literal equations


def silu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


def sigmoid(x: Tensor) -> Tensor:
    return 1 / (1 + torch.exp(-x))


def layer_norm(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    mean = x.mean(-1, keepdim=True)
    variance = (x - mean).square().mean(-1, keepdim=True)
    return (x - mean) / (variance + 1e-5).sqrt() * norm.weight + norm.bias


def depthwise(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """3x3 cross-correlation of each channel with zeros outside, channels last."""
    _, height, width, channels = x.shape
    padded = torch.zeros(x.shape[0], height + 2, width + 2, channels, dtype=x.dtype)
    padded[:, 1:-1, 1:-1] = x
    taps = (padded[:, i : i + height, j : j + width] * conv.weight[:, 0, i, j] for i in range(3) for j in range(3))
    return sum(taps) + conv.bias


def literal_ss2d(ss2d: SS2D, x: Tensor) -> Tensor:
    proj = (x @ ss2d.x_proj.weight.T).reshape(*x.shape[:3], 4, -1)
    return selective_scan_2d_reference(x, proj, ss2d.dt_weight, ss2d.dt_bias, -torch.exp(ss2d.A_log), ss2d.D)


def literal_vmb(block: VisionMambaBlock, x: Tensor) -> Tensor:
    normed = layer_norm(block.norm, x)
    to_path, to_gate = block.in_proj.weight.chunk(2)
    scanned = literal_ss2d(block.ss2d, silu(depthwise(block.dwconv, normed @ to_path.T)))
    return x + (silu(normed @ to_gate.T) * layer_norm(block.out_norm, scanned)) @ block.out_proj.weight.T


def literal_crb(block: ChannelRankingBlock, x: Tensor) -> Tensor:
    mean = x.sum(dim=(1, 2)) / (x.shape[1] * x.shape[2])
    hidden = (mean @ block.squeeze.weight[:, :, 0, 0].T + block.squeeze.bias).clamp(min=0)
    weight = sigmoid(hidden @ block.excite.weight[:, :, 0, 0].T + block.excite.bias)
    return x * weight[:, None, None]


def patches(x: Tensor) -> Tensor:
    return unfold(x.permute(0, 3, 1, 2), 3, padding=1)


def literal_sab(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Equations 4 to 6: cosine of all pairs of patches, argmax, gather, fold; weighted by the maximum."""
    q, k, v = patches(query), patches(key), patches(value)
    relevance = (q / q.norm(dim=1, keepdim=True)).transpose(1, 2) @ (k / k.norm(dim=1, keepdim=True))
    score, index = relevance.max(dim=2)
    gathered = torch.stack([v[b][:, index[b]] for b in range(v.shape[0])])
    size = value.shape[1:3]
    image = fold(gathered, size, 3, padding=1) / fold(torch.ones_like(v), size, 3, padding=1)
    return image.permute(0, 2, 3, 1) * score.view(*query.shape[:3], 1)


def literal_fusion(block: SRRecFusion, f_sr: Tensor, f_rec: Tensor) -> Tensor:
    """Equation 7 with its confidences."""
    matched = block.widths[0]

    def maps(layer: nn.Linear, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        out = x @ layer.weight.T + layer.bias
        return out[..., :matched], out[..., matched : 2 * matched], out[..., 2 * matched :]

    query_sr, key_sr, value_sr = maps(block.sr_maps, f_sr)
    query_rec, key_rec, value_rec = maps(block.rec_maps, f_rec)
    f_sab_sr, f_sab_rec = literal_sab(query_sr, key_rec, value_rec), literal_sab(query_rec, key_sr, value_sr)
    both = torch.cat([f_sab_sr, f_sab_rec], dim=-1)
    sac = sigmoid(both @ block.confidence.weight.T + block.confidence.bias)
    half = sac.shape[-1] // 2
    return f_sab_sr * sac[..., :half] + f_sab_rec * sac[..., half:]


def literal_block_sab(query: Tensor, key: Tensor, value: Tensor, stride: int) -> Tensor:
    """Attention between blocks of stride x stride pixels, each block written out as one long pixel."""

    def blocks(x: Tensor) -> Tensor:
        rows = torch.arange(-(-x.shape[1] // stride) * stride).clamp(max=x.shape[1] - 1)
        cols = torch.arange(-(-x.shape[2] // stride) * stride).clamp(max=x.shape[2] - 1)
        x = x[:, rows][:, :, cols]
        return torch.cat([x[:, i::stride, j::stride] for i in range(stride) for j in range(stride)], dim=-1)

    long = literal_sab(blocks(query), blocks(key), blocks(value))
    out = long.new_zeros(long.shape[0], stride * long.shape[1], stride * long.shape[2], value.shape[-1])
    for n, part in enumerate(long.chunk(stride * stride, dim=-1)):
        out[:, n // stride :: stride, n % stride :: stride] = part
    return out[:, : query.shape[1], : query.shape[2]]


# ----------------------------------------------------------------------------------------------------------- blocks


def test_the_scan_layer_is_its_projection_and_the_recurrence() -> None:
    layer = make(SS2D, 6, d_state=3, dt_rank=2)
    x = normals((2, 5, 4, 6))
    assert torch.allclose(layer(x), literal_ss2d(layer, x))


@pytest.mark.parametrize(("expand", "d_state"), [(1.0, 1), (1.5, 4), (2.0, 2)])
def test_the_vision_mamba_block_is_its_equation(expand: float, d_state: int) -> None:
    block, x = make(VisionMambaBlock, 8, d_state=d_state, expand=expand), normals()
    assert torch.allclose(block(x), literal_vmb(block, x))


@pytest.mark.parametrize("features", [8, 96])
def test_the_channel_ranking_block_is_its_equation(features: int) -> None:
    block, x = make(ChannelRankingBlock, features), normals((2, 5, 4, features))
    assert torch.allclose(block(x), literal_crb(block, x))


def test_the_channel_weights_lie_between_zero_and_one_and_are_the_same_for_all_pixels() -> None:
    block, x = make(ChannelRankingBlock, 8), normals()
    weight = block(x) / x
    assert bool((weight > 0).all() and (weight < 1).all())
    assert torch.allclose(weight, weight[:, :1, :1].expand_as(weight))


def test_the_feature_module_is_both_blocks_in_one_residual() -> None:
    block, x = make(RSCFL, 8, d_state=2), normals()
    assert torch.allclose(block(x), x + literal_crb(block.crb, literal_vmb(block.vmb, x)))


def test_the_semantic_attention_is_equations_4_to_6() -> None:
    query, key, value = normals(seed=1), normals(seed=2), normals((*SHAPE[:3], 3), seed=3)
    assert torch.allclose(SemanticAttentionBlock()(query, key, value), literal_sab(query, key, value))


@pytest.mark.parametrize("match_features", [None, 3])
def test_the_fusion_is_equation_7(match_features: int | None) -> None:
    block = make(SRRecFusion, 8, match_features)
    f_sr, f_rec = normals(seed=1), normals(seed=2)
    assert torch.allclose(block(f_sr, f_rec), literal_fusion(block, f_sr, f_rec))


@pytest.mark.parametrize("size", [(4, 6), (5, 7), (1, 2)])
def test_matching_by_blocks_is_the_attention_of_blocks(size: tuple[int, int]) -> None:
    block = make(SRRecFusion, 8, 3, 2)
    query, key, value = normals((2, *size, 3), 1), normals((2, *size, 3), 2), normals((2, *size, 8), 3)
    assert torch.allclose(block.attention(query, key, value), literal_block_sab(query, key, value, 2))
    f = normals((2, *size, 8))
    assert block(f, f).shape == f.shape


def test_the_stride_changes_no_weight() -> None:
    one, two = make(SRRecFusion, 8), make(SRRecFusion, 8, None, 2)
    two.load_state_dict(one.state_dict())
    with pytest.raises(ValueError, match="match_stride"):
        SRRecFusion(8, match_stride=0)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("window", [0, 1, 3])
def test_a_window_keeps_matches_near(stride: int, window: int) -> None:
    block, f = SemanticAttentionBlock(stride, window), normals((1, 6 * stride, 7 * stride, 4))
    own = torch.arange(6 * 7)
    place = torch.stack([own // 7, own % 7], dim=-1).double().view(1, 6, 7, 2)
    value = place.repeat_interleave(stride, 1).repeat_interleave(stride, 2)
    found = patch_match(*(_blocks(t, stride) for t in (f, f.flip(1, 2), value)), window)
    match = torch.stack([found.indices // 7, found.indices % 7], dim=-1)
    assert int((match - place.view(1, 42, 2)).abs().max()) == window
    whole = SemanticAttentionBlock(stride)
    expected = whole(f, f.flip(1, 2), value)
    assert torch.equal(SemanticAttentionBlock(stride, 6)(f, f.flip(1, 2), value), expected)
    assert not torch.allclose(block(f, f.flip(1, 2), value), expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    ("size", "stride", "window"), [((23, 9), 2, 1), ((17, 6), 1, 3), ((31, 5), 3, 0), ((24, 4), 2, 9)]
)
def test_bands_of_rows_do_not_change_the_fusion(
    monkeypatch: pytest.MonkeyPatch, size: tuple[int, int], stride: int, window: int, dtype: torch.dtype
) -> None:
    block = make(SRRecFusion, 8, 3, stride, window).to(dtype)
    f_sr, f_rec = normals((2, *size, 8), 1).to(dtype), normals((2, *size, 8), 2).to(dtype)
    expected = block(f_sr, f_rec).detach()  # with gradients: at once
    with torch.no_grad():
        for band in (4, 8, 64):
            monkeypatch.setattr(fusion, "BAND", band)
            assert torch.allclose(block(f_sr, f_rec), expected, atol=1e-5 if dtype == torch.float32 else 1e-12)


def test_a_negative_window_is_an_error() -> None:
    with pytest.raises(ValueError, match="match_window"):
        SRRecFusion(8, match_window=-1)


def test_the_fusion_tells_its_branches_apart() -> None:
    block = make(SRRecFusion, 8)
    f_sr, f_rec = normals(seed=1), normals(seed=2)
    assert not torch.allclose(block(f_sr, f_rec), block(f_rec, f_sr))


@pytest.mark.parametrize("kind", [VisionMambaBlock, ChannelRankingBlock, RSCFL, SRRecFusion])
@pytest.mark.parametrize("size", [(1, 1), (1, 7), (6, 1), (8, 8), (5, 9)])
def test_a_block_keeps_the_shape_of_any_map(kind: type[nn.Module], size: tuple[int, int]) -> None:
    block, x = make(kind, 8), normals((2, *size, 8))
    assert block(*([x, x] if kind is SRRecFusion else [x])).shape == x.shape


@pytest.mark.parametrize("kind", [VisionMambaBlock, ChannelRankingBlock, RSCFL, SRRecFusion])
def test_a_batch_equals_its_images_one_by_one(kind: type[nn.Module]) -> None:
    block, inputs = make(kind, 8), [normals(seed=i) for i in range(2 if kind is SRRecFusion else 1)]
    alone = [block(*(x[b : b + 1] for x in inputs)) for b in range(SHAPE[0])]
    assert torch.allclose(block(*inputs), torch.cat(alone))


def test_fresh_time_steps_are_spread_over_their_range() -> None:
    layer = SS2D(512, d_state=4, dt_rank=2)
    dt = torch.nn.functional.softplus(layer.dt_bias).detach()
    assert DT_MIN * 0.999 <= float(dt.min()) < 2 * DT_MIN and DT_MAX / 2 < float(dt.max()) <= DT_MAX * 1.001
    assert float(dt.log10().mean()) == pytest.approx(-2.0, abs=0.1)  # log-uniform between 1e-3 and 1e-1


def test_fresh_states_decay_at_the_rates_one_to_n() -> None:
    layer = SS2D(3, d_state=4, dt_rank=1)
    assert torch.allclose(layer.A_log.exp(), torch.arange(1.0, 5.0).expand(4, 3, 4))
