"""Hard attention between patches against unfold, argmax, gather and fold."""

from __future__ import annotations

import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import fold, unfold
from torch.utils.flop_counter import FlopCounterMode

from bundle.ops import PatchMatch, patch_match, use_backend
from bundle.ops.search.cuda import patch_search_tiled
from bundle.ops.search.patch_match import cosine_at, transfer_patches
from bundle.ops.search.plain import patch_search_box, patch_search_reference, patch_search_scripted

few = settings(max_examples=20, deadline=None)
shapes = st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 9), st.integers(1, 5))
seeds = st.integers(0, 2**31)


@pytest.fixture(autouse=True)
def on_plain_torch():
    with use_backend("torch"):
        yield


def normals(shape: tuple[int, ...], seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def patches(image: Tensor) -> Tensor:
    """(B, H, W, C) -> (B, 9 C, H W)."""
    return unfold(image.permute(0, 3, 1, 2), 3, padding=1)


def cosines(query: Tensor, key: Tensor) -> Tensor:
    """Equation 4, the whole matrix: (B, query pixel, key pixel)."""
    q, k = (patches(t) / patches(t).norm(dim=1, keepdim=True).clamp_min(1e-12) for t in (query, key))
    return q.transpose(1, 2) @ k


def folded(value: Tensor, index: Tensor) -> Tensor:
    """Equation 6: gather the patches, fold them, divide by the number that overlap."""
    size = value.shape[1:3]
    v = patches(value)
    gathered = v.gather(2, index[:, None].expand(-1, v.shape[1], -1))
    overlap = fold(torch.ones_like(v), size, 3, padding=1)
    return (fold(gathered, size, 3, padding=1) / overlap).permute(0, 2, 3, 1)


# ------------------------------------------------------------------------------------------------------ the search


@few
@given(shape=shapes, seed=seeds, tile=st.sampled_from([1, 40, 200, 1 << 24]))
def test_the_search_finds_the_argmax_of_the_definition(shape: tuple[int, ...], seed: int, tile: int) -> None:
    query, key = normals(shape, seed), normals(shape, seed + 1)
    index = patch_search_box(query, key, tile_elements=tile)
    assert index.dtype == torch.int64
    assert torch.equal(index, patch_search_reference(query, key))
    assert torch.equal(index, cosines(query, key).argmax(2))


def near(height: int, width: int, window: int) -> Tensor:
    """Which keys lie in the window of which queries: (HW, HW)."""
    y, x = torch.arange(height).repeat_interleave(width), torch.arange(width).repeat(height)
    return ((y[:, None] - y).abs() <= window) & ((x[:, None] - x).abs() <= window)


searches = [patch_search_box, patch_search_scripted, patch_search_tiled, patch_search_reference]


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 2), st.integers(1, 12), st.integers(1, 40), st.integers(1, 4)),
    window=st.integers(0, 10),
    seed=seeds,
)
def test_every_form_of_the_search_keeps_to_its_window(shape: tuple[int, ...], window: int, seed: int) -> None:
    query, key = normals(shape, seed), normals(shape, seed + 1)
    inside = cosines(query, key).masked_fill(~near(*shape[1:3], window), -torch.inf)
    for search in searches:
        assert torch.equal(search(query, key, window), inside.argmax(2))


@few
@given(shape=shapes, seed=seeds, window=st.integers(0, 10), tile=st.sampled_from([1, 300, 2000]))
def test_the_blocks_of_a_windowed_search_change_nothing(shape, seed: int, window: int, tile: int) -> None:
    query, key = normals(shape, seed), normals(shape, seed + 1)
    assert torch.equal(patch_search_box(query, key, window, tile), patch_search_box(query, key, window))


@few
@given(shape=shapes, seed=seeds, more=st.integers(0, 2))
def test_a_window_as_large_as_the_image_is_none(shape: tuple[int, ...], seed: int, more: int) -> None:
    query, key = normals(shape, seed), normals(shape, seed + 1)
    for search in searches:
        assert torch.equal(search(query, key, max(shape[1:3]) - 1 + more), search(query, key, None))


@pytest.mark.parametrize("search", searches)
def test_of_equal_key_patches_in_a_window_the_first_is_chosen(search) -> None:
    image = torch.ones(1, 6, 9, 2, dtype=torch.float64)
    index = search(image, image, 2).view(6, 9)
    assert index[1:-1, 1:-1].tolist() == [[max(y - 2, 1) * 9 + max(x - 2, 1) for x in range(1, 8)] for y in range(1, 5)]


