"""Attention over packed rows: within each row, causal or not, and to the prefix that all rows share.

On a GPU the rows go through PyTorch's variable-length flash attention where it applies, else through its scaled
dot-product attention over a grid of padded rows. On the CPU two batched products and a softmax over that grid are much
faster, at the lengths of sentences, than any of PyTorch's attention kernels. Only attention is padded, never a product
with a weight.
"""

from collections.abc import Callable, Sequence
from functools import cache
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from sentexp.data.buckets import bucket
from sentexp.data.packing import Packed
from sentexp.models.fast.grid_attention import Places, attend_in_grid, attend_whole_in_grid
from sentexp.models.fast.prefix_cache import PrefixKV

NAME = "packed"
HALF = (torch.bfloat16, torch.float16)
WIDEST_HEAD = 256
"""Of flash attention."""


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    packed: Packed,
    scale: float,
    *,
    prefix_kv: PrefixKV | None = None,
    dropout: float = 0.0,
    window: int | None = None,
) -> Tensor:
    """Return the attention of packed rows, shape (tokens, heads, width of a head).

    Args:
        query: shape (tokens, heads, width of a head).
        key: shape (tokens, key heads, width of a head); the key heads divide the heads.
        value: the same.
        packed: the layout.
        scale: of the scores.
        prefix_kv: the cached prefix, whose tokens are then not among these.
        dropout: of the attention weights.
        window: how many tokens back a token sees, itself included, and in encoders ahead as well; None is all.
    """
    prefix = packed.prefix
    if not prefix:
        return _rows(query, key, value, packed, scale, None, dropout, window)
    if prefix_kv is not None:
        return _rows(query, key, value, packed, scale, prefix_kv, dropout, window)
    prefix_kv = PrefixKV(key[:prefix], value[:prefix])
    first = _causal(query[:prefix], *prefix_kv, scale, dropout, window)
    return torch.cat([first, _rows(query, key, value, packed, scale, prefix_kv, dropout, window)])


def _rows(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    packed: Packed,
    scale: float,
    prefix_kv: PrefixKV | None,
    dropout: float,
    window: int | None,
) -> Tensor:
    rows, width = packed.grid.shape
    plain = dropout == 0 and (not packed.causal or (prefix_kv is None and window is None))
    if plain and takes_flash(packed, query.dtype, query.shape[-1]):
        return _flash(query, key, value, packed, scale, window)
    flat = packed.grid.flatten()
    query, key, value = (part.index_select(0, flat).unflatten(0, (rows, width)) for part in (query, key, value))
    if prefix_kv is not None:
        key, value = (
            torch.cat([part.expand(rows, *part.shape), line], 1)
            for part, line in zip(prefix_kv, (key, value), strict=True)
        )
    bias = packed.bias
    if window is not None and window < bias.shape[-1]:
        bias = bias.masked_fill(_too_far(packed, window), -torch.inf)
    out = _grid(query, key, value, bias[:, None], scale, dropout)
    return out.flatten(0, 1).index_select(0, packed.cells)


def attend_whole(
    states: Tensor,
    packed: Packed,
    bias: Tensor,
    scale: float,
    dropout: float,
    read: Tensor | None,
    places: Places | None,
) -> Tensor:
    """Return the attention of rows whose tokens see all of their row, shape (tokens or read, heads, width of a head).

    Args:
        states: queries, keys and values, shape (tokens, 3, heads, width of a head).
        packed: the layout.
        bias: of the scores, -inf for padding, shape (rows, 1, 1, width); or (rows, heads, width, width), where it
            depends on the distance of tokens.
        scale: of the scores.
        dropout: of the attention weights.
        read: one token of each row, shape (rows,), where its attention is all that is wanted.
        places: of the states in a grid, on the CPU.
    """
    by_distance = bias.shape[1] > 1
    if read is not None and by_distance:
        column = packed.cells.index_select(0, read) % bias.shape[2]
        bias = bias[torch.arange(len(bias), device=bias.device), :, column, None]
    if places is not None:
        return attend_whole_in_grid(states, places, bias, scale, dropout, read)
    if read is None and not dropout and not by_distance and takes_flash(packed, states.dtype, states.shape[-1]):
        return _flash(states[:, 0], states[:, 1], states[:, 2], packed, scale)
    grid = states.index_select(0, packed.grid.flatten()).unflatten(0, packed.grid.shape)
    query, key, value = grid.unbind(2)
    if read is not None:
        query = states[:, 0].index_select(0, read)[:, None]
    out = _grid(query, key, value, bias, scale, dropout).flatten(0, 1)
    return out if read is not None else out.index_select(0, packed.cells)


