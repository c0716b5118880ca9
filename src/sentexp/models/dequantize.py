"""Packed linear layers as ordinary ones, of the values that they round to."""

from typing import Any

import torch
from torch import Tensor, nn

CONV = "Conv1D"
"""GPT-2's linear layers, whose weights are transposed; bitsandbytes makes ordinary ones of them."""


def is_packed(module: nn.Module) -> bool:
    """Tell whether a linear layer keeps its weight packed, by bitsandbytes, torchao or HQQ."""
    weight = module._parameters.get("weight")
    kind = type(weight)
    by_bitsandbytes = getattr(weight, "quant_state", None) is not None or kind.__name__ == "Int8Params"
    return by_bitsandbytes or kind.__module__.startswith("torchao.") or is_of_hqq(module)


def is_of_hqq(module: nn.Module) -> bool:
    """Tell whether a layer is HQQ's, whose weight has a name of its own."""
    return "W_q" in module._parameters


def dense_weight(module: Any) -> Tensor:
    """Return the weight of a packed layer, shape (outputs, inputs), in the dtype that it had before packing."""
    from peft.utils.integrations import dequantize_bnb_weight, dequantize_module_weight

    of_four_bits = not is_of_hqq(module) and getattr(module.weight, "quant_state", None) is not None
    dense: Tensor = dequantize_bnb_weight(module.weight) if of_four_bits else dequantize_module_weight(module)
    return dense.detach()


def unpack(model: nn.Module, dtype: torch.dtype = torch.float32) -> None:
    """Replace quantised layers by those of a dtype; they stay ordinary linear layers, whatever the architecture has."""
    module: Any
    for path, module in list(model.named_modules()):
        if not is_packed(module):
            continue
        plain: Any = nn.Linear(module.in_features, module.out_features, device="meta")
        plain.weight = nn.Parameter(dense_weight(module).data.to(dtype), requires_grad=False)
        plain.bias = None if module.bias is None else nn.Parameter(module.bias.data, requires_grad=False)
        replace_module(model, path, plain)
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
            replace_module(model, path, conv)


def replace_module(model: nn.Module, path: str, module: nn.Module) -> None:
    """Put a module in the place of another one."""
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)
