"""The leaderboard as people read it: in the terminal, as Markdown, CSV and JSON."""

import json
import math
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len
from rich.table import Column, Table
from rich.text import Text

from sentexp.compare.leaderboard import Leaderboard

if TYPE_CHECKING:
    import pandas as pd

COST_HEADS = {
    "irregular_outputs": "irregular\noutputs",
    "seconds": "train\ns",
    "trainable_parameters": "trained",
    "peak_memory_gib": "peak\nGiB",
    "saved_mib": "saved\nMiB",
    "ece": "ECE",
}
COST_DIGITS = {"peak_memory_gib": 1, "saved_mib": 2, "ece": 4}
SMALLEST_P = 0.0001
"""Smaller p-values are shown as below this."""
MOST_SUMMARIES = 3
MOST_SHOWN = 20
NAME = "configuration"
FEWEST_COLUMNS = 2
WIDEST_HEAD = 18
"""Letters of a line in a head: as many as a difference with its interval has."""
MILLION = 1_000_000
SHORT_COSTS = ("seconds", "trainable_parameters", "irregular_outputs")


def terminal_tables(board: Leaderboard, title: str, width: int) -> list[Table]:
    """Return the leaderboard as two tables, of results and of differences, that fit a narrow terminal.

    Of many configurations the best `MOST_SHOWN` and the baselines are in them. The last columns are left to the files
    where there is no room for them.

    Args:
        board: the leaderboard.
        title: of it.
        width: of the terminal, in letters.
    """
    columns = _columns(board)
    results = [column for column in columns if not column.difference and column.short]
    results[1] = _Column(head=NAME, make=_with_seeds)
    differences = [column for column in columns if column.difference or column.head == NAME]
    left = _ranked(board) - MOST_SHOWN
    title = f"{title}; the best {MOST_SHOWN}, {left} more in the files" if left > 0 else title
    tables = [_fitting(board, results, title, width)]
    if len(differences) > 1:
        tables.append(_fitting(board, differences, f"differences in {board.metric}", width))
    return tables


def _fitting(board: Leaderboard, columns: "list[_Column]", title: str, width: int) -> Table:
    """Return a table without the last columns that there is no room for; two stay in any case."""
    while _least_width(board, columns) > width and len(columns) > FEWEST_COLUMNS:
        columns = columns[:-1]
    return _table(board, columns, title)


def _least_width(board: Leaderboard, columns: "list[_Column]") -> int:
    """Return the letters that a table takes at least: names are broken between words, other cells nowhere."""
    needed = 1
    for column, *cells in zip(columns, *_rows(board, columns), strict=True):
        parts = [text.split() if column.head == NAME else text.splitlines() for text in (column.head, *cells)]
        needed += max(cell_len(part) for text in parts for part in text) + len(" " * 2 + "|")
    return needed


def _table(board: Leaderboard, columns: "list[_Column]", title: str) -> Table:
    heads = [
        Column(
            column.head,
            justify="left" if column.head == NAME else "right",
            no_wrap=column.head != NAME,
            overflow="fold",
        )
        for column in columns
    ]
    table = Table(*heads, title=title, title_justify="left")
    ranked = _ranked(board)
    for number, row in enumerate(_rows(board, columns)):
        if MOST_SHOWN <= number < ranked:
            continue
        if number == ranked:
            table.add_section()
        if any(row[1:]):
            table.add_row(*map(Text, row))
    return table


@dataclass(kw_only=True, slots=True)
class _Column:
    """A column for people: a second line of a cell holds the interval. Short ones are in the terminal as well."""

    head: str
    make: "Callable[[pd.Series[Any]], str]"
    short: bool = True
    difference: bool = False


def _columns(board: Leaderboard) -> list[_Column]:
    table = board.table
    level = f"{board.level} interval"
    columns = [
        _Column(head="rank", make=lambda row: _whole(row["rank"])),
        _Column(head=NAME, make=lambda row: str(row["configuration"])),
    ]
    if (table["seeds"] > 1).any():
        columns.append(_Column(head="seeds", make=lambda row: str(row["seeds"]), short=False))
    for metric in [board.metric, *(name for name in board.short if name != board.metric)]:
        make = partial(_interval if metric == board.metric else _digits, name=metric)
        columns.append(
            _Column(
                head=f"{metric.replace('_', ' ')}\n{level}" if make.func is _interval else metric.replace("_", "\n"),
                make=make,
            )
        )
    for name, against in (("to_best", "the best"), ("to_base", str(board.base))):
        if name in table and len(table) > 1:
            head = "\n".join([*textwrap.wrap(f"to {against}", WIDEST_HEAD), level])
            columns.append(_Column(head=head, make=partial(_difference, name=name), difference=True))
            columns.append(_Column(head="p\n(Holm)", make=partial(_p, name=name), difference=True))
    for name, head in COST_HEADS.items():
        if name in table and table[name].notna().any():
            columns.append(_Column(head=head, make=partial(_number, name=name), short=name in SHORT_COSTS))
    return columns


