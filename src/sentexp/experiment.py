"""One run, from its configuration to its result: the protocol of the experiment, top to bottom."""

import gc
import json
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning as L  # noqa: N812 (the library's own abbreviation)
import torch
from omegaconf import OmegaConf

from sentexp import console
from sentexp.config import (
    METRICS,
    Config,
    FullFineTuning,
    HeadInit,
    Precision,
    SequenceClassification,
    Untuned,
    flatten,
    method_name,
)
from sentexp.data.datamodule import DataModule
from sentexp.data.splits import NAMES, Examples, load_examples
from sentexp.data.tokens import tokenize, truncated
from sentexp.errors import UserError, require
from sentexp.hardware import choose_device, choose_precision, describe, peak_memory_gib, reset_peak_memory
from sentexp.models.adapters import Audit, attach
from sentexp.models.backbone import Backbone, load_classifier, load_tokenizer, locate_backbone, max_positions
from sentexp.models.saving import save_trained
from sentexp.models.scoring import SequenceClassifier, start_head_at_label_words
from sentexp.tracking.folder import RunFolder
from sentexp.tracking.identity import fingerprint
from sentexp.tracking.pictures import draw_confusion_matrix, draw_learning_curve
from sentexp.tracking.provenance import command, git_state, library_versions, mask_uri
from sentexp.tracking.store import Record, open_record
from sentexp.training.checkpoint import Checkpoints, remove_checkpoints
from sentexp.training.module import ClassifierModule
from sentexp.training.trainer import OutOfMemory, build_trainer, evaluate, fit, halve_micro_batch

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(kw_only=True, slots=True)
class Result:
    """What a finished run leaves: where it is, and its metrics by name (`best/...`, `test/...`, costs)."""

    run_id: str | None
    identity: str
    folder: Path
    weights: Path
    metrics: dict[str, float]
    confusion: list[list[int]]
    audit: Audit
    objective: float


@dataclass(kw_only=True, slots=True)
class Materials:
    """What every attempt at a run shares."""

    config: Config
    device: torch.device
    precision: Precision
    backbone: Backbone
    tokenizer: "PreTrainedTokenizerBase"
    examples: Examples
    tokens: dict[str, Any]


def run(config: Config) -> Result:
    """Train, test and record one configuration; a run that was killed goes on from its last checkpoint.

    Raises:
        UserError: anything in the configuration, the data or the store that the user can mend.
    """
    started = time.monotonic()
    materials = _gather(config)
    identity = fingerprint(config, materials.examples.digest(), materials.backbone.revision)
    with RunFolder(Path(config.output_dir) / identity) as folder:
        name = f"{config.model.name}-{method_name(config.peft)}-{config.data.name}"
        record = open_record(config.tracking, name, folder.state.get("run_id"))
        with _recorded(record):
            if folder.state:
                console.say(f"Going on with run {identity} in {folder.path}, which did not finish")
            folder.remember(run_id=record.run_id, identity=identity)
            _record_provenance(record, materials, identity, folder)
            result = _attempt_until_it_fits(materials, record, folder, identity)
            _conclude(result, record, folder, materials, time.monotonic() - started)
    gc.collect()  # the backbone is in reference cycles: the next run of a sweep must find it gone (law 8)
    return result


def prepare(config: Config) -> None:
    """Fetch, convert and tokenise what a run of this configuration needs, so that it can start without a network.

    Raises:
        UserError: anything in the configuration or the data that the user can mend.
    """
    materials = _gather(config)
    console.say(f"The backbone is in {materials.backbone.folder}; a run of this configuration needs no network.")


def _gather(config: Config) -> Materials:
    """Find backbone and data, and tokenise."""
    device = choose_device(config.trainer.accelerator)
    precision = choose_precision(config.trainer.precision, device)
    reset_peak_memory(device)
    examples = load_examples(config.data)
    backbone = locate_backbone(config.model)
    require(
        config.data.max_length <= max_positions(backbone),
        f"data.max_length={config.data.max_length} is more than the {max_positions(backbone)} positions of "
        f"model={config.model.name}.",
    )
    tokenizer = load_tokenizer(backbone)
    tokens = {
        split: tokenize(
            getattr(examples, split),
            tokenizer,
            config.task.template,
            config.data.max_length,
            config.trainer.progress_bar,
        )
        for split in NAMES
    }
    cut = {split: truncated(rows, config.data.max_length) for split, rows in tokens.items()}
    console.print_data(config.data.name, examples, cut)
    return Materials(
        config=config,
        device=device,
        precision=precision,
        backbone=backbone,
        tokenizer=tokenizer,
        examples=examples,
        tokens=tokens,
    )


