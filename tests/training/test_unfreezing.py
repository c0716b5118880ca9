"""Gradual unfreezing: what trains at each step, of adapters, whole models and encoders."""

import pytest
import torch
from encoders import write_encoder

from sentexp.errors import UserError
from sentexp.run.train import train
from sentexp.training.module import ClassifierModule

STEPS = 8
PARTS = {
    "peft=full": [("score", "model.norm"), ("layers.1.",), ("layers.0.",), ("embed_tokens",)],
    "peft=lora": [("score",), ("layers.1.",), ("layers.0.",)],
}


def moves(config, monkeypatch, *words):
    """Return the names of the parameters that moved in each step."""
    before, moved = {}, []

    def note(self, *_):
        now = {name: value.detach().clone() for name, value in self.classifier.model.named_parameters()}
        moved.append({name for name in now if before and not torch.equal(now[name], before[name])})
        before.update(now)

    monkeypatch.setattr(ClassifierModule, "on_train_batch_end", note)
    begin = ClassifierModule.on_train_start

    def start(self):
        note(self)
        begin(self)

    monkeypatch.setattr(ClassifierModule, "on_train_start", start)
    schedule = ("optim.schedule=constant", "optim.warmup_steps=0", "optim.lr=1e-2", "trainer.max_epochs=2")
    train(config(*schedule, "peft.usual_lr=1e-2", *words))
    return moved[1:]


@pytest.mark.parametrize("method", PARTS)
def test_layers_begin_one_after_the_other_from_the_top(method, config, monkeypatch):
    moved = moves(config, monkeypatch, method, "trainer.unfreeze=0.75")
    assert len(moved) == STEPS
    parts = PARTS[method]
    for step, names in enumerate(moved):
        begun = [place for place in range(len(parts)) if step >= 0.75 * STEPS * place / (len(parts) - 1)]
        trains = tuple(name for place in begun for name in parts[place])
        assert names, step
        assert all(any(part in name for part in trains) for name in names), (step, names)
        assert all(any(part in name for name in names) for part in trains), (step, names)


def test_the_layers_of_an_encoder_are_found(config, monkeypatch, tmp_path):
    write_encoder(tmp_path / "bert", "bert")
    words = ("peft=full", f"model.path={tmp_path / 'bert'}", "task.template=auto", "trainer.unfreeze=0.5")
    moved = moves(config, monkeypatch, *words)
    assert all("pooler" in name or "classifier" in name for name in moved[0])
    assert any("layer.0." in name for name in moved[-1])
    assert any("word_embeddings" in name for name in moved[-1])


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["peft=head"], "trainer.unfreeze=0.5 lets one layer begin to train after the other, and there are none"),
        (["peft=adalora"], "peft=adalora chooses ranks by all gradients"),
        (["trainer.unfreeze=1"], "trainer.unfreeze=1.0 must be above 0 and below 1"),
    ],
)
def test_what_cannot_be_unfrozen_is_one_sentence(overrides, sentence, config):
    with pytest.raises(UserError, match=sentence):
        train(config("trainer.unfreeze=0.5", *overrides))


@pytest.mark.parametrize("key", ["trainer.unfreeze=0.5", "optim.layer_decay=0.5"])
def test_layers_that_share_weights_are_refused(key, config, tmp_path):
    write_encoder(tmp_path / "albert", "albert")
    words = ("peft=full", f"model.path={tmp_path / 'albert'}", "task.template=auto", key)
    with pytest.raises(
        UserError, match=f"{key} gives each layer its own, and those of albert share weights: leave it out"
    ):
        train(config(*words))
