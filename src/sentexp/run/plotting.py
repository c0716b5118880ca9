"""The plots of a run, drawn into its folder from what that holds."""

from pathlib import Path

from sentexp.config import Config, TargetKind
from sentexp.config.metric_names import safe_classes
from sentexp.distributed import processes
from sentexp.plots.run import (
    draw_confusion_matrix,
    draw_data,
    draw_labels,
    draw_learning_curve,
    draw_reliability,
    draw_scores,
)
from sentexp.run.result import Result
from sentexp.system.console import say
from sentexp.system.json_files import read_json
from sentexp.system.stopwatch import TIMES
from sentexp.tracking.predictions import file_name, read_predictions
from sentexp.tracking.run_dir import METRICS_FILE, RESULT, STATE, RunDir
from sentexp.tracking.store import open_store

AUDIT = "data_audit.json"
"""The audit of the data, which is drawn as `DATA_PLOT`."""
DATA_PLOT, LEARNING_CURVE, CONFUSION_MATRIX, RELIABILITY, SCATTER, LABELS = PLOTS = (
    "data_audit.png",
    "learning_curve.png",
    "confusion_matrix.png",
    "reliability.png",
    "scores.png",
    "labels.png",
)
"""The plots that a run may have, in its folder."""


OWN_PLOTS = {
    TargetKind.classes: (CONFUSION_MATRIX, RELIABILITY),
    TargetKind.scores: (SCATTER,),
    TargetKind.label_sets: (LABELS,),
}
LOSSES = {
    TargetKind.classes: "cross-entropy",
    TargetKind.scores: "squared error / variance",
    TargetKind.label_sets: "binary cross-entropy",
}


def plots_of(kind: TargetKind) -> tuple[str, ...]:
    """Return the plots of a run that predicts these."""
    return (DATA_PLOT, LEARNING_CURVE, *OWN_PLOTS[kind])


def plot_data(folder: Path) -> None:
    """Draw the data of a run or an audit from what its folder holds of them."""
    audit = read_json(folder / AUDIT)
    draw_data(audit["labels"], audit["token_edges"], audit["tokens"], audit["max_length"], folder / DATA_PLOT)


def plot_run(result: Result) -> None:
    """Draw the plots of a finished run into its folder, which holds the audit of the data and every step's metrics."""
    run_dir, kind = RunDir(result.folder), result.kind
    plot_data(run_dir.path)
    losses = run_dir.history("train/loss"), run_dir.history("validation/loss")
    curve = run_dir.history(f"validation/{kind.headline}")
    draw_learning_curve(*losses, curve, run_dir.path / LEARNING_CURVE, kind.headline, LOSSES[kind])
    match kind:
        case TargetKind.scores:
            predictions = read_predictions(run_dir.path / file_name("test"))
            draw_scores(predictions.targets, predictions.probabilities[:, 0], run_dir.path / SCATTER)
        case TargetKind.label_sets:
            draw_labels(_label_scores(result), run_dir.path / LABELS)
        case TargetKind.classes:
            draw_confusion_matrix(result.confusion, result.labels, run_dir.path / CONFUSION_MATRIX)
            draw_reliability(result.reliability, run_dir.path / RELIABILITY)


def _label_scores(result: Result) -> dict[str, tuple[float, float, float]]:
    """Return precision, recall and F1 of the labels that test rows have."""
    metrics = result.metrics
    return {
        label: (metrics[f"test/precision_{safe}"], metrics[f"test/recall_{safe}"], metrics[f"test/f1_{safe}"])
        for label, safe in safe_classes(result.labels).items()
        if f"test/f1_{safe}" in metrics
    }


@TIMES.part("plots")
def plot_result(result: Result) -> bool:
    """Draw a run, and return whether that went well: no fault there fails a run whose result is whole."""
    try:
        plot_run(result)
    except Exception as error:
        say(f"The pictures failed ({type(error).__name__}: {error}); plots=true draws them another time.")
        return False
    return True


@processes.main_process_only
def plot_finished(result: Result, config: Config) -> None:
    """Draw a finished run that has no plots, if they are wanted and its folder still holds what they show."""
    folder = result.folder
    present = {name for name in (RESULT, AUDIT, METRICS_FILE, STATE, *PLOTS) if (folder / name).is_file()}
    is_whole = {RESULT, AUDIT, METRICS_FILE} <= present and STATE not in present  # else another attempt is under way
    if not config.plots or present.issuperset(plots_of(result.kind)) or not is_whole:
        return
    if read_json(folder / RESULT)["run_id"] != result.run_id or not plot_result(result):
        return
    if result.run_id is not None:
        store = open_store(config.tracking)
        for name in plots_of(result.kind):
            store.client.log_artifact(result.run_id, str(folder / name))
