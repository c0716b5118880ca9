"""What a result is compared with: the untuned base, a linear probe, TF-IDF, the majority class.

Each is an MLflow run of its own, found again by the identity of what it depends on, so that it is computed once.
"""

import json
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from sentexp.config import PriorCorrection, TargetKind, TrackingBackend, TrackingConfig, flatten
from sentexp.data.batch import target_tensor
from sentexp.data.splits import NAMES
from sentexp.data.text_hash import Numbers
from sentexp.distributed.processes import main_process_only, main_process_writes
from sentexp.metrics.slice_metrics import slice_scores
from sentexp.models.fast.fusion_context import unfused
from sentexp.run.baseline_identity import WORD, baseline_identities
from sentexp.run.baseline_models import majority, most_frequent_set, regression
from sentexp.run.build import build_data, build_module, run_target
from sentexp.run.inputs import RunInputs, with_shots
from sentexp.run.recording import save_predictions, track_run
from sentexp.run.result import Baseline
from sentexp.run.summary import count_answers
from sentexp.system.atomic_write import write_atomic
from sentexp.system.console import say
from sentexp.system.json_files import read_json
from sentexp.system.stopwatch import TIMES
from sentexp.tracking.predictions import FOLDER as PREDICTIONS
from sentexp.tracking.provenance import command, git_state
from sentexp.tracking.run_dir import RunDir
from sentexp.tracking.run_logger import RunLogger, open_run_logger
from sentexp.tracking.store import find_run
from sentexp.training.batch_plan import BatchPlan
from sentexp.training.trainer import build_trainer, evaluate, predict

RESULT = "baseline.json"
PROBE_ROWS = 10_000
PROBE_STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
TFIDF_STRENGTHS = (0.3, 1.0, 3.0, 10.0, 30.0)


@TIMES.part("baselines")
def measure_baselines(inputs: RunInputs, model: nn.Module, batches: BatchPlan | None = None) -> dict[str, Baseline]:
    """Return what a run of these inputs is compared with, by name; what is recorded already is not computed again.

    For `causal_lm` that is the untuned base, with `task.shots` examples; for `seq_cls` a linear probe on its features;
    for both TF-IDF with a logistic regression, and the majority class.

    Args:
        inputs: of the run.
        model: before any training.
        batches: that fit into memory; None are those of the configuration.
    """
    base = with_shots(inputs)
    compute: dict[str, Callable[[RunLogger, Path], dict[str, float]]] = {
        "majority": lambda _, folder: _score(inputs, majority(inputs), folder, _constant(inputs)),
        "tfidf": lambda _, folder: _score(inputs, _tfidf(inputs), folder),
        "linear_probe": lambda _, folder: _score(inputs, _probe(inputs, model, batches), folder),
        "untuned": lambda logger, folder: _untuned(base, model, batches, logger, folder),
    }
    with unfused():  # another run may wait for the folder
        return {
            name: _measure_once(inputs, name, title, identity, compute[name])
            for name, (title, identity) in baseline_identities(inputs, base).items()
        }


def missing_baselines(inputs: RunInputs) -> dict[str, str]:
    """Return the baselines of a run that are not recorded yet: their identities by name."""
    missing = {}
    for name, (_, identity) in baseline_identities(inputs, with_shots(inputs)).items():
        if _recorded(inputs.config.tracking, identity, _folder(inputs, identity) / RESULT) is None:
            missing[name] = identity
    return missing


def _measure_once(
    inputs: RunInputs, name: str, title: str, identity: str, compute: Callable[[RunLogger, Path], dict[str, float]]
) -> Baseline:
    """Return a baseline that is recorded already, or compute it and record it.

    One process computes it, others wait for it. What a kill has left is computed again in the same MLflow run.
    """
    config = inputs.config
    with RunDir(_folder(inputs, identity), wait=True) as run_dir:
        recorded = _recorded(config.tracking, identity, run_dir.path / RESULT)
        if recorded is not None:
            return Baseline(title=title, metrics=recorded[1], run_id=recorded[0])
        say(f"Baseline: {title}")
        model = f"{config.model.title}-" if name in ("untuned", "linear_probe") else ""
        run_name, resume = f"{model}{name}-{config.data.title}", run_dir.state.get("run_id")
        logger = open_run_logger(config.tracking, run_name, resume, system_metrics=config.tracking.system_metrics)
        with track_run(logger):
            run_dir.save_state(run_id=logger.run_id)
            logger.set_tags({"baseline.identity": identity, "baseline": name, "command": command(), **git_state()})
            settings = flatten(config.model, "model.") | flatten(config.data, "data.")
            titles = {"model.name": config.model.title, "data.name": config.data.title}
            logger.log_params({"baseline": name, **settings, **titles})
            if name == "untuned":
                logger.log_params(flatten(config.task, "task."))
            metrics = compute(logger, run_dir.path)
            logger.log_metrics(metrics)
            logger.log_files(run_dir.path / PREDICTIONS, PREDICTIONS)
            _write(run_dir.path / RESULT, metrics)
        run_dir.clear_state()
    return Baseline(title=title, metrics=metrics, run_id=logger.run_id)


