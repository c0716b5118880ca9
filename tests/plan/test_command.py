"""`python -m sentexp plan` and `sweep.dry_run=true`: what would be done, by the runs themselves; nothing is written."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sentexp.plan import command as planning
from sentexp.plan import run_states
from sentexp.plan.command import plan
from sentexp.plan.timing import fit_line
from sentexp.run import fitting
from sentexp.run.train import train


def contents(folder):
    """Return every file below a folder, and what it holds."""
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def rows(output, title):
    """Return the cells of the table whose title begins so, run by run."""
    table = output[output.index(title) :].split("└")[0]
    cells = [[cell.strip() for cell in line.strip("│").split("│")] for line in table.splitlines() if "│" in line]
    return {first: rest for first, *rest in cells}


SWEEP = ("--multirun", "peft.r=4,8")


@pytest.mark.parametrize(
    ("words", "there"),
    [
        (("plan", *SWEEP), True),
        pytest.param(("plan", *SWEEP), False, marks=pytest.mark.slow),
        pytest.param((*SWEEP, "sweep.dry_run=true"), True, marks=pytest.mark.slow),
        ((*SWEEP, "sweep.dry_run=true"), False),
        (("plan", "peft.r=4"), True),
        pytest.param(("plan", "peft.r=4"), False, marks=pytest.mark.slow),
    ],
)
def test_nothing_is_written(sentexp, tmp_path, store, words, there):
    uri = store if there else f"sqlite:///{tmp_path / 'missing.db'}"
    before = contents(tmp_path)
    code, output, errors = sentexp(*words, "baseline=true", f"tracking.uri={uri}")
    assert code == 0, errors
    assert "to do" in output
    assert contents(tmp_path) == before


@pytest.mark.slow
def test_the_verb_and_the_key_print_the_same_plan(sentexp):
    by_verb, by_key = sentexp("plan", *SWEEP)[1], sentexp(*SWEEP, "sweep.dry_run=true")[1]
    assert rows(by_verb, "plan: 2 runs, 2 to do") == rows(by_key, "plan: 2 runs, 2 to do")
    assert list(rows(by_verb, "estimate")) == ["r=4", "r=8"]
    single = rows(sentexp("plan", "peft.r=8")[1], "plan: 1 run, 1 to do")
    assert single["this run"] == rows(by_verb, "plan")["r=8"]
    assert rows(sentexp("peft.r=8", "sweep.dry_run=true")[1], "plan")["this run"] == single["this run"]
    assert max(map(len, rows_of_tables(by_verb))) <= 80


def rows_of_tables(output):
    return [line for line in output.splitlines() if line.startswith(("┏", "┃", "│"))]


@pytest.mark.slow
def test_another_sweeper_trains_nothing_either(sentexp, tmp_path):
    before = set(tmp_path.rglob("outputs"))
    code, output, _ = sentexp("--multirun", "peft.r=4,8", "sweep.dry_run=true", "hydra/sweeper=basic")
    assert code == 0
    assert output.count("1 run, 1 to do") == 2
    assert set(tmp_path.rglob("outputs")) == before


def test_a_wrong_value_is_refused_and_a_missing_folder_reported(sentexp, reviews, tmp_path):
    code, output, errors = sentexp("plan", "--multirun", "peft.r=4,0")
    assert code == 1
    assert "peft.r=0 must be at least 1" in errors
    assert "plan:" not in output
    code, output, _ = sentexp("plan", "--multirun", "peft.target_modules=q_proj,nothing")
    assert code == 0
    assert "1 to do, 1 cannot start" in output
    assert "'nothing' matches no module" in output


def test_states_are_those_of_the_runs(config, store, monkeypatch, capsys):
    recorded = ("tracking=mlflow", "tracking.system_metrics=false", f"tracking.uri={store}", "baseline=false")
    finished = config("peft.r=4", *recorded)
    result = train(finished)
    interrupted = config("peft.r=8", "trainer.save_steps=3", *recorded)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(fitting, "evaluate", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        train(interrupted)
    unbegun = config("peft.r=8", "seed=7", *recorded)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(fitting, "fit", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        train(unbegun)
    capsys.readouterr()
    again = config("peft.r=4", "trainer.save_steps=7", *recorded)
    runs = plan([finished, interrupted, unbegun, config("peft.r=16", *recorded), again])
    output = capsys.readouterr().out
    assert [run.standing.value for run in runs] == ["finished", "to resume", "to resume", "to do", "same run"]
    assert f"finished with test accuracy {result.metrics['test/accuracy']:.4f}" in output
    assert "resumes after step 4" in output
    assert "begins again: no checkpoint was written" in output
    assert runs[1].costs.share_left == 0
    assert runs[2].costs.share_left == 1
    assert "same run as" in runs[4].note
    rerun = plan([config("peft.r=4", "sweep.rerun=true", *recorded)])
    assert rerun[0].standing.value == "to do"
    (file,) = Path(interrupted.output_dir).glob("*/last.ckpt")
    file.write_bytes(file.read_bytes()[:-100])
    (damaged,) = plan([interrupted])
    assert (damaged.standing.value, "last.ckpt cannot be read" in damaged.note) == ("cannot start", True)


@pytest.fixture
def timed(monkeypatch):
    """Return the list of batch sizes of the runs that were really timed."""
    sizes = []
    original = planning.measure

    def measure(inputs, work, patience):
        sizes.append(inputs.config.trainer.batch_size)
        return original(inputs, work, patience)

    monkeypatch.setattr(planning, "measure", measure)
    return sizes


@pytest.mark.slow
def test_runs_that_cost_the_same_are_timed_once(config, timed):
    cheap = [config(f"seed={seed}", f"optim.lr={lr}") for seed in (1, 2) for lr in (1e-4, 1e-3)]
    cheap += [config("peft.alpha=8", "trainer.max_epochs=3"), config("data.train_subset=24", "data.subset_seed=5")]
    runs = plan(cheap[:5])
    assert len(timed) == 1
    assert len({id(run.costs.measured) for run in runs}) == 1
    longer, once = runs[4].costs, runs[0].costs
    assert longer.training_seconds(longer.measured) == pytest.approx(3 * once.training_seconds(once.measured))
    timed.clear()
    plan([config("peft.r=4"), config("peft.r=8"), config("peft=ia3"), config("trainer.batch_size=4")])
    assert len(timed) == 4


@pytest.mark.usefixtures("timed")
@pytest.mark.parametrize("keep", ["true", "false"])
def test_weights_that_are_unpacked_once_are_reported(config, capsys, keep):
    plan([config("peft=qlora", f"model.keep_dequantized={keep}")])
    said = "Packed weights are unpacked once for the whole run; model.keep_dequantized=false keeps them packed."
    assert (said in capsys.readouterr().out.replace("\n", " ")) is (keep == "true")


def test_the_estimate_is_the_line_through_the_timed_batches(config):
    (run,) = plan([config()])
    measured, work = run.costs.measured, run.costs.work
    seconds = sum(measured.training.fixed + measured.training.per_token * tokens for tokens in work.train.computed)
    assert run.costs.training_seconds(measured) == pytest.approx(seconds + 4 * measured.optimizer)
    assert measured.training.fixed >= 0
    assert measured.training.per_token >= 0
    assert measured.training.fixed + measured.training.per_token > 0
    assert measured.peak_gib > 0.1
    assert run.costs.arithmetic.parameters.trainable_total == 32_896


@pytest.mark.usefixtures("room_for_two")
def test_when_memory_runs_out_half_the_batch_is_planned(config, timed, capsys):
    runs = plan([config(), config("seed=2")])
    assert timed == [8, 4, 2]
    assert [run.costs.trainer.accumulate_grad_batches for run in runs] == [4, 4]
    assert runs[1].costs.work.steps == 4
    assert "use trainer.batch_size=2 trainer.accumulate_grad_batches=4, which does" in capsys.readouterr().out


def test_what_several_runs_have_in_common_is_said_once(sentexp):
    code, output, _ = sentexp("plan", "--multirun", "peft.target_modules=[nothing]", "seed=1,2,3,4")
    assert code == 0
    assert "4 cannot start" in output
    assert output.count("matches no module") == 1
    assert re.search(r"^4 runs \(seed=1, seed=2, seed=3, \.\.\.\): peft.target_modules", output, re.MULTILINE)


def test_what_does_not_fit_is_not_timed_and_counted_all_the_same(config, timed, monkeypatch, capsys):
    monkeypatch.setattr(run_states, "free_memory_gib", lambda _: 0.003)
    (run,) = plan([config()])
    output = capsys.readouterr().out
    assert timed == []
    assert "was not timed here: about" in output
    assert "32,896 (26.66%)" in output
    assert "This batch does not fit" in output
    told = re.search(r"trainer.batch_size=(\d) trainer.accumulate_grad_batches=(\d)", output)
    assert int(told[1]) * int(told[2]) == 8
    smaller = run.costs.largest_batch.cut(run.costs.trainer, replace(run.costs.trainer, batch_size=int(told[1])))
    smaller = run.costs.arithmetic.memory(smaller, run.costs.inputs.precision)
    assert smaller <= 0.003 * 2**30


def test_a_machine_without_the_device_counts_all_the_same(config, capsys):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    (run,) = plan([config("trainer.accelerator=gpu")])
    assert run.costs.measured is None
    output = capsys.readouterr().out
    assert "no CUDA GPU is visible here" in output


@pytest.mark.parametrize(
    "overrides", [["peft=none"], ["peft=head"], ["task=causal_lm", "task.generate=true"], ["peft=full"]]
)
def test_every_kind_of_run_is_planned(config, overrides):
    template = ["task.template='{text}'"] if "task=causal_lm" in overrides else []
    (run,) = plan([config(*overrides, *template, "baseline=true")])
    assert run.costs.measured is not None, run.costs.unmeasured
    assert (run.costs.measured.training is None) == (overrides == ["peft=none"])
    assert (run.costs.measured.written is not None) == ("task.generate=true" in overrides)
    assert run.costs.evaluation_seconds(run.costs.measured) > 0


def test_baselines_that_are_recorded_cost_nothing(config, capsys):
    settings = config("baseline=true")
    (before,) = plan([settings])
    assert set(before.costs.baselines) == {"majority", "tfidf", "linear_probe"}
    train(settings)
    (after,) = plan([config("baseline=true", "peft.r=4")])
    assert after.costs.baselines == {}
    assert "baselines" not in capsys.readouterr().out.rpartition("One after the other")[2]
    assert not list(Path(settings.output_dir).glob("*/state.json"))


def test_a_batch_that_was_held_up_does_not_move_the_line():
    tokens = [100, 200, 300, 400, 500]
    line = fit_line(tokens, [1.2, 1.4, 1.6, 1.8, 2.0])
    assert (line.fixed, line.per_token) == (pytest.approx(1.0), pytest.approx(0.002))
    held_up = fit_line(tokens, [1.2, 1.4, 9.0, 1.8, 2.0])
    assert (held_up.fixed, held_up.per_token) == (pytest.approx(1.0), pytest.approx(0.002))
    falling = fit_line(tokens, [2.0, 1.8, 1.6, 1.4, 1.2])
    assert falling.per_token == pytest.approx(0.0, abs=1e-9)
    assert fit_line([0, 1], [0.0, 1.0]).fixed == pytest.approx(0.0)
