"""Ignite handlers that MONAI lacks: exact resuming, atomic checkpoints, a readable log."""

from __future__ import annotations

import logging
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.utils import CommonKeys
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from bundle.inference.weights import save_atomically
from bundle.training.patches import PatchBatches

logger = logging.getLogger("iconet")

SCHEDULE_POSITION = ("last_epoch", "_step_count", "_last_lr", "base_lrs")


class EpochSeeder:
    """Seed all random number generators at the start of each epoch from ``seed``, the epoch and the process rank.

    Epoch ``k`` is then the same whether training ran through or was killed and resumed. Covers Python, NumPy and torch,
    and tells ``loader`` the epoch: its draws must not depend on the process.

    Args:
        seed: of the run.
        loader: the batches of training.
    """

    def __init__(self, seed: int, loader: PatchBatches) -> None:
        self.seed, self.loader = seed, loader

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_STARTED, self)

    def __call__(self, engine: Engine) -> None:
        state = np.random.SeedSequence([self.seed, engine.state.epoch, idist.get_rank()]).generate_state(1)
        seed = int(state[0])
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        self.loader.set_epoch(engine.state.epoch)


class MeanLoss:
    """Report the mean loss over all processes, which share one batch in equal parts.

    The data-parallel wrapper averages the gradients; without this handler, the curve would be that of the first process
    alone. Attach it before the handlers that show the loss.
    """

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        items: Any = engine.state.output  # the decollated batch: each item has the loss of the batch
        loss = idist.all_reduce(float(items[0][CommonKeys.LOSS])) / idist.get_world_size()
        for item in items:
            item[CommonKeys.LOSS] = loss


class TrainingCheckpoint:
    """After every epoch, write everything needed to resume training, replacing the previous file.

    (MONAI's CheckpointSaver with ``n_saved=1`` deletes the old file before it writes the new one.)

    Attach it before a ValidationHandler, so that a validation at the start uses the restored weights. It still writes
    after all other handlers of an epoch.

    Args:
        path: of the checkpoint.
        objects: name -> object with ``state_dict`` and ``load_state_dict``; the trainer is always included.
        resume: start from the file if it exists.
    """

    def __init__(self, path: str, objects: Mapping[str, Any], resume: bool = False) -> None:
        self.path, self.objects, self.resume = path, objects, resume

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self.start)

    def start(self, engine: Engine) -> None:
        if self.resume:
            self.load(engine)
        if not engine.has_event_handler(self.save, Events.EPOCH_COMPLETED):
            engine.add_event_handler(Events.EPOCH_COMPLETED, self.save)  # runs after all other handlers

    def save(self, engine: Engine) -> None:
        if idist.get_rank() == 0:
            objects = {**self.objects, "trainer": engine}
            save_atomically({name: _bare(obj).state_dict() for name, obj in objects.items()}, self.path)

    def load(self, engine: Engine) -> None:
        """Restore every object; without a file, training starts from the beginning."""
        if not Path(self.path).is_file():
            logger.warning("nothing to resume: %s does not exist, training starts from the beginning", self.path)
            return
        states = torch.load(self.path, map_location="cpu", weights_only=True)
        for name, obj in self.objects.items():
            state = states[name]
            if isinstance(obj, LRScheduler):  # only its position is restored, its length is that of this run
                state = {**obj.state_dict(), **{key: state[key] for key in SCHEDULE_POSITION if key in state}}
            _bare(obj).load_state_dict(state)
        max_epochs = engine.state.max_epochs  # of this run, which may be longer
        engine.load_state_dict(states["trainer"])
        engine.state.max_epochs = max_epochs
        logger.info("resumed from %s after epoch %d", self.path, engine.state.epoch)
        if max_epochs is not None and engine.state.epoch >= max_epochs:
            logger.warning("all %d epochs are done: nothing to train", max_epochs)


