"""Slices on several threads: the same results, in order, whatever the number of threads."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch

from bundle.inference.side_by_side import side_by_side
from bundle.inference.walker import SliceWalker
from bundle.networks import build_network
from bundle.ops import use_backend
from bundle.ops.backend import forced_backend


@pytest.fixture(autouse=True)
def _usual_threads() -> Iterator[None]:
    usual = torch.get_num_threads()
    yield
    torch.set_num_threads(usual)


def test_results_come_in_order_although_later_work_may_be_done_first() -> None:
    second = threading.Event()

    def work(number: int) -> int:
        if number == 0:
            assert second.wait(20)  # until number 1, on another thread, has been reached
        elif number == 1:
            second.set()
        return number

    assert list(side_by_side(work, 7, 2)) == list(range(7))


def test_threads_are_shared_out_and_given_back() -> None:
    torch.set_num_threads(4)
    assert set(side_by_side(lambda _: torch.get_num_threads(), 6, 2)) == {2}
    assert torch.get_num_threads() == 4
    assert list(side_by_side(lambda _: torch.get_num_threads(), 2, 1)) == [4, 4]


def test_after_an_error_nothing_new_begins() -> None:
    begun: list[int] = []

    def work(number: int) -> None:
        begun.append(number)
        if number == 1:
            raise MemoryError("none left")

    with pytest.raises(MemoryError, match="none left"):
        list(side_by_side(work, 500, 2))
    assert len(begun) < 500


@pytest.mark.parametrize("inference", [False, True])
def test_workers_see_the_back_end_and_the_mode_of_their_caller(inference: bool) -> None:
    def work(_: int) -> tuple[str, bool, bool]:
        backend = forced_backend()
        return "" if backend is None else backend.name, torch.is_inference_mode_enabled(), torch.is_grad_enabled()

    with torch.inference_mode(inference), use_backend("torch"):
        assert list(side_by_side(work, 4, 2)) == [("torch", inference, False)] * 4


@pytest.mark.parametrize("name", ["residual_sr", "iconet_small"])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_volume_has_the_same_bytes_on_any_number_of_threads_and_in_any_batch(name: str, mode: type) -> None:
    torch.manual_seed(0)
    network, volume = build_network(name, 2).eval(), torch.rand(30, 34, 5)
    volume[..., 2] = 0.5  # a constant slice has no weight
    results = []
    for threads, batch in ((1, 1), (1, 4), (2, 4), (3, 64)):
        torch.set_num_threads(threads)
        with mode():
            results.append(SliceWalker(batch)(volume, network, 2, False))
    assert all(torch.equal(result.volume, results[0].volume) for result in results[1:])
    assert all(result.weights == results[0].weights for result in results[1:]) and len(results[0].weights) == 4


def test_a_network_of_others_gets_batches() -> None:
    sizes: list[int] = []

    class Nearest(torch.nn.Module):
        scale = 2

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            sizes.append(len(image))
            return torch.nn.functional.interpolate(image, scale_factor=2)

    torch.set_num_threads(2)
    SliceWalker(4)(torch.rand(20, 20, 6), Nearest(), 2, False)
    assert sizes == [4, 2]
