"""The trials of a search: proposed by Optuna's study, run as the runs of a sweep, and reported to it.

When the search is started again, a trial that was killed resumes, and one that failed is tried again with its values.
One whose run is finished already, in whatever sweep, costs nothing.
"""

import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from sentexp.config import Config, Sampler, SearchConfig
from sentexp.config.metric_names import COSTS
from sentexp.errors import UserError, complain, require
from sentexp.plots.run import draw_search
from sentexp.run.inputs import resolve_inputs, run_identity
from sentexp.run.recording import track_run
from sentexp.search.policies import judge_of
from sentexp.search.report import print_front
from sentexp.search.space import Space, Value
from sentexp.search.study import build_sampler, call_storage, is_maximised, only_one_search, open_study, storage_url
from sentexp.sweeps.report import print_beginning
from sentexp.sweeps.sweep_dir import Outcome, State, SweepFolder
from sentexp.system.console import say
from sentexp.tracking.client import SQLITE
from sentexp.tracking.identity import digest_of
from sentexp.tracking.next_steps import quoted

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial, Trial

    from sentexp.search.sweeper import OptunaSweeper
    from sentexp.tracking.run_logger import RunLogger

OUTCOME, NAME, AGAIN, REPEATS = "outcome", "name", "again", "repeats"
PICTURE = "search.png"


