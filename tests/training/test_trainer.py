"""The trainer: live modes (law 2), the effective batch (law 9), every knob of the loop."""

import json
import math

import pytest
import torch
from rounding import drift, rounding
from transformers.models.llama.modeling_llama import LlamaMLP

import sentexp.models.fast.llama
from sentexp.config import load_config
from sentexp.metrics.target import Scores
from sentexp.models.sequence_classifier import SequenceClassifier
from sentexp.run.train import train
from sentexp.training.batch_plan import halve_micro_batch
from sentexp.training.checkpoint import ResumableEarlyStopping
from sentexp.training.module import ClassifierModule


def losses(result):
    rows = [json.loads(line) for line in (result.folder / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row["train/loss"] for row in rows if "train/loss" in row}


def evaluations(result):
    rows = [json.loads(line) for line in (result.folder / "metrics.jsonl").read_text().splitlines()]
    return [row["step"] for row in rows if "validation/loss" in row]


def test_dropout_is_live_in_training_after_an_evaluation_and_dead_in_it(config, monkeypatch):
    modes = []
    original = ClassifierModule.training_step, ClassifierModule.validation_step

    def spy(index):
        def step(self, batch, batch_idx):
            dropouts = [module.training for module in self.modules() if isinstance(module, torch.nn.Dropout)]
            modes.append((index, all(dropouts), any(dropouts), len(dropouts) > 0))
            return original[index](self, batch, batch_idx)

        return step

    monkeypatch.setattr(ClassifierModule, "training_step", spy(0))
    monkeypatch.setattr(ClassifierModule, "validation_step", spy(1))
    train(config("peft=lora", "peft.dropout=0.5", "trainer.eval_steps=2"))
    assert [index for index, *_ in modes] == [0, 0, 1, 0, 0, 1]
    assert all(present for *_, present in modes)
    assert all(everywhere for index, everywhere, _, _ in modes if index == 0)
    assert not any(anywhere for index, _, anywhere, _ in modes if index == 1)


@pytest.mark.parametrize(
    ("padding_free", "owner", "name"),
    [("false", LlamaMLP, "forward"), ("true", sentexp.models.fast.llama, "decoder_layer")],
)
def test_gradient_checkpointing_is_live_and_changes_no_number(padding_free, owner, name, config, monkeypatch, tmp_path):
    calls = []
    original = getattr(owner, name)

    def spy(*given):
        calls.append(torch.is_grad_enabled())
        return original(*given)

    monkeypatch.setattr(owner, name, spy)
    settings = ("peft=lora", "peft.dropout=0.2", f"trainer.padding_free={padding_free}")
    plain = train(config(*settings, f"output_dir={tmp_path / 'plain'}"))
    once = sum(calls)
    calls.clear()
    on = train(config(*settings, "trainer.gradient_checkpointing=true"))
    assert once == 4 * 2  # four steps, two layers
    assert sum(calls) == 2 * once
    assert losses(on) == pytest.approx(losses(plain), abs=rounding())


@pytest.mark.parametrize(
    ("batch_size", "error"),
    [
        (4, torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")),
        (8, MemoryError()),
        (6, RuntimeError("DefaultCPUAllocator: can't allocate memory")),
    ],
)
def test_out_of_memory_halves_the_micro_batch_and_keeps_the_effective_batch(
    batch_size, error, config, monkeypatch, capsys, tmp_path
):
    words = ("peft=lora", f"trainer.batch_size={batch_size}", "optim.eps=1e-2")
    plain = train(config(*words, f"output_dir={tmp_path / 'plain'}"))
    original = SequenceClassifier.forward
    seen = []

    def forward(self, texts, *given):
        seen.append(texts.rows)
        if texts.rows > 2:
            raise error
        return original(self, texts, *given)

    monkeypatch.setattr(SequenceClassifier, "forward", forward)
    halved = train(config(*words, "trainer.eval_batch_size=2"))
    assert "Out of memory: starting again with batches of" in capsys.readouterr().out
    assert seen[-1] <= 2
    assert halved.metrics["train/steps"] == plain.metrics["train/steps"]
    limit = rounding() + drift(config(*words).optim.lr, int(plain.metrics["train/steps"]), 1e-2)
    assert halved.metrics["test/loss"] == pytest.approx(plain.metrics["test/loss"], abs=limit)


@pytest.mark.parametrize(
    ("size", "accumulate", "halved"), [(16, 1, (8, 2)), (8, 2, (4, 4)), (6, 1, (3, 2)), (3, 2, (1, 6)), (2, 3, (1, 6))]
)
def test_halving_keeps_the_product(size, accumulate, halved):
    config = load_config(f"trainer.batch_size={size}", f"trainer.accumulate_grad_batches={accumulate}").trainer
    found = halve_micro_batch(config)
    assert (found.batch_size, found.accumulate_grad_batches) == halved


def test_accumulation_is_the_larger_batch(config, tmp_path):
    # Plain gradient descent: it shows a wrong scale of the loss, which Adam would hide.
    settings = ("peft=full", "optim=sgd", "optim.lr=0.1", "optim.momentum=0", "trainer.gradient_clip_val=null")
    whole = train(config(*settings, "trainer.batch_size=6", f"output_dir={tmp_path / 'whole'}"))
    parts = train(config(*settings, "trainer.batch_size=2", "trainer.accumulate_grad_batches=3"))
    assert parts.metrics["train/steps"] == whole.metrics["train/steps"] == 6  # 32 rows: five steps of 6 and one of 2
    assert parts.metrics["test/loss"] == pytest.approx(whole.metrics["test/loss"], abs=rounding() + drift(0.1, 6))


@pytest.mark.parametrize(
    ("overrides", "steps"),
    [
        ([], [4]),
        (["trainer.max_epochs=2"], [4, 8]),
        (["trainer.max_steps=3"], [3]),
        (["trainer.eval_steps=3"], [3, 4]),
        (["trainer.eval_steps=0.5"], [2, 4]),
        (["trainer.eval_steps=100"], [4]),
        (["trainer.max_epochs=3", "trainer.eval_steps=6"], [6, 12]),
    ],
)
def test_evaluations_come_when_asked_and_at_the_end(train, overrides, steps):
    assert evaluations(train("peft=head", *overrides)) == steps


def test_losses_are_recorded_after_every_so_many_steps(train, tmp_path):
    words = ("trainer.batch_size=2", "trainer.accumulate_grad_batches=2", "trainer.max_steps=7")
    every, some = (
        losses(train(*words, f"trainer.log_every_n_steps={steps}", f"output_dir={tmp_path / str(steps)}"))
        for steps in (1, 3)
    )
    assert some == {step: every[step] for step in (3, 6)}


def test_early_stopping_stops(train):
    result = train("peft=lora", "trainer.max_epochs=20", "trainer.early_stopping_patience=2", "optim.lr=1e-30")
    assert result.metrics["train/steps"] == 3 * 4


OPTIMIZERS = ("adamw", "adafactor", "sgd")
SCHEDULES = ("linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "inverse_sqrt")


@pytest.mark.parametrize(
    ("optimizer", "schedule"),
    [
        pytest.param(optimizer, schedule, marks=() if (first + second) % 3 == 0 else pytest.mark.slow)
        for first, optimizer in enumerate(OPTIMIZERS)
        for second, schedule in enumerate(SCHEDULES)
    ],
)
def test_every_optimizer_and_schedule_learns(train, optimizer, schedule):
    result = train(
        "peft=lora", f"optim={optimizer}", f"optim.schedule={schedule}", "optim.lr=3e-3", "trainer.max_epochs=2"
    )
    curve = losses(result)
    assert all(math.isfinite(value) for value in curve.values())
    assert curve[max(curve)] != curve[min(curve)]


def test_a_loss_that_is_no_number_ends_the_run(train):
    from sentexp.errors import UserError

    with pytest.raises(UserError, match=r"The loss is nan at step .*: lower optim.lr"):
        train(
            "peft=full",
            "optim=sgd",
            "optim.lr=1e30",
            "optim.warmup_steps=0",
            "trainer.gradient_clip_val=null",
            "trainer.max_epochs=5",
        )


def test_a_metric_that_is_not_defined_yet_stops_nothing(tmp_path, words, monkeypatch):
    rows = "".join(f"{'abcde'[number % 5] * 4} film {number},{number % 5 + 1}\n" for number in range(60))
    (tmp_path / "stars.csv").write_text(f"text,label\n{rows}")
    own = ["data=csv", f"data.path={tmp_path / 'stars.csv'}", "data.labels=null", "task.loss=regression"]
    own += ["data.splits.validation=null", "data.splits.test=null", "data.validation_fraction=0.2"]
    own += ["trainer.monitor=validation/pearson", "trainer.early_stopping_patience=2", "trainer.max_epochs=3"]
    measure, found = Scores.measure, []

    def undefined_at_first(self, *given):
        found.append(measure(self, *given))
        return {key: value for key, value in found[-1].items() if key != "pearson" or len(found) > 1}

    monkeypatch.setattr(Scores, "measure", undefined_at_first)
    assert len(evaluations(train(load_config(*words, *own)))) == 3


@pytest.mark.parametrize("values", [[math.nan, 0.1, 0.2], [0.1, math.nan, 0.2]])
def test_a_metric_that_is_no_number_counts_as_no_better(values):
    stopping = ResumableEarlyStopping(monitor="validation/qwk", mode="max", patience=2)
    assert [stopping._evaluate_stopping_criteria(torch.tensor(value))[0] for value in values] == [False] * 3
    assert stopping._evaluate_stopping_criteria(torch.tensor(math.nan))[0] is False
    assert stopping._evaluate_stopping_criteria(torch.tensor(math.nan))[0] is True
