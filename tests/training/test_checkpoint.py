"""Checkpoints: a run killed at any step goes on and ends with the same numbers; what a checkpoint holds (law 8)."""

import json
from pathlib import Path

import lightning as L  # noqa: N812 (the library's own abbreviation)
import pytest
import torch
from kills import Killed, killed_at
from safetensors import safe_open

from sentexp.data.datamodule import DataModule
from sentexp.models.adapters import trainable_state
from sentexp.run import fitting
from sentexp.run.train import train
from sentexp.training import preemption
from sentexp.training.checkpoint import Checkpoints, remove_checkpoints

SETTINGS = {
    "epoch ends": ["trainer.max_epochs=3", "trainer.save_steps=1"],
    "dropout": ["trainer.max_epochs=3", "trainer.save_steps=1", "peft.dropout=0.3"],
    "evaluation every 3 steps": ["trainer.max_epochs=3", "trainer.save_steps=2", "trainer.eval_steps=3"],
    "accumulation": [
        "trainer.max_epochs=2",
        "trainer.save_steps=1",
        "trainer.batch_size=3",
        "trainer.accumulate_grad_batches=2",
    ],
    "max steps": ["trainer.max_epochs=9", "trainer.max_steps=7", "trainer.save_steps=2", "optim.schedule=cosine"],
    "early stopping": [
        "trainer.max_epochs=9",
        "trainer.save_steps=1",
        "trainer.early_stopping_patience=2",
        "optim.lr=1e-30",
    ],
    "moving average": [
        *("trainer.max_epochs=2", "trainer.save_steps=1", "trainer.eval_steps=3", "trainer.average=ema"),
        *("trainer.average_decay=0.6", "trainer.unfreeze=0.5", "optim=muon", "optim.layer_decay=0.8"),
    ],
    "last weights": [
        *("trainer.max_epochs=2", "trainer.save_steps=1", "trainer.average=last_k", "trainer.average_checkpoints=2"),
        *("trainer.average_interval=3", "optim=lion", "peft.dropout=0.3", "task.r_drop=1", "task.neftune_alpha=5"),
    ],
    "schedule-free": ["trainer.max_epochs=2", "trainer.save_steps=1", "trainer.eval_steps=3", "optim=schedule_free"],
    "upper layers": ["trainer.max_epochs=2", "trainer.save_steps=1", "peft.layers_to_transform=[1]"],
}
HARDEST = "accumulation"
"""The setting that is always tried; the others are slow tests."""

ACCUMULATED = {
    "killed twice": ["trainer.accumulate_grad_batches=4", "trainer.save_steps=1"],
    "evaluation in mid-window": ["trainer.accumulate_grad_batches=2", "trainer.eval_steps=0.5"],
    "evaluation out of phase": ["trainer.accumulate_grad_batches=2", "trainer.eval_steps=3"],
}


@pytest.mark.parametrize(
    ("setting", "moments"),
    [
        ("killed twice", [(5, 6)]),
        *(pytest.param(setting, [(5, 6), (9,), (14,), (17,)], marks=pytest.mark.slow) for setting in ACCUMULATED),
    ],
    ids=["killed twice, briefly", *ACCUMULATED],
)
def test_gradients_that_are_accumulated_so_far_are_never_lost(setting, moments, config, tmp_path, monkeypatch):
    def configured(folder):
        common = ("trainer.batch_size=3", "trainer.max_epochs=2", "optim.lr=5e-3", "trainer.monitor=validation/loss")
        return config("peft.r=2", *common, *ACCUMULATED[setting], f"output_dir={tmp_path / folder}")

    whole = train(configured("whole"))
    for kills in moments:
        folder = "-".join(map(str, kills))
        for kill in kills:
            with monkeypatch.context() as patch, pytest.raises(Killed):
                killed_at(patch, kill)
                train(configured(folder))
        resumed = train(configured(folder))
        assert resumed.metrics["test/loss"] == whole.metrics["test/loss"], kills
        assert curve(resumed.folder) == curve(whole.folder), kills


