"""What is recorded of a run: its inputs before it, its metrics while it lasts, its result and its end after it."""

import json
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from omegaconf import OmegaConf
from torch import Tensor

from sentexp.config import CausalLM, Config, Untuned, flatten, method_name, task_name
from sentexp.config.metric_names import safe_names
from sentexp.data.class_balance import class_weights
from sentexp.distributed import processes
from sentexp.errors import UserError
from sentexp.models.links import said
from sentexp.run.baseline_identity import untuned_identity
from sentexp.run.inputs import RunInputs
from sentexp.run.plotting import AUDIT, PLOTS, plot_result, plots_of
from sentexp.run.result import Result
from sentexp.run.summary import TestSummary
from sentexp.system.console import say
from sentexp.system.device import describe
from sentexp.system.signals import defer_signals
from sentexp.system.stopwatch import TIMES
from sentexp.tracking.identity import digest_of, settings
from sentexp.tracking.predictions import FOLDER as PREDICTIONS
from sentexp.tracking.predictions import file_name, write_predictions
from sentexp.tracking.provenance import command, git_state, library_versions, mask_uri
from sentexp.tracking.queries import PRUNED
from sentexp.tracking.run_dir import RESULT, RunDir
from sentexp.tracking.run_logger import RunLogger, open_run_logger
from sentexp.tracking.store import PARENT, find_run
from sentexp.training.evaluation import Evaluation
from sentexp.training.pruning import Pruned

CONFIG = "config.yaml"
TRACEBACK = "traceback.txt"
UNSTARTED = "unstarted"
"""The tag of a run that failed before it had an identity: a digest of its configuration."""
LOGGED_BEFORE = ("test/", "baseline/", "difference/", "temperature")
"""Metrics that are recorded when they are measured; the costs come with the result."""


@contextmanager
def track_run(logger: RunLogger) -> Iterator[None]:
    """End the record as FINISHED, FAILED or KILLED, with the traceback (law 7), or KILLED with why it was pruned."""
    try:
        yield
    except BaseException as error:
        with defer_signals():  # a launcher ends what is left of a run that fails, perhaps while this is recorded
            _end(logger, error)
        raise
    logger.finish("FINISHED")


def _end(logger: RunLogger, error: BaseException) -> None:
    if isinstance(error, Pruned):
        logger.set_tags({PRUNED: str(error)})
        logger.finish("KILLED")
        return
    status = "FAILED" if isinstance(error, Exception) else "KILLED"
    try:
        logger.log_text("".join(traceback.format_exception(error)), TRACEBACK)
    except (UserError, OSError):
        say("The traceback could not be recorded.")
    try:
        logger.finish(status)
    except (UserError, OSError):
        say(f"The MLflow run {logger.run_id} could not be marked as {status}.")


@contextmanager
def record_early_failure(config: Config) -> Iterator[None]:
    """Leave a failed MLflow run of a sweep's run that fails before it has an identity or its inputs."""
    try:
        yield
    except Exception:
        if config.sweep.name is not None:
            try:
                _record_early_failure(config, traceback.format_exc())
            except Exception as error:  # what the run failed of matters more
                say(f"The failure could not be recorded ({error}).")
        raise


def _record_early_failure(config: Config, trace: str) -> None:
    digest = digest_of(settings(config))
    failed = find_run(config.tracking, UNSTARTED, digest)
    logger = _open(config, None if failed is None else failed.info.run_id, {UNSTARTED: digest})
    logger.log_params(_params(config))
    logger.log_text(trace, TRACEBACK)
    logger.finish("FAILED")


@TIMES.part("records")
def start_or_resume_run(inputs: RunInputs, run_dir: RunDir, given: Config) -> RunLogger:
    """Return where a run is recorded: the MLflow run that an earlier attempt left unfinished, or a new one.

    A run of a sweep is linked to the sweep's own MLflow run, and named by what tells it from the others.

    Args:
        inputs: of the run.
        run_dir: its folder.
        given: its configuration before the model has decided what that leaves open, by which `record_early_failure`
            knows it.
    """
    config, identity = inputs.config, run_dir.path.name
    if run_dir.state:
        say(f"Resuming run {identity} in {run_dir.path}, which did not finish")
    resume = run_dir.state.get("run_id")
    if run_dir.state and resume is None:  # killed when MLflow had just created it
        started = find_run(config.tracking, "identity", identity, "RUNNING")
        resume = None if started is None else started.info.run_id
    if resume is None and config.sweep.name is not None:
        failed = find_run(config.tracking, UNSTARTED, digest_of(settings(given)), "FAILED")
        resume = None if failed is None else failed.info.run_id
    _drop_plots(run_dir.path)
    run_dir.save_state(identity=identity)
    tags = {"identity": identity, UNSTARTED: ""}
    logger = _open(config, resume, tags if resume is None else tags | {PRUNED: ""})
    run_dir.save_state(run_id=logger.run_id)
    return logger


@processes.main_process_writes
def _drop_plots(folder: Path) -> None:
    """Remove the plots of an earlier attempt, which would be taken for this one's."""
    for name in PLOTS:
        (folder / name).unlink(missing_ok=True)


def _open(config: Config, resume: str | None, tags: dict[str, str]) -> RunLogger:
    name, tracking = config.sweep.name, config.tracking
    if name is None:  # in a sweep `tracking.run_name` is that of the sweep
        name = tracking.run_name or config.title
    if config.sweep.parent is not None:
        tags |= {PARENT: config.sweep.parent}
    if config.sweep.trial is not None:
        tags |= {"search.trial": str(config.sweep.trial)}
    return open_run_logger(tracking, name, resume, tags, tracking.system_metrics)


