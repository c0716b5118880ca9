"""What a run prints: its data, the audit of its parameters, its result and what to do next."""

from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from sentexp.data.splits import NAMES, Examples
from sentexp.models.adapters import KINDS, Audit

OUT = Console(highlight=False, soft_wrap=True)


def say(sentence: str) -> None:
    """Print a sentence as it is."""
    OUT.print(Text(sentence))


def print_data(name: str, examples: Examples, cut: Mapping[str, float]) -> None:
    """Print rows and labels per split, and how many texts are cut at the maximum length."""
    table = Table(
        "split", "rows", "of", *map(escape, examples.labels), "cut", title=f"data={name}", title_justify="left"
    )
    counts = examples.counts()
    for split in NAMES:
        per_class = [f"{counts[split][label]:,}" for label in examples.labels]
        rows = f"{len(getattr(examples, split)):,}"
        table.add_row(split, rows, f"{examples.available[split]:,}", *per_class, f"{cut[split]:.1%}")
    OUT.print(table)
    if leaked := examples.leaked():
        say(f"Warning: {leaked:,} test texts also stand in the training split, so the test flatters the model.")


def print_audit(method: str, audit: Audit) -> None:
    """Print trained and frozen parameters by kind."""
    table = Table("parameters", "trained", "frozen", title=f"peft={method}", title_justify="left")
    for kind in KINDS:
        if audit.trainable[kind] or audit.frozen[kind]:
            table.add_row(kind, f"{audit.trainable[kind]:,}", f"{audit.frozen[kind]:,}")
    share = audit.trainable_total / audit.total
    table.add_section()
    table.add_row("sum", f"{audit.trainable_total:,} ({share:.2%})", f"{audit.total - audit.trainable_total:,}")
    OUT.print(table)
    if audit.targets:
        leaves = sorted({path.split(".")[-1] for path in audit.targets})
        say(f"{len(audit.targets)} modules adapted: {', '.join(leaves)}")


def print_result(metrics: Mapping[str, float], labels: list[str], confusion: list[list[int]], seconds: float) -> None:
    """Print validation and test metrics side by side, and the confusion matrix of the test split."""
    table = Table("metric", "validation", "test", title="result", title_justify="left")
    names = [key.removeprefix("test/") for key in metrics if key.startswith("test/")]
    for name in names:
        validation = metrics.get(f"best/{name}")
        table.add_row(Text(name), "" if validation is None else f"{validation:.4f}", f"{metrics[f'test/{name}']:.4f}")
    OUT.print(table)
    matrix = Table("true \\ predicted", *map(escape, labels), title="test split", title_justify="left")
    for label, row in zip(labels, confusion, strict=True):
        matrix.add_row(Text(label), *(f"{count:,}" for count in row))
    OUT.print(matrix)
    say(f"{seconds:.0f} s in all; peak memory {metrics['peak_memory_gib']:.1f} GiB")


def print_whereabouts(run_id: str | None, where: str, folder: Path, weights: Path) -> None:
    """Print where the run is recorded, and commands to try next."""
    say(f"MLflow run {run_id} in {where}" if run_id else f"recorded {where}")
    say(f"weights in {weights}, result in {folder / 'result.json'}")
    say("")
    say("Next, for instance:")
    if run_id:
        say("  make ui                                          # look at the run in the MLflow UI")
    say("  python -m sentexp peft=head                      # the same without an adapter: what does it add?")
    say("  python -m sentexp data.train_subset=null         # all training rows")
    say("  python -m sentexp --multirun peft.r=4,8,16       # a sweep")
    say("  python -m sentexp --help                         # every group and option")
