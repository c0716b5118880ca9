"""`hydra/sweeper=optuna`: a search for good values, each trial a run of the sweep, over the current Optuna.

The study is kept in a file: the same command continues up to `n_trials` in all. What it does is in `trials`.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from sentexp.config import Config, Pruner, Sampler, SearchConfig
from sentexp.config.explain import COMPOSITION_ERRORS
from sentexp.errors import complain, require
from sentexp.search.space import Space
from sentexp.sweeps.launch import Job, is_one_by_one
from sentexp.sweeps.sweeper import RunSweeper

if TYPE_CHECKING:
    from hydra.types import HydraContext, TaskFunction

    from sentexp.search.trials import Search
    from sentexp.sweeps.sweep_dir import Outcome

ROW_METRICS = ("accuracy", "loss", "brier")
"""Metrics that are means over rows, so that two runs can be compared row by row."""


class OptunaSweeper(RunSweeper):
    """Hydra's sweeper over Optuna.

    Args:
        params: overrides, swept or not, that come before those of the command line; for presets.
        options: the other keys of `SearchConfig`, read in `setup`.
    """

    def __init__(self, params: Mapping[str, Any] | None = None, **options: Any) -> None:
        del options
        super().__init__(params)
        self.options: SearchConfig

    def setup(self, *, hydra_context: "HydraContext", task_function: "TaskFunction", config: DictConfig) -> None:
        """Check the options of the search."""
        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)
        options = OmegaConf.to_object(config.hydra.sweeper)
        assert isinstance(options, SearchConfig)
        if is_one_by_one(self.launcher) and options.n_jobs > 1:
            complain(
                f"hydra.sweeper.n_jobs={options.n_jobs} needs a launcher that does several at once, such as "
                "hydra/launcher=fused or joblib: the trials run one after the other."
            )
            options = replace(options, n_jobs=1)
        self.options = options

    def sweep(self, arguments: list[str]) -> "list[Outcome]":
        """Run trials until there are `n_trials`, and return what became of each.

        Raises:
            UserError: a value that no run can have, a rule that cannot be followed, a storage that cannot be used.
            SweepFailed: some of the runs failed.
        """
        words = self.with_preset(arguments)
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        space = Space(parser.parse_overrides(words))
        if self.options.sampler is Sampler.grid:
            space.grid()
        corners = space.corners()
        jobs = self.compose([space.overrides(values) for values in corners], [space.name(values) for values in corners])
        check_pruner(self.options, jobs[0].config)
        self.load_libraries(jobs)
        from sentexp.search.trials import Search

        search = Search(self, self.options, space, jobs[0].config, words)
        try:
            if jobs[0].config.sweep.dry_run:
                self._plan(search, jobs)
                return []
            if jobs[0].config.sweep.quick:
                self.quick(jobs)
                return []
            return search.run()
        except COMPOSITION_ERRORS as error:  # a fault of sentexp's own, not of the configuration
            raise RuntimeError("the search broke off") from error

    def _plan(self, search: "Search", jobs: list[Job]) -> None:
        """Plan the ends of the space: what trials cost lies between."""
        from sentexp.search.trials import count_ended
        from sentexp.system.console import say

        ended = count_ended(search.url, search.name)
        say(f"A search of {search.total} trials: {ended} have ended, {max(0, search.total - ended)} are left.")
        if ended < search.total:
            self.plan(jobs)
            say(
                "These runs take the first value of every key, and each other value once: the cost of a trial is "
                "between theirs."
            )


def check_pruner(options: SearchConfig, config: Config) -> None:
    """Refuse a rule that could stop nothing, or that has nothing to compare.

    Raises:
        UserError: says which.
    """
    if options.pruner is Pruner.none:
        return
    name, monitor = options.pruner.name, config.trainer.monitor
    require(
        config.trainer.eval_steps is not None or config.trainer.max_epochs > 1,
        f"hydra.sweeper.pruner={name} stops runs at their evaluations, and with trainer.eval_steps=null and "
        "trainer.max_epochs=1 the only one is at the end: give trainer.eval_steps=25, for instance.",
    )
    require(
        options.objectives in ([], [monitor]),
        f"hydra.sweeper.pruner={name} looks at trainer.monitor={monitor} during the training, so "
        f"hydra.sweeper.objectives={options.objectives} must be [{monitor}] or left out.",
    )
    require(
        options.pruner is not Pruner.confident or monitor.rpartition("/")[2] in ROW_METRICS,
        f"hydra.sweeper.pruner=confident compares runs row by row, and trainer.monitor={monitor} is not a mean over "
        f"rows: use {', '.join(f'validation/{row}' for row in ROW_METRICS if row in config.measured)}, or "
        "pruner=median or halving.",
    )
