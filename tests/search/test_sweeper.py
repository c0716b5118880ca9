"""A search: trials as runs of a sweep, a total that earlier starts count to, several objectives, runs stopped early."""

import json
import sys

import numpy as np
import optuna
import pytest
from filelock import FileLock
from mlflow import MlflowClient
from optuna.trial import TrialState

from sentexp.config import Sampler, SearchConfig, from_conf, load_config
from sentexp.run import fitting
from sentexp.search.policies import TrialJudge
from sentexp.search.study import build_sampler, storage_url
from sentexp.search.sweeper import OptunaSweeper
from sentexp.tracking.run_dir import METRICS_FILE, RESULT
from sentexp.tracking.store import PARENT

pytestmark = pytest.mark.usefixtures("scripted")

SPACE = ("peft.r=2,4,8", "optim.lr=tag(log,interval(1e-5,1e-2))")
OPTUNA = ("--multirun", "hydra/sweeper=optuna")
WHOLE = ("trainer.max_epochs=2", "trainer.eval_steps=2")
TWO = (*OPTUNA, *WHOLE, "hydra.sweeper.sampler=grid", "optim.lr=1e-2,1e-12", "optim.schedule=constant")
"""One run that learns, and one that cannot."""


def study_in(folder):
    storage = f"sqlite:///{folder / 'optuna.db'}"
    (name,) = optuna.get_all_study_names(storage)
    return optuna.load_study(study_name=name, storage=storage)


def runs_in(folder):
    """Return the search's MLflow run and the others."""
    runs = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}").search_runs(["1"])
    (parent,) = [run for run in runs if "sweep.identity" in run.data.tags]
    return parent, [run for run in runs if run is not parent]


def proposed(folder):
    return [trial.params for trial in study_in(folder).trials if trial.state is TrialState.COMPLETE]


def interrupted_at(monkeypatch, number):
    """Let the run of this number, counted from 1, be interrupted by its user."""
    original, count = fitting.build_model, iter(range(1, 100))

    def build(inputs):
        if next(count) == number:
            raise KeyboardInterrupt
        return original(inputs)

    monkeypatch.setattr(fitting, "build_model", build)


def test_trials_are_runs_of_one_search(sentexp, tmp_path):
    code, output, errors = sentexp(*OPTUNA, "hydra.sweeper.n_trials=3", *SPACE)
    assert code == 0, errors
    assert "Search with tpe of 3 runs" in output
    parent, children = runs_in(tmp_path)
    trials = study_in(tmp_path).trials
    assert len(children) == len(trials) == 3
    assert {run.data.tags["search.trial"] for run in children} == {"0", "1", "2"}
    assert all(run.data.tags[PARENT] == parent.info.run_id for run in children)
    for run in children:
        trial = trials[int(run.data.tags["search.trial"])]
        assert run.data.params["peft.r"] == trial.params["peft.r"]
        assert float(run.data.params["optim.lr"]) == trial.params["optim.lr"]
        assert trial.value == run.data.metrics["best/accuracy"]
        assert run.info.run_name == f"r={trial.params['peft.r']} lr=" + run.info.run_name.partition("lr=")[2]
    assert parent.info.run_name.startswith("search ")
    assert parent.info.status == "FINISHED"
    files = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}").list_artifacts(parent.info.run_id)
    assert {"runs.json", "search.png"} <= {file.path for file in files}


@pytest.mark.slow
def test_trials_are_counted_over_all_starts(sentexp, tmp_path, trained):
    for total, then in ((2, 2), (3, 3), (1, 3)):
        code, output, _ = sentexp(*OPTUNA, f"hydra.sweeper.n_trials={total}", *SPACE)
        assert code == 0
        assert len(trained) == then
    assert len(runs_in(tmp_path)[1]) == 3
    assert "3 finished before, 0 to do" in output
    assert sentexp(*OPTUNA, "hydra.sweeper.n_trials=1", *SPACE, "sweep.rerun=true")[0] == 0
    assert len(trained) == 4


@pytest.mark.slow
def test_a_search_that_was_stopped_proposes_what_it_would_have_proposed(sentexp, tmp_path, monkeypatch):
    words = (*OPTUNA, "hydra.sweeper.n_trials=3", *SPACE)
    with monkeypatch.context() as patch:
        interrupted_at(patch, 2)
        assert sentexp(*words)[0] == 130
    assert [trial.state for trial in study_in(tmp_path).trials][1:] == [TrialState.RUNNING]
    code, output, errors = sentexp(*words)
    assert code == 0, errors
    assert "1 finished before, 1 to resume, 1 to do" in output
    stopped = proposed(tmp_path)
    assert len(stopped) == 3
    (tmp_path / "optuna.db").unlink()
    assert sentexp(*words)[0] == 0
    assert proposed(tmp_path) == stopped


