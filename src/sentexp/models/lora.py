"""PEFT's configuration of LoRA for a model: its targets and ranks, what trains beside it, and how much that is."""

import re
from typing import TYPE_CHECKING, Any

from sentexp.config import Bias, Lora
from sentexp.errors import require
from sentexp.models.dequantize import is_packed
from sentexp.models.structure import head_paths
from sentexp.models.targets import excluded_names, has_name, is_inside, shape_of, target_names, targets_in_head

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def lora_config(model: "PreTrainedModel", peft: Lora, **shared: Any) -> Any:
    """Return PEFT's configuration of LoRA for a model.

    Args:
        model: without an adapter.
        peft: its configuration.
        shared: keys that every method has.

    Raises:
        UserError: names that match nothing, or a start that does not fit the layers.
    """
    import peft as library

    conv1d = any(type(module).__name__ == "Conv1D" for module in model.modules())
    require(
        not (conv1d and peft.init == "olora"),
        f"peft.init=olora does not fit the layers of {model.config.model_type}: use pissa, or another peft.init.",
    )
    targets = target_names(model, "peft.target_modules", peft.target_modules)
    excluded = [*(targets_in_head(model, targets) or []), *excluded_names(model, peft.exclude_modules, targets)]
    shapes = {path: shape for path, module in model.named_modules() if (shape := shape_of(module))}
    paths = [path for path in shapes if any(has_name(path, name) for name in targets)]
    adapted = [path for path in paths if not any(has_name(path, name) for name in excluded)]
    _check_patterns(peft, paths)
    _check_ranks(peft, {path: shapes[path] for path in adapted})
    return library.LoraConfig(
        r=peft.r,
        lora_alpha=peft.alpha,
        rank_pattern=dict(peft.rank_pattern or {}),
        alpha_pattern=dict(peft.alpha_pattern or {}),
        lora_dropout=peft.dropout,
        bias=peft.bias.name,
        target_modules=targets,
        exclude_modules=excluded or None,
        layers_to_transform=peft.layers_to_transform,
        modules_to_save=[*head_paths(model), *saved_paths(model, peft)] or None,
        use_rslora=peft.use_rslora,
        use_dora=peft.use_dora,
        **_start(peft),
        fan_in_fan_out=conv1d,
        **shared,
    )


def _start(peft: Lora) -> dict[str, Any]:
    """Return how PEFT is to begin; of what `start_from_data` does itself it knows nothing."""
    from peft import LoraGAConfig
    from peft.tuners.lora.config import CordaConfig

    match peft.init:
        case "default" | "eva" | "loftq":
            return {"init_lora_weights": True}
        case "corda":
            return {"init_lora_weights": "corda", "corda_config": CordaConfig(corda_method="ipm")}
        case "lora_ga":
            return {"init_lora_weights": "lora_ga", "lora_ga_config": LoraGAConfig()}
    return {"init_lora_weights": peft.init}


def saved_paths(model: "PreTrainedModel", peft: Lora) -> list[str]:
    """Return the paths of the modules that `modules_to_save` names: PEFT takes any ending for a name.

    Raises:
        UserError: a name that matches nothing, or modules that cannot train.
    """
    modules = {
        path: module for path, module in model.named_modules() if path and not is_inside(path, head_paths(model))
    }
    found: list[str] = []
    for name in peft.modules_to_save or []:
        paths = [path for path in modules if has_name(path, name)]
        require(bool(paths), f"peft.modules_to_save: {name!r} matches no module outside the head.")
        found += paths
    outermost = [path for path in found if not is_inside(path.rpartition(".")[0], found)]
    for path in outermost:
        packed = any(is_packed(module) for module in modules[path].modules())
        require(not packed, f"peft.modules_to_save: {path} is quantised and cannot train; use peft.quantization=none.")
    tied = (model.get_input_embeddings(), model.get_output_embeddings())
    require(
        tied[1] is None
        or not getattr(model.config.get_text_config(), "tie_word_embeddings", False)
        or not any(module in tied for path in outermost for module in modules[path].modules()),
        f"peft.modules_to_save: the input and output embeddings of {model.config.model_type} are the same weights, and "
        "PEFT would train one of them apart: leave them out.",
    )
    return list(dict.fromkeys(outermost))


def implied_parameters(
    peft: Lora, targets: list[str], shapes: dict[str, tuple[int, int] | None], biases: dict[str, int]
) -> int:
    """Return the number of parameters that the shapes of the target modules imply.

    Args:
        peft: the configuration.
        targets: paths of the modules with an adapter.
        shapes: inputs and outputs of linear layers, by path.
        biases: sizes of the bias vectors, by path.
    """
    pairs = {path: shape for path in targets if (shape := shapes[path])}
    implied = sum(rank_of(peft, path) * (inputs + outputs) for path, (inputs, outputs) in pairs.items())
    if peft.use_dora:
        implied += sum(outputs for _, outputs in pairs.values())
    if peft.bias is Bias.all:
        implied += sum(biases.values())
    if peft.bias is Bias.lora_only:
        implied += sum(biases.get(f"{path}.bias", 0) for path in targets)
    return implied


def rank_of(peft: Lora, path: str) -> int:
    """Return the rank of the adapter of a module: the first key of `rank_pattern` counts that its path ends in."""
    ranks: dict[str, int] = peft.rank_pattern or {}
    return next((rank for key, rank in ranks.items() if _matches(key, path)), peft.r)


def _matches(key: str, path: str) -> bool:
    return re.match(rf"(.*\.)?({key})$", path) is not None


def _check_patterns(peft: Lora, paths: list[str]) -> None:
    for kind, pattern in (("rank", peft.rank_pattern), ("alpha", peft.alpha_pattern)):
        for key in pattern or {}:
            is_there = any(_matches(str(key), path) for path in paths)
            require(is_there, f"peft.{kind}_pattern: {key!r} matches no target module, such as {', '.join(paths[:2])}.")


def _check_ranks(peft: Lora, shapes: dict[str, tuple[int, int]]) -> None:
    """Refuse ranks for which a weight has too few singular vectors to begin with."""
    if peft.init in ("default", "gaussian", "orthogonal"):
        return
    for path, shape in shapes.items():
        most = shape[0] if peft.init == "eva" else min(shape) // (2 if peft.init == "lora_ga" else 1)
        rank = rank_of(peft, path)
        require(
            rank <= most,
            f"peft.init={peft.init} can give {path} a rank of at most {most}, not {rank}: lower peft.r, or give it "
            "another rank with peft.rank_pattern.",
        )
