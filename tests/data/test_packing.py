"""Packing: layouts written out by hand, and read cell by cell for rows of any kind; what all rows begin with."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sentexp.config import AnswerLoss, load_config
from sentexp.data.packing import Packed, Packer
from sentexp.data.prompts import Prompt
from sentexp.data.tokens import WORTH_SHARING, TokenRows, tokenize
from sentexp.models.loading import load_tokenizer
from sentexp.models.pretrained import locate_backbone

SEEN, NOT = 0.0, -torch.inf


def written(packed):
    """Return a layout as plain lists, without the attention."""
    names = ("ids", "positions", "grid", "cells", "starts", "read")
    return {name: getattr(packed, name).tolist() for name in names} | {"prefix": packed.prefix}


def seen_by(packed, row):
    """Return what each token of a row sees, the prefix included, as the layout says: (token id, position) pairs."""
    prefix, (_, width) = packed.prefix, packed.grid.shape
    bias = packed.bias[row if len(packed.bias) > 1 else 0]
    place = {token: (int(packed.ids[token]), int(packed.positions[token])) for token in range(len(packed.ids))}
    found = [(place[token], [place[other] for other in range(token + 1)]) for token in range(prefix)]
    own = [cell - row * width for cell in packed.cells.tolist() if cell // width == row]
    for column in own:
        keys = [place[key] for key in range(prefix) if bias[column, key] == SEEN]
        seen = [other for other in range(width) if bias[column, prefix + other] == SEEN]
        assert set(seen) <= set(own), "padding is seen"
        keys += [place[int(packed.grid[row, other])] for other in seen]
        found.append((place[int(packed.grid[row, column])], keys))
    return found


def alone(row, branches=()):
    """Return the same of a row by itself: a token sees what stands before it, but for the branches of others."""
    tokens = [(token, position, None) for position, token in enumerate(row)]
    for owner, branch in enumerate(branches):
        tokens += [(token, len(row) + depth, owner) for depth, token in enumerate(branch)]
    return [
        (token[:2], [other[:2] for other in tokens[: place + 1] if other[2] in (None, token[2])])
        for place, token in enumerate(tokens)
    ]


def place_of(packed, token, row):
    """Return where in a row a token of a layout stands, counted from the row's begin."""
    if token < packed.prefix:
        return token
    start, end = packed.starts[row : row + 2].tolist()
    place = token - packed.prefix - start
    assert 0 <= place < end - start, "a token of another row"
    return packed.prefix + place


def test_rows_stand_one_after_the_other():
    packed = Packer().score([[5, 6, 7], [8], [9, 5]], 0)
    assert written(packed) == {
        "ids": [5, 6, 7, 8, 9, 5],
        "positions": [0, 1, 2, 0, 0, 1],
        "grid": [[0, 1, 2], [3, 3, 3], [4, 5, 4]],
        "cells": [0, 1, 2, 3, 6, 7],
        "starts": [0, 3, 4, 6],
        "read": [2, 3, 5],
        "prefix": 0,
    }
    assert packed.bias.tolist() == [[[SEEN, NOT, NOT], [SEEN, SEEN, NOT], [SEEN, SEEN, SEEN]]]
    assert packed.rows == 3
    assert packed.learned is None
    assert packed.starts.dtype == torch.int32
    assert packed.bias.dtype == torch.float32


def test_what_all_rows_begin_with_stands_there_once():
    packed = Packer().score([[1, 2, 5, 6], [1, 2, 7]], 2)
    assert written(packed) == {
        "ids": [1, 2, 5, 6, 7],
        "positions": [0, 1, 2, 3, 2],
        "grid": [[2, 3], [4, 4]],
        "cells": [0, 1, 2],
        "starts": [0, 2, 3],
        "read": [3, 4],
        "prefix": 2,
    }
    assert packed.bias.tolist() == [[[SEEN, SEEN, SEEN, NOT], [SEEN, SEEN, SEEN, SEEN]]]


