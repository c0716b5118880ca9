"""One run, from its configuration to its result: the protocol of the experiment, top to bottom."""

import time
from functools import partial
from pathlib import Path

from sentexp import __version__
from sentexp.config import Config
from sentexp.distributed import processes
from sentexp.distributed.launch import require_launched
from sentexp.errors import require
from sentexp.run import report
from sentexp.run.finished import finished_result
from sentexp.run.fitting import fit_and_test
from sentexp.run.inputs import RunSpec, choose_arithmetic, prepare_inputs, resolve_inputs, run_identity
from sentexp.run.out_of_memory import with_smaller_batches
from sentexp.run.recording import (
    CONFIG,
    record_early_failure,
    record_inputs,
    record_result,
    start_or_resume_run,
    track_run,
)
from sentexp.run.resolve import is_follower, resolve_config
from sentexp.run.result import Result
from sentexp.run.weights_card import write_weights_card
from sentexp.system.console import OUT
from sentexp.system.memory import limit_kernel_caches, release_memory
from sentexp.tracking.run_dir import RunDir
from sentexp.training.checkpoint import remove_checkpoints
from sentexp.training.pruning import PruningPolicy


def train(config: Config, policy: PruningPolicy | None = None) -> Result:
    """Train, test and record one configuration; in several processes, if `trainer.strategy` says so, together.

    A run that was killed or pruned resumes from its last checkpoint; one that is finished is not trained again, unless
    `sweep.rerun` says so: its result is returned.

    Args:
        config: of the run.
        policy: may stop the training after an evaluation.

    Raises:
        Pruned: the policy has stopped it.
        UserError: anything in the configuration, the data or the store that the user can fix.
        ProcessFailed: another process of the run has failed.
    """
    started = time.monotonic()
    limit_kernel_caches()
    require_launched(config.trainer.strategy)
    OUT.quiet = OUT.quiet or is_follower(config)
    config = resolve_config(config)
    with record_early_failure(config):
        spec = resolve_inputs(config)  # before processes join: then only the first writes a converted model
        device, *_ = choose_arithmetic(spec)  # what cannot be had here leaves no folder
    with processes.process_group(config.trainer.strategy, device), _run_dir(spec) as run_dir:
        if (result := finished_result(spec, run_dir)) is not None:
            return result
        with record_early_failure(config):
            inputs = prepare_inputs(spec)
        logger = start_or_resume_run(inputs, run_dir, config)
        with track_run(logger):
            record_inputs(logger, inputs, run_dir.path)
            attempt = partial(fit_and_test, inputs, logger, run_dir, policy)
            result = with_smaller_batches(attempt, inputs, logger, run_dir)
            write_weights_card(result, inputs.config, inputs.data_audit, run_dir.path / CONFIG)
            result = record_result(logger, result, inputs.config, started)
        run_dir.clear_state()
        remove_checkpoints(run_dir.path)
    report.print_run(result, inputs.config)
    release_memory()  # the adapter is in reference cycles: the next run of a sweep must find it gone (law 8)
    return result


def _run_dir(spec: RunSpec) -> RunDir:
    """Return the folder of a run, whose name is its identity, which all processes must find alike."""
    identity = run_identity(spec)
    _require_alike((identity, __version__))
    _require_rows(spec.config)
    return RunDir(Path(spec.config.output_dir) / identity, wait=spec.config.sweep.name is not None)


def _require_rows(config: Config) -> None:
    rows, count = config.trainer.batch_size, processes.world_size()
    require(
        rows >= count,
        f"trainer.batch_size={rows} are the rows of all {count} processes together: use {count} or more (and less of "
        "trainer.accumulate_grad_batches for the same effective batch), or fewer processes.",
    )


def _require_alike(identity: tuple[str, str]) -> None:
    """Refuse processes that have found other data, another model or other code than the main one."""
    identities = processes.all_gather(identity)
    others = [str(rank) for rank, other in enumerate(identities) if other != identities[0]]
    require(
        not others,
        f"Process {', '.join(others)} has found other data, another model or another version of sentexp than process "
        "0: all machines of a run need the same files.",
    )
