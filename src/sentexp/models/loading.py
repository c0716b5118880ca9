"""Loading models and tokenizers from the folder of a backbone: arithmetic, storage, and weights that runs share."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError

from sentexp.config import (
    Attention,
    Bias,
    BiasOnly,
    FullFineTuning,
    Lora,
    OtherMethod,
    PeftConfig,
    Precision,
    Quantization,
    TargetKind,
    kind_of,
)
from sentexp.errors import UserError, first_line, require
from sentexp.models.architecture import is_classifier, read_config
from sentexp.models.dequantize import is_of_hqq, unpack
from sentexp.models.encoders import encoder_of
from sentexp.models.head_start import begin_at_rows, begin_new_head, draw_head
from sentexp.models.pretrained import Backbone
from sentexp.models.quantized import pack, quantization_config, require_installed
from sentexp.models.structure import HEAD, find_head, head_modules, head_of, head_paths
from sentexp.system.console import silence_libraries

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DTYPES = {Precision.fp32: torch.float32, Precision.bf16: torch.bfloat16, Precision.fp16: torch.float16}

PROBLEM_TYPES = {
    TargetKind.classes: "single_label_classification",
    TargetKind.scores: "regression",
    TargetKind.label_sets: "multi_label_classification",
}
"""transformers' names of what a classifier is for: its pipeline takes the softmax of logits, or a sigmoid, by these."""


@dataclass(kw_only=True, slots=True)
class Loading:
    """How weights are loaded.

    `storage` says how frozen linear layers are quantised. Frozen weights are stored in `precision`, the arithmetic;
    those that train (`trains_backbone`) in float32. Quantised ones are placed on `device`, and with `keeps_dequantized`
    unpacked there once and for all: the same values take up to four times the memory, and none of the time.
    """

    storage: PeftConfig
    attention: Attention
    precision: Precision
    device: torch.device
    trains_backbone: bool = False
    keeps_dequantized: bool = False


def load_tokenizer(backbone: Backbone) -> "PreTrainedTokenizerBase":
    """Return the tokenizer, with a pad token (law 4): its own, else its end-of-text, else its first token.

    Pooling is by position, so the choice cannot change a result.
    """
    from transformers import AutoConfig, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(backbone.folder, local_files_only=True)
    except Exception as error:  # the tokenizers library raises nothing narrower
        raise UserError(
            f"model.path={backbone.folder} holds no tokenizer that transformers can read "
            f"({first_line(error)}): add tokenizer.json or tokenizer.model with tokenizer_config.json."
        ) from None
    tokenizer.padding_side = "right"
    if tokenizer.pad_token_id is None:
        end = AutoConfig.from_pretrained(backbone.folder, local_files_only=True).eos_token_id
        end = end[0] if isinstance(end, list) else end
        end_of_text = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else end
        is_in_vocabulary = end_of_text is not None and end_of_text < len(tokenizer)
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(end_of_text if is_in_vocabulary else 0)
    return tokenizer


def load_classifier(
    backbone: Backbone,
    tokenizer: "PreTrainedTokenizerBase",
    labels: list[str],
    load: Loading,
    rows: Sequence[int] | None = None,
    kind: TargetKind | None = None,
) -> "PreTrainedModel":
    """Return transformers' sequence classifier over the backbone, its head float32 and never quantised.

    A new head has what the files hold of it, a pretrained pooler for instance, but never its output layer; where they
    hold a whole classifier, nothing.

    Args:
        backbone: where the weights are.
        tokenizer: gives the pad id.
        labels: class names, in the order of the logits.
        load: how.
        rows: of the output layer that the files hold, one for each label; None is a new head.
        kind: what is predicted; None is classes, or a score where there is one label.

    Raises:
        UserError: weights that do not fit the architecture, or an architecture without a sequence classifier.
    """
    from transformers import AutoModelForSequenceClassification

    named = dict(enumerate(labels))
    options: dict[str, Any] = {
        "num_labels": len(labels),
        "id2label": named,
        "label2id": {name: index for index, name in named.items()},
    }
    # of a checkpoint that classifies otherwise as well
    options["problem_type"] = PROBLEM_TYPES[kind or kind_of(labels)]
    config = read_config(backbone)
    with torch.random.fork_rng(devices=[], enabled=encoder_of(config) is not None):  # its head is drawn below
        model, report = _load(
            AutoModelForSequenceClassification,
            backbone,
            tokenizer,
            load,
            ignore_mismatched_sizes=rows is None,
            **options,
        )
    head = head_modules(model) or {HEAD: head_of(model)}
    _require_whole(backbone, report, () if rows is not None else tuple(head))
    for module in head.values():
        module.float()
    if rows is None:
        begin_new_head(model, report["missing_keys"], is_classifier(config, backbone.folder))
    else:
        begin_at_rows(model, rows)
    return model


