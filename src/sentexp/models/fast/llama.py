"""Layers of the Llama family and of Gemma 3 over packed rows, in the arithmetic of their frozen weights.

transformers' layers under autocast cast every adapter and every norm, and multiply q, k, v, gate and up one by one: at
the lengths of sentences that is most of the time. Here transformers' modules give their weights, and the forward pass
is written out below. In the last layer only the tokens that are read go through the feed-forward part.

This is the path of a single run. `fused_forward` passes several runs through the same steps at once.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from sentexp.data.packing import Packed
from sentexp.models.fast.decoder_layer import (
    GATED,
    Layer,
    Norms,
    Rotary,
    activation_of,
    decoder_layer,
    norm_weight,
    norms_of,
)
from sentexp.models.fast.ops import rms_norm
from sentexp.models.fast.prefix_cache import PrefixCache, within
from sentexp.models.fast.row_cache import RowCache
from sentexp.models.fast.stacked_lora import Adapters, Group


class LlamaLayers:
    """The layers of a Llama-like backbone over packed rows.

    Args:
        backbone: transformers' model without its head, wrapped by PEFT inside or not; see `supports`.
        compiled: let torch.compile make the code of a training layer: one for all layers and lengths.
        row_cache: keeps the states of rows below the first layer with an adapter.
    """

    def __init__(self, backbone: Any, compiled: bool = False, row_cache: RowCache | None = None) -> None:
        self.backbone = backbone
        self.row_cache = row_cache
        self.dtype: torch.dtype = backbone.norm.weight.dtype
        self.groups = [_groups(layer) for layer in backbone.layers]
        self._norms: tuple[int, list[Norms]] = -1, []
        self.adapters = Adapters([group for groups in self.groups for group in groups], self.dtype)
        self.unadapted = self.adapters.first_adapted // len(self.groups[0])
        """How many layers are below the first one with an adapter."""
        self.train_layer = torch.compile(decoder_layer, dynamic=True) if compiled else decoder_layer

    def __call__(self, packed: Packed, cache: PrefixCache | None = None) -> Tensor:
        """Return the hidden states that are read, after the last norm, shape (read, hidden).

        Args:
            packed: rows.
            cache: of the prefix of all rows of an evaluation.
        """
        begin = self.known
        cache = None if begin else cache  # the prefix is kept with the rows
        packed = within(packed, cache)
        with torch.autocast(packed.ids.device.type, enabled=False):
            hidden = self.states_before(begin, packed)
            rotary = self.rotary(packed.positions, hidden)
            adapters = self.adapters.convert(self.backbone.training)
            for number in range(begin, len(self.groups)):
                layer = self.layer(number, [[] if one is None else [one] for one in self.of_layer(number, adapters)])
                read = packed.read if number == len(self.groups) - 1 else None
                if not self.trains:
                    hidden = decoder_layer(hidden, layer, rotary[number], packed, read, cache, number)
                elif self.recomputes(number):
                    inputs = (hidden, layer, rotary[number], packed, read)
                    hidden = checkpoint(self.train_layer, *inputs, use_reentrant=False)
                else:
                    hidden = self.train_layer(hidden, layer, rotary[number], packed, read)
            return self.last_norm(hidden)

    def states_before(self, number: int, packed: Packed) -> Tensor:
        """Return the hidden states of tokens before a layer below which nothing is adapted, shape (tokens, hidden).

        Those of rows that were read before are taken from the cache, where there is one.
        """
        if not number or self.row_cache is None:
            return self._states_before(number, packed)
        rows = self.row_cache.get(number, packed, lambda missing: self._by_row(number, missing))
        return torch.cat([rows[0][: packed.prefix], *(row[packed.prefix :] for row in rows)])

    def _states_before(self, number: int, packed: Packed) -> Tensor:
        hidden = self.embed(packed.ids)
        rotary = self.rotary(packed.positions, hidden)
        for below in range(number):
            layer = self.layer(below, [[]] * len(self.groups[below]))
            hidden = decoder_layer(hidden, layer, rotary[below], packed, None)
        return hidden

    def _by_row(self, number: int, packed: Packed) -> list[Tensor]:
        """Return the states of each row with those of the prefix before them."""
        states, starts = self._states_before(number, packed), packed.starts.tolist()
        prefix, rest = states[: packed.prefix], states[packed.prefix :]
        return [torch.cat([prefix, rest[start:end]]) for start, end in itertools.pairwise(starts)]

    @property
    def known(self) -> int:
        """The number of the first layer whose states are not kept with the rows."""
        return 0 if self.row_cache is None else min(self.unadapted, len(self.groups) - 1)

    @property
    def is_frozen(self) -> bool:
        """Whether no layer has an adapter."""
        return self.unadapted == len(self.groups)

    @property
    def trains(self) -> bool:
        """Whether a pass is one of training."""
        return bool(self.backbone.training) and torch.is_grad_enabled()

    @property
    def head_size(self) -> int:
        """The width of a head of attention."""
        return int(self.backbone.layers[0].self_attn.head_dim)

    def recomputes(self, number: int) -> bool:
        """Tell whether a layer computes its states again in the backward pass, instead of keeping them."""
        return bool(self.backbone.layers[number].gradient_checkpointing)

    def embed(self, ids: Tensor) -> Tensor:
        """Return the embeddings of tokens, shape (tokens, hidden)."""
        embeddings: Tensor = self.backbone.embed_tokens(ids)
        return embeddings.to(self.dtype)

    def rotary(self, positions: Tensor, hidden: Tensor) -> list[Rotary]:
        """Return cosine and sine of positions for each layer, in the dtype of the hidden states.

        Local layers have a base of their own, where the backbone says so (Gemma 3).
        """
        embedding = self.backbone.rotary_emb
        by_kind = isinstance(getattr(embedding, "rope_type", None), dict)
        kinds = [(layer.self_attn.layer_type,) if by_kind else () for layer in self.backbone.layers]
        angles: dict[tuple[str, ...], Rotary] = {}
        for kind in dict.fromkeys(kinds):
            cosine, sine = embedding(hidden[None], positions[None], *kind)
            angles[kind] = Rotary(cosine[0][:, None], sine[0][:, None])
        return [angles[kind] for kind in kinds]

    def last_norm(self, hidden: Tensor) -> Tensor:
        """Return the hidden states after the norm above the last layer."""
        last = self.norms[-1]
        return rms_norm(hidden, last.first, last.eps)

    @property
    def norms(self) -> list[Norms]:
        """The norms of the layers, and last the norm above them, made anew where the backbone has been moved."""
        backbone = self.backbone
        place = backbone.norm.weight.data_ptr()
        if self._norms[0] != place:
            with torch.inference_mode(False):  # what is made in it could not be trained through
                last = norm_weight(backbone.norm)
                of_layers = [norms_of(layer) for layer in backbone.layers]
                self._norms = place, [*of_layers, of_layers[-1]._replace(first=last)]
        return self._norms[1]

    def of_layer(self, number: int, adapters: Sequence[Any]) -> Sequence[Any]:
        """Return those of the adapters of all groups that belong to a layer."""
        groups = len(self.groups[0])
        return adapters[number * groups : (number + 1) * groups]

    def layer(self, number: int, adapters: Sequence[list[Any]]) -> Layer:
        """Return what a layer computes with.

        Args:
            number: of the layer.
            adapters: those of q, k and v, of o, of gate and up, and of down.
        """
        module, groups = self.backbone.layers[number], self.groups[number]
        attention = module.self_attn
        qkv, out, gate_up, down = (
            group.with_adapters(of_group) for group, of_group in zip(groups, adapters, strict=True)
        )
        return Layer(
            norms=self.norms[number],
            qkv=qkv,
            out=out,
            gate_up=gate_up,
            down=down,
            qkv_widths=groups[0].outputs,
            head_size=attention.head_dim,
            scale=attention.scaling,
            gated=GATED[activation_of(module)],
            rotates=bool(getattr(attention, "use_rope", True)),
        )


def _groups(layer: Any) -> list[Group]:
    """Return the linear layers of a decoder layer, those together that read the same."""
    attention, mlp = layer.self_attn, layer.mlp
    return [
        Group([attention.q_proj, attention.k_proj, attention.v_proj]),
        Group([attention.o_proj]),
        Group([mlp.gate_proj, mlp.up_proj]),
        Group([mlp.down_proj]),
    ]
