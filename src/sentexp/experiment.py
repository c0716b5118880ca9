"""One run, from its configuration to its result: the protocol of the experiment, top to bottom."""

import gc
import json
import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import lightning as L  # noqa: N812 (the library's own abbreviation)
import torch

from sentexp import console
from sentexp.assembly import build_data, build_model, build_module
from sentexp.baselines import Baseline, measure_baselines, untuned_identity
from sentexp.config import METRICS, CausalLM, Config, Untuned, flatten, method_name, task_name
from sentexp.data.audit import DataAudit
from sentexp.errors import require
from sentexp.hardware import peak_memory_gib
from sentexp.materials import Materials, gather
from sentexp.models.adapters import ParameterAudit
from sentexp.models.saving import save_trained
from sentexp.recording import Sinks, count_answers, record_audit, record_provenance, recorded
from sentexp.tracking.folder import RunFolder
from sentexp.tracking.identity import fingerprint
from sentexp.tracking.pictures import draw_confusion_matrix, draw_learning_curve, draw_reliability
from sentexp.tracking.store import Record, open_record
from sentexp.training.calibration import fit_temperature, reliability
from sentexp.training.checkpoint import Checkpoints, remove_checkpoints
from sentexp.training.metrics import SLICE_METRICS, confusion_matrix, slice_scores, split_metrics
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
    baselines: dict[str, Baseline]
    answers: dict[str, str]
    reliability: dict[str, list[tuple[float, float, int]]]


def run(config: Config, sweep: bool = False) -> Result:
    """Train, test and record one configuration; a run that was killed goes on from its last checkpoint.

    Args:
        config: of the run.
        sweep: whether it is one of several, which are compared with baselines unless `baseline` says otherwise.

    Raises:
        UserError: anything in the configuration, the data or the store that the user can mend.
    """
    started = time.monotonic()
    if config.baseline is None:
        config = replace(config, baseline=sweep or isinstance(config.task, CausalLM))
    materials = gather(config)
    config = materials.config
    identity = fingerprint(config, materials.examples.digest(), materials.backbone.revision, asdict(materials.prompt))
    with RunFolder(Path(config.output_dir) / identity) as folder:
        name = f"{config.model.name}-{method_name(config.peft)}-{config.data.name}-{task_name(config.task)}"
        record = open_record(config.tracking, name, folder.state.get("run_id"))
        with recorded(record):
            if folder.state:
                console.say(f"Going on with run {identity} in {folder.path}, which did not finish")
            folder.remember(run_id=record.run_id, identity=identity)
            record_provenance(record, materials, identity, folder.path)
            if isinstance(config.task, CausalLM) and isinstance(config.peft, Untuned):
                record.set_tags({"baseline.identity": untuned_identity(materials)})
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
    """Build the model, measure what it is compared with, train it, and test its best checkpoint."""
    config, labels = materials.config, materials.examples.labels
    L.seed_everything(config.seed, verbose=False)
    model, parameters = build_model(materials)
    console.print_parameters(method_name(config.peft), parameters)
    baselines = measure_baselines(materials, model) if config.baseline else {}
    data, module = build_data(materials), build_module(materials, model)
    checkpoints = Checkpoints(folder.path, config.trainer.monitor, config.trainer.save_steps)
    sinks = Sinks(record, folder)
    trainer = build_trainer(config.trainer, materials.precision, materials.device, sinks, checkpoints)

    began = time.monotonic()
    if isinstance(config.peft, Untuned):
        evaluate(trainer, module, data, "validation")
    else:
        fit(trainer, module, data, checkpoints)
    train_seconds = time.monotonic() - began
    metrics = evaluate(trainer, module, data, "test")
    answers = count_answers(materials, module.test)
    record.set_tags(answers.tags)
    temperature = fit_temperature(*module.validation)
    cooled = split_metrics(labels, module.test.logits / temperature, module.test.targets)
    derived = answers.metrics | {f"test/{name}_calibrated": cooled[name] for name in ("loss", "ece", "brier")}
    derived |= {"temperature": temperature} | slice_scores(materials.examples, module.test.logits)
    derived |= _differences(metrics, baselines)
    record.log_metrics(derived, trainer.global_step)
    metrics |= derived

    base = config.model.path or str(materials.backbone.folder)
    facts: dict[str, Any] = {"task": flatten(config.task), "labels": labels, "prompt": asdict(materials.prompt)}
    prior = None if module.prior is None else module.prior.tolist()
    facts |= {"max_length": config.data.max_length, "prior": prior, "temperature": temperature}
    weights = save_trained(model, materials.tokenizer, config.peft, base, facts, folder.path)
    metrics |= _best(folder, checkpoints.best_step) | {
        "train/seconds": train_seconds,
        "train/steps": trainer.global_step,
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
        confusion=confusion_matrix(labels, module.test.logits, module.test.targets),
        parameters=parameters,
        objective=metrics[config.trainer.monitor.replace("validation/", "best/")],
        baselines=baselines,
        answers=answers.tags,
        reliability={
            "as it is": reliability(module.test.logits, module.test.targets),
            f"at temperature {temperature:.2f}": reliability(module.test.logits / temperature, module.test.targets),
        },
    )