def test_what_is_known_of_the_prefix_is_left_out():
    whole = Packer().score([[1, 2, 5, 6], [1, 2, 7]], 2)
    packed = whole.behind_prefix()
    assert written(packed) == {
        "ids": [5, 6, 7],
        "positions": [2, 3, 2],
        "grid": [[0, 1], [2, 2]],
        "cells": [0, 1, 2],
        "starts": [0, 2, 3],
        "read": [1, 2],
        "prefix": 2,
    }
    assert torch.equal(packed.bias, whole.bias)


def test_answers_stand_behind_their_prompts_and_are_learned():
    packer = Packer(answers=[[10], [11, 12]], end=[13])
    packed = packer.train([[1, 2, 5], [1, 2, 6, 7]], [1, 0], 2)
    assert written(packed) == {
        "ids": [1, 2, 5, 11, 12, 13, 6, 7, 10, 13],
        "positions": [0, 1, 2, 3, 4, 5, 2, 3, 4, 5],
        "grid": [[2, 3, 4, 5], [6, 7, 8, 9]],
        "cells": [0, 1, 2, 3, 4, 5, 6, 7],
        "starts": [0, 4, 8],
        "read": [2, 3, 4, 7, 8],  # the prompts' ends, and each token of an answer but the last
        "prefix": 2,
    }
    assert packed.learned.reads.tolist() == [0, 1, 2, 3, 4]
    assert packed.learned.tokens.tolist() == [11, 12, 13, 10, 13]
    assert packed.learned.rows.tolist() == [0, 0, 0, 1, 1]


def test_a_shared_token_predicts_one_of_each_row_where_all_is_learned():
    packer = Packer(answers=[[10], [11]], loss=AnswerLoss.full)
    packed = packer.train([[1, 2, 5], [1, 2, 6, 7]], [0, 1], 2)
    assert packed.ids.tolist() == [1, 2, 5, 10, 6, 7, 11]
    assert packed.read.tolist() == [0, 1, 2, 4, 5]
    assert packed.learned.reads.tolist() == [0, 1, 2, 0, 1, 3, 4]
    assert packed.learned.tokens.tolist() == [2, 5, 10, 2, 6, 7, 11]
    assert packed.learned.rows.tolist() == [0, 0, 0, 1, 1, 1, 1]


def test_branches_stand_side_by_side_behind_a_prompt():
    packed = Packer(answers=[[10, 11, 12], [13], [14, 15]]).score([[1, 2, 5], [1, 2]], 1)
    assert written(packed) == {
        "ids": [1, 2, 5, 10, 11, 14, 2, 10, 11, 14],
        "positions": [0, 1, 2, 3, 4, 3, 1, 2, 3, 2],
        "grid": [[1, 2, 3, 4, 5], [6, 7, 8, 9, 6]],
        "cells": [0, 1, 2, 3, 4, 5, 6, 7, 8],
        "starts": [0, 5, 9],
        "read": [2, 3, 4, 5, 6, 7, 8, 9],
        "prefix": 1,
    }
    seen = (packed.bias == SEEN).int().tolist()
    assert seen[0] == [
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 1, 1, 1, 0],
        [1, 1, 1, 0, 0, 1],  # the branch of the third label does not see that of the first
    ]
    assert [line[:5] for line in seen[1][:4]] == [[1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 0, 0, 1]]


@pytest.mark.parametrize("packer", [Packer(answers=[[10, 11], [12, 13]], loss=AnswerLoss.label_words), Packer()])
def test_what_is_learned_by_the_scores_is_laid_out_to_be_scored(packer):
    trained, scored = packer.train([[5, 6], [7]], [0, 1], 0), packer.score([[5, 6], [7]], 0)
    assert written(trained) == written(scored)
    assert torch.equal(trained.bias, scored.bias)
    assert trained.learned is None


