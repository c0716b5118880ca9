"""What a run computes, counted before it is trained, is what it computes."""

import pytest

from sentexp.models.structure import base_of
from sentexp.plan.workload import workload
from sentexp.run.build import build_data, build_model, build_module
from sentexp.run.inputs import prepare_inputs, resolve_inputs
from sentexp.run.train import train
from sentexp.training.checkpoint import Checkpoints


def planned(config):
    inputs = prepare_inputs(resolve_inputs(config), show=False)
    return inputs, workload(inputs, inputs.tokens, config.trainer)


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["trainer.padding_free=false"],
        ["task.template='Is this good? {text}'"],
        ["trainer.max_tokens=200"],
        ["trainer.max_tokens=200", "trainer.accumulate_grad_batches=2", "trainer.group_by_length=false"],
        ["trainer.group_by_length=false", "trainer.padding_free=false"],
        ["trainer.batch_size=5", "trainer.accumulate_grad_batches=3", "trainer.eval_batch_size=3"],
        ["data.sampling=balanced_labels"],
    ],
)
def test_tokens_are_those_of_the_batches(config, overrides):
    inputs, work = planned(config(*overrides))
    data = build_data(inputs)
    loaders = {"train": data.train_dataloader(), "validation": data.val_dataloader(), "test": data.test_dataloader()}
    for split, loader in loaders.items():
        batches, counted = list(loader), getattr(work, split)
        assert counted.computed.tolist() == [batch.texts.ids.numel() for batch in batches]
        assert counted.rows.tolist() == [batch.texts.rows for batch in batches]
        assert counted.tokens == sum(int(inputs.tokens[split].lengths[batch.rows].sum()) for batch in batches)
        assert counted.computed[counted.largest] == max(batch.texts.ids.numel() for batch in batches)


@pytest.mark.parametrize(("method", "more"), [("prompt_tuning", 7), ("prefix_tuning", 0)])
def test_virtual_tokens_are_read_with_each_row(config, method, more):
    inputs, work = planned(config(f"peft={method}", "peft.num_virtual_tokens=7"))
    for batch, computed in zip(build_data(inputs).train_dataloader(), work.train.computed, strict=True):
        assert computed == batch.texts.ids.numel() + more * batch.texts.rows


@pytest.mark.parametrize("free", [True, False])
@pytest.mark.parametrize("loss", ["answer", "full", "label_words"])
def test_a_language_model_reads_what_stands_behind_the_prompt(config, loss, free):
    settings = config(
        "task=causal_lm",
        "task.template='{text}'",
        f"task.loss={loss}",
        "task.label_words=[bad,wonderful]",
        f"trainer.padding_free={free}",
        "peft=ia3",  # transformers' own layers, which a hook sees
    )
    inputs, work = planned(settings)
    model, _ = build_model(inputs)
    module, data = build_module(inputs, model), build_data(inputs)
    read = []

    def note(_, __, given):
        read.append(given["input_ids"].numel())

    base_of(model).base_model.register_forward_pre_hook(note, with_kwargs=True)
    for batch in data.train_dataloader():
        module.classifier.losses(batch.texts, batch.labels)
    assert read == work.train.computed.tolist()
    read.clear()
    for batch in data.test_dataloader():
        module.classifier(batch.texts)
    assert read == work.test.computed.tolist()


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["trainer.max_epochs=2", "trainer.eval_steps=0.5"],
        ["trainer.eval_steps=3"],
        ["trainer.max_steps=3", "trainer.max_epochs=2", "trainer.eval_steps=2"],
        ["trainer.max_steps=6", "trainer.max_epochs=2"],
        ["trainer.batch_size=5", "trainer.accumulate_grad_batches=2", "trainer.eval_steps=2"],
        ["trainer.batch_size=5", "trainer.accumulate_grad_batches=2", "trainer.eval_steps=0.4"],
        ["peft=none"],
    ],
)
def test_steps_and_evaluations_are_those_of_the_run(config, monkeypatch, overrides):
    evaluated = []
    monkeypatch.setattr(Checkpoints, "on_validation_start", lambda *_: evaluated.append(1), raising=False)
    settings = config(*overrides)
    result = train(settings)
    _, work = planned(settings)
    assert (work.steps, work.evaluations) == (result.metrics["train/steps"], len(evaluated))
