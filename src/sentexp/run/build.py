"""From inputs to what Lightning runs: the model, its scoring, the module, the data."""

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from sentexp.config import (
    BiasOnly,
    CausalLM,
    FullFineTuning,
    HeadInit,
    HeadOnly,
    PeftMethod,
    Precision,
    PriorCorrection,
    Quantization,
    SequenceClassification,
    Strategy,
    task_name,
)
from sentexp.config.checks import AUTO
from sentexp.data.batch import pad
from sentexp.data.class_balance import class_weights, row_weights
from sentexp.data.datamodule import DataModule
from sentexp.data.prompts import CONTENT_FREE, pair_separator
from sentexp.data.tokens import encode
from sentexp.distributed.sharding import shard
from sentexp.errors import UserError, require
from sentexp.metrics.target import Target, target_of
from sentexp.models.adapters import ParameterAudit, attach
from sentexp.models.encoder_classifier import classifier_over
from sentexp.models.fast.fusion_context import fused_run
from sentexp.models.feature_cache import FeatureCache
from sentexp.models.label_scorer import LabelScorer
from sentexp.models.links import link_of
from sentexp.models.loading import (
    Loading,
    build_on_meta,
    clone_sharing_weights,
    is_reusable,
    load_classifier,
    load_language_model,
)
from sentexp.models.sequence_classifier import SequenceClassifier, start_head_at_label_words
from sentexp.models.structure import shardable_parts
from sentexp.run.cache import cached, clear_cache
from sentexp.run.inputs import RunInputs, RunSpec, build_packer
from sentexp.system.console import hint
from sentexp.system.memory import total_memory
from sentexp.training.batch_plan import BatchPlan
from sentexp.training.module import ClassifierModule

if TYPE_CHECKING:
    from transformers import PreTrainedModel


ROOM_FOR_DENSE = 0.4
"""The share of a GPU's memory that dequantised weights may take."""


def keeps_dequantized(inputs: RunInputs) -> bool:
    """Tell whether 4-bit weights are unpacked once, for the whole run, as `model.keep_dequantized` says."""
    config, wanted = inputs.config, inputs.config.model.keep_dequantized
    is_packed = config.peft.quantization in (Quantization.nf4, Quantization.fp4)
    if not is_packed or config.peft.compute_dtype not in (Precision.auto, inputs.precision):
        return False
    if wanted == AUTO:
        size = sum(file.stat().st_size for file in inputs.backbone.folder.glob("*.safetensors"))
        return inputs.device.type == "cuda" and size < ROOM_FOR_DENSE * total_memory(inputs.device)
    return bool(wanted)


def build_model(inputs: RunInputs, batches: BatchPlan | None = None) -> tuple[nn.Module, ParameterAudit]:
    """Load the backbone, with a head where the task has one, and attach what is trained.

    Args:
        inputs: of the run.
        batches: where memory has run out, says whether 4-bit weights are still unpacked.
    """
    config = inputs.config
    load = Loading(
        storage=config.peft,
        attention=config.model.attn_implementation,
        precision=inputs.precision,
        device=inputs.device,
        trains_backbone=isinstance(config.peft, FullFineTuning | BiasOnly),
        keeps_dequantized=keeps_dequantized(inputs) if batches is None else batches.keeps_dequantized,
    )
    model = _load(inputs, load)
    task = config.task
    if isinstance(task, SequenceClassification) and task.head_init is HeadInit.label_words:
        labels = inputs.examples.labels
        start_head_at_label_words(model, inputs.backbone, inputs.tokenizer, task.template, labels)
    if config.trainer.gradient_checkpointing:
        require(
            model.supports_gradient_checkpointing,
            f"trainer.gradient_checkpointing=true computes layers again, and transformers cannot do so for "
            f"{config.model.given_as} ({model.config.model_type}): leave it false.",
        )
        model.activation_checkpointing_enable({"use_reentrant": False})
    trained, audit = attach(model, config.peft)
    if config.trainer.strategy is Strategy.fsdp:
        shard(shardable_parts(trained), inputs.device)
    return trained, audit


def outline_model(spec: RunSpec) -> tuple[nn.Module, ParameterAudit]:
    """Return the model of a run, with what is trained attached, as shapes without weights."""
    peft, labels = spec.config.peft, None if isinstance(spec.config.task, CausalLM) else spec.examples.labels
    try:
        with torch.device("meta"):
            return attach(build_on_meta(spec.backbone, labels), peft)
    except (RuntimeError, UserError):  # PEFT may say what a tensor without values cannot do in words of its own
        if not isinstance(peft, PeftMethod):
            raise
    # BOFT, SHiRA and others look at weights: give them memory that nothing has written to
    return attach(build_on_meta(spec.backbone, labels).to_empty(device="cpu"), peft)


