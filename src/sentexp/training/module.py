"""The LightningModule: loss, metrics and optimizer of a classifier."""

import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import lightning as L  # noqa: N812 (the library's own abbreviation)
import torch
from torch import Tensor

from sentexp.config import OptimConfig, PriorCorrection
from sentexp.data.batch import Batch, Texts, move
from sentexp.distributed import processes
from sentexp.distributed.sharding import is_sharded
from sentexp.errors import UserError
from sentexp.metrics.generated_answers import answer_metrics
from sentexp.metrics.target import Classes, Target
from sentexp.models.adapters import load_trainable_state, trainable_state
from sentexp.models.cuda_graphs import ScoringGraphs
from sentexp.models.fast.prefix_cache import PrefixCache
from sentexp.models.label_scorer import LabelScorer, label_prior, without_prior
from sentexp.models.sequence_classifier import SequenceClassifier
from sentexp.models.structure import find_head
from sentexp.training.evaluation import Evaluation, Outputs
from sentexp.training.loss import RowLoss
from sentexp.training.optim import build_optimizer, build_schedule
from sentexp.training.recorded_steps import Learner, TrainingGraphs

if TYPE_CHECKING:
    from lightning.pytorch.utilities.types import OptimizerLRScheduler
    from torch.optim import Optimizer


SPEED_WINDOW = 60.0
OF_A_PROCESS = 1 << 48
"""Between the seeds of two processes: more than there are micro-batches."""


