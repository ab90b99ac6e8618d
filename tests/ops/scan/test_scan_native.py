"""The fused C++ scan against the plain recurrence in float64."""

from __future__ import annotations

import logging
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bundle.ops import native
from bundle.ops.native import build, ss2d
from bundle.ops.scan.native import selective_scan_2d_native

NAMES = ("x", "proj", "dt_weight", "dt_bias", "A", "D")
needs_native = pytest.mark.skipif(native.load() is None, reason=f"NATIVE KERNELS NOT TESTED: {native.reason()}")


def plain_recurrence(x: Tensor, proj: Tensor, dt_weight: Tensor, dt_bias: Tensor, A: Tensor, D: Tensor) -> Tensor:
    """One loop over the pixels per direction, in the dtype of the inputs; shapes as in the native function."""
    height, width = x.shape[1:3]
    rank, n_state = dt_weight.shape[2], A.shape[2]
    pixels = x.flatten(1, 2).unbind(1)
    rows = [i * width + j for i in range(height) for j in range(width)]
    columns = [i * width + j for j in range(width) for i in range(height)]
    total = [torch.zeros_like(pixels[0])] * len(pixels)
    for k, order in enumerate((rows, columns, rows[::-1], columns[::-1])):
        low, b, c = proj[..., k, :].flatten(1, 2).split([rank, n_state, n_state], dim=-1)
        dts = torch.nn.functional.softplus(low @ dt_weight[k].T + dt_bias[k]).unbind(1)
        bs, cs = b.unbind(1), c.unbind(1)
        h = x.new_zeros(x.shape[0], x.shape[3], n_state)
        for p in order:
            h = torch.exp(dts[p][..., None] * A[k]) * h + (dts[p] * pixels[p])[..., None] * bs[p][:, None]
            total[p] = total[p] + (h * cs[p][:, None]).sum(-1) + D[k] * pixels[p]
    return torch.stack(total, 1).unflatten(1, (height, width))


def make_inputs(batch, height, width, channels, n_state, rank, seed=0, dt_shift=-1.0) -> list[Tensor]:
    random = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=random)

    return [
        normal(batch, height, width, channels),
        normal(batch, height, width, 4, rank + 2 * n_state),
        normal(4, channels, rank) * 0.5,
        normal(4, channels) + dt_shift,
        -torch.exp(normal(4, channels, n_state)),
        normal(4, channels),
    ]


def relative_error(got: Tensor, want: Tensor) -> float:
    return float((got.double() - want).abs().max() / want.abs().max().clamp_min(1e-30))


def gradients(function, inputs, dy):
    leaves = [t.clone().requires_grad_() for t in inputs]
    y = function(*leaves)
    return y.detach(), torch.autograd.grad(y, leaves, dy.to(y.dtype))


SHAPES = [
    (1, 1, 1, 1, 1, 1),
    (2, 3, 5, 5, 1, 1),
    (1, 1, 70, 8, 4, 2),
    (1, 65, 1, 9, 3, 2),
    (1, 8, 8, 24, 8, 3),
    (2, 9, 15, 40, 16, 3),
    (1, 12, 11, 48, 5, 2),
    (5, 4, 17, 31, 2, 5),
    (1, 6, 7, 192, 16, 6),
]


@needs_native
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_and_gradients_equal_the_plain_recurrence(shape):
    inputs = make_inputs(*shape)
    dy = torch.randn(inputs[0].shape, generator=torch.Generator().manual_seed(7))
    y, grads = gradients(selective_scan_2d_native, inputs, dy)
    expected, expected_grads = gradients(plain_recurrence, [t.double() for t in inputs], dy)
    assert y.shape == expected.shape and y.dtype == torch.float32
    assert relative_error(y, expected) < 1e-5
    for name, got, want in zip(NAMES, grads, expected_grads, strict=True):
        assert got.shape == want.shape
        assert relative_error(got, want) < 1e-4, name


