"""Cumulative logits: probabilities of ordered classes, which no outputs make negative, and their likelihood."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy, softplus

from sentexp.config import HeadLoss, TargetKind
from sentexp.models.links import cumulative, link_of, said

OUTPUTS = st.lists(st.floats(-30, 30, width=32), min_size=2, max_size=7)


@given(OUTPUTS)
def test_classes_have_the_differences_of_the_cumulative_probabilities(outputs):
    z = torch.tensor([outputs], dtype=torch.float64)
    reached = z[0, 0] + len(outputs) / 2 * math.log(2) - softplus(z[0, 1:]).cumsum(0)
    at_least = torch.cat([torch.ones(1), reached.sigmoid(), torch.zeros(1)])
    found = cumulative(z.float()).exp()[0]
    torch.testing.assert_close(found.double(), at_least[:-1] - at_least[1:], atol=1e-5, rtol=1e-4)
    assert float(found.sum()) == pytest.approx(1, abs=1e-5)
    assert bool((found >= 0).all())


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_outputs_of_zero_are_symmetric(classes):
    found = cumulative(torch.zeros(1, classes)).exp()[0]
    torch.testing.assert_close(found, found.flip(0))


def test_a_higher_location_moves_the_answer_up():
    steps = torch.zeros(9, 4)
    z = torch.cat([torch.linspace(-9, 9, 9)[:, None], steps], dim=1)
    answers = cumulative(z).argmax(-1).tolist()
    assert answers == sorted(answers)
    assert (answers[0], answers[-1]) == (0, 4)


@pytest.mark.parametrize("location", [-200.0, 0.0, 200.0])
def test_the_likelihood_and_its_gradient_are_numbers_far_out(location):
    z = torch.tensor([[location, -50.0, 50.0]], requires_grad=True)
    losses = torch.stack([cross_entropy(cumulative(z), torch.tensor([target])) for target in range(3)])
    losses.sum().backward()
    assert bool(losses.isfinite().all())
    assert bool(z.grad.isfinite().all())


def test_classes_have_probabilities_and_scores_are_themselves():
    np.testing.assert_array_equal(said(TargetKind.scores, torch.tensor([[1.5], [2.5]])), [[1.5], [2.5]])
    np.testing.assert_allclose(said(TargetKind.classes, torch.tensor([[0.0, 0.0]])), [[0.5, 0.5]])


def test_a_score_is_on_its_scale_and_its_loss_is_not():
    link = link_of(HeadLoss.regression, (100.0, 20.0))
    scores = link(torch.tensor([[0.0], [1.5]]))
    assert scores.tolist() == [[100], [130]]
    assert link.losses(scores, torch.tensor([100.0, 90.0])).tolist() == [0, 4]


def test_labels_of_a_set_have_probabilities_and_losses_of_their_own():
    link = link_of(HeadLoss.multi_label)
    logits, targets = torch.tensor([[0.0, 2.0], [-1.0, 3.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert torch.equal(link(logits), logits)
    chances = torch.where(targets > 0, logits.sigmoid(), 1 - logits.sigmoid())
    torch.testing.assert_close(link.losses(logits, targets), -chances.log().mean(1))
    np.testing.assert_allclose(said(TargetKind.label_sets, logits), logits.sigmoid().numpy())
