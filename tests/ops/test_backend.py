"""Which back end runs, and what is said when the one that was asked for cannot."""

from __future__ import annotations

import contextlib
import importlib
import logging
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from bundle.ops import backend, backend_report, native, patch_match, selective_scan_2d, use_backend
from bundle.ops.backend import ENVIRONMENT_VARIABLE, TABLE, Backend, forced_backend, named_backend, select_backend


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


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
def test_every_back_end_that_runs_here_gives_the_same_result(row: Backend) -> None:
    why = row.unavailable()
    if why is not None or not row.takes("cpu", torch.float32):
        pytest.skip(f"{row.name}: {why or 'needs a CUDA tensor'}")
    with use_backend("reference"):
        scan = selective_scan_2d(*scan_arguments(torch.float64))
        match = patch_match(*match_arguments(torch.float64))
    with use_backend(row.name):
        assert torch.allclose(selective_scan_2d(*scan_arguments()).double(), scan, atol=1e-4)
        found = patch_match(*match_arguments())
    assert torch.equal(found.indices, match.indices)
    assert torch.allclose(found.score.double(), match.score, atol=1e-5)


def test_the_functions_that_the_table_names_exist() -> None:
    addresses = [a for row in TABLE for a in (row.scan, row.search, row.why_not, row.attention) if isinstance(a, str)]
    assert len(addresses) > 2 * len(TABLE)
    for module, name in (address.split(":") for address in addresses):
        assert callable(getattr(importlib.import_module(module), name))


def test_the_table_ends_its_automatic_rows_with_one_that_runs_anywhere_and_names_none_twice() -> None:
    last = [row for row in TABLE if row.automatic][-1]
    assert last.name == "torch" and not last.devices and not last.dtypes and last.why_not is None
    assert len({row.name for row in TABLE}) == len(TABLE)


def test_mamba_ssm_runs_only_when_asked_for() -> None:
    assert not named_backend("mamba_ssm").automatic


def test_a_row_of_a_program_of_its_own_runs_inside_its_block_and_in_its_thread_alone() -> None:
    scans = []

    def scan(x: Tensor, *parameters: Tensor) -> Tensor:
        scans.append(x.dtype)
        return torch.full_like(x, 7.0)

    row = Backend(
        "mine", scan=scan, search=lambda q, k, w: torch.zeros(len(q), q[0, ..., 0].numel(), dtype=torch.int64)
    )
    usual = selective_scan_2d(*scan_arguments())
    with use_backend(row), ThreadPoolExecutor(1) as pool:
        assert forced_backend() is row
        assert torch.equal(selective_scan_2d(*scan_arguments(torch.bfloat16)), torch.full_like(usual, 7.0).bfloat16())
        assert not patch_match(*match_arguments()).indices.any()
        assert torch.equal(pool.submit(lambda: selective_scan_2d(*scan_arguments())).result(), usual)
    assert scans == [torch.float32]
    assert torch.equal(selective_scan_2d(*scan_arguments()), usual)


def test_a_row_is_taken_for_its_devices_and_types_if_it_can_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def row(name: str, why: str = "", **limits: tuple[object, ...]) -> Backend:
        return Backend(name, scan=scan_arguments, search=match_arguments, why_not=lambda: why, automatic=True, **limits)

    rows = (
        row("other_device", devices=("mps",)),
        row("other_type", dtypes=(torch.float64,)),
        row("broken", why="no licence"),
        row("good", devices=("cpu",), dtypes=(torch.float32,)),
        row("never"),
    )
    monkeypatch.setattr(backend, "TABLE", rows)
    assert select_backend(torch.zeros(1)).name == "good"
    assert select_backend(torch.zeros(1, dtype=torch.float64)).name == "other_type"
    assert backend_report()["broken"] == "no licence"
    with (
        use_backend(rows[0]),
        pytest.raises(RuntimeError, match="it takes all tensors on mps, not torch.float32 on cpu"),
    ):
        select_backend(torch.zeros(1))


def test_a_trace_records_the_scripted_loops_whatever_was_asked_for() -> None:
    with use_backend("torch"):
        traced = torch.jit.trace(selective_scan_2d, tuple(scan_arguments()), check_trace=False)
    assert "prim::Loop" in str(traced.inlined_graph)
    longer = scan_arguments()
    longer[:2] = [torch.cat([t, t, t], dim=2) for t in longer[:2]]
    with use_backend("reference"):
        assert torch.allclose(traced(*longer), selective_scan_2d(*longer), atol=1e-4)


def test_the_choice_ends_with_the_block_also_after_an_error() -> None:
    assert forced_backend() is None
    with use_backend("reference"):
        with use_backend("torch"):
            assert forced_backend() is named_backend("torch")
        with pytest.raises(ZeroDivisionError), use_backend("torch"):
            raise ZeroDivisionError
        assert forced_backend() is named_backend("reference")
    assert forced_backend() is None


def test_an_unknown_back_end_is_an_error_that_lists_the_known() -> None:
    with (
        pytest.raises(ValueError, match="'fast'.*native, triton, torch, mamba_ssm, torchscript, reference"),
        use_backend("fast"),
    ):
        raise AssertionError("the block must not run")


def test_the_environment_variable_forces_a_back_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, "reference")
    assert select_backend(torch.zeros(1)).name == "reference"
    with use_backend("torch"):
        assert select_backend(torch.zeros(1)).name == "torch"
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
    why = named_backend(name).unavailable()
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
            assert select_backend(torch.zeros(1)).name == "torch"
    (message,) = [record.getMessage() for record in caplog.records if record.name == "iconet"]
    assert "torch" in message and "no C++ compiler was found" in message


def test_double_precision_runs_on_plain_torch() -> None:
    assert select_backend(torch.zeros(1, dtype=torch.float64)).name == "torch"


def test_the_report_names_every_back_end(no_compiler: None) -> None:
    report = backend_report()
    assert list(report) == [row.name for row in TABLE]
    assert report["reference"] == report["torch"] == "available"
    assert report["native"] == "no C++ compiler was found"


def test_a_forced_native_kernel_names_the_types_that_it_takes() -> None:
    why = named_backend("native").unavailable()
    if why:
        pytest.skip(f"no native kernels here: {why}")
    with use_backend("native"), pytest.raises(RuntimeError, match="it takes float32 tensors on cpu, not torch.float64"):
        select_backend(torch.zeros(1, dtype=torch.float64))


@pytest.mark.parametrize("setting", ["highest", "high"])
def test_the_check_on_a_gpu_takes_its_reference_without_tf32(monkeypatch: pytest.MonkeyPatch, setting: str) -> None:
    """With TF32 in its products the torch form would differ from a right kernel, and the kernel be put aside."""
    allowed = []

    def scan(*args: Tensor) -> Tensor:
        allowed.append(torch.backends.cuda.matmul.allow_tf32)
        return named_backend("reference").scan_function(*args)

    row = Backend("torch", scan=scan, search=scan)
    monkeypatch.setattr(backend, "named_backend", lambda name: row)
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision(setting)
        assert backend._scan_is_right(row, torch.device("cpu"))
        assert allowed == [False, False] and torch.get_float32_matmul_precision() == setting
    finally:
        torch.set_float32_matmul_precision(before)
