"""The steps of a Llama layer between its products, each with a derivative that keeps as little as it can.

Under torch.compile they are plain operations: it finds the derivative, and what to fuse, itself.
"""

from typing import Any

import torch
from torch import Tensor, nn


def rms_norm(hidden: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Return x / sqrt(mean(x^2) + eps) * w in float32 (Zhang & Sennrich 2019, eq. 4)."""
    if torch.compiler.is_compiling():  # which finds the derivative, and what to fuse, itself
        return weight * _normalised(hidden, eps)[0]
    out: Tensor = _RMSNorm.apply(hidden, weight, eps)  # type: ignore[no-untyped-call]
    return out


def apply_rotary(states: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Return rotary position embeddings over halves, as transformers applies them (Su et al. 2021, eq. 34)."""
    if torch.compiler.is_compiling():
        return _rotate(states, cosine, sine)
    out: Tensor = _Rotation.apply(states, cosine, sine)  # type: ignore[no-untyped-call]
    return out


def swiglu(both: Tensor) -> Tensor:
    """Return silu(gate) * up, where gate and up are side by side (Shazeer 2020, eq. 6)."""
    if torch.compiler.is_compiling():
        return _swiglu(both)
    out: Tensor = _SwiGLU.apply(both)  # type: ignore[no-untyped-call]
    return out


def _normalised(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return x over its root mean square, and one over that in float32."""
    wide = x.float()
    inverse = (wide.square().mean(-1, keepdim=True) + eps).rsqrt()
    return (wide * inverse).to(x.dtype), inverse


def _rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return torch.addcmul(x * cosine, torch.cat([-second, first], -1), sine)


def _swiglu(both: Tensor) -> Tensor:
    gate, up = both.chunk(2, -1)
    return nn.functional.silu(gate) * up


class _RMSNorm(torch.autograd.Function):
    """`rms_norm` with a frozen weight; the normalised input is all that is kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        normal, inverse = _normalised(x, eps)
        ctx.save_for_backward(normal, inverse, weight)
        return weight * normal

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        normal, inverse, weight = ctx.saved_tensors
        wide, scaled = normal.float(), (gradient * weight).float()
        along = (scaled * wide).mean(-1, keepdim=True)
        return ((scaled - wide * along) * inverse).to(gradient.dtype), None, None


class _Rotation(torch.autograd.Function):
    """`apply_rotary`; its derivative rotates back, so that the input is not kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        ctx.save_for_backward(cosine, sine)
        return _rotate(x, cosine, sine)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        cosine, sine = ctx.saved_tensors
        first, second = (gradient * sine).chunk(2, -1)
        return torch.addcmul(torch.cat([second, -first], -1), gradient, cosine), None, None


class _SwiGLU(torch.autograd.Function):
    """`swiglu`; its input is all that is kept."""

    @staticmethod
    def forward(ctx: Any, both: Tensor) -> Tensor:
        ctx.save_for_backward(both)
        return _swiglu(both)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (both,) = ctx.saved_tensors
        gate, up = both.chunk(2, -1)
        to_gate = torch.ops.aten.silu_backward(gradient * up, gate)
        return torch.cat([to_gate, gradient * nn.functional.silu(gate)], -1)
