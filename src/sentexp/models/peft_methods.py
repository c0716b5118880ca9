"""Methods of PEFT by its own configuration classes (`peft=vera`, `peft=other`): which keys and models each can take."""

import dataclasses
import difflib
import math
from collections.abc import Sequence
from enum import Enum
from typing import TYPE_CHECKING, Any

from sentexp.config import VIRTUAL, OtherMethod, PeftMethod, Quantization
from sentexp.config.peft_methods import OPTIONS
from sentexp.errors import UserError, first_line, require
from sentexp.models.encoders import encoder_of
from sentexp.models.structure import find_head, head_paths
from sentexp.models.targets import has_name, is_inside, shape_of, target_names

if TYPE_CHECKING:
    import peft as library
    from transformers import PreTrainedModel

OURS = (
    "peft_type",
    "task_type",
    "inference_mode",
    "fan_in_fan_out",
    "modules_to_save",
    "target_modules",
    "total_step",
    "tokenizer_name_or_path",
    "auto_mapping",
    "base_model_name_or_path",
    "peft_version",
    "revision",
)
"""Keys of PEFT that are set here, or by keys of their own."""

OVER_PACKED_WEIGHTS = (
    "ADALORA", "BEFT", "BOFT", "C3A", "FOURIERFT", "GRALORA", "IA3", "LILY", "LN_TUNING", "LORA", "MISS", "OFT",
    "PVERA", "RANDLORA", "ROAD", "UNILORA", "VBLORA", "VERA", "WAVEFT", *VIRTUAL,
)  # fmt: skip
"""Methods whose numbers over weights in 4 bits are those over the same weights unpacked, as the tests compare."""

OVER_TORCHAO = (*OVER_PACKED_WEIGHTS, "LOHA", "LOKR", "SHIRA")
"""The same over torchao's weights of 8 bits."""

OVER_HQQ = ("BOFT", "LN_TUNING", "LORA", "MISS", "OFT", "VERA", *VIRTUAL)
"""The same over HQQ's weights, whose layers are not torch's."""

NOT_MERGEABLE = ("BEFT", "LILY", *VIRTUAL)
"""Methods that cannot be merged into the backbone, BEFT at least where its layers have no biases."""

NOT_OVER_ENCODERS = ("PREFIX_TUNING",)
"""Methods that need layers of decoders."""

UNSUPPORTED = {
    "ADAPTION_PROMPT": "it replaces the attention of a few architectures",
    "CARTRIDGE": "it holds a text instead of learning a task",
    "CPT": "its prompt is made of examples that PEFT encodes",
    "MULTITASK_PROMPT_TUNING": "it needs the number of a task with each row",
    "POLY": "it needs the number of a task with each row",
    "SHADOW": "it runs a second model beside the backbone",
    "TRAINABLE_TOKENS": "it trains embeddings of new tokens",
    "XLORA": "it mixes adapters that are trained already",
}
"""Types of PEFT that are no adapters of a single classification task, and why."""

UNTIL_TRAINING = 1 << 30
"""The number of optimizer steps that AdaLoRA has until it is known: see `sentexp.training.adalora`."""

LARGEST = {"C3A": ("block_size", 256), "VBLORA": ("vector_length", 256)}
"""Keys whose `auto` is the largest number, up to a limit, that divides the sizes of all targets."""


