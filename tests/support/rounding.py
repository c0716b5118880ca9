"""How far two ways of computing the same may be apart: by the rounding of their numbers, and by no more.

Instruction sets, numbers of threads and versions of torch add up in different orders, and each sum is rounded. What is
rounded has the size of the terms and not of the result: terms that cancel leave rounding alone. So all limits are
absolute, and state the size of what is added up.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

TERMS = 64
"""Numbers in a sum: the tiny models are 32 or 64 wide."""
SUMS = 64
"""Sums one behind the other, from a text through two or three layers to a loss, and back to a gradient."""
SAFETY = 4
"""Between a typical error and a large one, of weights that let it grow by a little in each layer."""


def rounding(scale: float = 1.0, dtype: torch.dtype = torch.float32, terms: int = TERMS, sums: int = SUMS) -> float:
    """Return how far apart two values are at most that differ in the rounding of sums of this size.

    Each addition errs by up to half of `eps`, either way, so that errors grow as a random walk does: with the root of
    their number. Products of shorter numbers are added up in float32, and each is rounded once: give `terms=1`.
    """
    return SAFETY * torch.finfo(dtype).eps * scale * math.sqrt(terms * sums)


def drift(lr: float, steps: int, eps: float = 1.0, gradient: float = 0.1, **sums: int) -> float:
    """Return how far apart the weights of two trainings are at most, whose gradients have elements of up to this size.

    A step of AdamW divides by at least its `eps`, of which the usual 1e-8 makes a whole step of what is rounding; an
    `eps` of 1 is plain descent.
    """
    return lr * steps * rounding(gradient, **sums) / eps


SMOOTH = ("loss", "brier", "off_label_mass")


def smooth(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return the metrics in which rounding stays rounding: a row that changes sides moves an accuracy by a whole step.

    An area under the curve, a calibration error in bins and a count of answers have such steps too.
    """
    return {name: value for name, value in metrics.items() if name.rpartition("/")[2] in SMOOTH}


def agree(
    found: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
    dtype: torch.dtype = torch.float32,
    silent: bool = False,
    **sums: int,
) -> None:
    """Compare tensors by name, each up to the rounding of its largest value.

    Each is also the end of sums as large as the largest value of all, rounded at least once. A tensor must be well
    above that, so that a mistake in it would show; `silent` lets some be nothing but rounding.
    """
    assert found.keys() == expected.keys()
    sizes = {name: float(value.abs().max()) for name, value in expected.items() if value.is_floating_point()}
    floor = rounding(max(sizes.values()), dtype, sums.get("terms", TERMS), 1)
    for name, value in expected.items():
        assert found[name] is not None, name
        assert (found[name].shape, found[name].dtype) == (value.shape, value.dtype), name
        if name in sizes:
            limit = rounding(sizes[name], dtype, **sums) + floor
            assert silent or sizes[name] > 5 * floor, f"{name} shows nothing: {sizes[name]:.1e} beside {floor:.1e}"
            error = float((found[name] - value).abs().max())
            assert error <= limit, f"{name}: {error:.1e} of {sizes[name]:.1e}, and at most {limit:.1e}"
        else:
            assert torch.equal(found[name], value), name
