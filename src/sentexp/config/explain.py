"""Why a command line does not compose, in one sentence: the key as typed, the value, the legal values."""

import difflib
import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from sentexp.config import conf_dir, register_schemas
from sentexp.errors import UserError, first_line

OTHER_NAMES = {
    "alpha": ("lora_alpha",),
    "dropout": ("lora_dropout",),
    "lr": ("learning_rate",),
    "schedule": ("lr_scheduler_type", "scheduler"),
    "quantization": ("load_in_4bit", "bits", "bnb_4bit_quant_type", "quantisation", "load_in_8bit"),
    "double_quant": ("bnb_4bit_use_double_quant", "use_double_quant"),
    "compute_dtype": ("bnb_4bit_compute_dtype",),
    "max_epochs": ("num_train_epochs", "epochs", "num_epochs"),
    "max_steps": ("steps",),
    "batch_size": ("per_device_train_batch_size", "train_batch_size"),
    "eval_batch_size": ("per_device_eval_batch_size",),
    "accumulate_grad_batches": ("gradient_accumulation_steps",),
    "gradient_clip_val": ("max_grad_norm",),
    "eval_steps": ("val_check_interval",),
    "precision": ("dtype", "bf16", "fp16", "torch_dtype"),
    "accelerator": ("device",),
    "max_length": ("max_seq_length", "max_len"),
    "path": ("name_or_path", "model_name_or_path", "data_path"),
    "name": ("optimizer", "optim"),
    "seed": ("random_seed",),
    "text": ("text_column", "text_col", "text_field"),
    "label": ("label_column", "label_col", "label_field", "target"),
    "labels": ("label_names", "label_map", "label_mapping", "classes", "class_names"),
    "slices": ("slice", "slice_column"),
    "group": ("groups", "group_column"),
    "delimiter": ("sep", "separator"),
    "class_weights": ("class_weight", "weights"),
    "focal_gamma": ("gamma", "focal"),
    "label_smoothing": ("label_smoothing_factor",),
    "neftune_alpha": ("neftune_noise_alpha", "neftune"),
    "layer_decay": ("llrd", "layerwise_lr_decay"),
    "average": ("ema", "swa"),
    "languages": ("language", "lang"),
    "domains": ("domain",),
    "deduplicate": ("dedup", "drop_duplicates"),
    "template": ("prompt", "prompt_template", "chat_template"),
    "system": ("system_prompt",),
    "shots": ("k", "few_shot", "num_fewshot", "n_shots"),
    "label_words": ("verbalizer", "verbalizers", "answers"),
    "length_normalization": ("length_normalisation", "normalize"),
}
"""Names by which people know a key from other tools."""


COMPOSITION_ERRORS = (HydraException, OmegaConfBaseException, ValueError, AttributeError, TypeError)
"""What hydra raises for a configuration that does not compose: not all of it is of its own kind."""

HINTS = {
    "to Integer": "it must be a whole number",
    "to Float": "it must be a number",
    "to Boolean": "it must be true or false",
    "is not a valid bool": "it must be true or false",
    "not Optional": "it cannot be null",
    "is not a ListConfig, list or tuple": "a list is written [a,b]",
    "expected one of [answer,": "task=causal_lm answers with words; use task=seq_cls for the losses of a head",
    "value 'int4": "torchao's 4-bit products have no gradient on any device; over hqq4, nf4 and fp4 methods train",
    "value 'fp8": "torchao's name of it is float8_weight_only",
    "DictConfig with ListConfig": "a list takes a list and a mapping takes a mapping here; data=csv takes either",
}


def explain(words: list[str], error: Exception, root: str = "config") -> str:
    """Return what is wrong with a command line that hydra refused.

    Args:
        words: the arguments of the process.
        error: what hydra raised.
        root: the file in `conf/` that holds the keys.
    """
    folders = [b for a, b in itertools.pairwise(words) if a in ("--config-dir", "-cd")]
    for folder in folders:
        if not Path(folder).is_dir():
            return f"--config-dir {folder} does not exist: name a folder that holds <group>/<option>.yaml files."
    places = ",".join(f"file://{Path(folder).absolute()}" for folder in folders)
    search = [f"hydra.searchpath=[{places}]"] if folders else []
    texts = [word for word in words if "=" in word and not word.startswith("-")]
    strays = [word for word in words if "=" not in word and not word.startswith(("-", "~")) and word not in folders]
    if strays and not {"--cfg", "-c", "--package", "-p"} & set(words):
        return f"{strays[0]} is not an override: write key=value, or group=option."
    GlobalHydra.instance().clear()
    register_schemas()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        accepted: list[str] = []
        parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
        for text in texts:
            try:
                (override,) = parser.parse_overrides([text])
            except HydraException as fault:
                return (
                    f"{text} is not an override that hydra can read ({first_line(fault)}): write key=value, "
                    "and quote a value with a space, a bracket, ~ or a letter beyond ASCII twice, as in "
                    "\"data.path='~/my films.csv'\"."
                )
            if (sentence := explain_empty(override)) is not None:
                return sentence
            for single in _singles(override, text):
                try:
                    compose(root, [*search, *accepted, single])
                except COMPOSITION_ERRORS as fault:
                    return _sentence(override, single, [*search, *accepted], fault, root)
            accepted.append(next(iter(_singles(override, text))))
    return _first_line(error)


