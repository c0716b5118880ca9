"""One run, from its configuration to its result: the protocol of the experiment, top to bottom."""

import gc
import json
import re
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import lightning as L  # noqa: N812 (the library's own abbreviation)
import torch

from sentexp import console
from sentexp.config import METRICS, Config, FullFineTuning, HeadInit, SequenceClassification, Untuned, method_name
from sentexp.data.audit import DataAudit, duplicate_free
from sentexp.data.datamodule import DataModule
from sentexp.data.imbalance import class_weights, row_weights
from sentexp.data.splits import Examples
from sentexp.errors import require
from sentexp.hardware import peak_memory_gib
from sentexp.materials import Materials, gather
from sentexp.models.adapters import ParameterAudit, attach
from sentexp.models.backbone import load_classifier
from sentexp.models.saving import save_trained
from sentexp.models.scoring import SequenceClassifier, start_head_at_label_words
from sentexp.recording import Sinks, record_audit, record_provenance, recorded
from sentexp.tracking.folder import RunFolder
from sentexp.tracking.identity import fingerprint
from sentexp.tracking.pictures import draw_confusion_matrix, draw_learning_curve
from sentexp.tracking.store import Record, open_record
from sentexp.training.checkpoint import Checkpoints, remove_checkpoints
from sentexp.training.metrics import slice_metrics
from sentexp.training.module import ClassifierModule
from sentexp.training.trainer import OutOfMemory, build_trainer, evaluate, fit, halve_micro_batch


@dataclass(kw_only=True, slots=True)
class Result:
    """What a finished run leaves: where it is, and its metrics by name (`best/...`, `test/...`, costs)."""

    run_id: str | None
    identity: str
    folder: Path
    weights: Path
    metrics: dict[str, float]
    confusion: list[list[int]]
    parameters: ParameterAudit
    objective: float


def run(config: Config) -> Result:
    """Train, test and record one configuration; a run that was killed goes on from its last checkpoint.

    Raises:
        UserError: anything in the configuration, the data or the store that the user can mend.
    """
    started = time.monotonic()
    materials = gather(config)
    identity = fingerprint(config, materials.examples.digest(), materials.backbone.revision)
    with RunFolder(Path(config.output_dir) / identity) as folder:
        name = f"{config.model.name}-{method_name(config.peft)}-{config.data.name}"
        record = open_record(config.tracking, name, folder.state.get("run_id"))
        with recorded(record):
            if folder.state:
                console.say(f"Going on with run {identity} in {folder.path}, which did not finish")
            folder.remember(run_id=record.run_id, identity=identity)
            record_provenance(record, materials, identity, folder.path)
            result = _attempt_until_it_fits(materials, record, folder, identity)
            _conclude(result, record, folder, materials, time.monotonic() - started)
    gc.collect()  # the backbone is in reference cycles: the next run of a sweep must find it gone (law 8)
    return result


def prepare(config: Config) -> None:
    """Fetch, convert and tokenise what a run of this configuration needs, so that it can start without a network.

    Raises:
        UserError: anything in the configuration or the data that the user can mend.
    """
    materials = gather(config)
    console.say(f"The backbone is in {materials.backbone.folder}; a run of this configuration needs no network.")


def audit(config: Config) -> DataAudit:
    """Look at every row of a data set, subsets left out, and write down what was found.

    The files are in a folder of `output_dir`; the MLflow run is in an experiment of its own, `<experiment>-audits`.

    Raises:
        UserError: anything in the configuration, the data or the store that the user can mend.
    """
    materials = gather(config, whole=True, near=True)
    console.print_findings(materials.data_audit)
    name = f"audit-{config.data.name}"
    folder = Path(config.output_dir) / f"{name}-{materials.examples.digest()[:8]}"
    folder.mkdir(parents=True, exist_ok=True)
    tracking = replace(config.tracking, experiment=f"{config.tracking.experiment}-audits", system_metrics=False)
    record = open_record(tracking, name, None)
    with recorded(record):
        record_audit(record, materials, folder)
    console.print_audit_whereabouts(record.run_id, record.where, folder)
    return materials.data_audit


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
    model, parameters = _build_model(materials)
    console.print_parameters(method_name(config.peft), parameters)
    data = DataModule(
        materials.tokens,
        materials.tokenizer,
        config.trainer,
        config.seed,
        row_weights(config.data, materials.examples),
    )
    module = ClassifierModule(
        SequenceClassifier(model),
        labels,
        config.optim,
        config.seed,
        config.trainer.log_every_n_steps,
        class_weights(config.data, materials.examples),
        config.task.focal_gamma,
    )
    checkpoints = Checkpoints(folder.path, config.trainer.monitor, config.trainer.save_steps)
    trainer = build_trainer(config.trainer, materials.precision, materials.device, Sinks(record, folder), checkpoints)

    began = time.monotonic()
    if isinstance(config.peft, Untuned):
        evaluate(trainer, module, data, "validation")
    else:
        fit(trainer, module, data, checkpoints)
    train_seconds = time.monotonic() - began
    metrics = evaluate(trainer, module, data, "test")
    sliced = _slice_metrics(module, materials.examples)
    record.log_metrics(sliced, trainer.global_step)
    metrics |= sliced

    base = config.model.path or str(materials.backbone.folder)
    facts = {"labels": labels, "template": config.task.template, "max_length": config.data.max_length}
    weights = save_trained(model, materials.tokenizer, config.peft, base, facts, folder.path)
    steps = trainer.global_step
    metrics |= _best(folder, checkpoints.best_step) | {
        "train/seconds": train_seconds,
        "train/steps": steps,
        "parameters/trainable": parameters.trainable_total,
        "parameters/total": parameters.total,
        "peak_memory_gib": peak_memory_gib(materials.device),
    }
    return Result(
        run_id=record.run_id,
        identity=identity,
        folder=folder.path,
        weights=weights,
        metrics=metrics,
        confusion=module.test_metrics.confusion.compute().int().tolist(),
        parameters=parameters,
        objective=metrics[config.trainer.monitor.replace("validation/", "best/")],
    )


def _slice_metrics(module: ClassifierModule, examples: Examples) -> dict[str, float]:
    """Return the test metrics of each slice, and of the rows whose text stands nowhere else."""
    masks = {"duplicate_free": torch.from_numpy(duplicate_free(examples))}
    for column, values in examples.slices("test").items():
        for value, mask in values.items():
            named = f"{column}/" + (re.sub(r"[^\w .:-]", "_", value) or "none")  # what MLflow takes
            while named in masks:  # another value is written alike
                named += "_"
            masks[named] = torch.from_numpy(mask)
    return {f"test/{k}": v for k, v in slice_metrics(examples.labels, *module.test_logits(), masks).items()}


def _build_model(materials: Materials) -> tuple[torch.nn.Module, ParameterAudit]:
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
    summary |= {"labels": labels, "confusion_matrix": result.confusion, "parameters": asdict(result.parameters)}
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


def _best(folder: RunFolder, step: int) -> dict[str, float]:
    """Return the validation metrics at the best checkpoint, and its step."""
    values = {f"best/{name}": dict(folder.history(f"validation/{name}")) for name in METRICS}
    return {name: points[step] for name, points in values.items() if step in points} | {"best/step": step}
