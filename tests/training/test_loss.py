"""The loss of a row: cross-entropy, its class weights, and the focal loss against its formula."""

import pytest
import torch
from torch import nn

from sentexp.training.loss import row_losses

LOGITS = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))
TARGETS = torch.arange(12) % 3
WEIGHTS = torch.tensor([0.5, 1.0, 4.0])


def test_without_weights_and_gamma_it_is_cross_entropy():
    torch.testing.assert_close(
        row_losses(LOGITS, TARGETS, None, 0.0).mean(), nn.functional.cross_entropy(LOGITS, TARGETS)
    )


def test_class_weights_are_those_of_torch():
    expected = nn.functional.cross_entropy(LOGITS, TARGETS, weight=WEIGHTS, reduction="none")
    torch.testing.assert_close(row_losses(LOGITS, TARGETS, WEIGHTS, 0.0), expected)


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_the_focal_loss_is_its_formula(gamma):
    p = LOGITS.softmax(-1)[torch.arange(12), TARGETS]
    torch.testing.assert_close(
        row_losses(LOGITS, TARGETS, WEIGHTS, gamma), -WEIGHTS[TARGETS] * (1 - p) ** gamma * p.log()
    )


def test_a_row_that_is_right_to_the_last_bit_has_finite_gradients():
    logits = torch.tensor([[200.0, -200.0], [-200.0, 200.0]], requires_grad=True)
    row_losses(logits, torch.tensor([0, 0]), None, 0.5).sum().backward()
    assert torch.isfinite(logits.grad).all()
