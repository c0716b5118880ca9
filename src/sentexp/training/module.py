"""The LightningModule: loss, metrics and optimizer of a classifier."""

import time
from collections import deque
from typing import TYPE_CHECKING, Any

import lightning as L  # noqa: N812 (the library's own abbreviation)
import torch
from torch import Tensor, nn

from sentexp.config import OptimConfig
from sentexp.data.datamodule import Batch
from sentexp.errors import UserError
from sentexp.models.adapters import load_trainable_state, trainable_state
from sentexp.models.backbone import head_of
from sentexp.training.loss import row_losses
from sentexp.training.metrics import SplitMetrics
from sentexp.training.optim import build_optimizer, build_schedule

if TYPE_CHECKING:
    from lightning.pytorch.utilities.types import OptimizerLRScheduler


SPEED_WINDOW = 60.0


class ClassifierModule(L.LightningModule):
    """Trains what `classifier` lets train.

    Args:
        classifier: token ids and mask to float32 logits.
        labels: class names, in the order of the logits.
        optim: optimizer and schedule.
        seed: dropout masks are a function of the seed and the micro-batch number, so a resumed run repeats them.
        log_every_n_steps: how often the loss is looked at for being a number.
        class_weights: of the training loss, one for each label; None is 1 for each.
        focal_gamma: of the training loss; 0 is cross-entropy.
    """

    def __init__(
        self,
        classifier: nn.Module,
        labels: list[str],
        optim: OptimConfig,
        seed: int,
        log_every_n_steps: int,
        class_weights: list[float] | None = None,
        focal_gamma: float = 0.0,
    ) -> None:
        super().__init__()
        self.classifier = classifier
        self.optim = optim
        self.seed = seed
        self.log_every_n_steps = log_every_n_steps
        self.validation_metrics = SplitMetrics(labels)
        self.test_metrics = SplitMetrics(labels)
        self.strict_loading = False  # a checkpoint holds what trains, not the backbone (law 8)
        self.focal_gamma = focal_gamma
        self.class_weights: Tensor | None
        weights = None if class_weights is None else torch.tensor(class_weights)
        self.register_buffer("class_weights", weights, persistent=False)
        self._test_parts: list[tuple[Tensor, Tensor, Tensor]] = []
        self._pace: deque[tuple[float, int]] = deque()

    def on_train_start(self) -> None:
        """Put every module in training mode (law 2).

        Lightning leaves a pretrained model in evaluation mode here, and restores this mode after each evaluation.
        """
        self.train()

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Seed dropout by seed and micro-batch number."""
        del batch, batch_idx
        number = self.trainer.fit_loop.epoch_loop.total_batch_idx
        torch.manual_seed(self.seed * 1_000_003 + number)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss whose sum over an accumulation window is the mean over the rows of the whole step.

        Class weights do not change the divisor, so that the loss of a step does not depend on how it is cut (law 9).
        """
        del batch_idx
        logits = self.classifier(batch.input_ids, batch.attention_mask)
        loss = row_losses(logits, batch.labels, self.class_weights, self.focal_gamma).sum() / batch.step_rows
        mean = loss.detach() * batch.step_rows / len(batch.labels)
        self.log("train/loss", mean, prog_bar=True)
        self._log_speed(len(batch.labels))
        if self.trainer.global_step % self.log_every_n_steps == 0:
            self._refuse_what_is_no_number(mean)
        return loss * self.trainer.accumulate_grad_batches  # Lightning divides by it

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Add a batch to the validation metrics."""
        del batch_idx
        self.validation_metrics.update(self.classifier(batch.input_ids, batch.attention_mask), batch.labels)

    def on_validation_epoch_end(self) -> None:
        """Log the validation metrics."""
        self._refuse_what_is_no_number(self.validation_metrics.loss.compute())
        self._log_metrics("validation", self.validation_metrics, per_class=False)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Add a batch to the test metrics, and keep its logits."""
        del batch_idx
        logits = self.classifier(batch.input_ids, batch.attention_mask)
        self.test_metrics.update(logits, batch.labels)
        self._test_parts.append((batch.rows.cpu(), logits.float().cpu(), batch.labels.cpu()))

    def on_test_epoch_start(self) -> None:
        """Forget the logits of an earlier test."""
        self._test_parts.clear()

    def test_logits(self) -> tuple[Tensor, Tensor]:
        """Return logits (rows, classes) and class indices (rows,) of the test split, in its order."""
        rows, logits, targets = (torch.cat(parts) for parts in zip(*self._test_parts, strict=True))
        order = rows.argsort()
        return logits[order], targets[order]

    def on_test_epoch_end(self) -> None:
        """Log the test metrics, per class as well; the confusion matrix stays in `test_metrics` until it is read."""
        for name, value in self.test_metrics.compute(per_class=True).items():
            self.log(f"test/{name}", value)

    def configure_optimizers(self) -> "OptimizerLRScheduler":
        """Return the optimizer and its schedule, stepped once per optimizer step."""
        optimizer = build_optimizer(self.optim, self.classifier, head_of(self.classifier), self.device)
        schedule = build_schedule(self.optim, optimizer, int(self.trainer.estimated_stepping_batches))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep adapter and head only (law 8)."""
        checkpoint["state_dict"] = trainable_state(self.classifier)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put adapter and head back."""
        load_trainable_state(self.classifier, checkpoint["state_dict"])
        checkpoint["state_dict"] = {}

    def _log_metrics(self, split: str, metrics: SplitMetrics, per_class: bool) -> None:
        for name, value in metrics.compute(per_class).items():
            self.log(f"{split}/{name}", value, prog_bar=name == "accuracy")
        metrics.reset()

    def _refuse_what_is_no_number(self, loss: Tensor) -> None:
        """Stop a training that has diverged; looked at now and then, as looking waits for a GPU."""
        if not torch.isfinite(loss):
            raise UserError(
                f"The loss is {float(loss)} at step {self.trainer.global_step}: lower optim.lr={self.optim.lr:g}, set "
                "trainer.gradient_clip_val, or use trainer.precision=fp32."
            )

    def _log_speed(self, rows: int) -> None:
        """Show rows per second over the micro-batches of the last `SPEED_WINDOW` seconds."""
        self._pace.append((time.monotonic(), rows))
        while self._pace[-1][0] - self._pace[0][0] > SPEED_WINDOW:
            self._pace.popleft()
        if len(self._pace) > 1:
            elapsed = self._pace[-1][0] - self._pace[0][0]
            done = sum(count for _, count in self._pace) - self._pace[0][1]
            self.log("train/rows_per_second", done / max(elapsed, 1e-9), prog_bar=True)