class BestModel:
    """Keep the weights with the highest key metric of an evaluator, as a plain state dict.

    Its own state (best value and epoch) is part of the training checkpoint, so that a resumed run compares with all
    earlier epochs.

    Args:
        path: of the weights.
        model: network whose weights are kept.
        metric: name of the metric in the evaluator's state.
    """

    def __init__(self, path: str, model: nn.Module, metric: str) -> None:
        self.path, self.model, self.metric = path, model, metric
        self.value, self.epoch = -float("inf"), 0

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self.remind)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def remind(self, engine: Engine) -> None:
        """Give MONAI's evaluator the best value before a resume; otherwise it would call the next value the best."""
        if self.value > -float("inf"):
            state: Any = engine.state  # MONAI's attributes
            state.best_metric, state.best_metric_epoch = self.value, self.epoch

    def __call__(self, engine: Engine) -> None:
        value = float(engine.state.metrics[self.metric])
        if not value > self.value:
            return
        self.value, self.epoch = value, engine.state.epoch
        if idist.get_rank() == 0:
            save_atomically(_bare(self.model).state_dict(), self.path)

    def state_dict(self) -> dict[str, float]:
        return {"value": self.value, "epoch": self.epoch}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        self.value, self.epoch = float(state["value"]), int(state["epoch"])


class TrainingLog:
    """Log the progress of training, so that it can be followed without TensorBoard.

    One line every few updates, one per epoch, and after each validation the gain over zero-filled Fourier
    interpolation, which shows whether the network learns. Attach it after the ValidationHandler.

    Args:
        validator: the validation evaluator, with :class:`bundle.training.baseline.FourierGain`.
        best: the handler that keeps the best weights, by the same PSNR.
        every: updates between two lines; each gives the mean loss of these updates.
    """

    def __init__(self, validator: Engine, best: BestModel, every: int = 50) -> None:
        self.validator, self.best, self.every = validator, best, every
        self.losses: list[float] = []
        self.validated: dict[str, float] | None = None

    def attach(self, engine: Engine) -> None:
        self.validator.add_event_handler(Events.COMPLETED, self._keep)
        engine.add_event_handler(Events.STARTED, self._started)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._updated)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._epoch_completed)
        engine.add_event_handler(Events.COMPLETED, self._completed)

    def _keep(self, validator: Engine) -> None:
        self.validated = dict(validator.state.metrics)

    def _started(self, engine: Engine) -> None:
        if self.validated is not None:
            logger.info("before epoch %d: %s", engine.state.epoch + 1, self._validation(engine.state.epoch))

    def _updated(self, engine: Engine) -> None:
        items: Any = engine.state.output
        self.losses.append(float(items[0][CommonKeys.LOSS]))
        done, updates = len(self.losses), engine.state.epoch_length
        if done % self.every == 0 and done != updates:
            loss = np.mean(self.losses[-self.every :])
            logger.info("%s, update %d of %s: loss %.4f", _epoch(engine), done, updates, loss)

    def _epoch_completed(self, engine: Engine) -> None:
        validation = "" if self.validated is None else f", {self._validation(engine.state.epoch)}"
        logger.info("%s: loss %.4f%s", _epoch(engine), np.mean(self.losses), validation)
        self.losses = []

    def _validation(self, epoch: int) -> str:
        """The figures of the last validation, once."""
        figures, self.validated = self.validated or {}, None
        if self.best.metric not in figures or "val_gain" not in figures:
            return "no volume was validated"
        psnr, gain = figures[self.best.metric], figures["val_gain"]
        best = f"best {self.best.value - (psnr - gain):+.2f} after epoch {self.best.epoch}"
        best = "best so far" if self.best.value == psnr else best
        return f"validation PSNR {psnr:.2f} dB, {gain:+.2f} dB over zero-filled Fourier ({best})"

    def _completed(self, engine: Engine) -> None:
        if self.best.value > -float("inf"):
            logger.info("best weights: %s (epoch %d, %.2f dB)", self.best.path, self.best.epoch, self.best.value)


def _epoch(engine: Engine) -> str:
    return f"epoch {engine.state.epoch} of {engine.state.max_epochs}"


def _bare(obj: Any) -> Any:
    """The module inside a data-parallel wrapper, so that checkpoints do not depend on the number of processes."""
    return obj.module if isinstance(obj, nn.parallel.DistributedDataParallel) else obj
