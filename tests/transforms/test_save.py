"""SaveVolumed: what is beside a result that could not be written."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from bundle.transforms import SaveVolumed


def saver_and_item(folder: Path) -> tuple[SaveVolumed, dict]:
    source = folder / "in" / "scan.nii.gz"
    source.parent.mkdir()
    nib.save(nib.Nifti1Image(np.ones((4, 4, 2), np.float32), np.eye(4)), source)
    meta = {"filename_or_obj": str(source)}
    pred = MetaTensor(torch.ones(1, 8, 8, 2), affine=torch.diag(torch.tensor([0.5, 0.5, 1.0, 1.0])), meta=meta)
    save = SaveVolumed(keys="pred", output_dir=str(folder / "out"), dataset_dir=str(source.parent), suffix="SRx2")
    return save, {"pred": pred}


@pytest.mark.parametrize("moment", ["while the voxels are written", "when the file is put in place"])
def test_a_json_file_of_somebody_else_outlives_a_result_that_cannot_be_written(
    moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save, item = saver_and_item(tmp_path)
    foreign = tmp_path / "out" / "scan_SRx2.json"
    foreign.parent.mkdir()
    foreign.write_text(json.dumps({"EchoTime": 0.09}))

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync" if moment.startswith("while") else "os.replace", full)
    with pytest.raises(Exception, match="No space left"):
        save(item)
    monkeypatch.undo()
    assert json.loads(foreign.read_text()) == {"EchoTime": 0.09}
    assert [path.name for path in foreign.parent.iterdir()] == [foreign.name]


def test_no_mark_stays_of_a_result_that_cannot_be_put_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bundle.data import atomic

    save, item = saver_and_item(tmp_path)
    replace = atomic.os.replace

    def only_json(source: Path, target: Path) -> None:
        if not str(target).endswith(".json"):
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr("os.replace", only_json)
    with pytest.raises(Exception, match="No space left"):
        save(item)
    assert list((tmp_path / "out").iterdir()) == []
