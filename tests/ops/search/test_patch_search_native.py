"""The C++ patch search against the definition: unfold, divide, argmax."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.functional import pad, pixel_shuffle, pixel_unshuffle, unfold

from bundle.ops import native
from bundle.ops.search.native import patch_attention_native, patch_search_native
from bundle.ops.search.patch_match import cosine_at, transfer_patches

pytestmark = pytest.mark.skipif(native.load() is None, reason=f"NATIVE KERNELS NOT TESTED: {native.reason()}")


def scores(query: Tensor, key: Tensor) -> Tensor:
    """(B, query pixel, key pixel) in float64 by the definition."""
    q, k = (unfold(t.movedim(3, 1).double(), 3, padding=1) for t in (query, key))
    return q.transpose(1, 2) @ (k / k.norm(dim=1, keepdim=True).clamp_min(1e-12))


def far_apart(height: int, width: int, window: int) -> Tensor:
    """Which keys lie outside the window of which queries: (HW, HW)."""
    y, x = torch.arange(height).repeat_interleave(width), torch.arange(width).repeat(height)
    return ((y[:, None] - y).abs() > window) | ((x[:, None] - x).abs() > window)


def first_best(score: Tensor) -> Tensor:
    """Smallest index among the equal maxima."""
    return (score == score.max(2, keepdim=True).values).int().argmax(2)


def integers(shape, seed, low=-2, high=3) -> Tensor:
    """Small integers: every product and sum is exact, so equal patches have equal scores in any order of summation."""
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(seed)).float()


def normals(shape, seed) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


SHAPES = [(1, 1, 1, 1), (1, 1, 9, 3), (1, 9, 1, 3), (2, 2, 2, 5), (1, 5, 6, 8), (3, 7, 13, 4), (1, 16, 16, 96)]
SHAPES += [(1, 12, 17, 33), (2, 23, 24, 8), (1, 4, 40, 16), (1, 33, 32, 8), (1, 3, 70, 2)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_index_is_the_argmax_of_the_definition(shape):
    query, key = normals(shape, 1), normals(shape, 2)
    index = patch_search_native(query, key)
    assert index.shape == (shape[0], shape[1] * shape[2]) and index.dtype == torch.int64
    assert torch.equal(index, scores(query, key).argmax(2))


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 14), st.integers(1, 38), st.integers(1, 11)),
    seed=st.integers(0, 1000),
)
def test_any_shape_gives_the_best_score(shape, seed):
    query, key = normals(shape, seed), normals(shape, seed + 1)
    score = scores(query, key)
    chosen = score.gather(2, patch_search_native(query, key)[..., None])[..., 0]
    best = score.max(2).values
    assert (best - chosen <= 1e-5 * (1 + best.abs())).all()


@settings(max_examples=60, deadline=None)
@given(height=st.integers(1, 12), width=st.integers(1, 40), channels=st.integers(1, 4), seed=st.integers(0, 1000))
def test_of_equal_key_patches_the_first_is_chosen(height, width, channels, seed):
    query = integers((1, height, width, channels), seed)
    key = integers((1, 1, 1, channels), seed + 1).expand(1, height, width, channels).contiguous()
    index = patch_search_native(query, key)[0]
    score = scores(query, key)[0]
    assert torch.allclose(score.gather(1, index[:, None])[:, 0], score.max(1).values)
    patches = unfold(key.movedim(3, 1), 3, padding=1)[0].T
    first_equal = (patches[:, None] == patches[None]).all(2).int().argmax(1)
    assert torch.equal(first_equal[index], index)


windowed = settings(max_examples=80, deadline=None)
maps = st.tuples(st.integers(1, 3), st.integers(1, 30), st.integers(1, 60), st.integers(1, 11))


@windowed
@given(shape=maps, window=st.integers(0, 10), seed=st.integers(0, 1000))
def test_a_windowed_search_finds_the_best_score_in_its_window(shape, window, seed):
    query, key = normals(shape, seed), normals(shape, seed + 1)
    score = scores(query, key).masked_fill(far_apart(*shape[1:3], window), -torch.inf)
    chosen = score.gather(2, patch_search_native(query, key, window)[..., None])[..., 0]
    best = score.max(2).values
    assert (best - chosen <= 1e-5 * (1 + best.abs())).all()


@windowed
@given(
    shape=st.tuples(st.integers(1, 2), st.integers(1, 12), st.integers(1, 40), st.integers(1, 4)),
    window=st.integers(0, 10),
    seed=st.integers(0, 1000),
)
def test_of_equal_key_patches_in_the_window_the_first_is_chosen(shape, window, seed):
    query = integers(shape, seed)
    key = integers((1, 1, 1, shape[3]), seed + 1).expand(shape).contiguous()
    index = patch_search_native(query, key, window)
    patches = unfold(key.movedim(3, 1), 3, padding=1)[0].T
    for found in index:  # no key before the chosen one, in the window of the query, has the same patch
        rivals = (patches[found][:, None] == patches[None]).all(2) & ~far_apart(*shape[1:3], window)
        assert torch.equal(rivals.int().argmax(1), found)


@windowed
@given(shape=maps, more=st.integers(0, 3), seed=st.integers(0, 1000))
def test_a_window_as_large_as_the_image_is_none(shape, more, seed):
    query, key = normals(shape, seed), normals(shape, seed + 1)
    window = max(shape[1:3]) - 1 + more
    assert torch.equal(patch_search_native(query, key, window), patch_search_native(query, key))


def test_constant_images_choose_the_first_key_of_the_best_kind():
    image = torch.ones(1, 20, 33, 4)
    index = patch_search_native(image, image).view(20, 33)
    # An inner query is most like an inner key (nine pixels match); the first of those is (1, 1).
    assert (index[1:-1, 1:-1] == 33 + 1).all()
    # A query in the corner is nothing but its own four pixels.
    assert index[0, 0] == 0


def test_an_image_finds_itself():
    image = normals((2, 19, 27, 6), 5)
    assert torch.equal(patch_search_native(image, image), torch.arange(19 * 27).expand(2, -1))


def test_a_shifted_image_is_found_at_the_shift():
    key = normals((1, 21, 30, 5), 6)
    query = torch.zeros_like(key)
    query[:, 2:, 3:] = key[:, :-2, :-3]
    index = patch_search_native(query, key).view(21, 30)[4:-2, 5:-2]
    own = torch.arange(21 * 30).view(21, 30)[2:-4, 2:-5]
    assert torch.equal(index, own)


def test_empty_keys_and_queries_score_zero():
    query = torch.ones(1, 9, 10, 3)
    key = torch.zeros(1, 9, 10, 3)
    assert (patch_search_native(query, key) == 0).all()
    assert (patch_search_native(key, query) == 0).all()
    key[0, 4, 4] = -1.0  # the patches around it score below zero, the first empty one wins
    assert (patch_search_native(query, key) == 0).all()
    key[0] = -1.0
    assert torch.equal(patch_search_native(query, key), first_best(scores(query, key).float().double()))


def test_all_scores_negative_never_chooses_padding():
    shape = (1, 5, 11, 2)
    query, key = torch.rand(shape) + 0.5, -torch.rand(shape) - 0.5
    index = patch_search_native(query, key)
    assert int(index.max()) < 55
    assert torch.equal(index, scores(query, key).argmax(2))


def test_the_scale_of_query_and_key_does_not_matter():
    query, key = normals((1, 11, 12, 4), 8), normals((1, 11, 12, 4), 9)
    assert torch.equal(patch_search_native(query * 2.0**-20, key * 2.0**20), patch_search_native(query, key))


@pytest.mark.parametrize("window", [None, 6])
@pytest.mark.parametrize("shape", [(1, 30, 31, 12), (5, 9, 10, 4), (2, 70, 12, 4)], ids=str)
def test_the_number_of_threads_does_not_change_the_index(shape, window):
    query, key = integers(shape, 1), integers(shape, 2)  # integers: many ties
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results += [patch_search_native(query, key, window) for _ in range(3)]
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(results[0], other) for other in results[1:])


IN_ANOTHER_PROCESS = """
import sys, torch
from bundle.ops import native
from bundle.ops.search.native import patch_attention_native
assert native.load() is not None, native.reason()
maps = torch.load(sys.argv[1], weights_only=True)
torch.save([native.load().lanes, *(t for w in (None, 5) for t in patch_attention_native(*maps, 2, w))], sys.argv[2])
"""


@pytest.mark.skipif(
    native.load() is not None and native.load().lanes == 8, reason="one width of vectors on this machine"
)
def test_narrower_vectors_give_the_same_bytes(tmp_path: Path) -> None:
    maps = [normals((1, 25, 38, c), c) for c in (3, 3, 21)]
    torch.save(maps, tmp_path / "maps.pt")
    command = [sys.executable, "-c", IN_ANOTHER_PROCESS, str(tmp_path / "maps.pt"), str(tmp_path / "found.pt")]
    root = Path(__file__).resolve().parents[3]
    subprocess.run(command, cwd=root, env={**os.environ, "ATEN_CPU_CAPABILITY": "avx2"}, check=True, timeout=600)
    lanes, *found = torch.load(tmp_path / "found.pt", weights_only=True)
    assert lanes == 8 and native.load().lanes == 16
    expected = [t for w in (None, 5) for t in patch_attention_native(*maps, 2, w)]
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_an_image_does_not_depend_on_its_batch():
    query, key = normals((4, 8, 9, 3), 1), normals((4, 8, 9, 3), 2)
    together = patch_search_native(query, key)
    assert all(torch.equal(together[i], patch_search_native(query[i : i + 1], key[i : i + 1])[0]) for i in range(4))


def test_inputs_may_be_views_and_need_no_gradient():
    query = normals((1, 3, 8, 9), 1).permute(0, 2, 3, 1).requires_grad_()
    key = normals((1, 3, 8, 9), 2).permute(0, 2, 3, 1)
    index = patch_search_native(query, key)
    assert not index.requires_grad
    assert torch.equal(index, patch_search_native(query.detach().contiguous(), key.contiguous()))


@pytest.mark.parametrize("window", [None, 1])
def test_the_operator_passes_the_checks_of_torch(window):
    torch.library.opcheck(
        torch.ops.iconet.patch_search.default, (normals((2, 4, 5, 3), 1), normals((2, 4, 5, 3), 2), window)
    )


def blocks(image: Tensor, stride: int) -> Tensor:
    """(B, H, W, C) -> blocks as one pixel, the last row and column repeated where they are not full."""
    below, right = -image.shape[1] % stride, -image.shape[2] % stride
    padded = pad(image.movedim(3, 1), [0, right, 0, below], mode="replicate")
    return pixel_unshuffle(padded, stride).movedim(1, 3)


attention = {
    "size": st.tuples(st.integers(1, 2), st.integers(1, 13), st.integers(1, 21)),
    "channels": st.tuples(st.integers(1, 5), st.sampled_from([1, 7, 16, 33])),
    "stride": st.integers(1, 3),
    "window": st.one_of(st.none(), st.integers(0, 10)),
    "seed": st.integers(0, 1000),
}


@settings(max_examples=80, deadline=None)
@given(**attention)
def test_search_and_transfer_in_one_are_the_plain_form(size, channels, stride, window, seed):
    query, key = normals((*size, channels[0]), seed), normals((*size, channels[0]), seed + 1)
    value = normals((*size, channels[1]), seed + 2)
    out, score, index = patch_attention_native(query, key, value, stride, window, weighted=False)
    double = [blocks(t.double(), stride) for t in (query, key, value)]
    assert torch.equal(index, patch_search_native(double[0].float(), double[1].float(), window))
    expected = pixel_shuffle(transfer_patches(double[2], index).movedim(3, 1), stride).movedim(1, 3)
    expected = expected[:, : size[1], : size[2]]
    assert torch.allclose(out.double(), expected, atol=1e-5)
    cosine = cosine_at(double[0], double[1], index)[..., 0]
    assert torch.allclose(score.double().view_as(cosine), cosine, atol=1e-5)
    whole = cosine.repeat_interleave(stride, 1).repeat_interleave(stride, 2)[:, : size[1], : size[2], None]
    weighted = patch_attention_native(query, key, value, stride, window)[0]
    assert torch.allclose(weighted.double(), expected * whole, atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(**attention, data=st.data())
def test_rows_of_the_result_are_those_of_the_whole(size, channels, stride, window, seed, data):
    rows = -(-size[1] // stride)
    first = data.draw(st.integers(0, rows - 1))
    last = data.draw(st.integers(first + 1, rows))
    maps = normals((*size, 2 * channels[0] + channels[1]), seed).split([channels[0], channels[0], channels[1]], -1)
    whole = patch_attention_native(*maps, stride, window)[0]
    part = patch_attention_native(*maps, stride, window, (first, last))[0]
    assert torch.equal(part, whole[:, first * stride : last * stride])


def test_maps_that_are_part_of_a_larger_one_and_maps_in_another_order_give_the_same_bytes():
    parts = normals((2, 9, 10, 12), 1).split([3, 3, 6], dim=-1)
    expected = patch_attention_native(*(t.contiguous() for t in parts), 2, 3)
    for maps in (parts, [t.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1) for t in parts]):
        assert all(torch.equal(a, b) for a, b in zip(patch_attention_native(*maps, 2, 3), expected, strict=True))


def test_the_operator_of_search_and_transfer_passes_the_checks_of_torch():
    for rows in ((0, 3), (1, 3), (1, 2)):
        arguments = (*(normals((2, 5, 4, c), c) for c in (3, 3, 6)), 2, 1, *rows, True)
        torch.library.opcheck(torch.ops.iconet.patch_search_transfer.default, arguments, test_utils="test_schema")
        torch.library.opcheck(
            torch.ops.iconet.patch_search_transfer.default, arguments, test_utils="test_autograd_registration"
        )
        real = torch.ops.iconet.patch_search_transfer(*arguments)
        with FakeTensorMode() as mode:
            fake = torch.ops.iconet.patch_search_transfer(*(mode.from_tensor(t) for t in arguments[:3]), *arguments[3:])
        assert [(t.shape, t.dtype) for t in real] == [(t.shape, t.dtype) for t in fake]


def test_wrong_types_and_shapes_are_refused():
    query = normals((1, 4, 5, 3), 1)
    with pytest.raises(TypeError, match="key is torch.float64"):
        patch_search_native(query, query.double())
    with pytest.raises(ValueError, match="the same non-empty"):
        patch_search_native(query, query[:, :3])
    with pytest.raises(ValueError, match="the same non-empty"):
        patch_search_native(query[:, :0], query[:, :0])
