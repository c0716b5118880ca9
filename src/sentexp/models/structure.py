"""The parts of a transformers model, wrapped by PEFT or not: its base, its head, the layers that can be sharded."""

from typing import Any

import torch

from sentexp.errors import UserError
from sentexp.models.encoders import encoder_of

HEAD = "score"
"""transformers' name for the linear head of a decoder."""


def head_paths(model: torch.nn.Module) -> tuple[str, ...]:
    """Return the paths of the modules of a classification head in transformers' model; a language model has none."""
    base = base_of(model)
    encoder = encoder_of(base.config)
    if encoder is not None:
        return encoder.head
    return (HEAD,) if hasattr(base, HEAD) else ()


def output_path(config: Any) -> str:
    """Return the path of the layer of a head that has a row for each label, by transformers' configuration."""
    encoder = encoder_of(config)
    return HEAD if encoder is None else encoder.output


def head_modules(model: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """Return the modules of the classification head by their paths: those that train, where PEFT keeps copies."""
    modules = {path: base_of(model).get_submodule(path) for path in head_paths(model)}
    return {
        path: getattr(module, "modules_to_save", {"default": module})["default"] for path, module in modules.items()
    }


def find_head(model: torch.nn.Module) -> torch.nn.Module | None:
    """Return the modules of the classification head, as one; a language model has none."""
    modules = head_modules(model)
    return torch.nn.ModuleList(modules.values()) if modules else None


def head_of(model: torch.nn.Module) -> torch.nn.Linear:
    """Return the linear head of a decoder that classifies.

    Raises:
        UserError: the model has none.
    """
    head = head_modules(model).get(HEAD)
    if isinstance(head, torch.nn.Linear):
        return head
    raise UserError(
        f"{type(base_of(model)).__name__} has no linear head named {HEAD} over the last token: task=seq_cls needs "
        "a decoder such as Llama or GPT-2, or an encoder such as BERT."
    )


def has_dropout(model: torch.nn.Module) -> bool:
    """Tell whether two passes of a model in training differ."""
    return any(isinstance(module, torch.nn.Dropout) and module.p > 0 for module in model.modules())


def base_of(model: torch.nn.Module) -> Any:
    """Return the transformers model, with its adapter inside where PEFT has put one."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]


def final_logits(model: torch.nn.Module, products: torch.Tensor) -> torch.Tensor:
    """Return the logits of a language model, given the products with its output matrix.

    Granite and Cohere scale them, Gemma 2 caps them.

    Args:
        model: wrapped by PEFT or not.
        products: any shape.
    """
    config = base_of(model).config.get_text_config()
    cap = getattr(config, "final_logit_softcapping", None)
    scale = (getattr(config, "logit_scale", None) or 1.0) / (getattr(config, "logits_scaling", None) or 1.0)
    scaled = products if scale == 1 else products * scale
    return scaled if cap is None else cap * torch.tanh(scaled / cap)


def shardable_parts(model: torch.nn.Module) -> list[torch.nn.Module]:
    """Return the layers of a model's backbone, the backbone, and the head; parts come before what holds them."""
    base, head = base_of(model), head_modules(model)
    if not head:
        backbone, inside = base, []
    else:
        backbone = base.base_model
        held = {id(module) for module in backbone.modules()}
        inside = [module for module in head.values() if id(module) in held]
    layers = [module for module in backbone.modules() if type(module).__name__ in (base._no_split_modules or ())]
    return [*layers, *inside, backbone, *(module for module in head.values() if module not in inside)]
