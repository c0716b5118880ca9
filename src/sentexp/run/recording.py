"""What is written down of a run and of an audit: provenance, pictures, metrics, and how it ended."""

import json
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from omegaconf import OmegaConf
from torch import Tensor

from sentexp.config import Config, flatten, method_name, task_name
from sentexp.data.class_balance import class_weights
from sentexp.distributed import processes
from sentexp.errors import UserError
from sentexp.metrics.generated_answers import irregular_tokens, read_answers
from sentexp.plots.run import draw_confusion_matrix, draw_data, draw_learning_curve, draw_reliability
from sentexp.run.inputs import Materials
from sentexp.system.console import say
from sentexp.system.hardware import describe
from sentexp.tracking.identity import digest_of, settings
from sentexp.tracking.predictions import file_name, write_predictions
from sentexp.tracking.provenance import command, git_state, library_versions, mask_uri
from sentexp.tracking.run_dir import RunFolder
from sentexp.tracking.signals import undisturbed
from sentexp.tracking.store import PARENT, Record, find_run, open_record
from sentexp.training.module import Evaluation
from sentexp.training.pruning import Pruned

AUDIT = "data_audit.json"
DATA_PLOT, LEARNING_CURVE, CONFUSION_MATRIX, RELIABILITY = PLOTS = (
    "data_audit.png",
    "learning_curve.png",
    "confusion_matrix.png",
    "reliability.png",
)
"""The pictures of a run, in its folder."""
TRACEBACK = "traceback.txt"
PRUNED = "pruned"
"""The tag of a run that a search has stopped: why."""
UNSTARTED = "unstarted"
"""The tag of a run that failed before it had an identity: a digest of its configuration."""


class Sinks:
    """Sends metrics to the record and to the run's folder."""

    def __init__(self, record: Record, folder: RunFolder) -> None:
        self.record = record
        self.folder = folder

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Record metrics at an optimizer step."""
        self.record.log_metrics(metrics, step)
        self.folder.log_metrics(metrics, step)


@contextmanager
def recorded(record: Record) -> Iterator[None]:
    """End the record as FINISHED, FAILED or KILLED, with the traceback (law 7), or KILLED with why it was pruned."""
    try:
        yield
    except BaseException as error:
        with undisturbed():  # a launcher ends what is left of a run that fails, perhaps while this is written down
            _end(record, error)
        raise
    record.finish("FINISHED")


def _end(record: Record, error: BaseException) -> None:
    if isinstance(error, Pruned):
        record.set_tags({PRUNED: str(error)})
        record.finish("KILLED")
        return
    status = "FAILED" if isinstance(error, Exception) else "KILLED"
    try:
        record.log_text("".join(traceback.format_exception(error)), TRACEBACK)
    except (UserError, OSError):
        say("The traceback could not be recorded.")
    try:
        record.finish(status)
    except (UserError, OSError):
        say(f"The MLflow run {record.run_id} could not be marked as {status}.")


def open_run(config: Config, identity: str, folder: RunFolder) -> Record:
    """Return the record of a run: the one that an earlier attempt left unfinished, or a new one.

    A run of a sweep is linked to the sweep's own MLflow run, and named by what tells it from the others.
    """
    if folder.state:
        say(f"Going on with run {identity} in {folder.path}, which did not finish")
    resume = folder.state.get("run_id")
    tracking = config.tracking
    if folder.state and resume is None:  # killed when MLflow had just created it
        started = find_run(tracking, "identity", identity, "RUNNING")
        resume = None if started is None else started.info.run_id
    if resume is None and config.sweep.name is not None:
        failed = find_run(tracking, UNSTARTED, digest_of(settings(config)), "FAILED")
        resume = None if failed is None else failed.info.run_id
    elif processes.leads():  # those of an earlier attempt would be taken for this one's
        for name in PLOTS:
            (folder.path / name).unlink(missing_ok=True)
    folder.remember(identity=identity)
    tags = {"identity": identity, UNSTARTED: ""}
    record = _open(config, resume, tags if resume is None else tags | {PRUNED: ""})
    folder.remember(run_id=record.run_id)
    return record


@contextmanager
def left_in_a_sweep(config: Config) -> Iterator[None]:
    """Leave a failed MLflow run of a sweep's run that fails before it has an identity or what it is made of."""
    try:
        yield
    except Exception:
        if config.sweep.name is not None:
            try:
                _record_failure(config, traceback.format_exc())
            except Exception as error:  # what the run failed of matters more
                say(f"The failure could not be recorded ({error}).")
        raise


