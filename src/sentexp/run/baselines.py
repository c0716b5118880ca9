"""What a result is compared with: the untuned base, a linear probe, TF-IDF, the majority class.

Each is an MLflow run of its own, found again by the identity of what it depends on, so that it is computed once.
"""

import json
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sentexp.config import (
    CausalLM,
    FullFineTuning,
    Precision,
    PriorCorrection,
    Quantization,
    TrackingBackend,
    TrackingConfig,
    Untuned,
    flatten,
)
from sentexp.data.splits import NAMES, Numbers, split_digest
from sentexp.distributed.processes import led
from sentexp.metrics.split_metrics import slice_scores, split_metrics
from sentexp.models.fast.multi_run import apart
from sentexp.run.build import build_data, build_module
from sentexp.run.inputs import Materials, with_shots
from sentexp.run.recording import count_answers, keep_predictions, recorded
from sentexp.system.console import say
from sentexp.tracking.identity import digest_of
from sentexp.tracking.predictions import FOLDER as PREDICTIONS
from sentexp.tracking.provenance import command, git_state
from sentexp.tracking.run_dir import RunFolder
from sentexp.tracking.store import Record, find_run, open_record
from sentexp.training.trainer import build_trainer, evaluate, predict

RESULT = "baseline.json"
PROBE_ROWS = 10_000
PROBE_STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
TFIDF_STRENGTHS = (0.3, 1.0, 3.0, 10.0, 30.0)
WORD = r"(?u)[\u3040-\u30ff\u3400-\u9fff]|\w+"  # Chinese and Japanese are written without blanks: a word is a letter


@dataclass(kw_only=True, slots=True)
class Baseline:
    """A result to compare with: its name for people, its test metrics, the MLflow run that holds it."""

    title: str
    metrics: dict[str, float]
    run_id: str | None


def measure_baselines(materials: Materials, model: nn.Module) -> dict[str, Baseline]:
    """Return what a run of these materials is compared with, by name; what is recorded already is not computed again.

    For `causal_lm` that is the untuned base, with `task.shots` examples; for `seq_cls` a linear probe on its features;
    for both TF-IDF with a logistic regression, and the majority class.

    Args:
        materials: of the run.
        model: before any training.
    """
    base = with_shots(materials)
    compute: dict[str, Callable[[Record, Path], dict[str, float]]] = {
        "majority": lambda _, folder: _scored(materials, _majority(materials), folder),
        "tfidf": lambda _, folder: led(lambda: _scored(materials, _tfidf(materials), folder)),
        "linear_probe": lambda _, folder: _scored(materials, _probe(materials, model), folder),
        "untuned": lambda record, folder: _untuned(base, model, record, folder),
    }
    with apart():  # another run may wait for the folder
        return {kind: _kept(materials, kind, *rest, compute[kind]) for kind, rest in _kinds(materials, base).items()}


def missing_baselines(materials: Materials) -> dict[str, str]:
    """Return the baselines of a run that are not recorded yet: their identities by kind."""
    config = materials.config
    found = {}
    for kind, (_, identity) in _kinds(materials, with_shots(materials)).items():
        file = _folder(materials, identity) / RESULT
        if _recorded(replace(config.tracking, run_name=None), identity, file) is None:
            found[kind] = identity
    return found


def _kinds(materials: Materials, base: Materials) -> dict[str, tuple[str, str]]:
    """Return titles and identities of the baselines of a run, whose untuned base reads the prompts of `base`."""
    parts: dict[str, tuple[str, list[Any]]] = {
        "majority": ("majority class", []),
        "tfidf": ("TF-IDF + logistic regression", [WORD]),
    }
    if not isinstance(materials.config.task, CausalLM):
        parts["linear_probe"] = ("linear probe", _model_parts(materials))
    elif not isinstance(materials.config.peft, Untuned):
        shots = f" ({materials.config.task.shots} shots)" if base is not materials else ""
        parts["untuned"] = (f"untuned base{shots}", _untuned_parts(base))
    whole = {kind: [] if kind == "untuned" else [materials.digest] for kind in parts}  # the others learn from train
    return {kind: (title, digest_of(kind, own, whole[kind])) for kind, (title, own) in parts.items()}


