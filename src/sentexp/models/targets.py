"""Which layers of a model an adapter adapts: by their names, and never those of the head."""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import nn

from sentexp.errors import require
from sentexp.models.dequantize import is_of_hqq
from sentexp.models.structure import head_paths

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def target_names(model: "PreTrainedModel", key: str, targets: str | list[str]) -> list[str]:
    """Return targets as names or paths for PEFT, once each is known to match a linear layer of the backbone."""
    output = model.get_output_embeddings()
    linear = [
        path
        for path, module in model.named_modules()
        if shape_of(module) and not is_inside(path, head_paths(model)) and module is not output
    ]
    leaves = sorted({path.split(".")[-1] for path in linear})
    if targets == "all-linear":
        return leaves
    listed = f"the linear layers of this model are {', '.join(leaves)}"
    if isinstance(targets, str):
        matching = [path for path in linear if re.fullmatch(targets, path)]
        require(bool(matching), f"{key}={targets} matches no module: {listed}.")
        return matching
    for name in targets:
        is_there = any(has_name(path, name) for path in linear)
        require(is_there, f"{key}: {name!r} matches no module: {listed}.")
    return targets


def excluded_names(model: "PreTrainedModel", excluded: str | list[str] | None, targets: list[str]) -> list[str]:
    """Return `peft.exclude_modules` as names or paths for PEFT, once each is known to match a target.

    Args:
        model: without an adapter.
        excluded: names, or a regular expression over paths.
        targets: names or paths of the target modules.
    """
    paths = [
        path for path, module in model.named_modules() if shape_of(module) and any(has_name(path, t) for t in targets)
    ]
    paths = [path for path in paths if not is_inside(path, head_paths(model))]
    names = excluded if isinstance(excluded, list) else []
    if isinstance(excluded, str):
        names = [path for path in paths if re.fullmatch(excluded, path)]
        require(bool(names), f"peft.exclude_modules={excluded} matches no target module.")
    for name in names:
        is_there = any(has_name(path, name) for path in paths)
        require(is_there, f"peft.exclude_modules: {name!r} matches no target module.")
    require(
        any(not any(has_name(path, name) for name in names) for path in paths),
        f"peft.exclude_modules={excluded} leaves no target module.",
    )
    return names


def targets_in_head(model: "PreTrainedModel", targets: list[str]) -> list[str] | None:
    """Return the layers of the head that have the names of targets: they train in full, and get no adapter."""
    layers = [path for path, module in model.named_modules() if shape_of(module) and is_inside(path, head_paths(model))]
    return [path for path in layers if any(has_name(path, name) for name in targets)] or None


def shape_of(module: nn.Module) -> tuple[int, int] | None:
    """Return (inputs, outputs) of a linear layer of torch, bitsandbytes, HQQ or GPT-2, and None for anything else."""
    if isinstance(module, nn.Linear) or is_of_hqq(module):
        return module.in_features, module.out_features  # type: ignore[return-value]
    if type(module).__name__ == "Conv1D":
        return module.nx, module.nf  # type: ignore[return-value]
    return None


def has_name(path: str, name: str) -> bool:
    """Tell whether PEFT means a module by a name: its path, or the end of it."""
    return path == name or path.endswith(f".{name}")


def is_inside(path: str, modules: Sequence[str]) -> bool:
    """Tell whether something is a module or a part of one, by its path in transformers' model."""
    return any(path == module or path.startswith(f"{module}.") for module in modules)
