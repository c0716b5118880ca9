"""The Lightning data module: batches of rows as a model reads them, padded or packed."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import lightning as L  # noqa: N812 (the library's own abbreviation)
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from sentexp.config import TrainerConfig
from sentexp.data.batch import Batch, Texts, pad, target_tensor
from sentexp.data.batching import consecutive, training_order
from sentexp.data.packing import Packer
from sentexp.distributed import processes

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Rows(Protocol):
    """The tokens of a split; `TokenRows` reads them from the cache."""

    @property
    def lengths(self) -> Any:
        """Tokens of each row, shape (rows,)."""

    labels: Any
    """Class indices or scores, shape (rows,), or sets of labels, shape (rows, labels): an array."""

    @property
    def prefix(self) -> int:
        """How many tokens all rows begin with, where that is worth sharing."""

    def ids(self, rows: Sequence[int]) -> list[list[int]]:
        """Return the token ids of some rows."""


class DataModule(L.LightningDataModule):
    """Batches over tokenised splits.

    Args:
        splits: by name, the token ids, lengths and labels of rows.
        tokenizer: gives the pad id and the side that is padded.
        trainer: batch sizes, accumulation and length grouping.
        seed: of the order of the training rows.
        weights: of the training rows (see `training_order`).
        packer: lays rows out without padding; None pads them.
        bucketed: fill batches up to few sizes (see `data.buckets`).
    """

    def __init__(
        self,
        splits: Mapping[str, Rows],
        tokenizer: "PreTrainedTokenizerBase",
        trainer: TrainerConfig,
        seed: int,
        weights: Any = None,
        packer: Packer | None = None,
        bucketed: bool = False,
    ) -> None:
        super().__init__()
        self.bucketed = bucketed
        self.splits = splits
        self.tokenizer = tokenizer
        self.config = trainer
        self.seed = seed
        self.weights = weights
        self.packer = packer
        self.resume_at = (0, 0)

    def train_dataloader(self) -> DataLoader[Batch]:
        """Return the training batches, from the resumed position on."""
        order = training_order(self.splits["train"].lengths, self.config, self.seed, self.weights)
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
        batches = consecutive(ordered, self.config.eval_batch_size)
        return self.loader(split, [(batch.tolist(), len(batch)) for batch in batches])

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
        filler: Filler | None = None
        if self.bucketed and self.packer is not None:
            fill, begin = self.packer.filler, rows.prefix
            filler = lambda ids, labels: fill(ids, labels if split == "train" else None, begin)  # noqa: E731
        return DataLoader(
            _Batches(rows, layout, filler), batch_size=None, sampler=order, pin_memory=torch.cuda.is_available()
        )


Layout = Callable[[list[list[int]], list[int]], Texts]
"""From token ids and class indices of rows to what a model reads."""
Filler = Callable[[list[list[int]], list[int]], list[list[int]]]
"""From token ids and class indices of rows to the token ids of filler rows, of the first class."""


class _Batches(Dataset[Batch]):
    """Reads the rows of a batch that are this process's, and lays them out with the filler rows."""

    def __init__(self, rows: Rows, layout: Layout, filler: Filler | None) -> None:
        self.rows = rows
        self.layout = layout
        self.filler = filler

    def __getitem__(self, item: tuple[list[int], int]) -> Batch:
        numbers, step_rows = item
        shard = processes.shard_rows(numbers)
        rows = shard or numbers[:1]
        ids, labels = self.rows.ids(rows), target_tensor(self.rows.labels[rows])
        filler = [] if self.filler is None else self.filler(ids, labels.tolist())
        return Batch(
            texts=self.layout([*ids, *filler], _filled(labels, filler).tolist()),
            labels=_filled(labels, filler),
            rows=_filled(torch.tensor(rows), filler),
            step_rows=torch.tensor(step_rows),
            counts=_filled(torch.full((len(rows),), bool(shard)), filler),
            batch_rows=len(numbers),
        )


def _filled(values: Tensor, filler: Sequence[object]) -> Tensor:
    """Return the values of rows, and 0 behind them for each filler row."""
    padded: Tensor = nn.functional.pad(values, (*[0, 0] * (values.dim() - 1), 0, len(filler)))
    return padded