def untuned_identity(base: Materials) -> str:
    """Return the identity of an untuned language model's result: a run of `peft=none` is one, too."""
    return digest_of("untuned", _untuned_parts(base), [])


def _untuned_parts(base: Materials) -> list[Any]:
    """Return what the result of an untuned language model depends on: model, prompt, scoring and test rows."""
    task = base.config.task
    assert isinstance(task, CausalLM)
    scoring = [task.length_normalization, task.calibration.name, task.generate]
    prior = split_digest(base.examples.validation) if task.calibration is PriorCorrection.batch else ""
    slices = base.examples.test.column_names
    return [*_model_parts(base), scoring, prior, slices, split_digest(base.examples.test)]


def _model_parts(materials: Materials) -> list[Any]:
    """Return what the features of the frozen backbone depend on."""
    config = materials.config
    stored: list[Any] = [Precision.fp32.name if isinstance(config.peft, FullFineTuning) else materials.precision.name]
    if config.peft.quantization is not Quantization.none:
        stored += [config.peft.quantization.name, config.peft.double_quant, config.peft.compute_dtype.name]
    prompt, limit = asdict(materials.prompt), materials.tokens["test"].limit
    return [materials.backbone.revision, stored, materials.precision.name, prompt, limit]


def _kept(
    materials: Materials, kind: str, title: str, identity: str, compute: Callable[[Record, Path], dict[str, float]]
) -> Baseline:
    """Return a baseline that is recorded already, or compute it and record it.

    One process computes it, others wait for it. What a kill has left is computed again in the same MLflow run.
    """
    config = materials.config
    tracking = replace(config.tracking, run_name=None)
    with RunFolder(_folder(materials, identity), wait=True) as folder:
        kept = led(lambda: _recorded(tracking, identity, folder.path / RESULT))
        if kept is not None:
            return Baseline(title=title, metrics=kept[1], run_id=kept[0])
        say(f"Baseline: {title}")
        model = f"{config.model.name}-" if kind in ("untuned", "linear_probe") else ""
        record = open_record(tracking, f"{model}{kind}-{config.data.name}", folder.state.get("run_id"))
        with recorded(record):
            folder.remember(run_id=record.run_id)
            record.set_tags({"baseline.identity": identity, "baseline": kind, "command": command(), **git_state()})
            record.log_params({"baseline": kind, **flatten(config.model, "model."), **flatten(config.data, "data.")})
            if kind == "untuned":
                record.log_params(flatten(config.task, "task."))
            metrics = compute(record, folder.path)
            record.log_metrics(metrics)
            record.log_files(folder.path / PREDICTIONS, PREDICTIONS)
            written = json.dumps(metrics, indent=2) + "\n"
            led(lambda: (folder.path / RESULT).write_text(written))
        folder.forget()
    return Baseline(title=title, metrics=metrics, run_id=record.run_id)


def _folder(materials: Materials, identity: str) -> Path:
    return Path(materials.config.output_dir) / f"baseline-{identity}"


def _recorded(tracking: TrackingConfig, identity: str, file: Path) -> tuple[str | None, dict[str, float]] | None:
    """Return MLflow's run id and the test metrics of a baseline; without MLflow, those that the folder holds."""
    if tracking.backend is TrackingBackend.none:
        return (None, json.loads(file.read_text())) if file.is_file() else None
    found = find_run(tracking, "baseline.identity", identity, "FINISHED")
    if found is None:
        return None
    return found.info.run_id, {key: value for key, value in found.data.metrics.items() if key.startswith("test/")}


def _untuned(base: Materials, model: nn.Module, record: Record, folder: Path) -> dict[str, float]:
    """Test the language model as it is: its adapter, which has learned nothing yet, is switched off."""
    module, data = build_module(base, model), build_data(base)
    trainer = build_trainer(base.config.trainer, base.precision, base.device, Record())
    with _without_adapter(model):
        if module.correction is PriorCorrection.batch:
            evaluate(trainer, module, data, "validation")
        metrics = evaluate(trainer, module, data, "test")
    keep_predictions(base, None, module.test, folder)
    counted = count_answers(base, module.test)
    record.set_tags(counted.tags)
    return metrics | counted.metrics | slice_scores(base.examples, module.test.logits)