def takes_flash(packed: Packed, dtype: torch.dtype, head_size: int) -> bool:
    """Tell whether the variable-length kernel can attend within rows: on a GPU in 16 bits, all of it causal or none."""
    whole = len(packed.bias) == 1 or not packed.causal
    return packed.ids.is_cuda and whole and dtype in HALF and head_size <= WIDEST_HEAD


def without_grid(packed: Packed) -> Packed:
    """Return a layout for the variable-length kernel alone: its shape does not tell the longest row, only a limit."""
    rows, width = packed.rows, bucket(packed.grid.shape[1])
    nothing = packed.grid.new_zeros(1, 1)
    return packed._replace(
        grid=nothing.expand(rows, width),
        cells=nothing[0, :0],
        bias=packed.bias.new_zeros(1, 1, 1).expand(1, width, width),
    )


def join(packed: Sequence[Packed], dtype: torch.dtype, head_size: int) -> Packed | None:
    """Return the rows of several layouts as those of one, for the variable-length kernel alone.

    None where it cannot attend to them.
    """
    if len(packed) == 1 or any(part.prefix or not takes_flash(part, dtype, head_size) for part in packed):
        return None
    starts, tokens = [packed[0].starts[:1]], 0
    for part in packed:
        starts.append(part.starts[1:] + tokens)
        tokens += len(part.ids)
    rows, width = sum(part.rows for part in packed), max(part.grid.shape[1] for part in packed)
    return packed[0]._replace(
        starts=torch.cat(starts),
        grid=packed[0].grid[:1, :1].expand(rows, width),
        bias=packed[0].bias[:1, :1, :1].expand(1, width, width),
    )


@cache
def _takes_grouped_heads(kernel: Callable[..., Any]) -> bool:
    """Tell whether variable-length attention takes fewer key heads than heads: that of torch 2.11 does not."""
    return "enable_gqa" in signature(kernel).parameters


def _flash(
    query: Tensor, key: Tensor, value: Tensor, packed: Packed, scale: float, window: int | None = None
) -> Tensor:
    """Return the attention within each row by PyTorch's variable-length kernel, on a GPU in 16 bits."""
    from torch.nn.attention.varlen import varlen_attn  # with it comes the compiler, which no CPU needs

    reach = -1 if window is None else window - 1
    options: dict[str, Any] = {"scale": scale, "window_size": (reach, 0 if packed.causal else reach)}
    if key.shape[1] != query.shape[1]:
        if _takes_grouped_heads(varlen_attn):
            options["enable_gqa"] = True
        else:
            each = query.shape[1] // key.shape[1]
            key, value = (part.repeat_interleave(each, 1) for part in (key, value))
    width = packed.grid.shape[1]
    out: Any = varlen_attn(query, key, value, packed.starts, packed.starts, width, width, **options)
    return out  # type: ignore[no-any-return]


def _causal(query: Tensor, key: Tensor, value: Tensor, scale: float, dropout: float, window: int | None) -> Tensor:
    """Return the attention of one row to itself."""
    size = len(query)
    unseen = torch.ones(size, size, dtype=torch.bool, device=query.device).triu(1)
    if window is not None:
        unseen |= unseen.new_ones(size, size).tril(-window)
    bias = torch.zeros(1, 1, size, size, device=query.device).masked_fill_(unseen, -torch.inf)
    return _grid(query[None], key[None], value[None], bias, scale, dropout)[0]


