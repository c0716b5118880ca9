"""The report: one HTML file that needs no network, with tables that are searched and sorted, and prediction_plots.

Whatever comes from the data or from a store is text: Jinja escapes it, pictures hold it as outlines, and the page's
own Content-Security-Policy names the one script and the one style that it has, by their digests.
"""

import base64
import hashlib
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from sentexp.compare import prediction_plots, sweep_plots
from sentexp.compare.comparison import Comparison
from sentexp.compare.leaderboard import Leaderboard
from sentexp.compare.learning_curve_plot import learning_curve_picture
from sentexp.compare.report_tables import (
    Sheet,
    commands,
    differences_sheet,
    environment_sheet,
    environments,
    frame_sheet,
    leaderboard_sheet,
    left_out,
    pairs_sheet,
    settings_sheet,
)
from sentexp.compare.settings import shared
from sentexp.config import TargetKind
from sentexp.errors import listed
from sentexp.plots.style import to_svg
from sentexp.system.atomic_write import write_atomic

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


@dataclass(kw_only=True, slots=True)
class Picture:
    """A figure as SVG in base 64, what it shows to those who do not see it, and what to look at."""

    svg: str
    alt: str
    caption: str


@dataclass(kw_only=True, slots=True)
class Part:
    """A table of a section; a folded one is opened by a click."""

    sheet: Sheet
    title: str = ""
    folded: bool = False


@dataclass(kw_only=True, slots=True)
class Section:
    """A part of the report with a head of its own; one that holds nothing is left out."""

    anchor: str
    title: str
    text: str = ""
    pictures: list[Picture] = field(default_factory=list)
    parts: list[Part] = field(default_factory=list)
    commands: list[tuple[str, str]] = field(default_factory=list)


MOST_COMMANDS = 50
Drawing = tuple[Callable[[], "Figure | None"], str, str]
"""What draws a picture, what it shows, and what to look at."""


def write_report(
    board: Leaderboard,
    comparison: Comparison,
    file: Path,
    *,
    slices: "pd.DataFrame | None" = None,
    tables: "Sequence[tuple[str, pd.DataFrame]]" = (),
    seed: int = 0,
) -> None:
    """Write the report of a comparison; the file is whole or absent.

    Args:
        board: the leaderboard of the comparison.
        comparison: the runs and their predictions.
        file: to write, with the ending .html.
        slices: metrics by slice, if there are any.
        tables: of run against run, with a title for each.
        seed: of the resamples behind the bands of the curves.
    """
    sections = [
        Section(
            anchor="leaderboard", title="Leaderboard", text=_intervals(board), parts=_parts(leaderboard_sheet(board))
        ),
        Section(anchor="differences", title="Differences", text=_tests(board), parts=_parts(differences_sheet(board))),
        Section(anchor="pictures", title="Pictures", pictures=_pictures(board, comparison, seed)),
        Section(
            anchor="slices", title="Slices", parts=_parts(None if slices is None else frame_sheet("slices", slices))
        ),
        Section(anchor="pairs", title="Run against run", parts=[_titled(title, frame) for title, frame in tables]),
        _settings(comparison),
        _environment(comparison),
        _commands(comparison),
    ]
    text = _page(board, comparison, [one for one in sections if one.pictures or one.parts or one.commands])
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(file, text.encode(errors="replace"))


def _page(board: Leaderboard, comparison: Comparison, sections: Sequence[Section]) -> str:
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["digest"] = _digest
    template = environment.from_string(files(__package__).joinpath("report.html.j2").read_text(encoding="utf-8"))
    count, runs = len(comparison.configurations), sum(len(one.runs) for one in comparison.configurations)
    counted = f"{count} configurations, {runs} runs" if runs > count else f"{count} configurations"
    return template.render(
        title=comparison.title,
        summary=f"{counted} on the same {len(comparison.targets):,} {comparison.split} rows, ranked by {board.metric}.",
        notes=board.notes,
        sections=sections,
        numbers=_Numbers(),
    )


class _Numbers:
    """Counts the tables of the page, so that each has an id of its own."""

    def __init__(self) -> None:
        self.next = itertools.count(1).__next__


