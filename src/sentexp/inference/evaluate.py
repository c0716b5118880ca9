"""`python -m sentexp evaluate`: a finished run on other data, recorded as a child of its MLflow run."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sentexp.compare.comparison import FEWEST_ROWS
from sentexp.config import EvaluateConfig, EvaluatedRows, TargetKind, TrackingBackend, flatten
from sentexp.data.batch import target_tensor
from sentexp.data.label_sets import as_column
from sentexp.data.splits import NAMES, Examples, load_examples
from sentexp.data.text_hash import split_digest
from sentexp.errors import require
from sentexp.inference.progress import Meter
from sentexp.inference.run_lookup import Finished, chosen_run
from sentexp.inference.scorer import Scorer
from sentexp.metrics.generated_answers import answer_metrics
from sentexp.metrics.slice_metrics import slice_scores
from sentexp.metrics.target import target_of
from sentexp.models.sequence_classifier import Scores
from sentexp.run import report
from sentexp.system.console import say
from sentexp.tracking.identity import digest_of
from sentexp.tracking.next_steps import place_words, say_next, say_recorded, sentexp_command
from sentexp.tracking.predictions import FOLDER as PREDICTIONS
from sentexp.tracking.predictions import file_name, write_predictions
from sentexp.tracking.provenance import command, git_state
from sentexp.tracking.queries import EVALUATION
from sentexp.tracking.run_logger import RunLogger, open_run_logger
from sentexp.tracking.store import PARENT, describe_store, find_run, open_store, read_artifact

if TYPE_CHECKING:
    import pyarrow as pa

RESULT_FILE = "evaluation.json"
IDENTITY = "evaluation.identity"
"""The tag that holds the digest of all that an evaluation depends on."""
COPIED = ("train/seconds", "parameters/trainable", "parameters/total", "temperature", "saved_mib", "peak_memory_gib")
"""Metrics of the run that are the evaluation's as well: what a comparison shows of its costs."""
PIECE = 4096
"""Rows that are tokenised at one time."""


@dataclass(kw_only=True, slots=True)
class Evaluated:
    """What was found: metrics by name as those of a run (`test/...`), and counts of true against predicted labels."""

    identity: str
    run_id: str | None
    metrics: dict[str, float]
    labels: list[str]
    confusion: list[list[int]]
    thresholds: list[float] | None = None


def evaluate(config: EvaluateConfig) -> Evaluated:
    """Measure a finished run on the rows of a data set, record it, and print it; what is recorded is not done again.

    Raises:
        UserError: anything in the configuration, the run or the data that the user can fix.
    """
    finished = chosen_run(config)
    _require_recordable(finished, config)
    pair = getattr(config.dataset, "text_pair", None)
    require(
        (pair is None) == (finished.trained.text_pair is None),
        f"data.text_pair={'null' if pair is None else pair}, and run {finished.trained.identity} reads "
        f"{'single texts: leave it out' if pair is not None else 'pairs: name the column of the second texts'}.",
    )
    needed = [] if config.split is EvaluatedRows.all else [config.split.name]
    kind = finished.trained.kind
    loaded = load_examples(config.dataset, whole=True, needed=needed, kind=kind)
    examples = chosen_rows(loaded, config.split)
    if kind is not TargetKind.scores:
        examples = as_labelled(examples, finished, config)
    require(examples.test.num_rows > 0, f"data={config.dataset.name} has no rows: give it some.")
    identity = _identify(finished, examples, config)
    folder = Path(config.output_dir) / f"{EVALUATION}-{identity}"
    evaluated = _recorded(config, identity, folder)
    if evaluated is not None:
        say(f"Evaluation {identity} is recorded: this is its result.")
    else:
        evaluated = _measure(finished, examples, config, identity, folder)
        evaluated = _record(evaluated, finished, config, folder)
    _show(evaluated, finished, config, folder, examples.test.num_rows)
    return evaluated


def _require_recordable(finished: Finished, config: EvaluateConfig) -> None:
    require(
        config.tracking.backend is TrackingBackend.none or finished.run is not None,
        f"evaluate records its result under the MLflow run of {finished.trained.identity}, which is not in "
        f"{describe_store(config.tracking)} (experiment {config.tracking.experiment}): name its store with "
        "tracking.uri=..., or use tracking=none.",
    )


