"""The Lightning data module: batches of like length in an order that is a pure function of seed and epoch."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import lightning as L  # noqa: N812 (the library's own abbreviation)
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from sentexp.config import TrainerConfig
from sentexp.data.packing import Packed, Packer
from sentexp.distributed import processes
from sentexp.errors import require

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MEGABATCH = 50


class Rows(Protocol):
    """The tokens of a split; `TokenRows` reads them from the cache."""

    @property
    def lengths(self) -> Any:
        """Tokens of each row, shape (rows,)."""

    labels: Any
    """Class indices, shape (rows,): an array, which can be indexed by a list."""

    @property
    def prefix(self) -> int:
        """How many tokens all rows begin with, where that is worth sharing."""

    def ids(self, rows: Sequence[int]) -> list[list[int]]:
        """Return the token ids of some rows."""


class Padded(NamedTuple):
    """Rows padded to the longest of them."""

    ids: Tensor
    """Token ids, shape (rows, tokens)."""
    mask: Tensor
    """1 at tokens and 0 at padding, same shape."""

    @property
    def rows(self) -> int:
        """The number of rows."""
        return len(self.ids)


Texts = Padded | Packed


class Batch(NamedTuple):
    """Rows of a split. Shapes, but for the texts: (rows,) or scalar.

    Of several processes each has its share of the rows; one that has none computes another's row, which does not count,
    as all must go through the model equally often.
    """

    texts: Texts
    labels: Tensor
    rows: Tensor
    step_rows: Tensor
    """Scalar: the rows of the whole optimizer step, of which these may be a part."""
    counts: Tensor
    """Whether a row is of this process's share, shape (rows,)."""
    batch_rows: int
    """The rows of the micro-batch in all processes."""