@needs_native
@settings(max_examples=30, deadline=None)
@given(
    size=st.tuples(st.integers(1, 3), st.integers(1, 11), st.integers(1, 13)),
    widths=st.tuples(st.integers(1, 41), st.integers(1, 9), st.integers(1, 5)),
    seed=st.integers(0, 1000),
    dt_shift=st.sampled_from([-6.0, -1.0, 3.0]),
)
def test_any_shape_equals_the_plain_recurrence(size, widths, seed, dt_shift):
    inputs = make_inputs(*size, *widths, seed=seed, dt_shift=dt_shift)
    expected = plain_recurrence(*[t.double() for t in inputs])
    assert relative_error(selective_scan_2d_native(*inputs), expected) < 1e-5


@needs_native
def test_states_over_a_long_sequence_do_not_lose_accuracy():
    inputs = make_inputs(1, 24, 50, 16, 4, 2, dt_shift=-7.0)
    inputs[4] = inputs[4] * 1e-2  # slow decay: the state remembers the whole image
    dy = torch.ones_like(inputs[0])
    y, grads = gradients(selective_scan_2d_native, inputs, dy)
    expected, expected_grads = gradients(plain_recurrence, [t.double() for t in inputs], dy)
    assert relative_error(y, expected) < 1e-5
    for name, got, want in zip(NAMES, grads, expected_grads, strict=True):
        assert relative_error(got, want) < 1e-4, name


@needs_native
def test_decays_that_underflow_forget_and_stay_finite():
    inputs = make_inputs(1, 5, 6, 8, 2, 1, dt_shift=40.0)
    inputs[4] = inputs[4] - 50.0
    dy = torch.ones_like(inputs[0])
    y, grads = gradients(selective_scan_2d_native, inputs, dy)
    expected, _ = gradients(plain_recurrence, [t.double() for t in inputs], dy)
    assert relative_error(y, expected) < 1e-5
    assert all(torch.isfinite(g).all() for g in grads)


@needs_native
def test_a_very_negative_step_leaves_only_the_skip():
    inputs = make_inputs(1, 4, 4, 8, 2, 1, dt_shift=-1000.0)
    y = selective_scan_2d_native(*inputs)
    torch.testing.assert_close(y, inputs[0] * inputs[5].sum(0), rtol=1e-5, atol=1e-5)


@needs_native
def test_growing_states_are_computed_too():
    inputs = make_inputs(1, 3, 4, 8, 2, 1)
    inputs[4] = -0.3 * inputs[4]
    assert relative_error(selective_scan_2d_native(*inputs), plain_recurrence(*[t.double() for t in inputs])) < 1e-5


@needs_native
def test_a_nan_is_not_hidden_and_stays_in_its_channel_and_image():
    inputs = make_inputs(2, 4, 5, 16, 2, 1)
    inputs[0][0, 1, 1, 3] = float("nan")
    y = selective_scan_2d_native(*inputs)
    assert y[0, :, :, 3].isnan().all()
    assert not y[1].isnan().any() and not y[0, :, :, :3].isnan().any() and not y[0, :, :, 4:].isnan().any()
    inputs = make_inputs(1, 4, 5, 16, 2, 1)
    inputs[1][0, 1, 1, 0, 0] = float("nan")
    assert selective_scan_2d_native(*inputs)[0, 1, 1].isnan().all()


@needs_native
@pytest.mark.parametrize("shape", [(1, 20, 21, 192, 16, 6), (6, 9, 10, 48, 4, 2)], ids=str)
def test_the_number_of_threads_does_not_change_a_bit(shape):
    inputs = make_inputs(*shape)
    dy = torch.randn(inputs[0].shape, generator=torch.Generator().manual_seed(3))
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            y, grads = gradients(selective_scan_2d_native, inputs, dy)
            results.append((y, *grads))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@needs_native
def test_an_image_does_not_depend_on_its_batch():
    inputs = make_inputs(5, 6, 7, 40, 4, 2)
    y = selective_scan_2d_native(*inputs)
    for i in range(5):
        alone = selective_scan_2d_native(inputs[0][i : i + 1], inputs[1][i : i + 1], *inputs[2:])
        assert torch.equal(y[i : i + 1], alone)


