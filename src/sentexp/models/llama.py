"""Layers of the Llama family over packed rows, in a handful of steps each, in the arithmetic of their frozen weights.

transformers' layers under autocast cast every adapter and every norm, and multiply q, k, v, gate and up one by one: at
the lengths of sentences that is most of the time. Here the modules give their weights, and everything else is ours. In
the last layer only the tokens that are read go through the feed-forward part.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sentexp.data.packing import Packed
from sentexp.models.attention import PrefixCache, attend, within
from sentexp.models.grouped import ADAPTER, Adapter, Adapters, Group, base_layer, grouped

LAYERS = ("LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer")
LINEAR = {"self_attn": ("q_proj", "k_proj", "v_proj", "o_proj"), "mlp": ("gate_proj", "up_proj", "down_proj")}


@dataclass(slots=True)
class Layer:
    """A decoder layer, taken apart."""

    module: Any
    qkv: Group
    out: Group
    gate_up: Group
    down: Group

    @property
    def groups(self) -> list[Group]:
        """Its linear layers, in order."""
        return [self.qkv, self.out, self.gate_up, self.down]


class LlamaLayers:
    """The layers of a Llama-like backbone over packed rows.

    Args:
        backbone: transformers' model without its head, wrapped by PEFT inside or not; see `fits`.
    """

    def __init__(self, backbone: Any) -> None:
        self.backbone = backbone
        self.dtype: torch.dtype = backbone.norm.weight.dtype
        self.layers = [_apart(layer) for layer in backbone.layers]
        self.adapters = Adapters([group for layer in self.layers for group in layer.groups], self.dtype)

    def __call__(self, packed: Packed, cache: PrefixCache | None = None) -> Tensor:
        """Return the hidden states that are read, after the last norm, shape (read, hidden).

        Args:
            packed: rows.
            cache: of what all rows of an evaluation begin with.
        """
        packed = within(packed, cache)
        with torch.autocast(packed.ids.device.type, enabled=False):
            backbone = self.backbone
            hidden: Tensor = backbone.embed_tokens(packed.ids).to(self.dtype)
            angles = backbone.rotary_emb(hidden[None], position_ids=packed.positions[None])
            turn = tuple(part[0][:, None] for part in angles)
            adapters = self.adapters.convert(backbone.training)
            for number, layer in enumerate(self.layers):
                own = adapters[4 * number : 4 * number + 4]
                last = number == len(self.layers) - 1
                given = (layer, number, hidden, turn, packed, own, cache, last)
                if layer.module.gradient_checkpointing and backbone.training and torch.is_grad_enabled():
                    hidden = checkpoint(_layer, *given, use_reentrant=False)  # type: ignore[assignment]
                else:
                    hidden = _layer(*given)
            return _norm(hidden, backbone.norm)


def fits(backbone: Any, longest: int) -> bool:
    """Tell whether a backbone's layers are such that they can be taken apart, for rows of so many tokens at most."""
    layers = getattr(backbone, "layers", None)
    config = backbone.config
    window = getattr(config, "sliding_window", None)
    if not layers or getattr(config, "attention_dropout", 0.0) or (window is not None and longest > window):
        return False
    return all(type(layer).__name__ in LAYERS and _is_plain(layer, backbone.norm.weight.dtype) for layer in layers)


def _is_plain(layer: nn.Module, dtype: torch.dtype) -> bool:
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


def _apart(layer: Any) -> Layer:
    attention, inner = layer.self_attn, layer.mlp
    return Layer(
        module=layer,
        qkv=Group([attention.q_proj, attention.k_proj, attention.v_proj]),
        out=Group([attention.o_proj]),
        gate_up=Group([inner.gate_proj, inner.up_proj]),
        down=Group([inner.down_proj]),
    )


def _layer(
    layer: Layer,
    number: int,
    hidden: Tensor,
    turn: tuple[Tensor, Tensor],
    packed: Packed,
    adapters: list[Adapter | None],
    cache: PrefixCache | None,
    last: bool,
) -> Tensor:
    """Return the hidden states after a layer; after the last one, those that are read."""
    module = layer.module
    size = module.self_attn.head_dim
    states = grouped(_norm(hidden, module.input_layernorm), layer.qkv, adapters[0])
    query, key, value = (part.unflatten(1, (-1, size)) for part in states.split(layer.qkv.outputs, 1))
    query, key = _turned(query, *turn), _turned(key, *turn)
    known = cache.known(number, key, value, packed.prefix) if cache is not None and packed.prefix else None
    seen = attend(query, key, value, packed, module.self_attn.scaling, known=known).flatten(1)
    if last:
        seen, hidden = seen.index_select(0, packed.read), hidden.index_select(0, packed.read)
    hidden = hidden + grouped(seen, layer.out, adapters[1])
    inner = grouped(_norm(hidden, module.post_attention_layernorm), layer.gate_up, adapters[2])
    return hidden + grouped(_SwiGLU.apply(inner), layer.down, adapters[3])


def _norm(hidden: Tensor, norm: Any) -> Tensor:
    return _RMSNorm.apply(hidden, norm.weight, norm.variance_epsilon)  # type: ignore[no-any-return]


def _turned(states: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    return _Rotation.apply(states, cosine, sine)  # type: ignore[no-any-return]


class _RMSNorm(torch.autograd.Function):
    """x / sqrt(mean(x^2) + eps) * w in float32, with w frozen (Zhang & Sennrich 2019, eq. 4)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        wide = x.float()
        inverse = wide.square().mean(-1, keepdim=True).add_(eps).rsqrt_()
        normal = (wide * inverse).to(x.dtype)
        ctx.save_for_backward(normal, inverse, weight)
        return weight * normal

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        normal, inverse, weight = ctx.saved_tensors
        wide, scaled = normal.float(), (gradient * weight).float()
        along = (scaled * wide).mean(-1, keepdim=True)
        return scaled.sub_(wide.mul_(along)).mul_(inverse).to(gradient.dtype), None, None


class _Rotation(torch.autograd.Function):
    """Rotary position embedding over halves, as transformers applies it (Su et al. 2021, eq. 34)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        ctx.save_for_backward(cosine, sine)
        first, second = x.chunk(2, -1)
        return torch.addcmul(x * cosine, torch.cat([-second, first], -1), sine)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        cosine, sine = ctx.saved_tensors
        first, second = (gradient * sine).chunk(2, -1)
        return torch.addcmul(torch.cat([second, -first], -1), gradient, cosine), None, None


class _SwiGLU(torch.autograd.Function):
    """silu(gate) * up of gate and up side by side (Shazeer 2020, eq. 6); only these are kept."""

    @staticmethod
    def forward(ctx: Any, both: Tensor) -> Tensor:
        ctx.save_for_backward(both)
        gate, up = both.chunk(2, -1)
        return nn.functional.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (both,) = ctx.saved_tensors
        gate, up = both.chunk(2, -1)
        out = torch.empty_like(both)
        to_gate, to_up = out.chunk(2, -1)
        torch.mul(gradient, nn.functional.silu(gate), out=to_up)
        torch.ops.aten.silu_backward.grad_input(gradient * up, gate, grad_input=to_gate)
        return out
