"""What a run has to compute: its batches, as they will be padded, its steps and its evaluations."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sentexp.config import AnswerLoss, CausalLM, PriorCorrection, TrainerConfig, Untuned
from sentexp.data.datamodule import DataModule
from sentexp.data.imbalance import row_weights
from sentexp.data.splits import Numbers
from sentexp.data.tokens import TokenRows
from sentexp.materials import Basis

Order = Sequence[tuple[list[int], int]]


@dataclass(kw_only=True, slots=True)
class Batches:
    """One pass over a split.

    `order` holds what the data module takes, (row numbers, rows of the step); `rows` and `width` are the shape of each
    batch, and `width` counts what stands behind a prompt in the same pass; `tokens` are those of the texts in their
    frames, without padding.
    """

    order: Order
    rows: Numbers
    width: Numbers
    tokens: int

    @property
    def padded(self) -> Numbers:
        """Tokens that the model reads for each batch, padding included."""
        return self.rows * self.width

    @property
    def largest(self) -> int:
        """The number of the batch with the most tokens: the first where the batches are equal."""
        return int(self.padded.argmax())

    def spread(self, count: int) -> list[int]:
        """Return the numbers of `count` batches, spread evenly over their sizes and away from the extremes."""
        by_size = self.padded.argsort(kind="stable")
        return [int(by_size[len(by_size) * (2 * n + 1) // (2 * count)]) for n in range(count)]


@dataclass(kw_only=True, slots=True)
class Workload:
    """What one run computes. `train` is the first epoch; no early stopping is assumed.

    `micro_batches`, `steps` and `evaluations` (of the validation split) are those of the whole training.
    """

    train: Batches
    validation: Batches
    test: Batches
    micro_batches: int
    steps: int
    evaluations: int

    @property
    def epochs(self) -> float:
        """How often the training rows are seen."""
        return self.micro_batches / len(self.train.order)


def workload(basis: Basis, tokens: dict[str, TokenRows], trainer: TrainerConfig) -> Workload:
    """Return what a run has to compute.

    Args:
        basis: of the run.
        tokens: of its splits.
        trainer: its loop; not that of `basis` where memory has run out before.
    """
    config = basis.config
    weights = row_weights(config.data, basis.examples)
    data = DataModule(tokens, basis.tokenizer, trainer, config.seed, weights)
    learned, scored = _behind_the_prompt(basis)
    train = _batches(tokens["train"], data.train_dataloader().sampler.batches(), learned)  # type: ignore[attr-defined]
    validation, test = (
        _batches(tokens[split], list(data.by_length(split).sampler), scored) for split in ("validation", "test")
    )
    per_epoch = len(train.order)
    steps_per_epoch = -(-per_epoch // trainer.accumulate_grad_batches)
    if isinstance(config.peft, Untuned):
        micro_batches, steps, evaluations = 0, 0, 1
    else:
        steps = min(trainer.max_epochs * steps_per_epoch, trainer.max_steps or math.inf)  # type: ignore[assignment]
        epochs, rest = divmod(steps, steps_per_epoch)
        micro_batches = epochs * per_epoch + rest * trainer.accumulate_grad_batches
        evaluations = _evaluations(trainer, per_epoch, micro_batches)
    return Workload(
        train=train,
        validation=validation,
        test=test,
        micro_batches=micro_batches,
        steps=steps,
        evaluations=evaluations,
    )


def reads_validation(basis: Basis) -> bool:
    """Tell whether the untuned language model reads the validation split before the test, for its prior."""
    task = basis.config.task
    return isinstance(task, CausalLM) and task.calibration is PriorCorrection.batch


def _batches(rows: TokenRows, order: Order, behind: int) -> Batches:
    lengths = np.asarray(rows.lengths)
    return Batches(
        order=order,
        rows=np.array([len(numbers) for numbers, _ in order]),
        width=np.array([int(lengths[numbers].max()) for numbers, _ in order]) + behind,
        tokens=sum(int(lengths[numbers].sum()) for numbers, _ in order),
    )


def _behind_the_prompt(basis: Basis) -> tuple[int, int]:
    """Return how many tokens a language model reads behind each prompt: when it learns, and when it is scored."""
    answers, task = basis.prompt.answers, basis.config.task
    if not answers or not isinstance(task, CausalLM):
        return 0, 0
    scored = sum(len(answer) - 1 for answer in answers)
    if task.loss is AnswerLoss.label_words:
        return scored, scored
    return max(map(len, answers)) + len(basis.prompt.end) - 1, scored


def _evaluations(trainer: TrainerConfig, per_epoch: int, micro_batches: int) -> int:
    """Return how often the validation split is evaluated: at its interval, and at the end of the training."""
    interval = trainer.eval_steps
    if interval is not None and interval >= 1:
        every = int(interval) * trainer.accumulate_grad_batches
        return -(-micro_batches // every)
    every = max(1, int(per_epoch * (interval or 1.0)))
    epochs, rest = divmod(micro_batches, per_epoch)
    within = epochs * (per_epoch // every) + rest // every
    last = (rest or per_epoch) % every
    return within + (last != 0)
