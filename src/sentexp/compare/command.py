"""`python -m sentexp compare`: which run is better, and how certain that is. Sweeps end with it."""

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from sentexp.compare.choosing import with_chosen
from sentexp.compare.comparison import Comparison, load
from sentexp.compare.error_analysis import confident_errors, disagreements, head_to_head, label_errors, largest_errors
from sentexp.compare.label_sets import errors_of_sets, label_table
from sentexp.compare.leaderboard import Leaderboard, leaderboard
from sentexp.compare.leaderboard_tables import slice_summary, small, terminal_tables, write_tables
from sentexp.compare.slices import slice_table, worst_slices
from sentexp.config import AUTO, CompareConfig, EvaluatedSplit, TargetKind, TrackingConfig
from sentexp.errors import UserError
from sentexp.system.console import OUT, say, waiting
from sentexp.system.garbage import freeze_imports
from sentexp.tracking.next_steps import override, place_words, predict_example, say_next, say_ui, sentexp_command

if TYPE_CHECKING:
    import pandas as pd

REPORT = "report.html"
ARTIFACTS = "comparison"
"""Where the tables and the report are among the artifacts of a sweep's MLflow run."""
MOST_SLICED = 10
"""Configurations whose slices are measured, the best ones."""
LONGEST_TEXT = 100


@dataclass(kw_only=True, slots=True)
class Analysis:
    """A comparison, its leaderboard, and the metric of each slice for the best configurations."""

    comparison: Comparison
    board: Leaderboard
    slices: "pd.DataFrame"
    title: str


def compare(config: CompareConfig) -> None:
    """Print the leaderboard of what a configuration names, and write tables and the report to `output`.

    Raises:
        UserError: anything in the configuration or the store that the user can fix.
    """
    folder = _writable(config.output)
    with waiting("Comparing the runs"):
        freeze_imports("pandas", "scipy.special")
        analysis = analyse(config)
    for table in terminal_tables(analysis.board, analysis.title, OUT.width):
        OUT.print(table, soft_wrap=False)
    for note in analysis.board.notes:
        say(note)
    for sentence in slice_summary(worst_slices(analysis.slices), analysis.board.metric):
        say(sentence)
    if config.by is not None:
        _print_slices(analysis, config.by)
    names = [one.name for one in analysis.comparison.configurations]
    if len(names) == 2 and analysis.comparison.kind is TargetKind.classes:  # noqa: PLR2004 (run against run)
        _print_pair(analysis, names[0], names[1], config)
    with waiting("Writing the report"):
        files = write(analysis, config, folder)
    where = "" if analysis.comparison.parent_id is None else ", and among the artifacts of the sweep's MLflow run"
    say(f"{', '.join(file.name for file in files)} are in {folder}{where}.")
    say(f"Report: {folder / REPORT}", folder / REPORT)
    tracking = replace(config.tracking, experiment=config.experiment_name or config.tracking.experiment)
    say_ui(tracking, analysis.comparison.parent_id)
    say_next(next_commands(analysis, config, tracking))


def next_commands(analysis: Analysis, config: CompareConfig, tracking: TrackingConfig) -> list[str]:
    """Return how the two best are set against each other, and the best one is used.

    What is registered is chosen on validation, whatever the split that is shown (law 10).
    """
    ranked = analysis.board.table[analysis.board.table["rank"].notna()]["configuration"].tolist()
    best, *others = [analysis.comparison.find("run", name) for name in ranked]
    place, commands = place_words(tracking), []
    if len(others) > 1:
        ids = ",".join(run.run_id[:8] for one in (best, others[0]) for run in one.runs)
        measured = [] if config.split is EvaluatedSplit.test else [f"split={config.split.name}"]
        commands.append(sentexp_command("compare", f"runs=[{ids}]", *measured, *place))
    first = best.runs[0]
    if analysis.comparison.parent_id is not None and config.sweep is None:
        name = override("name", str(first.settings.get("data.name", "reviews")))
        commands.append(sentexp_command("register", "run=best", name, *place))
    run = first.tags.get("evaluation.of", first.run_id)
    pairs = str(first.settings.get("data.text_pair")) not in ("None", "null")
    return [*commands, *predict_example(f"run={run[:8]}", place, pairs)]


def _writable(output: str) -> Path:
    """Return the folder for the files, made before there is anything to write."""
    folder = Path(output)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(
            f"output={output} cannot be written ({error.strerror}): name a folder, new or there already, in which you "
            "may write."
        ) from None
    return folder


