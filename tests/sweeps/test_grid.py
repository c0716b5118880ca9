"""A sweep: one MLflow run above its runs, identities, what is skipped, gone on with and tried again, failures alone."""

import errno
import json
import os
import re
import shlex
import sys
from pathlib import Path

import pytest
import yaml
from mlflow import MlflowClient

from sentexp.compare import command, comparison
from sentexp.config import TargetKind, load_config
from sentexp.errors import UserError
from sentexp.run import build, fitting
from sentexp.run.plotting import PLOTS, plots_of
from sentexp.sweeps import grid, sweeper
from sentexp.sweeps.choosing import at_the_best, split_by_seed
from sentexp.sweeps.launch import Job
from sentexp.sweeps.sweep_dir import Outcome, State, SweepFolder
from sentexp.tracking.store import PARENT

pytestmark = pytest.mark.usefixtures("scripted")


def recorded(folder):
    """Return the sweep's MLflow run and its runs by name."""
    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    runs = client.search_runs(["1"])
    (parent,) = [run for run in runs if "sweep.identity" in run.data.tags]
    return parent, {run.info.run_name: run for run in runs if run is not parent}


def write_tsvs(folder, test_rows=8):
    """Write a data set in GLUE's layout."""
    folder.mkdir()
    for name, count in (("train", 8), ("validation", 8), ("test", test_rows)):
        rows = [f"{name} sentence {n} is {'good' if n % 2 else 'bad'}\t{n % 2}" for n in range(count)]
        (folder / f"{name}.tsv").write_text("\n".join(["sentence\tlabel", *rows]) + "\n")


def failing_at(monkeypatch, rank):
    """Let runs of this rank fail."""
    original = fitting.build_model

    def build(inputs):
        if getattr(inputs.config.peft, "r", None) == rank:
            raise RuntimeError("the roof fell in")
        return original(inputs)

    monkeypatch.setattr(fitting, "build_model", build)


def test_a_sweep_of_one_run_calls_it_as_a_single_run_is_called(sentexp, tmp_path):
    code, _, errors = sentexp("--multirun", "peft.r=4")
    assert code == 0, errors
    _, children = recorded(tmp_path)
    (name,) = children
    assert re.fullmatch(r"tiny-lora-\S+-seq_cls", name)


def test_runs_are_children_of_the_sweep_and_named_by_what_differs(sentexp, tmp_path):
    code, output, errors = sentexp("--multirun", "peft.r=4,8", "optim.lr=2e-4,1e-3")
    assert code == 0, errors
    parent, children = recorded(tmp_path)
    assert set(children) == {"r=4 lr=2e-4", "r=4 lr=1e-3", "r=8 lr=2e-4", "r=8 lr=1e-3"}
    assert all(run.data.tags[PARENT] == parent.info.run_id for run in children.values())
    assert all(run.info.status == "FINISHED" for run in [parent, *children.values()])
    assert not [key for run in children.values() for key in run.data.params if key.startswith("sweep.")]
    assert parent.data.params["peft.r"] == "4,8"
    assert parent.data.params["model"] == "tiny"
    assert parent.data.tags["command"].startswith("python -m sentexp --multirun peft.r=4,8")
    assert parent.data.metrics["sweep/ended"] == parent.data.metrics["sweep/runs"] == 4
    best = max(run.data.metrics["best/accuracy"] for run in children.values())
    assert parent.data.metrics["sweep/best_accuracy"] == best
    lines = [line for line in output.splitlines() if " | " in line]
    assert [line.partition(" ")[0] for line in lines] == ["1/4", "2/4", "3/4", "4/4"]
    assert all(name in output for name in children)


@pytest.mark.slow
def test_each_run_keeps_the_command_that_repeats_it_alone(sentexp, tmp_path):
    assert sentexp("--multirun", "peft.r=4,8")[0] == 0
    _, children = recorded(tmp_path)
    words = shlex.split(children["r=8"].data.tags["command"])
    assert words[:4] == ["python", "-m", "sentexp", "peft.r=8"]
    assert not [word for word in words if word.startswith(("sweep.", "hydra.", "--multirun"))]
    code, output, errors = sentexp(*[word for word in words[3:] if not word.startswith("tracking.uri")])
    assert code == 0, errors
    assert f"Run {children['r=8'].data.tags['identity']} is finished" in output


