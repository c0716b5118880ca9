"""`--quick`: every path of a configuration is taken, what fails is said, and nothing is kept."""

import json

import numpy as np
import pytest

from sentexp.data.splits import Examples
from sentexp.plan import timing
from sentexp.plan.run_states import survey
from sentexp.quick import command, trial
from sentexp.quick.few_rows import with_few_rows
from sentexp.run import fitting
from sentexp.run.inputs import run_identity
from sentexp.training.module import ClassifierModule


def contents(folder):
    """Return every file below a folder, and what it holds."""
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.fixture
def steps(monkeypatch):
    """Return the list of runs so far: the optimizer steps of each, and its batches of both evaluations."""
    done = []
    original = fitting.fit_and_test

    def attempt(inputs, *rest):
        counted = {"steps": 0, "validation": 0, "test": 0}
        with pytest.MonkeyPatch.context() as patch:
            for name in ("validation", "test"):
                method = getattr(ClassifierModule, f"{name}_step")

                def step(self, batch, batch_idx, name=name, method=method):
                    counted[name] += 1
                    method(self, batch, batch_idx)

                patch.setattr(ClassifierModule, f"{name}_step", step)
            result = original(inputs, *rest)
        done.append(counted | {"steps": int(result.metrics["train/steps"])})
        return result

    monkeypatch.setattr(trial, "fit_and_test", attempt)
    return done


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        pytest.param(["peft=qlora", "trainer.gradient_checkpointing=true"], marks=pytest.mark.slow),
        pytest.param(["task=causal_lm", "task.template='{text}'", "task.generate=true"], marks=pytest.mark.slow),
        pytest.param(["peft=full", "trainer.accumulate_grad_batches=2"], marks=pytest.mark.slow),
        pytest.param(["peft=head"], marks=pytest.mark.slow),
        pytest.param(["peft=none"], marks=pytest.mark.slow),
        pytest.param(["trainer.max_tokens=128"], marks=pytest.mark.slow),
        pytest.param(["data.sampling=balanced_labels", "trainer.group_by_length=false"], marks=pytest.mark.slow),
    ],
)
def test_all_is_well_and_nothing_is_kept(sentexp, tmp_path, steps, overrides):
    before = contents(tmp_path)
    code, output, errors = sentexp("--quick", "trainer.eval_batch_size=3", *overrides)
    assert code == 0, errors
    assert "All is well; nothing was kept." in output
    assert "peak memory" in output.lower()
    assert "Estimated time of a whole run here" in output
    assert "give the run's probabilities (they differ by" in output
    assert "merged by" in output
    proposed = output.splitlines()[-1]
    assert "-m sentexp trainer.eval_batch_size=3 " in proposed
    assert all(word.partition("=")[0] in proposed for word in overrides)
    assert "quick" not in proposed
    assert contents(tmp_path) == before
    (counts,) = steps
    assert counts["test"] == 2
    if overrides != ["peft=none"]:
        assert counts["steps"] == 2
        assert counts["validation"] == 2


@pytest.mark.filterwarnings("ignore:Encountered `nan` values")
def test_a_configuration_that_fails_is_one_sentence(sentexp, tmp_path):
    before = contents(tmp_path)
    code, _, errors = sentexp("--quick", "optim.lr=1e30")
    assert code == 1
    assert errors.startswith("sentexp: The loss is nan at step")
    assert errors.count("\n") == 1
    assert contents(tmp_path) == before


