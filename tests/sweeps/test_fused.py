"""A fused sweep: every run has the numbers that it has alone, and what becomes of one is its own affair."""

import json

import pytest
import torch
from lightning import LightningModule
from mlflow import MlflowClient
from rounding import drift, rounding, smooth
from safetensors.torch import load_file
from storages import EXTRA, over

from sentexp.config import load_config
from sentexp.errors import UserError
from sentexp.models.fast import multi_run
from sentexp.models.fast.llama import LlamaLayers
from sentexp.models.fast.padding_free import PaddingFreeModel
from sentexp.plan.command import plan
from sentexp.run import cuda_graphs
from sentexp.run.fusing import fuse
from sentexp.sweeps.fused import FusedLauncher
from sentexp.training import recorded_steps


@pytest.fixture
def passes(monkeypatch):
    """Return the list of how many runs each pass took."""
    sizes = []
    original = multi_run.fused_forward

    def forward(inputs):
        sizes.append(len(inputs))
        return original(inputs)

    monkeypatch.setattr(multi_run, "fused_forward", forward)
    return sizes


LR, EPS = 1e-2, 1e-2
TRAINING = (f"optim.lr={LR}", f"optim.eps={EPS}", "trainer.monitor=validation/loss", "trainer.log_every_n_steps=1")
"""An `eps` of AdamW that does not make whole steps of rounding."""
ONCE = "trainer.eval_steps=1000"
"""Evaluate at the end only: the last weights are the best, and rounding does not choose which are saved."""


def runs_of(folder):
    """Return the losses at every step and the saved weights of each run."""
    found = {}
    for file in sorted(folder.glob("*/result.json")):
        rows = [json.loads(line) for line in (file.parent / "metrics.jsonl").read_text().splitlines()]
        numbers = {(row["step"], key): value for row in rows for key, value in smooth(row).items()}
        weights = load_file(next((file.parent / json.loads(file.read_text())["weights"]).glob("*.safetensors")))
        found[file.parent.name] = numbers, weights
    return found


def assert_same(fused, alone, steps):
    """Compare runs after as many steps, up to their rounding and what it becomes in the weights."""
    tolerance = rounding() + drift(LR, steps, EPS)
    assert fused.keys() == alone.keys()
    for name, (numbers, weights) in alone.items():
        losses = {key: value for (step, key), value in numbers.items() if step == max(numbers)[0]}
        assert {"train/loss", "validation/loss", "test/loss"} <= losses.keys()
        assert fused[name][0] == pytest.approx(numbers, abs=tolerance)
        moved = max(float(weight.abs().max()) for key, weight in weights.items() if "lora_B" in key)
        assert moved > 30 * tolerance  # it begins at zero
        for key, weight in weights.items():
            torch.testing.assert_close(fused[name][1][key], weight, atol=tolerance, rtol=0)


def assert_alike(sentexp, tmp_path, passes, axes, count, *training):
    """Compare the runs of a sweep, fused, with those that train one after the other."""
    given = {word.partition("=")[0] for word in axes}
    common = [word for word in TRAINING if word.partition("=")[0] not in given]
    words = ("--multirun", *axes, *common, *training, ONCE, "tracking=none")
    assert sentexp(*words, "output_dir=fused")[0] == 0
    assert max(passes) == count
    assert sentexp(*words, "output_dir=alone", "hydra/launcher=sequential")[0] == 0
    fused, alone = runs_of(tmp_path / "fused"), runs_of(tmp_path / "alone")
    assert len(fused) == count
    assert_same(fused, alone, max(step for numbers, _ in alone.values() for step, _ in numbers))


@pytest.mark.parametrize(
    ("axes", "count"),
    [
        (["peft.r=2,4,8", "peft.dropout=0.2"], 3),
        pytest.param(
            ["task=causal_lm", "task.label_words=[bad,great]", "peft=lora,dora", "peft.dropout=0.2"],
            2,
            marks=pytest.mark.slow,
        ),
        (["peft=qlora", "peft.r=4,8"], 2),
        pytest.param(
            [
                "trainer.average=ema,none",
                "trainer.unfreeze=0.5,null",
                "optim.layer_decay=0.7",
                "task.label_smoothing=0.1",
            ],
            4,
            marks=pytest.mark.slow,
        ),
        pytest.param(
            [
                "peft.rank_pattern=null,{v_proj:8}",
                "peft.alpha_pattern=null,{down_proj:64}",
                "peft.exclude_modules=q_proj",
            ],
            4,
            marks=pytest.mark.slow,
        ),
        pytest.param(["peft.init=default,eva", "optim.lora_plus_ratio=null,4", "peft.r=4"], 4, marks=pytest.mark.slow),
        pytest.param(["peft=qlora", "peft.init=default,loftq", "peft.r=4"], 2, marks=pytest.mark.slow),
        *(over(name, [f"peft.quantization={name}", "peft=lora,dora", "peft.r=4"], 2) for name in EXTRA),
    ],
    ids=["lora", "answers and dora", "qlora", "recipes", "patterns", "eva", "loftq", *EXTRA],
)
def test_every_run_is_what_it_is_alone(sentexp, tmp_path, passes, axes, count):
    assert_alike(sentexp, tmp_path, passes, axes, count, "trainer.max_epochs=2")