@pytest.mark.slow
def test_a_sweep_ends_by_comparing_what_is_chosen_on_validation(sentexp, monkeypatch):
    monkeypatch.setattr(comparison, "FEWEST_ROWS", 1)
    axes = ("peft=lora,ia3", "optim.lr_scale=0.3,1,3", "seed=1,2")
    code, output, errors = sentexp("--multirun", *axes, "sweep.choose=optim.lr")
    assert code == 0, errors
    output = " ".join(output.split())
    assert "with the best accuracy on the validation rows is kept: 2 of 6." in output
    assert re.search(r"sentexp compare sweep=\w+ choose=optim.lr", output)


def test_other_seeds_train_with_what_the_first_have_chosen(sentexp, tmp_path):
    words = ("--multirun", "peft.r=4,8", "optim.lr=1e-4,1e-3,1e-2", "seed=1,2,3", "sweep.choose=optim.lr")
    code, output, errors = sentexp(*words, "sweep.choose_seeds=1")
    assert code == 0, errors
    assert "Sweep of 10 runs in" in output
    assert re.search(r"optim.lr is chosen on validation: .*; 4 more runs with other seeds", output)
    assert [line.partition(" ")[0] for line in output.splitlines() if " | " in line][-1] == "10/10"
    _, children = recorded(tmp_path)
    keys = ("peft.r", "seed", "optim.lr")
    scores = {
        tuple(float(run.data.params[key]) for key in keys): run.data.metrics["best/accuracy"]
        for run in children.values()
    }
    rates = (1e-4, 1e-3, 1e-2)
    best = {
        rank: max(rates, key=lambda rate, rank=rank: scores[rank, 1, rate]) for rank in (4, 8)
    }  # the first of equals
    others = {(rank, seed, best[rank]) for rank in (4, 8) for seed in (2, 3)}
    assert scores.keys() == {(rank, 1, rate) for rank in (4, 8) for rate in rates} | others
    again = sentexp(*words, "sweep.choose_seeds=1")[1]
    assert "6 finished before, 4 to do" in again
    assert len(recorded(tmp_path)[1]) == 10


def test_a_choice_is_of_what_differs(sentexp):
    code, _, errors = sentexp("--multirun", "peft.r=4,8", "sweep.choose=optim.lr")
    assert code == 1
    assert "sweep.choose=optim.lr is not a setting in which these runs differ: sweep over it" in errors
    errors = sentexp("--multirun", "peft.r=4,8", "sweep.choose_seeds=1")[2]
    assert "sweep.choose_seeds=1 are seeds that choose a setting: say which" in errors


@pytest.mark.slow
def test_few_rows_are_not_compared(sentexp):
    code, output, errors = sentexp("--multirun", "peft.r=4,8")
    assert code == 0, errors
    assert "The runs are not compared: sweep r=4,8: 8 test rows are too few to compare runs" in output


@pytest.mark.usefixtures("trains")
def test_a_sweep_ends_with_a_comparison_where_it_has_the_rows_for_one(sentexp, tmp_path):
    write_tsvs(tmp_path / "films", test_rows=40)
    words = ("--multirun", "peft.r=4,8", "data.path=films", "baseline=true", "tracking.experiment=films")
    code, output, errors = sentexp(*words)
    assert code == 0, errors
    assert "Each configuration was trained with one seed" in output
    (report,) = tmp_path.glob("multirun/*/*/report.html")
    assert f"Report: {report.relative_to(tmp_path)}" in output
    assert "TF-IDF" in report.read_text()
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    films = client.get_experiment_by_name("films").experiment_id
    (parent,) = client.search_runs([films], "tags.`sweep.identity` != ''")
    assert "comparison/report.html" in [file.path for file in client.list_artifacts(parent.info.run_id, "comparison")]
    assert "Report:" not in sentexp(*words)[1]  # nothing new