TOKENS = st.integers(1, 9)
PREFIXES = st.lists(TOKENS, max_size=4)
ENDINGS = st.lists(st.lists(TOKENS, min_size=1, max_size=6), min_size=1, max_size=5)
ANSWERS = st.lists(st.lists(TOKENS, min_size=1, max_size=4), min_size=2, max_size=4)


@settings(max_examples=60)
@given(prefix=PREFIXES, endings=ENDINGS, answers=st.one_of(st.just([]), ANSWERS))
def test_every_token_sees_what_it_would_see_alone(prefix, endings, answers):
    packer, rows = Packer(answers=answers), [prefix + ending for ending in endings]
    packed = packer.score(rows, len(prefix))
    branches = [answer[:-1] for answer in answers]
    width = 1 + sum(map(len, branches))
    assert packed.rows == len(rows)
    assert len(packed.ids) == len(prefix) + sum(len(ending) + width - 1 for ending in endings)
    assert len(packed.read) == len(rows) * width
    for number, row in enumerate(rows):
        assert seen_by(packed, number) == alone(row, branches)
        read = packed.read[number * width : (number + 1) * width].tolist()
        assert [place_of(packed, token, number) for token in read] == list(range(len(row) - 1, len(row) - 1 + width))
    for token, cell in enumerate(packed.cells.tolist(), len(prefix)):
        assert packed.grid.flatten()[cell] == token
    assert (packed.bias == SEEN).any(-1).all()  # not even of padding is an average over nothing taken
    _check_behind_prefix(packed)


def _check_behind_prefix(packed):
    behind = packed.behind_prefix()
    assert behind.prefix == packed.prefix
    assert behind.ids.tolist() == packed.ids[packed.prefix :].tolist()
    assert behind.positions.tolist() == packed.positions[packed.prefix :].tolist()
    assert torch.equal(behind.ids[behind.read], packed.ids[packed.read])
    assert torch.equal(behind.ids[behind.grid], packed.ids[packed.grid])
    same = ("cells", "bias", "starts")
    assert all(torch.equal(getattr(behind, name), getattr(packed, name)) for name in same)


@settings(max_examples=60)
@given(
    prefix=PREFIXES,
    endings=ENDINGS,
    answers=ANSWERS,
    end=st.lists(TOKENS, max_size=2),
    loss=st.sampled_from([AnswerLoss.answer, AnswerLoss.full]),
    random=st.randoms(use_true_random=False),
)
def test_every_learned_token_is_predicted_by_the_one_before_it(prefix, endings, answers, end, loss, random):
    rows = [prefix + ending for ending in endings]
    labels = [random.randrange(len(answers)) for _ in rows]
    packed = Packer(answers=answers, end=end, loss=loss).train(rows, labels, len(prefix))
    expected = []
    for number, (row, label) in enumerate(zip(rows, labels, strict=True)):
        whole = row + answers[label] + end
        assert seen_by(packed, number) == alone(whole)
        first = 1 if loss is AnswerLoss.full else len(row)
        expected += [(number, place - 1, whole[place]) for place in range(first, len(whole))]
    reads, tokens, numbers = (part.tolist() for part in packed.learned)
    found = [
        (number, place_of(packed, int(packed.read[read]), number), token)
        for read, token, number in zip(reads, tokens, numbers, strict=True)
    ]
    assert found == expected
    assert len(set(packed.read.tolist())) == len(packed.read)  # none is computed twice
    assert set(reads) == set(range(len(packed.read)))


