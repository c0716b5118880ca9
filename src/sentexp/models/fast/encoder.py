"""Layers of BERT and its like over packed rows: `llama`, but for encoders, whose tokens see all of their row.

RoBERTa, XLM-RoBERTa and ELECTRA have BERT's layers; DistilBERT's have other names, and no dropout behind attention.
MPNet's have other names too, and add to the scores what it has learned of each distance between tokens.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sentexp.data.packing import Packed
from sentexp.models.fast.dropout import drop
from sentexp.models.fast.encoder_layer import EncoderLayer, Norm, encoder_layer
from sentexp.models.fast.grid_attention import Places
from sentexp.models.fast.stacked_lora import Adapters, Group


class Parts(NamedTuple):
    """The modules of an encoder layer in transformers' model, in the order of what it computes."""

    query: Any
    key: Any
    value: Any
    out: Any
    up: Any
    down: Any
    norms: tuple[Any, Any]
    dropouts: tuple[nn.Dropout | None, nn.Dropout | None]
    attention_dropout: nn.Dropout
    activation: Callable[[Tensor], Tensor]
    heads: int

    @property
    def linear(self) -> tuple[Any, ...]:
        """The modules with weight matrices, wrapped by PEFT or not."""
        return self[:6]


def _of_bert(layer: Any) -> Parts:
    attention, first, last = layer.attention.self, layer.attention.output, layer.output
    return Parts(
        attention.query,
        attention.key,
        attention.value,
        first.dense,
        layer.intermediate.dense,
        last.dense,
        (first.LayerNorm, last.LayerNorm),
        (first.dropout, last.dropout),
        attention.dropout,
        layer.intermediate.intermediate_act_fn,
        attention.num_attention_heads,
    )


def _of_distilbert(layer: Any) -> Parts:
    attention, ffn = layer.attention, layer.ffn
    return Parts(
        attention.q_lin,
        attention.k_lin,
        attention.v_lin,
        attention.out_lin,
        ffn.lin1,
        ffn.lin2,
        (layer.sa_layer_norm, layer.output_layer_norm),
        (None, ffn.dropout),
        attention.dropout,
        ffn.activation,
        attention.n_heads,
    )


def _of_mpnet(layer: Any) -> Parts:
    attention, last = layer.attention.attn, layer.output
    return Parts(
        attention.q,
        attention.k,
        attention.v,
        attention.o,
        layer.intermediate.dense,
        last.dense,
        (layer.attention.LayerNorm, last.LayerNorm),
        (layer.attention.dropout, last.dropout),
        attention.dropout,
        layer.intermediate.intermediate_act_fn,
        attention.num_attention_heads,
    )


LAYERS: dict[str, tuple[str, Callable[[Any], Parts]]] = {
    "bert": ("encoder.layer", _of_bert),
    "distilbert": ("transformer.layer", _of_distilbert),
    "electra": ("encoder.layer", _of_bert),
    "mpnet": ("encoder.layer", _of_mpnet),
    "roberta": ("encoder.layer", _of_bert),
    "xlm-roberta": ("encoder.layer", _of_bert),
}
"""Where the layers of a backbone are, and what takes one apart, by transformers' names of the architectures."""


def layers_of(backbone: Any) -> list[Parts]:
    """Return the layers of an encoder of `LAYERS`, without its head."""
    path, take_apart = LAYERS[backbone.config.model_type]
    return [take_apart(layer) for layer in backbone.get_submodule(path)]