def test_a_fault_in_the_report_fails_no_sweep(sentexp, tmp_path, monkeypatch):
    monkeypatch.setattr(command, "analyse", lambda _: 1 / 0)
    code, _, errors = sentexp("--multirun", "peft.r=4,8")
    assert code == 0
    assert "The report failed (ZeroDivisionError: division by zero)" in errors
    assert recorded(tmp_path)[0].info.status == "FINISHED"


def test_the_sweep_folder_holds_configuration_log_and_end_of_each_run(sentexp, tmp_path):
    assert sentexp("--multirun", "peft.r=4,8")[0] == 0
    (folder,) = tmp_path.glob("multirun/*/*")
    for number, rank in enumerate((4, 8)):
        assert yaml.safe_load((folder / str(number) / "config.yaml").read_text())["peft"]["r"] == rank
        assert "true \\ predicted" in (folder / str(number) / "run.log").read_text()
        assert json.loads((folder / str(number) / "outcome.json").read_text())["name"] == f"r={rank}"
    assert [run["name"] for run in json.loads((folder / "runs.json").read_text())] == ["r=4", "r=8"]
    parent, _ = recorded(tmp_path)
    names = {
        item.path for item in MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}").list_artifacts(parent.info.run_id)
    }
    assert "runs.json" in names


@pytest.mark.slow
def test_what_is_finished_is_not_run_again_whatever_the_order_of_the_axes(sentexp, tmp_path, trained):
    assert sentexp("--multirun", "peft.r=4,8", "optim.lr=1e-4,1e-3")[0] == 0
    table = (next(tmp_path.glob("multirun/*/*")) / "runs.json").read_text()
    assert len(trained) == 4
    first, _ = recorded(tmp_path)
    code, output, _ = sentexp("--multirun", "optim.lr=1e-4,1e-3", "trainer.log_every_n_steps=3", "peft.r=4,8")
    assert code == 0
    assert len(trained) == 4
    assert "4 finished before, 0 to do" in output
    parent, _ = recorded(tmp_path)
    assert parent.info.run_id == first.info.run_id
    again = json.loads((sorted(tmp_path.glob("multirun/*/*"))[-1] / "runs.json").read_text())
    key = lambda run: run["identity"]  # noqa: E731
    before = sorted(json.loads(table), key=key)
    assert [run["metrics"] for run in sorted(again, key=key)] == [run["metrics"] for run in before]


@pytest.mark.slow
def test_finished_runs_are_drawn_when_asked(sentexp, tmp_path, trained):
    def drawn():
        return [{name for name in PLOTS if (folder / name).is_file()} for folder in tmp_path.glob("outputs/*")]

    assert sentexp("--multirun", "peft.r=4,8")[0] == 0
    assert drawn() == [set(), set()]
    code, output, _ = sentexp("--multirun", "peft.r=4,8", "plots=true")
    assert code == 0
    assert "2 finished before, 0 to do" in output
    wanted = set(plots_of(TargetKind.classes))
    assert drawn() == [wanted, wanted]
    assert len(trained) == 2
    _, children = recorded(tmp_path)
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    for run in children.values():
        assert run.info.status == "FINISHED"
        assert wanted <= {file.path for file in client.list_artifacts(run.info.run_id)}


@pytest.mark.slow
def test_another_folder_is_the_same_run_and_another_seed_is_not(sentexp, tmp_path, trained):
    assert sentexp("--multirun", "peft.r=4,8")[0] == 0
    assert sentexp("--multirun", "peft.r=4,8", "output_dir=elsewhere")[0] == 0
    assert len(trained) == 2
    assert sentexp("--multirun", "peft.r=4,8", "seed=7")[0] == 0
    assert len(trained) == 4


@pytest.mark.slow
def test_a_single_run_that_is_finished_gives_its_result_and_joins_a_later_sweep(sentexp, tmp_path, trained):
    assert sentexp("peft.r=4")[0] == 0
    code, output, _ = sentexp("peft.r=4")
    assert code == 0
    assert "is finished: this is its result" in output
    assert "true \\ predicted" in output
    assert sentexp("--multirun", "peft.r=4,8")[0] == 0
    assert trained == [None, "r=8"]
    parent, children = recorded(tmp_path)
    assert len(children) == 2
    assert all(run.data.tags[PARENT] == parent.info.run_id for run in children.values())


