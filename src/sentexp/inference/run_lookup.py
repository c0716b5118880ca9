"""Which run is meant by `run=`: the latest, the best of the latest sweep, one by its identity or name, or a folder."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sentexp.config import ChosenRun, TrackingBackend, TrackingConfig
from sentexp.config.metric_names import LOWER_IS_BETTER
from sentexp.errors import UserError, require
from sentexp.inference.recent_runs import LISTED, ended_runs, identity_of, list_recent
from sentexp.models.saved import FACTS, FOLDERS, Trained, read_trained, require_no_pickle
from sentexp.system.console import tell, waiting
from sentexp.system.json_files import read_json
from sentexp.tracking.queries import find_sweeps, is_run, runs_beginning, runs_named, runs_of_sweep
from sentexp.tracking.run_dir import RESULT, STATE
from sentexp.tracking.store import Store, describe_store, find_store, read_artifact

if TYPE_CHECKING:
    from sentexp.tracking.sqlite_reader import Run

LATEST, BEST, REGISTERED = "latest", "best", "models:/"
SHORTEST = 4
LAST = "the latest finished run"


@dataclass(kw_only=True, slots=True)
class Finished:
    """A finished run: its trained weights, what people call it, and its MLflow run where it has one."""

    name: str
    trained: Trained
    run: "Run | None" = None
    store: Store | None = None


def chosen_run(config: ChosenRun) -> Finished:
    """Return the run that a command is to use; where it names none, the latest finished one, and say so.

    Raises:
        UserError: see `resolve_run`.
    """
    with waiting("Looking for the run"):
        finished = resolve_run(LATEST if config.run is None else config.run, config.tracking, config.output_dir)
    if config.run is None:
        tell(f"No run= is given, so this is {finished.name}.")
        finished.name = finished.name.removesuffix(f", {LAST}")
    return finished


def resolve_run(wanted: str, tracking: TrackingConfig, output_dir: str) -> Finished:
    """Return the run that is wanted.

    Args:
        wanted: `latest`, `best`, an identity or MLflow run id or its beginning, the name of a run, a run's folder, its
            folder of weights, or a registered model, as `models:/name@alias` or `models:/name/version`.
        tracking: where runs are recorded.
        output_dir: where runs have their folders.

    Raises:
        UserError: there is no such run, there are several, it is not finished, or its weights are gone.
    """
    path = Path(wanted).expanduser()
    if wanted.startswith(REGISTERED):
        return _registered(wanted, tracking)
    store = None if tracking.backend is TrackingBackend.none else find_store(tracking)
    if wanted == LATEST:
        return _latest(LATEST, LAST, store, tracking, output_dir)
    if wanted == BEST:
        return _best(store, tracking, output_dir)
    if path.exists() and (path.is_file() or _is_folder_of_a_run(path)):
        return _in_folder(path, store)
    runs = _recorded(store, wanted)
    begins = len(wanted) >= SHORTEST
    folders = [one for one in Path(output_dir).glob("*") if begins and one.name.startswith(wanted) and _begun(one)]
    _require_one(wanted, {**{identity_of(run): run.info.run_name for run in runs}, **{f.name: "" for f in folders}})
    if runs and store is not None:
        return _of_store(wanted, runs, store)
    if folders:
        return _in_folder(folders[0], store)
    raise UserError(_unknown(wanted, path, store, tracking, output_dir))


def _unknown(wanted: str, path: Path, store: Store | None, tracking: TrackingConfig, output_dir: str) -> str:
    """Return the message for a name that no run has."""
    recent = list_recent(store, output_dir)
    if path.exists():
        return f"run={wanted} holds no run: name a run's folder, or its folder of weights in it{recent}."
    if "/" in wanted:
        return f"run={wanted} does not exist: name a run's folder, or its folder of weights in it{recent}."
    if len(wanted) < SHORTEST:
        return (
            f"run={wanted} is not a run's name, and too short for a beginning: give {SHORTEST} letters or more "
            f"of an identity or MLflow run id{recent}."
        )
    where = f"{describe_store(tracking)} (experiment {tracking.experiment})"
    return (
        f"run={wanted} is not a run in {where}, nor a folder in output_dir={output_dir}: it must be latest, best, the "
        f"name of a run, the beginning of its identity, or its folder{recent}."
    )


def _latest(wanted: str, what: str, store: Store | None, tracking: TrackingConfig, output_dir: str) -> Finished:
    """Return the run that ended last; `what` is added to its name."""
    last = next(ended_runs(store, output_dir), None)
    if last is None:
        raise UserError(
            f"run={wanted}: no run is finished in {describe_store(tracking)} (experiment {tracking.experiment}), nor "
            f"in output_dir={output_dir}: train one with python -m sentexp, or name a run's folder."
        )
    if last.run is not None and store is not None:
        finished = _of_store(wanted, [last.run], store)
    else:
        assert last.folder is not None
        finished = _in_folder(last.folder, store)
    finished.name += f", {what}"
    return finished


def _best(store: Store | None, tracking: TrackingConfig, output_dir: str) -> Finished:
    """Return the run of the latest sweep that is best on its validation rows, or the latest where there is no sweep.

    The test rows select nothing (law 10).
    """
    sweeps = [] if store is None else find_sweeps(store, most=1)
    if not sweeps:
        return _latest(BEST, f"{LAST}, as there is no sweep", store, tracking, output_dir)
    assert store is not None
    runs = [run for run in runs_of_sweep(store, sweeps[0]) if run.info.status == "FINISHED"]
    require(
        bool(runs),
        f"run=best: no run of the latest sweep, {sweeps[0].info.run_name}, is finished: give its command again, or "
        "take run=latest.",
    )
    monitors = {run.data.params.get("trainer.monitor", "") for run in runs}
    require(
        len(monitors) == 1,
        f"run=best: the runs of {sweeps[0].info.run_name} were selected by {', '.join(sorted(monitors))}, which cannot "
        "be compared: name a run.",
    )
    metric = monitors.pop().removeprefix("validation/")
    sign = -1 if metric in LOWER_IS_BETTER else 1
    values = [run.data.metrics.get(f"best/{metric}", math.nan) for run in runs]
    ranked = [place for place, value in enumerate(values) if math.isfinite(value)]
    require(bool(ranked), f"run=best: no run of {sweeps[0].info.run_name} has a validation {metric}: name a run.")
    best = max(ranked, key=lambda place: sign * values[place])
    finished = _of_store(BEST, [runs[best]], store)
    finished.name += f": validation/{metric} {values[best]:.4f}, the best of {sweeps[0].info.run_name}"
    return finished


def _registered(wanted: str, tracking: TrackingConfig) -> Finished:
    """Return the run of a version of a registered model."""
    from mlflow.exceptions import MlflowException

    where = f"run={wanted} is not a version of a registered model in {describe_store(tracking)}"
    name, _, alias = wanted.removeprefix(REGISTERED).partition("@")
    name, _, number = name.partition("/")
    store = None if tracking.backend is TrackingBackend.none else find_store(tracking)
    require(
        store is not None and bool(name) and bool(alias) != bool(number),
        f"{where}: write it as models:/<name>@<alias> or models:/<name>/<version>; python -m sentexp register makes "
        "one.",
    )
    assert store is not None
    try:
        client = store.client
        version = client.get_model_version_by_alias(name, alias) if alias else client.get_model_version(name, number)
        run = store.client.get_run(version.run_id)
    except (MlflowException, UserError) as error:
        raise UserError(f"{where} ({error.__cause__ or error}): python -m sentexp register makes one.") from None
    finished = _of_store(wanted, [run], store)
    finished.name += f", {name} version {version.version}"
    return finished


def _recorded(store: Store | None, wanted: str) -> "list[Run]":
    """Return the MLflow runs of this name, of which the finished ones count; else those whose id or identity begins so.

    The latest come first.
    """
    if store is None:
        return []
    named = [run for run in runs_named(store, wanted) if is_run(run)]
    finished = [run for run in named if run.info.status == "FINISHED"]
    if named or len(wanted) < SHORTEST:
        return finished or named
    return [run for run in runs_beginning(store, wanted) if is_run(run)]


def _require_one(wanted: str, matches: dict[str, str]) -> None:
    listed = ", ".join(
        f"{identity} ({name})" if name else identity for identity, name in list(matches.items())[:LISTED]
    )
    more = ", ..." if len(matches) > LISTED else ""
    require(
        len(matches) <= 1,
        f"run={wanted} is the name or the beginning of {len(matches)} runs: {listed}{more}: give more of one identity.",
    )


def _of_store(wanted: str, runs: "list[Run]", store: Store) -> Finished:
    """Return the latest finished of the MLflow runs of one identity."""
    done = [run for run in runs if run.info.status == "FINISHED"]
    first = (done or runs)[0]
    require(
        bool(done),
        f"run={wanted} ({first.info.run_name}) is {first.info.status}, not FINISHED, so it has no weights: give the "
        "command of that run again, which resumes it.",
    )
    text = read_artifact(store, first.info.run_id, RESULT)
    folder = None if text is None else store.artifact(first.info.run_id, json.loads(text)["weights"])
    if folder is None:
        raise UserError(
            f"run={wanted} ({first.info.run_name}) holds no weights: its artifacts were deleted; give the command of "
            "that run again with sweep.rerun=true."
        )
    trained = read_trained(folder)
    return Finished(name=f"{first.info.run_name} ({trained.identity})", trained=trained, run=first, store=store)


def _is_folder_of_a_run(path: Path) -> bool:
    return path.is_dir() and ((path / FACTS).is_file() or path.name in FOLDERS or _begun(path))


def _begun(folder: Path) -> bool:
    """Tell whether a folder is that of a run, finished or not."""
    return folder.is_dir() and any((folder / name).exists() for name in (STATE, RESULT, *FOLDERS))


def _in_folder(path: Path, store: Store | None) -> Finished:
    """Return the run of a folder, of its weights or of all of it."""
    require_no_pickle(path)
    require(path.is_dir(), f"run={path} is a file: name the folder that it is in.")
    folder = path
    if not (path / FACTS).is_file() and path.name not in FOLDERS:
        require(
            (path / RESULT).is_file() and not (path / STATE).is_file(),
            f"run={path} is not finished: give the command of that run again, which resumes it.",
        )
        folder = path / read_json(path / RESULT)["weights"]
        require(folder.is_dir(), f"{folder}, the weights of the run, is no longer there: train it again.")
    trained = read_trained(folder)
    run = _run_of(trained, store)
    name = trained.identity if run is None else f"{run.info.run_name} ({trained.identity})"
    return Finished(name=name, trained=trained, run=run, store=store)


def _run_of(trained: Trained, store: Store | None) -> "Run | None":
    return None if store is None or trained.run_id is None else store.get_run(trained.run_id)
