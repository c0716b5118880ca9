"""The steps of `ops` as Triton kernels, one for each step and each derivative.

PyTorch's own operations take up to nine kernels for a step. Between the products of short rows most of the time of a
GPU is spent on starting kernels. What is rounded there between two operations is rounded here at the same place.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

COLUMNS = 1024
"""Columns that a program of an elementwise kernel computes."""
HEADS = 16
"""Heads that a program of the rotation computes."""


def normalise(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return w * x / sqrt(mean(x^2) + eps), and one over that root in float32, shape (rows,).

    Args:
        x: shape (rows, columns), contiguous.
        weight: shape (columns,).
        eps: below the root.
    """
    rows, columns = x.shape
    out, inverse = torch.empty_like(x), torch.empty(rows, dtype=torch.float32, device=x.device)
    _normalise[(rows,)](x, weight, out, inverse, eps, columns, **_row(columns))
    return out, inverse


def normalise_backward(gradient: Tensor, x: Tensor, inverse: Tensor, weight: Tensor) -> Tensor:
    """Return the gradient of x for that of the normalised rows, contiguous, shape (rows, columns)."""
    rows, columns = x.shape
    out = torch.empty_like(x)
    _normalise_backward[(rows,)](gradient, x, inverse, weight, out, columns, **_row(columns))
    return out


def swiglu(both: Tensor) -> Tensor:
    """Return silu(gate) * up of `both`, shape (rows, 2 * columns), contiguous: gate and up side by side."""
    rows, columns = both.shape[0], both.shape[1] // 2
    out = both.new_empty(rows, columns)
    _swiglu[(rows, triton.cdiv(columns, COLUMNS))](both, out, columns, block=COLUMNS)
    return out


def swiglu_backward(gradient: Tensor, both: Tensor) -> Tensor:
    """Return the gradient of `both` for that of `swiglu`, contiguous, shape (rows, columns)."""
    rows, columns = gradient.shape
    out = torch.empty_like(both)
    _swiglu_backward[(rows, triton.cdiv(columns, COLUMNS))](gradient, both, out, columns, block=COLUMNS)
    return out