@pytest.mark.slow
def test_rerun_trains_again(sentexp, tmp_path, trained):
    assert sentexp("peft.r=4")[0] == 0
    assert sentexp("peft.r=4", "sweep.rerun=true")[0] == 0
    assert sentexp("--multirun", "peft.r=4,8", "sweep.rerun=true")[0] == 0
    assert trained == [None, None, "r=4", "r=8"]


def test_a_failure_stays_alone_and_is_tried_again(sentexp, tmp_path, trained, monkeypatch):
    with monkeypatch.context() as patch:
        failing_at(patch, 8)
        code, _, errors = sentexp("--multirun", "peft.r=4,8,16")
    assert code == 1
    assert "r=8: RuntimeError: the roof fell in" in errors
    assert "sentexp: 1 of 3 runs failed: r=8." in errors
    parent, children = recorded(tmp_path)
    assert parent.info.status == "FAILED"
    assert {name: run.info.status for name, run in children.items()} == {
        "r=4": "FINISHED", "r=8": "FAILED", "r=16": "FINISHED",
    }  # fmt: skip
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    text = Path(client.download_artifacts(children["r=8"].info.run_id, "traceback.txt")).read_text()
    assert "the roof fell in" in text
    trained.clear()
    assert sentexp("--multirun", "peft.r=4,8,16")[0] == 0
    assert trained == ["r=8"]
    again, children = recorded(tmp_path)
    assert again.info.run_id == parent.info.run_id
    assert [run.info.status for run in [again, *children.values()]] == ["FINISHED"] * 4


@pytest.mark.slow
def test_a_run_that_fails_before_it_has_an_identity_is_recorded_once(sentexp, tmp_path, quick, reviews):
    quick.remove(f"data.path={reviews}")
    words = ["--multirun", f"data.path={reviews},{tmp_path / 'later'}"]
    for _ in range(2):
        code, _, errors = sentexp(*words)
        assert code == 1
        assert "later" in errors
        _, children = recorded(tmp_path)
        assert sorted(run.info.status for run in children.values()) == ["FAILED", "FINISHED"]
    write_tsvs(tmp_path / "later")
    assert sentexp(*words)[0] == 0
    parent, children = recorded(tmp_path)
    assert parent.info.status == "FINISHED"
    assert [run.info.status for run in children.values()] == ["FINISHED"] * 2


@pytest.mark.slow
def test_max_failures_stops_the_sweep(sentexp, tmp_path, trained, monkeypatch):
    failing_at(monkeypatch, 4)
    code, output, errors = sentexp("--multirun", "peft.r=4,8", "sweep.max_failures=1")
    assert code == 1
    assert trained == ["r=4"]
    assert "1 of 2 runs failed: r=4, and 1 were not started (sweep.max_failures)" in errors
    assert "not started" in output


def test_the_same_run_under_two_names_is_run_once(sentexp, tmp_path, trained):
    code, _, _ = sentexp("--multirun", "trainer.save_steps=5,10")
    assert code == 0
    assert trained == ["save_steps=5"]
    (folder,) = tmp_path.glob("multirun/*/*")
    first, second = json.loads((folder / "runs.json").read_text())
    assert (second["name"], second["metrics"]) == ("save_steps=10", first["metrics"])


def test_the_same_run_under_two_names_fails_under_both(sentexp, tmp_path, monkeypatch):
    failing_at(monkeypatch, 16)
    code, _, errors = sentexp("--multirun", "trainer.save_steps=5,10")
    assert code == 1
    assert "2 of 2 runs failed" in errors
    (folder,) = tmp_path.glob("multirun/*/*")
    first, second = json.loads((folder / "runs.json").read_text())
    assert second["error"] == first["error"] == "RuntimeError: the roof fell in"


