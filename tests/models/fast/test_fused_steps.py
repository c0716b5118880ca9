"""Requests for whole steps: which runs are answered together, which alone, and what is kept of it."""

import torch

from sentexp.models.fast import fused_steps
from sentexp.models.fast.fused_steps import FusedSteps
from sentexp.models.fast.run_thread import StepOutput, StepRequest


class Steps:
    """Stands in for the recorded steps of runs, which are there from the second time on."""

    def __init__(self, *names):
        self.names, self.calls = names, []

    def with_others(self, others):
        """Return the steps of all these runs."""
        return Steps(*self.names, *(name for other in others for name in other.names))

    def together(self, batches, seeds):
        """Return the steps, whose losses say what they were made of."""
        self.calls.append((batches, seeds))
        losses = [f"{name} {seed}" for name, seed in zip(self.names, seeds, strict=True)]
        return (lambda: losses) if len(self.calls) > 1 else None


class Run:
    """Stands in for a run that waits for a step of a batch with so many rows."""

    def __init__(self, name, rows, seed=0):
        self.answer, self.request = None, StepRequest(Steps(name), (torch.zeros(rows), 7), seed)


def losses(fused, *runs):
    fused.answer(list(runs))
    assert all(isinstance(run.answer, StepOutput) for run in runs)
    return [run.answer.loss for run in runs]


def test_runs_with_batches_of_the_same_shape_are_answered_together():
    fused, one, two, three = FusedSteps(), Run("one", 4, 11), Run("two", 3, 12), Run("three", 4, 13)
    assert losses(fused, one, two, three) == [None, None, None]
    assert losses(fused, one, two, three) == ["one 11", None, "three 13"]
    assert fused.largest == 2
    assert losses(fused, one) == [None]  # alone it replays its own


def test_there_are_few_sets_of_runs(monkeypatch):
    monkeypatch.setattr(fused_steps, "MOST_SETS", 1)
    fused, one, two, three = FusedSteps(), Run("one", 4), Run("two", 4), Run("three", 4)
    for _ in range(3):
        first, second = losses(fused, one, two), losses(fused, one, three)
    assert first == ["one 0", "two 0"]
    assert second == [None, None]


def test_what_holds_a_run_that_has_ended_is_given_back():
    fused, one, two, three = FusedSteps(), Run("one", 4), Run("two", 4), Run("three", 4)
    assert losses(fused, one, two) == [None, None]
    fused.keep([one, two, three])
    assert losses(fused, one, two) == ["one 0", "two 0"]
    fused.keep([one, three])
    assert losses(fused, one, two) == [None, None]  # as if they met for the first time
