"""What a run has to compute: its batches as they will be laid out, its steps and its evaluations."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from sentexp.config import AnswerLoss, CausalLM, PriorCorrection, TrainerConfig, Untuned
from sentexp.data.class_balance import row_weights
from sentexp.data.datamodule import DataModule
from sentexp.data.packing import Packer
from sentexp.data.text_hash import Numbers
from sentexp.data.tokens import TokenRows
from sentexp.models.virtual_tokens import count_columns
from sentexp.run.inputs import RunSpec, build_packer

Order = Sequence[tuple[list[int], int]]


@dataclass(kw_only=True, slots=True)
class Batches:
    """One pass over a split.

    `order` holds what the data module takes, (row numbers, rows of the step). Of each batch `rows` and `width`, the
    tokens of its longest row, count what follows a prompt in the same pass, and `computed` the tokens that the
    model reads: with virtual ones, with padding where rows are padded, what all rows begin with only once where they
    are not. `tokens` are those of the texts in their frames.
    """

    order: Order
    rows: Numbers
    width: Numbers
    computed: Numbers
    tokens: int

    @property
    def largest_size(self) -> "Size":
        """The size that no batch exceeds."""
        return Size(rows=int(self.rows.max()), width=int(self.width.max()), tokens=int(self.computed.max()))

    @property
    def largest(self) -> int:
        """The number of the batch with the most tokens: the first where the batches are equal."""
        return int(self.computed.argmax())

    @property
    def smallest(self) -> int:
        """The number of the batch with the fewest tokens."""
        return int(self.computed.argmin())

    def spread(self, count: int) -> list[int]:
        """Return the numbers of `count` batches, spread evenly over their sizes and away from the extremes."""
        by_size = self.computed.argsort(kind="stable")
        return [int(by_size[len(by_size) * (2 * n + 1) // (2 * count)]) for n in range(count)]


@dataclass(kw_only=True, slots=True)
class Size:
    """Of a batch: its rows, the tokens of the longest, and those that the model reads in all."""

    rows: int
    width: int
    tokens: int

    def cut(self, whole: TrainerConfig, part: TrainerConfig) -> "Size":
        """Return the size that a batch of one loop has when another one cuts it."""
        rows = self.rows if part.max_tokens is not None else min(self.rows, part.batch_size)
        share = part.micro_batch / whole.micro_batch if part.max_tokens is not None else rows / self.rows
        return replace(self, rows=rows, tokens=math.ceil(self.tokens * share))


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


def workload(spec: RunSpec, tokens: dict[str, TokenRows], trainer: TrainerConfig) -> Workload:
    """Return what a run has to compute.

    Args:
        spec: of the run.
        tokens: of its splits.
        trainer: its loop; not that of `spec` where memory has run out before.
    """
    config = spec.config
    weights = row_weights(config.data, spec.examples)
    data = DataModule(tokens, spec.tokenizer, trainer, config.seed, weights)
    learned, scored = _behind_the_prompt(spec)
    packer = build_packer(spec)
    order: Order = data.train_dataloader().sampler.batches()  # type: ignore[attr-defined]
    virtual = count_columns(config.peft)
    train = _batches(tokens["train"], order, learned, packer, virtual)
    validation, test = (
        _batches(tokens[split], list(data.by_length(split).sampler), Behind(scored, scored), packer, virtual)
        for split in ("validation", "test")
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


def reads_validation(spec: RunSpec) -> bool:
    """Tell whether the untuned language model reads the validation split before the test, for its prior."""
    task = spec.config.task
    return isinstance(task, CausalLM) and task.calibration is PriorCorrection.batch


class Behind(NamedTuple):
    """The tokens behind a prompt: the most of any row, and those of each label's rows where they differ."""

    most: int
    of_label: int | list[int]


def _batches(rows: TokenRows, order: Order, behind: Behind, packer: Packer | None, virtual: int) -> Batches:
    """Return the batches of a split; `virtual` tokens precede each row, which is then padded."""
    lengths = np.asarray(rows.lengths)
    count = np.array([len(numbers) for numbers, _ in order])
    width = np.array([int(lengths[numbers].max()) for numbers, _ in order]) + behind.most
    if packer is not None:
        each, shared = np.asarray(behind.of_label), rows.prefix if packer.causal else 0
        whole = lengths + (each[rows.labels] if each.ndim else each)
        computed = np.array([int(whole[numbers].sum()) for numbers, _ in order]) - (count - 1) * shared
    else:
        computed = count * (width + virtual)
    tokens = sum(int(lengths[numbers].sum()) for numbers, _ in order)
    return Batches(order=order, rows=count, width=width, computed=computed, tokens=tokens)


def _behind_the_prompt(spec: RunSpec) -> tuple[Behind, int]:
    """Return how many tokens a language model reads behind each prompt: when it learns, and when it is scored."""
    answers, task = spec.prompt.answers, spec.config.task
    if not answers or not isinstance(task, CausalLM):
        return Behind(0, 0), 0
    scored = sum(len(answer) - 1 for answer in answers)
    if task.loss is AnswerLoss.label_words:
        return Behind(scored, scored), scored
    packed = build_packer(spec) is not None
    learned = [len(answer) + len(spec.prompt.end) for answer in answers]
    # Padded rows leave out the last column, which predicts nothing.
    return Behind(max(learned) - (not packed), learned), scored


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
