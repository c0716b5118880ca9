"""NEFTune: the noise is that of the formula on every path, in training only, and leaves the model as it was."""

import pytest
import torch
from encoders import write_encoder

from sentexp.errors import UserError
from sentexp.run.train import train
from sentexp.training.module import ClassifierModule
from sentexp.training.neftune import EmbeddingNoise

ALPHA = 5.0


@pytest.fixture
def passes(monkeypatch):
    """Return the list of ids, embeddings, their noise, and the texts of each pass of a training."""
    seen = []
    original = ClassifierModule.training_step

    def step(self, batch, batch_idx):
        table = self.classifier.model.get_base_model().get_input_embeddings()
        found = []
        plain = table.weight.detach()

        def note(_, ids, embeddings):
            found.append((ids[0], embeddings.detach() - plain[ids[0]]))

        handle = table.register_forward_hook(note)
        loss = original(self, batch, batch_idx)
        handle.remove()
        seen.append((batch.texts, torch.initial_seed(), *found[0]))
        return loss

    monkeypatch.setattr(ClassifierModule, "training_step", step)
    return seen


@pytest.mark.parametrize(
    "overrides",
    [
        ["task=seq_cls"],
        ["task=seq_cls", "trainer.padding_free=false"],
        ["task=causal_lm", "task.template=completion"],
        ["task=causal_lm", "task.template=completion", "trainer.padding_free=false", "task.loss=label_words"],
    ],
    ids=["fast", "padded", "answers", "padded words"],
)
def test_the_noise_is_uniform_and_as_small_as_its_row_is_long(overrides, passes, config):
    train(config("task.neftune_alpha=5", "trainer.max_steps=2", "trainer.max_epochs=9", "baseline=false", *overrides))
    for texts, seed, ids, noise in passes:
        torch.manual_seed(seed)
        uniform = torch.empty_like(noise).uniform_(-1, 1)
        if hasattr(texts, "starts"):
            assert texts.prefix == 0  # each row has noise of its own, of what all begin with as well
            lengths = texts.starts.diff().long()
            size = lengths.repeat_interleave(lengths)[:, None]
        else:
            branches = ids.shape[1] - texts.mask.shape[1]  # negative and positive, of as many tokens
            size = texts.mask.sum(1)[:, None, None] + branches // 2
        torch.testing.assert_close(noise, ALPHA / (size * noise.shape[-1]).sqrt() * uniform, rtol=0, atol=1e-6)


def test_packed_layers_of_transformers_have_it_as_well(passes, config, tmp_path):
    write_encoder(tmp_path / "bert", "bert")
    words = ("task.neftune_alpha=5", f"model.path={tmp_path / 'bert'}", "task.template=auto", "trainer.max_epochs=1")
    train(config(*words))
    texts, seed, _, noise = passes[0]
    torch.manual_seed(seed)
    lengths = texts.starts.diff().long()
    size = lengths.repeat_interleave(lengths)[:, None]
    expected = ALPHA / (size * noise.shape[-1]).sqrt() * torch.empty_like(noise).uniform_(-1, 1)
    torch.testing.assert_close(noise, expected, rtol=0, atol=1e-6)


def test_only_the_training_is_noisy(config, tmp_path):
    words = ("optim.lr=1e-30", "trainer.max_epochs=1")
    plain = train(config(*words, f"output_dir={tmp_path / 'plain'}"))
    noisy = train(config(*words, "task.neftune_alpha=5", f"output_dir={tmp_path / 'noisy'}"))
    assert noisy.metrics["test/loss"] == plain.metrics["test/loss"]
    assert noisy.metrics["best/loss"] == plain.metrics["best/loss"]
    assert noisy.identity != plain.identity


def test_the_model_is_left_as_it_was(config, monkeypatch):
    models = []
    original = EmbeddingNoise.on_train_start

    def start(self, trainer, module):
        original(self, trainer, module)
        models.append((self.base, module))

    monkeypatch.setattr(EmbeddingNoise, "on_train_start", start)
    train(config("task.neftune_alpha=5"))
    ((base, module),) = models
    assert not base.get_input_embeddings()._forward_hooks
    assert not base.base_model._forward_pre_hooks
    assert module.classifier.packed.before_training_pass is None


def test_features_that_are_computed_once_have_no_noise(config):
    with pytest.raises(UserError, match="peft=head computes the features of a text once"):
        config("peft=head", "task.neftune_alpha=5")


@pytest.mark.parametrize("method", ["prompt_tuning", "prefix_tuning"])
def test_virtual_tokens_get_no_noise(method, config):
    with pytest.raises(UserError, match="those of virtual tokens are trained"):
        config(f"peft={method}", f"task.neftune_alpha={ALPHA}")