def explain_misfit(error: Exception) -> str:
    """Return what is wrong with a composed configuration that makes no typed one."""
    if isinstance(error, MissingMandatoryValue):
        return f"{error.full_key} has no value: give it one; python -m sentexp --cfg job lists every key."
    return (
        f"The configuration does not fit together ({first_line(error)}): python -m sentexp --cfg job lists every key."
    )


def explain_empty(override: Override) -> str | None:
    """Return what is wrong with a sweep without values; None for other overrides."""
    if not override.is_discrete_sweep() or next(override.sweep_string_iterator(), None) is not None:
        return None
    key = override.key_or_group
    found = " (glob finds options of a group, as in peft=glob(*))" if "glob(" in str(override.input_line) else ""
    return (
        f"{override.input_line} has no values, so there is no run{found}: write the values out, as in "
        f"{key}=<one>,<another>."
    )


def require_values(override: Override) -> None:
    """Refuse a sweep without values."""
    sentence = explain_empty(override)
    if sentence is not None:
        raise UserError(sentence)


def _singles(override: Override, text: str) -> Iterator[str]:
    """Yield the overrides that a sweep contains."""
    if not override.is_sweep_override():
        yield text
        return
    if override.is_interval_sweep():
        ends = override.value()
        assert isinstance(ends, IntervalSweep)
        yield from (f"{override.get_key_element()}={end}" for end in (ends.start, ends.end))
        return
    for value in override.sweep_string_iterator():
        yield f"{override.get_key_element()}={value}"


def _sentence(override: Override, text: str, accepted: list[str], fault: Exception, root: str) -> str:
    key, value = override.key_or_group, text.partition("=")[2]
    if isinstance(fault, MissingConfigException) and fault.options:
        options = list(fault.options)
        own = " data=file data.path=<file> reads a table of any format." if key == "data" else ""
        near = _near(value, options)
        return f"{key}={value} is not an option of {key}: it must be one of {', '.join(options)}.{near}{own}"
    node: DictConfig | None = compose(root, accepted, return_hydra_config=key.startswith("hydra."))
    walked: list[str] = []
    for part in key.split("."):
        if not isinstance(node, DictConfig) or part not in node:
            legal = [str(name) for name in node] if isinstance(node, DictConfig) else []
            where = ".".join(walked) or "the configuration"
            if not legal:
                return f"{key}: {where} has no key {part!r}: it takes a value of its own, as {where}=..."
            return f"{key}: {where} has no key {part!r}: its keys are {', '.join(legal)}.{_near(part, legal)}"
        walked.append(part)
        node = None if OmegaConf.is_missing(node, part) else node[part]
    reason = _first_line(fault)
    hint = next((f": {hint}" for sign, hint in HINTS.items() if sign in reason), "")
    if override.is_interval_sweep() and "to Integer" in reason:
        hint = f"{hint}, and those between two are {key}=int(interval(4,8)), for instance"
    return f"{key}={value}: {reason}{hint}."


def _near(word: str, legal: Iterable[str]) -> str:
    """Return a question that names the legal word which was probably meant."""
    legal = list(legal)
    meant = [name for name in legal if word in OTHER_NAMES.get(name, ())]
    meant = meant or difflib.get_close_matches(word, legal, n=1, cutoff=0.6)
    return f" Did you mean {meant[0]}?" if meant else ""


def _first_line(error: BaseException) -> str:
    """Return the innermost reason: OmegaConf's, where hydra wraps it; with it the fault in a file of options."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines() or [type(error).__name__]
    if lines[0].startswith("Ambiguous value"):
        return f"{lines[0]}: write key=[a,b] for a list, or add --multirun for one run with each value."
    if "raised while composing config" in lines[0] and len(lines) > 1:
        start = "; a file of your own begins with `defaults: [<an option to start from>, _self_]`, such as csv for data"
        return f"{lines[0].partition(': ')[0]}: {lines[1].rstrip('.')}{start}"
    return lines[0].rstrip(".")
