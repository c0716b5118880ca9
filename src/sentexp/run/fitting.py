"""One attempt at a run: build the model, measure what it is compared with, train it, test its best checkpoint."""

import math
import time
from pathlib import Path
from typing import Any

import lightning as L  # noqa: N812 (the library's own abbreviation)
from torch import nn

from sentexp.config import Config, Untuned, method_name
from sentexp.data.datamodule import DataModule
from sentexp.distributed import processes
from sentexp.models.adapters import ParameterAudit
from sentexp.models.saving import save_trained, saved_mib
from sentexp.run import report
from sentexp.run.baselines import measure_baselines
from sentexp.run.build import build_data, build_model, build_module
from sentexp.run.inputs import RunInputs, scoring_facts
from sentexp.run.metric_sinks import MetricSinks
from sentexp.run.recording import record_summary, save_predictions
from sentexp.run.result import Result, shots_of
from sentexp.run.summary import TestSummary, best_metrics, differences, summarise_test
from sentexp.system.memory import peak_memory_gib
from sentexp.system.stopwatch import TIMES
from sentexp.tracking.run_dir import RunDir
from sentexp.tracking.run_logger import RunLogger
from sentexp.training.adalora import rank_allocation
from sentexp.training.averaging import weight_average
from sentexp.training.batch_plan import BatchPlan
from sentexp.training.checkpoint import Checkpoints
from sentexp.training.module import ClassifierModule
from sentexp.training.neftune import embedding_noise
from sentexp.training.pruning import PruningCallback, PruningPolicy
from sentexp.training.trainer import build_trainer, evaluate, fit
from sentexp.training.unfreezing import gradual_unfreezing


def fit_and_test(
    inputs: RunInputs, logger: RunLogger, run_dir: RunDir, policy: PruningPolicy | None, batches: BatchPlan
) -> Result:
    """Build the model, measure its baselines, train it, test its best checkpoint, and save what was trained.

    Raises:
        OutOfMemory: a batch did not fit.
        Pruned: the policy has stopped the training.
    """
    config, monitor = inputs.config, inputs.config.trainer.monitor
    L.seed_everything(config.seed, verbose=False)
    model, parameters = build_model(inputs, batches)
    report.print_parameters(method_name(config.peft), parameters)
    baselines = measure_baselines(inputs, model, batches) if config.baseline else {}
    data, module = build_data(inputs, batches), build_module(inputs, model)
    pruning = [] if policy is None else [PruningCallback(policy, monitor, run_dir.path)]
    loop = batches.apply_to(config.trainer)
    with MetricSinks(logger, run_dir) as sinks:
        checkpoints = Checkpoints(run_dir.path, monitor, config.trainer.save_steps, before_save=sinks.flush)
        callbacks = [*_recipes(config, model), checkpoints, *pruning]
        trainer = build_trainer(loop, inputs.precision, inputs.device, sinks, *callbacks)
        train_seconds = _fit(trainer, module, data, checkpoints, is_untuned=isinstance(config.peft, Untuned))
        metrics = evaluate(trainer, module, data, "test")
    if module.recorded_graphs:
        logger.set_tags({"cuda_graphs": module.recorded_graphs})
    summary = summarise_test(inputs, module.target, module.validation, module.test)
    summary.metrics |= differences(metrics, baselines, inputs.examples.kind)
    save_predictions(inputs, module.validation[0], module.test, run_dir.path, module.target.thresholds)
    record_summary(logger, summary, trainer.global_step)
    metrics |= summary.metrics | best_metrics(run_dir, checkpoints.best_step)
    metrics |= {"seconds": checkpoints.seconds, "train/seconds": train_seconds, "train/steps": trainer.global_step}
    weights = _save(inputs, model, module, summary, logger, run_dir)
    metrics |= _costs(inputs, parameters, weights)
    return Result(
        run_id=logger.run_id,
        identity=run_dir.path.name,
        folder=run_dir.path,
        weights=weights,
        metrics=metrics,
        labels=inputs.examples.labels,
        confusion=summary.confusion,
        parameters=parameters,
        objective=metrics.get(monitor.replace("validation/", "best/"), math.nan),
        baselines=baselines,
        shots=shots_of(config),
        answers=summary.answers,
        reliability=summary.reliability,
        thresholds=module.target.thresholds,
    )


def _recipes(config: Config, model: nn.Module) -> list[L.Callback]:
    """Return what changes the training of a model; means of weights come after what changes these."""
    return [
        *rank_allocation(model, config.peft),
        *embedding_noise(model, config.task.neftune_alpha),
        *gradual_unfreezing(model, config.trainer.unfreeze),
        *weight_average(model, config.trainer, config.optim),
    ]


def _fit(
    trainer: L.Trainer, module: ClassifierModule, data: DataModule, checkpoints: Checkpoints, is_untuned: bool
) -> float:
    """Train, or only evaluate an untuned model; return the seconds, with those of earlier processes."""
    began = time.monotonic()
    if is_untuned:
        evaluate(trainer, module, data, "validation")
    else:
        fit(trainer, module, data, checkpoints)
    return checkpoints.seconds + time.monotonic() - began


@TIMES.part("saving")
def _save(
    inputs: RunInputs,
    model: nn.Module,
    module: ClassifierModule,
    summary: TestSummary,
    logger: RunLogger,
    run_dir: RunDir,
) -> Path:
    """Save what was trained with what is needed to score texts as in the run; return the folder."""
    prior = None if module.prior is None else module.prior.tolist()
    facts: dict[str, Any] = {"identity": run_dir.path.name, "run_id": logger.run_id, "prior": prior}
    facts |= {"temperature": summary.temperature}
    facts |= {"thresholds": thresholds} if (thresholds := module.target.thresholds) is not None else {}
    facts |= scoring_facts(inputs)
    base = facts["model"]["path"] or str(inputs.backbone.folder)
    return save_trained(model, inputs.tokenizer, inputs.config.peft, base, facts, run_dir.path)


def _costs(inputs: RunInputs, parameters: ParameterAudit, weights: Path) -> dict[str, float]:
    """Return what the run takes in parameters and memory, the most of any process."""
    return {
        "parameters/trainable": parameters.trainable_total,
        "parameters/total": parameters.total,
        "saved_mib": saved_mib(weights),
        "peak_memory_gib": max(processes.all_gather(peak_memory_gib(inputs.device))),
    }