def test_time_and_memory_of_a_windowed_search_grow_with_the_window() -> None:
    image = torch.ones(1, 2, 5000, 2)
    with FlopCounterMode(display=False) as counter:
        patch_search_box(image, image, 4)
    assert counter.get_total_flops() < 2 * 2 * 10000 * 3 * (3 * 4 + 16)  # a third of the rows, tiles of 16 and 8 beside


@pytest.mark.parametrize("search", [patch_search_box, patch_search_reference])
def test_of_equal_key_patches_the_first_is_chosen(search) -> None:
    key = torch.ones(1, 6, 7, 2, dtype=torch.float64)
    index = search(torch.ones_like(key), key).view(6, 7)
    # the inner patches are all alike and so are those along each border; the first of a kind is the match
    assert bool((index[1:-1, 1:-1] == 8).all())
    assert index[0, 0] == 0 and bool((index[0, 1:-1] == 1).all()) and bool((index[1:-1, 0] == 7).all())


@few
@given(size=st.tuples(st.integers(3, 9), st.integers(3, 9)), seed=seeds)
def test_an_image_finds_itself(size: tuple[int, int], seed: int) -> None:
    image = normals((2, *size, 3), seed)
    assert torch.equal(patch_search_box(image, image), torch.arange(size[0] * size[1]).expand(2, -1))


@few
@given(seed=seeds, tile=st.sampled_from([1, 100]))
def test_a_moved_image_is_found_where_it_came_from(seed: int, tile: int) -> None:
    key = normals((1, 9, 10, 3), seed)
    query = key.roll((2, 3), dims=(1, 2))
    index = patch_search_box(query, key, tile_elements=tile).view(9, 10)[3:-1, 4:-1]
    own = torch.arange(90).view(9, 10)[1:-3, 1:-4]
    assert torch.equal(index, own)


@few
@given(seed=seeds)
def test_the_scale_of_query_and_key_does_not_matter(seed: int) -> None:
    query, key = normals((1, 5, 6, 2), seed), normals((1, 5, 6, 2), seed + 1)
    assert torch.equal(patch_search_box(query * 2.0**30, key * 2.0**-20), patch_search_box(query, key))


def test_empty_keys_never_beat_a_similar_one() -> None:
    query = torch.ones(1, 8, 9, 2, dtype=torch.float64)
    key = torch.zeros_like(query)
    key[0, 6, 7] = 1e-3
    index = patch_search_box(query, key)[0]
    assert bool((cosines(query, key)[0, torch.arange(72), index] > 0).all())


# ---------------------------------------------------------------------------------------------- transfer and score


@few
@given(shape=shapes, seed=seeds)
def test_the_transfer_is_gather_and_fold_divided_by_the_overlap(shape: tuple[int, ...], seed: int) -> None:
    value = normals(shape, seed)
    pixels = shape[1] * shape[2]
    index = torch.randint(pixels, (shape[0], pixels), generator=torch.Generator().manual_seed(seed))
    assert torch.allclose(transfer_patches(value, index), folded(value, index))


@few
@given(shape=shapes, seed=seeds)
def test_the_score_is_the_cosine_and_its_maximum(shape: tuple[int, ...], seed: int) -> None:
    query, key, value = (normals(shape, seed + i) for i in range(3))
    match = patch_match(query, key, value)
    matrix = cosines(query, key)
    assert torch.allclose(match.score.flatten(1), matrix.max(2).values)
    assert torch.equal(match.indices, matrix.argmax(2))
    assert torch.allclose(match.features, folded(value, match.indices))
    other = torch.randint(match.indices.shape[1], match.indices.shape, generator=torch.Generator().manual_seed(seed))
    at_other = matrix.gather(2, other[..., None])[..., 0]
    assert torch.allclose(cosine_at(query, key, other).flatten(1), at_other, atol=1e-12)


@few
@given(shape=shapes, seed=seeds)
def test_matching_an_image_with_itself_returns_the_value_and_score_one(shape: tuple[int, ...], seed: int) -> None:
    image, value = normals((*shape[:3], 5), seed), normals(shape, seed + 1)
    match = patch_match(image, image, value)
    assert torch.allclose(match.features, value)
    assert torch.allclose(match.score, torch.ones_like(match.score))
    assert match.score.shape == (*shape[:3], 1)


def test_the_value_may_have_other_channels_than_the_key() -> None:
    query, key, value = normals((2, 4, 5, 3)), normals((2, 4, 5, 3), 1), normals((2, 4, 5, 7), 2)
    match = patch_match(query, key, value)
    assert match.features.shape == (2, 4, 5, 7) and match.indices.shape == (2, 20)


