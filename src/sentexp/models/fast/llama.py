"""Layers of the Llama family over packed rows, in a handful of steps each, in the arithmetic of their frozen weights.

transformers' layers under autocast cast every adapter and every norm, and multiply q, k, v, gate and up one by one: at
the lengths of sentences that is most of the time. Here the modules give their weights, and everything else is ours. In
the last layer only the tokens that are read go through the feed-forward part.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sentexp.data.packing import Packed
from sentexp.models.fast.attention import PrefixCache, attend, within
from sentexp.models.fast.lora_linear import Linear, multiply
from sentexp.models.fast.ops import gated, norm, turned
from sentexp.models.fast.stacked_lora import ADAPTER, Adapters, Group, base_layer

ARCHITECTURES = ("llama", "mistral", "qwen2")
"""transformers' names of the models whose layers are taken apart here."""
LAYERS = ("LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer")
LINEAR = {"self_attn": ("q_proj", "k_proj", "v_proj", "o_proj"), "mlp": ("gate_proj", "up_proj", "down_proj")}


class Layer(NamedTuple):
    """What a decoder layer computes with; all layers of a backbone have the same shapes.

    `outputs` are the widths of q, k and v; `size` is that of a head, `scale` multiplies the scores.
    """

    first_norm: Tensor
    second_norm: Tensor
    linear: tuple[Linear, Linear, Linear, Linear]
    outputs: list[int]
    size: int
    scale: float
    eps: float

    def without_adapters(self, runs: int) -> "Layer":
        """Return what so many runs compute with where none adapts the layer."""
        qkv, out, gate_up, down = (linear._replace(adapters=[None] * runs) for linear in self.linear)
        return self._replace(linear=(qkv, out, gate_up, down))


class LlamaLayers:
    """The layers of a Llama-like backbone over packed rows.

    Args:
        backbone: transformers' model without its head, wrapped by PEFT inside or not; see `fits`.
        compiled: let torch.compile make the code of a training layer: one for all layers and lengths.
    """

    def __init__(self, backbone: Any, compiled: bool = False) -> None:
        self.backbone = backbone
        self.dtype: torch.dtype = backbone.norm.weight.dtype
        self.groups = [_groups(layer) for layer in backbone.layers]
        self.adapters = Adapters([group for groups in self.groups for group in groups], self.dtype)
        self.unadapted = self.adapters.first_adapted // len(self.groups[0])
        """How many layers stand below the first one with an adapter."""
        self.train_layer = torch.compile(_layer, dynamic=True) if compiled else _layer

    def __call__(self, packed: Packed, cache: PrefixCache | None = None) -> Tensor:
        """Return the hidden states that are read, after the last norm, shape (read, hidden).

        Args:
            packed: rows.
            cache: of what all rows of an evaluation begin with.
        """
        (hidden,) = read_together([Reading(self, packed, cache)])
        return hidden


class Reading(NamedTuple):
    """What one of several runs over the same frozen weights reads.

    `seed` is that of its dropout masks; None goes on with torch's own generator.
    """

    layers: LlamaLayers
    packed: Packed
    cache: PrefixCache | None = None
    seed: int | None = None

    @property
    def generator(self) -> torch.Generator | None:
        """A new generator of the seed."""
        return None if self.seed is None else torch.Generator(self.packed.ids.device).manual_seed(self.seed)