def load_language_model(backbone: Backbone, tokenizer: "PreTrainedTokenizerBase", load: Loading) -> "PreTrainedModel":
    """Return transformers' causal language model over the backbone; its output matrix is never quantised.

    Args:
        backbone: where the weights are.
        tokenizer: gives the pad id.
        load: how.

    Raises:
        UserError: weights that do not fit the architecture, or an architecture that is not a causal language model.
    """
    from transformers import AutoModelForCausalLM

    model, report = _load(AutoModelForCausalLM, backbone, tokenizer, load)
    _require_whole(backbone, report)
    return model


def build_on_meta(backbone: Backbone, labels: list[str] | None) -> "PreTrainedModel":
    """Return the model as shapes without weights (torch's `meta` device): enough to count, however large it is.

    Args:
        backbone: whose configuration it has.
        labels: class names of a sequence classifier; None is the causal language model.

    Raises:
        UserError: an architecture without such a model.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

    silence_libraries()
    options = {} if labels is None else {"num_labels": len(labels)}
    config = AutoConfig.from_pretrained(backbone.folder, local_files_only=True, **options)
    auto = AutoModelForCausalLM if labels is None else AutoModelForSequenceClassification
    try:
        with torch.device("meta"):
            return auto.from_config(config)
    except ValueError as error:
        raise UserError(f"model.path={backbone.folder} cannot be loaded: {first_line(error)}.") from error


def is_reusable(peft: PeftConfig) -> bool:
    """Tell whether runs of this kind can follow each other on the same weights.

    Not if they change them; nor in int8, whose layers move what they need out of the weights when they are first used.
    """
    if isinstance(peft, FullFineTuning | BiasOnly | OtherMethod) or peft.quantization is Quantization.int8:
        return False
    if isinstance(peft, Lora) and peft.changes_base:
        return False
    return getattr(peft, "bias", Bias.none) in (Bias.none, Bias.none.name)


def clone_sharing_weights(model: "PreTrainedModel") -> "PreTrainedModel":
    """Return a model of modules of its own around the same weights, but for a head of its own.

    What was new of the head is drawn anew.
    """
    head = find_head(model)
    of_head = set() if head is None else {id(parameter) for parameter in head.parameters()}
    common = [*model.parameters(), *model.buffers()]
    common += [module.quant_state for module in model.modules() if getattr(module, "quant_state", None) is not None]
    common += [value for module in model.modules() if is_of_hqq(module) for value in module.meta.values()]
    other = copy.deepcopy(model, {id(thing): thing for thing in common if id(thing) not in of_head})
    if head is not None:
        draw_head(other, getattr(model, "drawn", head_paths(model)))
    return other


def _load(
    auto: Any, backbone: Backbone, tokenizer: "PreTrainedTokenizerBase", load: Loading, **options: Any
) -> tuple[Any, dict[str, Any]]:
    """Return a model, and transformers' report of the weights that it has not found."""
    from transformers.utils import logging

    storage, precision = load.storage, DTYPES[load.precision]
    encoder = encoder_of(read_config(backbone))
    kept = [HEAD, "lm_head"] if encoder is None else list(encoder.head)
    silence_libraries()
    require_installed(storage.quantization)
    compute = precision if storage.compute_dtype is Precision.auto else DTYPES[storage.compute_dtype]
    packing = quantization_config(storage, compute, kept)
    if packing is not None:
        options |= {"quantization_config": packing, "device_map": {"": load.device}}
    if load.attention is not Attention.auto:
        options["attn_implementation"] = load.attention.name
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        model, report = auto.from_pretrained(
            backbone.folder,
            dtype=torch.float32 if load.trains_backbone else precision,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            **options,
        )
    except (ValueError, OSError, ImportError, SafetensorError) as error:
        raise UserError(f"model.path={backbone.folder} cannot be loaded: {first_line(error)}.") from error
    model.config.pad_token_id = tokenizer.pad_token_id
    model.config.use_cache = False
    pack(model, storage.quantization, kept, precision, load.device)
    if load.keeps_dequantized:
        unpack(model, precision)
    _evaluate_as_trained(model)
    return model, report


def _require_whole(backbone: Backbone, report: dict[str, Any], new: Sequence[str] = ()) -> None:
    """Refuse weights that would be random, but for those of modules that are to be new."""
    lacking = [*report["missing_keys"], *(name for name, *_ in report["mismatched_keys"])]
    missing = sorted({name for name in lacking if not any(name.startswith(f"{path}.") for path in new)})
    require(
        not missing,
        f"model.path={backbone.folder} lacks weights that its architecture needs, so they would be random: "
        f"{', '.join(missing[:5])}.",
    )


def _evaluate_as_trained(model: "PreTrainedModel") -> None:
    """Keep bitsandbytes from repacking 4-bit weights for evaluation, as it does on processors with AVX512-BF16.

    The repacked product rounds to bfloat16 whatever the precision, and fails unless a layer's outputs divide by 32.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
