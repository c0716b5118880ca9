"""Checkpoints: the best trainable weights as safetensors, and the last state that a killed run resumes from."""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import lightning as L  # noqa: N812 (the library's own abbreviation)
import torch
from lightning.pytorch.callbacks import EarlyStopping
from safetensors.torch import load_file, save_file

from sentexp.config.metric_names import is_better_higher
from sentexp.distributed import processes
from sentexp.distributed.strategies import ShardedStrategy
from sentexp.errors import UserError, first_line
from sentexp.models.adapters import load_trainable_state, trainable_state
from sentexp.system.atomic_write import put_in_place, replacing, unfinished_name
from sentexp.system.package_files import sha256_of
from sentexp.training.module import ClassifierModule
from sentexp.training.preemption import Preempted, is_asked_to_stop

BEST, LAST = "best.safetensors", "last.ckpt"
LOGITS, TARGETS = "validation/logits", "validation/targets"


class Checkpoints(L.Callback):
    """Writes `best.safetensors` after an evaluation that improved, and `last.ckpt` after each evaluation and each
    `save_steps` optimizer steps. Every file appears under its name only when it is whole.

    Args:
        folder: of the run.
        monitor: the metric that selects the best.
        save_steps: optimizer steps between two states to resume from.
        before_save: called before a state is saved: what comes before it is not done again.
    """  # noqa: D205

    def __init__(
        self, folder: Path, monitor: str, save_steps: int, before_save: Callable[[], None] = lambda: None
    ) -> None:
        self.best_file = folder / BEST
        self.last_file = folder / LAST
        self.monitor = monitor
        self.save_steps = save_steps
        self.before_save = before_save
        self.best: float | None = None
        self.best_step = 0
        self.best_sha256 = ""
        """Of the best weights, where this process has written or resumed them."""
        self.evaluated_at = -1
        self.seconds = 0.0
        """Trained by earlier processes, up to the checkpoint that this one resumes from."""
        self._began = time.monotonic()
        self._step_before = 0
        self._between_steps = False
        self._stops = False

    def on_train_start(self, *_: Any) -> None:
        """Start the clock."""
        self._began = time.monotonic()

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        """Note the optimizer step, to know whether this micro-batch completes the next one.

        Raises:
            Preempted: the job ends, the state is saved, and Lightning has logged the step after that.
        """
        self._stop_if_asked()
        self._step_before = trainer.global_step

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Save every `save_steps` steps, unless an evaluation follows, which saves itself.

        Only between two optimizer steps: a checkpoint does not hold gradients that are accumulated so far. Where the
        job ends, the run stops once Lightning has logged the step. Of several processes the main one says so; where
        they hold shards, which all would have to save, none does.
        """
        step = trainer.global_step
        self._between_steps = step > self._step_before
        if not self._between_steps or _validation_follows(trainer):
            return
        self._stops = is_asked_to_stop() and processes.is_main() and not isinstance(trainer.strategy, ShardedStrategy)
        if self._stops or step % self.save_steps == 0:
            self._save_state(trainer)

    def on_train_end(self, *_: Any) -> None:
        """Stop here if the job ends: the last step was logged.

        Raises:
            Preempted: the state is saved.
        """
        self._stop_if_asked()

    def _stop_if_asked(self) -> None:
        if self._stops:
            raise Preempted

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keep the weights if they are the best so far; save the state to resume from."""
        assert isinstance(pl_module, ClassifierModule)
        value = float(trainer.callback_metrics.get(self.monitor, math.nan))  # correlations may not be defined
        score = value if is_better_higher(self.monitor) else -value
        score = -math.inf if math.isnan(score) else score
        self.evaluated_at = trainer.global_step
        if self.best is None or score > self.best:
            self.best, self.best_step = score, trainer.global_step
            self.best_sha256 = _save_weights(pl_module, self.best_file)
        if trainer.state.fn == "fit" and self._between_steps:
            self._save_state(trainer)

    def _save_state(self, trainer: L.Trainer) -> None:
        self.before_save()
        trainer.save_checkpoint(unfinished_name(self.last_file))
        if processes.is_main():  # which has written it
            put_in_place(self.last_file)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the best checkpoint."""
        seconds = self.seconds + time.monotonic() - self._began
        return {
            "best": self.best,
            "best_step": self.best_step,
            "best_sha256": self.best_sha256,
            "evaluated_at": self.evaluated_at,
            "seconds": seconds,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a state."""
        self.best = state_dict["best"]
        self.best_step = state_dict["best_step"]
        self.best_sha256 = state_dict.get("best_sha256", "")  # earlier releases wrote none
        self.evaluated_at = state_dict["evaluated_at"]
        self.seconds = state_dict["seconds"]

    def restore_best(self, module: ClassifierModule) -> None:
        """Put the best weights into the module, and their logits of the validation split.

        Raises:
            UserError: they are not what was written.
        """
        processes.all_gather()  # it is written
        self._check_best()
        tensors = load_file(self.best_file)
        module.keep_validation(tensors.pop(LOGITS), tensors.pop(TARGETS))
        load_trainable_state(module.classifier, tensors)

    @processes.main_process_only
    def _check_best(self) -> None:
        if self.best_sha256 and sha256_of(self.best_file) != self.best_sha256:
            raise UserError(
                f"{self.best_file} is damaged, by a fault of the disk perhaps: remove {self.best_file.parent}, and "
                "give the command again."
            )


