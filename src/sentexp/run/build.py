"""From inputs to what Lightning runs: the model, its scoring, the module, the data."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from sentexp.config import (
    FOUR_BIT,
    READING_ROWS,
    BiasOnly,
    CausalLM,
    FullFineTuning,
    HeadInit,
    HeadOnly,
    Lora,
    PeftMethod,
    Precision,
    PriorCorrection,
    Quantization,
    SequenceClassification,
    Strategy,
    Untuned,
    task_name,
)
from sentexp.config.checks import AUTO
from sentexp.data.batch import move, pad
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
from sentexp.models.fast.row_cache import RowCache
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
from sentexp.models.start_from_data import StartFromData
from sentexp.models.structure import has_dropout, shardable_parts
from sentexp.run.cache import cached, clear_cache
from sentexp.run.inputs import RunInputs, RunSpec, build_packer
from sentexp.system.console import hint
from sentexp.system.memory import total_memory
from sentexp.system.stopwatch import TIMES
from sentexp.training.batch_plan import BatchPlan
from sentexp.training.loss import RowLoss
from sentexp.training.module import ClassifierModule

if TYPE_CHECKING:
    from transformers import PreTrainedModel


ROOM_FOR_DENSE = 0.4
"""The share of a GPU's memory that dequantised weights may take."""


def keeps_dequantized(inputs: RunInputs) -> bool:
    """Tell whether packed weights are unpacked once, for the whole run, as `model.keep_dequantized` says."""
    peft, wanted = inputs.config.peft, inputs.config.model.keep_dequantized
    rounds_otherwise = peft.quantization in FOUR_BIT and peft.compute_dtype not in (Precision.auto, inputs.precision)
    if not peft.quantization.weight_only or rounds_otherwise:
        return False
    if wanted == AUTO:
        size = sum(file.stat().st_size for file in inputs.backbone.folder.glob("*.safetensors"))
        return inputs.device.type == "cuda" and size < ROOM_FOR_DENSE * total_memory(inputs.device)
    return bool(wanted)


