"""The matrices of adapters, copied and gathered: values, zeros and gradients."""

import pytest
import torch
from torch.autograd import gradcheck

from sentexp.models.fast.adapter_matrices import AdapterMatrices, Block, GroupShape, _Copied, _Gathered

WIDE = torch.float64
WAYS = pytest.mark.parametrize("way", [_Copied, _Gathered])


def layout(*scales):
    """Return two modules in a group of three, whose second has no adapter, and one by itself."""
    first, third, alone = scales
    blocks = [
        Block(0, slice(0, 2), slice(0, 4), first),
        Block(0, slice(2, 3), slice(6, 9), third),
        Block(1, slice(0, 2), slice(0, 3), alone),
    ]
    return AdapterMatrices(blocks, [GroupShape(6, 9, 3), GroupShape(5, 3, 2)])


def parameters():
    torch.manual_seed(0)
    shapes = (2, 6), (4, 2), (1, 6), (3, 1), (2, 5), (3, 2)
    return [torch.randn(*shape, dtype=WIDE, requires_grad=True) for shape in shapes]


@WAYS
@pytest.mark.parametrize("scales", [(1.0, 1.0, 1.0), (0.5, 0.5, 0.5), (0.5, 2.0, 1.0)])
def test_blocks_stand_on_the_diagonal_scaled(way, scales):
    given = parameters()
    a, b, alone_a, alone_b = way.apply(layout(*scales), WIDE, *given)
    if way is _Copied:  # as A has it: products of the same shapes share a kernel of oneDNN
        assert b.mT.is_contiguous()
    assert torch.equal(a, torch.cat([given[0], given[2]]))
    expected = torch.zeros(9, 3, dtype=WIDE)
    expected[:4, :2], expected[6:, 2:] = scales[0] * given[1], scales[1] * given[3]
    assert torch.equal(b, expected)
    assert torch.equal(alone_a, given[4])
    assert torch.equal(alone_b, scales[2] * given[5])
    assert gradcheck(lambda *tensors: way.apply(layout(*scales), WIDE, *tensors), given)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_both_ways_round_alike(dtype):
    found = []
    for way in (_Copied, _Gathered):
        given = [part.detach().float().requires_grad_() for part in parameters()]
        matrices = way.apply(layout(0.3, 0.3, 0.3), dtype, *given)
        weights = [torch.arange(part.numel(), dtype=torch.float32).view(part.shape).sin() for part in matrices]
        loss = sum((part.float() * weight).sum() for part, weight in zip(matrices, weights, strict=True))
        found.append([*matrices, *torch.autograd.grad(loss, given)])
    for one, other in zip(*found, strict=True):  # a product with the scale may be rounded otherwise, by one unit
        torch.testing.assert_close(one, other, rtol=torch.finfo(dtype).eps, atol=0)


@WAYS
@pytest.mark.parametrize("scales", [(0.5, 0.5), (0.5, 2.0)])
def test_those_of_several_runs_are_stacked_with_zeros_where_one_has_fewer_ranks(way, scales):
    torch.manual_seed(0)
    blocks = [
        Block(0, slice(0, 1), slice(0, 4), scales[0]),
        Block(0, slice(2, 4), slice(4, 6), scales[0]),
        Block(0, slice(0, 2), slice(0, 4), scales[1], run=1),
        Block(0, slice(2, 3), slice(4, 6), scales[1], run=1),
    ]
    both = AdapterMatrices(blocks, [GroupShape(5, 6, 4)], runs=2)
    shapes = (1, 5), (4, 1), (2, 5), (2, 2), (2, 5), (4, 2), (1, 5), (2, 1)
    given = [torch.randn(*shape, dtype=WIDE, requires_grad=True) for shape in shapes]
    a, b = way.apply(both, WIDE, *given)
    expected_a, expected_b = torch.zeros(2, 4, 5, dtype=WIDE), torch.zeros(2, 6, 4, dtype=WIDE)
    for number, block in enumerate(blocks):
        expected_a[block.run, block.ranks] = given[2 * number]
        expected_b[block.run, block.outputs, block.ranks] = block.scale * given[2 * number + 1]
    assert torch.equal(a, expected_a)
    assert torch.equal(b, expected_b)
    assert gradcheck(lambda *tensors: way.apply(both, WIDE, *tensors), given)