class Search:
    """One search, from where an earlier start of it has stopped.

    Args:
        sweeper: composes, launches and collects the runs.
        options: of the search.
        space: what is searched.
        config: of one run of it, for what is the same in all.
        words: of the command line.

    Raises:
        UserError: the backbone, the data or the storage cannot be used.
    """

    def __init__(
        self, sweeper: "OptunaSweeper", options: SearchConfig, space: Space, config: Config, words: list[str]
    ) -> None:
        self.sweeper, self.options, self.space, self.config, self.words = sweeper, options, space, config, words
        self.objectives = options.objectives or [config.trainer.monitor]
        legal = (*(f"validation/{name}" for name in config.measured), *COSTS)
        for name in self.objectives:
            require(
                name in legal,
                f"hydra.sweeper.objectives holds {name}, which these runs do not measure: use {', '.join(legal)}.",
            )
        self.url = storage_url(options, config.tracking)
        self.name = digest_of("search", run_identity(resolve_inputs(config)), space.describe(), self.objectives)
        self.study: Study
        self.killed: list[Trial]
        self.failed: list[dict[str, Value]]
        self.grid = space.grid() if space.is_finite() else None
        self.total = options.n_trials if self.grid is None else min(options.n_trials, len(self.grid))

    def run(self) -> list[Outcome]:
        """Run trials until there are `n_trials`, and return what became of each.

        Raises:
            UserError: the storage cannot be used, or another process is at the same search.
            SweepFailed: some of the runs failed.
        """
        with only_one_search(self.url, self.name):
            self.study = self._open()
            earlier = self._take_up()
            total = max(self.total, len(earlier))
            folder = self.sweeper.begin(total, self.config)
            for number, outcome in earlier.items():
                folder.write(number, outcome)
            parent = self.sweeper.open_parent("search", self.config, self.name, self.space.describe(), self.words)
            with track_run(parent):
                kind = f"Search with {self.options.sampler.name}"
                again = min(len(self.killed) + len(self.failed), total - len(earlier))
                print_beginning(kind, total, len(earlier), again, parent.run_id, folder.path)
                while (left := total - len(folder.outcomes())) > 0 and not folder.is_stopped():
                    self._run([self._ask() for _ in range(min(self.options.n_jobs, left))], parent, folder)
                self._show(parent, folder)
                return self.sweeper.conclude(self.config, parent, folder)

    def _open(self) -> "Study":
        """Return the study; with `sweep.rerun` it begins anew."""
        study = open_study(self.url, self.name, self.objectives)
        if not self.config.sweep.rerun:
            return study
        from optuna import delete_study

        call_storage(lambda: delete_study(study_name=self.name, storage=study._storage), self.url)
        return open_study(self.url, self.name, self.objectives)

    def _take_up(self) -> dict[int, Outcome]:
        """Return what earlier starts have ended, by number; keep trials that were killed, and values that failed."""
        from optuna.trial import Trial, TrialState

        self.killed, failed, ended, outcomes = [], [], [], {}
        for trial in self.study.get_trials(deepcopy=False):
            outcome = _outcome_of(trial)
            if outcome is not None and outcome.state in (State.finished, State.pruned):
                outcomes[trial.number] = replace(outcome, earlier=True)
                ended.append(trial.params)
                if trial.state is TrialState.RUNNING:  # killed between its end and its telling
                    self._tell(Trial(self.study, trial._trial_id), outcome)
            elif trial.state is TrialState.RUNNING:
                self.killed.append(Trial(self.study, trial._trial_id))
            elif trial.state is TrialState.FAIL and REPEATS not in trial.user_attrs and trial.params not in failed:
                failed.append(trial.params)
        going_on = [trial.params for trial in self.killed]
        self.failed = [values for values in failed if values not in ended and values not in going_on]
        return outcomes

    def _ask(self) -> "Trial":
        """Return the next trial: one that was killed or failed, the next of a grid, or what the sampler proposes.

        Where there are only so many combinations, none is tried twice.
        """
        from optuna.trial import TrialState

        if self.killed:
            return self.killed.pop(0)
        trials = self.study.get_trials(deepcopy=False)
        seen = [trial.params for trial in trials]
        unseen = next((values for values in self.grid or [] if values not in seen), None)
        if not any(trial.state is TrialState.WAITING for trial in trials):  # a kill can leave one
            if self.failed:
                self.study.enqueue_trial(self.failed.pop(0), user_attrs={AGAIN: True})
            elif self.options.sampler is Sampler.grid and unseen is not None:
                self.study.enqueue_trial(unseen)
        self.study.sampler = build_sampler(self.options, sum(AGAIN not in trial.user_attrs for trial in trials))
        trial = self.study.ask(self.space.distributions())
        if trial.params not in seen or unseen is None or AGAIN in trial.user_attrs:
            return trial
        trial.set_user_attr(REPEATS, True)
        self.study.tell(trial, state=TrialState.FAIL)
        self.study.enqueue_trial(unseen)
        return self.study.ask(self.space.distributions())

    def _run(self, trials: "list[Trial]", parent: "RunLogger", folder: SweepFolder) -> None:
        """Run trials at once, and tell the study how they ended."""
        jobs = []
        for trial in trials:
            name = self.space.name(trial.params)
            trial.set_user_attr(NAME, name)
            overrides = [*self.space.overrides(trial.params), f"sweep.study={self.name}", f"sweep.trial={trial.number}"]
            if self.options.storage is None:  # a process elsewhere would look in its own folder
                overrides.append(f"hydra.sweeper.storage={quoted(self.url)}")
            try:
                (job,) = self.sweeper.compose([overrides], [name], trial.number)
                jobs.append(replace(job, policy=judge_of(job.config, replace(self.options, storage=self.url))))
            except UserError as error:
                complain(f"{name}: {error}")
                folder.write(trial.number, Outcome(name=name, state=State.failed, error=str(error)))
        self.sweeper.finish(jobs, self.sweeper.find_results(jobs), parent, folder)
        ended = folder.outcomes()
        for trial in trials:
            self._tell(trial, ended[trial.number])

    def _tell(self, trial: "Trial", outcome: Outcome) -> None:
        from optuna.trial import TrialState

        trial.set_user_attr(OUTCOME, json.dumps(asdict(outcome)))
        values = [_objective(outcome, name) for name in self.objectives]
        if outcome.state is State.pruned:
            self.study.tell(trial, state=TrialState.PRUNED)
        elif all(map(math.isfinite, values)):
            self.study.tell(trial, values)
        else:
            self.study.tell(trial, state=TrialState.FAIL)

    def _show(self, parent: "RunLogger", folder: SweepFolder) -> None:
        """Draw what the search has found; print the trials that no other beats in every one of several objectives."""
        from optuna.trial import TrialState

        done = [trial for trial in self.study.get_trials(deepcopy=False) if trial.state is TrialState.COMPLETE]
        if not done:
            return
        best = [trial.number for trial in self.study.best_trials]
        if len(self.objectives) == 1:
            values = " ".join(f"{key}={value}" for key, value in self.study.best_trial.params.items())
            say(f"The best values in full: {values}")
        if len(self.objectives) > 1:
            front = [trial for trial in done if trial.number in best]
            print_front(self.objectives, [(trial.user_attrs[NAME], trial.values) for trial in front])
        points = [(trial.number, trial.values, trial.number in best) for trial in done]
        higher = [is_maximised(name) for name in self.objectives]
        draw_search(points, self.objectives, higher, folder.path / PICTURE)
        parent.log_files(folder.path / PICTURE)


def count_ended(url: str, name: str) -> int:
    """Return how many trials of a search have ended, pruned or to their end; a storage that is not there holds none."""
    if url.startswith(SQLITE) and not Path(url.removeprefix(SQLITE)).is_file():
        return 0
    from optuna import get_all_study_names, load_study

    if name not in call_storage(lambda: get_all_study_names(url), url):
        return 0
    outcomes = [_outcome_of(trial) for trial in load_study(study_name=name, storage=url).get_trials(deepcopy=False)]
    return sum(outcome is not None and outcome.state in (State.finished, State.pruned) for outcome in outcomes)


def _outcome_of(trial: "FrozenTrial") -> Outcome | None:
    """Return how the run of a trial ended; None where it was killed."""
    return Outcome.load(trial.user_attrs[OUTCOME]) if OUTCOME in trial.user_attrs else None


def _objective(outcome: Outcome, name: str) -> float:
    """Return what a run reached: a validation metric at its best checkpoint, or a cost."""
    return outcome.metrics.get(name.replace("validation/", "best/"), math.nan)