def config_class(peft: PeftMethod) -> "type[library.PeftConfig]":
    """Return PEFT's configuration class of a method.

    Raises:
        UserError: PEFT has no such method, or it is none that this task can use.
    """
    from peft import __version__
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    names = {kind.value: known for kind, known in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    usable = sorted(set(names) - set(UNSUPPORTED))
    require(
        peft.type not in UNSUPPORTED,
        f"peft.type={peft.type} cannot be used: {UNSUPPORTED.get(peft.type)}. Use one of {', '.join(usable)}.",
    )
    require(
        not isinstance(peft, OtherMethod) or peft.type not in OPTIONS,
        f"peft.type={peft.type} has an option of its own: use peft={OPTIONS.get(peft.type)}, whose keys are known.",
    )
    near = difflib.get_close_matches(peft.type.upper(), usable, 1)
    proposal = f" Did you mean {near[0]}?" if near else f" It has {', '.join(usable)}."
    require(peft.type in names, f"peft.type={peft.type} is not a method of peft {__version__}.{proposal}")
    kind: type[library.PeftConfig] = names[peft.type]
    return kind


def adapter_config(model: "PreTrainedModel", peft: PeftMethod) -> "library.PeftConfig":
    """Return PEFT's configuration of a method for a model.

    Raises:
        UserError: targets that are not there, an unknown key, or a value that PEFT refuses.
    """
    from peft import TaskType

    heads = list(head_paths(model))
    shared: dict[str, Any] = {"task_type": TaskType.SEQ_CLS if heads else TaskType.CAUSAL_LM}
    shared |= {"modules_to_save": heads or None}  # PEFT adapts none of these
    targets = getattr(peft, "target_modules", None)
    if targets is None and peft.type == "LN_TUNING":
        norms = [path for path, module in model.named_modules() if type(module).__name__.endswith("Norm")]
        targets = [path for path in norms if not is_inside(path, heads)]
    elif targets is not None and peft.type != "LN_TUNING":
        targets = target_names(model, "peft.target_modules", targets)
    if targets is not None:
        shared["target_modules"] = targets
    if any(type(module).__name__ == "Conv1D" for module in model.modules()):
        shared["fan_in_fan_out"] = True
    if peft.type in VIRTUAL:
        shared |= _virtual_tokens(model, peft)
    shapes = {path: shape for path, module in model.named_modules() if (shape := shape_of(module))}
    adapted = [path for path in shapes if not is_inside(path, heads) and _is_target(path, targets)]
    return method_config(peft, [size for path in adapted for size in shapes[path]], **shared)


def _virtual_tokens(model: "PreTrainedModel", peft: PeftMethod) -> dict[str, Any]:
    """Return keys of PEFT about virtual tokens, some of which it knows of few architectures."""
    config = model.config.get_text_config()
    require(
        peft.own_keys()["num_virtual_tokens"] > 0,
        f"peft.num_virtual_tokens={peft.own_keys()['num_virtual_tokens']} must be at least 1.",
    )
    if peft.type == "PREFIX_TUNING":
        require(
            encoder_of(config) is None,
            "peft=prefix_tuning needs layers that take keys and values from before a text, and those of "
            f"{model.config.model_type} do not: use peft=prompt_tuning or p_tuning.",
        )
        return {}
    return {
        "tokenizer_name_or_path": model.name_or_path,
        "token_dim": model.get_input_embeddings().weight.shape[-1],
        "num_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
    }


def _is_target(path: str, targets: list[str] | None) -> bool:
    """Tell whether a layer is a target, as far as that is known: None is PEFT's choice, which may be any."""
    return targets is None or any(has_name(path, name) for name in targets)


def method_config(peft: PeftMethod, sizes: Sequence[int], **shared: Any) -> "library.PeftConfig":
    """Return PEFT's configuration of a method.

    Args:
        peft: the method and its keys.
        sizes: inputs and outputs of every target.
        shared: keys that sentexp sets; what the method does not have is left out.

    Raises:
        UserError: an unknown key, or a value that PEFT refuses.
    """
    kind = config_class(peft)
    known = {item.name for item in dataclasses.fields(kind)}
    keys = peft.own_keys()
    shared["total_step"] = UNTIL_TRAINING
    if keys.get("prompt_tuning_init") == "TEXT" and not shared.get("tokenizer_name_or_path"):
        keys["prompt_tuning_init"] = "RANDOM"  # of a model without files only the shapes are wanted
    _check_keys(peft, keys, sorted(known - set(OURS)))
    check_storage(peft.type, peft.quantization)
    name, most = LARGEST.get(peft.type, ("", 0))
    if keys.get(name) == "auto":
        keys[name] = largest_divisor(math.gcd(*sizes), most)
    try:
        for item in dataclasses.fields(kind):  # PEFT asks names of a closed set for their `.value`
            if isinstance(item.default, Enum) and item.name in keys:
                keys[item.name] = type(item.default)(keys[item.name])
        return kind(**keys, **{key: value for key, value in shared.items() if key in known})
    except (ValueError, TypeError) as error:
        raise UserError(f"PEFT refuses the keys of peft.type={peft.type}: {first_line(error)}") from None


def largest_divisor(number: int, most: int) -> int:
    """Return the largest divisor of a number that is not above a limit."""
    return next(divisor for divisor in range(min(number, most), 0, -1) if number % divisor == 0)


def _check_keys(peft: PeftMethod, keys: dict[str, Any], known: list[str]) -> None:
    for key in keys:
        ours = f"{peft.prefix}{key} is set by sentexp: leave it out." if key in OURS else ""
        near = difflib.get_close_matches(key, known, 2)
        hint = f"did you mean {' or '.join(near)}?" if near else f"its keys are {', '.join(known)}."
        require(
            key in known, ours or f"{peft.prefix}{key} is not a key of PEFT's {config_class(peft).__name__}: {hint}"
        )


def methods_over(quantization: Quantization) -> tuple[str, ...]:
    """Return the methods that train over weights in a storage, by PEFT's names."""
    if quantization is Quantization.int8:
        return ("IA3", "LORA")
    return {"torchao": OVER_TORCHAO, "hqq": OVER_HQQ}.get(quantization.package or "", OVER_PACKED_WEIGHTS)


def check_storage(method: str, quantization: Quantization) -> None:
    """Refuse a method over weights that it does not train over.

    Args:
        method: PEFT's name of it.
        quantization: how the weights are stored.

    Raises:
        UserError: it names what can.
    """
    others = [kind for kind in Quantization if kind is not Quantization.none and method in methods_over(kind)]
    require(
        quantization is Quantization.none or quantization in others,
        f"peft.quantization={quantization.name} does not go with {method}: use another peft.quantization "
        f"({', '.join(kind.name for kind in (Quantization.none, *others))}); over {quantization.name} train "
        f"{', '.join(methods_over(quantization))}.",
    )


def train_biases(model: "PreTrainedModel") -> int:
    """Let the biases of the backbone and the whole head train, and return how many numbers the biases are."""
    heads = head_paths(model)
    biases = [
        parameter
        for path, parameter in model.named_parameters()
        if path.endswith("bias") and not is_inside(path, heads)
    ]
    require(
        bool(biases),
        f"peft=bitfit trains biases, and {model.config.model_type} has none: use peft=ln_tuning or another model.",
    )
    for parameter in biases:
        parameter.requires_grad_(True)
    if (head := find_head(model)) is not None:
        head.requires_grad_(True)
    return sum(parameter.numel() for parameter in biases)