def _params(config: Config) -> dict[str, str]:
    kinds = {"task": task_name(config.task), "peft": method_name(config.peft)}
    params = {key: value for key, value in flatten(without_secrets(config)).items() if not key.startswith("sweep.")}
    params |= {"model.name": config.model.title, "data.name": config.data.title}
    return {**kinds, **params}  # the sweep is the parent, and names the run: as parameters they would always differ


def without_secrets(config: Config) -> Config:
    """Return the configuration as it may be recorded."""
    return replace(config, tracking=replace(config.tracking, uri=mask_uri(config.tracking.uri or "") or None))


@TIMES.part("records")
@processes.main_process_only
def record_inputs(logger: RunLogger, inputs: RunInputs, folder: Path) -> None:
    """Record configuration, command, code, libraries, machine and data."""
    config = inputs.config
    (folder / CONFIG).write_text(OmegaConf.to_yaml(OmegaConf.structured(without_secrets(config))))
    logger.log_files(folder / CONFIG)
    derived = {"device": inputs.device.type, "precision": inputs.precision.name}
    weights = class_weights(config.data, inputs.examples) or []
    names = safe_names(inputs.examples.labels).values()
    derived |= {f"class_weight.{name}": str(weight) for name, weight in zip(names, weights, strict=False)}
    logger.log_params({**_params(config), **derived})
    if inputs.prompt.answers:
        logger.log_text(
            inputs.prompt.template + inputs.tokenizer.decode(inputs.prompt.answer_prefix_ids),
            "prompt.txt",
        )
    environment = {"libraries": library_versions(), "machine": describe(inputs.device)}
    logger.log_text(json.dumps(environment, indent=2), "environment.json")
    tags = {"command": command(), "mlflow.source.name": "sentexp", "processes": str(processes.world_size())}
    tags |= {f"version.{name}": version for name, version in environment["libraries"].items()}
    tags |= {f"machine.{name}": value for name, value in environment["machine"].items()}
    if isinstance(config.task, CausalLM) and isinstance(config.peft, Untuned):
        tags["baseline.identity"] = untuned_identity(inputs)
    logger.set_tags(tags | git_state())
    record_data(logger, inputs, folder)


def record_data(logger: RunLogger, inputs: RunInputs, folder: Path) -> None:
    """Record which data were used, and the findings of their audit."""
    data, audit = inputs.config.data, inputs.data_audit
    counts = json.dumps({"rows": audit.labels, "of": audit.available, "left_out": audit.left_out})
    source = json.dumps({"path": data.path, "package": data.distribution()})
    logger.log_dataset(data.title, inputs.digest, source, counts)
    (folder / AUDIT).write_text(json.dumps(audit.to_dict(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    logger.log_files(folder / AUDIT)


def record_summary(logger: RunLogger, summary: TestSummary, step: int) -> None:
    """Record the summary of a test, whose own metrics the trainer has logged."""
    logger.set_tags(summary.answers)
    logger.log_metrics(summary.metrics, step)


@processes.main_process_writes
def save_predictions(
    inputs: RunInputs,
    validation: Tensor | None,
    test: Evaluation | Tensor,
    folder: Path,
    thresholds: list[float] | None = None,
) -> None:
    """Write the predictions for every row of the validation and the test split.

    Args:
        inputs: of the run.
        validation: logits, shape (rows, classes); None for what was tested only.
        test: the same, or all outputs of a language model.
        folder: of the run.
        thresholds: from which each label holds, where a text has any number of them.
    """
    examples, extras = inputs.examples, {}
    if isinstance(test, Evaluation) and test.outside is not None and test.irregular is not None:
        extras = {"off_label_mass": test.outside.float().numpy(), "irregular": test.irregular.bool().numpy()}
    logits = test.logits if isinstance(test, Evaluation) else test
    for split, scores, more in (("validation", validation, {}), ("test", logits, extras)):
        if scores is not None:
            answers, file = said(examples.kind, scores), folder / file_name(split)
            write_predictions(examples.split(split), examples.labels, answers, file, more, thresholds)


@TIMES.part("records")
@processes.main_process_only
def record_result(logger: RunLogger, result: Result, config: Config, started: float) -> Result:
    """Write the result of a training down, and return it with the time that the run took.

    Args:
        logger: of the run.
        result: of the run; its `seconds` are those of the training before this process resumed it.
        config: of the run.
        started: when this process began, on the monotonic clock.
    """
    result.metrics["seconds"] += time.monotonic() - started
    result.save()
    costs = {name: value for name, value in result.metrics.items() if not name.startswith(LOGGED_BEFORE)}
    logger.log_metrics(costs, int(result.metrics["train/steps"]))
    logger.log_files(result.folder / RESULT)
    for part in (result.weights, result.folder / PREDICTIONS):
        logger.log_files(part, part.name)
    for name in plots_of(result.kind) if config.plots and plot_result(result) else ():
        logger.log_files(result.folder / name)
    return result


@processes.main_process_only
def record_new_baselines(result: Result, compared: Mapping[str, float], config: Config) -> None:
    """Add baselines, and metrics beside them, to the record of a finished run."""
    result.save()
    logger = open_run_logger(config.tracking, "", result.run_id)
    with track_run(logger):
        logger.log_metrics(compared, int(result.metrics["train/steps"]))
        logger.log_files(result.folder / RESULT)
