"""Triton's kernels against PyTorch's operations: on a GPU, or anywhere in Triton's interpreter (TRITON_INTERPRET=1)."""

import os

import pytest
import torch

from sentexp.models.fast import ops

triton_ops = pytest.importorskip("sentexp.models.fast.triton_ops", reason="Triton is not installed")
GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not GPU and os.environ.get("TRITON_INTERPRET") != "1", reason="needs a CUDA GPU"),
]
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
ROUNDINGS = 8
"""Units of rounding, of an element or of the largest, that two ways may differ by: a GPU's roots, quotients and
exponentials are not the same to the last one, and differences cancel."""


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def random(*shape, dtype):
    return torch.randn(*shape, device=DEVICE).to(dtype)


def close(found, expected):
    limit = ROUNDINGS * torch.finfo(expected.dtype).eps
    torch.testing.assert_close(found, expected, rtol=limit, atol=limit * float(expected.abs().max()))


@DTYPES
@pytest.mark.parametrize("columns", [64, 576, 2048, 5000])
def test_the_norm(dtype, columns):
    x, weight, gradient = (random(*shape, dtype=dtype) for shape in ((7, columns), (columns,), (7, columns)))
    found, inverse = triton_ops.normalise(x, weight, 1e-5)
    normal, expected = ops.plain_normalise(x, 1e-5)
    close(found, weight * normal)
    close(inverse, expected[:, 0])
    close(
        triton_ops.normalise_backward(gradient, x, inverse, weight),
        ops.plain_normalise_backward(gradient, normal, expected, weight),
    )


@DTYPES
@pytest.mark.parametrize("columns", [48, 1024, 1536, 11_008])
def test_the_gated_unit(dtype, columns):
    both, gradient = random(5, 2 * columns, dtype=dtype), random(5, columns, dtype=dtype)
    close(triton_ops.swiglu(both), ops.plain_swiglu(both))
    close(triton_ops.swiglu_backward(gradient, both), ops.plain_swiglu_backward(gradient, both))


@DTYPES
@pytest.mark.parametrize(("heads", "width"), [(3, 32), (40, 64), (12, 80), (64, 128)])
def test_the_rotation_of_heads_that_lie_between_others(dtype, heads, width):
    x = random(6, heads + 5, width, dtype=dtype)[:, 2 : heads + 2]
    cosine, sine = random(6, 1, width, dtype=dtype), random(6, 1, width, dtype=dtype)
    close(triton_ops.rotate(x, cosine, sine, back=False), ops.plain_rotate(x, cosine, sine))
    close(triton_ops.rotate(x, cosine, sine, back=True), ops.plain_rotate_back(x, cosine, sine))


def test_they_are_used_on_a_gpu(monkeypatch):
    monkeypatch.setattr(ops, "kernels", lambda _: triton_ops)
    both = random(5, 96, dtype=torch.float32).requires_grad_()
    calls = []
    monkeypatch.setattr(triton_ops, "swiglu", lambda given: calls.append(len(given)) or ops.plain_swiglu(given))
    ops.swiglu(both).sum().backward()
    assert calls == [5]
    expected = ops.plain_swiglu_backward(torch.ones(5, 48, device=DEVICE), both.detach())
    close(both.grad, expected)


def test_they_pass_their_own_test():
    assert ops.differences(triton_ops, DEVICE) == ""


def test_a_kernel_that_is_wrong_is_found(monkeypatch):
    monkeypatch.setattr(triton_ops, "swiglu", lambda both: 1.1 * ops.plain_swiglu(both))
    assert ops.differences(triton_ops, DEVICE) == "the gated unit would differ"


@pytest.mark.skipif(not GPU, reason="needs a CUDA GPU")
def test_a_gpu_has_them():
    assert ops.kernels(torch.zeros(1, device=DEVICE)) is triton_ops
