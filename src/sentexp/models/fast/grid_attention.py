"""Attention over a grid of padded rows on the CPU, with its derivative; that of encoders with the grid itself.

In an encoder every token sees all of its row. There the states of a head are the rows of a table, so that one selection
puts queries, keys and values into the grid, and one takes what is attended out of it. A cell of padding holds the first
token of its row; it is seen by none, so that its gradient is 0.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from sentexp.data.packing import Packed
from sentexp.models.fast.dropout import drop_rest, kept_at_random

VECTOR = 16
"""Float32 numbers in the longest vector of a processor."""


def attend_in_grid(query: Tensor, key: Tensor, value: Tensor, bias: Tensor, scale: float, heads: int) -> Tensor:
    """Return the attention of a grid, shape (rows * key heads, queries, width of a head).

    Args:
        query: shape (rows * key heads, queries, width of a head): those of heads that share their keys are below each
            other.
        key: shape (rows * key heads, keys, width of a head).
        value: the same.
        bias: of the scores, shape (rows, heads or 1, width or 1, keys); it has no gradient.
        scale: of the scores.
        heads: of each row.
    """
    out: Tensor = _Grid.apply(query, key, value, bias, scale, heads)  # type: ignore[no-untyped-call]
    return out


class Places(NamedTuple):
    """Where the states of heads are in the table, and in that of the grid.

    `grid` has the shape (3, rows, heads, width): the place of each cell's query, key and value. `out`, shape (tokens *
    heads,), is the cell of each token in a grid of the shape (rows, heads, width), and `back`, shape (tokens * 3 *
    heads,), the places of its query, key and value in a grid of all three.
    """

    grid: Tensor
    out: Tensor
    back: Tensor

    @classmethod
    def of(cls, packed: Packed, heads: int) -> "Places":
        """Return those of packed rows."""
        rows, width = packed.grid.shape
        part, head = torch.arange(3), torch.arange(heads)
        grid = (packed.grid[:, None] * 3 + part[:, None, None, None]) * heads + head[:, None]
        row, column = packed.cells // width, packed.cells % width
        out = (row[:, None] * heads + head) * width + column[:, None]
        return cls(grid, out.flatten(), (out[:, None] + part[:, None] * (rows * heads * width)).flatten())


def attend_whole_in_grid(
    states: Tensor, places: Places, bias: Tensor, scale: float, dropout: float, read: Tensor | None
) -> Tensor:
    """Return the attention of rows, shape (tokens or read, heads, width of a head).

    Args:
        states: queries, keys and values, shape (tokens, 3, heads, width of a head).
        places: of the states.
        bias: of the scores, -inf where a key is padding, shape (rows, heads or 1, queries or 1, width).
        scale: of the scores.
        dropout: of the attention weights.
        read: one token of each row, shape (rows,), where its attention is all that is wanted.
    """
    out: Tensor = _Whole.apply(states, places, bias, scale, dropout, read)  # type: ignore[no-untyped-call]
    return out


class _Grid(torch.autograd.Function):
    """`attend_in_grid`; the weights are kept."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, bias: Tensor, scale: float, heads: int) -> Tensor:
        weights = _weights(query, key, bias, scale, heads)
        ctx.save_for_backward(query, key, value, weights)
        ctx.scale = scale
        return torch.bmm(weights.to(value.dtype), value)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, weights = ctx.saved_tensors
        to_scores = (_to_scores(torch.bmm(gradient, value.mT), weights) * ctx.scale).to(key.dtype)
        to_value = torch.bmm(weights.to(value.dtype).mT, gradient)
        return torch.bmm(to_scores, key), torch.bmm(to_scores.mT, query), to_value, None, None, None


