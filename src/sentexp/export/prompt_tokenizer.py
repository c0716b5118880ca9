"""A tokenizer that frames texts itself, so that programs which know nothing of a run's prompt give its tokens."""

import itertools
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sentexp.data.prompts import Prompt
from sentexp.data.tokens import encode, row_limit
from sentexp.errors import UserError, require

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SAMPLES = (
    "a warm and funny film",
    "Zero stars: it fails on all counts, again!",
    "1 of 10",
    "\u201cÉtonnant\u201d \u2013 und sehr schön",
    "这部电影很好",
    "(two hours) ... gone?",
    "x",
    "  indented ",
)
"""Texts that begin and end in as many ways as there are texts."""
HEAD, TAIL = "<frame>", "</frame>"
BEFORE = ("", " ", "\u2581")
"""What a vocabulary may join to the first word of a text."""
SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token")
BLANKS = (None, "always", "never")


def save_framed(
    tokenizer: "PreTrainedTokenizerBase", prompt: Prompt, max_length: int, positions: int, strip: bool, folder: Path
) -> None:
    """Write a tokenizer that gives a bare text the tokens that it has in a run's prompt, and cuts it inside.

    Args:
        tokenizer: of the run.
        prompt: the words around a text.
        max_length: the most tokens of a text.
        positions: the most tokens that the model reads.
        strip: whether surrounding white space is removed.
        folder: to write it to.

    Raises:
        UserError: the tokenizer joins texts to their prompt in ways that no file of a tokenizer can say.
    """
    from transformers import PreTrainedTokenizerFast

    limit, _ = row_limit(tokenizer, prompt, max_length, positions)
    require(
        getattr(tokenizer, "backend_tokenizer", None) is not None,
        "The tokenizer of this run is not a fast one, so it cannot be written with its prompt: use format=peft.",
    )
    wanted, _ = encode([text.strip() if strip else text for text in SAMPLES], tokenizer, prompt, positions)
    head, tail = _shared(wanted), _shared([ids[::-1] for ids in wanted])
    frame = wanted[0][:head], wanted[0][len(wanted[0]) - tail :]
    behind = prompt.tail[: len(prompt.tail) - len(prompt.tail.lstrip())]
    for before, after, blank in itertools.product(BEFORE, dict.fromkeys(["", behind]), BLANKS):
        backend = _framing(tokenizer, frame, (before, after), blank, strip)
        if [backend.encode(text).ids for text in SAMPLES] == wanted:
            break
    else:
        raise UserError(
            "The tokenizer of this run joins the words of task.template to those of a text, which a tokenizer "
            'file cannot express: use format=peft, or train with a template such as "{text}" or one that has line '
            "breaks around the text."
        )
    special = {name: str(value) for name in SPECIAL if (value := getattr(tokenizer, name, None)) is not None}
    made = PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=limit, **special)
    made.save_pretrained(folder)


def _shared(rows: list[list[int]]) -> int:
    """Return how many tokens all rows begin with."""
    together = zip(*rows, strict=False)
    return sum(1 for _ in itertools.takewhile(lambda column: len(set(column)) == 1, together))


def _framing(
    tokenizer: "PreTrainedTokenizerBase",
    frame: tuple[list[int], list[int]],
    joined: tuple[str, str],
    blank: str | None,
    strip: bool,
) -> Any:
    """Return the tokenizer with the tokens of a frame around each text.

    Args:
        tokenizer: of the run.
        frame: the tokens before a text, and those behind it.
        joined: what is written before a text and behind it, where a vocabulary joins it to the text.
        blank: when its first word gets the blank of SentencePiece; None is as it is.
        strip: take surrounding blanks off.
    """
    from tokenizers import Regex, Tokenizer, normalizers

    backend: Any = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.no_truncation()
    backend.no_padding()
    normalizer = backend.normalizer
    steps: list[Any] = [normalizers.Strip()] if strip else []
    steps += [normalizers.Prepend(joined[0])] if joined[0] else []
    steps += [normalizers.Replace(Regex(r"\z"), joined[1])] if joined[1] else []
    steps += [normalizer] if normalizer is not None else []
    if steps:
        backend.normalizer = normalizers.Sequence(steps)
    frames = {name: ids for name, ids in zip((HEAD, TAIL), frame, strict=True) if ids}
    single: list[dict[str, Any]] = [{"SpecialToken": {"id": name, "type_id": 0}} for name in frames]
    single.insert(1 if HEAD in frames else 0, {"Sequence": {"id": "A", "type_id": 0}})
    content = json.loads(backend.to_str())
    content["post_processor"] = {
        "type": "TemplateProcessing",
        "single": single,
        "pair": [*single, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {
            name: {"id": name, "ids": ids, "tokens": [str(tokenizer.convert_ids_to_tokens(one)) for one in ids]}
            for name, ids in frames.items()
        },
    }
    splitter = content["pre_tokenizer"]
    if blank is not None and splitter is not None and splitter["type"] == "Metaspace":
        splitter["prepend_scheme"] = blank
    return Tokenizer.from_str(json.dumps(content))
