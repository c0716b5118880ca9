"""Who stops a run: halving, the median, and rows that say that the leader is better."""

import pytest
import torch
from scipy import stats

from sentexp.config import Pruner, SearchConfig, from_conf
from sentexp.metrics.label_set_metrics import label_set_metrics
from sentexp.metrics.split_metrics import split_metrics
from sentexp.search.policies import TrialJudge, compare, paired_gap, row_scores
from sentexp.search.study import open_study, storage_url
from sentexp.training.pruning import EvaluationSnapshot

ROWS = 200
TARGETS = torch.arange(ROWS) % 2


def snapshot(folder, step, right, value=None):
    """Return an evaluation in which the first `right` rows are right."""
    folder.mkdir(exist_ok=True)
    said = torch.where(torch.arange(ROWS) < right, TARGETS, 1 - TARGETS)
    logits = torch.nn.functional.one_hot(said, 2).float() * 3
    accuracy = right / ROWS if value is None else value
    return EvaluationSnapshot(step=step, value=accuracy, logits=logits, targets=TARGETS, folder=folder)


@pytest.fixture
def judges(config, tmp_path):
    """Return a function that starts a trial of a search and returns its judge."""

    def start(pruner, **options):
        search = from_conf(SearchConfig, pruner=pruner, storage=f"sqlite:///{tmp_path / 'optuna.db'}", **options)
        run = config()
        study = open_study(storage_url(search, run.tracking), "one", [run.trainer.monitor])
        run.sweep.study, run.sweep.trial = "one", study.ask().number
        return TrialJudge(run, search)

    return start


def end(judge, value):
    """Tell the study that a trial is complete."""
    open_study(judge.url, "one", [judge.monitor]).tell(judge.number, value)


def test_halving_stops_what_is_not_in_the_best_third(judges, tmp_path):
    said = {}
    for number, right in enumerate((150, 140, 160, 120)):
        judge = judges(Pruner.halving, reduction_factor=3)
        said[right] = judge(snapshot(tmp_path / str(number), 4, right))
    assert said[150] is None
    assert said[160] is None
    assert said[140] == "validation/accuracy 0.7000 at step 4 is not in the best 1/3 of the runs there"
    assert said[120] is not None


@pytest.mark.slow
def test_the_median_rule_waits_for_trials_to_end_and_for_the_first_steps(judges, tmp_path):
    for number, right in enumerate((150, 140, 160)):
        judge = judges(Pruner.median, startup_trials=3, min_steps=8)
        for step in (4, 8):
            assert judge(snapshot(tmp_path / str(number), step, right)) is None
        end(judge, right / ROWS)
    worse = judges(Pruner.median, startup_trials=3, min_steps=8)
    assert worse(snapshot(tmp_path / "worse", 4, 10)) is None
    assert worse(snapshot(tmp_path / "worse", 8, 149)) == (
        "validation/accuracy 0.7450 at step 8 is worse than the median of the runs there"
    )
    better = judges(Pruner.median, startup_trials=3)
    assert better(snapshot(tmp_path / "better", 8, 151)) is None
    assert judges(Pruner.median, startup_trials=4)(snapshot(tmp_path / "early", 8, 10)) is None


@pytest.mark.slow
def test_the_confident_rule_stops_only_what_the_rows_tell_from_the_leader(judges, tmp_path):
    def judge():
        return judges(Pruner.confident, confidence=0.99)

    assert judge()(snapshot(tmp_path / "leader", 4, 150)) is None
    assert judge()(snapshot(tmp_path / "near", 4, 144)) is None  # 6 rows differ: p = 0.03
    assert judge()(snapshot(tmp_path / "alike", 4, 150)) is None
    assert judge()(snapshot(tmp_path / "other step", 8, 100)) is None
    said = judge()(snapshot(tmp_path / "far", 4, 140))  # 10 rows differ: p = 0.002
    assert said.startswith(
        "at step 4 trial 0 is better by 0.0500 of validation/accuracy on the same rows, 99% interval"
    )
    assert judge()(snapshot(tmp_path / "new leader", 4, 180)) is None
    assert "trial 5 is better" in judge()(snapshot(tmp_path / "old level", 4, 150))


def test_the_confident_rule_follows_losses_downwards(config, judges, tmp_path):
    def judge():
        made = judges(Pruner.confident)
        made.monitor = "validation/loss"
        return made

    assert judge()(snapshot(tmp_path / "leader", 4, 150, value=0.3)) is None
    assert "better by" in judge()(snapshot(tmp_path / "far", 4, 100, value=0.9))


def test_other_rows_are_compared_with_nothing(judges, tmp_path):
    assert judges(Pruner.confident)(snapshot(tmp_path / "leader", 4, 200)) is None
    other = snapshot(tmp_path / "other", 4, 0)
    other.targets = 1 - other.targets
    assert judges(Pruner.confident)(other) is None
    assert compare(tmp_path / "gone", tmp_path / "other", 4, 0.99) is None


def test_a_run_goes_on_where_the_storage_is_lost(judges, tmp_path, capsys):
    judge = judges(Pruner.median)
    judge.url = "sqlite:////proc/no/optuna.db"
    assert judge(snapshot(tmp_path / "run", 4, 10)) is None
    assert "The run continues without pruning." in capsys.readouterr().err


def test_the_interval_excludes_a_tie_just_where_mcnemar_rejects():
    for better in range(12):
        for worse in range(12):
            values = torch.tensor([1.0] * better + [-1.0] * worse + [0.0] * 50)
            gap = paired_gap(values, 0.95)
            rejects = better + worse > 0 and stats.binomtest(better, better + worse).pvalue < 0.05
            assert (gap.low > 0 or gap.high < 0) == rejects
            assert gap.low <= gap.mean <= gap.high


def test_the_interval_of_real_differences_is_students():
    values = torch.randn(50, generator=torch.Generator().manual_seed(1)) + 0.3
    interval = stats.ttest_1samp(values.double().numpy(), 0).confidence_interval(0.9)
    gap = paired_gap(values, 0.9)
    assert (gap.low, gap.high) == pytest.approx((interval.low, interval.high))
    assert gap.mean == pytest.approx(float(values.mean()))


@pytest.mark.parametrize("metric", ["accuracy", "loss", "brier"])
def test_row_scores_are_the_metric_row_by_row(metric):
    generator = torch.Generator().manual_seed(1)
    logits, targets = torch.randn(30, 3, generator=generator), torch.randint(3, (30,), generator=generator)
    scores = row_scores(logits, targets, f"validation/{metric}")
    sign = 1 if metric == "accuracy" else -1
    assert sign * float(scores.mean()) == pytest.approx(split_metrics(["a", "b", "c"], logits, targets)[metric])


def test_the_rows_of_scores_are_measured_by_their_squared_errors():
    scores = row_scores(torch.tensor([[1.0], [3.0]]), torch.tensor([1.0, 1.0]), "validation/loss")
    assert scores.tolist() == [0, -4]


def test_the_rows_of_sets_of_labels_are_measured_by_their_cross_entropy():
    generator = torch.Generator().manual_seed(1)
    logits, targets = torch.randn(30, 3, generator=generator), (torch.rand(30, 3, generator=generator) < 0.5).float()
    scores = row_scores(logits, targets, "validation/loss")
    assert scores.shape == (30,)
    wanted = label_set_metrics(["a", "b", "c"], logits, targets, [0.5] * 3)["loss"]
    assert -float(scores.mean()) == pytest.approx(wanted, rel=1e-5)