def _differences(metrics: Mapping[str, float], baselines: Mapping[str, Baseline]) -> dict[str, float]:
    """Return by how much the run's test metrics are above those of each baseline, and these themselves."""
    values = {}
    for name, baseline in baselines.items():
        for metric in SLICE_METRICS:
            theirs = baseline.metrics.get(f"test/{metric}", math.nan)
            values[f"baseline/{name}/{metric}"] = theirs
            values[f"difference/{name}/{metric}"] = metrics[f"test/{metric}"] - theirs
    return {name: value for name, value in values.items() if math.isfinite(value)}


def _conclude(result: Result, record: Record, folder: RunFolder, materials: Materials, seconds: float) -> None:
    """Write the result down, show it, and close the run's state."""
    result.metrics["seconds"] = seconds
    labels = materials.examples.labels
    summary: dict[str, Any] = {"identity": result.identity, "run_id": result.run_id, "metrics": result.metrics}
    summary |= {"labels": labels, "confusion_matrix": result.confusion, "parameters": asdict(result.parameters)}
    summary |= {"baselines": {name: asdict(baseline) for name, baseline in result.baselines.items()}}
    summary |= {"answers": result.answers, "reliability": result.reliability}
    (folder.path / "result.json").write_text(json.dumps(summary, indent=2) + "\n")
    draw_confusion_matrix(result.confusion, labels, folder.path / "confusion_matrix.png")
    draw_reliability(result.reliability, folder.path / "reliability.png")
    draw_learning_curve(
        folder.history("train/loss"),
        folder.history("validation/loss"),
        folder.history("validation/accuracy"),
        folder.path / "learning_curve.png",
    )
    logged = ("test/", "baseline/", "difference/", "temperature")
    costs = {k: v for k, v in result.metrics.items() if not k.startswith(logged)}
    record.log_metrics(costs, int(result.metrics["train/steps"]))
    for name in ("result.json", "confusion_matrix.png", "learning_curve.png", "reliability.png"):
        record.log_files(folder.path / name)
    record.log_files(result.weights, result.weights.name)
    folder.forget()
    remove_checkpoints(folder.path)
    console.print_result(result.metrics, labels, result.confusion)
    console.print_answers(result.answers)
    console.print_comparison(result.metrics, {found.title: found.metrics for found in result.baselines.values()})
    console.print_costs(result.metrics)
    console.print_whereabouts(result.run_id, record.where, result.folder, result.weights, materials.config.task)


def _best(folder: RunFolder, step: int) -> dict[str, float]:
    """Return the validation metrics at the best checkpoint, and its step."""
    names = (*METRICS, "off_label_mass", "irregular_outputs")
    values = {f"best/{name}": dict(folder.history(f"validation/{name}")) for name in names}
    return {name: points[step] for name, points in values.items() if step in points} | {"best/step": step}
