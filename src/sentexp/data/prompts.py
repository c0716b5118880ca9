"""Prompts: what stands around a text, where the answer begins, and the tokens of every answer.

A template is rendered once, with a mark in place of the text; so the chat template of any tokenizer becomes a plain
head and tail, and what follows an answer is known as well.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from sentexp.config import AUTO, CausalLM, PromptTemplate, SequenceClassification, TaskConfig, load_template
from sentexp.data.splits import Examples, Numbers, hash64
from sentexp.errors import UserError, require

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TEXT, ANSWER = "\ue0a0text\ue0a1", "\ue0a0answer\ue0a1"  # marks from the private use area
FIXED = {"date_string": "26 Jul 2024", "enable_thinking": False}
"""What chat templates ask for beside the messages: a prompt must not change with the date (Llama 3.2's default day)."""
MORE_TOKENS = 3
CONTENT_FREE = ("N/A", "[MASK]", "")
"""Texts that say nothing (Zhao et al. 2021, section 4)."""


@dataclass(kw_only=True, slots=True)
class Prompt:
    """A text's frame, `head + text + tail`, and the answers to it.

    A prompt is tokenised with the answer `written` behind it, which is then taken off: so it has the tokens that it has
    in training, whatever a vocabulary joins. `answers` are the tokens of each label's word, `end` those that end an
    answer; `lead` are tokens before them that every answer begins with, the blank before numbers in some vocabularies.
    """

    head: str = ""
    tail: str = ""
    written: str = ""
    special_tokens: bool = True
    lead: list[int] = field(default_factory=list)
    words: list[str] = field(default_factory=list)
    answers: list[list[int]] = field(default_factory=list)
    end: list[int] = field(default_factory=list)

    @property
    def room(self) -> int:
        """The most tokens that an answer takes, or that are written to see what it is."""
        longest = max((len(answer) for answer in self.answers), default=0)
        return longest + max(len(self.end), MORE_TOKENS) if longest else 0

    @property
    def taken_off(self) -> int:
        """The number of tokens of the answer behind the prompt."""
        return len(self.answers[0]) if self.answers else 0

    def frame(self, text: str) -> str:
        """Return the text in its frame."""
        return self.head + text + self.tail


def build_prompt(
    task: TaskConfig, tokenizer: "PreTrainedTokenizerBase", labels: list[str], shots: Sequence[tuple[str, int]] = ()
) -> Prompt:
    """Return the prompt of a task.

    Args:
        task: its template and label words.
        tokenizer: of the backbone.
        labels: class names, in the order of their indices.
        shots: examples that come before the text, as (text, class index).

    Raises:
        UserError: a template that the tokenizer cannot render, or label words that cannot be told apart.
    """
    if isinstance(task, SequenceClassification):
        head, _, tail = task.template.partition("{text}")
        return Prompt(head=head, tail=tail)
    assert isinstance(task, CausalLM)
    words = label_words(task, labels)
    template = resolve_template(task, tokenizer)
    head, tail, end = _render(tokenizer, template, task, words, shots)
    bare = tail.rstrip(" ")  # a blank before a word is a part of the word's first token in most vocabularies
    written = [tail[len(bare) :] + word for word in words]
    lead, answers = _answers(tokenizer, bare, words, written)
    before = _ids(tokenizer, (bare or ".") + written[0])
    after = _ids(tokenizer, (bare or ".") + written[0] + end)
    ours = template.chat_template is not None and not head.startswith(tokenizer.bos_token or "\0")
    if ours and _adds_an_end(tokenizer):
        head, ours = _beginning(tokenizer) + head, False
    return Prompt(
        head=head,
        tail=bare,
        written=written[0],
        special_tokens=ours,
        lead=lead,
        words=words,
        answers=answers,
        end=after[len(before) :] if after[: len(before)] == before else _ids(tokenizer, end),
    )


def label_words(task: CausalLM, labels: list[str]) -> list[str]:
    """Return the word that stands for each label.

    Raises:
        UserError: words for other labels than those of the data.
    """
    given = task.label_words
    if given is None:
        return labels
    require(
        set(given) == set(labels) if isinstance(given, dict) else len(given) == len(labels),
        f"task.label_words={given} must give one word to each of the labels {', '.join(labels)}.",
    )
    return [given[label] for label in labels] if isinstance(given, dict) else list(given)


def resolve_template(task: CausalLM, tokenizer: "PreTrainedTokenizerBase") -> PromptTemplate:
    """Return the template; `auto` is the chat template of a tokenizer that has one, and else plain completion."""
    if task.template == AUTO:
        return load_template("chat" if tokenizer.chat_template else "completion")
    return load_template(task.template)


def choose_shots(examples: Examples, task: CausalLM, fits: Numbers) -> list[tuple[str, int]]:
    """Return the examples of a few-shot prompt: training rows, of each class as many, in an order by hash.

    Args:
        examples: of the run.
        task: how many, and their seed.
        fits: for each training row, whether it can be shown as it is, shape (rows,).

    Raises:
        UserError: fewer rows of a class than asked for.
    """
    texts, targets = examples.train.column("text"), examples.targets("train")
    classes = len(examples.labels)
    chosen: list[tuple[int, str, int]] = []
    for label, name in enumerate(examples.labels):
        wanted = task.shots // classes + (label < task.shots % classes)
        rows = np.flatnonzero((targets == label) & fits)
        different = set(texts.take(rows).to_pylist())
        hashed = sorted((hash64(text, f"shots{task.shots_seed}"), text) for text in different)
        require(
            len(hashed) >= wanted,
            f"task.shots={task.shots} takes {wanted} training texts of the label {name}, and {len(hashed)} can be "
            "shown whole: ask for fewer, or raise data.max_length.",
        )
        chosen += [(order, text, label) for order, text in hashed[:wanted]]
    return [(text, label) for _, text, label in sorted(chosen)]


def holding_special_tokens(texts: Sequence[str], tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """Return the numbers of the texts that hold a special token as it is written: the end of a turn, for instance."""
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    special = {*tokenizer.all_special_tokens, *(token.content for token in added if token.special)} - {""}
    written = "|".join(map(re.escape, sorted(special)))
    return [row for row, text in enumerate(texts) if re.search(written, text)] if written else []


def _render(
    tokenizer: "PreTrainedTokenizerBase",
    template: PromptTemplate,
    task: CausalLM,
    words: list[str],
    shots: Sequence[tuple[str, int]],
) -> tuple[str, str, str]:
    """Return what stands before the text, between text and answer, and after the answer."""
    listed = " or ".join(filter(None, [", ".join(words[:-1]), words[-1]]))
    system, user = (
        part.replace("{labels}", listed)
        for part in (template.system if task.system is None else task.system, template.user)
    )
    turns = [(user.replace("{text}", text), words[label]) for text, label in shots]
    turns.append((user.replace("{text}", TEXT), ANSWER))

    def say(merged: bool, answered: bool) -> str:
        """Render the conversation, the system prompt in the first turn where there is no role for it."""
        first = (f"{system}\n\n" if merged and system else "") + turns[0][0]
        messages = [{"role": "system", "content": system}] if system and not merged else []
        for number, (question, answer) in enumerate(turns):
            messages.append({"role": "user", "content": question if number else first})
            messages.append({"role": "assistant", "content": answer})
        return _apply(tokenizer, template, messages if answered else messages[:-1], generation=not answered)

    try:
        merged = system.strip() not in say(merged=False, answered=False)
    except _NoSystemRole:
        merged = True
    asked, told = say(merged, answered=False), say(merged, answered=True)
    require(
        asked.count(TEXT) == 1 and told.count(TEXT) == 1 and told.count(ANSWER) == 1,
        "task.template: its chat template must give the text and the answer exactly once each.",
    )
    head, _, tail = asked.partition(TEXT)
    between, _, end = told.partition(TEXT)[2].partition(ANSWER)
    # Some templates write a blank before an answer; others begin it with more than an answer has.
    return head, between if between.startswith(tail) else tail, end


class _NoSystemRole(Exception):
    """A chat template that refuses a system message."""


def _apply(
    tokenizer: "PreTrainedTokenizerBase", template: PromptTemplate, messages: list[dict[str, str]], generation: bool
) -> str:
    from jinja2 import TemplateError

    require(
        template.chat_template is not None or bool(tokenizer.chat_template),
        "task.template has no chat_template (chat never has), and the tokenizer of this model has none either: use "
        "task.template=completion, llama2, or a YAML file with a chat_template.",
    )
    try:
        rendered = tokenizer.apply_chat_template(
            messages,
            chat_template=template.chat_template,
            tokenize=False,
            add_generation_prompt=generation,
            **FIXED,
        )
    except (TemplateError, TypeError) as error:
        if messages[0]["role"] == "system":
            raise _NoSystemRole from None
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"task.template: its chat template cannot be rendered ({reason}).") from None
    return str(rendered)


def _answers(
    tokenizer: "PreTrainedTokenizerBase", tail: str, words: list[str], written: list[str]
) -> tuple[list[int], list[list[int]]]:
    """Return the tokens that all answers begin with (blanks only), and those of each answer after them.

    Args:
        tokenizer: of the backbone.
        tail: what stands before the answer.
        words: the label words.
        written: the same with the blank before them.

    Raises:
        UserError: words that merge with the prompt, have no tokens, or begin with the same token.
    """
    before = tokenizer.decode(_ids(tokenizer, tail or "."))
    answers, ends = [], set()
    for word, text in zip(words, written, strict=True):
        ids = _ids(tokenizer, (tail or ".") + text)
        end = next((n for n in range(len(ids)) if tokenizer.decode(ids[:n]) == before), None)
        ends.add(None if end is None else tuple(ids[:end]))
        require(
            len(ends) == 1 and end is not None,
            f"task.template: its end {tail[-20:]!r} and the label word {word!r} become one token: end it with a blank, "
            "a colon or a newline.",
        )
        answer = ids[end:]
        require(
            bool(answer) and tokenizer.unk_token_id not in answer[:1],
            f"task.label_words: the tokenizer of this model has no tokens for {word!r}: choose another word.",
        )
        answers.append(answer)
    lead: list[int] = []
    while len({answer[0] for answer in answers}) == 1 and all(len(answer) > 1 for answer in answers):
        if tokenizer.decode([answers[0][0]]).strip():
            break
        lead.append(answers[0][0])
        answers = [answer[1:] for answer in answers]
    firsts: dict[int, str] = {}
    for word, answer in zip(words, answers, strict=True):
        other = firsts.setdefault(answer[0], word)
        require(
            other == word,
            f"task.label_words: {other!r} and {word!r} begin with the same token "
            f"{tokenizer.decode([answer[0]])!r} of this model, so its first token does not tell them apart: give "
            "other words with task.label_words, one for each label.",
        )
    return lead, answers


def _ids(tokenizer: "PreTrainedTokenizerBase", text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _adds_an_end(tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Tell whether the tokenizer puts a token after a text, which would stand between prompt and answer."""
    return bool(tokenizer("a")["input_ids"][-1] != _ids(tokenizer, "a")[-1])


def _beginning(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Return the token that the tokenizer puts before a text, as it is written."""
    first = tokenizer("a")["input_ids"][0]
    return str(tokenizer.bos_token) if first == tokenizer.bos_token_id else ""