def read_together(readings: Sequence[Reading]) -> tuple[Tensor, ...]:
    """Return the hidden states that each run reads, after the last norm, shape (read, hidden).

    The products with the frozen weights are those of all runs at once; adapters and attention are each run's own. So
    are the gradients: nothing of one run enters those of another. Below the first layer that any run adapts, rows that
    several runs read are computed once.

    Args:
        readings: of runs whose backbones are the same weights, all in training or none.
    """
    first = readings[0].layers
    backbone, count = first.backbone, len(first.groups)
    trains = backbone.training and torch.is_grad_enabled()
    packed = [within(reading.packed, reading.cache) for reading in readings]
    below = min(count - 1, *(reading.layers.unadapted for reading in readings))
    leaders = [_first_alike(part, packed) if below else number for number, part in enumerate(packed)]
    every = _Rows.of(packed, [[reading.cache] for reading in readings])
    rows = every.of_leaders(leaders) if len(set(leaders)) < len(packed) else every
    reads = torch.cat([part.read + span.start for part, span in zip(every.packed, every.spans, strict=True)])
    read = _spans([len(part.read) for part in every.packed])
    with torch.autocast(reads.device.type, enabled=False):
        hidden: Tensor = backbone.embed_tokens(torch.cat([part.ids for part in rows.packed])).to(first.dtype)
        turn = rows.turn(backbone, hidden)
        for number, adapted in enumerate(_layers(readings)):
            if number == below and rows is not every:
                parts = dict(zip(sorted(set(leaders)), (hidden[span] for span in rows.spans), strict=True))
                hidden = torch.cat([parts[leader] for leader in leaders])
                rows, turn = every, every.turn(backbone, hidden)
            layer = adapted if rows is every else adapted.without_adapters(len(rows.packed))
            given = hidden, layer, turn, rows.packed, rows.spans, (reads, read) if number == count - 1 else None
            if not trains:
                hidden = _layer(*given, [_Beginning(caches, number) for caches in rows.caches])
            elif backbone.layers[number].gradient_checkpointing:
                hidden = checkpoint(first.train_layer, *given, use_reentrant=False)
            else:
                hidden = first.train_layer(*given)
        hidden = norm(hidden, backbone.norm.weight, backbone.norm.variance_epsilon)
    return tuple(hidden[span] for span in read)