def test_a_value_out_of_range_is_refused_before_anything_starts(sentexp, tmp_path):
    code, _, errors = sentexp("--multirun", "peft.r=4,0", "optim.lr=1e-3,-1")
    assert code == 1
    assert "peft.r=0 must be at least 1" in errors
    assert "optim.lr=-1" in errors
    assert MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}").get_experiment_by_name("sentexp") is None
    assert not (tmp_path / "outputs").exists()


def test_a_range_without_values_is_refused(sentexp):
    code, _, errors = sentexp("--multirun", "optim.lr=interval(0.1,0.2)")
    assert code == 1
    assert "optim.lr=interval(0.1,0.2) has no end of values: give some, such as optim.lr=1,2,3" in errors


def test_a_password_is_written_nowhere(sentexp, tmp_path, quick):
    quick[-1] = "tracking.uri=http://me:hunter2@127.0.0.1:1"
    assert sentexp("--multirun", "peft.r=4,8", "tracking=none")[0] == 0
    written = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert any(file.name == "sweep.json" for file in written)
    assert not [file for file in written if b"hunter2" in file.read_bytes()]


def test_a_sweep_that_a_preset_describes_needs_no_multirun(sentexp, tmp_path):
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    (tmp_path / "mine" / "experiment" / "ranks.yaml").write_text(
        "# @package _global_\nhydra:\n  mode: MULTIRUN\n  sweeper:\n    params:\n      peft.r: 4,8\n"
    )
    code, _, errors = sentexp("--config-dir", "mine", "experiment=ranks")
    assert code == 0, errors
    assert set(recorded(tmp_path)[1]) == {"r=4", "r=8"}


def names(folder):
    """Return the names of the runs of each sweep, in order."""
    sweeps = sorted(folder.glob("multirun/*/*"))
    return [[outcome.name for outcome in SweepFolder(sweep).outcomes().values()] for sweep in sweeps]


@pytest.mark.parametrize(
    ("words", "runs"),
    [
        (["experiment=five_seeds", "++seed=6,7"], ["seed=6", "seed=7"]),
        (["experiment=rank_sweep", "peft.r=2", "optim.lr=1e-3,1e-4"], ["lr=1e-3", "lr=1e-4"]),
        pytest.param(
            ["experiment=learning_curve", "data.train_subset=8,16"],
            ["train_subset=8", "train_subset=16"],
            marks=pytest.mark.slow,
        ),
    ],
    ids=" ".join,
)
def test_the_command_line_replaces_axes_of_a_preset_and_adds_others(sentexp, tmp_path, words, runs):
    code, _, errors = sentexp(*words, "tracking=none", "trainer.max_steps=1")
    assert code == 0, errors
    assert names(tmp_path) == [runs]


@pytest.mark.slow
def test_an_axis_of_a_preset_that_does_not_fit_is_refused_with_a_sentence(sentexp, tmp_path):
    code, _, errors = sentexp("experiment=rank_sweep", "peft=ia3")
    assert code == 1
    assert "peft.r: peft has no key 'r'" in errors
    assert not names(tmp_path)


def test_presets_that_are_sweeps_are_not_swept_over(sentexp, tmp_path):
    code, _, errors = sentexp("--multirun", "experiment=five_seeds,rank_sweep")
    assert code == 1
    assert "experiment=five_seeds: that preset is a sweep of its own" in errors
    assert not names(tmp_path)


def test_nothing_recorded_is_skipped_all_the_same(sentexp, tmp_path, trained):
    for _ in range(2):
        assert sentexp("--multirun", "peft.r=4,8", "tracking=none")[0] == 0
    assert trained == ["r=4", "r=8"]
    assert MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}").get_experiment_by_name("sentexp") is None


SHARED = [
    ["peft=lora"],
    pytest.param(["peft=lora", "task.head_init=label_words"], marks=pytest.mark.slow),
    pytest.param(["peft=qlora"], marks=pytest.mark.slow),
    pytest.param(["peft=dora"], marks=pytest.mark.slow),
    pytest.param(["peft=ia3"], marks=pytest.mark.slow),
    pytest.param(["peft=head"], marks=pytest.mark.slow),
    pytest.param(["peft=full"], marks=pytest.mark.slow),
    ["task=causal_lm", "task.template=completion"],
]