@pytest.mark.slow
def test_a_trial_that_failed_is_tried_again_by_the_next_start(sentexp, tmp_path, monkeypatch):
    original = fitting.build_model

    def build(inputs):
        if inputs.config.peft.r == 4:
            raise RuntimeError("the roof fell in")
        return original(inputs)

    words = (*OPTUNA, "hydra.sweeper.sampler=grid", "peft.r=2,4,8")
    with monkeypatch.context() as patch:
        patch.setattr(fitting, "build_model", build)
        code, output, errors = sentexp(*words)
    assert code == 1
    assert "1 of 3 runs failed: r=4" in errors
    assert runs_in(tmp_path)[0].info.status == "FAILED"
    code, output, _ = sentexp(*words)
    assert code == 0
    assert "2 finished before, 1 to resume, 0 to do" in output
    parent, children = runs_in(tmp_path)
    assert parent.info.status == "FINISHED"
    assert sorted(run.data.params["peft.r"] for run in children) == ["2", "4", "8"]


def test_a_grid_ends_where_its_values_end_and_finished_runs_cost_nothing(sentexp, tmp_path, trained):
    assert sentexp("--multirun", "peft.r=2,8")[0] == 0
    code, output, _ = sentexp(*OPTUNA, "hydra.sweeper.sampler=grid", "peft.r=2,4,8", "seed=42")
    assert code == 0
    assert trained == ["r=2", "r=8", "r=4"]
    assert [trial["peft.r"] for trial in proposed(tmp_path)] == ["2", "4", "8"]
    assert "Search with grid of 3 runs" in output


@pytest.mark.slow
def test_several_objectives_end_in_a_front(sentexp, tmp_path):
    code, output, errors = sentexp(
        *OPTUNA, "hydra.sweeper.n_trials=3", "hydra.sweeper.objectives=[validation/accuracy,parameters/trainable]",
        "hydra.sweeper.sampler=grid", "peft.r=2,4,8",
    )  # fmt: skip
    assert code == 0, errors
    study = study_in(tmp_path)
    sizes = [trial.values[1] for trial in study.trials]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[-1]
    assert study.directions == [optuna.study.StudyDirection.MAXIMIZE, optuna.study.StudyDirection.MINIMIZE]
    front = output.partition("No other run is better in all of validation/accuracy, parameters/trainable than:")[2]
    listed = [line.strip().partition(":")[0] for line in front.splitlines() if line.startswith("  r=")]
    assert sorted(listed) == sorted(f"r={trial.params['peft.r']}" for trial in study.best_trials)


@pytest.mark.usefixtures("trains")
@pytest.mark.slow
def test_a_pruned_run_is_marked_and_goes_on_from_its_checkpoint_when_it_is_wanted(sentexp, tmp_path, monkeypatch):
    rule = ("hydra.sweeper.pruner=halving", "hydra.sweeper.reduction_factor=2", "trainer.monitor=validation/loss")
    code, output, errors = sentexp(*TWO, *rule)
    assert code == 0, errors
    assert "validation/loss" in output
    assert "is not in the best 1/2 of the runs there" in output
    parent, children = runs_in(tmp_path)
    (pruned,) = [run for run in children if run.info.status == "KILLED"]
    assert parent.info.status == "FINISHED"
    assert pruned.info.run_name == "lr=1e-12"
    assert "not in the best" in pruned.data.tags["pruned"]
    assert [trial.state for trial in study_in(tmp_path).trials] == [TrialState.COMPLETE, TrialState.PRUNED]
    folder = tmp_path / "outputs" / pruned.data.tags["identity"]
    assert (folder / "last.ckpt").is_file()
    assert (folder / "best.safetensors").is_file()
    assert not (folder / RESULT).is_file()
    assert "pruned" in sentexp("runs")[1]
    before = [json.loads(line)["step"] for line in (folder / METRICS_FILE).read_text().splitlines()]
    assert max(before) < 8
    assert "2 finished before, 0 to do" in sentexp(*TWO, *rule)[1]
    alone = ("trainer.max_epochs=2", "trainer.eval_steps=2", "optim.lr=1e-12", "optim.schedule=constant", rule[2])
    assert sentexp(*alone)[0] == 0
    steps = [json.loads(line)["step"] for line in (folder / METRICS_FILE).read_text().splitlines()]
    assert steps[: len(before)] == before
    assert 1 not in steps[len(before) :]  # it did not start anew
    finished = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}").get_run(pruned.info.run_id)
    assert finished.info.status == "FINISHED"
    assert finished.data.tags["pruned"] == ""


