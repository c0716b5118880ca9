"""The tokens of answers behind a prompt. Each function is for one habit of tokenizers, which it names."""

from typing import TYPE_CHECKING

from sentexp.config import PromptTemplate
from sentexp.errors import require

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def answer_tokens(
    tokenizer: "PreTrainedTokenizerBase", tail: str, words: list[str], written: list[str]
) -> tuple[list[int], list[list[int]]]:
    """Return the tokens that all answers begin with (see `_shared_blank`), and those of each answer after them.

    Args:
        tokenizer: of the backbone.
        tail: the text before the answer.
        words: the label words.
        written: the same with the blank before them.

    Raises:
        UserError: words that merge with the prompt, have no tokens, or begin with the same token.
    """
    answers = _behind(tokenizer, tail, words, written)
    blank = _shared_blank(tokenizer, answers)
    answers = [answer[len(blank) :] for answer in answers]
    firsts: dict[int, str] = {}
    for word, answer in zip(words, answers, strict=True):
        other = firsts.setdefault(answer[0], word)
        require(
            other == word,
            f"task.label_words: {other!r} and {word!r} begin with the same token "
            f"{tokenizer.decode([answer[0]])!r} of this model, so its first token does not separate them: give "
            "other words with task.label_words, one for each label.",
        )
    return blank, answers


def _behind(tokenizer: "PreTrainedTokenizerBase", tail: str, words: list[str], written: list[str]) -> list[list[int]]:
    """Return the tokens that each word adds behind the prompt, which keeps its own tokens.

    GPT-2's tokenizer reads two newlines as one token at the end of a text and as two before a word, so the prompt is
    tokenised with the word, and its tokens are those that decode to it.
    """
    before = tokenizer.decode(plain_ids(tokenizer, tail or "."))
    answers, prompts = [], set()
    for word, text in zip(words, written, strict=True):
        ids = plain_ids(tokenizer, (tail or ".") + text)
        end = next((n for n in range(len(ids)) if tokenizer.decode(ids[:n]) == before), None)
        prompts.add(None if end is None else tuple(ids[:end]))
        require(
            len(prompts) == 1 and end is not None,
            f"task.template: its end {tail[-20:]!r} and the label word {word!r} become one token: end it with a blank, "
            "a colon or a newline.",
        )
        answer = ids[end:]
        require(
            bool(answer) and tokenizer.unk_token_id not in answer[:1],
            f"task.label_words: the tokenizer of this model has no tokens for {word!r}: choose another word.",
        )
        answers.append(answer)
    return answers


def _shared_blank(tokenizer: "PreTrainedTokenizerBase", answers: list[list[int]]) -> list[int]:
    """Return the blanks that all answers begin with as tokens of their own.

    In the vocabularies of Llama 3 and Qwen a blank is a part of the word behind it, but never of a number.
    """
    blank: list[int] = []
    shortest = min(map(len, answers))
    for column in zip(*(answer[: shortest - 1] for answer in answers), strict=True):
        if len(set(column)) > 1 or tokenizer.decode([column[0]]).strip():
            break
        blank.append(column[0])
    return blank


def split_blank(tail: str) -> tuple[str, str]:
    """Return the end of a prompt without its blanks, and these: they belong to the answer.

    In the vocabularies of GPT-2, Llama and Qwen a blank is a part of the first token of the word behind it.
    """
    bare = tail.rstrip(" ")
    return bare, tail[len(bare) :]


def end_tokens(tokenizer: "PreTrainedTokenizerBase", before: str, end: str) -> list[int]:
    """Return the tokens that end an answer: those that they are behind it, unless they merge with it.

    Args:
        tokenizer: of the backbone.
        before: the end of the prompt, with an answer.
        end: what ends the answer.
    """
    ids, ended = plain_ids(tokenizer, before), plain_ids(tokenizer, before + end)
    return ended[len(ids) :] if ended[: len(ids)] == ids else plain_ids(tokenizer, end)


def plain_ids(tokenizer: "PreTrainedTokenizerBase", text: str) -> list[int]:
    """Return the token ids of a text, without those that a tokenizer puts around one."""
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def with_first_token(tokenizer: "PreTrainedTokenizerBase", template: PromptTemplate, head: str) -> tuple[str, bool]:
    """Return the head of a prompt, and whether the tokenizer is to add its special tokens around the prompt.

    The chat templates of Llama write the token that begins a text themselves. A tokenizer with `add_eos_token=true`,
    such as Llama's and Gemma's may have, would put the end of the text between prompt and answer; there the first token
    is written into the head.
    """
    if template.chat_template is None or head.startswith(tokenizer.bos_token or "\0"):
        return head, False
    ids, plain = list(tokenizer("a")["input_ids"]), plain_ids(tokenizer, "a")
    if ids[-1] == plain[-1]:
        return head, True
    first = str(tokenizer.bos_token) if ids[0] == tokenizer.bos_token_id else ""
    return first + head, False