def test_a_run_that_ends_leaves_the_shared_weights_where_they_are(sentexp, tmp_path, monkeypatch):
    """On a GPU `cpu()` takes them away from the runs that still train; here it makes them float64, which is as bad."""
    monkeypatch.setattr(LightningModule, "cpu", LightningModule.double)
    words = ("--multirun", "trainer.max_steps=1,3", *TRAINING, "tracking=none", "output_dir=fused")
    assert sentexp(*words)[0] == 0
    assert len(runs_of(tmp_path / "fused")) == 2


@pytest.fixture
def together(monkeypatch):
    """Return the list of how many runs each recorded step took."""
    sizes = []
    original = recorded_steps.TrainingGraphs.together

    def step(self, batches, seeds):
        found = original(self, batches, seeds)
        if found is not None:
            sizes.append(len(batches))
        return found

    monkeypatch.setattr(recorded_steps.TrainingGraphs, "together", step)
    return sizes


@pytest.mark.slow
@pytest.mark.usefixtures("recording")
@pytest.mark.parametrize(
    ("axes", "most"),
    [
        (["peft.r=2,4", "optim.lr=5e-3,1e-2", "peft.dropout=0.2"], 4),
        (["seed=1,2", "peft.dropout=0,0.2"], 4),
        (["optim.lora_plus_ratio=null,2,4", "optim.schedule=constant,cosine", "optim.lr=5e-3"], 6),
        (["task=causal_lm", "task.label_words=[bad,great]", "peft=lora,dora", "trainer.gradient_clip_val=0.05"], 2),
    ],
    ids=["lora", "other orders of rows", "lora+", "answers and dora"],
)
def test_every_run_of_recorded_steps_is_what_it_is_alone(sentexp, tmp_path, together, axes, most):
    given = {word.partition("=")[0] for word in axes}
    common = [word for word in TRAINING if word.partition("=")[0] not in given]
    words = ("--multirun", *axes, *common, ONCE, "tracking=none", "trainer.max_epochs=6", "trainer.max_steps=20")
    assert sentexp(*words, "output_dir=fused")[0] == 0
    assert max(together) == most
    assert sum(together) > most * 20 / 2  # of the steps of all runs
    apart = ("hydra/launcher=sequential", "trainer.cuda_graphs=false")
    assert sentexp(*words, *apart, "output_dir=alone")[0] == 0
    assert_same(runs_of(tmp_path / "fused"), runs_of(tmp_path / "alone"), 20)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("axes", "count"),
    [
        (["peft.r=4,8", "optim.lr=5e-3,1e-2", "peft.dropout=0,0.2"], 8),
        (["seed=1,2,3", "optim.head_lr=5e-3,1e-2"], 6),
        # At the rate of the others so large an alpha makes losses jump, and rounding grows from step to step.
        pytest.param(
            [
                "peft.r=2,4",
                "peft.alpha=4,16",
                "peft.use_rslora=true",
                "optim.schedule=cosine,constant",
                "optim.lr=1e-3",
            ],
            8,
            marks=pytest.mark.exhaustive,
        ),
        pytest.param(
            ["peft.target_modules=all-linear,[q_proj,v_proj]", "optim.weight_decay=0,0.1", "trainer.batch_size=8,5"],
            8,
            marks=pytest.mark.exhaustive,
        ),
        (["data.train_subset=10,20,32", "trainer.gradient_clip_val=0.1,1"], 6),
        (["task=causal_lm", "task.label_words=[bad,great]", "peft.r=4,8", "peft.dropout=0,0.3"], 4),
        (["peft=qlora", "peft.r=4,8"], 2),
        pytest.param(["peft=lora,dora", "peft.r=4,8", "peft.dropout=0,0.2"], 8, marks=pytest.mark.exhaustive),
    ],
)
def test_every_run_of_many_steps_is_what_it_is_alone(sentexp, tmp_path, passes, axes, count):
    assert_alike(sentexp, tmp_path, passes, axes, count, "trainer.max_epochs=25", "trainer.max_steps=50")