@settings(max_examples=30)
@given(prefix=PREFIXES, endings=ENDINGS, answers=ANSWERS, end=st.lists(TOKENS, max_size=2))
def test_a_shared_prefix_changes_what_is_computed_and_nothing_else(prefix, endings, answers, end):
    rows, labels = [prefix + ending for ending in endings], [0] * len(endings)
    packer = Packer(answers=answers, end=end)
    for layout in (packer.score, lambda given, shared: packer.train(given, labels, shared)):
        shared, apart = layout(rows, len(prefix)), layout(rows, 0)
        assert isinstance(shared, Packed)
        for number in range(len(rows)):
            assert seen_by(shared, number) == seen_by(apart, number)
        assert torch.equal(shared.ids[shared.read], apart.ids[apart.read])
        assert torch.equal(shared.positions[shared.read], apart.positions[apart.read])


def token_rows(*chunks):
    """Return rows in chunks, as they are read from the cache."""
    schema = pa.schema(
        {"input_ids": pa.list_(pa.int32()), "full_length": pa.int32(), "label": pa.int32()},
        metadata={"limit": "100", "frame": "0"},
    )
    columns = [
        [pa.array(rows, schema.types[0]), pa.array(map(len, rows), pa.int32()), pa.array([0] * len(rows), pa.int32())]
        for rows in chunks
    ]
    batches = [pa.record_batch(arrays, schema=schema) for arrays in columns]
    return TokenRows(pa.Table.from_batches(batches, schema))


@pytest.mark.parametrize(
    ("chunks", "prefix"),
    [
        ([[[1, 2, 3, 4], [1, 2, 3, 5, 6]]], 3),
        ([[[1, 2, 3, 4], [1, 2, 3]]], 2),  # the second row keeps a token of its own
        ([[[1, 2, 3, 4]]], 3),
        ([[[1, 2, 3], [1, 2, 3]]], 2),  # equal rows too
        ([[[1, 2, 3], [1, 2, 4]], [[1, 2, 3], [1, 7, 3]]], 0),  # one token is not worth it
        ([[[1, 2, 3, 4], [1, 2, 3, 5]], [[1, 2, 9, 9]]], 2),
        ([[[1, 2, 3, 4]], [], [[1, 2, 3, 5]]], 3),
        ([[[5, 2, 3], [1, 2, 3]]], 0),
        ([[[1], [1]]], 0),
        ([[]], 0),
        ([], 0),
    ],
)
def test_what_all_rows_of_a_split_begin_with(chunks, prefix):
    assert token_rows(*chunks).prefix == prefix


@settings(max_examples=60)
@given(st.lists(st.lists(st.lists(st.integers(1, 2), min_size=1, max_size=6), max_size=3), min_size=1, max_size=3))
def test_a_prefix_is_the_longest_that_leaves_each_row_a_token(chunks):
    rows = [row for chunk in chunks for row in chunk]
    longest = 0
    while rows and all(len(row) > longest + 1 and row[longest] == rows[0][longest] for row in rows):
        longest += 1
    assert token_rows(*chunks).prefix == (longest if longest >= WORTH_SHARING else 0)


def test_the_frame_of_a_prompt_is_the_prefix_of_its_rows():
    tokenizer = load_tokenizer(locate_backbone(load_config("model=tiny").model))
    texts = pa.table({"text": pa.array(["bad", "good and long"], pa.large_string()), "label": np.zeros(2, np.int32)})
    found = tokenize(texts, tokenizer, Prompt(head="Review: ", tail=" It was"), 100, 1000, progress=False)
    assert found.prefix == len(tokenizer("Review: ")["input_ids"])


def test_tokens_of_encoders_see_their_whole_row_and_share_no_prefix():
    packed = Packer(causal=False).train([[1, 2, 5, 6], [1, 2, 7]], [0, 1], 2)
    assert packed.ids.tolist() == [1, 2, 5, 6, 1, 2, 7]
    assert packed.positions.tolist() == [0, 1, 2, 3, 0, 1, 2]
    assert packed.read.tolist() == list(range(7))
    assert (packed.prefix, packed.causal, packed.starts.tolist()) == (0, False, [0, 4, 7])
    unseen = packed.bias == -torch.inf
    assert unseen.tolist() == [[[False] * 4], [[False, False, False, True]]]
