"""Tables of the report: what a cell shows, and what it is sorted by."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sentexp.compare.comparison import Comparison
from sentexp.compare.leaderboard import ANSWERS, CALIBRATION, COSTS, Leaderboard
from sentexp.compare.leaderboard_tables import SMALLEST_P, small
from sentexp.compare.settings import differing

if TYPE_CHECKING:
    import pandas as pd

DIGITS = {"seconds": 0, "trainable_parameters": 0, "irregular_outputs": 0, "peak_memory_gib": 2, "saved_mib": 2}
SMALLEST, LARGEST = 0.001, 1e6
"""Numbers between them are written with four digits after the point, where nothing is known of them."""
ENVIRONMENT = ("version.", "machine.")
"""What the tags of libraries and of the machine begin with."""
COMMAND = "command"
MOST_ROWS = 200
"""Configurations in the tables of results and differences, the best ones."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """A text, and a smaller one below it; `key` is the number that it is sorted by, None: by its text.

    A name stays in sight when the table is moved to the side.
    """

    text: str
    below: str = ""
    key: float | None = None
    is_number: bool = False
    is_name: bool = False


@dataclass(kw_only=True, slots=True)
class Sheet:
    """A table: its heads, its rows, and what it is called where it is searched."""

    name: str
    heads: list[str]
    rows: list[list[Cell]] = field(default_factory=list)


def words(value: object) -> Cell:
    """Return a text as a cell."""
    return Cell(text="" if value is None else str(value))


def named(name: str) -> Cell:
    """Return the name of a configuration or a run as a cell."""
    return Cell(text=name, is_name=True)


def figure(value: float, digits: int | None = 4, below: str = "", sign: str = "") -> Cell:
    """Return a number as a cell; nothing where there is none. `digits` follow the point; None: four in all."""
    if value is None or not math.isfinite(value):
        return Cell(text="", is_number=True)
    text = f"{value:{sign},.{digits}f}" if digits is not None else f"{value:{sign}.4g}"
    return Cell(text=text, below=below, key=float(value), is_number=True)


def leaderboard_sheet(board: Leaderboard) -> Sheet:
    """Return the leaderboard: every metric with its interval, the ranking one first; costs, calibration, answers."""
    table = _first(board)
    metrics = [board.metric, *(name for name in board.metrics if name != board.metric)]
    others = [name for name in (*COSTS, *CALIBRATION, *ANSWERS) if name in table and table[name].notna().any()]
    heads = ["rank", "configuration", "seeds", *metrics, *others, "runs"]
    sheet = Sheet(name="leaderboard", heads=[head.replace("_", " ") for head in heads])
    for row in table.to_dict("records"):
        rank = Cell(text="baseline", is_number=True) if _is_missing(row["rank"]) else figure(int(row["rank"]), 0)
        cells = [rank, named(row["configuration"]), figure(row["seeds"], 0)]
        cells += [_with_interval(row, name) for name in metrics]
        cells += [figure(row[name], DIGITS.get(name, 4)) for name in others]
        sheet.rows.append([*cells, Cell(text=" ".join(run_id[:8] for run_id in row["run_ids"]))])
    return sheet


def differences_sheet(board: Leaderboard) -> Sheet | None:
    """Return by how much each is above the best and the base, with p-values; None where there is one alone."""
    table = _first(board)
    table = table[table["rank"].notna()]
    against = {name: other for name, other in (("to_best", "the best"), ("to_base", board.base)) if name in table}
    if len(table) < 2 and "to_base" not in against:  # noqa: PLR2004 (a difference takes two)
        return None
    tests = {"_p": "p, raw", "_p_holm": "p, Holm", "_p_bh": "p, BH"}
    sheet = Sheet(name="differences", heads=["configuration"])
    for other in against.values():
        sheet.heads += [f"to {other}", *tests.values()]
    for row in table.to_dict("records"):
        cells = [named(row["configuration"])]
        for name in against:
            same = _is_missing(row[f"{name}_low"])
            cells.append(Cell(text="", is_number=True) if same else _with_interval(row, name, "+"))
            cells += [Cell(text="", is_number=True) if same else _p(row[name + test]) for test in tests]
        sheet.rows.append(cells)
    return sheet


def left_out(board: Leaderboard) -> str:
    """Return what the tables leave out, as a sentence to follow others; nothing where they hold everything."""
    count = int(board.table["rank"].notna().sum())
    if count <= MOST_ROWS:
        return ""
    return f" These are the best {MOST_ROWS} of {count:,}; leaderboard.csv and leaderboard.json hold all."


def _first(board: Leaderboard) -> "pd.DataFrame":
    """Return the rows of the best `MOST_ROWS` configurations and of the baselines."""
    ranked = board.table["rank"].notna()
    return board.table[~ranked | (ranked.cumsum() <= MOST_ROWS)]


def frame_sheet(name: str, frame: "pd.DataFrame") -> Sheet:
    """Return a table of pandas as it is: its columns, without its index unless that has a name."""
    if frame.index.name is not None:
        frame = frame.reset_index()
    numeric = [column.dropna() if column.dtype.kind in "iuf" else None for _, column in frame.items()]
    is_whole = [column is not None and bool((column % 1 == 0).all()) for column in numeric]
    rows = [list(map(_any, row, is_whole)) for row in frame.itertuples(index=False, name=None)]
    return Sheet(name=name, heads=[str(head) for head in frame.columns], rows=rows)


def settings_sheet(comparison: Comparison) -> Sheet | None:
    """Return the settings in which runs differ, a column each, and their seeds; None where there is nothing."""
    runs = _runs(comparison)
    columns = differing([settings for _, settings, _ in runs])
    if len(runs) < 2 or not columns:  # noqa: PLR2004 (a difference takes two)
        return None
    sheet = Sheet(name="settings", heads=["run", "seed", *columns])
    for place, (name, _, seed) in enumerate(runs):
        sheet.rows.append([named(name), _setting(seed), *(_setting(values[place]) for values in columns.values())])
    return sheet


def _runs(comparison: Comparison) -> list[tuple[str, dict[str, str], str]]:
    """Return name, settings and seed of every run that was ranked."""
    return [(run.name, run.settings, run.seed) for one in comparison.configurations for run in one.runs]


def environments(comparison: Comparison) -> list[Mapping[str, str]]:
    """Return the libraries and the machine of every run that was ranked."""
    runs = [run for one in comparison.configurations for run in one.runs]
    return [{key: value for key, value in run.tags.items() if key.startswith(ENVIRONMENT)} for run in runs]


def pairs_sheet(name: str, pairs: Mapping[str, str]) -> Sheet:
    """Return keys and values as a table."""
    rows = [[words(key), words(value)] for key, value in pairs.items()]
    return Sheet(name=name, heads=["name", "value"], rows=rows)


def environment_sheet(comparison: Comparison) -> Sheet | None:
    """Return the libraries and machines in which runs differ; None where all agree."""
    columns = differing([dict(environment) for environment in environments(comparison)])
    if not columns:
        return None
    runs = [run for one in comparison.configurations for run in one.runs]
    rows = [[named(run.name), *(words(values[n]) for values in columns.values())] for n, run in enumerate(runs)]
    return Sheet(name="environment", heads=["run", *columns], rows=rows)


def commands(comparison: Comparison) -> list[tuple[str, list[str]]]:
    """Return each command that a run holds, and the names of its runs with the beginning of their ids."""
    by_command: dict[str, list[str]] = {}
    for one in comparison.everything():
        for run in one.runs:
            if run.tags.get(COMMAND):
                by_command.setdefault(run.tags[COMMAND], []).append(f"{run.name} ({run.run_id[:8]})")
    return list(by_command.items())


def _with_interval(row: Mapping[Any, Any], name: str, sign: str = "") -> Cell:
    value, low, high = (row[name + end] for end in ("", "_low", "_high"))
    return figure(value, 4, f"[{low:{sign}.4f}, {high:{sign}.4f}]", sign)


def _p(value: float) -> Cell:
    if math.isfinite(value) and value < SMALLEST_P:
        return Cell(text=small(value), key=value, is_number=True)
    return figure(value)


def _setting(value: str | None) -> Cell:
    """Return a setting as it was given; a number is sorted as one."""
    try:
        key = float(value or "")
    except ValueError:
        return words(value)
    return Cell(text=str(value), key=key if math.isfinite(key) else None)


def _any(value: Any, is_whole: bool) -> Cell:
    """Return whatever a table of pandas holds as a cell; `whole` numbers have no digits after the point."""
    if isinstance(value, str | bool) or not hasattr(value, "__float__"):
        return words("" if _is_missing(value) else value)
    number = math.nan if _is_missing(value) else float(value)
    if is_whole:
        return figure(number, 0)
    return figure(number, 4 if number == 0 or SMALLEST <= abs(number) < LARGEST else None)


def _is_missing(value: Any) -> bool:
    import pandas as pd

    return pd.api.types.is_scalar(value) and bool(pd.isna(value))