@pytest.mark.usefixtures("trains")
@pytest.mark.parametrize("words", SHARED, ids=" ".join)
def test_a_run_of_a_sweep_gives_the_numbers_that_it_gives_alone(words, sentexp, tmp_path, quick):
    if words[0].startswith("task"):
        quick.remove("task.template='{text}'")
    assert sentexp("--multirun", "seed=1,2,1", *words, "tracking=none", "hydra/launcher=sequential")[0] == 0
    (folder,) = tmp_path.glob("multirun/*/*")
    swept = [json.loads((folder / str(n) / "outcome.json").read_text())["metrics"] for n in range(3)]
    assert sentexp("seed=2", *words, "tracking=none", "output_dir=alone")[0] == 0
    (alone,) = (json.loads(file.read_text())["metrics"] for file in (tmp_path / "alone").glob("*/result.json"))
    measured = {key: value for key, value in swept[1].items() if not key.endswith(("seconds", "memory_gib"))}
    assert measured == {key: alone[key] for key in measured}
    assert swept[0] == swept[2]
    assert swept[0] != swept[1]


@pytest.mark.usefixtures("trains")
def test_a_sweep_loads_data_and_backbone_once(sentexp, monkeypatch, tmp_path):
    loads = []
    for module, name in ((build, "load_classifier"), (sys.modules["sentexp.run.inputs"], "load_examples")):
        original = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, o=original, n=name, **k: loads.append(n) or o(*a, **k))
    assert sentexp("--multirun", "peft.r=4,8,16")[0] == 0
    assert sorted(loads) == ["load_classifier", "load_examples"]


class Breaking:
    """A launcher that does the first job of its first call and then goes down."""

    def __init__(self, launcher):
        self.launcher = launcher
        self.calls = []

    def launch(self, job_overrides, initial_job_idx):
        """Launch, or fail to."""
        self.calls.append(len(job_overrides))
        if len(self.calls) == 1:
            self.launcher.launch(job_overrides[:1], initial_job_idx)
            raise RuntimeError("a worker was killed")
        return self.launcher.launch(job_overrides, initial_job_idx)


@pytest.mark.slow
def test_a_launcher_that_goes_down_is_started_again_with_what_is_left(sentexp, monkeypatch, trained):
    launchers = []
    original = grid.GridSweeper.setup

    def setup(self, **given):
        original(self, **given)
        self.launcher = Breaking(self.launcher)
        launchers.append(self.launcher)

    monkeypatch.setattr(grid.GridSweeper, "setup", setup)
    code, _, errors = sentexp("--multirun", "peft.r=4,8,16")
    assert code == 0, errors
    assert trained == ["r=4", "r=8", "r=16"]
    assert launchers[0].calls == [3, 2]
    assert "a worker was killed" in errors


def test_a_run_that_takes_its_launcher_down_twice_is_killed(sentexp, monkeypatch, tmp_path):
    class Dying:
        def launch(self, job_overrides, initial_job_idx):
            raise RuntimeError("out of memory")

    original = grid.GridSweeper.setup
    monkeypatch.setattr(
        grid.GridSweeper,
        "setup",
        lambda self, **given: (original(self, **given), setattr(self, "launcher", Dying()))[0],
    )
    code, output, errors = sentexp("--multirun", "peft.r=4,8")
    assert code == 1
    assert "2 of 2 runs failed" in errors
    assert output.count("killed") >= 2


def test_an_unknown_key_stops_a_sweep_with_a_sentence(sentexp):
    code, _, errors = sentexp("--multirun", "peft.rank=4,8")
    assert code == 1
    assert "peft has no key 'rank'" in errors


def test_max_failures_is_at_least_one():
    from sentexp.config import load_config

    with pytest.raises(UserError, match=r"sweep.max_failures=0 must be at least 1"):
        load_config("sweep.max_failures=0")


