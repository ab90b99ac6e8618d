"""The reference scan with exact zero-order hold, against the differential equation that it discretises."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import softplus

from bundle.ops.scan.reference import scan_orders, selective_scan_2d_reference


def arguments(seed: int = 0, low_bias: float = 0.0) -> tuple[Tensor, ...]:
    """x, proj, dt_weight, dt_bias, A, D of a map of 3x2 pixels, 2 channels and 3 states, in float64."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64)

    rates = -normal(4, 2, 3).exp()
    return normal(1, 3, 2, 2), normal(1, 3, 2, 4, 1 + 6), normal(4, 2, 1), normal(4, 2) + low_bias, rates, normal(4, 2)


def held(dt: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """A and B of equation 2 for a state matrix and a time step, from one matrix exponential: h' = A h + B x, x' = 0."""
    joint = torch.zeros(len(b) + 1, len(b) + 1, dtype=torch.float64)
    joint[:-1, :-1], joint[:-1, -1] = torch.diag(a), b
    joint = torch.matrix_exp(dt * joint)
    return joint[:-1, :-1], joint[:-1, -1]


def test_the_exact_scan_solves_the_differential_equation_with_its_input_held() -> None:
    x, proj, dt_weight, dt_bias, A, D = arguments()
    expected = torch.zeros(6, 2, dtype=torch.float64)
    for k, order in enumerate(scan_orders(3, 2)):
        for channel in range(2):
            h = torch.zeros(3, dtype=torch.float64)
            for pixel in order:
                low, b, c = proj.flatten(1, 2)[0, pixel, k].split([1, 3, 3])
                u = x.flatten(1, 2)[0, pixel, channel]
                a_bar, b_bar = held(softplus(low @ dt_weight[k, channel] + dt_bias[k, channel]), A[k, channel], b)
                h = a_bar @ h + b_bar * u
                expected[pixel, channel] += c @ h + D[k, channel] * u
    out = selective_scan_2d_reference(x, proj, dt_weight, dt_bias, A, D, exact=True)
    assert torch.allclose(out.flatten(0, 2), expected, rtol=1e-12, atol=1e-12)


def test_for_short_time_steps_the_two_discretisations_agree() -> None:
    short, long = arguments(low_bias=-15.0), arguments()
    for args, agree in ((short, True), (long, False)):
        both = [selective_scan_2d_reference(*args, exact=exact) for exact in (False, True)]
        assert torch.allclose(*both, atol=1e-4) == agree