def _record_failure(config: Config, trace: str) -> None:
    digest = digest_of(settings(config))
    failed = find_run(config.tracking, UNSTARTED, digest)
    record = _open(config, None if failed is None else failed.info.run_id, {UNSTARTED: digest})
    record.log_params(_params(config))
    record.log_text(trace, TRACEBACK)
    record.finish("FAILED")


def _open(config: Config, resume: str | None, tags: dict[str, str]) -> Record:
    name, tracking = config.sweep.name, config.tracking
    if name is None:
        name = f"{config.model.name}-{method_name(config.peft)}-{config.data.name}-{task_name(config.task)}"
    else:
        tracking = replace(tracking, run_name=None)  # it is the sweep's
    if config.sweep.parent is not None:
        tags |= {PARENT: config.sweep.parent}
    if config.sweep.trial is not None:
        tags |= {"search.trial": str(config.sweep.trial)}
    return open_record(tracking, name, resume, tags)


def _params(config: Config) -> dict[str, str]:
    kinds = {"task": task_name(config.task), "peft": method_name(config.peft)}
    told = {key: value for key, value in flatten(without_secrets(config)).items() if not key.startswith("sweep.")}
    return {**kinds, **told}  # the sweep is the parent, and names the run: as parameters they would always differ


def record_provenance(record: Record, materials: Materials, folder: Path) -> None:
    """Record configuration, command, code, libraries, machine and data."""
    config = materials.config
    public = without_secrets(config)
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.structured(public)))
    record.log_files(folder / "config.yaml")
    derived = {"device": materials.device.type, "precision": materials.precision.name}
    weights = class_weights(config.data, materials.examples) or []
    derived |= {f"class_weight.{n}": str(w) for n, w in zip(materials.examples.labels, weights, strict=False)}
    record.log_params({**_params(config), **derived})
    processes_tag = {"processes": str(processes.count())}
    record.set_tags({"command": command(), "mlflow.source.name": "sentexp", **processes_tag, **git_state()})
    if materials.prompt.answers:
        shown = materials.prompt.frame("{text}") + materials.tokenizer.decode(materials.prompt.lead)
        record.log_text(shown, "prompt.txt")
    environment = {"libraries": library_versions(), "machine": describe(materials.device)}
    record.log_text(json.dumps(environment, indent=2), "environment.json")
    record.set_tags({f"version.{name}": version for name, version in environment["libraries"].items()})
    record.set_tags({f"machine.{name}": value for name, value in environment["machine"].items()})
    record_data(record, materials, folder)


@dataclass(kw_only=True, slots=True)
class AnswerCounts:
    """What a language model answered to the test rows: counts as tags, as people read them, and as metrics."""

    tags: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)


def count_answers(materials: Materials, test: Evaluation) -> AnswerCounts:
    """Return the irregular outputs by first token, and of the answers that were written, where there are any."""
    found = AnswerCounts()
    tokenizer = materials.tokenizer
    if test.first_token is not None and test.irregular is not None:
        found.tags["irregular_outputs"] = str(irregular_tokens(tokenizer, test.first_token, test.irregular))
    if test.generated is not None:
        read, irregular = read_answers(tokenizer, test.generated, materials.prompt.words, materials.prompt.lead)
        right = sum(label == target for label, target in zip(read, test.targets.tolist(), strict=True))
        found.tags["irregular_generations"] = str(irregular)
        found.metrics["test/irregular_generations"] = float(irregular.total())
        found.metrics["test/generated_accuracy"] = right / len(read)
    return found