def test_a_store_that_cannot_be_reached_is_found_at_once(sentexp, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    code, output, errors = sentexp("--quick", "tracking.uri=http://127.0.0.1:9")
    assert code == 1
    assert "The MLflow store http://127.0.0.1:9 cannot be used" in errors
    assert "Timing" not in output


@pytest.mark.parametrize("name", ["predict", "plan", "runs"])
def test_commands_that_train_nothing_are_not_tried(command_line, name):
    code, _, errors = command_line(name, "--quick")
    assert code == 1
    assert errors == f"sentexp: --quick tries a run before it is trained, and {name} trains none: leave it out.\n"


def test_of_a_sweep_each_kind_of_run_is_tried_once(sentexp, steps, tmp_path):
    before = contents(tmp_path)
    code, output, errors = sentexp("--quick", "--multirun", "peft.r=4,8", "seed=1,2", "optim.lr=1e-4")
    assert code == 0, errors
    assert len(steps) == 2
    assert "All is well with all 2 kinds of run; nothing was kept." in output
    assert "r=4,seed=1, r=4,seed=2: Peak memory" in output.replace("r=4 seed", "r=4,seed")
    assert contents(tmp_path) == before


def test_of_a_sweep_a_kind_that_fails_does_not_stop_the_others(sentexp, steps):
    code, output, errors = sentexp("--quick", "--multirun", "peft.target_modules=q_proj,nothing")
    assert code == 1
    assert len(steps) == 1
    assert "Peak memory" in output
    assert "1 of 2 kinds of run fail. target_modules=nothing: peft.target_modules: 'nothing' matches" in errors


@pytest.mark.slow
def test_a_search_is_tried_at_the_ends_of_its_space(sentexp, steps, tmp_path):
    before = contents(tmp_path)
    words = ["hydra/sweeper=optuna", "peft.r=choice(4,8)", "optim.lr=tag(log,interval(1e-5,1e-3))"]
    code, output, errors = sentexp("--quick", "--multirun", *words)
    assert code == 0, errors
    assert len(steps) == 2
    assert "All is well" in output
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["peft=adalora", "peft.tinit=3", "peft.tfinal=4"], "merged by"),
        (["trainer.average=last_k", "trainer.average_interval=20", "trainer.unfreeze=0.5", "optim=muon"], "merged by"),
        (["peft=other", "peft.type=BEFT"], "Merging for exports was not tried: PEFT cannot merge BEFT."),
    ],
    ids=["adalora", "recipes", "beft"],
)
def test_a_method_is_tried_as_far_as_it_goes(sentexp, words, says):
    code, output, errors = sentexp("--quick", "trainer.max_epochs=9", *words)
    assert code == 0, errors
    assert says in output
    assert "All is well" in output


def test_ranks_that_have_no_step_to_shrink_in_are_found(sentexp):
    code, _, errors = sentexp("--quick", "peft=adalora", "peft.tinit=3", "peft.tfinal=4", "trainer.max_epochs=1")
    assert code == 1
    assert "of this run's 4 steps" in errors


def test_weights_that_no_step_would_take_are_found(sentexp):
    code, _, errors = sentexp("--quick", "trainer.average=last_k", "trainer.max_epochs=2")
    assert code == 1
    assert "trainer.average_interval=10 is more than the 8 steps of this run" in errors


@pytest.mark.usefixtures("room_for_two")
def test_when_memory_runs_out_smaller_batches_are_found(sentexp):
    code, output, errors = sentexp("--quick")
    assert code == 0, errors
    assert "Memory ran out, so the run will use trainer.batch_size=2; its effective batch stays the same." in output


def test_weights_that_say_something_else_are_found(sentexp, monkeypatch):
    original = trial.Scorer.probabilities
    monkeypatch.setattr(trial.Scorer, "probabilities", lambda *words: original(*words)[:, ::-1] + 0.1)
    code, _, errors = sentexp("--quick")
    assert code == 1
    assert "sentexp: The saved weights, read again, give probabilities that differ from those of the run by" in errors


def test_a_fault_is_told_with_its_traceback(sentexp, monkeypatch):
    monkeypatch.setattr(trial, "write_weights_card", lambda *_: 1 / 0)
    code, _, errors = sentexp("--quick")
    assert code == 1
    assert "Traceback" in errors
    assert errors.splitlines()[-1] == "sentexp: ZeroDivisionError: division by zero."