class EncoderLayers:
    """The layers of an encoder over packed rows.

    Args:
        backbone: transformers' model without its head, wrapped by PEFT inside or not; see `support.supports`.
    """

    def __init__(self, backbone: Any) -> None:
        self.backbone = backbone
        self.layers = layers_of(backbone)
        self.groups = [
            [Group([layer.query, layer.key, layer.value]), *(Group([module]) for module in layer.linear[3:])]
            for layer in self.layers
        ]
        self.dtype: torch.dtype = self.layers[0].norms[0].weight.dtype
        self.adapters = Adapters([group for groups in self.groups for group in groups], self.dtype)
        self._norms: tuple[int, list[tuple[Norm, Norm]]] = -1, []

    def __call__(self, packed: Packed, segments: Tensor | None = None) -> Tensor:
        """Return the float32 hidden states that are read, shape (read, hidden).

        Args:
            packed: rows; where one token of each is read, the last layer computes no other.
            segments: of the tokens, 0 or 1, shape (tokens,); None is 0.
        """
        hidden = self.embed(packed, segments).float()
        places = None if hidden.is_cuda else Places.of(packed, self.layers[0].heads)
        is_one_each = len(packed.read) == packed.rows
        with torch.autocast(packed.ids.device.type, enabled=False):
            bias = self._bias(packed)
            adapters = iter(self.adapters.convert(self.backbone.training))
            for number, groups in enumerate(self.groups):
                of_layer = [next(adapters) for _ in groups]
                layer = self.layer(number, [[] if one is None else [one] for one in of_layer])
                read = packed.read if is_one_each and number == len(self.groups) - 1 else None
                if self.recomputes:
                    given = hidden, layer, packed, bias, places, read
                    hidden = checkpoint(encoder_layer, *given, use_reentrant=False)
                else:
                    hidden = encoder_layer(hidden, layer, packed, bias, places, read)
        return hidden if is_one_each else hidden.index_select(0, packed.read)

    def embed(self, packed: Packed, segments: Tensor | None) -> Tensor:
        """Return the states below the first layer, shape (tokens, hidden)."""
        embeddings = self.backbone.embeddings
        states = embeddings.word_embeddings(packed.ids)
        if hasattr(embeddings, "token_type_embeddings"):
            kinds = torch.zeros_like(packed.ids) if segments is None else segments
            states = states + embeddings.token_type_embeddings(kinds)
        states = embeddings.LayerNorm(states + embeddings.position_embeddings(packed.positions))
        dropout = self._live(embeddings.dropout)
        states = drop(states, dropout) if dropout else states
        project = getattr(self.backbone, "embeddings_project", None)
        return states if project is None else project(states)

    def layer(self, number: int, adapters: list[list[Any]]) -> EncoderLayer:
        """Return what a layer computes with.

        Args:
            number: of the layer.
            adapters: those of q, k and v, of what follows attention, and of the two feed-forward products.
        """
        parts, groups = self.layers[number], self.groups[number]
        qkv, out, up, down = (group.with_adapters(own) for group, own in zip(groups, adapters, strict=True))
        first, last = parts.dropouts
        return EncoderLayer(
            qkv=qkv,
            out=out,
            up=up,
            down=down,
            norms=self.norms[number],
            dropouts=(self._live(first), self._live(last)),
            attention_dropout=self._live(parts.attention_dropout),
            heads=parts.heads,
            scale=(groups[0].inputs // parts.heads) ** -0.5,
            activation=parts.activation,
            dtype=self.dtype,
        )

    @property
    def recomputes(self) -> bool:
        """Whether layers compute their states again in the backward pass, instead of keeping them."""
        path, _ = LAYERS[self.backbone.config.model_type]
        first = self.backbone.get_submodule(path)[0]
        checkpoints = getattr(first, "gradient_checkpointing", False)  # MPNet's layers cannot
        return bool(self.backbone.training and torch.is_grad_enabled() and checkpoints)

    @property
    def norms(self) -> list[tuple[Norm, Norm]]:
        """The norms of the layers in float32, made anew where the backbone has been moved."""
        place = self.layers[0].norms[0].weight.data_ptr()
        if self._norms[0] != place:
            with torch.inference_mode(False):  # what is made in it could not be trained through
                norms = [tuple(_norm(module) for module in layer.norms) for layer in self.layers]
                self._norms = place, norms  # type: ignore[assignment]
        return self._norms[1]

    def _bias(self, packed: Packed) -> Tensor:
        """Return what is added to the scores, shape (rows, 1, 1, width); of MPNet (rows, heads, width, width)."""
        bias = packed.bias[:, None]
        if self.backbone.config.model_type != "mpnet":
            return bias
        of_a_row = bias.new_empty(1, bias.shape[-1])  # the shape is all that is read of it
        learned: Tensor = self.backbone.encoder.compute_position_bias(of_a_row)
        return bias + learned.float()

    def _live(self, dropout: nn.Dropout | None) -> float:
        """Return the probability of a dropout, 0 but in training."""
        return float(dropout.p) if dropout is not None and dropout.training else 0.0


def _norm(module: Any) -> Norm:
    return Norm(module.weight.detach().float(), module.bias.detach().float(), float(module.eps))
