"""Runs on the same rows: the predictions of each, and which runs differ only in their seed."""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sentexp.compare.run_selection import SHORTEST_ID, Selection, select, settings_of
from sentexp.config import CompareConfig, TargetKind, kind_of
from sentexp.errors import UserError, listed, require
from sentexp.tracking.identity import LATER
from sentexp.tracking.predictions import Predictions, file_name, read_predictions
from sentexp.tracking.run_names import run_names
from sentexp.tracking.store import Store, read_artifact

if TYPE_CHECKING:
    from sentexp.tracking.sqlite_reader import Run

FEWEST_ROWS = 30
"""Fewer rows show no difference, and their intervals are unreliable."""
BASES = ("untuned", "linear_probe", "tfidf", "majority")
"""What a result is compared with unless something is named, by preference."""


@dataclass(kw_only=True, slots=True, eq=False)
class Scored:
    """A run and its predictions: `probabilities` float32, shape (rows, classes); `file` holds the texts as well.

    `thresholds` are the probabilities from which each label holds, where a text has any number of them.
    """

    run_id: str
    name: str
    seed: str
    probabilities: NDArray[Any]
    file: Path
    settings: dict[str, Any]
    metrics: dict[str, float]
    tags: dict[str, str]
    thresholds: list[float] | None = None


@dataclass(kw_only=True, slots=True, eq=False)
class Configuration:
    """What is ranked: a configuration and its runs, one for each seed; or a baseline, which is not ranked."""

    name: str
    runs: list[Scored]
    baseline: str = ""


@dataclass(kw_only=True, slots=True, eq=False)
class Comparison:
    """Configurations and baselines on the same rows of a split.

    `targets` are class indices or scores, shape (rows,), or sets of labels, shape (rows, labels); `slices` are numbers
    of values and the values, by slice column.
    """

    title: str
    split: str
    labels: list[str]
    ids: NDArray[Any]
    targets: NDArray[Any]
    slices: dict[str, tuple[NDArray[Any], list[str]]]
    configurations: list[Configuration]
    baselines: list[Configuration] = field(default_factory=list)
    parent_id: str | None = None
    store: Store | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def kind(self) -> TargetKind:
        """What the runs predict."""
        return kind_of(self.labels, self.targets if self.targets.ndim > 1 else None)

    def everything(self) -> list[Configuration]:
        """Return the configurations and, after them, the baselines."""
        return [*self.configurations, *self.baselines]

    def find(self, key: str, name: str) -> Configuration:
        """Return a configuration or baseline by its name, its kind of baseline, or the beginning of a run's id.

        Args:
            key: what the name was given as, for the message.
            name: of it.

        Raises:
            UserError: there is none.
        """
        for one in self.everything():
            by_id = len(name) >= SHORTEST_ID and any(run.run_id.startswith(name) for run in one.runs)
            if by_id or name in (one.name, one.baseline):
                return one
        names = ", ".join(
            [listed([one.name for one in self.configurations]), *(one.baseline for one in self.baselines)]
        )
        unread = "" if self.split == "test" else "; baselines are compared on the test rows only"
        raise UserError(
            f"{key}={name} is not among what is compared: it must be one of {names}, or a run's id{unread}."
        )


def load(config: CompareConfig, group: bool = True) -> Comparison:
    """Find the runs, and read their predictions.

    Args:
        config: which runs, and on which split.
        group: make one configuration of the runs that differ only in their seed.

    Raises:
        UserError: there is nothing to compare, runs were tested on different rows, or these rows tell nothing.
    """
    selection = select(config)
    split = config.split.value
    rows = _Rows(selection, split)
    scored = [rows.read(run, required=True) for run in selection.runs]
    rows.require_alike()
    first = rows.first
    require(
        len(first.targets) >= FEWEST_ROWS,
        f"{selection.title}: {len(first.targets)} {split} rows are too few to compare runs: at least {FEWEST_ROWS} "
        "are needed, and hundreds to see a difference of some points.",
    )
    _require_several(selection.title, split, first)
    ranked = [run for run in scored if run is not None]
    latest = _latest(ranked) if group else ranked
    notes = [selection.left_out] if selection.left_out else []
    kept = {run.run_id for run in latest}
    if repeated := [run.name for run in ranked if run.run_id not in kept]:
        notes.append(f"Runs were repeated with the same seed, and the last of each counts: {listed(repeated)}.")
    comparison = Comparison(
        title=selection.title,
        split=split,
        labels=first.labels,
        ids=first.ids,
        targets=first.targets,
        slices=first.slices,
        configurations=_configurations(latest, group),
        parent_id=None if selection.parent is None else selection.parent.info.run_id,
        store=selection.store,
        notes=notes,
    )
    if split == "test":
        comparison.baselines = _baselines(selection, rows)
    return comparison


def _require_several(title: str, split: str, rows: Predictions) -> None:
    """Refuse rows that are all alike."""
    kind, first = kind_of(rows.labels, rows.thresholds), rows.targets[0]
    one, what = "set of labels", "labelled alike"
    if kind is not TargetKind.label_sets:
        one, what = ("score", first) if kind is TargetKind.scores else ("class", rows.labels[first])
    require(
        bool((rows.targets != first).any()),
        f"{title}: all {len(rows.targets)} {split} rows are {what}, and with one {one} there is nothing to compare.",
    )


