"""A folder run of a MONAI evaluator: volumes one by one; a bad one is reported and the run continues."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator
from monai.transforms import Transform

from bundle.data.errors import root_cause

logger = logging.getLogger("iconet")


class VolumesFailed(SystemExit):
    """Some volumes of a folder run failed; the message lists them, the exit status is 1."""


def run_folder(
    evaluator: SupervisedEvaluator, data: Sequence[dict], preprocessing: Transform, key: str = "image"
) -> None:
    """Run an evaluator over volumes one by one; a bad one is reported and the run continues.

    Args:
        evaluator: MONAI evaluator whose post-processing writes the result.
        data: items with the path of the volume under ``key``.
        preprocessing: transform of an item.

    Raises:
        VolumesFailed: after the last volume, if any failed.
    """
    failures: list[str] = []
    for number, item in enumerate(data, start=1):
        name = str(item[key])
        logger.info("volume %d of %d: %s", number, len(data), name)
        try:
            _run_on(evaluator, DataLoader(Dataset([preprocessing(dict(item))]), batch_size=1))
        except Exception as error:
            reason = root_cause(error)
            failures.append(reason if name in reason else f"{name}: {reason}")
            logger.info("volume %d of %d failed; the last lines say why", number, len(data))
            logger.debug("traceback", exc_info=True)
    logger.info("%d of %d volumes done", len(data) - len(failures), len(data))
    if failures:
        raise VolumesFailed("\n".join([f"{len(failures)} of {len(data)} volumes failed:", *failures]))


def _run_on(evaluator: SupervisedEvaluator, loader: DataLoader) -> None:
    """Run an evaluator on new data, whatever state a previous run left behind."""
    evaluator.data_loader = loader
    evaluator.state.epoch, evaluator.state.iteration, evaluator.state.epoch_length = 0, 0, len(loader)
    evaluator._internal_run_generator = None  # after a failed run, ignite would only finish that run
    evaluator.run()
    if evaluator.state.iteration != len(loader):
        raise RuntimeError("the evaluator did not run")
