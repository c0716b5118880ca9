"""What the tests of sweeps share: the command line in this process, runs that end at once, and which ones were done."""

import json

import pytest
import torch

from sentexp.metrics.split_metrics import confusion_matrix, split_metrics
from sentexp.models.adapters import ParameterAudit
from sentexp.run import fitting, train
from sentexp.run.metric_sinks import MetricSinks
from sentexp.run.recording import save_predictions
from sentexp.run.result import Result
from sentexp.tracking import provenance


@pytest.fixture
def quick(reviews, store):
    return [
        "model=tiny", "data=sst2", f"data.path={reviews}", "data.splits.validation=validation",
        "data.splits.test=test", "trainer.progress_bar=false", "trainer.batch_size=8", "trainer.precision=fp32",
        "tracking.system_metrics=false", "task.template='{text}'", "baseline=false", f"tracking.uri={store}",
    ]  # fmt: skip


@pytest.fixture
def sentexp(quick, command_line):
    """Return the command line for quick runs: their words, but for keys that are given, are added to these."""

    def command(*words):
        given = {word.partition("=")[0] for word in words}
        return command_line(*words, *(word for word in quick if word.partition("=")[0] not in given))

    return command


@pytest.fixture
def trains():
    """Let the runs of a test train in a file whose runs are `scripted`."""


@pytest.fixture
def scripted(request, monkeypatch):
    """Let runs end at once, with numbers that follow from their identity: these tests look at what is around a run.

    All that reads a finished run finds what it would of a real one: metrics by step, predictions of every row, a folder
    of weights, `result.json`, the MLflow run. `fitting.build_model` is called where a run would begin to build its
    model, and does nothing: a test replaces it to let runs fail.
    """
    if "trains" in request.fixturenames:
        return
    monkeypatch.setattr(fitting, "build_model", lambda inputs: None)
    monkeypatch.setattr(train, "fit_and_test", _end_at_once)
    monkeypatch.setattr(train, "write_weights_card", lambda *_: None)  # there are no weights
    monkeypatch.setattr(train, "release_memory", lambda: None)
    monkeypatch.setattr(provenance, "_git", lambda *_: None)


def _end_at_once(inputs, logger, run_dir, policy, batches):
    assert policy is None, "a search that prunes looks at evaluations, which only a run that trains has"
    fitting.build_model(inputs)
    config, examples, identity = inputs.config, inputs.examples, run_dir.path.name
    generator = torch.Generator().manual_seed(int(identity, 16) % 2**32)
    targets = {split: torch.tensor(examples.targets(split)).long() for split in ("validation", "test")}
    logits = {split: torch.randn(len(own), 2, generator=generator) for split, own in targets.items()}
    said = {split: split_metrics(examples.labels, logits[split], targets[split]) for split in targets}
    steps = 4
    with MetricSinks(logger, run_dir) as sinks:
        sinks.log_metrics({"train/loss": 0.7}, 1)
        for split, metrics in said.items():
            sinks.log_metrics({f"{split}/{name}": value for name, value in metrics.items()}, steps)
    save_predictions(inputs, logits["validation"], logits["test"], run_dir.path)
    weights = run_dir.path / "adapter"
    weights.mkdir(exist_ok=True)
    (weights / "sentexp.json").write_text(json.dumps({"identity": identity, "run_id": logger.run_id}))
    parameters = ParameterAudit(
        trainable={"adapter": 1000 * getattr(config.peft, "r", 1)}, frozen={"embeddings": 10_000}, targets=["q_proj"]
    )
    metrics = {f"test/{name}": value for name, value in said["test"].items()}
    metrics |= {f"best/{name}": value for name, value in said["validation"].items()}
    metrics |= {"best/step": steps, "train/steps": steps, "seconds": 0.0, "train/seconds": 0.01, "temperature": 1.0}
    metrics |= {"parameters/trainable": parameters.trainable_total, "parameters/total": parameters.total}
    metrics |= {"peak_memory_gib": 0.1, "saved_mib": 0.1}
    return Result(
        run_id=logger.run_id,
        identity=identity,
        folder=run_dir.path,
        weights=weights,
        metrics=metrics,
        labels=examples.labels,
        confusion=confusion_matrix(examples.labels, logits["test"], targets["test"]),
        parameters=parameters,
        objective=metrics[config.trainer.monitor.replace("validation/", "best/")],
        baselines={},
        shots=0,
        answers={},
        reliability={"as it is": [(0.6, 0.5, 8)]},
    )


@pytest.fixture
def trained(monkeypatch):
    """Return the list of runs that were really done, and not skipped, by the name that the sweep gave them."""
    names = []
    original = train.fit_and_test

    def attempt(inputs, *rest):
        names.append(inputs.config.sweep.name)
        return original(inputs, *rest)

    monkeypatch.setattr(train, "fit_and_test", attempt)
    return names
