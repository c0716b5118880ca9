"""`hydra/sweeper=grid`, the default of `--multirun`: every combination of the values."""

from pathlib import Path
from typing import TYPE_CHECKING

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser

from sentexp.config.explain import COMPOSITION_ERRORS, require_values
from sentexp.errors import require
from sentexp.sweeps.choosing import at_the_best, check_choice, one_of_each, split_by_seed
from sentexp.sweeps.launch import Job
from sentexp.sweeps.sweeper import RunSweeper
from sentexp.tracking.run_names import run_names

if TYPE_CHECKING:
    from sentexp.sweeps.sweep_dir import Outcome


class GridSweeper(RunSweeper):
    """Hydra's sweeper over every combination."""

    def sweep(self, arguments: list[str]) -> "list[Outcome]":
        """Run every combination and return what became of each, in order.

        Raises:
            UserError: a value that is out of range in any of the runs, or that needs several processes for each:
                nothing has been started.
            SweepFailed: some of the runs failed; the others are finished.
        """
        words = self.with_preset(arguments)
        overrides = OverridesParser.create(config_loader=self.hydra_context.config_loader).parse_overrides(words)
        for override in overrides:
            require_values(override)
            require(
                not override.is_interval_sweep(),
                f"{override.input_line} has no end of values: give some, such as {override.key_or_group}=1,2,3, or "
                "search it with hydra/sweeper=optuna.",
            )
        (runs,) = BasicSweeper.split_arguments(overrides, None)
        jobs = self.compose(runs, run_names(runs))
        if len(jobs) == 1:  # nothing tells it from others
            jobs = self.compose(runs, [jobs[0].config.title])
        check_choice(jobs)
        try:
            if any(job.config.sweep.dry_run for job in jobs):
                self.plan(one_of_each(jobs))
                return []
            if any(job.config.sweep.quick for job in jobs):
                self.quick(jobs)
                return []
            return self._run(jobs, words)
        except COMPOSITION_ERRORS as error:  # a fault of sentexp's own, not of the configuration
            raise RuntimeError("the sweep broke off") from error

    def _run(self, jobs: list[Job], words: list[str]) -> "list[Outcome]":
        """Run what is not finished, under the sweep's own MLflow run."""
        self.load_libraries(jobs)
        from sentexp.run.recording import track_run
        from sentexp.sweeps.report import print_beginning
        from sentexp.tracking.identity import digest_of, settings

        first, later = split_by_seed(jobs)
        total = len(one_of_each(jobs))
        folder = self.begin(total, jobs[0].config)
        earlier = self.find_results(jobs)
        identity = digest_of("sweep", sorted(digest_of(settings(job.config)) for job in jobs))
        axes = {key: ",".join(values) for key, values in _axes(jobs).items()}
        parent = self.open_parent("sweep", jobs[0].config, identity, axes, words)
        with track_run(parent):
            interrupted = sum(job.number not in earlier and _is_interrupted(job) for job in first)
            finished = sum(job.number in earlier for job in first)
            print_beginning("Sweep", total, finished, interrupted, parent.run_id, folder.path)
            self.finish(first, earlier, parent, folder)
            if later:
                chosen = at_the_best(first, later, folder.outcomes(), jobs[0].config.trainer.monitor)
                self.finish(chosen, earlier, parent, folder)
            return self.conclude(jobs[0].config, parent, folder)


def _is_interrupted(job: Job) -> bool:
    """Tell whether an earlier process began the run and did not end it."""
    from sentexp.tracking.run_dir import STATE

    return job.identity is not None and (Path(job.config.output_dir) / job.identity / STATE).is_file()


def _axes(jobs: list[Job]) -> dict[str, list[str]]:
    """Return the keys whose values differ between jobs, and the values."""
    values: dict[str, list[str]] = {}
    for job in jobs:
        for override in job.overrides:
            key, _, value = override.partition("=")
            if value not in values.setdefault(key, []):
                values[key].append(value)
    return {key: different for key, different in values.items() if len(different) > 1 and key != "sweep.name"}
