"""A fused sweep: every run has the numbers that it has alone, and what becomes of one is its own affair."""

import json

import pytest
import torch
from mlflow import MlflowClient
from safetensors.torch import load_file

from sentexp.config import load_config
from sentexp.errors import UserError
from sentexp.models import together
from sentexp.models.packed import PackedModel
from sentexp.sweeps.fused import FusedLauncher, fuse
from sentexp.sweeps.plan.plan import plan


@pytest.fixture
def passes(monkeypatch):
    """Return the list of how many runs each pass took."""
    sizes = []
    original = together.read_together

    def read(readings):
        sizes.append(len(readings))
        return original(readings)

    monkeypatch.setattr(together, "read_together", read)
    return sizes


def runs_of(folder):
    """Return the metrics at every step, the saved weights and the test probabilities of each run."""
    found = {}
    for file in sorted(folder.glob("*/result.json")):
        rows = [json.loads(line) for line in (file.parent / "metrics.jsonl").read_text().splitlines()]
        numbers = {
            (row["step"], key): value
            for row in rows
            for key, value in row.items()
            if key.startswith(("train/loss", "validation/", "test/"))
        }
        weights = load_file(next((file.parent / json.loads(file.read_text())["weights"]).glob("*.safetensors")))
        found[file.parent.name] = numbers, weights
    return found


def assert_same(folder, other, count, tolerance=1e-5):
    one, two = runs_of(folder), runs_of(other)
    assert one.keys() == two.keys()
    assert len(one) == count
    for name, (numbers, weights) in one.items():
        assert numbers == pytest.approx(two[name][0], abs=tolerance, nan_ok=True)
        for key, weight in weights.items():
            torch.testing.assert_close(weight, two[name][1][key], atol=tolerance, rtol=0)


@pytest.mark.parametrize(
    ("axes", "count"),
    [
        (["peft.r=4,8", "optim.lr=1e-3,2e-3", "peft.dropout=0,0.2"], 8),
        pytest.param(["seed=1,2,3", "optim.head_lr=1e-3,5e-3"], 6, marks=pytest.mark.slow),
        pytest.param(
            ["peft.r=2,4", "peft.alpha=4,16", "peft.use_rslora=true", "optim.schedule=cosine,constant"],
            8,
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ["peft.target_modules=all-linear,[q_proj,v_proj]", "optim.weight_decay=0,0.1", "trainer.batch_size=8,5"],
            8,
            marks=pytest.mark.slow,
        ),
        pytest.param(["data.train_subset=10,20,32", "trainer.gradient_clip_val=0.1,1"], 6, marks=pytest.mark.slow),
        (["task=causal_lm", "task.label_words=[bad,great]", "peft.r=4,8", "peft.dropout=0,0.3"], 4),
        (["peft=qlora", "peft.r=4,8"], 2),
        (["peft=lora,dora", "peft.r=4,8", "peft.dropout=0,0.2"], 8),
    ],
)
def test_every_run_is_what_it_is_alone(sentexp, tmp_path, passes, axes, count):
    steps = ("trainer.max_epochs=13", "trainer.max_steps=50", "trainer.log_every_n_steps=1", "tracking=none")
    words = ("--multirun", *axes, *steps)
    assert sentexp(*words, "output_dir=fused")[0] == 0
    assert max(passes) == count
    assert sentexp(*words, "output_dir=alone", "hydra/launcher=sequential")[0] == 0
    assert_same(tmp_path / "fused", tmp_path / "alone", count)


def test_bfloat16_agrees_within_its_rounding(sentexp, tmp_path):
    words = ("--multirun", "peft.r=4,8", "seed=1,2", "trainer.precision=bf16", "trainer.max_epochs=5", "tracking=none")
    assert sentexp(*words, "output_dir=fused")[0] == 0
    assert sentexp(*words, "output_dir=alone", "hydra/launcher=sequential")[0] == 0
    assert_same(tmp_path / "fused", tmp_path / "alone", 4, tolerance=2e-2)


def test_a_run_with_an_absurd_rate_fails_and_the_others_go_on(sentexp, tmp_path, passes):
    words = ("--multirun", "optim.lr=1e-3,3e-3,1e30", "trainer.max_epochs=3", "trainer.log_every_n_steps=1")
    code, _, errors = sentexp(*words, "output_dir=fused", "trainer.gradient_clip_val=null")
    assert code == 1
    assert "lr=1e+30: The loss is nan" in errors
    assert max(passes) == 3
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    status = {run.info.run_name: run.info.status for run in client.search_runs(["1"])}
    assert (status["lr=1e-3"], status["lr=3e-3"], status["lr=1e+30"]) == ("FINISHED", "FINISHED", "FAILED")
    again = ("--multirun", "optim.lr=1e-3,3e-3", *words[2:], "hydra/launcher=sequential", "tracking=none")
    assert sentexp(*again, "output_dir=alone", "trainer.gradient_clip_val=null")[0] == 0
    fused = runs_of(tmp_path / "fused")
    for name, (numbers, _) in runs_of(tmp_path / "alone").items():
        assert numbers == pytest.approx(fused[name][0], abs=1e-5, nan_ok=True)


