"""From materials to what Lightning runs: the model, its scoring, the module, the data."""

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from sentexp.config import (
    CausalLM,
    FullFineTuning,
    HeadInit,
    HeadOnly,
    PriorCorrection,
    SequenceClassification,
    Strategy,
    task_name,
)
from sentexp.data.class_balance import class_weights, row_weights
from sentexp.data.datamodule import DataModule, pad
from sentexp.data.prompts import CONTENT_FREE
from sentexp.data.tokens import encode
from sentexp.distributed.sharding import shard
from sentexp.errors import require
from sentexp.models.adapters import ParameterAudit, attach
from sentexp.models.backbone import (
    Loading,
    can_be_shared,
    load_classifier,
    load_language_model,
    outline,
    shardable_parts,
    twin,
)
from sentexp.models.feature_cache import Features
from sentexp.models.label_scorer import LabelScorer
from sentexp.models.sequence_classifier import SequenceClassifier, start_head_at_label_words
from sentexp.run.inputs import Basis, Materials, build_packer, let_go, shared
from sentexp.training.module import ClassifierModule

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def build_model(materials: Materials) -> tuple[nn.Module, ParameterAudit]:
    """Load the backbone, with a head where the task has one, and attach what is trained."""
    config = materials.config
    load = Loading(
        storage=config.peft,
        attention=config.model.attn_implementation,
        precision=materials.precision,
        device=materials.device,
        trains_backbone=isinstance(config.peft, FullFineTuning),
    )
    model = _load(materials, load)
    task = config.task
    if isinstance(task, SequenceClassification) and task.head_init is HeadInit.label_words:
        labels = materials.examples.labels
        start_head_at_label_words(model, materials.backbone, materials.tokenizer, task.template, labels)
    if config.trainer.gradient_checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    trained, audit = attach(model, config.peft)
    if config.trainer.strategy is Strategy.fsdp:
        shard(shardable_parts(trained), materials.device)
    return trained, audit


def outline_model(basis: Basis) -> tuple[nn.Module, ParameterAudit]:
    """Return the model of a run, with what is trained attached, as shapes without weights."""
    config, labels = basis.config, basis.examples.labels
    with torch.device("meta"):
        return attach(outline(basis.backbone, None if isinstance(config.task, CausalLM) else labels), config.peft)


def _load(materials: Materials, load: Loading) -> "PreTrainedModel":
    """Return the backbone; runs of a sweep share its weights, unless they train them (law 8)."""
    config, labels = materials.config, materials.examples.labels

    def fresh() -> "PreTrainedModel":
        if isinstance(config.task, CausalLM):
            return load_language_model(materials.backbone, materials.tokenizer, load)
        return load_classifier(materials.backbone, materials.tokenizer, labels, load)

    if not can_be_shared(config.peft):
        let_go("model")
        return fresh()
    key = [task_name(config.task), labels, load.attention, *_weights(materials)]
    model = shared(config, "model", key, fresh, most=1)
    if config.sweep.name is None:
        return model
    torch.manual_seed(config.seed)  # as before a load of its own: the head and the adapter begin as they would alone
    return twin(model)


def _weights(materials: Materials) -> list[Any]:
    """Return what tells frozen weights from others: where they are from, how they are stored, and where."""
    peft = materials.config.peft
    stored = [peft.quantization, peft.double_quant, peft.compute_dtype, materials.precision]
    return [materials.backbone.revision, *stored, materials.device]


def _known_features(materials: Materials) -> Features | None:
    """Return what keeps the features of texts where the head alone trains; runs of a sweep share it."""
    config = materials.config
    if not isinstance(config.peft, HeadOnly):
        return None
    return shared(config, "features", _weights(materials), Features, most=1)


def build_module(materials: Materials, model: nn.Module) -> ClassifierModule:
    """Return the Lightning module that scores as the task and the prompt say."""
    config, task, pad_id = materials.config, materials.config.task, materials.tokenizer.pad_token_id
    answering = task if isinstance(task, CausalLM) else None
    content_free = None
    if answering is not None and answering.calibration is PriorCorrection.contextual:
        rows, _ = encode(CONTENT_FREE, materials.tokenizer, materials.prompt, materials.positions)
        require(
            all(rows),
            "task.calibration=contextual shows the model an empty text, among others, and task.template has no words "
            "around it: give it some, or use task.calibration=batch.",
        )
        packer = build_packer(materials)
        content_free = pad(rows, pad_id, "left") if packer is None else packer.score(rows, 0)
    prompt = materials.prompt
    return ClassifierModule(
        SequenceClassifier(model, config.trainer.compile, _known_features(materials))
        if answering is None
        else LabelScorer(model, prompt.answers, prompt.end, answering, pad_id, prompt.room, config.trainer.compile),
        materials.examples.labels,
        config.optim,
        config.seed,
        config.trainer.log_every_n_steps,
        class_weights(config.data, materials.examples),
        task.focal_gamma,
        PriorCorrection.none if answering is None else answering.calibration,
        content_free,
        generates=answering is not None and answering.generate,
    )


def build_data(materials: Materials) -> DataModule:
    """Return the batches of the tokenised splits."""
    config = materials.config
    weights = row_weights(config.data, materials.examples)
    return DataModule(
        materials.tokens, materials.tokenizer, config.trainer, config.seed, weights, build_packer(materials)
    )
