"""Attention over a grid: values, derivatives, what is dropped, short rows and long ones, in 64 bits and in 16."""

import pytest
import torch
from rounding import rounding
from torch.autograd import gradcheck

from sentexp.data.packing import Packer
from sentexp.models.fast import grid_attention
from sentexp.models.fast.dropout import kept_at_random, scale_of
from sentexp.models.fast.grid_attention import Places, attend_in_grid, attend_whole_in_grid, softmax, softmax_backward

HEADS, SIZE, SCALE = 2, 3, 0.4
SHORT, LONG = [3, 1, 2], [grid_attention.VECTOR + 2, 2]
BOTH = pytest.mark.parametrize("lengths", [SHORT, LONG], ids=["short", "long"])


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def packed_rows(lengths):
    return Packer(causal=False).score([list(range(length)) for length in lengths], 0)


def whole(states, packed, dropout=0.0, read=None):
    torch.manual_seed(1)  # the same is dropped each time
    return attend_whole_in_grid(states, Places.of(packed, HEADS), packed.bias[:, None], SCALE, dropout, read)


def row_by_row(states, lengths, dropout):
    """Return the same, one row and one head at a time, of what the grid of all of them keeps."""
    rows, width, found = len(lengths), max(lengths), []
    torch.manual_seed(1)
    kept = kept_at_random(torch.empty(rows, HEADS, width, width), dropout) if dropout else None
    for row, part in enumerate(states.split(lengths)):
        query, key, value = part.unbind(1)
        weights = (torch.einsum("qhs,khs->hqk", query, key) * SCALE).softmax(-1)
        if kept is not None:
            weights = weights * kept[row, :, : len(part), : len(part)] * scale_of(dropout)
        found.append(torch.einsum("hqk,khs->qhs", weights, value))
    return torch.cat(found)


@BOTH
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_each_row_attends_to_itself_and_its_gradient_is_that_of_it(lengths, dropout):
    packed = packed_rows(lengths)
    states = torch.randn(sum(lengths), 3, HEADS, SIZE, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(whole(states, packed, dropout), row_by_row(states, lengths, dropout))
    assert gradcheck(lambda given: whole(given, packed, dropout), states)


@BOTH
@pytest.mark.parametrize("queries", ["all", "read"])
def test_a_bias_by_distance_has_a_gradient(lengths, queries):
    packed, width = packed_rows(lengths), max(lengths)
    read = packed.starts[:-1].long() if queries == "read" else None
    states = torch.randn(sum(lengths), 3, HEADS, SIZE, dtype=torch.float64)
    bias = torch.randn(1, HEADS, 1 if queries == "read" else width, width, dtype=torch.float64, requires_grad=True)

    def attend(given):
        hidden = packed.bias[:, None].double() + given
        return attend_whole_in_grid(states, Places.of(packed, HEADS), hidden, SCALE, 0.0, read)

    assert gradcheck(attend, bias)
    (moved,) = torch.autograd.grad(attend(bias).square().sum(), bias)
    assert moved.abs().max() > 0


@BOTH
def test_one_token_of_each_row_attends_alone(lengths):
    packed = packed_rows(lengths)
    states = torch.randn(sum(lengths), 3, HEADS, SIZE, dtype=torch.float64, requires_grad=True)
    read = packed.starts[1:].long() - 1  # the last one: where a row is long, not the first cell of its line
    torch.testing.assert_close(whole(states, packed, read=read), whole(states, packed).index_select(0, read))
    assert gradcheck(lambda given: whole(given, packed, 0.3, read), states)


@BOTH
def test_states_of_16_bits_are_rounded_no_more_than_a_few_times(lengths):
    packed, dtype = packed_rows(lengths), torch.bfloat16
    states = torch.randn(sum(lengths), 3, HEADS, SIZE).to(dtype)
    upstream = torch.randn(sum(lengths), HEADS, SIZE).to(dtype)
    found = []
    for given in (states, states.double()):
        given.requires_grad_()
        out = whole(given, packed, 0.3)
        found.append((out, *torch.autograd.grad(out, given, upstream.to(out.dtype))))
    assert found[0][0].dtype is found[0][1].dtype is dtype
    for own, exact in zip(*found, strict=True):
        assert (own - exact).norm() < 2 * torch.finfo(dtype).eps * exact.norm()


@pytest.mark.parametrize("keys", [4, grid_attention.VECTOR + 1])
@pytest.mark.parametrize("shared", [True, False])
def test_heads_that_share_keys_attend_as_pytorch_says(keys, shared):
    rows, groups, each, width = 3, 2, 2, 3
    query = torch.randn(rows, groups, each * width, SIZE, dtype=torch.float64)
    key, value = torch.randn(2, rows, groups, keys, SIZE, dtype=torch.float64).unbind()
    bias = torch.zeros(1 if shared else rows, width, keys, dtype=torch.float64)
    bias[-1, :, -1] = -torch.inf
    bias = bias.expand(rows, -1, -1)
    given = [part.flatten(0, 1).requires_grad_() for part in (query, key, value)]

    def plain(query, key, value):
        heads = query.view(rows, groups * each, width, SIZE)
        options = {"attn_mask": bias[:, None], "scale": SCALE, "enable_gqa": True}
        keyed, valued = (part.view(rows, groups, keys, SIZE) for part in (key, value))
        out = torch.nn.functional.scaled_dot_product_attention(heads, keyed, valued, **options)
        return out.view(rows * groups, each * width, SIZE)

    def ours(*parts):
        return attend_in_grid(*parts, bias[:, None], SCALE, groups * each)

    torch.testing.assert_close(ours(*given), plain(*given))
    assert gradcheck(ours, given)


@pytest.mark.parametrize("width", [1, 5, grid_attention.VECTOR, 40])
def test_the_softmax_of_short_and_of_long_rows(width):
    scores = torch.randn(7, width) * 50
    scores[0, 1:] = -torch.inf
    scores[1] = 3e4
    weights, gradient = scores.softmax(-1), torch.randn(7, width)
    expected = torch.ops.aten._softmax_backward_data(gradient, weights, -1, torch.float32)
    torch.testing.assert_close(softmax_backward(gradient, weights), expected, rtol=0, atol=8 * rounding())
    torch.testing.assert_close(softmax(scores), weights, rtol=0, atol=8 * rounding())
