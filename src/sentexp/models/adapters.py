"""Adapters: what is trained, and the audit that proves it (law 6: the adapter is really there)."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from sentexp.config import IA3, READING_ROWS, BiasOnly, FullFineTuning, HeadOnly, Lora, PeftConfig, PeftMethod, Untuned
from sentexp.distributed.sharding import cut_like, gathered
from sentexp.errors import UserError, first_line, require
from sentexp.models.dequantize import is_of_hqq
from sentexp.models.encoders import encoder_of
from sentexp.models.lora import implied_parameters, lora_config, saved_paths
from sentexp.models.lora_start import remember_start
from sentexp.models.peft_methods import adapter_config, check_storage, train_biases
from sentexp.models.start_from_data import StartFromData
from sentexp.models.structure import base_of, find_head, head_of, head_paths
from sentexp.models.targets import has_name, is_inside, shape_of, target_names, targets_in_head
from sentexp.models.without_bitsandbytes import without_bitsandbytes
from sentexp.system.memory import is_out_of_memory

if TYPE_CHECKING:
    from transformers import PreTrainedModel

HARMLESS = (
    "`is_gradient_checkpointing` is deprecated",  # peft 0.21 asks transformers 5.23 by an old name
    "(Failed to load the CUDA extension|Setting boft_n_butterfly_factor)",  # of BOFT, which has the same in PyTorch
    "Detected that the base layer has no bias",  # of BEFT, which then cannot be merged: an export says so
    "Using Rank-Stabilized LoRA with rank_pattern",  # of a conversion by PEFT: `lora_start` has its own
    "Unsupported layer type .*Norm",  # of LN tuning, which counts on no norms but torch's
)
REFUSALS = (ArithmeticError, AssertionError, AttributeError, NotImplementedError, RuntimeError, TypeError, ValueError)
"""What PEFT and torch raise where keys fit neither each other nor the layers of a model, such as a rank of -1."""
KINDS = ("embeddings", "linear layers", "norms and biases", "adapter", "head")


@dataclass(kw_only=True, slots=True)
class ParameterAudit:
    """How many parameters train and how many are frozen, by kind; `targets` are the adapted modules."""

    trainable: dict[str, int]
    frozen: dict[str, int]
    targets: list[str]

    @property
    def trainable_total(self) -> int:
        """Parameters that the optimizer moves."""
        return sum(self.trainable.values())

    @property
    def total(self) -> int:
        """All parameters, those of quantised layers counted before packing."""
        return self.trainable_total + sum(self.frozen.values())


@without_bitsandbytes()
def attach(
    model: "PreTrainedModel", peft: PeftConfig, start: StartFromData | None = None
) -> tuple[nn.Module, ParameterAudit]:
    """Freeze the backbone, attach what is to be trained, and audit it.

    Args:
        model: a sequence classifier with a fresh head, or a language model.
        peft: one of the kinds of the `peft` group.
        start: what LoRA needs to begin as `peft.init` says; without it only the shapes are right.

    Returns:
        The model to train (a `PeftModel` where the kind has an adapter) and its audit.

    Raises:
        UserError: target modules that match nothing.
        RuntimeError: the trainable parameters are not those that the shapes imply.
    """
    own_head = find_head(model)
    head = 0 if own_head is None else sum(parameter.numel() for parameter in own_head.parameters())
    model.requires_grad_(False)
    own = {id(parameter) for parameter in model.parameters()}
    trained: nn.Module = model
    targets: list[str] = []
    match peft:
        case Untuned():
            expected = 0
        case HeadOnly():
            (own_head or head_of(model)).requires_grad_(True)
            expected = head
        case FullFineTuning():
            model.requires_grad_(True)
            expected = sum(parameter.numel() for parameter in model.parameters())
        case BiasOnly():
            expected = head + train_biases(model)
        case PeftMethod():
            trained, targets = _wrap(model, adapter_config(model, peft))
            expected = trained.get_nb_trainable_parameters()[0]  # type: ignore[operator]
            require(expected > head, f"peft.type={peft.type} found nothing to train in this model.")
        case Lora():
            trained, targets, adapter = _attach_lora(model, peft, start)
            expected = head + adapter
        case IA3():
            trained, targets, adapter = _attach_ia3(model, peft)
            expected = head + adapter
        case _:
            raise TypeError(f"unknown kind of peft: {type(peft).__name__}")
    audit = _audit(trained, targets, own)
    if audit.trainable_total != expected:
        raise RuntimeError(
            f"{audit.trainable_total:,} parameters would be trained, but the shapes of the {len(targets)} target "
            f"modules imply {expected:,}: the adapter is not what was asked for."
        )
    return trained, audit


def trainable_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the parameters that train, by name, as contiguous tensors on the CPU: what a checkpoint holds."""
    return {
        name: gathered(parameter.detach()).cpu().contiguous()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def load_trainable_state(model: nn.Module, state: dict[str, torch.Tensor]) -> None:
    """Put a trainable state back; the names must be exactly those that train."""
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if trained.keys() != state.keys():
        raise RuntimeError(f"the checkpoint trains other parameters: {sorted(trained.keys() ^ state.keys())[:5]}")
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(cut_like(state[name], parameter))


def _attach_lora(model: "PreTrainedModel", peft: Lora, start: StartFromData | None) -> tuple[nn.Module, list[str], int]:
    """Return the wrapped model, its targets, and the parameters that their shapes imply, the head apart."""
    shapes = {path: shape_of(module) for path, module in model.named_modules()}
    saved = saved_paths(model, peft)
    beside = sum(value.numel() for path in saved for value in model.get_submodule(path).parameters())
    unbiased = [*head_paths(model), *saved]
    biases = {
        path: parameter.numel()
        for path, parameter in model.named_parameters()
        if "bias" in path and not is_inside(path, unbiased)
    }
    plain = replace(peft, init="default") if start is None and peft.init in READING_ROWS else peft
    with without_harmless_warnings():
        config = lora_config(model, plain, task_type=_task_type(model))
    if start is not None:
        start.look(model, config)
    trained, targets = _wrap(model, config)
    for path in saved:
        base_of(trained).get_submodule(path).modules_to_save["default"].float()
    if start is not None:
        start.begin(trained)
    if plain.changes_base:
        remember_start(trained)
    return trained, targets, beside + implied_parameters(peft, targets, shapes, biases)


def _attach_ia3(model: "PreTrainedModel", peft: IA3) -> tuple[nn.Module, list[str], int]:
    check_storage("IA3", peft.quantization)
    shapes = {path: shape_of(module) for path, module in model.named_modules()}
    trained, targets = _wrap(model, _ia3_config(model, peft))
    pairs = {path: shape for path in targets if (shape := shapes[path])}
    forward = set(trained.peft_config["default"].feedforward_modules)  # type: ignore[index, union-attr]
    scales_input = {path: any(has_name(path, name) for name in forward) for path in pairs}
    return trained, targets, sum(size[0] if scales_input[path] else size[1] for path, size in pairs.items())


def _ia3_config(model: "PreTrainedModel", peft: IA3) -> Any:
    import peft as library

    shared: dict[str, Any] = {"modules_to_save": list(head_paths(model)) or None}
    encoder = encoder_of(model.config)
    if peft.target_modules is None and encoder is not None and encoder.ia3 is not None:
        shared |= {"target_modules": list(encoder.ia3[0]), "feedforward_modules": list(encoder.ia3[1])}
    if peft.target_modules is not None:
        feedforward = target_names(model, "peft.feedforward_modules", peft.feedforward_modules)
        shared |= {"target_modules": target_names(model, "peft.target_modules", peft.target_modules)}
        shared |= {
            "feedforward_modules": feedforward,
            "exclude_modules": targets_in_head(model, shared["target_modules"]),
        }
    conv1d = any(type(module).__name__ == "Conv1D" for module in model.modules())
    return library.IA3Config(task_type=_task_type(model), fan_in_fan_out=conv1d, **shared)


def _task_type(model: "PreTrainedModel") -> Any:
    from peft import TaskType

    return TaskType.CAUSAL_LM if find_head(model) is None else TaskType.SEQ_CLS


@contextmanager
def without_harmless_warnings() -> Iterator[None]:
    """Do not show what PEFT warns of where nobody needs to act."""
    with warnings.catch_warnings():
        for message in HARMLESS:
            warnings.filterwarnings("ignore", message=message)
        yield


def _wrap(model: "PreTrainedModel", config: Any) -> tuple[nn.Module, list[str]]:
    from peft import get_peft_model
    from peft.utils.error import NoMatchingPeftModuleError

    last = model.config.get_text_config().num_hidden_layers - 1
    for layer in getattr(config, "layers_to_transform", None) or []:
        require(layer <= last, f"peft.layers_to_transform holds {layer}, but the layers are numbered 0 to {last}.")
    try:
        with without_harmless_warnings():
            wrapped = get_peft_model(model, config)
    except (NoMatchingPeftModuleError, *REFUSALS) as error:
        if is_out_of_memory(error):
            raise
        kind = config.peft_type.value
        key = "peft.target_modules do" if kind in ("LORA", "IA3") else f"peft.type={kind} with these keys does"
        raise UserError(f"{key} not fit this model: {first_line(error)}") from error
    return wrapped, sorted(getattr(wrapped.base_model, "targeted_module_names", ()))


def _audit(model: nn.Module, targets: list[str], own: set[int]) -> ParameterAudit:
    """Count parameters by kind; what is not the model's own is an adapter's."""
    trainable, frozen, head = dict.fromkeys(KINDS, 0), dict.fromkeys(KINDS, 0), head_paths(model)
    tables = (module for module in model.modules() if isinstance(module, nn.Embedding))
    embeddings = {id(parameter) for table in tables for parameter in table.parameters(recurse=False)}
    modules: list[Any] = list(model.modules())
    of_hqq = {id(module.W_q): module.in_features * module.out_features for module in modules if is_of_hqq(module)}
    for path, parameter in model.named_parameters():
        if "original_module" in path:
            continue  # PEFT's copy of the head before training: not part of the model's answer
        counts = trainable if parameter.requires_grad else frozen
        in_head = is_inside(path.removeprefix("base_model.model.").removeprefix("base_model."), head)
        is_new = id(parameter) not in own and "modules_to_save" not in path
        kind = "adapter" if is_new else _kind(path, parameter, embeddings)
        counts["head" if in_head else kind] += of_hqq.get(id(parameter), _numel(parameter))
    return ParameterAudit(trainable=trainable, frozen=frozen, targets=targets)


def _kind(path: str, parameter: nn.Parameter, embeddings: set[int]) -> str:
    if id(parameter) in embeddings or any(part in ("lm_head", "embed_out") for part in path.split(".")):
        return "embeddings"
    return "linear layers" if parameter.ndim > 1 else "norms and biases"


def _numel(parameter: nn.Parameter) -> int:
    """Return the number of weights, of a packed 4-bit parameter as before packing."""
    state = getattr(parameter, "quant_state", None)
    return parameter.numel() if state is None else int(torch.Size(state.shape).numel())
