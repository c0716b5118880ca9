"""The steps of a Llama layer between its products: their values and their gradients."""

from types import SimpleNamespace

import pytest
import torch
from rounding import rounding
from torch import nn
from torch.autograd import gradcheck

from sentexp.models import fast
from sentexp.models.fast import ops
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


def test_the_gradient_of_the_unit_with_gelu():
    both = random(5, 6)
    expected = nn.functional.gelu(both[:, :3], approximate="tanh") * both[:, 3:]
    torch.testing.assert_close(ops._GeGLU.apply(both), expected)
    assert gradcheck(ops._GeGLU.apply, (both,))


def test_a_wider_weight_multiplies_before_the_norm_is_rounded():
    x, weight = torch.randn(50, 64).bfloat16().requires_grad_(), torch.randn(64)
    exact = x.detach().float().requires_grad_()
    expected = nn.functional.rms_norm(exact, (64,), weight, 0.1)
    found = ops.rms_norm(x, weight, 0.1)
    weights = torch.randn(50, 64).bfloat16()
    gradients = [torch.autograd.grad((out * weights).sum(), given)[0] for out, given in ((found, x), (expected, exact))]
    for one, other in ((found, expected), (gradients[0], gradients[1])):
        assert one.dtype is torch.bfloat16
        assert torch.equal(one, other.bfloat16()) or (one.float() - other).abs().max() < 2**-8 * other.abs().max()
    rounded_twice = (weight * ops.plain_normalise(x, 0.1)[0].float()).bfloat16()
    assert not torch.equal(found, rounded_twice)
    assert (found == expected.bfloat16()).float().mean() > 0.99


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


def normalise(x, weight, eps):
    normal, inverse = ops.plain_normalise(x, eps)
    return weight * normal, inverse[:, 0]


def normalise_backward(gradient, x, inverse, weight):
    normal = (x.float() * inverse[:, None]).to(x.dtype)
    return ops.plain_normalise_backward(gradient, normal, inverse[:, None], weight)


def rotate(x, cosine, sine, back):
    return (ops.plain_rotate_back if back else ops.plain_rotate)(x, cosine, sine)


STAND_IN = {
    "normalise": normalise,
    "normalise_backward": normalise_backward,
    "swiglu": ops.plain_swiglu,
    "swiglu_backward": ops.plain_swiglu_backward,
    "rotate": rotate,
}
"""Plain operations by the names of `triton_ops`."""


def refuse(*_, **__):
    raise RuntimeError("Failed to find C compiler.\nPlease specify it.")


@pytest.mark.parametrize(
    ("wrong", "fault"),
    [
        ({}, ""),
        ({"rotate": refuse}, "Failed to find C compiler."),
        ({"swiglu": lambda both: both[:, :48]}, "the gated unit would differ"),
        ({"normalise_backward": lambda *given: 1.1 * normalise_backward(*given)}, "the norm's derivative would"),
    ],
)
def test_kernels_that_cannot_be_made_or_are_wrong_are_not_used(monkeypatch, capsys, wrong, fault):
    stand = SimpleNamespace(**STAND_IN | wrong)
    monkeypatch.setattr(fast, "triton_ops", stand, raising=False)
    found = ops._working_kernels.__wrapped__(torch.device("cpu"))
    assert found is (None if fault else stand)
    output = capsys.readouterr().out
    assert (f"Triton's kernels are off: {fault}" in output) if fault else not output


def test_kernels_give_the_derivatives(monkeypatch):
    x, weight = torch.randn(5, 8), torch.randn(8)
    angles = torch.randn(5, 1, 4)
    results = []
    for found in (None, SimpleNamespace(**STAND_IN)):
        monkeypatch.setattr(ops, "kernels", lambda _, found=found: found)
        given = x.clone().requires_grad_()
        heads = ops.apply_rotary(ops.rms_norm(given, weight, 1e-5).view(5, 2, 4), angles.cos(), angles.sin())
        out = ops.swiglu(heads.flatten(1))
        results.append((out, *torch.autograd.grad(out.sin().sum(), given)))
    limit = rounding(float(results[0][1].abs().max()), terms=8, sums=4)
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=limit)


def test_no_kernels_on_the_cpu():
    assert ops.kernels(torch.zeros(1)) is None