def chosen_rows(examples: Examples, rows: EvaluatedRows) -> Examples:
    """Return examples whose test split are the rows that are evaluated; the others stay, so that duplicates are found.

    Args:
        examples: of the data set.
        rows: which of them.
    """
    import pyarrow as pa

    if rows is EvaluatedRows.test:
        return examples
    none = examples.train.slice(0, 0)
    if rows is EvaluatedRows.validation:
        return replace(examples, test=examples.validation, validation=none)
    parts = [examples.split(name) for name in NAMES]
    return replace(examples, train=none, validation=none, test=pa.concat_tables(parts))


def as_labelled(examples: Examples, finished: Finished, config: EvaluateConfig) -> Examples:
    """Return examples whose labels are the run's, by name, whatever their case and order.

    Raises:
        UserError: rows have a label that the run does not know.
    """
    import pyarrow as pa

    label_numbers = {label.casefold(): number for number, label in enumerate(finished.trained.labels)}
    places = [label_numbers.get(label.casefold(), -1) for label in examples.labels]
    targets = examples.targets("test")
    is_set = targets.ndim > 1
    counts = targets.sum(0) if is_set else np.bincount(targets, minlength=len(places))
    unknown = [label for number, label in enumerate(examples.labels) if places[number] < 0 and counts[number]]
    some = "{" + ", ".join(f"{label}: {finished.trained.labels[0]}" for label in unknown[:1]) + ", ...}"
    require(
        not unknown,
        f"data={config.dataset.name} has rows of the label {', '.join(unknown)}, and run {finished.trained.identity} "
        f"knows {', '.join(finished.trained.labels)}: name them alike with data.labels=[...] in the order of its "
        f'classes, or map them with a mapping such as "data.labels={some}" (null leaves the rows of a value out).',
    )
    if is_set:
        members = np.zeros((len(targets), len(label_numbers)), np.uint8)
        members[:, [place for place in places if place >= 0]] = targets[:, [place >= 0 for place in places]]
        column = as_column(members)
    else:
        column = pa.array(np.array(places)[targets], pa.int32())
    test = examples.test.set_column(examples.test.column_names.index("label"), "label", column)
    return replace(examples, test=test, labels=finished.trained.labels)


def _identify(finished: Finished, examples: Examples, config: EvaluateConfig) -> str:
    """Return a digest of all that the result depends on: the run, the rows, their slices, and the rows beside them."""
    others = [split_digest(examples.train), split_digest(examples.validation)]
    slices = [name for name in examples.test.column_names if name.startswith("slice.")]
    trained = finished.trained
    facts = [trained.identity, trained.run_id, split_digest(examples.test), others, slices, config.dataset.name]
    return digest_of(EVALUATION, *facts, *(["ordered"] if _is_ordered(finished, config) else []))


def _is_ordered(finished: Finished, config: EvaluateConfig) -> bool:
    """Tell whether the classes are ordered: the data say so, or those that the run was trained on."""
    trained_on = {} if finished.run is None else finished.run.data.params
    return config.dataset.ordered or trained_on.get("data.ordered") == "True"


def _recorded(config: EvaluateConfig, identity: str, folder: Path) -> Evaluated | None:
    """Return the result of an evaluation that is finished."""
    file = folder / RESULT_FILE
    text = file.read_text(encoding="utf-8") if file.is_file() else None
    if config.tracking.backend is not TrackingBackend.none:
        recorded = find_run(config.tracking, IDENTITY, identity, "FINISHED")
        if recorded is None:
            return None
        if text is None or json.loads(text)["run_id"] != recorded.info.run_id:
            text = read_artifact(open_store(config.tracking), recorded.info.run_id, RESULT_FILE)
    return None if text is None else Evaluated(**json.loads(text))


def _measure(finished: Finished, examples: Examples, config: EvaluateConfig, identity: str, folder: Path) -> Evaluated:
    """Score the rows, keep the predictions, and measure it as a run measures its test split."""
    scorer = Scorer(finished.trained, config.base, config.accelerator, config.max_tokens)
    scores = _scores(scorer, examples.test)
    targets = target_tensor(examples.targets("test"))
    extras = {}
    if scores.outside is not None and scores.irregular is not None:
        extras = {"off_label_mass": scores.outside.float().numpy(), "irregular": scores.irregular.bool().numpy()}
    probabilities = scorer.probabilities_of(scores)
    trained, file = finished.trained, folder / file_name("test")
    write_predictions(examples.test, examples.labels, probabilities, file, extras, trained.thresholds)
    ordered = _is_ordered(finished, config)
    target = target_of(trained.kind, examples.labels, ordered, trained.scale, trained.thresholds)
    metrics = target.measure(scores.logits, targets, per_class=True)
    metrics |= answer_metrics(scores.outside, scores.irregular)
    metrics |= target.calibrated(scores.logits, targets, trained.temperature)
    return Evaluated(
        identity=identity,
        run_id=None,
        metrics={f"test/{name}": value for name, value in metrics.items()}
        | slice_scores(examples, scores.logits, target),
        labels=examples.labels,
        confusion=target.confusion(scores.logits, targets),
        thresholds=trained.thresholds,
    )


