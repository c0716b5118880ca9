"""Means of weights: what is evaluated and saved is the mean of the formula, and the training does not notice."""

import pytest
import torch
from rounding import rounding
from safetensors.torch import load_file

from sentexp.errors import UserError
from sentexp.run.train import train
from sentexp.training.module import ClassifierModule

WORDS = ("peft.r=2", "peft.dropout=0.2", "optim.lr=1e-2", "trainer.max_epochs=2", "trainer.save_steps=2")
ONCE = "trainer.eval_steps=1000"
"""Evaluate at the end only: the last weights are the best."""


@pytest.fixture
def weights(monkeypatch):
    """Return the list of what trains after each optimizer step."""
    seen = []

    def note(self, *_):
        trained = self.classifier.model.named_parameters()
        seen.append({name: value.detach().clone() for name, value in trained if value.requires_grad})

    monkeypatch.setattr(ClassifierModule, "on_train_batch_end", note)
    return seen


def saved(result):
    """Return the saved weights by the names that they have in training."""
    tensors = load_file(result.weights / "adapter_model.safetensors")
    return {name.replace(".weight", ".default.weight") if "lora" in name else name: t for name, t in tensors.items()}


def assert_saved(result, expected):
    tensors = {name.replace(".modules_to_save.default", ""): tensor for name, tensor in expected.items()}
    found = saved(result)
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=rounding())


def configured(config, folder, *words):
    return config(*WORDS, *words, f"output_dir={folder}")


def test_a_moving_average_is_what_is_tested_and_saved(config, weights, tmp_path):
    result = train(configured(config, tmp_path / "ema", "trainer.average=ema", "trainer.average_decay=0.7", ONCE))
    mean = weights[0]
    for number, step in enumerate(weights, 1):
        decay = min(0.7, 1 - 1 / number)
        mean = {name: decay * mean[name] + (1 - decay) * value for name, value in step.items()}
    assert len(weights) == 8
    assert_saved(result, mean)


def test_the_last_weights_are_averaged(config, weights, tmp_path):
    words = ("trainer.average=last_k", "trainer.average_checkpoints=2", "trainer.average_interval=3", ONCE)
    result = train(configured(config, tmp_path / "last", *words))
    assert_saved(result, {name: (weights[2][name] + weights[5][name]) / 2 for name in weights[0]})


def test_the_mean_of_schedule_free_is_that_of_its_paper(config, weights, tmp_path):
    pytest.importorskip("schedulefree")
    result = train(configured(config, tmp_path / "free", "optim=schedule_free", "optim.warmup_steps=0", ONCE))
    x = dict.fromkeys(weights[0], 0.0)
    for step, y in enumerate(weights, 1):
        for name in x:  # x <- (1 - 1 / t) x + z / t, and y = 0.1 z + 0.9 x: what z is follows from y
            z = (y[name] - 0.9 * (1 - 1 / step) * x[name]) / (0.1 + 0.9 / step)
            x[name] = (1 - 1 / step) * x[name] + z / step
    assert_saved(result, x)


def test_an_interval_that_takes_nothing_is_refused(config):
    with pytest.raises(UserError, match=r"trainer\.average_interval=10 is more than the 8 steps of this run"):
        train(config(*WORDS, "trainer.average=last_k"))


@pytest.mark.parametrize("kind", ["ema", "last_k"])
def test_the_training_does_not_notice(kind, config, weights, tmp_path):
    often = ("trainer.eval_steps=1", "trainer.average_interval=1")
    train(configured(config, tmp_path / "plain", *often))
    plain = list(weights)
    weights.clear()
    train(configured(config, tmp_path / "mean", f"trainer.average={kind}", *often))
    assert len(plain) == len(weights) == 8
    assert all(torch.equal(one[name], other[name]) for one, other in zip(plain, weights, strict=True) for name in one)


@pytest.mark.slow
def test_memory_that_runs_out_changes_no_mean(config, room_for_two, tmp_path):
    words = ("trainer.average=ema", "trainer.unfreeze=0.5", "optim=lion", "peft.dropout=0")
    cut = ("trainer.batch_size=2", "trainer.accumulate_grad_batches=4", "trainer.eval_batch_size=8")
    halved = train(configured(config, tmp_path / "halved", *words))
    asked = train(configured(config, tmp_path / "asked", *words, *cut))
    found, expected = saved(halved), saved(asked)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["optim=schedule_free"], "optim=schedule_free does so already"),
        (["trainer=fsdp"], "trainer=fsdp has shards: use trainer=ddp"),
        (["peft=adalora"], "peft=adalora chooses ranks by all gradients"),
    ],
)
def test_what_cannot_be_averaged_is_one_sentence(overrides, sentence, config):
    with pytest.raises(UserError, match=sentence):
        config(*overrides, "trainer.average=ema")
