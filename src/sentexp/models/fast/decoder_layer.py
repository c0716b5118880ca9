"""What one layer of the Llama family or of Gemma 3 computes over packed rows, from its weights in transformers."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sentexp.data.packing import Packed
from sentexp.models.fast.attention import attend
from sentexp.models.fast.lora_linear import Linear, lora_linear
from sentexp.models.fast.ops import apply_rotary, geglu, rms_norm, swiglu
from sentexp.models.fast.prefix_cache import PrefixCache

GATED = {"silu": swiglu, "gelu_pytorch_tanh": geglu}
"""What joins gate and up, by transformers' names of the activation."""


class Rotary(NamedTuple):
    """Cosine and sine of the positions, shape (tokens, 1, width of a head)."""

    cosine: Tensor
    sine: Tensor


class Norms(NamedTuple):
    """The weights of the norms of a layer, and what is added below their roots.

    `first` and `second` are before attention and before the feed-forward part, `after` behind each of them (Gemma 3);
    `heads` are those of queries and keys (Qwen 3, Gemma 3).
    """

    first: Tensor
    second: Tensor
    after: tuple[Tensor, Tensor] | None
    heads: tuple[Tensor, Tensor] | None
    eps: float


class Layer(NamedTuple):
    """What a decoder layer computes with; all layers of a backbone have the same shapes.

    `qkv_widths` are the outputs of q, k and v; `head_size` is the width of a head, `scale` multiplies the scores.
    `gated` joins gate and up; `rotates` is false in layers without positions (SmolLM3).
    """

    norms: Norms
    qkv: Linear
    out: Linear
    gate_up: Linear
    down: Linear
    qkv_widths: list[int]
    head_size: int
    scale: float
    gated: Callable[[Tensor], Tensor]
    rotates: bool


def norms_of(layer: Any) -> Norms:
    """Return the norms of a decoder layer."""
    first, second, attention = layer.input_layernorm, layer.post_attention_layernorm, layer.self_attn
    after = heads = None
    if hasattr(layer, "pre_feedforward_layernorm"):
        after = norm_weight(second), norm_weight(layer.post_feedforward_layernorm)
        second = layer.pre_feedforward_layernorm
    if hasattr(attention, "q_norm"):
        heads = norm_weight(attention.q_norm), norm_weight(attention.k_norm)
    eps = first.eps if hasattr(first, "eps") else first.variance_epsilon
    return Norms(norm_weight(first), norm_weight(second), after, heads, float(eps))


def norm_weight(norm: Any) -> Tensor:
    """Return what a norm multiplies by: its weight, or in float32 1 + its weight, as Gemma stores it."""
    weight: Tensor = norm.weight
    return 1 + weight.detach().float() if type(norm).__name__ == "Gemma3RMSNorm" else weight


def activation_of(layer: Any) -> str:
    """Return the activation of the feed-forward part of a decoder layer, by transformers' name."""
    config = layer.mlp.config
    return str(getattr(config, "hidden_activation", None) or config.hidden_act)


def decoder_layer(
    hidden: Tensor,
    layer: Layer,
    rotary: Rotary,
    packed: Packed,
    read: Tensor | None,
    cache: PrefixCache | None = None,
    number: int = 0,
) -> Tensor:
    """Return the hidden states after a layer, shape (tokens, hidden), or (read, hidden) of the last one.

    Args:
        hidden: states before it, shape (tokens, hidden).
        layer: what it computes with.
        rotary: of the positions.
        packed: the rows.
        read: in the last layer, the tokens that are read: only their states are returned.
        cache: of the prefix, in an evaluation.
        number: of the layer, in the cache.
    """
    query, key, value = project(hidden, layer, rotary)
    prefix_kv = None if cache is None else cache.get(number, key, value, packed.prefix)
    attended = attend(query, key, value, packed, layer.scale, prefix_kv=prefix_kv)
    return feed_forward(hidden, attended, layer, read)


Product = Callable[[Tensor, Linear], Tensor]
"""`lora_linear`, or what takes its place where several runs share a product."""


def project(
    hidden: Tensor, layer: Layer, rotary: Rotary, product: Product = lora_linear
) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries, keys and values, shape (tokens, heads or key heads, width of a head)."""
    norms = layer.norms
    states = product(rms_norm(hidden, norms.first, norms.eps), layer.qkv).unflatten(1, (-1, layer.head_size))
    queries, keys, values = [width // layer.head_size for width in layer.qkv_widths]
    if norms.heads is not None:
        of_query, of_key = norms.heads
        query, key, value = states.split([queries, keys, values], 1)
        query, key = rms_norm(query, of_query, norms.eps), rms_norm(key, of_key, norms.eps)
        both = torch.cat([query, key], 1)
    else:
        both, value = states.split([queries + keys, values], 1)
    if layer.rotates:
        both = apply_rotary(both, *rotary)
    query, key = both.split([queries, keys], 1)
    return query, key, value


def feed_forward(
    hidden: Tensor, attended: Tensor, layer: Layer, read: Tensor | None, product: Product = lora_linear
) -> Tensor:
    """Return the hidden states after the second half of a layer, of all tokens or of those that are read.

    Args:
        hidden: states before the layer, shape (tokens, hidden).
        attended: what attention gives, shape (tokens, heads, width of a head).
        layer: what it computes with.
        read: in the last layer, the tokens that are read.
        product: multiplies with the weights.
    """
    attended = attended.flatten(1)
    if read is not None:
        attended, hidden = attended.index_select(0, read), hidden.index_select(0, read)
    norms = layer.norms
    hidden = hidden + _after(product(attended, layer.out), norms, 0)
    inner = product(rms_norm(hidden, norms.second, norms.eps), layer.gate_up)
    return hidden + _after(product(layer.gated(inner), layer.down), norms, 1)


def _after(states: Tensor, norms: Norms, half: int) -> Tensor:
    """Return what a half of a layer adds to the hidden states: normalised once more, where the layer does so."""
    return states if norms.after is None else rms_norm(states, norms.after[half], norms.eps)
