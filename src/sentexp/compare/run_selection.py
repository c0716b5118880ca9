"""Which runs are compared: those of a sweep, of an experiment, by their ids, or by MLflow's filter."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from sentexp.config import CompareConfig
from sentexp.errors import UserError, listed, require
from sentexp.tracking.identity import LATER
from sentexp.tracking.queries import EVALUATION, find_sweeps, is_run, runs_beginning, runs_named, runs_of_sweep
from sentexp.tracking.store import Store, describe_store, find_store

if TYPE_CHECKING:
    from sentexp.tracking.sqlite_reader import Run

SHORTEST_ID = 4
LISTED = 5


@dataclass(kw_only=True, slots=True)
class Selection:
    """Runs to compare, all finished, in the order in which they were started; `parent` is the sweep's MLflow run."""

    title: str
    runs: "list[Run]"
    store: Store
    parent: "Run | None" = None
    left_out: str = ""


def select(config: CompareConfig) -> Selection:
    """Return the runs that a configuration asks for.

    Raises:
        UserError: there is no such store, experiment, sweep or run, or none of them is finished.
    """
    experiment = config.experiment_name or config.tracking.experiment
    tracking = replace(config.tracking, experiment=experiment)
    store = find_store(tracking)
    where = f"experiment {experiment} of {describe_store(tracking)}"
    if store is None:
        raise UserError(
            f"There is no {where}: train something first, or name the place with experiment_name=... or "
            "tracking.uri=..."
        )
    if config.runs is not None:
        chosen = _by_ids(store, config.runs, where)
        title = "1 run" if len(chosen) == 1 else f"{len(chosen)} runs"
        return Selection(title=title, runs=chosen, store=store)
    if config.experiment_name is not None or config.filter is not None:
        title = f"experiment {experiment}" if config.filter is None else f"runs of {experiment} where {config.filter}"
        matching = _search(store, config.filter or "", where)
        evaluations = EVALUATION in (config.filter or "")  # they are on other rows: only a filter that names them
        runs = [run for run in reversed(matching) if is_run(run) or (evaluations and EVALUATION in run.data.tags)]
        return _finished(title, runs, store, None, where)
    return _of_sweep(store, config.sweep, where)


def _of_sweep(store: Store, wanted: str | None, where: str) -> Selection:
    """Return the runs of a sweep, the latest where none is named."""
    sweeps = find_sweeps(store, most=1 if wanted is None else None)
    if wanted is None:
        require(
            bool(sweeps),
            f"{where[0].upper()}{where[1:]} holds no sweep: start one with --multirun, or give runs=[...] or "
            "experiment_name=...",
        )
        parent = sweeps[0]
    else:
        named = [run for run in sweeps if run.info.run_id.startswith(wanted) and len(wanted) >= SHORTEST_ID]
        named = named or [run for run in sweeps if run.info.run_name == wanted]
        there = listed([f"{run.info.run_id[:8]} ({run.info.run_name})" for run in sweeps], LISTED) or "none"
        require(
            bool(named),
            f"sweep={wanted} is not a sweep in {where}: it must be the id or the name of its MLflow run; there are: "
            f"{there}.",
        )
        parent = named[0]
    return _finished(parent.info.run_name, runs_of_sweep(store, parent), store, parent, where)


def _finished(title: str, runs: "list[Run]", store: Store, parent: "Run | None", where: str) -> Selection:
    done = [run for run in runs if run.info.status == "FINISHED"]
    others = [run.info.run_name for run in runs if run.info.status != "FINISHED"]
    names = listed(others, LISTED)
    require(
        bool(done),
        f"{title} has no finished run in {where}"
        + (f": {names} did not finish; give the same command again to resume." if others else "."),
    )
    left_out = f"{len(others)} of {len(runs)} runs did not finish and are left out: {names}." if others else ""
    return Selection(title=title, runs=done, store=store, parent=parent, left_out=left_out)


def _by_ids(store: Store, wanted: list[str], where: str) -> "list[Run]":
    """Return runs by ids of MLflow's, identities, or the beginnings of these, or by their names, in that order."""
    chosen = []
    for name in dict.fromkeys(wanted):
        begun = runs_beginning(store, name) if len(name) >= SHORTEST_ID else []
        runs = [run for run in begun if run.info.run_id.startswith(name)] or begun or runs_named(store, name)
        require(
            len(runs) == 1,
            f"runs={name} is {f'{len(runs)} runs' if runs else 'not a run'} in {where}: give {SHORTEST_ID} letters "
            "or more of an identity or an MLflow id; python -m sentexp runs lists all.",
        )
        require(
            runs[0].info.status == "FINISHED",
            f"runs={name} ({runs[0].info.run_name}) is {runs[0].info.status}, so it has no predictions: give the "
            "command of that run again, which resumes it.",
        )
        chosen.append(runs[0])
    return list({run.info.run_id: run for run in chosen}.values())


def _search(store: Store, query: str, where: str) -> "list[Run]":
    try:
        return list(store.search_by(query))
    except UserError as error:
        raise UserError(
            f"filter={query} is not a filter that MLflow can search {where} by ({error.__cause__ or error}): write it "
            "as in filter=\"params.peft = 'lora'\"."
        ) from error


def settings_of(run: "Run") -> dict[str, Any]:
    """Return the parameters of a run that say what it computes, its seed apart.

    Keys of later releases are left out where they stand for what earlier ones did: such runs are of one configuration.
    """
    from sentexp.config import BOOKKEEPING

    params = {key: value for key, value in run.data.params.items() if key not in LATER or value != str(LATER[key])}
    return {key: value for key, value in params.items() if key != "seed" and not key.startswith(BOOKKEEPING)}