@pytest.mark.slow
@pytest.mark.usefixtures("trains")
def test_the_confident_rule_prunes_by_rows(sentexp, tmp_path):
    rule = ("hydra.sweeper.pruner=confident", "trainer.monitor=validation/loss", "hydra.sweeper.confidence=0.05")
    code, output, errors = sentexp(*TWO, *rule)
    assert code == 0, errors
    assert " is better by" in output
    assert "on the same rows, 5% interval" in output


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["peft.r=0,4"], "peft.r=0 must be at least 1"),
        (["peft.r=4"], "hydra/sweeper=optuna has nothing to search"),
        (["peft.r=2,4", "hydra.sweeper.n_trials=0"], "hydra.sweeper.n_trials=0 must be at least 1"),
        (["peft.r=2,4", "hydra.sweeper.objectives=[test/accuracy]"], "the test split selects nothing"),
        (
            ["peft.r=2,4", "hydra.sweeper.objectives=[validation/rmse]"],
            "validation/rmse, which these runs do not measure",
        ),
        (["peft.r=2,4", "hydra.sweeper.confidence=1"], "hydra.sweeper.confidence=1.0 must be above 0 and below 1"),
        (["peft.r=2,4", "hydra.sweeper.pruner=median"], "give trainer.eval_steps=25, for instance"),
        (["peft.r=2,4", "hydra.sweeper.sampler=cmaes"], "cmaes"),
        (
            ["peft.r=2,4", "hydra.sweeper.pruner=median", "hydra.sweeper.objectives=[seconds,validation/loss]"],
            "hydra.sweeper.pruner=median compares runs by one metric",
        ),
        (
            ["peft.r=2,4", "trainer.eval_steps=2", "hydra.sweeper.pruner=median", "hydra.sweeper.objectives=[seconds]"],
            "must be [validation/accuracy] or left out",
        ),
        (
            ["peft.r=2,4", "trainer.eval_steps=2", "hydra.sweeper.pruner=confident", "trainer.monitor=validation/ece"],
            "trainer.monitor=validation/ece is not a mean over rows",
        ),
        (["peft.r=2,4", "hydra.sweeper.storage=sqlite:////proc/no/o.db"], "cannot be used"),
        (["peft.r=2,4", "hydra.sweeper.storage=here"], "name an SQLAlchemy URL"),
    ],
)
def test_what_cannot_be_searched_is_refused_in_a_sentence(sentexp, tmp_path, trained, words, said):
    code, _, errors = sentexp(*OPTUNA, *words)
    assert code == 1
    assert said in errors
    assert "Traceback" not in errors
    assert not trained
    assert not (tmp_path / "outputs").exists()


@pytest.mark.slow
def test_a_search_is_planned_by_the_ends_of_its_space(sentexp, tmp_path, trained):
    code, output, errors = sentexp("plan", *OPTUNA, "peft.r=int(interval(2,8))", "hydra.sweeper.n_trials=7")
    assert code == 0, errors
    assert "plan: 2 runs, 2 to do" in output
    assert "A search of 7 trials: 0 have ended, 7 are left." in output
    assert not trained
    assert not list(tmp_path.glob("optuna.db"))
    assert not (tmp_path / "multirun").exists()


@pytest.mark.slow
def test_a_search_that_is_over_needs_no_plan(sentexp):
    words = (*OPTUNA, "hydra.sweeper.sampler=grid", "peft.r=2,4")
    assert sentexp(*words)[0] == 0
    output = sentexp("plan", *words)[1]
    assert "A search of 2 trials: 2 have ended, 0 are left." in output
    assert "plan:" not in output


