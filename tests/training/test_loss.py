"""The loss of a row: cross-entropy, its class weights, and the focal loss against its formula."""

import json
import re

import pytest
import torch
from rounding import rounding
from torch import nn

from sentexp.errors import UserError
from sentexp.training.loss import RowLoss, weigh

LOGITS = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))
TARGETS = torch.arange(12) % 3
LOSSES = nn.functional.cross_entropy(LOGITS, TARGETS, reduction="none")
WEIGHTS = torch.tensor([0.5, 1.0, 4.0])


def test_without_weights_and_gamma_it_is_cross_entropy():
    assert weigh(LOSSES, TARGETS, None, 0.0) is LOSSES


def test_class_weights_are_those_of_torch():
    expected = nn.functional.cross_entropy(LOGITS, TARGETS, weight=WEIGHTS, reduction="none")
    torch.testing.assert_close(weigh(LOSSES, TARGETS, WEIGHTS, 0.0), expected)


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_the_focal_loss_is_its_formula(gamma):
    p = LOGITS.softmax(-1)[torch.arange(12), TARGETS]
    torch.testing.assert_close(weigh(LOSSES, TARGETS, WEIGHTS, gamma), -WEIGHTS[TARGETS] * (1 - p) ** gamma * p.log())


def test_a_row_that_is_right_to_the_last_bit_has_finite_gradients():
    logits = torch.tensor([[200.0, -200.0], [-200.0, 200.0]], requires_grad=True)
    losses = nn.functional.cross_entropy(logits, torch.tensor([0, 0]), reduction="none")
    weigh(losses, torch.tensor([0, 0]), None, 0.5).sum().backward()
    assert torch.isfinite(logits.grad).all()


class Fixed(nn.Module):
    """Says the next of its logits each time that it reads rows."""

    def __init__(self, *logits):
        super().__init__()
        self.said = iter(logits)

    def choices(self, texts):  # noqa: D102
        return next(self.said)


def test_smoothed_labels_are_learned_as_a_distribution():
    target = 0.7 * nn.functional.one_hot(TARGETS, 3) + 0.3 / 3
    expected = -(target * LOGITS.log_softmax(-1)).sum(-1) * WEIGHTS[TARGETS]
    loss = RowLoss(WEIGHTS.tolist(), label_smoothing=0.3)
    torch.testing.assert_close(loss(Fixed(LOGITS), None, TARGETS), expected)


def test_r_drop_is_two_losses_and_the_divergence_of_their_passes():
    again = LOGITS + torch.randn(12, 3, generator=torch.Generator().manual_seed(1))
    likely, other = LOGITS.log_softmax(-1), again.log_softmax(-1)
    crossed = [nn.functional.cross_entropy(logits, TARGETS, reduction="none") for logits in (LOGITS, again)]
    forth = nn.functional.kl_div(other, likely, log_target=True, reduction="none").sum(-1)
    back = nn.functional.kl_div(likely, other, log_target=True, reduction="none").sum(-1)
    expected = sum(crossed) / 2 + 0.4 * (forth + back) / 2
    torch.testing.assert_close(RowLoss(r_drop=0.4)(Fixed(LOGITS, again), None, TARGETS), expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "free"),
    [("seq_cls", "true"), ("seq_cls", "false"), ("causal_lm", "true")],
    ids=["fast", "padded", "words"],
)
def test_the_two_passes_of_a_run_drop_different_parts(kind, free, train, tmp_path):
    words = ["peft.dropout=0.5", "peft.init=gaussian", "optim.lr=1e-2", "trainer.max_epochs=1", f"task={kind}"]
    words += ["task.template='{text}'", f"trainer.padding_free={free}", "optim.warmup_steps=0", "baseline=false"]
    words += ["task.loss=label_words"] if kind == "causal_lm" else []

    def losses(r_drop):
        folder = train(*words, f"task.r_drop={r_drop}", f"output_dir={tmp_path / str(r_drop)}").folder
        rows = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
        return [row["train/loss"] for row in rows if "train/loss" in row]

    without, weak, strong = losses(0), losses(1e-6), losses(100)
    assert strong[0] == pytest.approx(without[0], abs=rounding(without[0]))  # the adapter adds nothing yet
    assert strong[1] - weak[1] > 100 * rounding(without[1])


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (
            ["task.r_drop=1"],
            "task.r_drop=1.0 compares two passes with different dropout, and nothing in this model drops",
        ),
        (["task.label_smoothing=0.1", "task.focal_gamma=2"], "use one of them"),
        (["task=causal_lm", "task.label_smoothing=0.1"], "task.loss=answer learns tokens: use task.loss=label_words"),
        (
            ["task=causal_lm", "task.loss=full", "task.r_drop=1"],
            "task.loss=full learns tokens: use task.loss=label_words",
        ),
        (["task.label_smoothing=1"], "task.label_smoothing=1.0 must be at least 0 and below 1"),
    ],
)
def test_losses_that_cannot_be_are_one_sentence(overrides, sentence, train):
    with pytest.raises(UserError, match=re.escape(sentence)):
        train(*overrides)
