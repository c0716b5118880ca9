"""The rows of a quick run: two optimizer steps and two batches of each evaluation, small ones, with the longest row.

Whether the largest batches of the run fit into memory is found out where they are timed, once and not in every part.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import numpy as np

from sentexp.config import Average, PeftConfig, Sampling
from sentexp.data.splits import NAMES, Examples
from sentexp.data.text_hash import Numbers
from sentexp.data.tokens import TokenRows
from sentexp.plan.workload import Batches, Workload
from sentexp.run.inputs import RunInputs
from sentexp.training.adalora import check_phases, is_adalora
from sentexp.training.averaging import check_interval

STEPS = 2
FEW = 2
"""Rows of a batch."""


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


@dataclass(kw_only=True, slots=True)
class ChosenExamples(Examples):
    """Some rows of each split, of which scores keep mean and deviation of the `whole` training split."""

    whole: Examples

    def scale(self) -> tuple[float, float] | None:
        """Those of the whole split: of few rows, which may be alike, the deviation may be 0."""
        return self.whole.scale()


def with_few_rows(inputs: RunInputs, work: Workload) -> RunInputs:
    """Return the inputs of a run of two steps, evaluated on two batches of either split.

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
        batch_size=min(FEW, trainer.batch_size),
        eval_batch_size=min(FEW, trainer.eval_batch_size),
        accumulate_grad_batches=min(STEPS, trainer.accumulate_grad_batches),
        eval_steps=None,
        log_every_n_steps=1,
        save_steps=1,
        average_interval=1,
        group_by_length=True,
    )
    data = inputs.config.data
    if data.sampling is not Sampling.natural:  # rows that are drawn may not be the longest
        data = replace(data, sampling=Sampling.natural)
    rows = {"train": loop.batch_size * loop.accumulate_grad_batches}
    chosen = {
        split: _rows_of_two(getattr(work, split), inputs.tokens[split].lengths, rows.get(split, loop.eval_batch_size))
        for split in NAMES
    }
    whole = inputs.examples
    parts: dict[str, Any] = {item.name: getattr(whole, item.name) for item in fields(whole)}
    parts |= {split: whole.split(split).take(rows) for split, rows in chosen.items()}
    return replace(
        inputs,
        config=replace(inputs.config, trainer=loop, data=data, peft=_in_two_steps(inputs.config.peft, work.steps)),
        examples=ChosenExamples(**parts, whole=whole),
        tokens={split: ChosenRows(inputs.tokens[split], rows) for split, rows in chosen.items()},
    )


def _in_two_steps(peft: PeftConfig, steps: int) -> PeftConfig:
    """Return a method that does in two steps what it does in all of a run's: AdaLoRA shares out ranks at once."""
    if not is_adalora(peft):
        return peft
    check_phases(peft, steps)
    at_once: dict[str, Any] = {"tinit": 0, "tfinal": 0}
    return replace(peft, **at_once)


def _rows_of_two(batches: Batches, lengths: Numbers, most: int) -> list[int]:
    """Return some rows of the largest batch and of a usual one: as many as asked, the split's longest among them."""
    longest = int(np.argmax(lengths))
    rows: list[int] = [longest]
    for batch, wanted in ((batches.largest, most), (batches.spread(1)[0], 2 * most)):
        others = [row for row in dict.fromkeys(batches.order[batch][0]) if row not in rows]
        rows += others[: wanted - len(rows)]
    return rows