def rotate(x: Tensor, cosine: Tensor, sine: Tensor, back: bool) -> Tensor:
    """Return heads with rotary embeddings, or the gradient of x for theirs.

    Args:
        x: shape (tokens, heads, width); a head's elements are next to each other.
        cosine: shape (tokens, 1, width), contiguous.
        sine: the same.
        back: return the gradient.
    """
    tokens, heads, width = x.shape
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    half = triton.next_power_of_2(width // 2)
    _rotate[(tokens, triton.cdiv(heads, HEADS))](
        x, cosine, sine, out, x.stride(0), x.stride(1), heads, width // 2, back=back, block_heads=HEADS, block=half
    )
    return out


def _row(columns: int) -> dict[str, int]:
    """Return the options of a kernel whose program has a whole row."""
    block = triton.next_power_of_2(columns)
    return {"block": block, "num_warps": min(max(block // 256, 1), 16)}


@triton.jit  # type: ignore[untyped-decorator]
def _normalise(x, weight, out, inverse, eps, columns, block: tl.constexpr):  # type: ignore[no-untyped-def]
    row, column = tl.program_id(0).to(tl.int64), tl.arange(0, block)
    inside = column < columns
    wide = tl.load(x + row * columns + column, mask=inside, other=0.0).to(tl.float32)
    scale = 1.0 / tl.sqrt(tl.sum(wide * wide, 0) / columns + eps)
    normal = (wide * scale).to(out.dtype.element_ty).to(tl.float32)
    by = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * columns + column, (normal * by).to(out.dtype.element_ty), mask=inside)
    tl.store(inverse + row, scale)


@triton.jit  # type: ignore[untyped-decorator]
def _normalise_backward(gradient, x, inverse, weight, out, columns, block: tl.constexpr):  # type: ignore[no-untyped-def]
    row, column = tl.program_id(0).to(tl.int64), tl.arange(0, block)
    inside = column < columns
    scale = tl.load(inverse + row)
    wide = tl.load(x + row * columns + column, mask=inside, other=0.0).to(tl.float32)
    normal = (wide * scale).to(out.dtype.element_ty).to(tl.float32)
    by = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    own = tl.load(gradient + row * columns + column, mask=inside, other=0.0).to(tl.float32)
    scaled = (own * by).to(out.dtype.element_ty).to(tl.float32)
    along = tl.sum(scaled * normal, 0) / columns
    tl.store(out + row * columns + column, ((scaled - normal * along) * scale).to(out.dtype.element_ty), mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _swiglu(both, out, columns, block: tl.constexpr):  # type: ignore[no-untyped-def]
    row, column = tl.program_id(0).to(tl.int64), tl.program_id(1) * block + tl.arange(0, block)
    inside = column < columns
    gate = tl.load(both + row * 2 * columns + column, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(both + row * 2 * columns + columns + column, mask=inside, other=0.0).to(tl.float32)
    active = (gate / (1.0 + tl.exp(-gate))).to(out.dtype.element_ty).to(tl.float32)
    tl.store(out + row * columns + column, (active * up).to(out.dtype.element_ty), mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _swiglu_backward(gradient, both, out, columns, block: tl.constexpr):  # type: ignore[no-untyped-def]
    row, column = tl.program_id(0).to(tl.int64), tl.program_id(1) * block + tl.arange(0, block)
    inside = column < columns
    kind = out.dtype.element_ty
    own = tl.load(gradient + row * columns + column, mask=inside, other=0.0).to(tl.float32)
    gate = tl.load(both + row * 2 * columns + column, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(both + row * 2 * columns + columns + column, mask=inside, other=0.0).to(tl.float32)
    sigmoid = 1.0 / (1.0 + tl.exp(-gate))
    to_active = (own * up).to(kind).to(tl.float32)
    active = (gate * sigmoid).to(kind).to(tl.float32)
    to_gate = to_active * sigmoid * (1.0 + gate * (1.0 - sigmoid))
    tl.store(out + row * 2 * columns + column, to_gate.to(kind), mask=inside)
    tl.store(out + row * 2 * columns + columns + column, (own * active).to(kind), mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _rotate(  # type: ignore[no-untyped-def]
    x,
    cosine,
    sine,
    out,
    token_stride,
    head_stride,
    heads,
    half,
    back: tl.constexpr,
    block_heads: tl.constexpr,
    block: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * block_heads + tl.arange(0, block_heads)[:, None]
    column = tl.arange(0, block)[None, :]
    inside = (head < heads) & (column < half)
    kind = out.dtype.element_ty
    at = x + token * token_stride + head * head_stride + column
    first = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(at + half, mask=inside, other=0.0).to(tl.float32)
    angle = token * 2 * half + column
    cos_first = tl.load(cosine + angle, mask=column < half, other=0.0).to(tl.float32)
    cos_second = tl.load(cosine + angle + half, mask=column < half, other=0.0).to(tl.float32)
    sin_first = tl.load(sine + angle, mask=column < half, other=0.0).to(tl.float32)
    sin_second = tl.load(sine + angle + half, mask=column < half, other=0.0).to(tl.float32)
    if back:
        one = (second * sin_second).to(kind).to(tl.float32) + first * cos_first
        two = second * cos_second - (first * sin_first).to(kind).to(tl.float32)
    else:
        one = (first * cos_first).to(kind).to(tl.float32) - second * sin_first
        two = (second * cos_second).to(kind).to(tl.float32) + first * sin_second
    to = out + (token * heads + head) * 2 * half + column
    tl.store(to, one.to(kind), mask=inside)
    tl.store(to + half, two.to(kind), mask=inside)