@pytest.mark.slow
@pytest.mark.usefixtures("trains")
def test_a_trial_that_is_killed_between_evaluations_keeps_what_it_has_reported(sentexp, tmp_path, monkeypatch):
    words = (*OPTUNA, *WHOLE, "hydra.sweeper.n_trials=2", *SPACE, "hydra.sweeper.pruner=median", "trainer.save_steps=1")
    original, looks = TrialJudge.__call__, iter(range(1, 100))

    def call(self, snapshot):
        said = original(self, snapshot)
        if next(looks) == 6:  # the second trial, after its second evaluation
            raise KeyboardInterrupt
        return said

    with monkeypatch.context() as patch:
        patch.setattr(TrialJudge, "__call__", call)
        assert sentexp(*words)[0] == 130
    assert sentexp(*words)[0] == 0
    trials = study_in(tmp_path).trials
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 2
    assert [list(trial.intermediate_values) for trial in trials] == [[2, 4, 6, 8]] * 2


@pytest.mark.slow
def test_of_so_many_combinations_none_is_tried_twice(sentexp, tmp_path, trained):
    words = ("hydra.sweeper.sampler=random", "hydra.sweeper.n_trials=9", "peft.r=2,4", "seed=1,2")
    code, output, errors = sentexp(*OPTUNA, *words)
    assert code == 0, errors
    assert "of 4 runs" in output
    assert len(trained) == len(set(trained)) == 4
    assert "The best values in full: peft.r=" in output


def test_a_search_without_multirun_is_refused(sentexp, trained):
    code, _, errors = sentexp("hydra/sweeper=optuna", "peft.r=4")
    assert code == 1
    assert "hydra/sweeper=optuna searches with --multirun: add it" in errors
    assert not trained


def test_a_second_process_at_the_same_search_is_refused(sentexp, tmp_path):
    assert sentexp(*OPTUNA, "hydra.sweeper.n_trials=1", "peft.r=2,4")[0] == 0
    (lock,) = tmp_path.glob(".optuna.db.*.lock")
    with FileLock(lock):
        code, _, errors = sentexp(*OPTUNA, "hydra.sweeper.n_trials=2", "peft.r=2,4")
    assert code == 1
    assert "The same search is in progress in another process" in errors


@pytest.mark.slow
@pytest.mark.parametrize("sampler", [Sampler.tpe, Sampler.gp, Sampler.random])
def test_each_sampler_proposes_and_models_learn_where_the_best_is(sampler):
    study = optuna.create_study(direction="maximize")
    space = {"x": optuna.distributions.FloatDistribution(0.0, 1.0)}
    tried = []
    for number in range(20):
        study.sampler = build_sampler(from_conf(SearchConfig, sampler=sampler), number)
        trial = study.ask(space)
        tried.append(trial.params["x"])
        study.tell(trial, -((trial.params["x"] - 0.3) ** 2))
    late = float(np.mean(np.abs(np.array(tried[10:]) - 0.3)))
    assert len(set(tried)) == 20
    assert late > 0.2 if sampler is Sampler.random else late < 0.2


def test_without_optuna_the_way_to_it_is_reported(sentexp, monkeypatch):
    monkeypatch.delitem(sys.modules, "sentexp.search.trials", raising=False)
    monkeypatch.setitem(sys.modules, "optuna", None)
    code, _, errors = sentexp(*OPTUNA, "peft.r=2,4")
    assert code == 1
    assert "pip install 'sentexp[search]'" in errors


def test_the_storage_stands_beside_mlflows_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    beside = load_config("tracking.uri=sqlite:////data/runs/mlflow.db").tracking
    assert storage_url(from_conf(SearchConfig), beside) == "sqlite:////data/runs/optuna.db"
    here = f"sqlite:///{tmp_path / 'optuna.db'}"
    for words in (["tracking=none"], ["tracking.uri=http://127.0.0.1:5000"], []):
        assert storage_url(from_conf(SearchConfig), load_config(*words).tracking) == here
    assert storage_url(from_conf(SearchConfig, storage="sqlite:///x.db"), beside) == "sqlite:///x.db"


@pytest.mark.slow
def test_a_launcher_that_runs_one_after_the_other_is_asked_for_one_at_a_time(sentexp, tmp_path, monkeypatch):
    counts = []
    original = OptunaSweeper.compose

    def compose(self, runs, *rest):
        counts.append(len(runs))
        return original(self, runs, *rest)

    monkeypatch.setattr(OptunaSweeper, "compose", compose)
    words = ("hydra.sweeper.n_jobs=2", "hydra.sweeper.n_trials=2", "peft.r=2,4", "hydra/launcher=sequential")
    code, _, errors = sentexp(*OPTUNA, *words)
    assert code == 0
    assert "hydra.sweeper.n_jobs=2 needs a launcher that does several at once" in errors
    assert study_in(tmp_path).trials[0].datetime_complete <= study_in(tmp_path).trials[1].datetime_start
