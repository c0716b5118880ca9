"""Products that runs share: their gradients, with and without dropout and DoRA."""

import pytest
import torch
from torch.autograd import gradcheck

from sentexp.models.fast.lora_linear import Adapter, Linear, multiply


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def random(*shape, trained=True):
    return torch.randn(*shape, dtype=torch.float64, requires_grad=trained)


def product(x, linear):
    """Return the product of a run by itself."""
    return multiply(x, linear, [slice(0, len(x))])


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("adapter", [None, 0.0, 0.5])
@pytest.mark.parametrize("dora", [False, True])
def test_the_gradients_of_a_product(packed, bias, adapter, dora):
    weight, shift = random(7, 6, trained=False), random(7, trained=False) if bias else None
    given = (None, lambda: weight) if packed else (weight, None)
    ranks, widths = [2, 0, 1], [3, 2, 2]

    def once(x, a, b, *factor):
        torch.manual_seed(1)  # the same masks each time
        own = None if adapter is None else Adapter(a, b, ranks, widths, adapter, None, *factor)
        return product(x, Linear(*given, shift, [own]))

    parameters = (random(3, 6), random(7, 3), *([random(7)] if dora else []))
    assert gradcheck(once, (random(5, 6), *parameters))
    # The first layer of a backbone reads embeddings, which do not train.
    if adapter is not None:
        assert gradcheck(once, (random(5, 6, trained=False), *parameters))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dropouts", [(0.0, None, 0.0), (0.5, None, 0.0), (None, 0.5, 0.3), (0.5, None, None)])
@pytest.mark.parametrize("dora", [(), (0,), (0, 1, 2)])
def test_the_gradients_of_a_product_that_runs_share(dropouts, bias, dora):
    weight, shift = random(7, 6, trained=False), random(7, trained=False) if bias else None
    spans, ranks = [slice(0, 2), slice(2, 3), slice(3, 6)], [[2, 0, 1], [1], [2, 2]]
    widths = [[3, 2, 2], [7], [4, 3]]
    matrices = [matrix for own in ranks for matrix in (random(sum(own), 6), random(7, sum(own)), random(7))]

    def adapter(number, given):
        if dropouts[number] is None:
            return None
        generator = torch.Generator().manual_seed(number)  # the same masks each time
        a, b, factor = given[3 * number :][:3]
        own = factor if number in dora else None
        return Adapter(a, b, ranks[number], widths[number], dropouts[number], generator, own)

    def linear(numbers, given):
        return Linear(weight, None, shift, [adapter(number, given) for number in numbers])

    def together(x, *given):
        return multiply(x, linear(range(3), given), spans)

    x = random(6, 6)
    alone = [product(x[span], linear([number], matrices)) for number, span in enumerate(spans)]
    torch.testing.assert_close(together(x, *matrices), torch.cat(alone))
    assert gradcheck(together, (x, *matrices))
    assert gradcheck(together, (x.detach(), *matrices))
