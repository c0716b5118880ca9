"""PyTorch's variable-length attention, of whatever release, gives what the grid of padded rows gives."""

import itertools

import pytest
import torch
from rounding import rounding
from torch.nn.attention import varlen

from sentexp.data.packing import Packer
from sentexp.models.fast import attention
from sentexp.models.fast.attention import _flash, attend


def reference(query, key, value, starts, scale):
    """Return causal attention within each row, one row and one head at a time."""
    rows = []
    for start, end in itertools.pairwise(starts):
        heads = []
        for head in range(query.shape[1]):
            q, k, v = (part[start:end, head] for part in (query, key, value))
            unseen = torch.ones(len(q), len(q), dtype=torch.bool).triu(1)
            heads.append((q @ k.T * scale).masked_fill(unseen, -torch.inf).softmax(-1) @ v)
        rows.append(torch.stack(heads, 1))
    return torch.cat(rows)


def of_torch_2_11(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale, window_size):
    assert window_size == (-1, 0)
    assert key.shape[1] == value.shape[1] == query.shape[1]
    return reference(query, key, value, cu_seq_q.tolist(), scale)


def of_torch_2_13(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale, window_size, enable_gqa=False):
    assert window_size == (-1, 0)
    if enable_gqa:
        key, value = (part.repeat_interleave(query.shape[1] // part.shape[1], 1) for part in (key, value))
    assert key.shape[1] == query.shape[1]
    return reference(query, key, value, cu_seq_q.tolist(), scale)


@pytest.mark.parametrize("kernel", [of_torch_2_11, of_torch_2_13])
@pytest.mark.parametrize("key_heads", [1, 2, 4])
def test_the_kernel_of_any_release_reads_grouped_heads(kernel, key_heads, monkeypatch):
    monkeypatch.setattr(varlen, "varlen_attn", kernel)
    packed = Packer().score([[1] * length for length in (3, 1, 5)], 0)
    draw = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(9, heads, 8, generator=draw) for heads in (4, key_heads, key_heads))
    found = _flash(query, key, value, packed, 0.3)
    torch.testing.assert_close(
        found, attend(query, key, value, packed, 0.3), rtol=0, atol=rounding(float(value.abs().max()))
    )


def of_all_tokens(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale, window_size):
    """Return what the kernel gives in rows where tokens see so many before and behind them; -1 is all."""
    before, behind = window_size
    assert before == behind
    rows = []
    for start, end in itertools.pairwise(cu_seq_q.tolist()):
        q, k, v = (part[start:end].transpose(0, 1) for part in (query, key, value))
        place = torch.arange(end - start)
        far = (place[:, None] - place).abs() > before if before >= 0 else torch.zeros(1, dtype=torch.bool)
        scores = (q @ k.mT * scale).masked_fill(far, -torch.inf)
        rows.append((scores.softmax(-1) @ v).transpose(0, 1))
    return torch.cat(rows)


@pytest.mark.parametrize("window", [None, 1, 3])
def test_the_kernel_reads_all_tokens_of_encoders_or_their_window(window, monkeypatch):
    monkeypatch.setattr(varlen, "varlen_attn", of_all_tokens)
    packed = Packer(causal=False).score([[1] * length for length in (3, 1, 7)], 0)
    draw = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(11, 4, 8, generator=draw) for _ in range(3))
    found = _flash(query, key, value, packed, 0.3, window)
    torch.testing.assert_close(
        found, attend(query, key, value, packed, 0.3, window=window), rtol=0, atol=rounding(float(value.abs().max()))
    )


def test_rows_of_several_layouts_are_joined(monkeypatch):
    monkeypatch.setattr(attention, "takes_flash", lambda packed, *_: packed.causal)
    one, two = Packer().score([[1, 2, 3], [4]], 0), Packer().score([[5, 6], [7, 8, 9, 10]], 0)
    joined = attention.join([one, two], torch.float32, 8)
    assert joined.starts.tolist() == [0, 3, 4, 6, 10]
    assert joined.starts.dtype is torch.int32
    assert joined.grid.shape == (4, 4)
    assert len(joined.bias) == 1
    assert attention.join([one], torch.float32, 8) is None  # one layout is what it is
    assert attention.join([one, Packer().score([[1, 2], [1, 3]], 1)], torch.float32, 8) is None
    assert attention.join([one, Packer(causal=False).score([[1, 2]], 0)], torch.float32, 8) is None