def keep_predictions(materials: Materials, validation: Tensor | None, test: Evaluation | Tensor, folder: Path) -> None:
    """Write what was said about every row of the validation and the test split; the leading process does.

    Args:
        materials: of the run.
        validation: logits, shape (rows, classes); None for what was tested only.
        test: the same, or all that a language model said.
        folder: of the run.
    """
    if not processes.leads():
        return
    examples, extras = materials.examples, {}
    if isinstance(test, Evaluation) and test.outside is not None and test.irregular is not None:
        extras = {"off_label_mass": test.outside.float().numpy(), "irregular": test.irregular.bool().numpy()}
    logits = test.logits if isinstance(test, Evaluation) else test
    for split, scores, more in (("validation", validation, {}), ("test", logits, extras)):
        if scores is not None:
            probabilities = scores.float().softmax(-1).numpy()
            write_predictions(examples.split(split), examples.labels, probabilities, folder / file_name(split), more)


def record_data(record: Record, materials: Materials, folder: Path) -> None:
    """Record which data were used, and what their audit found."""
    data = materials.config.data
    found = materials.data_audit
    counts = json.dumps({"rows": found.labels, "of": found.available, "left_out": found.left_out})
    source = json.dumps({"path": data.path, "package": data.distribution()})
    record.log_dataset(data.name, materials.digest, source, counts)
    (folder / AUDIT).write_text(json.dumps(found.to_dict(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    record.log_files(folder / AUDIT)


def record_audit(record: Record, materials: Materials, folder: Path) -> None:
    """Record an audit that was asked for by itself: the configuration of its data, and the rows of each fault."""
    config = without_secrets(materials.config)
    record.log_params(flatten(config.data, "data.") | {"model.name": config.model.name})
    record.set_tags({"command": command(), "mlflow.source.name": "sentexp", **git_state()})
    record_data(record, materials, folder)
    plot_data(folder)
    record.log_files(folder / DATA_PLOT)
    found = materials.data_audit
    metrics = {f"{split}/rows": float(rows) for split, rows in found.rows.items()}
    for finding in found.findings:
        # MLflow takes no + or brackets in a name
        name = "".join(letter for letter in finding.name if letter.isalnum() or letter in " _-.")
        metrics |= {f"{split}/{name}": float(rows) for split, rows in finding.rows.items()}
    record.log_metrics(metrics)


def plot_data(folder: Path) -> None:
    """Draw the data of a run or an audit from what its folder holds of them."""
    found = json.loads((folder / AUDIT).read_text(encoding="utf-8"))
    draw_data(found["labels"], found["token_edges"], found["tokens"], found["max_length"], folder / DATA_PLOT)


def plot_run(
    folder: RunFolder,
    labels: Sequence[str],
    confusion: Sequence[Sequence[int]],
    curves: Mapping[str, Sequence[tuple[float, float, int]]],
) -> None:
    """Draw the `PLOTS` of a finished run into its folder.

    Args:
        folder: of the run; it holds the audit of the data and the metrics of every step.
        labels: names of the classes.
        confusion: test rows by true and by predicted class.
        curves: of the reliability on the test split, by name.
    """
    plot_data(folder.path)
    losses = folder.history("train/loss"), folder.history("validation/loss")
    draw_learning_curve(*losses, folder.history("validation/accuracy"), folder.path / LEARNING_CURVE)
    draw_confusion_matrix(confusion, labels, folder.path / CONFUSION_MATRIX)
    draw_reliability(curves, folder.path / RELIABILITY)


def without_secrets(config: Config) -> Config:
    """Return the configuration as it may be written down."""
    return replace(config, tracking=replace(config.tracking, uri=mask_uri(config.tracking.uri or "") or None))