def _attempt_until_it_fits(materials: Materials, record: Record, folder: RunFolder, identity: str) -> Result:
    """Run, at half the micro-batch and double the accumulation whenever memory runs out (law 9)."""
    fits: dict[str, Any] = folder.state.get("fits", {})
    trainer = replace(materials.config.trainer, **fits)
    while True:
        try:
            return _attempt(
                replace(materials, config=replace(materials.config, trainer=trainer)), record, folder, identity
            )
        except OutOfMemory as error:
            require(
                trainer.batch_size > 1,
                f"Out of memory at trainer.batch_size=1 ({error}): use a smaller model, peft=qlora, a shorter "
                "data.max_length, or trainer.gradient_checkpointing=true.",
            )
            micro, accumulate = halve_micro_batch(trainer)
            fits = {
                "batch_size": micro,
                "accumulate_grad_batches": accumulate,
                "eval_batch_size": max(1, trainer.eval_batch_size // 2),
            }
            trainer = replace(trainer, **fits)
        gc.collect()
        torch.cuda.empty_cache()
        folder.remember(fits=fits)
        remove_checkpoints(folder.path)
        note = f"batches of {micro} rows, accumulated {accumulate} times"
        console.say(f"Out of memory: starting again with {note}; the effective batch is the same.")
        record.set_tags({"out_of_memory": note})


def _attempt(materials: Materials, record: Record, folder: RunFolder, identity: str) -> Result:
    """Build the model, train it, and test its best checkpoint."""
    config = materials.config
    labels = materials.examples.labels
    L.seed_everything(config.seed, verbose=False)
    model, audit = _build_model(materials)
    console.print_audit(method_name(config.peft), audit)
    data = DataModule(materials.tokens, materials.tokenizer, config.trainer, config.seed)
    module = ClassifierModule(
        SequenceClassifier(model), labels, config.optim, config.seed, config.trainer.log_every_n_steps
    )
    checkpoints = Checkpoints(folder.path, config.trainer.monitor, config.trainer.save_steps)
    trainer = build_trainer(config.trainer, materials.precision, materials.device, _Sinks(record, folder), checkpoints)

    began = time.monotonic()
    if isinstance(config.peft, Untuned):
        evaluate(trainer, module, data, "validation")
    else:
        fit(trainer, module, data, checkpoints)
    train_seconds = time.monotonic() - began
    metrics = evaluate(trainer, module, data, "test")

    base = config.model.path or str(materials.backbone.folder)
    facts = {"labels": labels, "template": config.task.template, "max_length": config.data.max_length}
    weights = save_trained(model, materials.tokenizer, config.peft, base, facts, folder.path)
    steps = trainer.global_step
    metrics |= _best(folder, checkpoints.best_step) | {
        "train/seconds": train_seconds,
        "train/steps": steps,
        "parameters/trainable": audit.trainable_total,
        "parameters/total": audit.total,
        "peak_memory_gib": peak_memory_gib(materials.device),
    }
    return Result(
        run_id=record.run_id,
        identity=identity,
        folder=folder.path,
        weights=weights,
        metrics=metrics,
        confusion=module.test_metrics.confusion.compute().int().tolist(),
        audit=audit,
        objective=metrics[config.trainer.monitor.replace("validation/", "best/")],
    )


def _build_model(materials: Materials) -> tuple[torch.nn.Module, Audit]:
    """Load backbone and head, and attach what is trained."""
    config = materials.config
    model = load_classifier(
        materials.backbone,
        materials.tokenizer,
        materials.examples.labels,
        config.peft,
        config.model.attn_implementation,
        materials.precision,
        materials.device,
        trains_backbone=isinstance(config.peft, FullFineTuning),
    )
    assert isinstance(config.task, SequenceClassification)
    if config.task.head_init is HeadInit.label_words:
        start_head_at_label_words(
            model, materials.backbone, materials.tokenizer, config.task.template, materials.examples.labels
        )
    if config.trainer.gradient_checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    return attach(model, config.peft)


def _conclude(result: Result, record: Record, folder: RunFolder, materials: Materials, seconds: float) -> None:
    """Write the result down, show it, and close the run's state."""
    result.metrics["seconds"] = seconds
    labels = materials.examples.labels
    summary: dict[str, Any] = {"identity": result.identity, "run_id": result.run_id, "metrics": result.metrics}
    summary |= {"labels": labels, "confusion_matrix": result.confusion, "audit": asdict(result.audit)}
    (folder.path / "result.json").write_text(json.dumps(summary, indent=2) + "\n")
    draw_confusion_matrix(result.confusion, labels, folder.path / "confusion_matrix.png")
    draw_learning_curve(
        folder.history("train/loss"),
        folder.history("validation/loss"),
        folder.history("validation/accuracy"),
        folder.path / "learning_curve.png",
    )
    record.log_metrics(
        {k: v for k, v in result.metrics.items() if not k.startswith("test/")}, int(result.metrics["train/steps"])
    )
    for name in ("result.json", "confusion_matrix.png", "learning_curve.png"):
        record.log_files(folder.path / name)
    record.log_files(result.weights, result.weights.name)
    folder.forget()
    remove_checkpoints(folder.path)
    console.print_result(result.metrics, labels, result.confusion, seconds)
    console.print_whereabouts(result.run_id, record.where, result.folder, result.weights)


def _record_provenance(record: Record, materials: Materials, identity: str, folder: RunFolder) -> None:
    """Record configuration, command, code, libraries, machine and data."""
    config = materials.config
    public = replace(config, tracking=replace(config.tracking, uri=mask_uri(config.tracking.uri or "") or None))
    resolved = OmegaConf.to_yaml(OmegaConf.structured(public))
    (folder.path / "config.yaml").write_text(resolved)
    record.log_files(folder.path / "config.yaml")
    derived = {"device": materials.device.type, "precision": materials.precision.name}
    record.log_params({"peft": method_name(config.peft), **flatten(public), **derived})
    record.set_tags({"identity": identity, "command": command(), "mlflow.source.name": "sentexp", **git_state()})
    environment = {"libraries": library_versions(), "machine": describe(materials.device)}
    record.log_text(json.dumps(environment, indent=2), "environment.json")
    record.set_tags({f"version.{name}": version for name, version in environment["libraries"].items()})
    record.set_tags({f"machine.{name}": value for name, value in environment["machine"].items()})
    counts = json.dumps({"rows": materials.examples.counts(), "of": materials.examples.available})
    source = json.dumps({"path": config.data.path, "package": config.data.package and config.data.package.distribution})
    record.log_dataset(config.data.name, materials.examples.digest(), source, counts)


def _best(folder: RunFolder, step: int) -> dict[str, float]:
    """Return the validation metrics at the best checkpoint, and its step."""
    values = {f"best/{name}": dict(folder.history(f"validation/{name}")) for name in METRICS}
    return {name: points[step] for name, points in values.items() if step in points} | {"best/step": step}


class _Sinks:
    """Sends metrics to the record and to the run's folder."""

    def __init__(self, record: Record, folder: RunFolder) -> None:
        self.record = record
        self.folder = folder

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Record metrics at an optimizer step."""
        self.record.log_metrics(metrics, step)
        self.folder.log_metrics(metrics, step)


@contextmanager
def _recorded(record: Record) -> Iterator[None]:
    """End the record as FINISHED, FAILED or KILLED, with the traceback (law 7)."""
    try:
        yield
    except BaseException as error:
        status = "FAILED" if isinstance(error, Exception) else "KILLED"
        try:
            record.log_text(traceback.format_exc(), "traceback.txt")
        except (UserError, OSError):
            console.say("The traceback could not be recorded.")
        try:
            record.finish(status)
        except (UserError, OSError):
            console.say(f"The MLflow run {record.run_id} could not be marked as {status}.")
        raise
    record.finish("FINISHED")
