"""`--quick`, which is `sweep.quick=true`: two steps of each kind of run, and every path that a whole run takes.

Nothing is kept: runs have a folder that is deleted, and are recorded nowhere.
"""

import tempfile
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sentexp.config import Config, TrackingBackend, TrackingConfig
from sentexp.errors import UserError
from sentexp.plan.command import in_one_process, measure_kinds, show_data
from sentexp.plan.run_states import Costs, Planned, survey
from sentexp.quick.trial import Trial, try_out
from sentexp.run.cache import clear_cache
from sentexp.run.failures import explain_failure
from sentexp.system.console import duration, say
from sentexp.tracking.next_steps import say_next, sentexp_command
from sentexp.tracking.provenance import given_words
from sentexp.tracking.store import find_store

KEY = "sweep.quick"
PATIENCE = 5.0
"""Seconds for the batches of a stage that are timed; of a large model on the CPU, one takes more."""


@dataclass(kw_only=True, slots=True)
class Kind:
    """Runs that take the same paths at the same cost, and why one of them fails; nothing where all is well."""

    names: list[str]
    failure: str = ""


def quick(configs: Sequence[Config]) -> None:
    """Try two steps of each kind of run, with all that follows a training, and say what would fail.

    Raises:
        UserError: what would fail.
    """
    say("Quick run: two steps, two batches of each evaluation; nothing is kept.")
    for tracking in {config.tracking.uri: config.tracking for config in configs}.values():
        _look_at_store(tracking)
    with tempfile.TemporaryDirectory(prefix="sentexp-quick-") as folder:
        runs = survey([_apart(in_one_process(config), folder) for config in configs])
        show_data(runs)
        kinds = [_try_kind(alike, Path(folder)) for alike in measure_kinds(runs, PATIENCE)]
    tried = {name for kind in kinds for name in kind.names}
    kinds += [Kind(names=[run.name], failure=_why(run)) for run in runs if run.name not in tried and _why(run)]
    clear_cache()
    failed = [kind for kind in kinds if kind.failure]
    if failed:
        one = len(kinds) == 1
        failures = " ".join(kind.failure if one else f"{', '.join(kind.names)}: {kind.failure}" for kind in failed)
        raise UserError(failures if one else f"{len(failed)} of {len(kinds)} kinds of run fail. {failures}")
    say(f"All is well{'' if len(kinds) == 1 else f' with all {len(kinds)} kinds of run'}; nothing was kept.")
    words = given_words(in_sweep=False)
    if words is not None and len(configs) == 1:
        say_next([sentexp_command(*(word for word in words if not word.startswith(KEY)))])


def _apart(config: Config, folder: str) -> Config:
    """Return the configuration of a run that is recorded nowhere, and keeps the base model for the next look at it."""
    sweep = replace(config.sweep, name=config.sweep.name or "this run", parent=None, study=None, trial=None)
    tracking = replace(config.tracking, backend=TrackingBackend.none)
    return replace(config, sweep=sweep, tracking=tracking, output_dir=folder, baseline=False, plots=False)


def _look_at_store(tracking: TrackingConfig) -> None:
    """Find out whether MLflow can record runs there; looking creates nothing."""
    store = None if tracking.backend is TrackingBackend.none else find_store(tracking)
    if store is not None:
        store.client.get_experiment(store.experiment)


def _why(run: Planned) -> str:
    """Return why a run could not be tried."""
    if run.costs is None:
        return run.note if run.standing.value == "cannot start" else ""
    return run.costs.unmeasured


def _try_kind(alike: list[Planned], folder: Path) -> Kind:
    """Try the first of runs that are of one kind, and print what it has shown."""
    names, costs = [run.name for run in alike], alike[0].costs
    assert costs is not None
    assert costs.inputs is not None
    if costs.measured is None:
        return Kind(names=names, failure=costs.unmeasured)
    inputs = replace(costs.inputs, config=replace(costs.inputs.config, trainer=costs.trainer))
    try:
        trial = try_out(inputs, costs.work, folder / str(alike[0].identity))
    except Exception as error:
        explained = explain_failure(error, str(folder))
        if explained is None:
            traceback.print_exc()
        return Kind(names=names, failure=explained or f"{type(error).__name__}: {str(error).partition(chr(10))[0]}.")
    label = "" if names == ["this run"] else f"{', '.join(names)}: "
    for sentence in _sentences(trial, costs):
        say(label + sentence)
    return Kind(names=names)


def _sentences(trial: Trial, costs: Costs) -> list[str]:
    """Return what a quick run has shown."""
    assert costs.measured is not None
    training, evaluation = costs.training_seconds(costs.measured), costs.evaluation_seconds(costs.measured)
    merged = f", merged by {trial.merged:.0e}" if trial.merged is not None else ""
    sentences = [
        f"weights, saved and read again, give the run's probabilities (they differ by {trial.read:.0e} at most{merged})"
    ]
    if trial.unmerged:
        sentences.append(f"merging for exports was not tried: {trial.unmerged}")
    if costs.halved:
        sentences.append(
            f"memory ran out, so the run will use trainer.{costs.trainer.fills_by}={costs.trainer.micro_batch}; its "
            "effective batch stays the same"
        )
    peak = max(trial.peak_gib, costs.measured.peak_gib)
    longest = costs.largest_batch.width
    sentences.append(f"peak memory {peak:.1f} GiB, with the longest rows ({longest:,} tokens)")
    sentences.append(
        f"estimated time of a whole run here: {duration(training + evaluation)} (training {duration(training)}, "
        f"evaluation {duration(evaluation)}; baselines and recording not counted)"
    )
    return [f"{sentence[0].upper()}{sentence[1:]}." for sentence in sentences]