class ResumableEarlyStopping(EarlyStopping):
    """Early stopping that a run resumed after its last evaluation remembers.

    NaN counts as a value that is not better; an evaluation without the metric does not count. Correlations and kappas
    are not defined where all answers are the same, as they may be at the beginning.

    Args:
        monitor: the metric.
        mode: `max` or `min`.
        patience: evaluations without a better value.
    """

    def __init__(self, monitor: str, mode: str, patience: int) -> None:
        super().__init__(
            monitor=monitor,
            mode=mode,
            patience=patience,
            strict=False,
            check_finite=False,
            check_on_train_epoch_end=False,  # after each evaluation, so that the state saved there knows of it
        )

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop at once if the patience had run out before the kill."""
        del pl_module
        trainer.should_stop = trainer.should_stop or self.wait_count >= self.patience


def read_checkpoint(file: Path) -> dict[str, Any]:
    """Return what a checkpoint holds, its tensors without their numbers.

    Its checksums are compared: torch does not compare them, and a run would continue from wrong numbers.

    Raises:
        UserError: it is damaged.
    """
    try:
        with ZipFile(file) as archive:
            wrong = archive.testzip()
        reason = wrong and f"{wrong} in it is damaged"
        state: dict[str, Any] = torch.load(file, map_location="meta", weights_only=True)
    except Exception as error:  # whatever a reader makes of a damaged file
        reason = first_line(error)
    if reason:
        raise UserError(f"{file} cannot be read ({reason}): delete it, and the run starts from its beginning.")
    return state


@processes.main_process_writes
def remove_checkpoints(folder: Path) -> None:
    """Delete the checkpoints of a run: it is finished and recorded, or starts anew with other batches."""
    for file in (folder / BEST, folder / LAST):
        file.unlink(missing_ok=True)
        unfinished_name(file).unlink(missing_ok=True)


def _validation_follows(trainer: L.Trainer) -> bool:
    loop = trainer.fit_loop.epoch_loop
    assert trainer.val_check_batch is not None
    index = loop.total_batch_idx if trainer.check_val_every_n_epoch is None else loop.batch_idx
    return (index + 1) % trainer.val_check_batch == 0


def _save_weights(module: ClassifierModule, file: Path) -> str:
    """Write what trains, and the logits of the validation split; all processes put shards together.

    Returns:
        The SHA-256 of the file, in the main process.
    """
    logits, targets = module.kept_validation
    state = trainable_state(module.classifier) | {LOGITS: logits.contiguous(), TARGETS: targets.contiguous()}
    if processes.is_main():
        with replacing(file) as unfinished:
            save_file(state, unfinished)
            return sha256_of(Path(unfinished))
    return ""
