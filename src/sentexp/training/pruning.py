"""Pruning: a training that another run has already beaten stops after an evaluation, and keeps its checkpoint."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import lightning as L  # noqa: N812 (the library's own abbreviation)
from torch import Tensor

from sentexp.training.module import ClassifierModule


@dataclass(kw_only=True, slots=True)
class Looked:
    """What an evaluation has shown: the monitored metric at an optimizer step, and the validation rows behind it.

    `logits` have the shape (rows, classes) and `targets` (rows,); `folder` is the run's.
    """

    step: int
    value: float
    logits: Tensor
    targets: Tensor
    folder: Path


class Judge(Protocol):
    """Decides whether a run goes on."""

    def __call__(self, looked: Looked) -> str | None:
        """Return why the run is to stop; None lets it go on."""


class Pruned(Exception):
    """A run was stopped on purpose; its message says why, and `looked` what it had reached."""

    def __init__(self, reason: str, looked: Looked) -> None:
        super().__init__(reason)
        self.looked = looked


class Pruning(L.Callback):
    """Shows each evaluation during the training to the judge; must come after the callback that saves checkpoints.

    Args:
        judge: decides.
        monitor: the metric to show.
        folder: of the run.
    """

    def __init__(self, judge: Judge, monitor: str, folder: Path) -> None:
        self.judge = judge
        self.monitor = monitor
        self.folder = folder

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop the training where the judge says so; at its last step there is nothing to save any more.

        Raises:
            Pruned: the judge has spoken.
        """
        if trainer.state.fn != "fit":
            return
        assert isinstance(pl_module, ClassifierModule)
        logits, targets = pl_module.validation
        value = float(trainer.callback_metrics[self.monitor])
        looked = Looked(step=trainer.global_step, value=value, logits=logits, targets=targets, folder=self.folder)
        reason = self.judge(looked)
        if reason is not None and trainer.global_step < trainer.estimated_stepping_batches:
            raise Pruned(reason, looked)