def test_the_plan_offers_it(sentexp):
    code, output, _ = sentexp("plan", "--multirun", "peft.r=4,8")
    assert code == 0
    offer = next(line for line in output.splitlines() if "--quick" in line)
    assert "-m sentexp --quick --multirun peft.r=4,8 model=tiny" in offer
    assert "dry_run" not in offer


def test_the_identity_of_a_run_does_not_know_of_it(config):
    plain, tried = (survey([config(*words)])[0] for words in ([], ["sweep.quick=true"]))
    assert run_identity(plain.costs.spec) == run_identity(tried.costs.spec)


def test_both_words_at_once_are_refused(sentexp):
    code, _, errors = sentexp("--quick", "sweep.dry_run=true")
    assert code == 1
    assert "plan (sweep.dry_run=true) only counts, and --quick (sweep.quick=true) tries: give one of them." in errors


@pytest.mark.parametrize("accumulated", [1, 3])
def test_the_largest_batches_and_the_longest_rows_are_chosen(config, accumulated):
    words = [f"trainer.accumulate_grad_batches={accumulated}", "trainer.batch_size=3", "trainer.eval_batch_size=3"]
    (run,) = survey([config(*words)])
    inputs, work = run.costs.inputs, run.costs.work
    few = with_few_rows(inputs, work)
    assert len(few.tokens["train"]) == len(few.examples.train) <= 6 * accumulated
    assert few.config.trainer.max_steps == 2
    for split, rows in few.tokens.items():
        whole = inputs.tokens[split]
        assert rows.lengths.max() == whole.lengths.max()
        assert rows.prefix == whole.prefix
        chosen = few.examples.split(split)
        assert np.array_equal(rows.labels, few.examples.targets(split))
        assert rows.lengths.tolist() == [len(ids) for ids in rows.ids(range(len(rows)))]
        texts = inputs.examples.split(split).column("text").to_pylist()
        first = texts.index(chosen.column("text")[0].as_py())
        assert rows.ids([0]) == whole.ids([first])
        assert getattr(work, split).computed.max() > 0


def test_what_is_recorded_of_a_quick_run_has_its_own_folder(config, monkeypatch, tmp_path):
    seen = []
    original = command.try_out

    def look(inputs, work, folder):
        found = original(inputs, work, folder)
        seen.append(json.loads((folder / "result.json").read_text())["run_id"])
        seen.append(sorted(path.name for path in folder.iterdir()))
        return found

    monkeypatch.setattr(command, "try_out", look)
    command.quick([config()])
    assert seen[0] is None
    assert {"adapter", "config.yaml", "data_audit.json", "metrics.jsonl", "predictions", "result.json"} <= set(seen[1])
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize(("words", "fits"), [([], True), (["peft=head"], False)])
def test_where_a_batch_takes_long_one_of_a_stage_is_timed(sentexp, monkeypatch, words, fits):
    timed, original = [], timing._Rehearsal._time

    def note(self, stage, batches, numbers):
        timed.append((stage, [number == batches.largest for number in numbers]))
        return original(self, stage, batches, numbers)

    monkeypatch.setattr(timing._Rehearsal, "_time", note)
    monkeypatch.setattr(command, "PATIENCE", 0.0)
    code, output, errors = sentexp("--quick", "trainer.eval_batch_size=3", *words)
    assert code == 0, errors
    assert "Estimated time of a whole run here" in output
    assert timed == [("train", [True]), ("validation", [not fits])]


def test_few_rows_have_the_scale_of_all(config, monkeypatch):
    monkeypatch.setattr(Examples, "scale", lambda self: (float(self.train.num_rows), 1.0))
    (run,) = survey([config()])
    few = with_few_rows(run.costs.inputs, run.costs.work)
    assert few.examples.train.num_rows <= 4 < few.examples.scale()[0] == run.costs.inputs.examples.train.num_rows