class _Rows(NamedTuple):
    """What a pass is over: rows, their tokens, and the caches that keep what they begin with."""

    packed: list[Packed]
    spans: list[slice]
    caches: list[list[PrefixCache | None]]

    @classmethod
    def of(cls, packed: list[Packed], caches: list[list[PrefixCache | None]]) -> "_Rows":
        """Return rows one after the other."""
        return cls(packed, _spans([len(part.ids) for part in packed]), caches)

    def of_leaders(self, leaders: list[int]) -> "_Rows":
        """Return the same, rows that are alike once: those of their leader, which fill the caches of all."""
        caches: dict[int, list[PrefixCache | None]] = {leader: [] for leader in sorted(set(leaders))}
        for leader, own in zip(leaders, self.caches, strict=True):
            caches[leader] += own
        return _Rows.of([self.packed[leader] for leader in caches], list(caches.values()))

    def turn(self, backbone: Any, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Return cosine and sine of the positions."""
        positions = torch.cat([part.positions for part in self.packed])
        cosine, sine = backbone.rotary_emb(hidden[None], positions[None])
        return cosine[0][:, None], sine[0][:, None]


def _first_alike(packed: Packed, others: list[Packed]) -> int:
    """Return the number of the first rows that are the same ones, in the same order."""
    return next(number for number, other in enumerate(others) if _is_alike(packed, other))


def _is_alike(packed: Packed, other: Packed) -> bool:
    return packed is other or (
        packed.prefix == other.prefix
        and torch.equal(packed.ids, other.ids)
        and torch.equal(packed.positions, other.positions)
        and torch.equal(packed.grid, other.grid)
        and torch.equal(packed.bias, other.bias)
    )


def _spans(lengths: Sequence[int]) -> list[slice]:
    """Return consecutive slices of these lengths."""
    ends = list(itertools.accumulate(lengths, initial=0))
    return [slice(start, end) for start, end in itertools.pairwise(ends)]


def _layers(readings: Sequence[Reading]) -> Iterator[Layer]:
    """Yield what each layer computes with, the adapters of all runs converted as they are now."""
    first = readings[0].layers
    own = [reading.layers.adapters.convert(first.backbone.training, reading.generator) for reading in readings]
    adapters = iter(zip(*own, strict=True))
    for module, groups in zip(first.backbone.layers, first.groups, strict=True):
        qkv, out, gate_up, down = (group.with_adapters(list(next(adapters))) for group in groups)
        attention = module.self_attn
        yield Layer(
            first_norm=module.input_layernorm.weight,
            second_norm=module.post_attention_layernorm.weight,
            linear=(qkv, out, gate_up, down),
            outputs=groups[0].outputs,
            size=attention.head_dim,
            scale=attention.scaling,
            eps=module.input_layernorm.variance_epsilon,
        )


class _Beginning(NamedTuple):
    """The caches of what all rows of an evaluation begin with, at a layer: of the runs that read these rows."""

    caches: list[PrefixCache | None]
    layer: int

    def known(self, key: Tensor, value: Tensor, prefix: int) -> tuple[Tensor, Tensor] | None:
        """Return keys and values of the prefix if they are known; else they are kept from these."""
        cache, *others = self.caches
        if cache is None or not prefix:
            return None
        found = cache.known(self.layer, key, value, prefix)
        for other in others:
            if other is not None:
                other.layers[self.layer] = cache.layers[self.layer]
        return found


def fits(backbone: Any, longest: int) -> bool:
    """Tell whether a backbone's layers are such that they can be taken apart, for rows of so many tokens at most."""
    layers = getattr(backbone, "layers", None)
    config = backbone.config
    window = getattr(config, "sliding_window", None)
    if not layers or getattr(config, "attention_dropout", None) or (window is not None and longest > window):
        return False
    return all(type(layer).__name__ in LAYERS and _is_plain(layer, backbone.norm.weight.dtype) for layer in layers)


def _is_plain(layer: Any, dtype: torch.dtype) -> bool:
    """Tell whether a layer's weights are frozen, plain or in 4 bits, with LoRA or DoRA adapters at most."""
    norms = (layer.input_layernorm, layer.post_attention_layernorm)
    if any(part.weight.requires_grad for part in norms) or layer.mlp.config.hidden_act != "silu":
        return False
    for part, names in LINEAR.items():
        modules = [getattr(getattr(layer, part), name) for name in names]
        if not all(_is_plain_linear(module, dtype) for module in modules):
            return False
        if len({type(base_layer(module)) for module in modules}) > 1:
            return False
        if part == "self_attn" and len({base_layer(module).bias is None for module in modules[:3]}) > 1:
            return False
    return True


def _is_plain_linear(module: Any, dtype: torch.dtype) -> bool:
    base = base_layer(module)
    if any(parameter.requires_grad for parameter in base.parameters()):
        return False
    if type(base).__name__ == "Linear4bit":
        if base.compute_dtype not in (None, dtype) or base.weight.quant_state is None:
            return False
    elif type(base) is not nn.Linear or base.weight.dtype is not dtype:
        return False
    if module is base:
        return True
    return (
        hasattr(module, "lora_A")
        and list(module.lora_A) == [ADAPTER]
        and not module.merged
        and {type(variant).__name__ for variant in module.lora_variant.values()} <= {"DoraLinearVariant"}
        and module.lora_B[ADAPTER].bias is None
    )


def _groups(layer: Any) -> list[Group]:
    """Return the linear layers of a decoder layer, those together that read the same."""
    attention, inner = layer.self_attn, layer.mlp
    return [
        Group([attention.q_proj, attention.k_proj, attention.v_proj]),
        Group([attention.o_proj]),
        Group([inner.gate_proj, inner.up_proj]),
        Group([inner.down_proj]),
    ]


def _layer(
    hidden: Tensor,
    layer: Layer,
    turn: tuple[Tensor, Tensor],
    packed: list[Packed],
    tokens: list[slice],
    last: tuple[Tensor, list[slice]] | None,
    beginnings: list[_Beginning] | None = None,
) -> Tensor:
    """Return the hidden states after a layer.

    Args:
        hidden: states before it, shape (tokens, hidden).
        layer: what it computes with.
        turn: cosine and sine of the positions.
        packed: the rows of each run.
        tokens: the tokens of each run.
        last: in the last layer, the tokens that are read, which are all that is returned, and those of each run.
        beginnings: of each run, in an evaluation.
    """
    qkv, out, gate_up, down = layer.linear
    states = multiply(norm(hidden, layer.first_norm, layer.eps), qkv, tokens).split(layer.outputs, 1)
    query, key, value = (part.unflatten(1, (-1, layer.size)) for part in states)
    query, key = turned(query, *turn), turned(key, *turn)
    found = []
    for number, (part, span) in enumerate(zip(packed, tokens, strict=True)):
        known = None if beginnings is None else beginnings[number].known(key[span], value[span], part.prefix)
        found.append(attend(query[span], key[span], value[span], part, layer.scale, known=known))
    seen = (found[0] if len(found) == 1 else torch.cat(found)).flatten(1)
    if last is not None:
        read, tokens = last
        seen, hidden = seen.index_select(0, read), hidden.index_select(0, read)
    hidden = hidden + multiply(seen, out, tokens)
    inner = multiply(norm(hidden, layer.second_norm, layer.eps), gate_up, tokens)
    return hidden + multiply(gated(inner), down, tokens)