def test_runs_that_stop_early_leave_the_others(sentexp, tmp_path, passes):
    words = ("--multirun", "optim.lr=1e-7,3e-3", "trainer.max_epochs=12", "trainer.early_stopping_patience=2")
    words = (*words, "tracking=none", "trainer.log_every_n_steps=1")
    assert sentexp(*words, "output_dir=fused")[0] == 0
    assert sentexp(*words, "output_dir=alone", "hydra/launcher=sequential")[0] == 0
    assert_same(tmp_path / "fused", tmp_path / "alone", 2)
    ends = {max(step for step, _ in numbers) for numbers, _ in runs_of(tmp_path / "fused").values()}
    assert len(ends) == 2  # one has gone on alone
    assert {1, 2} <= set(passes)


def test_a_pruned_run_leaves_the_others(sentexp, tmp_path, passes):
    words = ("hydra/sweeper=optuna", "hydra.sweeper.sampler=grid", "hydra.sweeper.n_jobs=2", "optim.lr=1e-2,1e-12")
    words = (*words, "hydra.sweeper.pruner=halving", "hydra.sweeper.reduction_factor=2", "trainer.eval_steps=2")
    words = (*words, "trainer.monitor=validation/loss", "trainer.max_epochs=3", "optim.schedule=constant")
    code, _, errors = sentexp("--multirun", *words)
    assert code == 0, errors
    assert max(passes) == 2
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    status = {run.info.run_name: run.info.status for run in client.search_runs(["1"])}
    assert (status["lr=0.01"], status["lr=1e-12"]) == ("FINISHED", "KILLED")
    alone = ("optim.lr=1e-2", *words[6:], "tracking=none", "output_dir=alone")
    code, _, errors = sentexp(*alone)
    assert code == 0, errors
    fused, plain = runs_of(tmp_path / "outputs"), runs_of(tmp_path / "alone")
    ((name, (numbers, _)),) = plain.items()
    assert numbers == pytest.approx(fused[name][0], abs=1e-5, nan_ok=True)


def test_an_interrupted_sweep_goes_on_with_all_of_its_runs(sentexp, tmp_path, monkeypatch):
    words = ("--multirun", "peft.r=4,8", "seed=1,2", "trainer.max_epochs=4", "trainer.save_steps=3")
    words = (*words, "trainer.log_every_n_steps=1", "output_dir=fused")
    original, count = together.Conductor._backward, []

    def killed(self, members):
        count.append(1)
        if len(count) == 8:
            raise KeyboardInterrupt
        original(self, members)

    monkeypatch.setattr(together.Conductor, "_backward", killed)
    assert sentexp(*words)[0] == 130
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    killed_runs = [run for run in client.search_runs(["1"]) if run.info.status == "KILLED"]
    assert len(killed_runs) == 5  # the sweep's own as well
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    code, output, errors = sentexp(*words)
    assert code == 0, errors
    assert "4 to go on with" in output
    assert sentexp(*words[:-1], "output_dir=alone", "hydra/launcher=sequential", "tracking=none")[0] == 0
    assert_same(tmp_path / "fused", tmp_path / "alone", 4)


def test_head_only_runs_read_each_text_once(sentexp, monkeypatch):
    read = []
    original = PackedModel.hidden

    def hidden(self, packed, cache=None):
        read.append(packed.rows)
        return original(self, packed, cache)

    monkeypatch.setattr(PackedModel, "hidden", hidden)
    words = ("--multirun", "peft=head", "optim.lr=1e-3,1e-2,1e-1", "trainer.max_epochs=3", "tracking=none")
    assert sentexp(*words)[0] == 0
    assert sum(read) == 32 + 8 + 8


def test_what_differs_in_more_than_an_adapter_is_another_group(config):
    def configs(*settings):
        return [config("sweep.name=x", *overrides.split()) for overrides in settings]

    other = "trainer.precision=bf16"
    found = fuse(configs("peft.r=4", "peft.r=8", other, f"{other} seed=2", "peft=full"))
    assert found.groups == [[0, 1], [2, 3]]
    assert found.reasons == {4: "only LoRA adapters are fused"}
    found = fuse(configs("peft=ia3", "peft.bias=all", "trainer.padding_free=false", "peft=head", "peft.r=4"))
    assert found.groups == []
    assert "no other run" in found.reasons[4]
    assert "LoRA" in found.reasons[0]
    assert "peft.bias=all" in found.reasons[1]
    assert len(found.reasons) == 5


def test_the_plan_says_which_runs_fuse_and_why_others_do_not(config, capsys):
    plan([config("sweep.name=a", "peft.r=4"), config("sweep.name=b", "peft.r=8"), config("sweep.name=c", "peft=ia3")])
    output = " ".join(capsys.readouterr().out.split())
    assert "2 runs train together over one backbone" in output
    assert "times as fast as one after the other, measured" in output
    assert "One after the other: c (only LoRA adapters are fused)." in output


def test_the_launcher_is_named():
    assert load_config("hydra/launcher=sequential").seed == load_config().seed


@pytest.mark.parametrize("value", [0, -3, 1.5, "abc"])
def test_a_number_of_runs_that_is_none_is_refused(value):
    with pytest.raises(UserError, match=rf"hydra.launcher.max_runs={value} must be a whole number, at least 1"):
        FusedLauncher(value)
