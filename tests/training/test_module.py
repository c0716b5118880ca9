"""The module: the loss of a step is the mean over its rows, dropout is a function of seed and step."""

import json

import pytest
from rounding import rounding

from sentexp.run.train import train


def losses(result):
    rows = [json.loads(line) for line in (result.folder / "metrics.jsonl").read_text().splitlines()]
    return [row["train/loss"] for row in rows if "train/loss" in row]


@pytest.mark.parametrize("method", ["lora", "dora", "full", "head", "ia3", "qlora"])
def test_every_way_of_training_lowers_the_loss(train, method):
    result = train(
        f"peft={method}", "optim.lr=1e-2", "trainer.max_epochs=4", "optim.schedule=constant", "optim.warmup_steps=0"
    )
    curve = losses(result)
    first, last = sum(curve[:4]), sum(curve[-4:])  # of the same rows, once in each epoch
    assert last < first - 10 * rounding(first)


def test_the_untuned_model_is_only_evaluated(train):
    result = train("peft=none")
    assert result.metrics["train/steps"] == 0
    assert result.parameters.trainable_total == 0
    assert "test/accuracy" in result.metrics
    assert result.objective == result.metrics["best/accuracy"]


def test_the_same_seed_gives_the_same_numbers_and_another_seed_others(config, tmp_path):
    def metrics(folder, *overrides):
        result = train(config("peft=lora", "peft.dropout=0.2", f"output_dir={tmp_path / folder}", *overrides))
        return {name: value for name, value in result.metrics.items() if "seconds" not in name and "memory" not in name}

    first = metrics("a")
    assert metrics("b") == first
    assert metrics("c", "seed=7") != first