@needs_native
def test_inputs_need_not_be_contiguous():
    inputs = make_inputs(1, 6, 7, 16, 4, 2)
    expected = selective_scan_2d_native(*inputs)
    strided = [t.movedim(1, -1).contiguous().movedim(-1, 1) for t in inputs[:2]] + [
        t.movedim(0, -1).contiguous().movedim(-1, 0) for t in inputs[2:]
    ]
    assert not strided[0].is_contiguous()
    assert torch.equal(selective_scan_2d_native(*strided), expected)


@needs_native
def test_states_are_kept_only_with_gradients():
    inputs = make_inputs(1, 9, 8, 16, 4, 2)
    y, states = torch.ops.iconet.ss2d(*inputs, False)
    assert states.numel() == 0
    kept_y, states = torch.ops.iconet.ss2d(*inputs, True)
    assert states.shape == (1, 4, 3, 16, 4) and torch.equal(kept_y, y)
    inputs[0].requires_grad_()
    with torch.no_grad():
        assert not selective_scan_2d_native(*inputs).requires_grad
    assert selective_scan_2d_native(*inputs).requires_grad


@needs_native
def test_gradients_flow_only_where_asked():
    inputs = make_inputs(1, 4, 5, 8, 2, 1)
    inputs[4].requires_grad_()
    selective_scan_2d_native(*inputs).sum().backward()
    assert inputs[4].grad is not None and inputs[0].grad is None


@needs_native
def test_the_operator_passes_the_checks_of_torch():
    inputs = [t.requires_grad_() for t in make_inputs(1, 4, 5, 10, 2, 1)]
    torch.library.opcheck(torch.ops.iconet.ss2d.default, (*inputs, True))
    torch.library.opcheck(torch.ops.iconet.ss2d.default, (*[t.detach() for t in inputs], False))


@needs_native
@pytest.mark.parametrize("position", range(6))
def test_wrong_types_and_shapes_are_named(position):
    inputs = make_inputs(1, 4, 5, 8, 2, 1)
    with pytest.raises(TypeError, match=f"{NAMES[position]} is torch.float64"):
        selective_scan_2d_native(*[t.double() if i == position else t for i, t in enumerate(inputs)])
    if position:
        wrong = [torch.cat([t, t], -2) if i == position else t for i, t in enumerate(inputs)]
        with pytest.raises(ValueError, match="has the shape"):
            selective_scan_2d_native(*wrong)


def _child(queue, inputs):
    torch.set_num_threads(2)
    queue.put(selective_scan_2d_native(*inputs).sum().item())


@needs_native
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_process_does_not_wait_for_the_threads_of_its_parent():
    inputs = make_inputs(2, 6, 7, 64, 4, 2)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        expected = selective_scan_2d_native(*inputs).sum().item()  # the parent's pool exists now
    finally:
        torch.set_num_threads(before)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    process = context.Process(target=_child, args=(queue, inputs))
    process.start()
    try:
        assert queue.get(timeout=60) == pytest.approx(expected, rel=1e-4)
        process.join(timeout=60)
        assert process.exitcode == 0
    finally:
        process.kill()


def _python(code: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )


def test_without_a_compiler_the_reason_is_one_line_and_nothing_fails_at_import(tmp_path):
    code = (
        "import bundle.ops.scan.native, bundle.ops.search.native\n"
        "from bundle.ops import native\n"
        "assert native.load() is None\n"
        "print(native.reason())"
    )
    done = _python(code, PATH=str(tmp_path), CXX="", ICONET_CACHE_DIR=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1 and done.stdout.startswith("native kernels: ")


@needs_native
def test_a_compiler_that_fails_is_a_reason_not_an_error_and_leaves_nothing(tmp_path):
    compiler = tmp_path / "broken"
    compiler.write_text('#!/bin/sh\n[ "$1" = --version ] && exit 0\necho "x.cpp: error: broken" >&2\nexit 1\n')
    compiler.chmod(0o755)
    cache = tmp_path / "cache"
    code = "from bundle.ops import native\nassert native.load() is None\nprint(native.reason())"
    done = _python(code, CXX=str(compiler), ICONET_CACHE_DIR=str(cache))
    assert done.returncode == 0, done.stderr
    assert "broken failed (x.cpp: error: broken)" in done.stdout
    assert list(cache.iterdir()) == []


@needs_native
def test_the_library_is_built_once_and_a_damaged_one_is_replaced(tmp_path):
    # A "compiler" that copies the library of this process (its last argument is the output) and counts its runs.
    compiler, runs, cache = tmp_path / "copy", tmp_path / "runs", tmp_path / "cache"
    compiler.write_text(
        f'#!/bin/sh\n[ "$1" = --version ] && exit 0\necho run >> {runs}\n'
        f'for out; do :; done\ncp {native.load().path} "$out"\n'
    )
    compiler.chmod(0o755)
    code = "from bundle.ops import native\nassert native.load() is not None, native.reason()"
    for expected_runs, damage in ((1, False), (1, False), (2, True)):
        if damage:
            next(cache.iterdir()).write_bytes(b"not a library")
        done = _python(code, CXX=str(compiler), ICONET_CACHE_DIR=str(cache))
        assert done.returncode == 0, done.stderr
        assert len(runs.read_text().split()) == expected_runs
        assert [path.suffix for path in cache.iterdir()] == [".so"]


def test_the_cache_follows_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv("ICONET_CACHE_DIR", raising=False)
    assert build.cache_folder() == tmp_path / "xdg" / "iconet"
    monkeypatch.setenv("ICONET_CACHE_DIR", str(tmp_path / "own"))
    assert build.cache_folder() == tmp_path / "own"
    assert not list(tmp_path.iterdir())  # asking makes nothing


@needs_native
def test_a_cache_that_cannot_be_written_is_replaced_by_a_temporary_folder(tmp_path):
    compiler, blocked = tmp_path / "copy", tmp_path / "file"
    compiler.write_text(
        f'#!/bin/sh\n[ "$1" = --version ] && exit 0\nfor out; do :; done\ncp {native.load().path} "$out"\n'
    )
    compiler.chmod(0o755)
    blocked.write_text("")
    code = "from bundle.ops import native\nassert native.load() is not None, native.reason()\nprint(native.load().path)"
    done = _python(code, CXX=str(compiler), ICONET_CACHE_DIR=str(blocked / "cache"), TMPDIR=str(tmp_path))
    assert done.returncode == 0, done.stderr
    library_file = Path(done.stdout.strip())
    assert library_file.is_file() and library_file.parent.name.startswith("iconet-")


@needs_native
def test_a_library_in_the_cache_is_used_without_writing_there(monkeypatch):
    monkeypatch.setattr(build, "_writable", lambda folder: pytest.fail("the folder was asked for"))
    if build.library_path() != native.load().path:
        pytest.skip("the cache folder cannot be written here")
    assert build.build_library() == native.load().path


def test_before_it_compiles_the_log_says_so_and_how_long_and_where(tmp_path, monkeypatch, caplog):
    def compile_(output):
        said.extend(record.getMessage() for record in caplog.records if record.name == "iconet")
        raise build.Unavailable("stopped")

    said: list[str] = []
    monkeypatch.setenv("ICONET_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(build, "library_path", lambda: tmp_path / "iconet-new.so")
    monkeypatch.setattr(build, "_compile", compile_)
    with caplog.at_level(logging.INFO, logger="iconet"), pytest.raises(build.Unavailable):
        build.build_library()
    (message,) = said
    assert "compiling" in message and "20 seconds" in message and "once" in message and str(tmp_path) in message
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("channels", [1, 8, 40, 192])
@pytest.mark.parametrize("batch", [1, 3, 16])
def test_groups_are_whole_vectors_and_cover_the_channels(channels, batch):
    for workers in (1, 2, 16):
        group = ss2d._group_channels(channels, batch, workers)
        assert group % 16 == 0 and 16 <= group <= channels + 15
    assert ss2d._group_channels(192, 1, 2) == 96
