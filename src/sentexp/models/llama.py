"""Layers of the Llama family over packed rows, in a handful of steps each, in the arithmetic of their frozen weights.

transformers' layers under autocast cast every adapter and every norm, and multiply q, k, v, gate and up one by one: at
the lengths of sentences that is most of the time. Here the modules give their weights, and everything else is ours. In
the last layer only the tokens that are read go through the feed-forward part.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sentexp.data.packing import Packed
from sentexp.models.attention import PrefixCache, attend, within
from sentexp.models.grouped import ADAPTER, Adapters, Group, Linear, base_layer, multiply

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
        self.train_layer = torch.compile(_layer, dynamic=True) if compiled else _layer

    def __call__(self, packed: Packed, cache: PrefixCache | None = None) -> Tensor:
        """Return the hidden states that are read, after the last norm, shape (read, hidden).

        Args:
            packed: rows.
            cache: of what all rows of an evaluation begin with.
        """
        packed = within(packed, cache)
        backbone = self.backbone
        with torch.autocast(packed.ids.device.type, enabled=False):
            hidden: Tensor = backbone.embed_tokens(packed.ids).to(self.dtype)
            turn = tuple(part[0][:, None] for part in backbone.rotary_emb(hidden[None], packed.positions[None]))
            for number, layer in enumerate(self._layers()):
                module = backbone.layers[number]
                last = number == len(self.groups) - 1
                given = hidden, layer, turn, packed, last
                if not (backbone.training and torch.is_grad_enabled()):
                    hidden = _layer(*given, _Beginning(cache, number))
                elif module.gradient_checkpointing:
                    hidden = checkpoint(self.train_layer, *given, use_reentrant=False)
                else:
                    hidden = self.train_layer(*given)
            return _norm(hidden, backbone.norm.weight, backbone.norm.variance_epsilon)

    def _layers(self) -> Iterator[Layer]:
        """Yield what each layer computes with, its adapters converted as they are now."""
        adapters = iter(self.adapters.convert(self.backbone.training))
        for module, groups in zip(self.backbone.layers, self.groups, strict=True):
            qkv, out, gate_up, down = (group.with_adapter(next(adapters)) for group in groups)
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
    """The cache of what all rows of an evaluation begin with, at a layer."""

    cache: PrefixCache | None
    layer: int

    def known(self, key: Tensor, value: Tensor, prefix: int) -> tuple[Tensor, Tensor] | None:
        """Return keys and values of the prefix if they are known; else they are kept from these."""
        return self.cache.known(self.layer, key, value, prefix) if self.cache is not None and prefix else None


def fits(backbone: Any, longest: int) -> bool:
    """Tell whether a backbone's layers are such that they can be taken apart, for rows of so many tokens at most."""
    layers = getattr(backbone, "layers", None)
    config = backbone.config
    window = getattr(config, "sliding_window", None)
    if not layers or getattr(config, "attention_dropout", None) or (window is not None and longest > window):
        return False
    return all(type(layer).__name__ in LAYERS and _is_plain(layer, backbone.norm.weight.dtype) for layer in layers)


def _is_plain(layer: Any, dtype: torch.dtype) -> bool:
    """Tell whether a layer's weights are frozen, plain or in 4 bits, with plain LoRA adapters at most."""
    norms = (layer.input_layernorm, layer.post_attention_layernorm)
    if any(norm.weight.requires_grad for norm in norms) or layer.mlp.config.hidden_act != "silu":
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
        and not module.lora_variant
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
    packed: Packed,
    last: bool,
    beginning: _Beginning | None = None,
) -> Tensor:
    """Return the hidden states after a layer; after the last one, those that are read."""
    qkv, out, gate_up, down = layer.linear
    states = multiply(_norm(hidden, layer.first_norm, layer.eps), qkv).split(layer.outputs, 1)
    query, key, value = (part.unflatten(1, (-1, layer.size)) for part in states)
    query, key = _turned(query, *turn), _turned(key, *turn)
    known = None if beginning is None else beginning.known(key, value, packed.prefix)
    seen = attend(query, key, value, packed, layer.scale, known=known).flatten(1)
    if last:
        seen, hidden = seen.index_select(0, packed.read), hidden.index_select(0, packed.read)
    hidden = hidden + multiply(seen, out)
    inner = multiply(_norm(hidden, layer.second_norm, layer.eps), gate_up)
    return hidden + multiply(_gated(inner), down)


def _norm(hidden: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Return x / sqrt(mean(x^2) + eps) * w in float32 (Zhang & Sennrich 2019, eq. 4)."""
    if torch.compiler.is_compiling():  # which finds the derivative, and what to fuse, itself
        return weight * _normalised(hidden, eps)[0]
    out: Tensor = _RMSNorm.apply(hidden, weight, eps)  # type: ignore[no-untyped-call]
    return out


def _turned(states: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Return rotary position embeddings over halves, as transformers applies them (Su et al. 2021, eq. 34)."""
    if torch.compiler.is_compiling():
        return _rotated(states, cosine, sine)
    out: Tensor = _Rotation.apply(states, cosine, sine)  # type: ignore[no-untyped-call]
    return out


def _gated(both: Tensor) -> Tensor:
    """Return silu(gate) * up of gate and up side by side (Shazeer 2020, eq. 6)."""
    if torch.compiler.is_compiling():
        return _swiglu(both)
    out: Tensor = _SwiGLU.apply(both)  # type: ignore[no-untyped-call]
    return out


def _normalised(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return x over its root mean square, and one over that in float32."""
    wide = x.float()
    inverse = (wide.square().mean(-1, keepdim=True) + eps).rsqrt()
    return (wide * inverse).to(x.dtype), inverse


def _rotated(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return torch.addcmul(x * cosine, torch.cat([-second, first], -1), sine)


def _swiglu(both: Tensor) -> Tensor:
    gate, up = both.chunk(2, -1)
    return nn.functional.silu(gate) * up


class _RMSNorm(torch.autograd.Function):
    """`_norm` with a frozen weight; the normalised input is all that is kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        normal, inverse = _normalised(x, eps)
        ctx.save_for_backward(normal, inverse, weight)
        return weight * normal

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        normal, inverse, weight = ctx.saved_tensors
        wide, scaled = normal.float(), (gradient * weight).float()
        along = (scaled * wide).mean(-1, keepdim=True)
        return ((scaled - wide * along) * inverse).to(gradient.dtype), None, None


class _Rotation(torch.autograd.Function):
    """`_turned`; its derivative turns back, so that the input is not kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        ctx.save_for_backward(cosine, sine)
        return _rotated(x, cosine, sine)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        cosine, sine = ctx.saved_tensors
        first, second = (gradient * sine).chunk(2, -1)
        return torch.addcmul(torch.cat([second, -first], -1), gradient, cosine), None, None


class _SwiGLU(torch.autograd.Function):
    """`_gated`; its input is all that is kept."""

    @staticmethod
    def forward(ctx: Any, both: Tensor) -> Tensor:
        ctx.save_for_backward(both)
        return _swiglu(both)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (both,) = ctx.saved_tensors
        gate, up = both.chunk(2, -1)
        to_gate = torch.ops.aten.silu_backward(gradient * up, gate)
        return torch.cat([to_gate, gradient * nn.functional.silu(gate)], -1)
