"""SR-Rec fusion: hard attention between the features of the two branches, in both directions (equations 4-7)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, pad, pixel_shuffle, pixel_unshuffle

from bundle.ops import is_plain, patch_match
from bundle.ops.search.patch_match import fused_attention

BAND = 96
"""Rows of pixels, about, that the fusion takes at a time without gradients when it looks for matches in a window."""


class SemanticAttentionBlock(nn.Module):
    """SAB: for each query patch, the value patch of its most similar key patch (equations 4-6).

    The attention and its 3x3 patches are T2Net's; the paper gives no patch size. The transferred features are
    multiplied by the similarity (the maximum of equation 4), which equation 6 does not do: the argmax has no gradient,
    so without this factor the maps for queries and keys would never learn.

    Args:
        stride: side of the blocks of pixels that are matched as one, see :class:`SRRecFusion`.
        window: how many blocks away a match may lie, see :class:`SRRecFusion`.
    """

    def __init__(self, stride: int = 1, window: int | None = None) -> None:
        super().__init__()
        self.stride = stride
        self.window = window

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """query, key (B, H, W, C) and value (B, H, W, Cv) -> (B, H, W, Cv)."""
        if not torch.jit.is_scripting():
            whole = fused_attention(query, key, value, self.stride, self.window)
            if whole is not None:
                return whole[0]
        if self.stride == 1:
            return self.match(query, key, value)
        stride, height, width = self.stride, query.shape[1], query.shape[2]
        blocks = self.match(_blocks(query, stride), _blocks(key, stride), _blocks(value, stride))
        return _pixels(blocks, stride)[:, :height, :width]

    @torch.jit.unused
    def rows(self, query: Tensor, key: Tensor, value: Tensor, first: int, last: int) -> Tensor:
        """The same for the rows of blocks ``first`` to ``last`` alone."""
        found = fused_attention(query, key, value, self.stride, self.window, (first, last))
        if found is not None:
            return found[0]
        return self(query, key, value)[:, first * self.stride : last * self.stride]

    def match(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """The same with single pixels for blocks."""
        found = patch_match(query, key, value, self.window)
        return found.features * found.score


class SRRecFusion(nn.Module):
    """``F_SR-Rec = SAB(Q_SR, K_Rec, V_Rec) * SAC_SR + SAB(Q_Rec, K_SR, V_SR) * SAC_Rec`` (equation 7).

    Queries, keys and values are 1x1 convolutions of the branch features. The confidence SAC is a 1x1 convolution and a
    sigmoid on both transferred features, split in two. The paper gives no kernel sizes.

    Args:
        features: channels of both branches.
        match_features: channels of queries and keys (default: ``features``); the search cost grows with it.
        match_stride: side of the blocks of pixels that are matched together. 1 matches every pixel (equation 4); 2
            compares patches of 3x3 blocks of 2x2 pixels, a quarter of the queries with a quarter of the keys.
        match_window: matches lie at most so many rows and columns of blocks away, which makes the search linear in the
            number of pixels. None (equation 4) compares with every position.
    """

    def __init__(
        self,
        features: int,
        match_features: int | None = None,
        match_stride: int = 1,
        match_window: int | None = None,
    ) -> None:
        super().__init__()
        if match_stride < 1:
            raise ValueError(f"match_stride must be at least 1, got {match_stride}")
        if match_window is not None and match_window < 0:
            raise ValueError(f"match_window must be at least 0 or None, got {match_window}")
        matched = match_features or features
        self.widths = [matched, matched, features]
        self.sr_maps = nn.Linear(features, 2 * matched + features)
        self.rec_maps = nn.Linear(features, 2 * matched + features)
        self.attention = SemanticAttentionBlock(match_stride, match_window)
        self.confidence = nn.Linear(2 * features, 2 * features)

    def forward(self, f_sr: Tensor, f_rec: Tensor) -> Tensor:
        """Two maps (B, H, W, features) -> the fused map, same shape."""
        if not torch.jit.is_scripting():
            fused = self._by_bands(f_sr, f_rec)
            if fused is not None:
                return fused
        query_sr, key_sr, value_sr = self.sr_maps(f_sr).split(self.widths, dim=-1)
        query_rec, key_rec, value_rec = self.rec_maps(f_rec).split(self.widths, dim=-1)
        transferred = torch.cat(
            [self.attention(query_sr, key_rec, value_rec), self.attention(query_rec, key_sr, value_sr)], dim=-1
        )
        sab_sr, sab_rec = (transferred * torch.sigmoid(self.confidence(transferred))).chunk(2, dim=-1)
        return sab_sr + sab_rec

    @torch.jit.unused
    def _by_bands(self, f_sr: Tensor, f_rec: Tensor) -> Tensor | None:
        """The same without gradients and, with a window, in bands of rows: only the maps of one band are held.

        A band needs the maps of the window around it and of two more rows, for the patches that overlap with its own.
        """
        if torch.is_grad_enabled() or torch.jit.is_tracing() or not is_plain(self.attention, SemanticAttentionBlock):
            return None
        if not all(is_plain(part, nn.Linear) for part in (self.sr_maps, self.rec_maps, self.confidence)):
            return None  # they must see the maps whole
        stride, window = self.attention.stride, self.attention.window
        rows = -(-f_sr.shape[1] // stride)
        beside = rows if window is None else window + 2
        height = rows if window is None else -(-rows // max(f_sr.shape[1] // BAND, 1))
        fused = None
        for first in range(0, rows, height):
            last = min(first + height, rows)
            low, high = max(first - beside, 0), min(last + beside, rows)
            sr, rec = (f[:, low * stride : high * stride] for f in (f_sr, f_rec))
            wanted = first - low, last - low
            of_sr = self._attend(self.sr_maps, sr, self.rec_maps, rec, *wanted)
            of_rec = self._attend(self.rec_maps, rec, self.sr_maps, sr, *wanted)
            transferred = torch.cat([of_sr, of_rec], dim=-1)
            del of_sr, of_rec
            sab_sr, sab_rec = self.confidence(transferred).sigmoid_().mul_(transferred).chunk(2, dim=-1)
            fused = sab_sr.new_empty(f_sr.shape) if fused is None else fused
            fused[:, first * stride : last * stride] = sab_sr.add_(sab_rec)
        assert fused is not None
        return fused

    @torch.jit.unused
    def _attend(
        self, asking: nn.Linear, f_asking: Tensor, asked: nn.Linear, f_asked: Tensor, first: int, last: int
    ) -> Tensor:
        """What one branch takes from the other in the rows of blocks ``first`` to ``last``."""
        matched = self.widths[0]
        query = linear(f_asking, asking.weight[:matched], asking.bias[:matched])
        maps = linear(f_asked, asked.weight[matched:], asked.bias[matched:])
        key, value = maps.split(self.widths[1:], dim=-1)
        return self.attention.rows(query, key, value, first, last)


def _blocks(features: Tensor, stride: int) -> Tensor:
    """(B, H, W, C) -> (B, ceil(H / stride), ceil(W / stride), C stride^2); the last row and column are repeated."""
    image = features.permute(0, 3, 1, 2)
    below, right = -features.shape[1] % stride, -features.shape[2] % stride
    any_size = False
    if not torch.jit.is_scripting():
        any_size = torch.jit.is_tracing()  # a trace would keep the branch of its example
    if any_size or below > 0 or right > 0:
        image = pad(image, [0, right, 0, below], mode="replicate")
    return pixel_unshuffle(image, stride).permute(0, 2, 3, 1).contiguous()


def _pixels(blocks: Tensor, stride: int) -> Tensor:
    """(B, h, w, C stride^2) -> (B, stride h, stride w, C)."""
    return pixel_shuffle(blocks.permute(0, 3, 1, 2), stride).permute(0, 2, 3, 1)