def _load(inputs: RunInputs, load: Loading) -> "PreTrainedModel":
    """Return the backbone; runs of a sweep share its weights, unless they train them (law 8)."""
    config, labels = inputs.config, inputs.examples.labels

    def fresh() -> "PreTrainedModel":
        hint(f"Loading the model, {config.model.title}")
        if isinstance(config.task, CausalLM):
            return load_language_model(inputs.backbone, inputs.tokenizer, load)
        return load_classifier(inputs.backbone, inputs.tokenizer, labels, load, inputs.head_rows)

    if not is_reusable(config.peft):
        clear_cache("model")
        return fresh()
    stored = [load.attention, load.keeps_dequantized]
    key = [task_name(config.task), labels, inputs.head_rows, *stored, *_weights(inputs)]
    model = cached(config, "model", key, fresh, most=1)
    if config.sweep.name is None:
        return model
    torch.manual_seed(config.seed)  # as before a load of its own: the head and the adapter begin as they would alone
    return clone_sharing_weights(model)


def _weights(inputs: RunInputs) -> list[Any]:
    """Return what tells frozen weights from others: where they are from, how they are stored, and where."""
    peft = inputs.config.peft
    stored = [peft.quantization, peft.double_quant, peft.compute_dtype, inputs.precision]
    return [inputs.backbone.revision, *stored, inputs.device]


def _known_features(inputs: RunInputs) -> FeatureCache | None:
    """Return what keeps the features of texts where the head alone trains; runs of a sweep share it."""
    config = inputs.config
    if not isinstance(config.peft, HeadOnly):
        return None
    return cached(config, "features", _weights(inputs), FeatureCache, most=1)


def build_module(inputs: RunInputs, model: nn.Module) -> ClassifierModule:
    """Return the Lightning module that scores as the task and the prompt say."""
    config, task, pad_id = inputs.config, inputs.config.task, inputs.tokenizer.pad_token_id
    answering = task if isinstance(task, CausalLM) else None
    content_free = None
    if answering is not None and answering.calibration is PriorCorrection.contextual:
        rows, _ = encode(CONTENT_FREE, inputs.tokenizer, inputs.prompt, inputs.positions)
        require(
            all(rows),
            "task.calibration=contextual shows the model an empty text, among others, and task.template has no words "
            "around it: give it some, or use task.calibration=batch.",
        )
        packer = build_packer(inputs)
        content_free = pad(rows, pad_id, "left") if packer is None else packer.score(rows, 0)
    prompt, separator = inputs.prompt, pair_separator(inputs.prompt, inputs.tokenizer)
    compiled = config.trainer.compile
    classifier: SequenceClassifier | LabelScorer
    if isinstance(task, CausalLM):
        classifier = LabelScorer(model, prompt.answers, prompt.end, task, pad_id, prompt.max_answer_tokens, compiled)
    else:
        assert isinstance(task, SequenceClassification)
        classifier = classifier_over(
            model, compiled, _known_features(inputs), separator, link_of(task.loss, inputs.examples.scale())
        )
    return ClassifierModule(
        classifier,
        inputs.examples.labels,
        config.optim,
        config.seed,
        config.trainer.log_every_n_steps,
        class_weights(config.data, inputs.examples),
        task.focal_gamma,
        PriorCorrection.none if answering is None else answering.calibration,
        content_free,
        generates=answering is not None and answering.generate,
        cuda_graphs=inputs.cuda_graphs,
        target=run_target(inputs),
    )


def run_target(inputs: RunSpec) -> Target:
    """Return the kind of target of a run."""
    return target_of(inputs.examples.labels, inputs.config.data.ordered, inputs.examples.scale())


def build_data(inputs: RunInputs, batches: BatchPlan | None = None) -> DataModule:
    """Return the batches of the tokenised splits, of the configured sizes or of others."""
    config = inputs.config
    trainer = config.trainer if batches is None else batches.apply_to(config.trainer)
    weights = row_weights(config.data, inputs.examples)
    packer, bucketed = build_packer(inputs), inputs.cuda_graphs and fused_run() is None
    return DataModule(inputs.tokens, inputs.tokenizer, trainer, config.seed, weights, packer, bucketed)
