"""What one layer of BERT and its like computes over packed rows, and the derivative of its sums.

    h = LayerNorm(x + dropout(attention(x)))      y = LayerNorm(h + dropout(W_2 f(W_1 h)))

All tokens of a row see each other (Devlin et al. 2019, section 3). Products are in the arithmetic of the frozen
weights, sums and norms in float32. Where one token of a row is all that is read, the last layer computes no other.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sentexp.data.packing import Packed
from sentexp.models.fast.attention import attend_whole
from sentexp.models.fast.dropout import drop_rest, kept_at_random, scale_of
from sentexp.models.fast.grid_attention import Places
from sentexp.models.fast.lora_linear import Linear, lora_linear


class Norm(NamedTuple):
    """A LayerNorm: its weight and bias in float32, and what is added below its root."""

    weight: Tensor
    bias: Tensor
    eps: float


class EncoderLayer(NamedTuple):
    """What an encoder layer computes with.

    `norms` are behind attention and behind the feed-forward part, and so are `dropouts`, which are 0 but in training;
    `attention_dropout` is that of the attention weights. `scale` multiplies the scores. `dtype` is that of products.
    """

    qkv: Linear
    out: Linear
    up: Linear
    down: Linear
    norms: tuple[Norm, Norm]
    dropouts: tuple[float, float]
    attention_dropout: float
    heads: int
    scale: float
    activation: Callable[[Tensor], Tensor]
    dtype: torch.dtype


def encoder_layer(
    hidden: Tensor, layer: EncoderLayer, packed: Packed, bias: Tensor, places: Places | None, read: Tensor | None
) -> Tensor:
    """Return the float32 states after a layer, shape (tokens, hidden), or (read, hidden) of the last one.

    Args:
        hidden: float32 states before it, shape (tokens, hidden).
        layer: what it computes with.
        packed: the rows.
        bias: of the scores, see `attend_whole`.
        places: of the states of heads in a grid, on the CPU.
        read: in the last layer, the token of each row that is read, shape (rows,); None where all are.
    """
    states = lora_linear(hidden.to(layer.dtype), layer.qkv).unflatten(1, (3, layer.heads, -1))
    attended = attend_whole(states, packed, bias, layer.scale, layer.attention_dropout, read, places).flatten(1)
    if read is not None:
        hidden = hidden.index_select(0, read)
    hidden = add_norm(lora_linear(attended, layer.out), hidden, layer.norms[0], layer.dropouts[0])
    inner = layer.activation(lora_linear(hidden.to(layer.dtype), layer.up))
    return add_norm(lora_linear(inner, layer.down), hidden, layer.norms[1], layer.dropouts[1])


def add_norm(states: Tensor, residual: Tensor, norm: Norm, dropout: float) -> Tensor:
    """Return LayerNorm(residual + dropout(states)) in float32, shape (tokens, hidden); see Ba et al. 2016.

    Args:
        states: shape (tokens, hidden), of any dtype.
        residual: float32, of the same shape.
        norm: frozen.
        dropout: probability that an element of the states is left out.
    """
    out: Tensor = _AddNorm.apply(states, residual, norm, dropout)  # type: ignore[no-untyped-call]
    return out


class _AddNorm(torch.autograd.Function):
    """`add_norm`; the sum is kept, and what was left out."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, residual: Tensor, norm: Norm, dropout: float) -> Tensor:
        kept = kept_at_random(states, dropout) if dropout else None
        if kept is None:
            total = residual + states.to(residual.dtype)
        else:
            wide = residual.dtype
            total = torch.addcmul(residual, states.to(wide), kept.to(wide), value=scale_of(dropout))
        shape = [total.shape[-1]]
        out, mean, inverse = torch.native_layer_norm(total, shape, *norm)
        ctx.save_for_backward(total, mean, inverse, kept)
        ctx.norm, ctx.dropout, ctx.dtype = norm, dropout, states.dtype
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        total, mean, inverse, kept = ctx.saved_tensors
        shape, needed = [total.shape[-1]], [True, False, False]
        weight, bias, _ = ctx.norm
        to_total, _, _ = torch.ops.aten.native_layer_norm_backward(
            gradient.contiguous(), total, shape, mean, inverse, weight, bias, needed
        )
        return drop_rest(to_total, kept, ctx.dropout).to(ctx.dtype), to_total, None, None
