"""4-bit and int8 layers as ordinary ones, of the values that they round to."""

import torch
from torch import nn

CONV = "Conv1D"
"""GPT-2's linear layers, whose weights are transposed; bitsandbytes makes ordinary ones of them."""


def unpack(model: nn.Module, dtype: torch.dtype = torch.float32) -> None:
    """Replace quantised layers by those of a dtype; they stay ordinary linear layers, whatever the architecture has."""
    from peft.utils.integrations import dequantize_module_weight

    for path, module in list(model.named_modules()):
        weight = module._parameters.get("weight")
        if getattr(weight, "quant_state", None) is None and type(weight).__name__ != "Int8Params":
            continue
        plain = nn.Linear(module.in_features, module.out_features, device="meta")
        plain.weight = nn.Parameter(dequantize_module_weight(module).data.to(dtype), requires_grad=False)
        plain.bias = module.bias
        _replace(model, path, plain)
    for name in ("is_loaded_in_4bit", "is_loaded_in_8bit", "is_quantized", "hf_quantizer", "quantization_method"):
        if hasattr(model, name):
            delattr(model, name)
    for name in ("quantization_config", "_pre_quantization_dtype"):
        if hasattr(model.config, name):
            delattr(model.config, name)


def restore_kinds(model: nn.Module, shapes: nn.Module) -> None:
    """Give unpacked layers the kind that the architecture has.

    Args:
        model: whose layers were quantised once.
        shapes: the same architecture, never quantised.
    """
    from transformers.pytorch_utils import Conv1D

    for path, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and type(shapes.get_submodule(path)).__name__ == CONV:
            conv = Conv1D(module.out_features, module.in_features)
            conv.weight = nn.Parameter(module.weight.t().contiguous(), requires_grad=False)
            conv.bias = module.bias
            _replace(model, path, conv)


def _replace(model: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)
