"""Which runs of a search are stopped early, by their validation results at the same optimizer step as other runs'.

`halving` keeps the best of each rung (asynchronous successive halving, Li et al. 2020), `median` stops what is worse
than the median run, and `confident` stops a run only when the rows themselves say that the leader is better.
"""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sentexp.config import Config, Pruner, SearchConfig
from sentexp.config.metric_names import is_better_higher
from sentexp.errors import UserError, complain
from sentexp.search.study import call_storage, open_study, storage_url
from sentexp.system.atomic_write import replacing
from sentexp.training.pruning import EvaluationSnapshot

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial, Trial

EVALUATIONS = "evaluations"
FOLDER = "folder"


class Gap(NamedTuple):
    """By how much a run is better than another on the same rows, and the interval of that."""

    mean: float
    low: float
    high: float


def judge_of(config: Config, search: SearchConfig | None) -> "TrialJudge | None":
    """Return the policy that may stop a run; None for a run that is not a trial, or a search that prunes none."""
    return None if search is None or search.pruner is Pruner.none else TrialJudge(config, search)


class TrialJudge:
    """Reports the evaluations of one trial to its study, and stops the trial where the search's rule says so.

    Args:
        config: of the run, with the names of study and trial.
        search: the rule.
    """

    def __init__(self, config: Config, search: SearchConfig) -> None:
        assert config.sweep.study is not None
        assert config.sweep.trial is not None
        self.search = search
        self.monitor = config.trainer.monitor
        self.study_name, self.number = config.sweep.study, config.sweep.trial
        self.url = storage_url(search, config.tracking)

    def __call__(self, snapshot: EvaluationSnapshot) -> str | None:
        """Report an evaluation; return why the run is to stop.

        A storage that cannot be used now does not stop the run: stopping it would lose more.
        """
        try:
            return call_storage(lambda: self._judge(snapshot), self.url)
        except UserError as error:
            complain(f"The run continues without pruning. {error}")
            return None

    def _judge(self, snapshot: EvaluationSnapshot) -> str | None:
        from optuna.trial import Trial

        study = open_study(self.url, self.study_name, [self.monitor])
        frozen = next(trial for trial in study.get_trials(deepcopy=False) if trial.number == self.number)
        trial = Trial(study, frozen._trial_id)
        with warnings.catch_warnings():  # a run that resumes from a checkpoint passes a step twice
            warnings.filterwarnings("ignore", message=".*already reported.*")
            trial.report(snapshot.value, snapshot.step)
        if self.search.pruner is Pruner.confident:
            save_rows(snapshot, self.monitor)
            trial.set_user_attr(FOLDER, str(snapshot.folder.absolute()))
        if snapshot.step < self.search.min_steps:
            return None
        return {Pruner.halving: self._halve, Pruner.median: self._compare, Pruner.confident: self._doubt}[
            self.search.pruner
        ](trial, snapshot)

    def _halve(self, trial: "Trial", snapshot: EvaluationSnapshot) -> str | None:
        from optuna.pruners import SuccessiveHalvingPruner

        steps = [step for other in trial.study.get_trials(deepcopy=False) for step in other.intermediate_values]
        first = min(step for step in steps if step >= self.search.min_steps)
        factor = self.search.reduction_factor
        pruner = SuccessiveHalvingPruner(min_resource=first, reduction_factor=factor)
        if not pruner.prune(trial.study, _frozen(trial)):
            return None
        place = f"at step {snapshot.step} is not in the best 1/{factor} of the runs there"
        return f"{self.monitor} {snapshot.value:.4f} {place}"

    def _compare(self, trial: "Trial", snapshot: EvaluationSnapshot) -> str | None:
        from optuna.pruners import MedianPruner

        pruner = MedianPruner(n_startup_trials=self.search.startup_trials)
        if not pruner.prune(trial.study, _frozen(trial)):
            return None
        return f"{self.monitor} {snapshot.value:.4f} at step {snapshot.step} is worse than the median of the runs there"

    def _doubt(self, trial: "Trial", snapshot: EvaluationSnapshot) -> str | None:
        sign = 1 if is_better_higher(self.monitor) else -1
        others = [other for other in trial.study.get_trials(deepcopy=False) if other.number != trial.number]
        there = [other for other in others if snapshot.step in other.intermediate_values and FOLDER in other.user_attrs]
        leader = max(there, key=lambda other: sign * other.intermediate_values[snapshot.step], default=None)
        if leader is None:
            return None
        gap = compare(Path(leader.user_attrs[FOLDER]), snapshot.folder, snapshot.step, self.search.confidence)
        if gap is None or gap.low <= 0:
            return None
        name = leader.user_attrs.get("name", f"trial {leader.number}")
        return (
            f"at step {snapshot.step} {name} is better by {gap.mean:.4f} of {self.monitor} on the same rows, "
            f"{self.search.confidence:.0%} interval [{gap.low:.4f}, {gap.high:.4f}]"
        )


