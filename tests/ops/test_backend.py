"""Which back end runs, and what is said when the one that was asked for cannot."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import Tensor

from bundle.ops import backend, backend_report, native, patch_match, selective_scan_2d, use_backend
from bundle.ops.backend import BACKENDS, ENVIRONMENT_VARIABLE, forced_backend, select_backend, unavailable


@pytest.fixture(autouse=True)
def nothing_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ENVIRONMENT_VARIABLE, raising=False)
    monkeypatch.setattr(backend, "_announced", set())


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "load", lambda: None)
    monkeypatch.setattr(native, "reason", lambda: "no C++ compiler was found")


def scan_arguments(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(1, 3, 5, 4), (1, 3, 5, 4, 2 + 2 * 3), (4, 4, 2), (4, 4), (4, 4, 3), (4, 4)]
    args = [torch.randn(shape, generator=generator) for shape in shapes]
    args[4] = -args[4].exp()
    return [t.to(dtype) for t in args]


def match_arguments(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(1, 5, 6, 8, generator=generator).to(dtype) for _ in range(3)]


@pytest.mark.parametrize("name", BACKENDS)
def test_every_back_end_that_runs_here_gives_the_same_result(name: str) -> None:
    why = unavailable(name)
    if why is not None or name in ("triton", "mamba_ssm"):
        pytest.skip(f"{name}: {why or 'needs a CUDA tensor'}")
    with use_backend("reference"):
        scan = selective_scan_2d(*scan_arguments(torch.float64))
        match = patch_match(*match_arguments(torch.float64))
    with use_backend(name):
        assert torch.allclose(selective_scan_2d(*scan_arguments()).double(), scan, atol=1e-4)
        found = patch_match(*match_arguments())
    assert torch.equal(found.indices, match.indices)
    assert torch.allclose(found.score.double(), match.score, atol=1e-5)


def test_the_choice_ends_with_the_block_also_after_an_error() -> None:
    assert forced_backend() is None
    with use_backend("reference"):
        with use_backend("torch"):
            assert forced_backend() == "torch"
        with pytest.raises(ZeroDivisionError), use_backend("torch"):
            raise ZeroDivisionError
        assert forced_backend() == "reference"
    assert forced_backend() is None


def test_an_unknown_back_end_is_an_error_that_lists_the_known() -> None:
    with pytest.raises(ValueError, match="'fast'.*reference, torch, native, triton, mamba_ssm"), use_backend("fast"):
        raise AssertionError("the block must not run")


def test_the_environment_variable_forces_a_back_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, "reference")
    assert select_backend(torch.zeros(1)) == "reference"
    with use_backend("torch"):
        assert select_backend(torch.zeros(1)) == "torch"
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, "")
    assert forced_backend() is None
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, "cuda")
    with pytest.raises(ValueError, match="unknown back end 'cuda'"):
        selective_scan_2d(*scan_arguments())


def test_a_forced_back_end_that_is_missing_says_why(no_compiler: None) -> None:
    for kernel, args in ((selective_scan_2d, scan_arguments()), (patch_match, match_arguments())):
        with use_backend("native"), pytest.raises(RuntimeError, match="'native'.*no C\\+\\+ compiler was found"):
            kernel(*args)


@pytest.mark.parametrize("name", ["triton", "mamba_ssm"])
def test_a_cuda_back_end_without_its_packages_says_why(name: str) -> None:
    why = unavailable(name)
    if why is None:
        pytest.skip(f"{name} runs on this machine")
    assert why and "\n" not in why
    with use_backend(name), pytest.raises(RuntimeError) as error:
        selective_scan_2d(*scan_arguments())
    assert name in str(error.value) and why in str(error.value)


def test_without_a_compiler_plain_torch_runs_and_the_log_says_so_once(
    no_compiler: None, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="iconet"):
        for _ in range(2):
            assert select_backend(torch.zeros(1)) == "torch"
    (message,) = [record.getMessage() for record in caplog.records if record.name == "iconet"]
    assert "torch" in message and "no C++ compiler was found" in message


def test_double_precision_runs_on_plain_torch() -> None:
    assert select_backend(torch.zeros(1, dtype=torch.float64)) == "torch"


def test_the_report_names_every_back_end(no_compiler: None) -> None:
    report = backend_report()
    assert tuple(report) == BACKENDS
    assert report["reference"] == report["torch"] == "available"
    assert report["native"] == "no C++ compiler was found"


def test_a_forced_native_kernel_names_the_types_that_it_takes() -> None:
    if unavailable("native"):
        pytest.skip(f"no native kernels here: {unavailable('native')}")
    with use_backend("native"), pytest.raises(RuntimeError, match="it takes float32 tensors on the CPU"):
        select_backend(torch.zeros(1, dtype=torch.float64))
