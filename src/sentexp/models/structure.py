"""The parts of a transformers model, wrapped by PEFT or not: its base, its head, the layers that can be sharded."""

from typing import Any

import torch

from sentexp.errors import UserError

HEAD_NAMES = ("score", "classifier")


def find_head(model: torch.nn.Module) -> torch.nn.Linear | None:
    """Return the classification head of a transformers model, wrapped by PEFT or not; a language model has none."""
    for path, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and path.split(".")[-1] in HEAD_NAMES:
            return module
        if path.split(".")[-1] in HEAD_NAMES and hasattr(module, "modules_to_save"):
            return module.modules_to_save["default"]  # type: ignore[no-any-return]
    return None


def head_of(model: torch.nn.Module) -> torch.nn.Linear:
    """Return the classification head of a transformers sequence classifier, wrapped by PEFT or not.

    Raises:
        UserError: the model has none.
    """
    head = find_head(model)
    if head is not None:
        return head
    raise UserError(
        f"{type(model).__name__} has no linear head named {' or '.join(HEAD_NAMES)} over the last token: task=seq_cls "
        "needs a decoder such as Llama or GPT-2."
    )


def base_of(model: torch.nn.Module) -> Any:
    """Return the transformers model, with its adapter inside where PEFT has put one."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]


def shardable_parts(model: torch.nn.Module) -> list[torch.nn.Module]:
    """Return the layers of a model's backbone, the backbone, and the head if there is one."""
    base = base_of(model)
    head = find_head(model)
    backbone = base if head is None else base.base_model
    layers = [module for module in backbone.modules() if type(module).__name__ in (base._no_split_modules or ())]
    return [*layers, backbone, *([] if head is None else [head])]