@contextmanager
def _without_adapter(model: nn.Module) -> Iterator[None]:
    """Switch the adapter off. Biases of the backbone that will train have not moved yet, so PEFT need not warn."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Careful, disabling adapter layers")
        with model.disable_adapter() if hasattr(model, "disable_adapter") else nullcontext():  # type: ignore[operator]
            yield


def _scored(materials: Materials, logits: Tensor, folder: Path) -> dict[str, float]:
    """Return the test metrics of logits of the test rows, and keep what they say of each."""
    examples = materials.examples
    keep_predictions(materials, None, logits, folder)
    metrics = split_metrics(examples.labels, logits, torch.tensor(examples.targets("test")).long(), per_class=True)
    return {f"test/{name}": value for name, value in metrics.items()} | slice_scores(examples, logits)


def _majority(materials: Materials) -> Tensor:
    """Return the log-frequency of the classes in train, for every test row."""
    examples = materials.examples
    counts = np.bincount(examples.targets("train"), minlength=len(examples.labels))
    return torch.from_numpy(counts / counts.sum()).float().clamp(min=1e-6).log().repeat(examples.test.num_rows, 1)


def _tfidf(materials: Materials) -> Tensor:
    """Return log-probabilities of the test rows from words and pairs of words, weighted by TF-IDF."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    texts = {split: materials.examples.split(split).column("text").to_pylist() for split in NAMES}
    vectorizer = TfidfVectorizer(token_pattern=WORD, ngram_range=(1, 2), sublinear_tf=True, dtype=np.float32)
    features: dict[str, Any] = {"train": vectorizer.fit_transform(texts["train"])}
    features |= {split: vectorizer.transform(texts[split]) for split in NAMES[1:]}
    targets = {split: materials.examples.targets(split) for split in NAMES}
    return _regression(features, targets, TFIDF_STRENGTHS, len(materials.examples.labels))


def _probe(materials: Materials, model: nn.Module) -> Tensor:
    """Return log-probabilities of the test rows from the frozen backbone's features of the last token."""
    from sklearn.preprocessing import StandardScaler

    module, data = build_module(materials, model), build_data(materials)
    trainer = build_trainer(materials.config.trainer, materials.precision, materials.device, Record())
    features: dict[str, Any] = {}
    targets: dict[str, Numbers] = {}
    with _without_adapter(model):
        for split in NAMES:
            rows, values = predict(trainer, module, data.by_length(split, PROBE_ROWS if split == "train" else None))
            features[split], targets[split] = values.numpy(), materials.examples.targets(split)[rows.numpy()]

    def regress() -> Tensor:
        scaler = StandardScaler().fit(features["train"])
        scaled = {split: scaler.transform(values) for split, values in features.items()}
        return _regression(scaled, targets, PROBE_STRENGTHS, len(materials.examples.labels))

    return led(regress)


def _regression(
    features: dict[str, Any], targets: dict[str, Numbers], strengths: tuple[float, ...], classes: int
) -> Tensor:
    """Return log-probabilities, shape (test rows, classes), of a logistic regression fitted on train.

    Its strength, the inverse of the penalty, is the one with the least loss on validation.
    """
    from sklearn.linear_model import LogisticRegression

    def score(fitted: Any, split: str) -> Tensor:
        probabilities = torch.full((features[split].shape[0], classes), 1e-9)  # a class that train lacks
        probabilities[:, fitted.classes_.tolist()] = torch.from_numpy(fitted.predict_proba(features[split])).float()
        return probabilities.clamp(min=1e-9).log()

    def loss(fitted: Any) -> float:
        return float(nn.functional.nll_loss(score(fitted, "validation"), torch.tensor(targets["validation"]).long()))

    fits = [LogisticRegression(C=c, max_iter=1000).fit(features["train"], targets["train"]) for c in strengths]
    return score(min(fits, key=loss), "test")