def test_runs_of_several_processes_are_refused_with_their_command(sentexp, launched, monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_RUN_ID")
    code, out, err = sentexp("--multirun", "trainer=ddp", "peft.r=2,4")
    assert (code, out) == (1, "")
    assert "torchrun --nproc-per-node 2 -m sentexp trainer=ddp peft.r=2" in err
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "test")
    monkeypatch.setenv("WORLD_SIZE", "2")
    code, out, err = sentexp("--multirun", "peft.r=2,4")
    assert (code, out) == (1, "")
    assert "torchrun has started 2 processes, and --multirun is for one" in err


def test_a_sweep_gathers_runs_of_several_processes(sentexp, trained, launched, monkeypatch, tmp_path):
    assert sentexp("trainer=ddp", "peft.r=2")[0] == 0
    monkeypatch.delenv("TORCHELASTIC_RUN_ID")
    trained.clear()
    assert sentexp("--multirun", "peft.r=2,4")[0] == 0
    assert trained == ["r=4"]
    parent, runs = recorded(tmp_path)
    assert {run.data.tags[PARENT] for run in runs.values()} == {parent.info.run_id}
    assert len(runs) == 2


@pytest.mark.parametrize(
    ("words", "composed"),
    [
        (["peft.r=4,8,16", "optim.lr=1e-4,2e-4"], 0),
        (["peft=lora,ia3", "seed=1,2"], 2),
        (["peft.r=4,8", "peft.alpha=${peft.r}", "tracking.run_name='a b',null"], 0),
        (["peft.r=4,8", "seed=1", "peft.r=16", "trainer.log_every_n_steps=1,2"], 1),
        pytest.param(
            ["data.max_length=16,32", "optim=adamw,sgd", "trainer.log_every_n_steps=1,2"], 4, marks=pytest.mark.slow
        ),
        pytest.param(["peft.target_modules=all-linear,[q_proj],[k_proj]"], 2, marks=pytest.mark.slow),
    ],
)
def test_a_run_that_differs_in_values_alone_is_composed_as_hydra_would(words, composed, sentexp, monkeypatch):
    seen, original = [], sweeper.with_values
    monkeypatch.setattr(grid.GridSweeper, "_run", lambda self, jobs, words: seen.append([job.config for job in jobs]))

    def counted(*arguments):
        found = original(*arguments)
        counts.append(found)
        return found

    for substitute in (counted, lambda *_: None):
        counts = []
        monkeypatch.setattr(sweeper, "with_values", substitute)
        code, _, errors = sentexp("--multirun", *words)
        assert code == 0, errors
        if substitute is counted:
            assert sum(found is None for found in counts) == composed
    assert seen[0] == seen[1]
    assert len({str(config) for config in seen[0]}) == len(seen[0])


@pytest.mark.parametrize("launcher", ["fused", "sequential"])
def test_a_sweep_whose_folder_turns_read_only_ends_with_a_sentence(launcher, sentexp, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(SweepFolder, "write", refuse)
    code, _, said = sentexp("--multirun", "peft.r=2,4", f"hydra/launcher={launcher}")
    assert code == 1
    assert "sentexp: the current folder cannot be used (Read-only file system)" in said
    assert "Traceback" not in said


def test_a_default_is_chosen_by_its_value(capsys):
    words = [("task.label_smoothing=0", "seed=1"), ("task.label_smoothing=0.1", "seed=1")]
    words += [(first, "seed=2") for first, _ in words]
    choice = ("sweep.choose=task.label_smoothing", "sweep.choose_seeds=1")
    jobs = [Job(number=n, overrides=[], config=load_config(*each, *choice)) for n, each in enumerate(words)]
    first, later = split_by_seed(jobs)
    ended = {job.number: Outcome(name="", state=State.finished, objective=0.5) for job in first}
    kept = at_the_best(first, later, ended, "validation/accuracy")
    assert [job.config.task.label_smoothing for job in kept] == [0.0]  # the smallest of equals
    assert "task.label_smoothing is chosen on validation: 0.0 (1); 1 more runs" in capsys.readouterr().out
