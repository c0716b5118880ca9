"""Pruning: the judge sees every evaluation, and a run that is stopped has saved what it goes on from."""

import json

import pytest
import torch

from sentexp.run.train import run
from sentexp.training.checkpoint import BEST, LAST
from sentexp.training.pruning import Pruned

STEPS = ("trainer.eval_steps=2", "trainer.max_epochs=2", "peft.r=2")  # 8 steps


def losses(result):
    lines = (result.folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "train/rows_per_second"} for line in lines]


def test_the_judge_sees_every_evaluation_of_the_training(config):
    seen = []
    result = run(config(*STEPS), seen.append)
    assert [looked.step for looked in seen] == [2, 4, 6, 8]
    for looked in seen:
        assert looked.folder == result.folder
        assert float((looked.logits.argmax(-1) == looked.targets).float().mean()) == looked.value
    assert max(looked.value for looked in seen) == result.objective


def test_a_run_that_is_stopped_goes_on_with_the_same_numbers(config, tmp_path):
    whole = run(config(*STEPS, f"output_dir={tmp_path / 'whole'}"))

    def judge(looked):
        assert (looked.folder / BEST).is_file()
        return "enough" if looked.step == 4 else None

    with pytest.raises(Pruned, match="enough") as stopped:
        run(config(*STEPS), judge)
    state = torch.load(stopped.value.looked.folder / LAST, weights_only=True)
    assert state["global_step"] == stopped.value.looked.step == 4
    resumed = run(config(*STEPS))
    assert resumed.metrics["test/loss"] == whole.metrics["test/loss"]
    assert losses(resumed) == losses(whole)


def test_a_training_at_its_last_step_is_not_stopped(config):
    assert run(config(*STEPS), lambda looked: "too late" if looked.step == 8 else None).metrics["train/steps"] == 8
