"""Prompts: the frame of a text, where the answer begins, and the tokens of every answer.

Habits of tokenizers and chat templates, and where each is met:

    habit                                                 of                        function
    a blank is a part of the word behind it               GPT-2, Llama, Qwen        `answer_tokens.split_blank`
    ... but of numbers it is a token of its own           Llama 3, Qwen             `answer_tokens._shared_blank`
    the end of a prompt has other tokens before a word    GPT-2                     `answer_tokens._behind`
    an answer's last token merges with what ends it       GPT-2                     `answer_tokens.end_tokens`
    the template writes the first token of a text         Llama                     `answer_tokens.with_first_token`
    the tokenizer ends every text                         add_eos_token=true        `answer_tokens.with_first_token`
    no system message, refused or left out                Gemma, Mistral            `chat_template._conversations`
    an answer begins with a blank that is not asked for   Llama 2                   `chat_template._tail`
    the answer is asked for with an empty thought         Qwen 3                    `chat_template._tail`
"""

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from sentexp.config import AUTO, PAIR_SLOT, CausalLM, PromptTemplate, SequenceClassification, TaskConfig, load_template
from sentexp.data.answer_tokens import answer_tokens, end_tokens, split_blank, with_first_token
from sentexp.data.chat_template import render
from sentexp.data.splits import Examples
from sentexp.data.text_hash import Numbers, hash64
from sentexp.data.text_parts import PAIR
from sentexp.errors import require

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MORE_TOKENS = 3
STORED = {"example_answer": "written", "answer_prefix_ids": "lead"}
"""Fields of a prompt that have another name in identities, and in the files of saved models and kept tokens."""
CONTENT_FREE = ("N/A", "[MASK]", "")
"""Texts that say nothing (Zhao et al. 2021, section 4)."""


@dataclass(kw_only=True, slots=True)
class Prompt:
    """A text's frame, `head + text + tail`, and the answers to it.

    A prompt is tokenised with `example_answer` behind it, whose tokens are then removed: so it has the tokens that it
    has in training, whatever a vocabulary joins. `between` separates the two texts of a pair. `answers` are the
    tokens of each label's word, `end` those that end an answer; `answer_prefix_ids` are tokens that every answer begins
    with: the blank before numbers in some vocabularies.
    """

    head: str = ""
    tail: str = ""
    example_answer: str = ""
    special_tokens: bool = True
    answer_prefix_ids: list[int] = field(default_factory=list)
    between: str = ""
    words: list[str] = field(default_factory=list)
    answers: list[list[int]] = field(default_factory=list)
    end: list[int] = field(default_factory=list)

    @property
    def max_answer_tokens(self) -> int:
        """The most tokens that an answer takes, or that are written to see what it is."""
        longest = max((len(answer) for answer in self.answers), default=0)
        return longest + max(len(self.end), MORE_TOKENS) if longest else 0

    @property
    def answer_token_count(self) -> int:
        """The number of tokens of the answer behind the prompt."""
        return len(self.answers[0]) if self.answers else 0

    def frame(self, text: str) -> str:
        """Return the text in its frame, those of a pair with what separates them."""
        return self.head + text.replace(PAIR, self.between) + self.tail

    @property
    def template(self) -> str:
        """The frame with `{text}` in the place of the text, and `{text_pair}` in that of a second one."""
        return self.frame("{text}" + (PAIR + PAIR_SLOT if self.between else ""))

    def to_dict(self) -> dict[str, Any]:
        """Return the prompt as JSON values, under the names that identities and saved models have for its fields."""
        values = {STORED.get(name, name): value for name, value in asdict(self).items()}
        return values if self.between else {name: value for name, value in values.items() if name != "between"}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Prompt":
        """Return the prompt of what `to_dict` gave."""
        names = {stored: name for name, stored in STORED.items()}
        return cls(**{names.get(name, name): value for name, value in values.items()})


def build_prompt(
    task: TaskConfig,
    tokenizer: "PreTrainedTokenizerBase",
    labels: list[str],
    shots: Sequence[tuple[str, int]] = (),
    pairs: bool = False,
) -> Prompt:
    """Return the prompt of a task.

    Args:
        task: its template and label words.
        tokenizer: of the backbone.
        labels: class names, in the order of their indices.
        shots: examples that come before the text, as (text, class index).
        pairs: whether rows are pairs of texts.

    Raises:
        UserError: a template that the tokenizer cannot render, or that has a place for a text that rows lack; or label
            words that begin alike.
    """
    if isinstance(task, SequenceClassification):
        single, between = _split_pair(task.template, tokenizer, pairs)
        head, _, tail = single.partition("{text}")
        return Prompt(head=head, tail=tail, between=between)
    assert isinstance(task, CausalLM)
    words = label_words(task, labels)
    template = resolve_template(task, tokenizer)
    user, between = _split_pair(template.user, tokenizer, pairs)
    template = replace(template, user=user)
    shots = [(text.replace(PAIR, between), label) for text, label in shots]
    head, tail, end = render(tokenizer, template, task, words, shots)
    tail, blank = split_blank(tail)
    written = [blank + word for word in words]
    answer_prefix_ids, answers = answer_tokens(tokenizer, tail, words, written)
    head, special_tokens = with_first_token(tokenizer, template, head)
    return Prompt(
        head=head,
        tail=tail,
        example_answer=written[0],
        special_tokens=special_tokens,
        between=between,
        answer_prefix_ids=answer_prefix_ids,
        words=words,
        answers=answers,
        end=end_tokens(tokenizer, (tail or ".") + written[0], end),
    )


ASPECT = "\nAspect: "
"""Between the texts of a pair, where a template has no place for the second and the tokenizer knows no pairs."""


def _split_pair(template: str, tokenizer: "PreTrainedTokenizerBase", pairs: bool) -> tuple[str, str]:
    """Return a template with the place of a pair as that of a text, and what separates its two texts.

    Raises:
        UserError: a place for a second text that rows do not have.
    """
    before, _, behind = template.partition("{text}")
    between, slot, rest = behind.partition(PAIR_SLOT)
    require(
        pairs or not slot,
        f"task.template={template!r} has a place for {PAIR_SLOT}, and rows have no second text: name its column "
        "with data.text_pair=<column>.",
    )
    if slot:
        return f"{before}{{text}}{rest}", between
    return template, (_separator(tokenizer) or ASPECT) if pairs else ""


def _separator(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Return the special tokens that a tokenizer writes between two texts; of a decoder's there are none."""
    if tokenizer.sep_token is None:
        return ""
    ids = tokenizer("a", "a")["input_ids"]
    special = {*tokenizer.all_special_ids}
    places = [place for place, one in enumerate(ids) if one not in special]
    inner = [one for one in ids[places[0] : places[-1]] if one in special]
    return "".join(map(str, tokenizer.convert_ids_to_tokens(inner)))


def pair_separator(prompt: Prompt, tokenizer: "PreTrainedTokenizerBase") -> int | None:
    """Return the id of the token behind the first text of a pair; None where the tokenizer's own tokens divide none."""
    between = prompt.between
    return tokenizer.sep_token_id if between and between == _separator(tokenizer) else None


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