class BatchOrder(Sampler[tuple[list[int], int]]):
    """Micro-batches of an epoch as (row numbers, rows of their optimizer step).

    Rows are shuffled, then sorted by length within stretches of `MEGABATCH` optimizer steps; the steps are shuffled
    again, and cut into micro-batches. So the rows of a step depend on the effective batch only, not on how it is cut
    (law 9). The first step of training is the one with the longest row, so that out of memory shows at once.

    With a budget of tokens every epoch has as many steps, of about as many tokens: never more than `accumulate` times
    the budget.

    Args:
        lengths: tokens of each row, shape (rows,).
        batch_size: rows of a micro-batch.
        accumulate: micro-batches of an optimizer step.
        seed: of the order.
        group_by_length: False keeps the plain shuffled order.
        weights: rows are drawn with replacement, each with a chance in proportion to its weight; None takes each once.
        max_tokens: of a micro-batch, in place of `batch_size`; does not go with weights.
    """

    def __init__(
        self,
        lengths: Any,
        batch_size: int,
        accumulate: int,
        seed: int,
        group_by_length: bool,
        weights: Any = None,
        max_tokens: int | None = None,
    ) -> None:
        self.lengths = torch.as_tensor(lengths)
        self.weights = None if weights is None else torch.as_tensor(weights, dtype=torch.float64)
        self.batch_size = batch_size
        self.accumulate = accumulate
        self.seed = seed
        self.group_by_length = group_by_length
        self.max_tokens = max_tokens
        self.epoch = 0
        self.resume_at = (0, 0)
        if max_tokens is not None:
            self._check_budget(max_tokens)

    def set_epoch(self, epoch: int) -> None:
        """Name the epoch whose order comes next (called by Lightning)."""
        self.epoch = epoch

    def __len__(self) -> int:
        if self.max_tokens is not None:
            return self._budgeted_steps() * self.accumulate
        full, rest = divmod(len(self.lengths), self.batch_size * self.accumulate)
        return full * self.accumulate + -(-rest // self.batch_size)

    def __iter__(self) -> Iterator[tuple[list[int], int]]:
        epoch, done = self.resume_at
        yield from self.batches()[done if epoch == self.epoch else 0 :]

    def batches(self) -> list[tuple[list[int], int]]:
        """Return every micro-batch of the current epoch."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        if self.weights is None:
            order = torch.randperm(len(self.lengths), generator=generator)
        else:
            order = torch.multinomial(self.weights, len(self.weights), replacement=True, generator=generator)
        count = len(self) if self.max_tokens is None else self._budgeted_steps()
        size = self.batch_size * self.accumulate if self.max_tokens is None else -(-len(order) // count)
        if self.group_by_length:
            stretches = _cut(order, MEGABATCH * size)
            order = torch.cat([part[self.lengths[part].argsort(stable=True)] for part in stretches])
        steps = _cut(order, size) if self.max_tokens is None else self._even(order, count, self.accumulate)
        if self.group_by_length:
            # An incomplete step stays last: in the middle it would end an accumulation window early.
            ragged = [steps.pop()] if self.max_tokens is None and len(steps[-1]) < size else []
            steps = [steps[index] for index in torch.randperm(len(steps), generator=generator).tolist()]
            if self.epoch == 0 and steps:
                longest = max(range(len(steps)), key=lambda index: int(self.lengths[steps[index]].max()))
                steps[0], steps[longest] = steps[longest], steps[0]
            steps += ragged
        return [(part.tolist(), len(rows)) for rows in steps for part in self._micro_batches(rows)]

    def _micro_batches(self, rows: Tensor) -> list[Tensor]:
        return _cut(rows, self.batch_size) if self.max_tokens is None else self._even(rows, self.accumulate)

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

    def _budgeted_steps(self) -> int:
        """Return the optimizer steps of every epoch: of as many tokens as leave room for the longest row."""
        assert self.max_tokens is not None
        total, longest = int(self.lengths.sum()), int(self.lengths.max())
        return -(-total // (self.max_tokens * self.accumulate - longest + 1))

    def _check_budget(self, max_tokens: int) -> None:
        longest = int(self.lengths.max())
        require(
            max_tokens >= 2 * longest,
            f"trainer.max_tokens={max_tokens} must be at least {2 * longest}, twice the tokens of the longest training "
            "row: raise it, or lower data.max_length.",
        )
        rows, needed = len(self.lengths), self._budgeted_steps() * self.accumulate
        require(
            rows >= needed,
            f"trainer.accumulate_grad_batches={self.accumulate} with trainer.max_tokens={max_tokens} makes {needed} "
            f"micro-batches of {rows} training rows: lower it, or leave trainer.max_tokens out.",
        )


def _cut(rows: Tensor, size: int) -> list[Tensor]:
    """Return consecutive pieces of at most `size` rows."""
    return list(torch.split(rows, size))


class DataModule(L.LightningDataModule):
    """Batches over tokenised splits.

    Args:
        splits: by name, the token ids, lengths and labels of rows.
        tokenizer: gives the pad id and the side that is padded.
        trainer: batch sizes, accumulation and length grouping.
        seed: of the order of the training rows.
        weights: of the training rows (see `BatchOrder`).
        packer: lays rows out without padding; None pads them.
    """

    def __init__(
        self,
        splits: Mapping[str, Rows],
        tokenizer: "PreTrainedTokenizerBase",
        trainer: TrainerConfig,
        seed: int,
        weights: Any = None,
        packer: Packer | None = None,
    ) -> None:
        super().__init__()
        self.splits = splits
        self.tokenizer = tokenizer
        self.config = trainer
        self.seed = seed
        self.weights = weights
        self.packer = packer
        self.resume_at = (0, 0)

    def train_dataloader(self) -> DataLoader[Batch]:
        """Return the training batches, from the resumed position on."""
        order = BatchOrder(
            self.splits["train"].lengths,
            self.config.batch_size,
            self.config.accumulate_grad_batches,
            self.seed,
            self.config.group_by_length,
            self.weights,
            self.config.max_tokens,
        )
        order.resume_at = self.resume_at
        return self.loader("train", order)

    def val_dataloader(self) -> DataLoader[Batch]:
        """Return the validation batches, sorted by length."""
        return self.by_length("validation")

    def test_dataloader(self) -> DataLoader[Batch]:
        """Return the test batches, sorted by length; `Batch.rows` gives the original order."""
        return self.by_length("test")

    def by_length(self, split: str, most: int | None = None) -> DataLoader[Batch]:
        """Return the batches of a split sorted by length, of `most` evenly spaced rows where it has more."""
        lengths = torch.as_tensor(self.splits[split].lengths)
        rows = torch.arange(len(lengths))
        if most is not None and len(rows) > most:
            rows = rows[torch.linspace(0, len(rows) - 1, most).long()]
        ordered = rows[lengths[rows].argsort(stable=True)]
        return self.loader(split, [(part.tolist(), len(part)) for part in _cut(ordered, self.config.eval_batch_size)])

    def state_dict(self) -> dict[str, int]:
        """Return the position in the training rows for a checkpoint: the epoch and its finished micro-batches."""
        assert self.trainer is not None
        loop: Any = self.trainer.fit_loop  # its trackers are typed by their parent
        return {
            "epoch": loop.epoch_progress.current.processed,
            "batches": loop.epoch_loop.batch_progress.current.processed,
        }

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Continue at the position of a checkpoint."""
        self.resume_at = (state_dict["epoch"], state_dict["batches"])

    def loader(self, split: str, order: Any) -> DataLoader[Batch]:
        """Return these batches of a split, in this order: each is (row numbers, rows of the optimizer step)."""
        rows = self.splits[split]
        layout: Layout
        if self.packer is None:
            pad_id, side = self.tokenizer.pad_token_id, self.tokenizer.padding_side
            layout = lambda ids, _: pad(ids, pad_id, side)  # noqa: E731 (one of three)
        elif split == "train":
            layout = partial(self.packer.train, prefix=rows.prefix)
        else:
            score, prefix = self.packer.score, rows.prefix
            layout = lambda ids, _: score(ids, prefix)  # noqa: E731
        return DataLoader(_Batches(rows, layout), batch_size=None, sampler=order, pin_memory=torch.cuda.is_available())


Layout = Callable[[list[list[int]], list[int]], Texts]
"""From token ids and class indices of rows to what a model reads."""


class _Batches(Dataset[Batch]):
    """Reads the rows of a batch that are this process's, and lays them out."""

    def __init__(self, rows: Rows, layout: Layout) -> None:
        self.rows = rows
        self.layout = layout

    def __getitem__(self, item: tuple[list[int], int]) -> Batch:
        numbers, step_rows = item
        share = processes.share(numbers)
        rows = share or numbers[:1]
        labels = torch.as_tensor(self.rows.labels[rows], dtype=torch.long)
        texts = self.layout(self.rows.ids(rows), labels.tolist())
        counts = torch.full((len(rows),), bool(share))
        return Batch(texts, labels, torch.tensor(rows), torch.tensor(step_rows), counts, len(numbers))


def pad(rows: list[list[int]], pad_id: int, side: str) -> Padded:
    """Return rows padded on `side` (left or right)."""
    longest = max(len(row) for row in rows)
    ids = torch.full((len(rows), longest), pad_id)
    mask = torch.zeros((len(rows), longest), dtype=torch.long)
    for index, row in enumerate(rows):
        place = slice(0, len(row)) if side == "right" else slice(longest - len(row), longest)
        ids[index, place] = torch.tensor(row)
        mask[index, place] = 1
    return Padded(ids, mask)