def _digest(text: str) -> str:
    """Return how a Content-Security-Policy names a script or a style."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _parts(sheet: Sheet | None) -> list[Part]:
    return [] if sheet is None else [Part(sheet=sheet)]


def _titled(title: str, frame: "pd.DataFrame") -> Part:
    return Part(sheet=frame_sheet(title, frame), title=title)


def _intervals(board: Leaderboard) -> str:
    return (
        f"Below each metric is its {board.level} interval. Configurations that share a rank do not "
        "differ significantly from the best of that rank. Click a head to sort." + left_out(board)
    )


def _tests(board: Leaderboard) -> str:
    return (
        f"Differences in {board.metric} on the same rows with their {board.level} intervals, and p-values: "
        "raw, corrected by Holm's method, from which ranks follow, and by that of Benjamini and Hochberg."
        + left_out(board)
    )


def _pictures(board: Leaderboard, comparison: Comparison, seed: int) -> list[Picture]:
    """Return what can be drawn of a comparison, with what to look at."""
    metric, level = board.metric, board.level
    drawings: list[Drawing] = [
        (
            lambda: sweep_plots.axis_picture(board),
            f"{metric} against each numeric setting that was swept",
            f"Look for a trend that is larger than the {level} intervals, and for lines that cross: there the best "
            "value of one setting depends on another.",
        ),
        (
            lambda: sweep_plots.pareto_picture(board),
            f"{metric} against costs, with the Pareto front",
            "Choose among the filled points: each other one is matched or beaten in quality by one that costs no more. "
            f"Grey lines are {level} intervals; the ranks say which differ significantly.",
        ),
        (
            lambda: learning_curve_picture(board),
            "Error against training rows, with a power law",
            "What more rows would give; in brackets is its interval over resamples of the test rows. The curve beyond "
            "the points is an extrapolation.",
        ),
        *_own_drawings(board, comparison, seed),
    ]
    drawn = [(draw(), alt, caption) for draw, alt, caption in drawings]
    return [
        Picture(svg=_encoded(figure), alt=alt, caption=caption) for figure, alt, caption in drawn if figure is not None
    ]


def _own_drawings(board: Leaderboard, comparison: Comparison, seed: int) -> "list[Drawing]":
    """Return what is drawn of classes or of scores alone; sets of labels have a table of the labels."""
    match comparison.kind:
        case TargetKind.scores:
            return _of_scores(board, comparison)
        case TargetKind.label_sets:
            return []
    return _of_classes(board, comparison, seed)


def _of_scores(board: Leaderboard, comparison: Comparison) -> "list[Drawing]":
    return [
        (
            lambda: prediction_plots.scores_picture(board, comparison),
            "Predicted over true scores of the best configurations",
            "On the grey line they are equal; a cloud that is flatter than it predicts too near to the mean.",
        )
    ]


def _of_classes(board: Leaderboard, comparison: Comparison, seed: int) -> "list[Drawing]":
    level = board.level
    return [
        (
            lambda: prediction_plots.roc_picture(board, comparison, seed=seed),
            "ROC curves of the best configurations",
            f"The higher the better; where the dashed curve of the first leaves the {level} band, the two differ. "
            "Bands show the noise of the test rows.",
        ),
        (
            lambda: prediction_plots.precision_recall_picture(board, comparison, seed=seed),
            "Precision over recall of the best configurations",
            "The higher the better; the grey line is chance. Look here first when a label is rare.",
        ),
        (
            lambda: prediction_plots.reliability_picture(board, comparison),
            "Accuracy over confidence of the best configurations",
            "On the grey line confidence equals accuracy; points below it are overconfident, points above it "
            "underconfident.",
        ),
        (
            lambda: prediction_plots.confusion_picture(board, comparison),
            "Confusion matrices of the best configurations",
            "Rows are true labels: a dark cell off the diagonal is a confusion that happens often.",
        ),
    ]


def _encoded(figure: "Figure") -> str:
    """Return a figure for an address of its own: its ids clash with none, and nothing in it runs."""
    return base64.b64encode(to_svg(figure).encode()).decode()


def _settings(comparison: Comparison) -> Section:
    runs = [run.settings for one in comparison.configurations for run in one.runs]
    section = Section(anchor="settings", title="Settings", parts=_parts(settings_sheet(comparison)))
    if same := shared(runs):
        sheet = pairs_sheet("shared settings", same)
        section.parts.append(Part(sheet=sheet, title=f"{len(same)} settings that all runs share", folded=True))
    return section


def _environment(comparison: Comparison) -> Section:
    section = Section(anchor="environment", title="Environment", parts=_parts(environment_sheet(comparison)))
    if same := shared([dict(one) for one in environments(comparison)]):
        agree = "all runs agree" if not section.parts else "the same for all runs"
        section.parts.append(
            Part(sheet=pairs_sheet("environment", same), title=f"Libraries and machine: {agree}", folded=True)
        )
    return section


def _commands(comparison: Comparison) -> Section:
    every = commands(comparison)
    text = "The command that repeats each run, for the folder where it was started."
    if len(every) > MOST_COMMANDS:
        text += f" These are {MOST_COMMANDS} of {len(every):,}; MLflow has the others, as the tag command of each run."
    shown = [(command, listed(runs)) for command, runs in every[:MOST_COMMANDS]]
    return Section(anchor="commands", title="Commands", text=text, commands=shown)
