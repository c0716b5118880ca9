"""Rendering a conversation once, with a mark in place of the text: any chat template becomes a plain head and tail."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sentexp.config import CausalLM, PromptTemplate
from sentexp.errors import UserError, first_line, require

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TEXT, ANSWER = "\ue0a0text\ue0a1", "\ue0a0answer\ue0a1"  # marks from the private use area
FIXED = {"date_string": "26 Jul 2024", "enable_thinking": False}
"""What chat templates ask for beside the messages: a prompt must not change with the date (Llama 3.2's default day)."""


def render(
    tokenizer: "PreTrainedTokenizerBase",
    template: PromptTemplate,
    task: CausalLM,
    words: list[str],
    shots: Sequence[tuple[str, int]],
) -> tuple[str, str, str]:
    """Return what is before the text, between text and answer, and after the answer.

    Args:
        tokenizer: of the backbone.
        template: of the prompt.
        task: its system prompt.
        words: the label words.
        shots: examples that come before the text, as (text, class index).

    Raises:
        UserError: a template that the tokenizer cannot render.
    """
    listed = " or ".join(filter(None, [", ".join(words[:-1]), words[-1]]))
    system, user = (
        part.replace("{labels}", listed)
        for part in (template.system if task.system is None else task.system, template.user)
    )
    turns = [(user.replace("{text}", text), words[label]) for text, label in shots]
    turns.append((user.replace("{text}", TEXT), ANSWER))
    asked, answered = _conversations(tokenizer, template, system, turns)
    require(
        asked.count(TEXT) == 1 and answered.count(TEXT) == 1 and answered.count(ANSWER) == 1,
        "task.template: its chat template must give the text and the answer exactly once each.",
    )
    head, _, before_generation = asked.partition(TEXT)
    before_answer, _, end = answered.partition(TEXT)[2].partition(ANSWER)
    return head, _tail(before_generation, before_answer), end


def _conversations(
    tokenizer: "PreTrainedTokenizerBase", template: PromptTemplate, system: str, turns: list[tuple[str, str]]
) -> tuple[str, str]:
    """Return the conversation up to the last answer, and with it; the system prompt in the first turn if need be.

    Gemma's template refuses a system message, and others leave it out without a word.
    """

    def conversation(in_first_turn: bool, answered: bool) -> str:
        first = (f"{system}\n\n" if in_first_turn and system else "") + turns[0][0]
        messages = [{"role": "system", "content": system}] if system and not in_first_turn else []
        for number, (question, answer) in enumerate(turns):
            messages.append({"role": "user", "content": question if number else first})
            messages.append({"role": "assistant", "content": answer})
        return _apply(tokenizer, template, messages if answered else messages[:-1], generation=not answered)

    try:
        in_first_turn = system.strip() not in conversation(in_first_turn=False, answered=False)
    except _NoSystemRole:
        in_first_turn = True
    return conversation(in_first_turn, answered=False), conversation(in_first_turn, answered=True)


def _tail(before_generation: str, before_answer: str) -> str:
    """Return what is between text and answer: as the template asks for an answer, or as it writes one.

    Llama 2's template writes a blank before an answer and does not ask with it. Qwen 3's asks with an empty block of
    thoughts, which it leaves out of an answer.
    """
    return before_answer if before_answer.startswith(before_generation) else before_generation


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
        reason = first_line(error)
        raise UserError(f"task.template: its chat template cannot be rendered ({reason}).") from None
    return str(rendered)
