"""A few steps of a run, timed on this machine: what a batch costs by its tokens, and the peak of memory."""

import math
import time
from dataclasses import dataclass, field, replace
from typing import Any

import lightning as L  # noqa: N812 (the library's own abbreviation)
import numpy as np
import torch

from sentexp.config import HeadOnly, Untuned
from sentexp.data.datamodule import DataModule
from sentexp.plan.workload import Batches, Workload
from sentexp.run.build import build_data, build_model, build_module
from sentexp.run.inputs import RunInputs
from sentexp.system.memory import peak_memory_gib, release_memory, reset_peak_memory
from sentexp.tracking.run_logger import RunLogger
from sentexp.training.module import ClassifierModule
from sentexp.training.trainer import build_trainer, run_batches

TRAINING_BATCHES, EVALUATION_BATCHES = 5, 4
"""Batches that are timed, after one that warms up: the largest, which also shows whether it fits."""
SHOWN = 4
"""Tokens of an evaluation for each of a training batch, which takes more memory: it keeps the states of all layers."""


@dataclass(kw_only=True, slots=True)
class Speed:
    """Seconds of a batch: `fixed`, and `per_token` for each token that the model reads."""

    fixed: float
    per_token: float

    def seconds(self, batches: Batches) -> float:
        """Return how long one pass takes."""
        return self.fixed * len(batches.order) + self.per_token * float(batches.computed.sum())


@dataclass(kw_only=True, slots=True)
class Measurement:
    """What was measured. `optimizer` is seconds of an optimizer step beyond its batch, `loading` those of the model.

    `written` is the speed of test batches where the model also writes its answers; None where it does not.
    """

    training: Speed | None
    optimizer: float
    evaluation: Speed
    written: Speed | None
    loading: float
    peak_gib: float

    def training_seconds(self, work: Workload) -> float:
        """Return how long the training takes, without evaluations."""
        if self.training is None:
            return 0.0
        return self.training.seconds(work.train) * work.epochs + self.optimizer * work.steps

    def validation_seconds(self, work: Workload) -> float:
        """Return how long all evaluations of the validation split take."""
        return self.evaluation.seconds(work.validation) * work.evaluations

    def test_seconds(self, work: Workload) -> float:
        """Return how long the test takes."""
        return (self.written or self.evaluation).seconds(work.test)


def measure(inputs: RunInputs, work: Workload, patience: float = math.inf) -> Measurement:
    """Train and evaluate a few batches of a run and forget what was learned.

    Args:
        inputs: of the run.
        work: the batches that it has.
        patience: seconds that the batches of a stage may take; where they would take more, one is timed. A GPU, whose
            first batch says nothing of the others, is always given its time.

    Raises:
        OutOfMemory: a batch did not fit.
        UserError: anything that would stop the run itself.
    """
    release_memory()
    reset_peak_memory(inputs.device)
    began = time.monotonic()
    model, _ = build_model(inputs)
    loading = time.monotonic() - began
    patience = math.inf if inputs.device.type == "cuda" else patience
    rehearsal = _Rehearsal(inputs, build_data(inputs), build_module(inputs, model), patience)
    training, optimizer, shown = None, 0.0, 0
    if not isinstance(inputs.config.peft, Untuned):
        watch = rehearsal.watch("train", work.train, TRAINING_BATCHES)
        training, optimizer = watch.speed(), watch.optimizer_seconds()
        shown = 0 if isinstance(inputs.config.peft, HeadOnly) else SHOWN * work.train.largest_size.tokens
    measurement = Measurement(
        training=training,
        optimizer=optimizer,
        evaluation=rehearsal.watch("validation", work.validation, EVALUATION_BATCHES, shown).speed(),
        written=rehearsal.watch("test", work.test, EVALUATION_BATCHES, shown).speed()
        if rehearsal.module.generates
        else None,
        loading=loading,
        peak_gib=peak_memory_gib(inputs.device),
    )
    release_memory()
    return measurement


