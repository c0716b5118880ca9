"""The loss of a row: cross-entropy, its class weights, and the focal loss against its formula."""

import pytest
import torch
from torch import nn

from sentexp.training.loss import weigh

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
