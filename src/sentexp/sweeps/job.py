"""One run of a sweep, in whatever process: its output goes to its log, its end to the sweep's folder and MLflow run."""

import math
import traceback
from contextlib import redirect_stdout
from dataclasses import replace

from omegaconf import OmegaConf

from sentexp.config import Config
from sentexp.config.metric_names import COSTS
from sentexp.errors import UserError, complain
from sentexp.run.failures import explain_failure
from sentexp.run.recording import without_secrets
from sentexp.run.result import Result
from sentexp.run.train import train
from sentexp.sweeps.gpus import take_gpu
from sentexp.sweeps.report import print_progress
from sentexp.sweeps.sweep_dir import CONFIG, LOG, Outcome, State, SweepFolder
from sentexp.system.json_files import read_json
from sentexp.tracking.run_dir import STATE
from sentexp.tracking.run_logger import open_run_logger
from sentexp.training.pruning import Pruned, PruningPolicy

SHOWN = ("test/", "best/", *COSTS)


def run_job(config: Config, folder: SweepFolder, number: int, policy: PruningPolicy | None = None) -> Outcome:
    """Do one run and return its outcome; a failure is reported, and does not leave this function (law 7).

    Args:
        config: of the run, with the name and the parent that the sweep has given it.
        folder: of the sweep.
        number: of the run.
        policy: may stop the run.
    """
    take_gpu()
    outcome = do_job(config, folder, number, policy)
    if folder.is_here():  # else the launcher takes the outcome to where it is
        report(outcome, config, folder, number)
    return outcome


def do_job(config: Config, folder: SweepFolder, number: int, policy: PruningPolicy | None = None) -> Outcome:
    """Do as `run_job`, and leave it to the process that has begun the sweep to report how the run ended."""
    assert config.sweep.name is not None
    outcome = Outcome(name=config.sweep.name, state=State.not_started)
    if not folder.is_stopped():
        folder.of(number).mkdir(parents=True, exist_ok=True)
        (folder.of(number) / CONFIG).write_text(OmegaConf.to_yaml(OmegaConf.structured(without_secrets(config))))
        with (folder.of(number) / LOG).open("a", encoding="utf-8") as log, redirect_stdout(log):
            try:
                outcome = outcome_of(train(config, policy), config)
            except Pruned as pruned:
                print(f"Pruned: {pruned}.")
                outcome = _pruned(outcome.name, pruned)
            except Exception as error:
                explained = explain_failure(error, config.output_dir)
                if explained is None:
                    traceback.print_exc()
                sentence = explained or f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
                complain(f"{outcome.name}: {sentence}")
                outcome = replace(outcome, state=State.failed, error=sentence)
                print(explained or traceback.format_exc())  # last: the log may be on the disk that failed
    return outcome


def _pruned(name: str, pruned: Pruned) -> Outcome:
    """Return the outcome of a run that was stopped; its folder holds the checkpoint that it can resume from."""
    state = read_json(pruned.snapshot.folder / STATE)
    return Outcome(
        name=name,
        state=State.pruned,
        identity=state["identity"],
        run_id=state["run_id"],
        objective=pruned.snapshot.value,
        error=str(pruned),
    )


def report(outcome: Outcome, config: Config, folder: SweepFolder, number: int) -> None:
    """Tell the end of a run: in the sweep's folder, on the console, and on its MLflow run."""
    folder.write(number, outcome)
    print_progress(outcome, folder.progress(), config.trainer.monitor)
    log_progress(config, folder)


def outcome_of(result: Result, config: Config, earlier: bool = False) -> Outcome:
    """Return the outcome of a finished run."""
    assert config.sweep.name is not None
    return Outcome(
        name=config.sweep.name,
        state=State.finished,
        identity=result.identity,
        run_id=result.run_id,
        objective=result.objective,
        metrics={key: value for key, value in result.metrics.items() if key.startswith(SHOWN)},
        earlier=earlier,
    )


def log_progress(config: Config, folder: SweepFolder) -> None:
    """Record on the sweep's own MLflow run how far it is; a store that cannot be used now does not fail the run."""
    if config.sweep.parent is None:
        return
    progress = folder.progress()
    values: dict[str, float] = {
        "sweep/ended": progress.ended,
        "sweep/failed": progress.failed,
        "sweep/runs": progress.total,
    }
    best = math.nan if progress.best is None else progress.best.objective
    if math.isfinite(best):
        values |= {f"sweep/best_{config.trainer.monitor.rpartition('/')[2]}": best}
    try:
        open_run_logger(config.tracking, "", config.sweep.parent).log_metrics(values, progress.ended)
    except (UserError, OSError):
        complain("The progress of the sweep could not be recorded.")
