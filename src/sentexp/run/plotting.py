"""The plots of a run, drawn into its folder from what that holds."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from sentexp.config import Config
from sentexp.config.metric_names import is_score, short_metrics
from sentexp.distributed import processes
from sentexp.plots.run import draw_confusion_matrix, draw_data, draw_learning_curve, draw_reliability, draw_scores
from sentexp.run.result import Result
from sentexp.system.console import say
from sentexp.system.json_files import read_json
from sentexp.tracking.predictions import file_name, read_predictions
from sentexp.tracking.run_dir import METRICS_FILE, RESULT, STATE, RunDir
from sentexp.tracking.store import open_store

AUDIT = "data_audit.json"
"""The audit of the data, which is drawn as `DATA_PLOT`."""
DATA_PLOT, LEARNING_CURVE, CONFUSION_MATRIX, RELIABILITY, SCATTER = PLOTS = (
    "data_audit.png",
    "learning_curve.png",
    "confusion_matrix.png",
    "reliability.png",
    "scores.png",
)
"""The plots that a run may have, in its folder."""


def plots_of(labels: Sequence[str]) -> tuple[str, ...]:
    """Return the plots of a run with these labels: of scores a scatter plot in the place of what shows classes."""
    of_scores, of_classes = (SCATTER,), (CONFUSION_MATRIX, RELIABILITY)
    left_out = of_classes if is_score(labels) else of_scores
    return tuple(name for name in PLOTS if name not in left_out)


def plot_data(folder: Path) -> None:
    """Draw the data of a run or an audit from what its folder holds of them."""
    audit = read_json(folder / AUDIT)
    draw_data(audit["labels"], audit["token_edges"], audit["tokens"], audit["max_length"], folder / DATA_PLOT)


def plot_run(
    run_dir: RunDir,
    labels: Sequence[str],
    confusion: Sequence[Sequence[int]],
    curves: Mapping[str, Sequence[tuple[float, float, int]]],
) -> None:
    """Draw the `PLOTS` of a finished run into its folder.

    Args:
        run_dir: of the run; it holds the audit of the data and the metrics of every step.
        labels: names of the classes.
        confusion: test rows by true and by predicted class.
        curves: of the reliability on the test split, by name.
    """
    plot_data(run_dir.path)
    losses = run_dir.history("train/loss"), run_dir.history("validation/loss")
    headline = short_metrics(labels)[0]
    curve = run_dir.history(f"validation/{headline}")
    draw_learning_curve(*losses, curve, run_dir.path / LEARNING_CURVE, headline)
    if is_score(labels):
        predictions = read_predictions(run_dir.path / file_name("test"))
        draw_scores(predictions.targets, predictions.probabilities[:, 0], run_dir.path / SCATTER)
        return
    draw_confusion_matrix(confusion, labels, run_dir.path / CONFUSION_MATRIX)
    draw_reliability(curves, run_dir.path / RELIABILITY)


def plot_result(result: Result) -> bool:
    """Draw a run, and return whether that went well: no fault there fails a run whose result is whole."""
    try:
        plot_run(RunDir(result.folder), result.labels, result.confusion, result.reliability)
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
    if not config.plots or present.issuperset(plots_of(result.labels)) or not is_whole:
        return
    if read_json(folder / RESULT)["run_id"] != result.run_id or not plot_result(result):
        return
    if result.run_id is not None:
        store = open_store(config.tracking)
        for name in plots_of(result.labels):
            store.client.log_artifact(result.run_id, str(folder / name))
