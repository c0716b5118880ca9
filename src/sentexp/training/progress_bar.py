"""The progress bar of a run: batches, time left, loss, learning rate and rows per second."""

import sys
import time
from typing import Any

import lightning as L  # noqa: N812 (the library's own abbreviation)
import torch
from lightning.pytorch.callbacks import TQDMProgressBar

from sentexp.system.console import duration
from sentexp.training.module import ClassifierModule

EACH_ON_A_GPU, EACH_IN_A_LOG = 10, 25
"""Batches between two updates. Each reads the loss, and so waits for the GPU."""


class ProgressBar(TQDMProgressBar):
    """Lightning's, which reads what it shows only when it shows it.

    Metrics that are logged with `prog_bar=True` are copied from the GPU in every step, shown or not.
    """

    def __init__(self, device: torch.device) -> None:
        steps = EACH_ON_A_GPU if device.type == "cuda" else 1
        super().__init__(refresh_rate=steps if sys.stderr.isatty() else EACH_IN_A_LOG)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock; a resumed run has taken steps already."""
        super().on_train_start(trainer, pl_module)
        self._began, self._first = time.monotonic(), trainer.global_step
        self._steps = trainer.estimated_stepping_batches

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        """Return what is shown after the bar."""
        assert isinstance(pl_module, ClassifierModule)
        shown = {key: value for key, value in super().get_metrics(trainer, pl_module).items() if key != "v_num"}
        if pl_module.last_loss is not None:
            shown["loss"] = f"{float(pl_module.last_loss):.3f}"
        if trainer.optimizers:
            shown["lr"] = f"{trainer.optimizers[0].param_groups[0]['lr']:.2e}"
        if pl_module.rows_per_second:
            shown["rows/s"] = f"{pl_module.rows_per_second:,.1f}"
        if trainer.training and trainer.max_epochs != 1 and (done := trainer.global_step - self._first):
            seconds = (time.monotonic() - self._began) / done * (self._steps - trainer.global_step)
            shown["left"] = duration(seconds)  # of the run: the bar itself is an epoch
        return shown