class _Rows:
    """Reads predictions, and keeps which rows each run was tested on."""

    def __init__(self, selection: Selection, split: str) -> None:
        self.selection, self.split = selection, split
        self.first: Predictions
        self.groups: list[tuple[Predictions, list[str]]] = []

    def read(self, run: "Run", required: bool) -> Scored | None:
        """Return a run with its predictions, whose rows are in the order of the first run's; None without any."""
        name = f"{run.info.run_name} ({run.info.run_id[:8]})"
        file = self.selection.store.artifact(run.info.run_id, file_name(self.split))
        if file is None:
            if not required:
                return None
            raise UserError(
                f"Run {name} holds no predictions for the {self.split} split: its artifact {file_name(self.split)} was "
                "deleted, or an older version of sentexp recorded it. Leave it out with runs=[...], or train it again "
                "with sweep.rerun=true."
            )
        predictions = read_predictions(file)
        if not self.groups:
            self.first = predictions
            self.groups.append((predictions, []))
        for group, names in self.groups:
            order = _order(group, predictions)
            if order is not None:
                names.append(name)
                break
        else:
            if not required:
                return None
            self.groups.append((predictions, [name]))
            order = np.arange(len(predictions.targets))
        return Scored(
            run_id=run.info.run_id,
            name=run.info.run_name,
            seed=run.data.params.get("seed", ""),
            probabilities=predictions.probabilities[order],
            file=file,
            settings=settings_of(run),
            metrics=dict(run.data.metrics),
            tags=dict(run.data.tags),
            thresholds=predictions.thresholds,
        )

    def require_alike(self) -> None:
        """Refuse runs that were tested on different rows."""
        groups = "; ".join(f"{len(predictions.targets):,} rows: {listed(names)}" for predictions, names in self.groups)
        require(
            len(self.groups) < 2,  # noqa: PLR2004
            f"{self.selection.title} holds runs that were measured on different {self.split} rows, so their metrics "
            f"cannot be ranked ({groups}): choose runs of the same rows with runs=[...] or filter=...",
        )


def _order(reference: Predictions, other: Predictions) -> NDArray[Any] | None:
    """Return where the rows of one are in the other; None where they are not the same rows with the same labels."""
    kinds = [kind_of(one.labels, one.thresholds) for one in (reference, other)]
    if kinds[0] is not kinds[1] or reference.labels != other.labels or len(reference.ids) != len(other.ids):
        return None
    if np.array_equal(reference.ids, other.ids):
        order = np.arange(len(other.ids))
    else:
        ours, theirs = np.argsort(reference.ids, kind="stable"), np.argsort(other.ids, kind="stable")
        if not np.array_equal(reference.ids[ours], other.ids[theirs]):
            return None
        order = np.empty(len(ours), np.int64)
        order[ours] = theirs
    return order if np.array_equal(reference.targets, other.targets[order]) else None


def _latest(scored: list[Scored]) -> list[Scored]:
    """Return the runs without those that come again later: trained once more, they are no other seed."""
    runs = {(json.dumps(one.settings, sort_keys=True), one.seed, one.tags.get("identity")): one for one in scored}
    return list(runs.values())


def _configurations(scored: list[Scored], group: bool) -> list[Configuration]:
    """Return the runs by configuration, each with a name of its own."""
    groups: dict[str, list[Scored]] = {}
    for one in scored:
        groups.setdefault(json.dumps(one.settings, sort_keys=True) if group else one.run_id, []).append(one)
    several = any(len(members) > 1 for members in groups.values())
    named = [
        Configuration(name=_without_seed(members[0].name) if several else members[0].name, runs=members)
        for members in groups.values()
    ]
    if len({configuration.name for configuration in named}) < len(named):
        settings = [{key: str(value) for key, value in LATER.items()} | one.runs[0].settings for one in named]
        words = [[f"{key}={one[key]}" for key in sorted(set.intersection(*map(set, settings)))] for one in settings]
        names = run_names(words)
        unique = len(set(names)) == len(names)
        for configuration, name in zip(named, names, strict=True):
            configuration.name = name if unique else f"{configuration.name} {configuration.runs[0].run_id[:8]}"
    return named


def _without_seed(name: str) -> str:
    return re.sub(r"(^| )seed=\d+", "", name).strip() or "defaults"


def _baselines(selection: Selection, rows: _Rows) -> list[Configuration]:
    """Return what the runs were compared with when they were tested, once each, where it was on the same rows."""
    baselines: dict[str, Configuration] = {}
    seen: set[str | None] = {None}
    for run in selection.runs:
        text = read_artifact(selection.store, run.info.run_id, "result.json")
        for kind, facts in (json.loads(text)["baselines"] if text is not None else {}).items():
            run_id = facts["run_id"]
            if run_id in seen:
                continue
            seen.add(run_id)
            baseline = selection.store.get_run(run_id)
            scored = None if baseline is None else rows.read(baseline, required=False)
            if scored is not None:
                baselines[run_id] = Configuration(name=facts["title"], runs=[scored], baseline=kind)
    compared_ids = {run.info.run_id for run in selection.runs}
    kept = [one for run_id, one in baselines.items() if run_id not in compared_ids]
    return sorted(kept, key=lambda one: BASES.index(one.baseline) if one.baseline in BASES else len(BASES))