def _few(batches: Batches, most: int) -> int:
    """Return how many batches to time: two at least, for a line, and no more than a quarter of a short run."""
    return max(2, min(most, len(batches.order) // 4))


def fit_line(tokens: list[int], seconds: list[float]) -> Speed:
    """Return the line with the least absolute deviations, nowhere negative: a batch that was held up does not move it.

    Args:
        tokens: of batches.
        seconds: that they took.
    """
    from scipy.optimize import linprog

    line, above = np.column_stack([np.ones(len(tokens)), tokens]), np.eye(len(tokens))
    solution = linprog(
        [0.0, 0.0, *np.ones(len(tokens))],
        A_ub=np.block([[line, -above], [-line, -above]]),
        b_ub=[*seconds, *(-second for second in seconds)],
    )
    return Speed(fixed=float(solution.x[0]), per_token=float(solution.x[1]))


@dataclass(kw_only=True)
class _Stopwatch(L.Callback):
    """Notes how long each batch took, and how much of that the optimizer did."""

    tokens: list[int]
    device: torch.device
    batch: list[float] = field(default_factory=list)
    optimizer: list[float] = field(default_factory=list)

    def speed(self) -> Speed:
        """Return the line through the timed batches, the first left out; through zero where there is one only."""
        if len(self.batch) == 1:
            return Speed(fixed=0.0, per_token=self.batch[0] / self.tokens[0])
        return fit_line(self.tokens[1:], self.batch[1:])

    def optimizer_seconds(self) -> float:
        """Return what an optimizer step takes beyond its batch; the first, which makes its state, is left out."""
        return float(np.median(self.optimizer[1:] or self.optimizer))

    def on_train_batch_start(self, *_: Any) -> None:
        self._began = self._now()

    def on_before_optimizer_step(self, *_: Any) -> None:
        self.batch.append(self._now() - self._began)

    def on_train_batch_end(self, *_: Any) -> None:
        self.optimizer.append(self._now() - self._began - self.batch[-1])

    def on_validation_batch_start(self, *_: Any) -> None:
        self._began = self._now()

    def on_validation_batch_end(self, *_: Any) -> None:
        self.batch.append(self._now() - self._began)

    def on_test_batch_start(self, *_: Any) -> None:
        self._began = self._now()

    def on_test_batch_end(self, *_: Any) -> None:
        self.batch.append(self._now() - self._began)

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


@dataclass
class _Rehearsal:
    """Runs batches as the run itself would: the same trainer, apart from its end and its accumulation."""

    inputs: RunInputs
    data: DataModule
    module: ClassifierModule
    patience: float

    def watch(self, stage: str, batches: Batches, most: int, shown: int = 0) -> _Stopwatch:
        """Return the times of some batches of a stage, after that of the largest; or of one, where time is short.

        Args:
            stage: train, validation or test.
            batches: of the stage.
            most: batches that are timed.
            shown: tokens of a batch that are known to fit: then the smallest is the one.
        """
        others = batches.spread(_few(batches, most))
        if self.patience < math.inf:
            fits = batches.largest_size.tokens <= shown
            one = self._time(stage, batches, [batches.smallest if fits else batches.largest])
            if one.batch[0] * (1 + len(others)) > self.patience:
                return one
        return self._time(stage, batches, [batches.largest, *others])

    def _time(self, stage: str, batches: Batches, numbers: list[int]) -> _Stopwatch:
        """Return the times of batches, in their order."""
        config, device = self.inputs.config.trainer, self.inputs.device
        watch = _Stopwatch(tokens=[int(batches.computed[number]) for number in numbers], device=device)
        once = replace(
            config,
            max_epochs=1,
            max_steps=None,
            accumulate_grad_batches=1,
            eval_steps=None,
            early_stopping_patience=None,
            progress_bar=False,
        )
        trainer = build_trainer(once, self.inputs.precision, device, RunLogger(), watch)
        run_batches(trainer, self.module, self.data.loader(stage, [batches.order[number] for number in numbers]), stage)
        return watch
