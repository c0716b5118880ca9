"""Tokens: the frame survives truncation, the cache knows what it depends on."""

import pytest
from datasets import Dataset

from sentexp.config import load_config
from sentexp.data.tokens import encode, tokenize, truncated
from sentexp.errors import UserError
from sentexp.models.backbone import load_tokenizer, locate_backbone

FRAME = "Review: {text}\nSentiment:"


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(locate_backbone(load_config("model=tiny").model))


def rows(*texts):
    return Dataset.from_dict({"text": list(texts), "label": [0] * len(texts)})


def test_a_long_text_loses_its_end_and_keeps_its_frame(tokenizer):
    (ids,) = encode(["good " * 50], tokenizer, FRAME, 40)
    text = tokenizer.decode(ids)
    assert len(ids) == 40
    assert text.startswith("Review: good")
    assert text.endswith("\nSentiment:")


def test_a_bare_text_is_cut_at_the_end(tokenizer):
    (ids,) = encode(["abcdef"], tokenizer, "{text}", 4)
    assert tokenizer.decode(ids) == "abcd"


def test_braces_in_a_text_are_text(tokenizer):
    (ids,) = encode(["{label} {0}"], tokenizer, FRAME, 100)
    assert "{label} {0}" in tokenizer.decode(ids)


def test_tokens_are_cached_by_what_they_depend_on(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setenv("SENTEXP_CACHE", str(tmp_path))
    tokenize(rows("a film"), tokenizer, "{text}", 50, progress=False)
    tokenize(rows("a film"), tokenizer, "{text}", 50, progress=False)
    assert len(list((tmp_path / "tokens").glob("*.arrow"))) == 1
    tokenize(rows("a film"), tokenizer, "{text}!", 50, progress=False)
    tokenize(rows("a film"), tokenizer, "{text}", 40, progress=False)
    tokenize(rows("b film"), tokenizer, "{text}", 50, progress=False)
    assert len(list((tmp_path / "tokens").glob("*.arrow"))) == 4


def test_cut_texts_are_counted(tokenizer):
    assert truncated(tokenize(rows("abcdef", "ab"), tokenizer, "{text}", 5, progress=False), 5) == 0.5


def test_no_room_for_the_text_is_refused(tokenizer):
    with pytest.raises(UserError, match=r"data.max_length=10 leaves no room for the text"):
        tokenize(rows("a film"), tokenizer, FRAME, 10, progress=False)
