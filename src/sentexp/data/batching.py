"""The order of the training rows: micro-batches of like length, a pure function of seed and epoch.

A micro-batch has so many rows (`RowBatches`), or at most so many tokens (`TokenBudgetBatches`).
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Sampler

from sentexp.config import TrainerConfig
from sentexp.errors import require

MEGABATCH = 50


def training_order(lengths: Any, trainer: TrainerConfig, seed: int, weights: Any = None) -> "BatchOrder":
    """Return the micro-batches of the training rows.

    Args:
        lengths: tokens of each row, shape (rows,).
        trainer: the size of a micro-batch in rows or in tokens, accumulation and length grouping.
        seed: of the order.
        weights: rows are drawn with replacement, each with a chance in proportion to its weight; None takes each once.

    Raises:
        UserError: a budget of tokens that is too small for the rows.
    """
    accumulate, group = trainer.accumulate_grad_batches, trainer.group_by_length
    if trainer.max_tokens is not None:
        return TokenBudgetBatches(lengths, trainer.max_tokens, accumulate, seed, group)
    return RowBatches(lengths, trainer.batch_size, accumulate, seed, group, weights)


class BatchOrder(Sampler[tuple[list[int], int]], ABC):
    """Micro-batches of an epoch as (row numbers, rows of their optimizer step).

    Rows are shuffled, then sorted by length within stretches of `MEGABATCH` optimizer steps; the steps are shuffled
    again, and cut into micro-batches. The first step of training is the one with the longest row, so that out of memory
    shows at once.

    Args:
        lengths: tokens of each row, shape (rows,).
        accumulate: micro-batches of an optimizer step.
        seed: of the order.
        group_by_length: False keeps the plain shuffled order.
    """

    def __init__(self, lengths: Any, accumulate: int, seed: int, group_by_length: bool) -> None:
        self.lengths = torch.as_tensor(lengths)
        self.accumulate = accumulate
        self.seed = seed
        self.group_by_length = group_by_length
        self.epoch = 0
        self.resume_at = (0, 0)

    def set_epoch(self, epoch: int) -> None:
        """Name the epoch whose order comes next (called by Lightning)."""
        self.epoch = epoch

    @abstractmethod
    def __len__(self) -> int:
        """Return the micro-batches of an epoch."""

    def __iter__(self) -> Iterator[tuple[list[int], int]]:
        epoch, done = self.resume_at
        yield from self.batches()[done if epoch == self.epoch else 0 :]

    def batches(self) -> list[tuple[list[int], int]]:
        """Return every micro-batch of the current epoch."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = self._shuffled(generator)
        if self.group_by_length:
            stretches = consecutive(order, MEGABATCH * self._step_rows())
            order = torch.cat([rows[self.lengths[rows].argsort(stable=True)] for rows in stretches])
        steps, incomplete = self._steps(order)
        if self.group_by_length:
            steps = [steps[index] for index in torch.randperm(len(steps), generator=generator).tolist()]
            if self.epoch == 0 and steps:
                self._longest_first(steps)
        return [(rows.tolist(), len(step)) for step in [*steps, *incomplete] for rows in self._micro_batches(step)]

    def _longest_first(self, steps: list[Tensor]) -> None:
        longest = max(range(len(steps)), key=lambda index: int(self.lengths[steps[index]].max()))
        steps[0], steps[longest] = steps[longest], steps[0]

    def _shuffled(self, generator: torch.Generator) -> Tensor:
        """Return the rows of an epoch in random order."""
        return torch.randperm(len(self.lengths), generator=generator)

    @abstractmethod
    def _step_rows(self) -> int:
        """Return the rows of an optimizer step, on average at least."""

    @abstractmethod
    def _steps(self, order: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Return the rows of each optimizer step, and those of the last one if it is incomplete."""

    @abstractmethod
    def _micro_batches(self, step: Tensor) -> list[Tensor]:
        """Return the rows of each micro-batch of a step."""


class RowBatches(BatchOrder):
    """Micro-batches of as many rows.

    The rows of a step depend on the effective batch only, not on how it is cut (law 9).

    Args:
        lengths: tokens of each row, shape (rows,).
        batch_size: rows of a micro-batch.
        accumulate: micro-batches of an optimizer step.
        seed: of the order.
        group_by_length: False keeps the plain shuffled order.
        weights: rows are drawn with replacement, each with a chance in proportion to its weight; None takes each once.
    """

    def __init__(
        self,
        lengths: Any,
        batch_size: int,
        accumulate: int,
        seed: int,
        group_by_length: bool,
        weights: Any = None,
    ) -> None:
        super().__init__(lengths, accumulate, seed, group_by_length)
        self.batch_size = batch_size
        self.weights = None if weights is None else torch.as_tensor(weights, dtype=torch.float64)

    def __len__(self) -> int:
        full, rest = divmod(len(self.lengths), self._step_rows())
        return full * self.accumulate + -(-rest // self.batch_size)

    def _shuffled(self, generator: torch.Generator) -> Tensor:
        if self.weights is None:
            return super()._shuffled(generator)
        return torch.multinomial(self.weights, len(self.weights), replacement=True, generator=generator)

    def _step_rows(self) -> int:
        return self.batch_size * self.accumulate

    def _steps(self, order: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        steps = consecutive(order, self._step_rows())
        if len(steps[-1]) == self._step_rows():
            return steps, []
        return steps[:-1], steps[-1:]  # it stays last: in the middle it would end an accumulation window early

    def _micro_batches(self, step: Tensor) -> list[Tensor]:
        return consecutive(step, self.batch_size)


class TokenBudgetBatches(BatchOrder):
    """Micro-batches of about as many tokens, at most `max_tokens`, and as many optimizer steps in every epoch.

    A step has at most `accumulate` times the budget.

    Args:
        lengths: tokens of each row, shape (rows,).
        max_tokens: of a micro-batch.
        accumulate: micro-batches of an optimizer step.
        seed: of the order.
        group_by_length: False keeps the plain shuffled order.

    Raises:
        UserError: a budget that is too small for the longest row, or more micro-batches than rows.
    """

    def __init__(self, lengths: Any, max_tokens: int, accumulate: int, seed: int, group_by_length: bool) -> None:
        super().__init__(lengths, accumulate, seed, group_by_length)
        self.max_tokens = max_tokens
        longest = int(self.lengths.max())
        require(
            max_tokens >= 2 * longest,
            f"trainer.max_tokens={max_tokens} must be at least {2 * longest}, twice the tokens of the longest training "
            "row: raise it, or lower data.max_length.",
        )
        rows, needed = len(self.lengths), len(self)
        require(
            rows >= needed,
            f"trainer.accumulate_grad_batches={accumulate} with trainer.max_tokens={max_tokens} makes {needed} "
            f"micro-batches of {rows} training rows: lower it, or leave trainer.max_tokens out.",
        )

    def __len__(self) -> int:
        return self._step_count() * self.accumulate

    def _step_count(self) -> int:
        """Return the optimizer steps of every epoch: of as many tokens as leave room for the longest row."""
        total, longest = int(self.lengths.sum()), int(self.lengths.max())
        return -(-total // (self.max_tokens * self.accumulate - longest + 1))

    def _step_rows(self) -> int:
        return -(-len(self.lengths) // self._step_count())

    def _steps(self, order: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        return self._even(order, self._step_count(), self.accumulate), []

    def _micro_batches(self, step: Tensor) -> list[Tensor]:
        return self._even(step, self.accumulate)

    def _even(self, rows: Tensor, count: int, least: int = 1) -> list[Tensor]:
        """Return `count` consecutive pieces of about as many tokens, of `least` rows or more each.

        A piece exceeds the mean by less than a row, unless that many rows alone do.
        """
        done = self.lengths[rows].cumsum(0)
        piece = ((done - 1) * count).div(done[-1], rounding_mode="floor")
        number = torch.arange(1, count)
        starts = torch.searchsorted(piece, number)
        before = number * least
        starts = torch.cummax((starts - before).clamp(min=0), 0).values + before  # rows for the pieces before it
        starts = torch.minimum(starts, len(rows) - count * least + before)  # and for itself and those behind it
        return list(torch.tensor_split(rows, starts))


def consecutive(rows: Tensor, size: int) -> list[Tensor]:
    """Return consecutive pieces of at most `size` rows."""
    return list(torch.split(rows, size))
