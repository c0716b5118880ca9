"""What a run prints: its data, the audit of its parameters, its result and what to do next."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Column, Table
from rich.text import Text

from sentexp.config import Config, TrackingConfig, kind_of
from sentexp.config.metric_names import SLICE_METRICS, is_better_higher, safe_classes, shown_names
from sentexp.data.audit import DataAudit
from sentexp.data.splits import NAMES
from sentexp.run.proposals import next_commands
from sentexp.run.symptoms import symptoms_of
from sentexp.system.console import OUT, say
from sentexp.tracking.next_steps import say_next, say_recorded

if TYPE_CHECKING:
    from sentexp.models.adapters import ParameterAudit
    from sentexp.run.result import Result

MOST_COLUMNS = 12


def print_data(audit: DataAudit) -> None:
    """Print rows and labels per split, how many texts are cut at the maximum length, and what is probably wrong."""
    labels = list(audit.labels["train"])
    many = len(labels) > MOST_COLUMNS
    columns = ["classes", "smallest", "largest"] if many else [escape(label) for label in labels]
    table = Table("split", "rows", "of", *columns, "cut", title=f"data: {escape(audit.data)}", title_justify="left")
    for split in NAMES:
        counts = list(audit.labels[split].values())
        shown = [sum(count > 0 for count in counts), min(counts), max(counts)] if many else counts
        per_class = [f"{count:,}" for count in shown]
        table.add_row(
            split, f"{audit.rows[split]:,}", f"{audit.available[split]:,}", *per_class, f"{audit.cut[split]:.1%}"
        )
    OUT.print(table)
    for sentence in audit.warnings:
        say(f"Note: {sentence}")


def print_findings(audit: DataAudit) -> None:
    """Print everything that was looked for, with examples, and the lengths of the texts."""
    lengths = Table("tokens", "5 %", "median", "95 %", "longest", "cut", title="text lengths", title_justify="left")
    for split in NAMES:
        lengths.add_row(split, *(f"{value:,}" for value in audit.token_quantiles[split]), f"{audit.cut[split]:.1%}")
    OUT.print(lengths)
    table = Table("rows with", *NAMES, "for instance", title="findings", title_justify="left")
    for finding in audit.findings:
        counts = [f"{finding.rows[split]:,}" if split in finding.rows else "" for split in NAMES]
        table.add_row(Text(finding.name), *counts, Text("\n".join(finding.examples)))
    OUT.print(table, soft_wrap=False)
    _print_together(audit)


def _print_together(audit: DataAudit) -> None:
    """Print how many training rows have two labels both, and how many have each, where a text has any number."""
    if not audit.together:
        return
    if len(audit.together) > MOST_COLUMNS:
        say(f"How often {len(audit.together)} labels come together is in data_audit.json.")
        return
    table = Table("with", *map(escape, audit.together), title="training rows with two labels", title_justify="left")
    for label, counts in audit.together.items():
        table.add_row(Text(label), *(f"{count:,}" for count in counts.values()))
    OUT.print(table)


def print_parameters(method: str, audit: "ParameterAudit") -> None:
    """Print trained and frozen parameters by kind."""
    table = Table("parameters", "trained", "frozen", title=f"peft={method}", title_justify="left")
    for kind in audit.trainable:
        if audit.trainable[kind] or audit.frozen[kind]:
            table.add_row(kind, f"{audit.trainable[kind]:,}", f"{audit.frozen[kind]:,}")
    share = audit.trainable_total / audit.total
    table.add_section()
    table.add_row("sum", f"{audit.trainable_total:,} ({share:.2%})", f"{audit.total - audit.trainable_total:,}")
    OUT.print(table)
    if audit.targets:
        leaves = sorted({path.split(".")[-1] for path in audit.targets})
        say(f"{len(audit.targets)} modules adapted: {', '.join(leaves)}")


def print_run(result: "Result", config: Config) -> None:
    """Print the result of a run, and where it is."""
    print_result(result.metrics, result.labels, result.confusion, result.thresholds)
    for sentence in symptoms_of(result, config):
        say(f"Note: {sentence}")
    print_answers(result.answers)
    theirs = {baseline.title: baseline.metrics for baseline in result.baselines.values()}
    print_comparison(result.metrics, theirs, result.kind.short)
    print_costs(result.metrics)
    print_whereabouts(result, config)


def print_result(
    metrics: Mapping[str, float],
    labels: list[str],
    confusion: list[list[int]],
    thresholds: list[float] | None = None,
) -> None:
    """Print validation and test metrics side by side, and the confusion matrix of the test split, or its labels."""
    table = Table("metric", "validation", "test", title="result", title_justify="left")
    shown = shown_names(labels)
    for name in _plain_names(metrics, labels, thresholds):
        values = (metrics.get(f"best/{name}"), metrics[f"test/{name}"])
        table.add_row(Text(shown.get(name, name)), *(_number(name, value) for value in values))
    OUT.print(table)
    _print_details(metrics, labels, confusion, thresholds)


def print_evaluation(
    title: str,
    metrics: Mapping[str, float],
    test_metrics: Mapping[str, float],
    labels: list[str],
    confusion: list[list[int]],
    thresholds: list[float] | None = None,
) -> None:
    """Print the metrics of a finished run on other data, beside those of its own test split where they are known."""
    columns = ["here", *(["own test split"] if test_metrics else [])]
    table = Table("metric", *columns, title=escape(title), title_justify="left")
    shown = shown_names(labels)
    for name in _plain_names(metrics, labels, thresholds):
        values = [metrics[f"test/{name}"], *([test_metrics.get(f"test/{name}")] if test_metrics else [])]
        table.add_row(Text(shown.get(name, name)), *(_number(name, value) for value in values))
    OUT.print(table)
    _print_details(metrics, labels, confusion, thresholds)


def _plain_names(metrics: Mapping[str, float], labels: list[str], thresholds: object) -> list[str]:
    """Return the names of the test metrics that are of no slice, and of no label where these have a table."""
    names = [name for key in metrics if (name := key.removeprefix("test/")) != key and "/" not in name]
    return names if thresholds is None else [name for name in names if name not in shown_names(labels)]


def _print_details(
    metrics: Mapping[str, float], labels: list[str], confusion: list[list[int]], thresholds: list[float] | None
) -> None:
    """Print classes or labels of the test split, and its slices."""
    if thresholds is None:
        _print_confusion(labels, confusion)
    else:
        _print_labels(metrics, labels, confusion, thresholds)
    _print_slices(metrics, kind_of(labels, thresholds).short)


def _print_labels(
    metrics: Mapping[str, float], labels: list[str], counts: list[list[int]], thresholds: list[float]
) -> None:
    """Print what was measured of each label: how many rows have it and are said to have it, and its threshold."""
    names = {"precision": "precision", "recall": "recall", "f1": "F1", "auroc": "AUROC", "ap": "AP"}
    table = Table("label", "rows", "said", *names.values(), "threshold", title="labels of the test split")
    table.title_justify = "left"
    safe = safe_classes(labels)
    for label, row, threshold in zip(labels, counts, thresholds, strict=True):
        _, wrongly_said, missed, right = row
        found = [metrics.get(f"test/{name}_{safe[label]}") for name in names]
        values = ["" if value is None else f"{value:.3f}" for value in found]
        table.add_row(Text(label), f"{missed + right:,}", f"{wrongly_said + right:,}", *values, f"{threshold:.3f}")
    OUT.print(table)


def print_answers(counts: Mapping[str, str]) -> None:
    """Print what a language model answered where it named no label."""
    titles = {
        "irregular_outputs": "irregular outputs by first token",
        "irregular_generations": "irregular written answers by first word",
    }
    for name, counted in counts.items():
        say(f"{titles[name]}: {counted}")


def print_comparison(
    metrics: Mapping[str, float], baselines: Mapping[str, Mapping[str, float]], short: Sequence[str] = SLICE_METRICS
) -> None:
    """Print the run beside its baselines, by their titles, on the same test rows, and how far its accuracy is above.

    Args:
        metrics: of the run.
        baselines: by title.
        short: the metrics to show; the first is compared.
    """
    if not baselines:
        return
    first = short[0]
    worst_first = sorted(
        baselines.items(), key=lambda item: item[1][f"test/{first}"], reverse=not is_better_higher(first)
    )
    beside = dict(worst_first) | {"this run": metrics}
    title = f"beside the baselines (difference: {first} of this run minus theirs)"
    table = Table(Column("test split", no_wrap=True), *beside, title=title, title_justify="left")
    for metric in (*short, "off_label_mass", "irregular_outputs"):
        values = [_number(metric, scores.get(f"test/{metric}")) for scores in beside.values()]
        if any(values):
            table.add_row(metric, *values)
    table.add_section()
    ahead = [f"{metrics[f'test/{first}'] - scores[f'test/{first}']:+.4f}" for scores in list(beside.values())[:-1]]
    table.add_row("difference", *ahead, "")
    OUT.print(table)


def _number(metric: str, value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if metric.startswith("irregular") else f"{value:.4f}"


def _print_confusion(labels: list[str], confusion: list[list[int]]) -> None:
    """Print the confusion matrix, unless it has too many columns for a terminal; scores have none."""
    if not confusion:
        return
    if len(labels) > MOST_COLUMNS:
        say(f"The confusion matrix of {len(labels)} classes is in result.json.")
        return
    matrix = Table("true \\ predicted", *map(escape, labels), title="test split", title_justify="left")
    for label, row in zip(labels, confusion, strict=True):
        matrix.add_row(Text(label), *(f"{count:,}" for count in row))
    OUT.print(matrix)


def _print_slices(metrics: Mapping[str, float], short: Sequence[str]) -> None:
    """Print the test metrics of each slice, and of the rows whose text is nowhere else."""
    slices: dict[str, dict[str, float]] = {}
    for key, value in metrics.items():
        name, _, metric = key.removeprefix("test/").rpartition("/")
        if key.startswith("test/") and name:
            slices.setdefault(name, {})[metric] = value
    table = Table("slice", "rows", *short, title="test split by slice", title_justify="left")
    for name, values in slices.items():
        scores = [f"{values[metric]:.4f}" if metric in values else "" for metric in short]
        table.add_row(Text(name), f"{values['rows']:,.0f}", *scores)
    if slices:
        OUT.print(table)


def print_costs(metrics: Mapping[str, float]) -> None:
    """Print what the run took."""
    say(f"{metrics['seconds']:.0f} s in all; peak memory {metrics['peak_memory_gib']:.1f} GiB")


def print_whereabouts(result: "Result", config: Config) -> None:
    """Print where a run is recorded, and for a single run what can be done next."""
    say_recorded(result.run_id, config.tracking)
    say(f"{result.folder}: weights in {result.weights.name}, result in result.json", result.folder)
    if config.sweep.name is None:
        say_next(next_commands(result, config))


def print_audit_whereabouts(run_id: str | None, tracking: TrackingConfig, folder: Path) -> None:
    """Print where an audit is recorded."""
    say_recorded(run_id, tracking)
    files = folder / "data_audit.json", folder / "data_audit.png"
    say(f"audit in {files[0]}, its picture in {files[1]}", *files)
