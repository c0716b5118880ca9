"""Batches: order, padding, effective steps."""

import pytest
import torch

from sentexp.data.batch import pad
from sentexp.data.batching import RowBatches, TokenBudgetBatches
from sentexp.errors import UserError

LENGTHS = torch.randint(3, 60, (203,), generator=torch.Generator().manual_seed(0)).tolist()


def order(batch_size=8, accumulate=1, seed=0, group=True, epoch=0):
    batches = RowBatches(LENGTHS, batch_size, accumulate, seed, group)
    batches.set_epoch(epoch)
    return batches


@pytest.mark.parametrize("group", [True, False])
@pytest.mark.parametrize(("batch_size", "accumulate"), [(8, 1), (5, 3), (300, 1)])
def test_an_epoch_holds_every_row_once(group, batch_size, accumulate):
    batches = list(order(batch_size, accumulate, group=group))
    assert sorted(row for rows, _ in batches for row in rows) == list(range(203))
    assert len(batches) == len(order(batch_size, accumulate, group=group))


@pytest.mark.parametrize("accumulate", [1, 7, 32, 39])
def test_a_budget_leaves_no_micro_batch_empty(accumulate):
    lengths = [60, *[3] * 38]  # a row of more tokens than a micro-batch has on average
    batches = list(TokenBudgetBatches(lengths, 120, accumulate, 0, True))
    assert sorted(row for rows, _ in batches for row in rows) == list(range(39))
    assert all(rows for rows, _ in batches)
    assert len(batches) % accumulate == 0


@pytest.mark.parametrize("seed", range(8))
def test_no_step_of_a_budget_has_fewer_rows_than_micro_batches(seed):
    lengths = [60] * 12 + [46, 46, 45, 45]  # in most orders two steps of as many tokens would be of 7 rows and 9
    batches = list(TokenBudgetBatches(lengths, 120, 8, seed, False))
    assert sorted(row for rows, _ in batches for row in rows) == list(range(16))
    assert [len(rows) for rows, _ in batches] == [1] * 16


def test_more_micro_batches_than_rows_are_refused():
    with pytest.raises(UserError, match=r"accumulate_grad_batches=40 .* makes 40 micro-batches of 39 training rows"):
        TokenBudgetBatches([60, *[3] * 38], 120, 40, 0, True)


def test_the_order_is_a_function_of_seed_and_epoch():
    assert list(order()) == list(order())
    assert list(order()) != list(order(seed=1))
    assert list(order()) != list(order(epoch=1))


def test_halving_the_micro_batch_keeps_the_rows_of_every_step():
    whole, halved = list(order(8, 1)), list(order(4, 2))
    windows, rows = [], []
    for part, step_rows in halved:
        rows += part
        if len(rows) == step_rows:
            windows.append(rows)
            rows = []
    assert windows == [rows for rows, _ in whole]


def test_length_grouping_pads_less():
    def padded(batches):
        return sum(len(rows) * max(LENGTHS[row] for row in rows) for rows, _ in batches)

    assert padded(order(group=True)) < 0.75 * padded(order(group=False))


def test_the_longest_row_comes_first_so_that_memory_runs_out_at_once():
    first, _ = next(iter(order()))
    assert max(LENGTHS) == max(LENGTHS[row] for row in first)


def test_a_resumed_epoch_goes_on_where_it_was():
    resumed = order()
    resumed.resume_at = (0, 7)
    assert list(resumed) == list(order())[7:]
    resumed.set_epoch(1)
    assert list(resumed) == list(order(epoch=1))


@pytest.mark.parametrize(("side", "expected"), [("right", [[5, 6, 7], [8, 0, 0]]), ("left", [[5, 6, 7], [0, 0, 8]])])
def test_padding(side, expected):
    ids, mask = pad([[5, 6, 7], [8]], 0, side)
    assert ids.tolist() == expected
    assert mask.tolist() == (ids != 0).int().tolist()
