"""The rows of a quick run: two optimizer steps and two batches of each evaluation, the longest rows among them."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np

from sentexp.config import Average, PeftConfig, Sampling
from sentexp.data.splits import NAMES
from sentexp.data.text_hash import Numbers
from sentexp.data.tokens import TokenRows
from sentexp.plan.workload import Batches, Workload
from sentexp.run.inputs import RunInputs
from sentexp.training.adalora import check_phases, is_adalora
from sentexp.training.averaging import check_interval

STEPS = 2


class ChosenRows(TokenRows):
    """The tokens of some rows of a split, in their order; what all rows of the split begin with stays shared.

    Args:
        rows: of the whole split.
        chosen: their numbers.
    """

    def __init__(self, rows: TokenRows, chosen: list[int]) -> None:
        self._rows, self._chosen = rows, chosen
        self._full_lengths, self.labels = rows._full_lengths[chosen], rows.labels[chosen]
        self.limit, self.frame = rows.limit, rows.frame

    @cached_property
    def prefix(self) -> int:
        """That of the whole split."""
        return self._rows.prefix

    def ids(self, rows: Sequence[int]) -> list[list[int]]:
        """Return the token ids of some of the chosen rows."""
        return self._rows.ids([self._chosen[row] for row in rows])


def with_few_rows(inputs: RunInputs, work: Workload) -> RunInputs:
    """Return the inputs of a run of two steps, evaluated on two batches of either split.

    Rows are read from short to long, so that the longest meet in one batch, which no batch of the run exceeds.

    Args:
        inputs: of the run.
        work: its batches.
    """
    trainer = inputs.config.trainer
    if trainer.average is Average.last_k:
        check_interval(trainer.average_interval, work.steps)
    loop = replace(
        trainer,
        max_epochs=STEPS,  # of data that fill one step only
        max_steps=STEPS,
        eval_steps=None,
        log_every_n_steps=1,
        save_steps=1,
        average_interval=1,
        group_by_length=True,
    )
    data = inputs.config.data
    if data.sampling is not Sampling.natural:  # rows that are drawn may not be the longest
        data = replace(data, sampling=Sampling.natural)
    accumulated = {"train": trainer.accumulate_grad_batches, "validation": 1, "test": 1}
    chosen = {
        split: _rows_of_two(getattr(work, split), inputs.tokens[split].lengths, accumulated[split]) for split in NAMES
    }
    tables: dict[str, Any] = {split: inputs.examples.split(split).take(rows) for split, rows in chosen.items()}
    return replace(
        inputs,
        config=replace(inputs.config, trainer=loop, data=data, peft=_in_two_steps(inputs.config.peft, work.steps)),
        examples=replace(inputs.examples, **tables),
        tokens={split: ChosenRows(inputs.tokens[split], rows) for split, rows in chosen.items()},
    )


def _in_two_steps(peft: PeftConfig, steps: int) -> PeftConfig:
    """Return a method that does in two steps what it does in all of a run's: AdaLoRA shares out ranks at once."""
    if not is_adalora(peft):
        return peft
    check_phases(peft, steps)
    at_once: dict[str, Any] = {"tinit": 0, "tfinal": 0}
    return replace(peft, **at_once)


def _rows_of_two(batches: Batches, lengths: Numbers, accumulated: int) -> list[int]:
    """Return the rows of two steps: the one with the largest batch, and the one with the longest row or a usual one."""
    groups = [batches.order[start : start + accumulated] for start in range(0, len(batches.order), accumulated)]
    steps = [[row for rows, _ in group for row in rows] for group in groups]
    largest = batches.largest // accumulated
    longest = max(range(len(steps)), key=lambda step: int(lengths[steps[step]].max()))
    by_size = sorted(range(len(steps)), key=lambda step: int(np.sum(lengths[steps[step]])))
    usual = by_size[len(by_size) // 2]
    others = [step for step in (longest, usual, by_size[0]) if step != largest]
    both = [largest, *others[:1]]
    return [row for step in both for row in dict.fromkeys(steps[step])]
