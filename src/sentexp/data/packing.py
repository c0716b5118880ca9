"""Rows without padding: their tokens one after the other, the prefix that all rows share only once.

`Packed` says where in the tokens each row is, which tokens see which, and whose hidden states are wanted. It is made of
the token ids alone, on the CPU, so that a GPU never waits for it. Two rows, [5, 6, 7, 8] and [5, 6, 9], with the prefix
[5, 6], scored at their last tokens:

                  prefix | row 0 | row 1
    token           0  1 |  2  3 |  4         `grid` and `read` hold these numbers
    ids             5  6 |  7  8 |  9
    positions       0  1 |  2  3 |  2         in the token's own row
    starts               0       2    3       where each row begins behind the prefix, and the end
    read                       3    4         the last token of each row

    grid         cell            keys of a cell       prefix    row
    2 3          0 1             bias   first cell    0 0       0 -inf
    4 4          2 3                    second cell   0 0       0 0
    cells        0 1 2           (the cell of each token behind the prefix: cell 3 is padding)
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sentexp.config import AnswerLoss
from sentexp.data.answer_tree import AnswerTree
from sentexp.data.buckets import filler_rows


class Learned(NamedTuple):
    """What a language model learns from: `tokens`, each after the place `reads` in `Packed.read`, for its row.

    All have the shape (learned,). A place that rows share predicts a token of each.
    """

    reads: Tensor
    tokens: Tensor
    rows: Tensor


class Packed(NamedTuple):
    """Rows packed into one: first the `prefix` tokens that all of them begin with, then the rest of each.

    In the grid of attention each row has a line, right-padded: the tokens behind the prefix.
    """

    ids: Tensor
    """Token ids, shape (tokens,)."""
    positions: Tensor
    """Position of each token in its row, shape (tokens,)."""
    grid: Tensor
    """The token in each cell of the grid, shape (rows, width); padding holds the first one of its row."""
    cells: Tensor
    """The cell of each token behind the prefix, numbered line by line, shape (tokens - prefix,)."""
    bias: Tensor
    """0 where a cell sees another, else -inf; shape (rows or 1, width or 1, prefix + width).

    One row is plainly causal; one line for each row hides its padding, and nothing else.
    """
    starts: Tensor
    """Where each row begins behind the prefix, and the end, shape (rows + 1,), int32: what varlen kernels take."""
    read: Tensor
    """The tokens whose hidden states are wanted, shape (read,)."""
    prefix: int
    """How many tokens all rows share."""
    learned: Learned | None = None
    """What is learned; None for a classification head and for scoring."""
    causal: bool = True
    """Whether tokens see those before them only; else every token sees its whole row."""

    @property
    def rows(self) -> int:
        """The number of rows."""
        return len(self.grid)

    def behind_prefix(self) -> "Packed":
        """Return the layout of the same rows without the tokens of the prefix, which are known from an earlier batch.

        `prefix` still counts them: the rows see them.
        """
        return self._replace(
            ids=self.ids[self.prefix :],
            positions=self.positions[self.prefix :],
            grid=self.grid - self.prefix,
            read=self.read - self.prefix,
        )


@dataclass(kw_only=True, slots=True)
class Packer:
    """Packs the rows of a batch, for training and for scoring.

    `answers` are the tokens of each label's word and `end` those that end an answer; with no answers a classification
    head reads the last token. `loss` says what is learned. In rows of encoders, not `causal`, every token sees all
    others: no prefix is shared, and all tokens are read. Without `trains_on_prefix` none is shared in training.
    """

    answers: list[list[int]] = field(default_factory=list)
    end: list[int] = field(default_factory=list)
    loss: AnswerLoss = AnswerLoss.answer
    causal: bool = True
    trains_on_prefix: bool = True
    tree: AnswerTree = field(init=False)
    """Of the answers: its branches are behind each prompt that is scored."""

    def __post_init__(self) -> None:
        """Lay the answers out."""
        self.tree = AnswerTree.of(self.answers)

    def filler(self, rows: Sequence[list[int]], labels: Sequence[int] | None, prefix: int) -> list[list[int]]:
        """Return the token ids of filler rows of the first class (see `data.buckets`).

        Args:
            rows: token ids.
            labels: class indices, where the rows are to be learned; None where they are to be scored.
            prefix: how many tokens all rows begin with.
        """
        if labels is None or not self.answers or self.loss is AnswerLoss.label_words:
            behind = len(self.tree.branch_tokens)
            return filler_rows(rows, prefix, [behind] * len(rows), behind)
        lengths = [len(answer) + len(self.end) for answer in self.answers]
        return filler_rows(rows, prefix, [lengths[label] for label in labels], lengths[0])

    def train(self, rows: Sequence[list[int]], labels: Sequence[int], prefix: int) -> Packed:
        """Return rows with their answers behind them, and what is learned of them.

        Args:
            rows: token ids; of a language model those of the prompts.
            labels: class indices.
            prefix: how many tokens all rows begin with.
        """
        prefix = prefix if self.trains_on_prefix else 0
        if not self.answers or self.loss is AnswerLoss.label_words:
            return self.score(rows, prefix)
        answered = [[*row, *self.answers[label], *self.end] for row, label in zip(rows, labels, strict=True)]
        lengths = [len(row) for row in answered]
        starts = np.cumsum([0, *(length - prefix for length in lengths)]) + prefix
        # Every token but the first can be learned: here, its row, its place there, and the token that predicts it.
        row = np.repeat(np.arange(len(answered)), [length - 1 for length in lengths])
        place = np.concatenate([np.arange(1, length) for length in lengths])
        before = np.where(place - 1 < prefix, place - 1, starts[row] + place - 1 - prefix)
        if self.loss is AnswerLoss.answer:
            kept = place >= np.array([len(prompt) for prompt in rows])[row]
            row, place, before = row[kept], place[kept], before[kept]
        read, reads = np.unique(before, return_inverse=True)
        tokens = np.array([answered[r][p] for r, p in zip(row, place, strict=True)])
        learned = Learned(_tensor(reads), _tensor(tokens), _tensor(row))
        return _pack(answered, prefix, _tensor(read), learned=learned)

    def score(self, rows: Sequence[list[int]], prefix: int) -> Packed:
        """Return rows to be scored: `read` holds the end of each prompt and, after it, each token of the branches."""
        if not self.causal:
            return _pack(rows, 0, _tensor(np.arange(sum(map(len, rows)))), causal=False)
        branch = self.tree.branch_tokens
        extra = len(branch)
        ends = np.cumsum([len(row) + extra - prefix for row in rows]) + prefix - 1 - extra
        read = _tensor((ends[:, None] + np.arange(extra + 1)).ravel())
        return _pack([[*row, *branch] for row in rows], prefix, read, tree=self.tree)


def _pack(
    rows: Sequence[list[int]],
    prefix: int,
    read: Tensor,
    *,
    tree: AnswerTree | None = None,
    learned: Learned | None = None,
    causal: bool = True,
) -> Packed:
    """Return the layout of rows whose last tokens are the branches of a tree, if one is given."""
    lengths = np.array([len(row) - prefix for row in rows])
    starts = np.cumsum([0, *lengths])
    width = int(lengths.max())
    column = np.arange(width)
    within = column < lengths[:, None]
    grid = np.where(within, starts[:-1, None] + column, starts[:-1, None]) + prefix
    position = np.broadcast_to(prefix + column, within.shape)
    unseen = np.triu(np.ones((width, width), dtype=bool), 1)[None] if causal else ~within[:, None]
    if tree is not None and tree.branch_tokens:
        ends = lengths[:, None] - len(tree.branch_tokens)  # of the prompts
        number = column - ends  # of the token in the branches, below 0 in the prompt
        in_branch = within & (number >= 0)
        label, depth = np.full_like(grid, -1), np.zeros_like(grid)
        label[in_branch] = np.asarray(tree.branch_labels)[number[in_branch]]
        depth[in_branch] = np.asarray(tree.branch_depths)[number[in_branch]]
        position = np.where(in_branch, prefix + ends + depth, position)
        unseen = unseen | ((label[:, None, :] >= 0) & (label[:, None, :] != label[:, :, None]))
    bias = torch.zeros(*unseen.shape[:2], prefix + width)
    bias[:, :, prefix:].masked_fill_(torch.from_numpy(unseen), -torch.inf)
    ids = np.concatenate([np.asarray(rows[0][:prefix]), *(np.asarray(row[prefix:]) for row in rows)])
    return Packed(
        ids=_tensor(ids),
        positions=_tensor(np.concatenate([np.arange(prefix), position[within]])),
        grid=_tensor(grid),
        cells=_tensor(np.flatnonzero(within)),
        bias=bias,
        starts=torch.from_numpy(starts.astype(np.int32)),
        read=read,
        prefix=prefix,
        learned=learned,
        causal=causal,
    )


def _tensor(values: Any) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.int64))
