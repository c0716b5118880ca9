"""Pruning: a training that another run has already beaten stops after an evaluation, and keeps its checkpoint."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import lightning as L  # noqa: N812 (the library's own abbreviation)
from torch import Tensor

from sentexp.training.module import ClassifierModule


@dataclass(kw_only=True, slots=True)
class EvaluationSnapshot:
    """The result of an evaluation: the monitored metric at an optimizer step, and the validation rows behind it.

    `logits` have the shape (rows, classes) and `targets` (rows,); `folder` is the run's.
    """

    step: int
    value: float
    logits: Tensor
    targets: Tensor
    folder: Path


class PruningPolicy(Protocol):
    """Decides whether a run continues."""

    def __call__(self, snapshot: EvaluationSnapshot) -> str | None:
        """Return why the run is to stop; None lets it continue."""


class Pruned(Exception):
    """A run was stopped on purpose; its message says why, and `snapshot` what it had reached."""

    def __init__(self, reason: str, snapshot: EvaluationSnapshot) -> None:
        super().__init__(reason)
        self.snapshot = snapshot


class PruningCallback(L.Callback):
    """Shows each evaluation during the training to a policy; must come after the callback that saves checkpoints.

    Args:
        policy: decides.
        monitor: the metric to show.
        folder: of the run.
    """

    def __init__(self, policy: PruningPolicy, monitor: str, folder: Path) -> None:
        self.policy = policy
        self.monitor = monitor
        self.folder = folder

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop the training where the policy says so; at its last step there is nothing to save any more.

        Raises:
            Pruned: the policy has stopped the run.
        """
        if trainer.state.fn != "fit":
            return
        assert isinstance(pl_module, ClassifierModule)
        logits, targets = pl_module.validation
        snapshot = EvaluationSnapshot(
            step=trainer.global_step,
            value=float(trainer.callback_metrics.get(self.monitor, math.nan)),
            logits=logits,
            targets=targets,
            folder=self.folder,
        )
        reason = self.policy(snapshot)
        if reason is not None and trainer.global_step < trainer.estimated_stepping_batches:
            raise Pruned(reason, snapshot)
