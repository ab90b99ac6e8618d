"""The layout that feeds the kernel of mamba_ssm, the kernel replaced by its formula; and the kernel itself if there."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_scan import plain_recurrence
from torch import Tensor
from torch.nn.functional import softplus

from bundle.ops.scan import mamba_ssm as scan_mamba
from bundle.ops.scan.mamba_ssm import selective_scan_2d_mamba

NAMES = ("x", "proj", "dt_weight", "dt_bias", "A", "D")


def scan_of_sequences(u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False):
    """What the kernel computes: u, delta (B, G d, L), A (G d, N), B, C (B, G, N, L), D, delta_bias (G d)."""
    assert (
        u.shape == delta.shape
        and u.shape[1] == A.shape[0]
        and B.shape == C.shape == (len(u), 4, A.shape[1], u.shape[2])
    )
    assert z is None and delta_softplus and {t.dtype for t in (u, delta, A, B, C, D, delta_bias)} == {u.dtype}
    group = torch.arange(u.shape[1]) // (u.shape[1] // B.shape[1])  # channel -> group
    B, C = B[:, group], C[:, group]
    delta = softplus(delta + delta_bias[:, None])
    h = torch.zeros(*u.shape[:2], A.shape[1], dtype=u.dtype)
    out = []
    for t in range(u.shape[2]):
        dt = delta[:, :, t, None]
        h = torch.exp(dt * A) * h + dt * u[:, :, t, None] * B[..., t]
        out.append((h * C[..., t]).sum(-1) + D * u[:, :, t])
    return torch.stack(out, dim=-1)


@pytest.fixture(autouse=True)
def fresh_probe():
    scan_mamba._probe.cache_clear()
    yield
    scan_mamba._probe.cache_clear()


def make_inputs(batch, height, width, channels, state, rank, seed=0) -> list[Tensor]:
    random = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=random)

    inputs = [normal(batch, height, width, channels), normal(batch, height, width, 4, rank + 2 * state)]
    inputs += [0.5 * normal(4, channels, rank), normal(4, channels) - 1]
    return [*inputs, -torch.exp(normal(4, channels, state)), normal(4, channels)]


def compare(inputs: list[Tensor], device: str) -> None:
    dy = torch.randn(inputs[0].shape, generator=torch.Generator().manual_seed(1))
    results = []
    for function, kind in ((plain_recurrence, {"dtype": torch.float64}), (selective_scan_2d_mamba, {"device": device})):
        leaves = [t.to(**kind).requires_grad_() for t in inputs]
        y = function(*leaves)
        results.append([y.detach(), *torch.autograd.grad(y, leaves, dy.to(y))])
    for name, want, got in zip(("y", *NAMES), *results, strict=True):
        error = (got.double().cpu() - want).norm() / want.norm().clamp_min(1e-30)
        assert error < (1e-5 if name == "y" else 1e-4), name


@settings(max_examples=25, deadline=None, derandomize=True)
@given(shape=st.tuples(*(st.integers(1, n) for n in (2, 5, 5, 4, 3, 3))), seed=st.integers(0, 1000))
def test_sequences_flips_groups_and_merge_give_the_recurrence_and_its_gradients(shape, seed):
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(scan_mamba, "_probe", lambda: (scan_of_sequences, ""))
        compare(make_inputs(*shape, seed=seed), "cpu")


def test_half_types_are_scanned_in_float32_and_come_back(monkeypatch):
    monkeypatch.setattr(scan_mamba, "_probe", lambda: (scan_of_sequences, ""))
    inputs = make_inputs(1, 3, 2, 2, 2, 1)
    want = plain_recurrence(*(t.bfloat16().double() for t in inputs))
    with torch.autocast("cpu", torch.bfloat16):
        got = selective_scan_2d_mamba(*(t.bfloat16() for t in inputs))
    assert got.dtype == torch.bfloat16
    assert (got.double() - want).norm() < torch.finfo(torch.bfloat16).eps * want.norm()


def test_more_states_than_the_kernel_takes_are_refused(monkeypatch):
    monkeypatch.setattr(scan_mamba, "_probe", lambda: (scan_of_sequences, ""))
    with pytest.raises(ValueError, match="256"):
        selective_scan_2d_mamba(*make_inputs(1, 1, 1, 1, 257, 1))


def install(monkeypatch: pytest.MonkeyPatch, cuda: bool, **attributes: object) -> None:
    """Pretend that mamba_ssm is installed, with these attributes in its interface."""
    for name in ("mamba_ssm", "mamba_ssm.ops"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, scan_mamba._INTERFACE, SimpleNamespace(**attributes))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)


@pytest.mark.parametrize("kernel", [{}, {"selective_scan_cuda": None}])
def test_a_package_that_imports_but_has_no_kernel_is_not_available(kernel, monkeypatch):
    install(monkeypatch, cuda=True, selective_scan_fn=scan_of_sequences, **kernel)
    assert "selective_scan_cuda" in scan_mamba.reason()
    with pytest.raises(RuntimeError, match="selective_scan_cuda"):
        selective_scan_2d_mamba(*make_inputs(1, 1, 1, 1, 1, 1))


@pytest.mark.parametrize("cuda", [False, True])
def test_a_package_with_a_kernel_is_available_where_there_is_a_gpu(cuda, monkeypatch):
    install(monkeypatch, cuda=cuda, selective_scan_fn=scan_of_sequences, selective_scan_cuda=object())
    assert (scan_mamba.reason() == "") == cuda
    assert scan_mamba.reason() == ("" if cuda else "mamba_ssm needs a CUDA device")


def test_a_missing_package_is_reported_and_not_raised(monkeypatch):
    monkeypatch.setitem(sys.modules, "mamba_ssm", None)
    assert scan_mamba.reason()
    assert "mamba_ssm cannot be imported" in scan_mamba.reason()


@pytest.mark.parametrize("shape", [(1, 1, 1, 1, 1, 1), (2, 7, 9, 33, 5, 3), (2, 16, 12, 96, 16, 6)], ids=str)
def test_the_kernel_itself_gives_the_recurrence_and_its_gradients(shape):
    if scan_mamba.reason():
        pytest.skip(f"MAMBA_SSM KERNEL NOT TESTED: {scan_mamba.reason()}")
    compare(make_inputs(*shape), "cuda")