@pytest.mark.slow
def test_bfloat16_is_rounded_as_alone(sentexp, tmp_path):
    """What trains is as far from float32: the arithmetic is no coarser where runs are fused."""
    words = ("--multirun", "peft.r=2,4", *TRAINING, ONCE, "tracking=none")
    short, apart = "trainer.precision=bf16", "hydra/launcher=sequential"
    assert sentexp(*words, short, "output_dir=fused")[0] == 0
    assert sentexp(*words, short, apart, "output_dir=alone")[0] == 0
    assert sentexp(*words, apart, "output_dir=exact")[0] == 0

    def trained(folder):
        own = [weights for _, weights in runs_of(folder).values()]
        own.sort(key=lambda weights: sum(value.numel() for value in weights.values()))  # by rank: identities differ
        return torch.cat([weights[key].flatten() for weights in own for key in sorted(weights) if "lora_B" in key])

    fused, alone, exact = (trained(tmp_path / name) for name in ("fused", "alone", "exact"))
    errors = [float((found - exact).norm()) for found in (fused, alone)]
    assert 0 < errors[0] < 2 * errors[1]
    assert errors[0] < rounding(float(exact.norm()), torch.bfloat16, terms=1, sums=32)


@pytest.mark.slow
def test_a_run_with_an_absurd_rate_fails_and_the_others_go_on(sentexp, tmp_path, passes):
    words = ("--multirun", "optim.lr=3e-3,5e-3,1e30", *TRAINING[1:], ONCE, "trainer.max_epochs=2")
    code, _, errors = sentexp(*words, "output_dir=fused", "trainer.gradient_clip_val=null")
    assert code == 1
    assert "lr=1e+30: The loss is nan" in errors
    assert max(passes) == 3
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    status = {run.info.run_name: run.info.status for run in client.search_runs(["1"])}
    assert (status["lr=3e-3"], status["lr=5e-3"], status["lr=1e+30"]) == ("FINISHED", "FINISHED", "FAILED")
    again = ("--multirun", "optim.lr=3e-3,5e-3", *words[2:], "hydra/launcher=sequential", "tracking=none")
    assert sentexp(*again, "output_dir=alone", "trainer.gradient_clip_val=null")[0] == 0
    assert_same(runs_of(tmp_path / "fused"), runs_of(tmp_path / "alone"), 8)


@pytest.mark.slow
def test_runs_that_stop_early_leave_the_others(sentexp, tmp_path, passes, worsening):
    worsening(lambda module: module.trainer.global_step > 4)  # the runs of a patience of 1 end with the next evaluation
    words = ("--multirun", "trainer.early_stopping_patience=1,9", "trainer.max_epochs=4", *TRAINING, "tracking=none")
    assert sentexp(*words, "output_dir=fused")[0] == 0
    assert sentexp(*words, "output_dir=alone", "hydra/launcher=sequential")[0] == 0
    fused = runs_of(tmp_path / "fused")
    assert_same(fused, runs_of(tmp_path / "alone"), 16)
    assert {max(step for step, key in numbers if key == "train/loss") for numbers, _ in fused.values()} == {8, 16}
    assert {1, 2} <= set(passes)  # one has gone on alone


@pytest.mark.slow
def test_a_pruned_run_leaves_the_others(sentexp, tmp_path, passes, worsening):
    worsening(lambda module: module.optim.lr < LR)
    words = ("hydra/sweeper=optuna", "hydra.sweeper.sampler=grid", "hydra.sweeper.n_jobs=2", "optim.lr=1e-2,1e-12")
    words = (*words, "hydra.sweeper.pruner=halving", "hydra.sweeper.reduction_factor=2", *TRAINING[1:])
    words = (*words, "trainer.eval_steps=2", "trainer.max_epochs=3", "optim.schedule=constant")
    code, _, errors = sentexp("--multirun", *words)
    assert code == 0, errors
    assert max(passes) == 2
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    status = {run.info.run_name: run.info.status for run in client.search_runs(["1"])}
    assert (status["lr=0.01"], status["lr=1e-12"]) == ("FINISHED", "KILLED")
    alone = ("optim.lr=1e-2", *words[6:], "tracking=none", "output_dir=alone")
    code, _, errors = sentexp(*alone)
    assert code == 0, errors
    ((name, plain),) = runs_of(tmp_path / "alone").items()
    fused = runs_of(tmp_path / "outputs")[name]
    assert fused[0] == pytest.approx(plain[0], abs=rounding() + drift(LR, 12, EPS))