@TIMES.part("loading the model")
def build_model(inputs: RunInputs, batches: BatchPlan | None = None) -> tuple[nn.Module, ParameterAudit]:
    """Load the backbone, with a head where the task has one, and attach what is trained.

    Args:
        inputs: of the run.
        batches: where memory has run out, says whether packed weights are still unpacked.
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
    trained, audit = attach(model, config.peft, _start_from_data(inputs, model, load))
    if config.trainer.strategy is Strategy.fsdp:
        shard(shardable_parts(trained), inputs.device)
    return trained, audit


def _start_from_data(inputs: RunInputs, model: "PreTrainedModel", load: Loading) -> StartFromData | None:
    """Return what LoRA looks at before it begins, where it looks at anything; the model is where it computes then."""
    peft = inputs.config.peft
    if not isinstance(peft, Lora) or peft.init not in (*READING_ROWS, "loftq"):
        return None
    if peft.quantization is Quantization.none:
        model.to(inputs.device)
    train = inputs.tokens["train"]
    numbers = torch.randperm(len(train), generator=torch.Generator().manual_seed(inputs.config.seed)).tolist()
    chosen = numbers[: peft.init_rows] if peft.init in READING_ROWS else []
    plain = replace(load, storage=replace(peft, init="default", quantization=Quantization.none))
    rows = [
        (
            move(pad([ids], inputs.tokenizer.pad_token_id, "right"), inputs.device),
            torch.tensor([label], device=inputs.device),
        )
        for ids, label in zip(train.ids(chosen), train.labels[chosen].tolist(), strict=True)
    ]
    return StartFromData(
        init=peft.init, rows=rows, classifier=_classifier(inputs, model), whole=lambda: _fresh(inputs, plain)
    )


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
    config = inputs.config
    if not is_reusable(config.peft):
        clear_cache("model")
        return _fresh(inputs, load)
    stored = [load.attention, load.keeps_dequantized]
    labels = [inputs.examples.kind.name, *inputs.examples.labels]
    key = [task_name(config.task), labels, inputs.head_rows, *stored, *_weights(inputs)]
    model = cached(config, "model", key, lambda: _fresh(inputs, load), most=1)
    if config.sweep.name is None:
        return model
    torch.manual_seed(config.seed)  # as before a load of its own: the head and the adapter begin as they would alone
    return clone_sharing_weights(model)


def _fresh(inputs: RunInputs, load: Loading) -> "PreTrainedModel":
    config = inputs.config
    hint(f"Loading the model, {config.model.title}")
    if isinstance(config.task, CausalLM):
        return load_language_model(inputs.backbone, inputs.tokenizer, load)
    examples = inputs.examples
    return load_classifier(inputs.backbone, inputs.tokenizer, examples.labels, load, inputs.head_rows, examples.kind)


def _weights(inputs: RunInputs) -> list[Any]:
    """Return what tells frozen weights from others: where they are from, how they are stored, and where."""
    peft = inputs.config.peft
    stored = [peft.quantization, peft.double_quant, peft.compute_dtype, inputs.precision]
    return [inputs.backbone.revision, *stored, inputs.device]


def _row_cache(inputs: RunInputs) -> RowCache | None:
    """Return what keeps what no training changes, where it pays; runs of a sweep share it.

    States of lower layers are kept on the CPU alone: a GPU repeats recorded steps, which read embeddings.
    """
    config = inputs.config
    below = isinstance(config.peft, Lora) and inputs.device.type == "cpu" and not inputs.cuda_graphs
    if not isinstance(config.peft, HeadOnly) and not (below and config.task.neftune_alpha == 0):
        return None
    return cached(config, "rows", _weights(inputs), RowCache, most=1)


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
    row_loss = _row_loss(inputs, model)
    return ClassifierModule(
        _classifier(inputs, model),
        inputs.examples.labels,
        config.optim,
        config.seed,
        config.trainer.log_every_n_steps,
        row_loss,
        PriorCorrection.none if answering is None else answering.calibration,
        content_free,
        generates=answering is not None and answering.generate,
        cuda_graphs=inputs.cuda_graphs,
        target=run_target(inputs),
    )


def _row_loss(inputs: RunInputs, model: nn.Module) -> RowLoss:
    """Return what each row costs in training."""
    config, task = inputs.config, inputs.config.task
    require(
        task.r_drop == 0 or isinstance(config.peft, Untuned) or has_dropout(model),
        f"task.r_drop={task.r_drop} compares two passes with different dropout, and nothing in this model drops out: "
        "set peft.dropout=0.1 with LoRA, or leave it 0.",
    )
    weights = class_weights(config.data, inputs.examples)
    return RowLoss(weights, task.focal_gamma, task.label_smoothing, task.r_drop)


def _classifier(inputs: RunInputs, model: nn.Module) -> SequenceClassifier | LabelScorer:
    """Return what scores rows as the task and the prompt say."""
    task, prompt, compiled = inputs.config.task, inputs.prompt, inputs.config.trainer.compile
    if isinstance(task, SequenceClassification):
        separator = pair_separator(prompt, inputs.tokenizer)
        link = link_of(task.loss, inputs.examples.scale())
        return classifier_over(model, compiled, _row_cache(inputs), separator, link)
    pad_id = inputs.tokenizer.pad_token_id
    assert isinstance(task, CausalLM)
    return LabelScorer(model, prompt.answers, prompt.end, task, pad_id, prompt.max_answer_tokens, compiled)


def run_target(inputs: RunSpec) -> Target:
    """Return the kind of target of a run."""
    examples = inputs.examples
    return target_of(examples.kind, examples.labels, inputs.config.data.ordered, examples.scale())


def build_data(inputs: RunInputs, batches: BatchPlan | None = None) -> DataModule:
    """Return the batches of the tokenised splits, of the configured sizes or of others."""
    config = inputs.config
    trainer = config.trainer if batches is None else batches.apply_to(config.trainer)
    weights = row_weights(config.data, inputs.examples)
    packer, bucketed = build_packer(inputs), inputs.cuda_graphs and fused_run() is None
    return DataModule(inputs.tokens, inputs.tokenizer, trainer, config.seed, weights, packer, bucketed)
