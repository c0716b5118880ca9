"""Pruning: the policy sees every evaluation, and a run that is stopped has saved what it goes on from."""

import json

import pytest
import torch

from sentexp.run.train import train
from sentexp.training.checkpoint import BEST, LAST
from sentexp.training.pruning import Pruned

STEPS = ("trainer.eval_steps=2", "trainer.max_epochs=2", "peft.r=2")  # 8 steps


def losses(result):
    lines = (result.folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "train/rows_per_second"} for line in lines]


def test_the_policy_sees_every_evaluation_of_the_training(config):
    seen = []
    result = train(config(*STEPS), seen.append)
    assert [snapshot.step for snapshot in seen] == [2, 4, 6, 8]
    for snapshot in seen:
        assert snapshot.folder == result.folder
        assert float((snapshot.logits.argmax(-1) == snapshot.targets).float().mean()) == snapshot.value
    assert max(snapshot.value for snapshot in seen) == result.objective


def test_a_run_that_is_stopped_goes_on_with_the_same_numbers(config, tmp_path):
    whole = train(config(*STEPS, f"output_dir={tmp_path / 'whole'}"))

    def policy(snapshot):
        assert (snapshot.folder / BEST).is_file()
        return "enough" if snapshot.step == 4 else None

    with pytest.raises(Pruned, match="enough") as stopped:
        train(config(*STEPS), policy)
    state = torch.load(stopped.value.snapshot.folder / LAST, weights_only=True)
    assert state["global_step"] == stopped.value.snapshot.step == 4
    resumed = train(config(*STEPS))
    assert resumed.metrics["test/loss"] == whole.metrics["test/loss"]
    assert losses(resumed) == losses(whole)


def test_a_training_at_its_last_step_is_not_stopped(config):
    assert (
        train(config(*STEPS), lambda snapshot: "too late" if snapshot.step == 8 else None).metrics["train/steps"] == 8
    )