def test_a_batch_equals_its_images_one_by_one() -> None:
    query, key, value = (normals((3, 5, 4, 2), i) for i in range(3))
    whole = patch_match(query, key, value)
    for b in range(3):
        alone = patch_match(*(t[b : b + 1] for t in (query, key, value)))
        assert all(torch.allclose(w[b : b + 1].double(), a.double()) for w, a in zip(whole, alone, strict=True))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("level", [0.0, 1.0, -3.0])
def test_constant_images_give_finite_results_and_gradients(level: float, dtype: torch.dtype) -> None:
    query, key, value = (torch.full((1, 5, 6, 4), level, dtype=dtype).requires_grad_() for _ in range(3))
    match = patch_match(query, key, value)
    assert bool(match.features.isfinite().all()) and bool(match.score.isfinite().all())
    (match.features.sum() + match.score.sum()).backward()
    assert all(bool(t.grad.isfinite().all()) for t in (query, key, value))


@pytest.mark.parametrize("level", [1e-8, 1e-4, 1.0, 1e4, 1e12])
def test_the_score_does_not_depend_on_the_magnitude_of_the_features(level: float) -> None:
    query, key = normals((1, 5, 6, 4), 0, torch.float32), normals((1, 5, 6, 4), 1, torch.float32)
    index = torch.arange(30)[None]
    expected = cosine_at(query, key, index)
    assert torch.allclose(cosine_at(query * level, key * level, index), expected, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_keeps_the_score_also_of_large_features(dtype: torch.dtype) -> None:
    image = (normals((1, 6, 6, 8)) * 1000).to(dtype)
    match = patch_match(image, image, image)
    assert match.score.dtype == match.features.dtype == dtype
    assert torch.allclose(match.score.float(), torch.ones(1, 6, 6, 1), atol=1e-2)
    assert torch.allclose(match.features.float(), image.float(), rtol=2e-2)


def test_shapes_that_do_not_agree_are_an_error() -> None:
    a = torch.zeros(1, 4, 5, 3)
    for key, value in [(torch.zeros(1, 4, 5, 2), a), (torch.zeros(1, 5, 4, 3), a), (a, torch.zeros(1, 5, 4, 3))]:
        with pytest.raises(ValueError, match="must agree"):
            patch_match(a, key, value)
    with pytest.raises(ValueError, match="window must be at least 0 or None, got -1"):
        patch_match(a, a, a, -1)


# ------------------------------------------------------------------------------------------------------- gradients


def test_gradients_reach_query_key_and_value() -> None:
    leaves = [normals((1, 4, 5, 3), i).requires_grad_() for i in range(3)]
    match = patch_match(*leaves)
    (match.features * match.score).square().sum().backward()
    assert all(bool((t.grad.abs().sum(-1) > 0).any()) for t in leaves)
    assert not match.indices.requires_grad


def test_gradients_agree_with_finite_differences_at_a_fixed_index() -> None:
    query, key, value = (normals((2, 3, 4, 2), i).requires_grad_() for i in range(3))
    index = torch.randint(12, (2, 12), generator=torch.Generator().manual_seed(0))
    assert torch.autograd.gradcheck(lambda q, k: cosine_at(q, k, index), (query, key))
    assert torch.autograd.gradcheck(lambda v: transfer_patches(v, index), (value,))


def test_gradients_of_the_definition_are_the_same() -> None:
    query, key, value = (normals((1, 4, 5, 3), i).requires_grad_() for i in range(3))
    weight = normals((1, 4, 5, 3), 9)
    match = patch_match(query, key, value)
    actual = torch.autograd.grad((match.features * match.score * weight).sum(), (query, key, value))
    score = cosines(query, key).max(2).values.view(1, 4, 5, 1)
    literal = folded(value, match.indices) * score
    expected = torch.autograd.grad((literal * weight).sum(), (query, key, value))
    assert all(torch.allclose(a, e) for a, e in zip(actual, expected, strict=True))


# --------------------------------------------------------------------------------------------------- exported forms


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("window", [None, 2])
@pytest.mark.parametrize("export", ["script", "trace"])
def test_matching_is_exported_for_every_size(export: str, window: int | None) -> None:
    def inputs(*size: int) -> list[Tensor]:
        return [normals((*size, 3), i) for i in range(3)]

    def match(query: Tensor, key: Tensor, value: Tensor) -> PatchMatch:
        return patch_match(query, key, value, window)

    if export == "script":
        exported = functools.partial(torch.jit.script(patch_match), window=window)
    else:
        exported = torch.jit.trace(match, inputs(1, 3, 4), check_trace=False)
    for size in [(1, 3, 4), (2, 6, 5), (1, 1, 9), (1, 7, 1)]:
        args = inputs(*size)
        for a, e in zip(exported(*args), match(*args), strict=True):
            assert torch.allclose(a.double(), e.double())
