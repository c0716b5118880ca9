"""Answers: irregular outputs are counted by first token, written answers by the word they begin with."""

from collections import Counter

import pytest
import torch

from sentexp.config import load_config
from sentexp.metrics.generated_answers import irregular_tokens, read_answers
from sentexp.models.loading import load_tokenizer
from sentexp.models.pretrained import locate_backbone


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(locate_backbone(load_config("model=tiny").model))


def written(tokenizer, *texts):
    rows = [tokenizer(text)["input_ids"] for text in texts]
    longest = max(map(len, rows))
    return torch.tensor([row + [tokenizer.pad_token_id] * (longest - len(row)) for row in rows])


def test_irregular_outputs_are_counted_by_their_first_token(tokenizer):
    first = torch.tensor([tokenizer(letter)["input_ids"][0] for letter in "iinpi"])
    irregular = torch.tensor([True, True, False, False, True])
    assert str(irregular_tokens(tokenizer, first, irregular)) == "Counter({'i': 3})"


def test_written_answers_are_read(tokenizer):
    words = ["very", "very good", "bad"]
    texts = ["bad", " Very good.\n", "very", "VERY good", "badly done", "I think", "i", "", "positive"]
    read, irregular = read_answers(tokenizer, written(tokenizer, *texts), words, [])
    assert read == [2, 1, 0, 1, None, None, None, None, None]
    assert irregular == Counter({"i": 2, "badly": 1, "": 1, "positive": 1})


def test_the_blank_that_the_prompt_ends_with_belongs_to_the_answer(tokenizer):
    lead = tokenizer(" ")["input_ids"]
    read, _ = read_answers(tokenizer, written(tokenizer, "1", "2!"), ["1", "2"], lead)
    assert read == [0, 1]