def _grid(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor,
    scale: float,
    dropout: float,
) -> Tensor:
    """Return the attention of padded rows, shape (rows, width, heads, width of a head).

    Args:
        query: shape (rows, width, heads, width of a head).
        key: shape (rows, keys, key heads, width of a head).
        value: the same.
        bias: of the scores, shape (rows or 1, heads or 1, width or 1, keys).
        scale: of the scores.
        dropout: of the weights.
    """
    rows, width, heads, size = query.shape
    keys, groups = key.shape[1:3]
    if query.is_cuda:
        out = nn.functional.scaled_dot_product_attention(
            query.transpose(1, 2),
            key.transpose(1, 2),
            value.transpose(1, 2),
            attn_mask=bias.to(query.dtype),
            dropout_p=dropout,
            scale=scale,
            enable_gqa=groups != heads,
        )
        return out.transpose(1, 2)
    each = heads // groups
    # The heads that share their keys are below each other, so that no key is repeated.
    queries = query.view(rows, width, groups, each, size).permute(0, 2, 3, 1, 4).reshape(rows * groups, -1, size)
    keyed = key.transpose(1, 2).reshape(rows * groups, keys, size)
    valued = value.transpose(1, 2).reshape(rows * groups, keys, size)
    if dropout or torch.compiler.is_compiling():  # which finds the derivative itself
        scores = torch.bmm(queries, keyed.mT).float().view(rows, heads, width, keys) * scale + bias
        weights = scores.softmax(-1).to(query.dtype).view(rows * groups, each * width, keys)
        out = torch.bmm(nn.functional.dropout(weights, dropout), valued)
    else:
        out = attend_in_grid(queries, keyed, valued, bias.expand(rows, -1, -1, -1), scale, heads)
    out = out.view(rows, groups, each, width, size)
    return out.permute(0, 3, 1, 2, 4).reshape(rows, width, heads, size)


def _too_far(packed: Packed, window: int) -> Tensor:
    """Return which keys are out of the window of which cells, shape (rows, width, prefix + width)."""
    offset = packed.positions.shape[0] - packed.cells.shape[0]  # 0 where the prefix is cached
    positions = torch.zeros_like(packed.grid).flatten()
    positions[packed.cells] = packed.positions[offset:]
    positions = positions.view_as(packed.grid)
    prefix = torch.arange(packed.prefix, device=positions.device).expand(len(positions), -1)
    keys = torch.cat([prefix, positions], 1)
    distance = positions[:, :, None] - keys[:, None, :]
    return (distance if packed.causal else distance.abs()) >= window


def use_packed_attention(config: Any) -> None:
    """Let a transformers model attend over packed rows where it is given any, and as before where it is not.

    Args:
        config: of the model.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    before = config._attn_implementation
    if before.startswith(NAME):
        return
    before = "sdpa" if before == "eager" else before  # eager functions are each model's own
    otherwise = ALL_ATTENTION_FUNCTIONS[before]

    def attention(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
    ) -> tuple[Tensor, None]:
        packed, cache = options.pop("packed", None), options.pop("prefix_cache", None)
        if packed is None:
            return otherwise(module, query, key, value, attention_mask, **options)  # type: ignore[no-any-return]
        query, key, value = (part[0].transpose(0, 1) for part in (query, key, value))
        prefix_kv = None if cache is None else cache.get(module.layer_idx, key, value, packed.prefix)
        scale = options.get("scaling") or query.shape[-1] ** -0.5
        limits = {"dropout": options.get("dropout", 0.0), "window": options.get("sliding_window")}
        return attend(query, key, value, packed, scale, prefix_kv=prefix_kv, **limits)[None], None

    name = f"{NAME}_{before}"
    AttentionInterface.register(name, attention)
    AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[before])
    config._attn_implementation = name