class ClassifierModule(L.LightningModule):
    """Trains what `classifier` lets train.

    Args:
        classifier: token ids and mask to scores, and to losses.
        labels: class names, in the order of the logits.
        optim: optimizer and schedule.
        seed: dropout masks are a function of the seed and the micro-batch number, so a resumed run repeats them.
        log_every_n_steps: how often the loss is looked at for being a number.
        row_loss: of the training; None is cross-entropy.
        correction: the prior that is divided out of the probabilities in every evaluation.
        content_free: texts that say nothing, for `PriorCorrection.contextual`.
        generates: let the model write its answers to the test rows.
        cuda_graphs: record steps and scores, and replay them.
        target: what rows are measured as; None is classes without an order.
    """

    def __init__(
        self,
        classifier: SequenceClassifier | LabelScorer,
        labels: list[str],
        optim: OptimConfig,
        seed: int,
        log_every_n_steps: int,
        row_loss: RowLoss | None = None,
        correction: PriorCorrection = PriorCorrection.none,
        content_free: Texts | None = None,
        generates: bool = False,
        cuda_graphs: bool = False,
        target: Target | None = None,
    ) -> None:
        super().__init__()
        self.target = target or Classes(labels)
        self.classifier = classifier
        self.optim = optim
        self.seed = seed
        self.log_every_n_steps = log_every_n_steps
        self.labels = labels
        self.correction = correction
        self.content_free = content_free
        self.generates = generates
        self.prior: Tensor | None = None
        self.test: Evaluation
        self.kept_validation: tuple[Tensor, Tensor]
        self.strict_loading = False  # a checkpoint holds what trains, not the backbone (law 8)
        self.row_loss = RowLoss() if row_loss is None else row_loss
        self.step_loss: Tensor
        self.register_buffer("step_loss", torch.zeros(()), persistent=False)
        self._outputs = Outputs()
        self._beginning = PrefixCache()
        self.cuda_graphs = cuda_graphs
        self.recorded_graphs = ""
        self.penalty: Callable[[], Tensor] | None = None
        self.training_graphs: TrainingGraphs | None = None
        self.scoring_graphs = ScoringGraphs(classifier) if cuda_graphs else None
        self._replay: Callable[[], Tensor] | None = None
        self.last_loss: Tensor | None = None
        self.rows_per_second = 0.0
        self._pace: deque[tuple[float, int]] = deque()

    def on_train_start(self) -> None:
        """Put every module in training mode (law 2).

        Lightning leaves a pretrained model in evaluation mode here, and restores this mode after each evaluation.
        """
        self.train()
        if self.cuda_graphs and self.trainer.accumulate_grad_batches == 1:
            optimizer: Any = self.optimizers(use_pl_optimizer=False)
            context, layers = self.trainer.precision_plugin.forward_context, lambda: self.classifier.packed.fast_layers
            self.training_graphs = TrainingGraphs([Learner(optimizer, layers, self._loss, self._clip, context)])

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Seed dropout by seed, micro-batch number and process; look for a CUDA graph of the batch."""
        del batch_idx
        if self.training_graphs is not None:
            self._seed_dropout()
            layout = self.classifier.packed.recordable(batch.texts)
            self._replay = None if layout is None else self.training_graphs.get(batch._replace(texts=layout))
        self._seed_dropout()

    def _seed_dropout(self) -> None:
        number = self.trainer.fit_loop.epoch_loop.total_batch_idx
        seed = self.seed * 1_000_003 + number + processes.rank() * OF_A_PROCESS
        torch.default_generator.manual_seed(seed)  # torch.manual_seed also notes the call stack, in a millisecond
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss whose sum over an accumulation window is the mean over the rows of the whole step.

        Class weights do not change the divisor, so that the loss of a step does not depend on how it is cut (law 9).
        """
        del batch_idx
        loss = self._loss(batch) if self._replay is None else self._replay()
        self.step_loss += loss.detach()
        self._log_speed(batch.batch_rows)
        return loss * self.trainer.accumulate_grad_batches  # Lightning divides by it

    def _loss(self, batch: Batch) -> Tensor:
        losses: Tensor = self.row_loss(self.classifier, batch.texts, batch.labels) * batch.counts
        loss = losses.sum() / batch.step_rows
        if self.penalty is not None:
            loss = loss + self.penalty() * batch.counts.sum() / batch.step_rows  # once a step, however it is cut
        return loss

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Find the gradients, also of what was read together with other runs.

        A replayed step has used its own already: it leaves none, so that the optimizer has nothing to do.
        """
        if self._replay is None:
            loss.backward(*args, **kwargs)
            self.classifier.packed.finish()

    def on_before_optimizer_step(self, optimizer: "Optimizer") -> None:
        """Log the loss of the step: the mean over its rows, in all micro-batches and processes."""
        del optimizer
        loss = self.step_loss.clone()
        self.step_loss.zero_()
        self.last_loss = loss
        if self._is_recorded:
            self.log("train/loss", loss)
        if self.trainer.global_step % self.log_every_n_steps == 0:
            self._refuse_what_is_no_number(loss)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Score a batch."""
        self._score(batch, batch_idx)

    def on_validation_epoch_end(self) -> None:
        """Log the validation metrics, and keep the logits as they are: they fit the temperature, and a batch prior."""
        raw = self._outputs.take()
        self.keep_validation(raw.logits, raw.targets)
        metrics = _measure(self.target, *self.validation) | answer_metrics(raw.outside, raw.irregular)
        self._refuse_what_is_no_number(torch.tensor(metrics["loss"]))
        for name, value in metrics.items():
            self.log(f"validation/{name}", value, prog_bar=name == self.target.kind.headline)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Score a batch, and let the model write its answers where that is wanted."""
        generated = None
        if self.generates and isinstance(self.classifier, LabelScorer):
            generated = self.classifier.generate(batch.texts)
        self._score(batch, batch_idx, generated)

    def on_test_epoch_end(self) -> None:
        """Log the test metrics, per class as well; `test` holds what they are computed from."""
        raw = self._outputs.take()
        self.test = raw._replace(logits=self._corrected(raw.logits))
        metrics = _measure(self.target, self.test.logits, raw.targets, per_class=True)
        metrics |= answer_metrics(raw.outside, raw.irregular)
        for name, value in metrics.items():
            self.log(f"test/{name}", value)

    def predict_step(self, batch: Batch, batch_idx: int) -> tuple[Tensor, Tensor]:
        """Return row numbers, shape (rows,), and the features that a head reads, shape (rows, hidden)."""
        del batch_idx
        assert isinstance(self.classifier, SequenceClassifier)
        features = self.classifier.features(batch.texts)
        return batch.rows[batch.counts].cpu(), features[batch.counts].cpu()

    @property
    def validation(self) -> tuple[Tensor, Tensor]:
        """Logits (rows, classes) and class indices (rows,) of the validation split, in its order."""
        logits, targets = self.kept_validation
        return self._corrected(logits), targets

    def keep_validation(self, logits: Tensor, targets: Tensor) -> None:
        """Take these for the logits, before any correction, and class indices of the validation split."""
        self.kept_validation = logits, targets
        if self.correction is PriorCorrection.batch:
            self.prior = label_prior(logits)
        self.target.choose(*self.validation)

    def _score(self, batch: Batch, batch_idx: int, generated: Tensor | None = None) -> None:
        if batch_idx == 0:
            self._outputs.clear()
            self._beginning = PrefixCache()
        if batch_idx == 0 and self.content_free is not None:
            texts = move(self.content_free, self.device)
            self.prior = label_prior(self.classifier(texts).logits).cpu()
        score = self.classifier if self.scoring_graphs is None else self.scoring_graphs
        self._outputs.add(batch, score(batch.texts, self._beginning), generated)

    def _corrected(self, logits: Tensor) -> Tensor:
        return logits if self.prior is None else without_prior(logits, self.prior)

    def configure_optimizers(self) -> "OptimizerLRScheduler":
        """Return the optimizer and its schedule, stepped once per optimizer step."""
        # The kernel takes no shards, and what scales losses in fp16 must see the gradients before it.
        fused = not is_sharded(self.classifier) and self.trainer.precision != "16-mixed"
        optimizer = build_optimizer(
            self.optim, self.classifier.model, find_head(self.classifier.model), self.device, fused
        )
        schedule = build_schedule(self.optim, optimizer, int(self.trainer.estimated_stepping_batches))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_gradient_clipping(
        self, optimizer: "Optimizer", gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clip the norm of the gradients; Lightning itself refuses to before an optimizer of one kernel."""
        del gradient_clip_algorithm
        if gradient_clip_val:
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            torch.nn.utils.clip_grad_norm_(parameters, gradient_clip_val)

    def _clip(self, optimizer: "Optimizer") -> None:
        self.configure_gradient_clipping(optimizer, self.trainer.gradient_clip_val)

    def teardown(self, stage: str) -> None:
        """Give the memory of recorded steps back."""
        if stage == "fit" and self.training_graphs is not None:
            self.recorded_graphs = self.training_graphs.summary
            self.training_graphs = self._replay = None

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep adapter and head only (law 8)."""
        checkpoint["state_dict"] = trainable_state(self.classifier)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put adapter and head back."""
        load_trainable_state(self.classifier, checkpoint["state_dict"])
        checkpoint["state_dict"] = {}

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
            self.rows_per_second = done / max(elapsed, 1e-9)
            if self._is_recorded:
                self.log("train/rows_per_second", torch.tensor(self.rows_per_second))  # a tensor, or it goes to the GPU

    @property
    def _is_recorded(self) -> bool:
        """Whether Lightning passes on what is logged in this step: in others logging takes as long for nothing."""
        return (self.trainer.fit_loop.epoch_loop._batches_that_stepped + 1) % self.log_every_n_steps == 0


@processes.main_process_only
def _measure(target: Target, logits: Tensor, targets: Tensor, per_class: bool = False) -> dict[str, float]:
    return target.measure(logits, targets, per_class)