@pytest.mark.parametrize(
    ("setting", "kills"),
    [
        (HARDEST, {4, 16}),
        ("moving average", {3}),  # after an evaluation, which saves
        ("last weights", {4}),
        ("schedule-free", {3}),
        *(pytest.param(setting, {2, 4, "half", "last"}, marks=pytest.mark.slow) for setting in SETTINGS),
    ],
    ids=[
        f"{HARDEST}, briefly",
        "moving average, briefly",
        "last weights, briefly",
        "schedule-free, briefly",
        *SETTINGS,
    ],
)
def test_a_killed_run_ends_with_the_same_numbers(setting, kills, config, tmp_path, monkeypatch):
    if setting == "schedule-free":
        pytest.importorskip("schedulefree")

    def configured(folder):
        return config("peft=lora", "peft.r=2", *SETTINGS[setting], f"output_dir={tmp_path / folder}")

    whole = train(configured("whole"))
    micro_batches = 22 if setting == "accumulation" else int(whole.metrics["train/steps"])
    for kill in sorted({{"half": micro_batches // 2, "last": micro_batches - 1}.get(kill, kill) for kill in kills}):
        with monkeypatch.context() as patch, pytest.raises(Killed):
            killed_at(patch, kill)
            train(configured(f"killed{kill}"))
        resumed = train(configured(f"killed{kill}"))
        for name, value in whole.metrics.items():
            if "seconds" not in name and "memory" not in name:
                assert resumed.metrics[name] == value, f"killed in micro-batch {kill}: {name}"
        assert curve(resumed.folder) == curve(whole.folder), f"killed in micro-batch {kill}"


def test_a_kill_while_a_state_is_written_leaves_the_one_before(config, monkeypatch):
    words = ("peft.r=2", "trainer.save_steps=1", "trainer.max_epochs=2")
    whole, save, files = train(config(*words, "sweep.rerun=true")), L.Trainer.save_checkpoint, []

    def cut(self, file, *given, **options):
        if len(files) == 3:
            Path(file).write_bytes(b"half")
            raise Killed
        files.append(file)
        save(self, file, *given, **options)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(L.Trainer, "save_checkpoint", cut)
        train(config(*words, "sweep.rerun=true"))
    assert train(config(*words)).metrics["test/loss"] == whole.metrics["test/loss"]


def test_nothing_is_left_of_checkpoints_whole_or_not(tmp_path):
    for name in ("last.ckpt", "last.ckpt.partial", "best.safetensors", "best.safetensors.partial", "result.json"):
        (tmp_path / name).touch()
    remove_checkpoints(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["result.json"]


def test_the_seconds_of_a_training_that_goes_on_hold_those_before_the_kill(config, monkeypatch):
    words = ("peft.r=2", "trainer.save_steps=1", "trainer.max_epochs=2")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        killed_at(patch, 6)
        train(config(*words))
    (file,) = Path(config().output_dir).glob("*/last.ckpt")
    states = torch.load(file, weights_only=True)["callbacks"]
    (before,) = [state["seconds"] for state in states.values() if "seconds" in state]
    assert before > 0
    with monkeypatch.context() as patch:  # the earlier process was a slow one
        original = Checkpoints.load_state_dict
        patch.setattr(Checkpoints, "load_state_dict", lambda self, state: original(self, state | {"seconds": 1000.0}))
        resumed = train(config(*words)).metrics
    assert resumed["seconds"] > resumed["train/seconds"] > 1000


def curve(folder):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row["train/loss"] for row in rows if "train/loss" in row}


def test_a_checkpoint_holds_adapter_and_head_only(config, monkeypatch):
    names = {}

    def look(folder):
        with safe_open(folder / "best.safetensors", "pt") as best:
            names["best"] = set(best.keys())
        names["last"] = set(torch.load(folder / "last.ckpt", weights_only=True)["state_dict"])

    monkeypatch.setattr("sentexp.run.train.remove_checkpoints", look)
    train(config("peft=lora"))
    assert names["best"] == names["last"] | {"validation/logits", "validation/targets"}
    assert all("lora_" in name or "score" in name for name in names["last"])
    assert len(names["last"]) == 2 * 14 + 1


def test_the_test_split_selects_nothing(config, monkeypatch):
    """Law 10: until the best checkpoint is restored, no test row is read."""
    read = []
    original_loader, original_restore = DataModule.test_dataloader, Checkpoints.restore_best

    def loader(self):
        read.append("test")
        return original_loader(self)

    def restore(self, module):
        read.append("restored")
        original_restore(self, module)

    monkeypatch.setattr(DataModule, "test_dataloader", loader)
    monkeypatch.setattr(Checkpoints, "restore_best", restore)
    train(config("peft=lora", "trainer.max_epochs=2", "trainer.early_stopping_patience=1"))
    assert read == ["restored", "test"]


def test_the_best_weights_are_tested_not_the_last(config, monkeypatch, worsening):
    worsening(lambda module: module.trainer.global_step > 4)
    evaluated, tested = [], []
    original, evaluate = Checkpoints.on_validation_end, fitting.evaluate

    def weights(module):
        return {name: value.clone() for name, value in trainable_state(module.classifier).items()}

    def ended(self, trainer, module):
        evaluated.append(weights(module))
        original(self, trainer, module)

    def evaluating(trainer, module, data, split):
        tested.append((split, weights(module)))
        return evaluate(trainer, module, data, split)

    monkeypatch.setattr(Checkpoints, "on_validation_end", ended)
    monkeypatch.setattr(fitting, "evaluate", evaluating)
    result = train(config("peft=lora", "trainer.max_epochs=3", "optim.lr=1e-2", "trainer.monitor=validation/loss"))
    assert (result.metrics["best/step"], result.metrics["train/steps"]) == (4, 12)
    assert len(evaluated) == 3
    ((split, state),) = tested
    assert split == "test"
    assert all(torch.equal(state[name], value) for name, value in evaluated[0].items())
    assert not any(torch.equal(state[name], value) for name, value in evaluated[-1].items())
    assert result.objective == result.metrics["best/loss"]


@pytest.mark.parametrize("last", [1, 3])
def test_the_step_at_which_a_job_ends_is_recorded(config, last):
    settings = config("trainer.log_every_n_steps=1", f"trainer.max_steps={last}", "baseline=false")
    preemption.ask_runs_to_stop()
    try:
        with pytest.raises(preemption.Preempted):
            train(settings)
    finally:
        preemption.forget()
    lines = (train(settings).folder / "metrics.jsonl").read_text().splitlines()
    found = [line["step"] for line in map(json.loads, lines) if "train/loss" in line]
    assert len(found) == len(set(found)) == last