def save_rows(snapshot: EvaluationSnapshot, monitor: str) -> None:
    """Keep what each validation row adds to the metric, in the run's folder."""
    folder = snapshot.folder / EVALUATIONS
    folder.mkdir(exist_ok=True)
    scores = row_scores(snapshot.logits, snapshot.targets, monitor)
    with replacing(_rows_file(snapshot.folder, snapshot.step)) as unfinished:
        save_file({"scores": scores, "targets": snapshot.targets.contiguous()}, unfinished)


def row_scores(logits: Tensor, targets: Tensor, monitor: str) -> Tensor:
    """Return the metric of each row, shape (rows,), more of it being better: losses and errors have a minus.

    Args:
        logits: float, shape (rows, classes).
        targets: class indices or scores, shape (rows,), or sets of labels, shape (rows, labels).
        monitor: a mean over rows: `ROW_METRICS` of `sentexp.search.sweeper`.
    """
    logits = logits.float()
    name = monitor.rpartition("/")[2]
    if targets.dim() > 1:  # sets of labels, whose loss alone is a mean over rows
        return -nn.functional.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(1)
    if logits.shape[1] == 1:  # a score, whose loss alone is a mean over rows
        return -(logits[:, 0] - targets).square()
    if name == "accuracy":
        return (logits.argmax(-1) == targets).float()
    if name == "loss":
        return -nn.functional.cross_entropy(logits, targets, reduction="none")
    return -(logits.softmax(-1) - nn.functional.one_hot(targets, logits.shape[1])).square().sum(-1)


def compare(leader: Path, run: Path, step: int, confidence: float) -> Gap | None:
    """Return by how much the leader is better at a step; None where the two did not see the same rows.

    Args:
        leader: the folder of the one run.
        run: the folder of the other.
        step: optimizer step.
        confidence: of the interval.
    """
    try:
        theirs, ours = (load_file(_rows_file(folder, step)) for folder in (leader, run))
    except (OSError, SafetensorError):
        return None
    if not torch.equal(theirs["targets"], ours["targets"]):
        return None
    return paired_gap(theirs["scores"] - ours["scores"], confidence)


def paired_gap(differences: Tensor, confidence: float) -> Gap:
    """Return the mean of paired differences and its interval.

    Where they are -1, 0 and 1 the interval is exact and conditional on the rows that differ, so that it excludes 0
    just where McNemar's exact test rejects (Clopper and Pearson 1934); else it is Student's.

    Args:
        differences: one for each row, shape (rows,).
        confidence: of the interval.
    """
    from scipy import stats

    values = differences.double()
    mean = float(values.mean())
    if not values.any():
        return Gap(0.0, 0.0, 0.0)
    if set(values.tolist()) <= {-1.0, 0.0, 1.0}:
        differing = int((values != 0).sum())
        share = stats.binomtest(int((values > 0).sum()), differing).proportion_ci(confidence, method="exact")
        scale = differing / len(values)
        return Gap(mean, float(2 * share.low - 1) * scale, float(2 * share.high - 1) * scale)
    interval = stats.ttest_1samp(values.numpy(), 0).confidence_interval(confidence)
    return Gap(mean, float(interval.low), float(interval.high))


def _rows_file(folder: Path, step: int) -> Path:
    return folder / EVALUATIONS / f"{step}.safetensors"


def _frozen(trial: "Trial") -> "FrozenTrial":
    return trial.study._storage.get_trial(trial._trial_id)
