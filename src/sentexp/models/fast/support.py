"""Which backbones the fast layers can replace: frozen Llamas and BERTs and their like, with LoRA or DoRA at most."""

from typing import Any

import torch
from torch import nn

from sentexp.models.dequantize import is_packed
from sentexp.models.fast import encoder
from sentexp.models.fast.decoder_layer import GATED, activation_of
from sentexp.models.fast.stacked_lora import ADAPTER, base_layer

ARCHITECTURES = ("gemma3_text", "llama", "mistral", "qwen2", "qwen3", "smollm3")
"""transformers' names of the decoders whose layers can be replaced; `encoder.LAYERS` has the encoders."""
LAYERS = (
    "Gemma3DecoderLayer",
    "LlamaDecoderLayer",
    "MistralDecoderLayer",
    "Qwen2DecoderLayer",
    "Qwen3DecoderLayer",
    "SmolLM3DecoderLayer",
)
PACKED = ("HQQLinear", "Linear4bit", "PackedLinear")
"""Layers whose products are those of their weights unpacked."""
LINEAR = {"self_attn": ("q_proj", "k_proj", "v_proj", "o_proj"), "mlp": ("gate_proj", "up_proj", "down_proj")}


def supports(backbone: Any) -> bool:
    """Tell whether the fast layers compute what a backbone's own do, for rows within its sliding window."""
    if backbone.config.model_type in encoder.LAYERS:
        decodes = getattr(backbone.config, "is_decoder", False)
        return not decodes and all(map(_is_supported_encoder_layer, encoder.layers_of(backbone)))
    layers = getattr(backbone, "layers", None)
    config = backbone.config
    if not layers or getattr(config, "attention_dropout", None):
        return False
    if any(hasattr(module, "modules_to_save") for module in backbone.modules()):  # it trains, beside the adapter
        return False
    if any(type(layer).__name__ not in LAYERS for layer in layers) or hasattr(backbone.norm, "base_layer"):
        return False
    if getattr(config, "use_bidirectional_attention", None) or getattr(config, "final_logit_softcapping", None):
        return False
    return all(_is_supported_layer(layer, backbone.norm.weight.dtype) for layer in layers)


def _is_supported_encoder_layer(parts: encoder.Parts) -> bool:
    """Tell the same of a layer of an encoder, which may train nothing but LoRA or DoRA adapters."""
    dtype = parts.norms[0].weight.dtype
    kinds = {type(base_layer(module)) for module in parts[:3]}
    if len(kinds) > 1 or not all(_is_supported_linear(module, dtype) for module in parts.linear):
        return False
    return all(type(norm) is nn.LayerNorm and not norm.weight.requires_grad for norm in parts.norms)


def _is_supported_layer(layer: Any, dtype: torch.dtype) -> bool:
    """Tell whether a layer's weights are frozen, plain or packed, with LoRA or DoRA adapters at most."""
    norms = [module for part in (layer, layer.self_attn) for name, module in part.named_children() if "norm" in name]
    if any(norm.weight.requires_grad or hasattr(norm, "base_layer") for norm in norms):
        return False
    if activation_of(layer) not in GATED:
        return False
    for part, names in LINEAR.items():
        modules = [getattr(getattr(layer, part), name) for name in names]
        if not all(_is_supported_linear(module, dtype) for module in modules):
            return False
        if len({type(base_layer(module)) for module in modules}) > 1:
            return False
        if part == "self_attn" and len({base_layer(module).bias is None for module in modules[:3]}) > 1:
            return False
    return True


def _is_supported_linear(module: Any, dtype: torch.dtype) -> bool:
    base = base_layer(module)
    if any(parameter.requires_grad for parameter in base.parameters()):
        return False
    if type(base).__name__ in PACKED:
        computed = base.weight.dtype if type(base).__name__ == "PackedLinear" else base.compute_dtype
        if computed not in (None, dtype) or not is_packed(base):
            return False
    elif type(base) is not nn.Linear or base.weight.dtype is not dtype:
        return False
    return module is base or _is_supported_adapter(module)


def _is_supported_adapter(module: Any) -> bool:
    return (
        isinstance(getattr(module, "lora_A", None), nn.ModuleDict)  # AdaLoRA has parameters there
        and list(module.lora_A) == [ADAPTER]
        and not module.merged
        and {type(variant).__name__ for variant in module.lora_variant.values()} <= {"DoraLinearVariant"}
        and module.lora_B[ADAPTER].bias is None
    )
