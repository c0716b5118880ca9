"""The steps of a Llama layer between its products: their values and their gradients."""

import pytest
import torch
from rounding import rounding
from torch import nn
from torch.autograd import gradcheck

from sentexp.models.fast.ops import _RMSNorm, _Rotation, _SwiGLU


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def random(*shape, trained=True):
    return torch.randn(*shape, dtype=torch.float64, requires_grad=trained)


def test_the_gradient_of_the_rotation():
    cosine, sine = random(5, 1, 4, trained=False), random(5, 1, 4, trained=False)
    assert gradcheck(lambda x: _Rotation.apply(x, cosine, sine), (random(5, 3, 4),))


def test_the_gradient_of_the_gated_unit():
    both = random(5, 6)
    torch.testing.assert_close(_SwiGLU.apply(both), nn.functional.silu(both[:, :3]) * both[:, 3:])
    assert gradcheck(_SwiGLU.apply, (both,))


def test_the_gradient_of_the_norm():
    x, weight = random(5, 8), random(8, trained=False)
    expected = nn.functional.rms_norm(x, (8,), weight, 0.1)
    found = _RMSNorm.apply(x, weight, 0.1)
    limit = rounding(float(expected.detach().abs().max()), terms=8, sums=4)
    torch.testing.assert_close(found, expected, rtol=0, atol=limit)
    weights = random(5, 8, trained=False)
    gradients = [torch.autograd.grad((out * weights).sum(), x) for out in (found, expected)]
    largest = max(float(part.abs().max()) for part in (*gradients[1], *weights))
    torch.testing.assert_close(*gradients, rtol=0, atol=rounding(largest, terms=8, sums=4))
    # It computes in float32 whatever it is given: the difference quotient needs larger steps.
    assert gradcheck(lambda x: _RMSNorm.apply(x, weight, 0.1), (x,), eps=1e-2, atol=2e-3, rtol=1e-3)