class _Whole(torch.autograd.Function):
    """`attend_whole_in_grid`; the grid is kept, the weights, and what was left out of them."""

    @staticmethod
    def forward(
        ctx: Any, states: Tensor, places: Places, bias: Tensor, scale: float, dropout: float, read: Tensor | None
    ) -> Tensor:
        heads, size = states.shape[2:]
        _, rows, _, width = places.grid.shape
        grid = states.reshape(-1, size).index_select(0, places.grid.flatten()).view(3, rows * heads, width, size)
        query, key, value = grid.unbind()
        if read is not None:
            query = states[:, 0].index_select(0, read).view(-1, 1, size)
        weights = _weights(query, key, bias, scale, heads)
        kept = kept_at_random(weights, dropout) if dropout else None
        out = torch.bmm(drop_rest(weights.to(states.dtype), kept, dropout), value).view(-1, size)
        if read is None:
            out = out.index_select(0, places.out)
        ctx.save_for_backward(query, grid, weights, kept, places.out, places.back, read)
        ctx.scale, ctx.dropout, ctx.shape, ctx.bias_shape = scale, dropout, states.shape, bias.shape
        return out.view(-1, heads, size)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, grid, weights, kept, out, back, read = ctx.saved_tensors
        _, key, value = grid.unbind()
        dtype, size = grid.dtype, grid.shape[-1]
        attended = gradient.reshape(-1, size)
        if read is None:
            attended = attended.new_zeros(query.shape).view(-1, size).index_copy_(0, out, attended)
        attended = attended.view_as(query)
        to_weights = drop_rest(torch.bmm(attended, value.mT), kept, ctx.dropout)
        to_biased = _to_scores(to_weights, weights)
        to_bias = None
        if ctx.needs_input_grad[2]:
            heads = ctx.shape[2]
            to_bias = to_biased.view(-1, heads, *to_biased.shape[1:]).sum_to_size(ctx.bias_shape)
        to_scores = (to_biased * ctx.scale).to(dtype)
        to_grid = torch.empty_like(grid)
        torch.bmm(to_scores.mT, query, out=to_grid[1])
        torch.bmm(drop_rest(weights.to(dtype), kept, ctx.dropout).mT, attended, out=to_grid[2])
        if read is None:
            torch.bmm(to_scores, key, out=to_grid[0])
        to_states = to_grid.view(-1, size).index_select(0, back).view(ctx.shape)
        if read is not None:
            to_states[:, 0] = 0
            to_states[read, 0] = torch.bmm(to_scores, key).view(len(read), -1, size)
        return to_states, None, to_bias, None, None, None


def _weights(query: Tensor, key: Tensor, bias: Tensor, scale: float, heads: int) -> Tensor:
    """Return the attention weights, float32 at least, shape (rows * key heads, queries, keys)."""
    scores = torch.bmm(query, key.mT)
    wide = torch.promote_types(scores.dtype, torch.float32)
    by_row = scores.to(wide).view(len(bias), heads, -1, scores.shape[-1])
    return softmax(torch.add(bias, by_row, alpha=scale)).view_as(scores)


def _to_scores(to_weights: Tensor, weights: Tensor) -> Tensor:
    """Return the gradient of the scores, scaled and with their bias, for that of their weights."""
    return softmax_backward(to_weights.to(weights.dtype), weights)


def softmax(scores: Tensor) -> Tensor:
    """Return the softmax over the last dimension; in place where that is shorter than a vector of the processor.

    PyTorch's own takes five times as long there.
    """
    if scores.shape[-1] >= VECTOR:
        return scores.softmax(-1)
    weights = scores.sub_(scores.amax(-1, keepdim=True)).exp_()
    return weights.div_(weights.sum(-1, keepdim=True))


def softmax_backward(gradient: Tensor, weights: Tensor) -> Tensor:
    """Return the gradient of the scores for that of their softmax."""
    if weights.shape[-1] >= VECTOR:
        return torch.ops.aten._softmax_backward_data(gradient, weights, -1, weights.dtype)  # type: ignore[no-any-return]
    weighted = gradient * weights
    return torch.addcmul(weighted, weights, weighted.sum(-1, keepdim=True), value=-1)