def _scores(scorer: Scorer, rows: "pa.Table") -> Scores:
    """Return the scores of all rows, a piece after the other."""
    column = rows.column("text")
    with Meter(rows.num_rows, 0) as meter:
        pieces = [
            scorer.score(column.slice(start, PIECE).to_pylist(), meter.advance)
            for start in range(0, len(column), PIECE)
        ]
    joined: list[Any] = [None if part[0] is None else torch.cat(part) for part in zip(*pieces, strict=True)]
    return Scores(*joined)


def _record(evaluated: Evaluated, finished: Finished, config: EvaluateConfig, folder: Path) -> Evaluated:
    """Record a result whole, as an MLflow run under that of the finished run, and write it to the folder."""
    logger = _open(evaluated, finished, config)
    evaluated.run_id = logger.run_id
    try:
        (folder / RESULT_FILE).write_text(json.dumps(_facts(evaluated), indent=2) + "\n", encoding="utf-8")
        logger.log_params(_params(finished, config))
        run_metrics = {} if finished.run is None else finished.run.data.metrics
        logger.log_metrics(evaluated.metrics | {name: run_metrics[name] for name in COPIED if name in run_metrics})
        logger.log_files(folder / PREDICTIONS, PREDICTIONS)
        logger.log_files(folder / RESULT_FILE)
    except BaseException:
        (folder / RESULT_FILE).unlink(missing_ok=True)
        logger.finish("FAILED")
        raise
    logger.finish("FINISHED")
    return evaluated


def _facts(evaluated: Evaluated) -> dict[str, Any]:
    return {
        "identity": evaluated.identity,
        "run_id": evaluated.run_id,
        "metrics": evaluated.metrics,
        "labels": evaluated.labels,
        "confusion": evaluated.confusion,
        **({} if evaluated.thresholds is None else {"thresholds": evaluated.thresholds}),
    }


def _open(evaluated: Evaluated, finished: Finished, config: EvaluateConfig) -> RunLogger:
    """Open the MLflow run of an evaluation: the one that a kill has left, or a new one."""
    if config.tracking.backend is TrackingBackend.none:
        return RunLogger()
    assert finished.run is not None
    tracking = config.tracking
    left = find_run(tracking, IDENTITY, evaluated.identity)
    tags = {
        EVALUATION: config.dataset.title,
        IDENTITY: evaluated.identity,
        "evaluation.of": finished.trained.identity,
        PARENT: finished.run.info.run_id,
        "command": command(),
        "mlflow.source.name": "sentexp",
        **git_state(),
    }
    name = tracking.run_name or f"{finished.run.info.run_name} on {config.dataset.title}"
    return open_run_logger(tracking, name, None if left is None else left.info.run_id, tags)


def _params(finished: Finished, config: EvaluateConfig) -> dict[str, Any]:
    """Return the parameters of the run with the data that it was evaluated on: what a comparison tells runs by."""
    run_params = {} if finished.run is None else finished.run.data.params
    kept = {key: value for key, value in run_params.items() if not key.startswith(("data.", "class_weight."))}
    trained_on = run_params.get("data.name")
    return (
        kept
        | flatten(config.dataset, "data.")
        | {"data.name": config.dataset.title}
        | {
            "evaluation.split": config.split.name,
            "trained_on": trained_on,
        }
    )


def _show(evaluated: Evaluated, finished: Finished, config: EvaluateConfig, folder: Path, rows: int) -> None:
    """Print metrics beside those of the run's own test split, and where they are."""
    run_metrics = {} if finished.run is None else finished.run.data.metrics
    title = f"{finished.name} on {rows:,} rows of {config.dataset.title} ({config.split.name})"
    report.print_evaluation(
        title, evaluated.metrics, run_metrics, evaluated.labels, evaluated.confusion, evaluated.thresholds
    )
    say_recorded(evaluated.run_id, config.tracking)
    predictions = folder / file_name("test")
    say(f"result in {folder / RESULT_FILE}, predictions in {predictions}", folder / RESULT_FILE, predictions)
    if evaluated.run_id is not None and rows >= FEWEST_ROWS:
        alike = f'filter=tags.{EVALUATION} = "{config.dataset.title}"'
        say_next([sentexp_command("compare", alike, *place_words(config.tracking))])
