"""A trained model as one plain transformers model: adapter merged, quantised layers unpacked, head in place."""

import torch
from torch import nn

from sentexp.config import Precision, Quantization
from sentexp.models.backbone import Backbone, base_of, outline
from sentexp.models.trained import Trained, load_trained

CONV = "Conv1D"
"""GPT-2's linear layers, whose weights are transposed; bitsandbytes makes ordinary ones of them."""


def merge(trained: Trained, base: Backbone) -> nn.Module:
    """Return the model in float32 on the CPU, without PEFT or bitsandbytes.

    A 4-bit or int8 base is unpacked, not replaced by the weights that it was packed from: the adapter was trained on
    what it rounds to.

    Args:
        trained: the weights.
        base: see `find_base`.

    Raises:
        UserError: weights that are missing, damaged, or do not fit the base.
    """
    model, _ = load_trained(trained, base, Precision.fp32, torch.device("cpu"))
    if trained.storage.quantization is not Quantization.none:
        _unpack(base_of(model))
    if hasattr(model, "merge_and_unload"):
        model = model.merge_and_unload(safe_merge=True)  # type: ignore[operator]
    if trained.storage.quantization is not Quantization.none:
        _transpose(model, outline(base, None if trained.answers else trained.labels))
    for name in ("quantization_config", "_pre_quantization_dtype"):
        if hasattr(model.config, name):
            delattr(model.config, name)
    model.config.use_cache = True
    return model.float().requires_grad_(False).train(False)


def _unpack(model: nn.Module) -> None:
    """Replace quantised layers by ordinary ones of the values that they round to."""
    from peft.utils.integrations import dequantize_module_weight

    for path, module in list(model.named_modules()):
        weight = getattr(module, "weight", None)
        if getattr(weight, "quant_state", None) is None and type(weight).__name__ != "Int8Params":
            continue
        plain = nn.Linear(module.in_features, module.out_features, module.bias is not None, device="meta")
        plain.weight = nn.Parameter(dequantize_module_weight(module).data.float(), requires_grad=False)
        plain.bias = module.bias
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, plain)
    for name in ("is_loaded_in_4bit", "is_loaded_in_8bit", "is_quantized", "hf_quantizer"):
        if hasattr(model, name):
            delattr(model, name)


def _transpose(model: nn.Module, shapes: nn.Module) -> None:
    """Give layers back the kind that the architecture has."""
    from transformers.pytorch_utils import Conv1D

    for path, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and type(shapes.get_submodule(path)).__name__ == CONV:
            conv = Conv1D(module.out_features, module.in_features)
            conv.weight = nn.Parameter(module.weight.t().contiguous(), requires_grad=False)
            conv.bias = module.bias
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, conv)