def _rows(board: Leaderboard, columns: list[_Column]) -> list[list[str]]:
    return [[column.make(row) for column in columns] for _, row in board.table.iterrows()]


def _ranked(board: Leaderboard) -> int:
    """Return how many rows have a rank; the baselines follow them."""
    return int(board.table["rank"].notna().sum())


def write_tables(board: Leaderboard, title: str, folder: Path) -> list[Path]:
    """Write `leaderboard.md`, `.csv` and `.json`, and return these files."""
    folder.mkdir(parents=True, exist_ok=True)
    flat = board.table.copy()
    flat["run_ids"] = [" ".join(ids) for ids in flat["run_ids"]]
    texts = {
        "md": markdown(board, title),
        "csv": flat.to_csv(index=False),
        "json": json.dumps(_facts(board, title), indent=2, ensure_ascii=False) + "\n",
    }
    files = []
    for ending, text in texts.items():
        file = folder / f"leaderboard.{ending}"
        file.write_text(text, encoding="utf-8")
        files.append(file)
    return files


def markdown(board: Leaderboard, title: str) -> str:
    """Return the leaderboard as a Markdown table, with its notes."""
    columns = _columns(board)
    heads, rows = [column.head for column in columns], _rows(board, columns)
    lines = [f"### {title}", "", _bar(list(map(_one_line, heads))), _bar(["---"] * len(heads))]
    lines += [_bar([_one_line(cell).replace("|", "\\|") for cell in row]) for row in rows]
    return "\n".join([*lines, "", *(f"- {note}" for note in board.notes)]) + "\n"


def _bar(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _facts(board: Leaderboard, title: str) -> dict[str, Any]:
    rows = [{key: _plain(value) for key, value in row.items()} for row in board.table.to_dict("records")]
    return {
        "title": title,
        "metric": board.metric,
        "confidence": board.confidence,
        "base": board.base,
        "notes": board.notes,
        "rows": rows,
    }


def _plain(value: Any) -> Any:
    """Return a value as JSON has it: what is missing is null."""
    import pandas as pd

    if isinstance(value, list):
        return value
    if pd.isna(value) or (isinstance(value, float) and not math.isfinite(value)):
        return None
    return value.item() if hasattr(value, "item") else value


def _whole(value: Any) -> str:
    import pandas as pd

    return "" if pd.isna(value) else str(int(value))


def small(p: float) -> str:
    """Return a p-value; those below `SMALLEST_P` are shown as below it."""
    return f"<{SMALLEST_P}" if p < SMALLEST_P else f"{p:.4f}"


def _with_seeds(row: "pd.Series[Any]") -> str:
    return f"{row['configuration']}\n{row['seeds']} seeds" if row["seeds"] > 1 else str(row["configuration"])


def _one_line(cell: str) -> str:
    return cell.replace("\n", " ")


def _digits(row: "pd.Series[Any]", name: str) -> str:
    return f"{row[name]:.4f}" if math.isfinite(row[name]) else ""


def _interval(row: "pd.Series[Any]", name: str) -> str:
    if not math.isfinite(row[name]):
        return ""
    return f"{row[name]:.4f}\n[{row[f'{name}_low']:.4f}, {row[f'{name}_high']:.4f}]"


def _difference(row: "pd.Series[Any]", name: str) -> str:
    """Return a difference with its interval; nothing for what it is taken to."""
    value, low, high = (row[name + suffix] for suffix in ("", "_low", "_high"))
    if not math.isfinite(low):
        return ""
    return f"{value:+.4f}\n[{low:+.4f}, {high:+.4f}]"


def _p(row: "pd.Series[Any]", name: str) -> str:
    if not _difference(row, name):
        return ""
    return small(row[f"{name}_p_holm"])


def _number(row: "pd.Series[Any]", name: str) -> str:
    if not math.isfinite(row[name]):
        return ""
    if name == "trainable_parameters" and row[name] >= MILLION:
        return f"{row[name] / MILLION:.2f} M"
    return f"{row[name]:,.{COST_DIGITS.get(name, 0)}f}"


def slice_summary(worst: "pd.DataFrame", metric: str) -> list[str]:
    """Return a sentence for each configuration that loses on a slice, the first few.

    Args:
        worst: of `worst_slices`.
        metric: that was measured.
    """
    return [
        f"{row['configuration']} loses most on {row['slice']}={row['value']}: {metric} {row[metric]:.4f} on "
        f"{row['rows']:,} rows."
        for _, row in worst.head(MOST_SUMMARIES).iterrows()
    ]