def analyse(config: CompareConfig) -> Analysis:
    """Find and measure what a configuration names.

    Raises:
        UserError: anything in the configuration or the store that the user can fix.
    """
    comparison = load(config)
    metric = comparison.kind.headline if config.metric == AUTO else config.metric
    if config.choose is not None:
        comparison = with_chosen(comparison, config.choose, metric)
    measured = {"confidence": config.confidence, "resamples": config.resamples, "seed": config.seed}
    board = leaderboard(comparison, metric, base=config.base, **measured)  # type: ignore[arg-type]
    ranked = board.table[board.table["rank"].notna()]["configuration"].tolist()
    best = [comparison.find("run", name) for name in ranked[:MOST_SLICED]]
    slices = slice_table(comparison, metric, config.by, best, **measured)  # type: ignore[arg-type]
    title = f"{comparison.title}: {len(comparison.targets):,} {comparison.split} rows"
    return Analysis(comparison=comparison, board=board, slices=slices, title=title)


def write(analysis: Analysis, config: CompareConfig, folder: Path) -> list[Path]:
    """Write tables and report to a folder, and log them on the sweep's MLflow run; return the files."""
    from sentexp.compare.report import write_report

    comparison, board = analysis.comparison, analysis.board
    files = write_tables(board, analysis.title, folder)
    analysis.slices.to_csv(folder / "slices.csv", index=False)
    best = board.table["configuration"].tolist()
    tables = _row_tables(comparison, best)
    write_report(board, comparison, folder / REPORT, slices=analysis.slices, tables=tables, seed=config.seed)
    files += [folder / "slices.csv", folder / REPORT]
    if comparison.parent_id is not None and comparison.store is not None:
        for file in files:
            comparison.store.log_artifact(comparison.parent_id, file, ARTIFACTS)
    return files


def _row_tables(comparison: Comparison, best: list[str]) -> "list[tuple[str, pd.DataFrame]]":
    """Return tables of single rows by their titles, and of sets of labels one of the labels."""
    if comparison.kind is TargetKind.label_sets:
        errors = errors_of_sets(comparison, best[0])
        return [("labels", label_table(comparison, best)), (f"{best[0]}: its largest errors", errors)]
    if comparison.kind is TargetKind.scores:
        return [(f"{best[0]}: its largest errors", largest_errors(comparison, best[0]))]
    tables = [(f"{best[0]}: its most confident errors", confident_errors(comparison, best[0]))]
    if len(comparison.configurations) > 1:
        title = f"{best[0]} against {best[1]}: rows that one gets right and the other wrong"
        tables.insert(0, (title, disagreements(comparison, best[0], best[1])))
    doubted = label_errors(comparison)
    return [*tables, *([("labels that are probably wrong", doubted)] if len(doubted) else [])]


def _print_slices(analysis: Analysis, by: str) -> None:
    """Print the metric of each slice of a column."""
    metric, table = analysis.board.metric, Table("slice", "rows", "configuration", analysis.board.metric, "interval")
    table.title, table.title_justify = f"{metric} by {by}", "left"
    for _, row in analysis.slices.iterrows():
        low, high = row[f"{metric}_low"], row[f"{metric}_high"]
        ends = "" if low != low else f"[{low:.4f}, {high:.4f}]"  # noqa: PLR0124 (not a number)
        table.add_row(
            Text(str(row["value"])), f"{row['rows']:,}", Text(row["configuration"]), f"{row[metric]:.4f}", ends
        )
    OUT.print(table, soft_wrap=False)


def _print_pair(analysis: Analysis, a: str, b: str, config: CompareConfig) -> None:
    """Print how two configurations agree, and the clearest rows that one gets right and the other wrong."""
    counts = head_to_head(analysis.comparison, a, b, analysis.board.metric, config.resamples, config.seed)
    permuted = (
        ""
        if "permutation_p" not in counts
        else f", permutation test of {analysis.board.metric} p {small(counts['permutation_p'])}"
    )
    several = any(len(analysis.comparison.find("run", name).runs) > 1 for name in (a, b))
    averaged = " With several seeds, predictions are those of the mean probabilities." if several else ""
    say(
        f"{a} against {b}: both right {counts['both_right']:,}, only {a} {counts['only_a_right']:,}, only {b} "
        f"{counts['only_b_right']:,}, both wrong {counts['both_wrong']:,}; McNemar's exact test p "
        f"{small(counts['mcnemar_p'])}{permuted}.{averaged}"
    )
    rows = disagreements(analysis.comparison, a, b)
    for name in (a, b):
        shown = rows[rows["right"] == name].head(config.rows)
        table = Table("text", "label", f"{a} p", f"{b} p", title=f"only {name} is right", title_justify="left")
        for _, row in shown.iterrows():
            text = row["text"] if len(row["text"]) <= LONGEST_TEXT else f"{row['text'][:LONGEST_TEXT]}..."
            table.add_row(Text(text), Text(row["label"]), f"{row[f'{a} p']:.3f}", f"{row[f'{b} p']:.3f}")
        if len(shown):
            OUT.print(table, soft_wrap=False)