@pytest.mark.slow
def test_an_interrupted_sweep_goes_on_with_all_of_its_runs(sentexp, tmp_path, monkeypatch):
    words = ("--multirun", "peft.r=2,4", "trainer.max_epochs=2", "trainer.save_steps=3")
    words = (*words, *TRAINING, ONCE, "output_dir=fused")
    original, count = multi_run.RunScheduler._backward, []

    def killed(self, members):
        count.append(1)
        if len(count) == 6:
            raise KeyboardInterrupt
        original(self, members)

    monkeypatch.setattr(multi_run.RunScheduler, "_backward", killed)
    assert sentexp(*words)[0] == 130
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    killed_runs = [run for run in client.search_runs(["1"]) if run.info.status == "KILLED"]
    assert len(killed_runs) == 3  # the sweep's own as well
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    code, output, errors = sentexp(*words)
    assert code == 0, errors
    assert "2 to resume" in output
    assert sentexp(*words[:-1], "output_dir=alone", "hydra/launcher=sequential", "tracking=none")[0] == 0
    fused = runs_of(tmp_path / "fused")
    assert len(fused) == 2
    assert_same(fused, runs_of(tmp_path / "alone"), 8)


@pytest.mark.slow
def test_head_only_runs_read_each_text_once(sentexp, monkeypatch):
    read = []
    original = PaddingFreeModel.hidden

    def hidden(self, packed, cache=None):
        read.append(packed.rows)
        return original(self, packed, cache)

    monkeypatch.setattr(PaddingFreeModel, "hidden", hidden)
    words = ("--multirun", "peft=head", "optim.lr=1e-3,1e-2", "trainer.max_epochs=2", "tracking=none")
    assert sentexp(*words)[0] == 0
    assert sum(read) == 32 + 8 + 8


@pytest.mark.parametrize("launcher", ["fused", "sequential"])
def test_runs_that_adapt_upper_layers_read_each_text_once(sentexp, monkeypatch, launcher):
    read, original = [], LlamaLayers._states_before

    def states(self, number, packed):
        read.append((number, packed.rows))
        return original(self, number, packed)

    monkeypatch.setattr(LlamaLayers, "_states_before", states)
    axes = ("--multirun", "peft.layers_to_transform=[1]", "optim.lr=1e-3,1e-2", "trainer.max_epochs=2")
    assert sentexp(*axes, "tracking=none", "baseline=false", f"hydra/launcher={launcher}")[0] == 0
    assert {number for number, _ in read} == {1}
    assert sum(rows for _, rows in read) == 32 + 8 + 8


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
    found = fuse(configs("peft.init=pissa", "peft.init=pissa seed=2", "peft.init=gaussian", "peft.init=orthogonal"))
    assert found.groups == [[2, 3]]
    assert found.reasons == dict.fromkeys((0, 1), "peft.init=pissa changes the backbone")
    found = fuse(configs("task.r_drop=1", "task.neftune_alpha=5", "trainer.average=ema", "optim=lion"))
    assert found.groups == [[2, 3]]
    twice, noise = found.reasons.values()
    assert (twice, noise) == (
        "task.r_drop reads every batch twice",
        "task.neftune_alpha gives every run noise of its own",
    )
    found = fuse(configs("peft.modules_to_save=[norm]", "peft.modules_to_save=[norm] seed=2"))
    assert found.reasons == dict.fromkeys((0, 1), "peft.modules_to_save trains modules of the backbone")


def test_runs_whose_steps_are_recorded_are_fused_on_request(config, monkeypatch):
    monkeypatch.setattr(cuda_graphs, "uses_cuda_graphs", lambda config, *_: config.trainer.cuda_graphs is not False)
    for graphs in ("auto", "true", "false"):
        found = fuse([config("sweep.name=x", f"peft.r={rank}", f"trainer.cuda_graphs={graphs}") for rank in (4, 8)])
        assert found.groups == ([] if graphs == "auto" else [[0, 1]])
        assert all(
            "each replays its own CUDA graphs (trainer.cuda_graphs=true" in why for why in found.reasons.values()
        )


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