def _folder(inputs: RunInputs, identity: str) -> Path:
    return Path(inputs.config.output_dir) / f"baseline-{identity}"


@main_process_only
def _recorded(tracking: TrackingConfig, identity: str, file: Path) -> tuple[str | None, dict[str, float]] | None:
    """Return MLflow's run id and the test metrics of a baseline; without MLflow, those that the folder holds."""
    if tracking.backend is TrackingBackend.none:
        return (None, read_json(file)) if file.is_file() else None
    run = find_run(tracking, "baseline.identity", identity, "FINISHED")
    if run is None:
        return None
    return run.info.run_id, {name: value for name, value in run.data.metrics.items() if name.startswith("test/")}


@main_process_writes
def _write(file: Path, metrics: dict[str, float]) -> None:
    write_atomic(file, json.dumps(metrics, indent=2) + "\n")


def _untuned(
    base: RunInputs, model: nn.Module, batches: BatchPlan | None, logger: RunLogger, folder: Path
) -> dict[str, float]:
    """Test the language model as it is: its adapter, which has learned nothing yet, is switched off."""
    module, data = build_module(base, model), build_data(base, batches)
    trainer = build_trainer(base.config.trainer, base.precision, base.device, RunLogger())
    with _without_adapter(model):
        if module.correction is PriorCorrection.batch:
            evaluate(trainer, module, data, "validation")
        metrics = evaluate(trainer, module, data, "test")
    save_predictions(base, None, module.test, folder)
    counts = count_answers(base, module.test)
    logger.set_tags(counts.tags)
    return metrics | counts.metrics | slice_scores(base.examples, module.test.logits, module.target)


@contextmanager
def _without_adapter(model: nn.Module) -> Iterator[None]:
    """Switch the adapter off. Biases of the backbone that will train have not moved yet, so PEFT need not warn."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Careful, disabling adapter layers")
        with model.disable_adapter() if hasattr(model, "disable_adapter") else nullcontext():  # type: ignore[operator]
            yield


def _constant(inputs: RunInputs) -> list[float] | None:
    """Return thresholds under which all texts have the same labels, where they have any number of them."""
    examples = inputs.examples
    return most_frequent_set(examples.targets("train")) if examples.kind is TargetKind.label_sets else None


def _score(
    inputs: RunInputs, logits: dict[str, Tensor], folder: Path, thresholds: list[float] | None = None
) -> dict[str, float]:
    """Return the test metrics of logits of the test rows, and save the predictions.

    Args:
        inputs: of the run.
        logits: of the test rows, and of the validation rows, which choose thresholds where there are any.
        folder: of the baseline.
        thresholds: of the labels, where validation rows are not to choose them.
    """
    examples, target = inputs.examples, run_target(inputs)
    targets = {split: target_tensor(examples.targets(split)) for split in logits}
    if thresholds is None:
        target.choose(logits["validation"], targets["validation"])
    else:
        target.thresholds = thresholds
    save_predictions(inputs, None, logits["test"], folder, target.thresholds)
    metrics = target.measure(logits["test"], targets["test"], per_class=True)
    return {f"test/{name}": value for name, value in metrics.items()} | slice_scores(examples, logits["test"], target)


@main_process_only
def _tfidf(inputs: RunInputs) -> dict[str, Tensor]:
    """Return what words and pairs of words, weighted by TF-IDF, say of validation and test rows."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    texts = {split: inputs.examples.split(split).column("text").to_pylist() for split in NAMES}
    vectorizer = TfidfVectorizer(token_pattern=WORD, ngram_range=(1, 2), sublinear_tf=True, dtype=np.float32)
    features: dict[str, Any] = {"train": vectorizer.fit_transform(texts["train"])}
    features |= {split: vectorizer.transform(texts[split]) for split in NAMES[1:]}
    targets = {split: inputs.examples.targets(split) for split in NAMES}
    return regression(features, targets, TFIDF_STRENGTHS, len(inputs.examples.labels))


def _probe(inputs: RunInputs, model: nn.Module, batches: BatchPlan | None) -> dict[str, Tensor]:
    """Return what the frozen backbone's features of the last token say of validation and test rows."""
    module, data = build_module(inputs, model), build_data(inputs, batches)
    trainer = build_trainer(inputs.config.trainer, inputs.precision, inputs.device, RunLogger())
    features: dict[str, Any] = {}
    targets: dict[str, Numbers] = {}
    with _without_adapter(model):
        for split in NAMES:
            rows, values = predict(trainer, module, data.by_length(split, PROBE_ROWS if split == "train" else None))
            features[split], targets[split] = values.numpy(), inputs.examples.targets(split)[rows.numpy()]
    return _fit_probe(features, targets, len(inputs.examples.labels))


@main_process_only
def _fit_probe(features: dict[str, Any], targets: dict[str, Numbers], classes: int) -> dict[str, Tensor]:
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(features["train"])
    scaled = {split: scaler.transform(values) for split, values in features.items()}
    return regression(scaled, targets, PROBE_STRENGTHS, classes)
