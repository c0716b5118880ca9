"""Products that runs share: their gradients, with and without dropout and DoRA."""

import pytest
import torch
from torch.autograd import gradcheck

from sentexp.models.fast.fused_lora_linear import fused_lora_linear
from sentexp.models.fast.lora_linear import Adapter, AdapterParts, Linear, lora_linear


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def random(*shape, trained=True):
    return torch.randn(*shape, dtype=torch.float64, requires_grad=trained)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("adapter", [None, 0.0, 0.5])
@pytest.mark.parametrize("dora", [False, True])
def test_the_gradients_of_a_product(packed, bias, adapter, dora):
    weight, shift = random(7, 6, trained=False), random(7, trained=False) if bias else None
    given = (None, lambda: weight) if packed else (weight, None)
    ranks, widths = [2, 0, 1], [3, 2, 2]

    def once(x, a, b, factor=None):
        torch.manual_seed(1)  # the same masks each time
        adapters = [] if adapter is None else [Adapter(a, b, factor, AdapterParts(ranks, widths, adapter))]
        return lora_linear(x, Linear(*given, shift, adapters))

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
        parts = AdapterParts(ranks[number], widths[number], dropouts[number], generator)
        return Adapter(a, b, factor if number in dora else None, parts)

    def linear(adapters):
        return Linear(weight, None, shift, [one for one in adapters if one is not None])

    def together(x, *given):
        adapters = [adapter(number, given) for number in range(3)]
        return fused_lora_linear(x, linear(one and one.over(span) for one, span in zip(adapters, spans, strict=True)))

    x = random(6, 6)
    alone = [lora_linear(x[span], linear([adapter(number, matrices)])) for number, span in enumerate(spans)]
    torch.testing.assert_close(together(x, *matrices), torch.cat(alone))
    assert gradcheck(together, (x, *matrices))
    assert gradcheck(together, (x.detach(), *matrices))
