"""What a language model answered: irregular outputs by their first token, and written answers as people count them."""

import re
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def irregular_tokens(tokenizer: "PreTrainedTokenizerBase", first_token: Tensor, irregular: Tensor) -> Counter[str]:
    """Return how often each token, as text, is the most likely one where no label begins with it."""
    return Counter(tokenizer.decode([token]) for token in first_token[irregular].tolist())


def read_answers(
    tokenizer: "PreTrainedTokenizerBase", generated: Tensor, words: Sequence[str], answer_prefix_ids: Sequence[int]
) -> tuple[list[int | None], Counter[str]]:
    """Return the class index of each written answer, and the first words of those that name no label, counted.

    An answer names a label if it begins with the label's word, in any case, and the word ends there.

    Args:
        tokenizer: of the backbone.
        generated: tokens of the answers, shape (rows, tokens).
        words: the word of each label.
        answer_prefix_ids: tokens at the end of the prompt that belong to the answer: the blank before it.
    """
    begun = tokenizer.decode(answer_prefix_ids) if answer_prefix_ids else ""
    texts = [begun + text for text in tokenizer.batch_decode(generated, skip_special_tokens=True)]
    read = [_label(text, words) for text in texts]
    return read, Counter(_first_word(text) for text, label in zip(texts, read, strict=True) if label is None)


def _label(text: str, words: Sequence[str]) -> int | None:
    answer = text.strip().casefold()
    for index in sorted(range(len(words)), key=lambda index: -len(words[index])):  # `very good` before `very`
        word = words[index].casefold()
        if answer.startswith(word) and not re.match(r"\w", answer[len(word) :]):
            return index
    return None


def _first_word(text: str) -> str:
    return (text.strip().casefold().split() or [""])[0].strip(".,:;!?\"'")


def answer_metrics(outside: Tensor | None, irregular: Tensor | None) -> dict[str, float]:
    """Return the mean probability of all that is not a label, and the number of irregular outputs.

    Args:
        outside: see `Scores`; None of a classification head.
        irregular: the same.
    """
    if outside is None or irregular is None:
        return {}
    return {"off_label_mass": float(outside.mean()), "irregular_outputs": float(irregular.sum())}
