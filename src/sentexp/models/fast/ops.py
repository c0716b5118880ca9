"""The steps of a Llama layer between its products, each with a derivative that keeps as little as it can.

On a GPU each is a kernel of Triton's (see `triton_ops`), where that works. Under torch.compile they are plain
operations: it finds the derivative, and what to fuse, itself.
"""

from functools import cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from sentexp.errors import first_line
from sentexp.system.console import say


def rms_norm(hidden: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Return x / sqrt(mean(x^2) + eps) * w (Zhang & Sennrich 2019, eq. 4), normalised in float32.

    It is rounded before the product with w, as in Llama; a wider w, as in Gemma, multiplies what is not yet rounded.
    """
    if torch.compiler.is_compiling():  # which finds the derivative, and what to fuse, itself
        return plain_scale(plain_normalise(hidden, eps, wide=weight.dtype != hidden.dtype)[0], weight, hidden.dtype)
    out: Tensor = _RMSNorm.apply(hidden, weight, eps)  # type: ignore[no-untyped-call]
    return out


def apply_rotary(states: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Return rotary position embeddings over halves, as transformers applies them (Su et al. 2021, eq. 34)."""
    if torch.compiler.is_compiling():
        return plain_rotate(states, cosine, sine)
    out: Tensor = _Rotation.apply(states, cosine, sine)  # type: ignore[no-untyped-call]
    return out


def swiglu(both: Tensor) -> Tensor:
    """Return silu(gate) * up, where gate and up are side by side (Shazeer 2020, eq. 6)."""
    if torch.compiler.is_compiling():
        return plain_swiglu(both)
    out: Tensor = _SwiGLU.apply(both)  # type: ignore[no-untyped-call]
    return out


def geglu(both: Tensor) -> Tensor:
    """Return gelu(gate) * up by the approximation with tanh, gate and up side by side (Shazeer 2020, eq. 5)."""
    if torch.compiler.is_compiling():
        return plain_geglu(both)
    out: Tensor = _GeGLU.apply(both)  # type: ignore[no-untyped-call]
    return out


def plain_normalise(x: Tensor, eps: float, wide: bool = False) -> tuple[Tensor, Tensor]:
    """Return x over its root mean square, in float32 where it is to be wide, and one over that in float32."""
    exact = x.float()
    inverse = (exact.square().mean(-1, keepdim=True) + eps).rsqrt()
    normal = exact * inverse
    return normal if wide else normal.to(x.dtype), inverse


def plain_scale(normal: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the normalised x times w."""
    return (weight * normal).to(dtype)


def plain_normalise_backward(gradient: Tensor, normal: Tensor, inverse: Tensor, weight: Tensor) -> Tensor:
    """Return the gradient of x for that of the normalised x times w."""
    wide, scaled = normal.float(), (gradient * weight).float()
    along = (scaled * wide).mean(-1, keepdim=True)
    return ((scaled - wide * along) * inverse).to(gradient.dtype)


def plain_rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Return x, rotated."""
    first, second = x.chunk(2, -1)
    return torch.addcmul(x * cosine, torch.cat([-second, first], -1), sine)


def plain_rotate_back(gradient: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Return the gradient of x for that of the rotated x."""
    first, second = (gradient * sine).chunk(2, -1)
    return torch.addcmul(torch.cat([second, -first], -1), gradient, cosine)


def plain_swiglu(both: Tensor) -> Tensor:
    """Return silu(gate) * up."""
    gate, up = both.chunk(2, -1)
    return nn.functional.silu(gate) * up


def plain_swiglu_backward(gradient: Tensor, both: Tensor) -> Tensor:
    """Return the gradients of gate and up, side by side."""
    gate, up = both.chunk(2, -1)
    to_gate = torch.ops.aten.silu_backward(gradient * up, gate)
    return torch.cat([to_gate, gradient * nn.functional.silu(gate)], -1)


def plain_geglu(both: Tensor) -> Tensor:
    """Return gelu(gate) * up."""
    gate, up = both.chunk(2, -1)
    return nn.functional.gelu(gate, approximate="tanh") * up


def plain_geglu_backward(gradient: Tensor, both: Tensor) -> Tensor:
    """Return the gradients of gate and up, side by side."""
    gate, up = both.chunk(2, -1)
    to_gate = torch.ops.aten.gelu_backward(gradient * up, gate, approximate="tanh")
    return torch.cat([to_gate, gradient * nn.functional.gelu(gate, approximate="tanh")], -1)


def kernels(x: Tensor) -> Any:
    """Return `triton_ops` where they compute with such a tensor; else None."""
    return _working_kernels(x.device) if x.is_cuda else None


@cache
def _working_kernels(device: torch.device) -> ModuleType | None:
    """Return `triton_ops` if its kernels can be made here, and compute what PyTorch's operations do."""
    try:
        from sentexp.models.fast import triton_ops
    except ImportError:
        return None
    try:
        fault = differences(triton_ops, device)
    except Exception as error:  # a compiler or a header is missing, among others
        fault = first_line(error)
    if fault:
        say(f"Triton's kernels are off: {fault}. PyTorch's own are slower.")
    return None if fault else triton_ops


def differences(triton: Any, device: torch.device) -> str:
    """Return which kernel of `triton_ops` differs from the plain operation on a small input; empty where none does."""
    dtype = torch.bfloat16
    x = torch.linspace(-3, 3, 5 * 96, device=device).sin().view(5, 96).to(dtype)
    gradient, weight = x.flip(0).contiguous(), x[0].cos()
    angles = torch.linspace(0, 6, 5 * 32, device=device).view(5, 1, 32)
    cosine, sine = angles.cos().to(dtype), angles.sin().to(dtype)
    heads, half = x.view(5, 3, 32), gradient[:, :48].contiguous()
    normal, inverse = plain_normalise(x, 1e-6)
    pairs: dict[str, tuple[Tensor, Tensor]] = {
        "norm": (triton.normalise(x, weight, 1e-6)[0], weight * normal),
        "norm's derivative": (
            triton.normalise_backward(gradient, x, inverse[:, 0], weight),
            plain_normalise_backward(gradient, normal, inverse, weight),
        ),
        "gated unit": (triton.swiglu(x), plain_swiglu(x)),
        "gated unit's derivative": (triton.swiglu_backward(half, x), plain_swiglu_backward(half, x)),
        "rotation": (triton.rotate(heads, cosine, sine, back=False), plain_rotate(heads, cosine, sine)),
        "rotation's derivative": (
            triton.rotate(heads, cosine, sine, back=True),
            plain_rotate_back(heads, cosine, sine),
        ),
    }
    limit = 4 * torch.finfo(dtype).eps
    wrong = (name for name, pair in pairs.items() if not torch.allclose(*pair, rtol=limit, atol=limit))
    return next((f"the {name} would differ" for name in wrong), "")


class _RMSNorm(torch.autograd.Function):
    """`rms_norm` with a frozen weight; what is normalised, or its result, is all that is kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        ctx.wide = weight.dtype != x.dtype
        is_usual = x.shape[1:] == weight.shape and x.is_contiguous() and not ctx.wide
        ctx.triton = kernels(x) if is_usual else None
        if ctx.triton is not None:
            out, inverse = ctx.triton.normalise(x, weight, eps)
            ctx.save_for_backward(x, inverse, weight)
            return out  # type: ignore[no-any-return]
        normal, inverse = plain_normalise(x, eps, ctx.wide)
        ctx.save_for_backward(x if ctx.wide else normal, inverse, weight)
        return plain_scale(normal, weight, x.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        kept, inverse, weight = ctx.saved_tensors
        if ctx.triton is not None:
            return ctx.triton.normalise_backward(gradient.contiguous(), kept, inverse, weight), None, None
        if ctx.wide:
            kept = kept.float() * inverse
        return plain_normalise_backward(gradient, kept, inverse, weight), None, None


class _Rotation(torch.autograd.Function):
    """`apply_rotary`; its derivative rotates back, so that the input is not kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        ctx.triton = kernels(x) if x.stride(-1) == 1 and _are_angles(x, cosine, sine) else None
        ctx.save_for_backward(cosine, sine)
        if ctx.triton is not None:
            return ctx.triton.rotate(x, cosine, sine, back=False)  # type: ignore[no-any-return]
        return plain_rotate(x, cosine, sine)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        cosine, sine = ctx.saved_tensors
        if ctx.triton is not None:
            return ctx.triton.rotate(gradient.contiguous(), cosine, sine, back=True), None, None
        return plain_rotate_back(gradient, cosine, sine), None, None


def _are_angles(x: Tensor, cosine: Tensor, sine: Tensor) -> bool:
    """Tell whether there is an angle for each element of a head of each token, and none for each head."""
    return all(part.shape == (len(x), 1, x.shape[2]) and part.is_contiguous() for part in (cosine, sine))


class _SwiGLU(torch.autograd.Function):
    """`swiglu`; its input is all that is kept."""

    @staticmethod
    def forward(ctx: Any, both: Tensor) -> Tensor:
        ctx.triton = kernels(both) if both.is_contiguous() else None
        ctx.save_for_backward(both)
        return plain_swiglu(both) if ctx.triton is None else ctx.triton.swiglu(both)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (both,) = ctx.saved_tensors
        if ctx.triton is not None:
            return ctx.triton.swiglu_backward(gradient.contiguous(), both)  # type: ignore[no-any-return]
        return plain_swiglu_backward(gradient, both)


class _GeGLU(torch.autograd.Function):
    """`geglu`; its input is all that is kept."""

    @staticmethod
    def forward(ctx: Any, both: Tensor) -> Tensor:
        ctx.save_for_backward(both)
        return plain_geglu(both)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (both,) = ctx.saved_tensors
        return plain_geglu_backward(gradient, both)
