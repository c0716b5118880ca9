"""A tokenizer that frames texts itself, so that programs which know nothing of a run's prompt give its tokens."""

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sentexp.data.prompts import Prompt, pair_separator
from sentexp.data.text_parts import PAIR
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
BETWEEN, REST = "<between>", "<rest>"
"""The first token between the texts of a pair, and those behind it, which are of the second segment."""
BEFORE = ("", " ", "\u2581")
"""What a vocabulary may join to the first word of a text."""
SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token")
BLANKS = (None, "always", "never")


def save_framed(
    tokenizer: "PreTrainedTokenizerBase",
    prompt: Prompt,
    max_length: int,
    positions: int,
    strip: bool,
    folder: Path,
    segments: bool = False,
) -> None:
    """Write a tokenizer that gives a bare text the tokens that it has in a run's prompt, and cuts it inside.

    It does so with the two texts of a pair where the tokenizer's own tokens divide them; see `joined_pairs`.

    Args:
        tokenizer: of the run.
        prompt: the words around a text.
        max_length: the most tokens of a text.
        positions: the most tokens that the model reads.
        strip: whether surrounding white space is removed.
        folder: to write it to.
        segments: whether the model is also given the segment of each token of a pair.

    Raises:
        UserError: the tokenizer joins texts to their prompt in ways that no file of a tokenizer can say.
    """
    from transformers import PreTrainedTokenizerFast

    limit, _ = row_limit(tokenizer, prompt, max_length, positions)
    require(
        getattr(tokenizer, "backend_tokenizer", None) is not None,
        "The tokenizer of this run is not a fast one, so it cannot be written with its prompt: use format=peft.",
    )
    divided = pair_separator(prompt, tokenizer) is not None
    backend = _exact_framing(tokenizer, prompt, positions, strip)
    special = {name: str(value) for name in SPECIAL if (value := getattr(tokenizer, name, None)) is not None}
    inputs = ["input_ids", *(["token_type_ids"] if divided and segments else []), "attention_mask"]
    made = PreTrainedTokenizerFast(
        tokenizer_object=backend, model_max_length=limit, model_input_names=inputs, **special
    )
    made.save_pretrained(folder)


def joined_pairs(texts: Sequence[str], prompt: Prompt, tokenizer: "PreTrainedTokenizerBase") -> list[str]:
    """Return texts as a tokenizer that frames them takes them: each pair as one text, unless it can divide pairs."""
    if pair_separator(prompt, tokenizer) is not None:
        return list(texts)
    return [text.replace(PAIR, prompt.between) for text in texts]


def _exact_framing(tokenizer: "PreTrainedTokenizerBase", prompt: Prompt, positions: int, strip: bool) -> Any:
    """Return the tokenizer with a frame in which the samples have the tokens of the run.

    Raises:
        UserError: there is none.
    """
    divided = pair_separator(prompt, tokenizer) is not None
    samples = [
        (text, other) if divided else (text,) for text, other in zip(SAMPLES, SAMPLES[1:] + SAMPLES, strict=False)
    ]
    stripped = [PAIR.join(text.strip() if strip or divided else text for text in parts) for parts in samples]
    wanted, _ = encode(stripped, tokenizer, prompt, positions)
    head, tail = _shared(wanted), _shared([ids[::-1] for ids in wanted])
    between = tokenizer(prompt.between, add_special_tokens=False)["input_ids"] if divided else []
    frame = {HEAD: wanted[0][:head], BETWEEN: between[:1], REST: between[1:], TAIL: wanted[0][len(wanted[0]) - tail :]}
    behind = prompt.tail[: len(prompt.tail) - len(prompt.tail.lstrip())]
    for before, after, blank in itertools.product(BEFORE, dict.fromkeys(["", behind]), BLANKS):
        backend = _framing(tokenizer, frame, (before, after), blank, strip)
        if [backend.encode(*parts).ids for parts in samples] == wanted:
            return backend
    raise UserError(
        "The tokenizer of this run joins the words of task.template to those of a text, which a tokenizer file cannot "
        'express: use format=peft, or train with a template such as "{text}" or one that has line breaks around the '
        "text."
    )


def _shared(rows: list[list[int]]) -> int:
    """Return how many tokens all rows begin with."""
    together = zip(*rows, strict=False)
    return sum(1 for _ in itertools.takewhile(lambda column: len(set(column)) == 1, together))


def _framing(
    tokenizer: "PreTrainedTokenizerBase",
    frame: dict[str, list[int]],
    joined: tuple[str, str],
    blank: str | None,
    strip: bool,
) -> Any:
    """Return the tokenizer with the tokens of a frame around each text.

    Args:
        tokenizer: of the run.
        frame: the tokens before a text, between the two of a pair, and behind them, by name.
        joined: what is written before a text and behind it, where a vocabulary joins it to the text.
        blank: when its first word gets the blank of SentencePiece; None is as it is.
        strip: take surrounding blanks off.
    """
    from tokenizers import Regex, Tokenizer, normalizers

    backend: Any = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.no_truncation()
    backend.no_padding()
    normalizer = backend.normalizer
    steps: list[Any] = [normalizers.Strip()] if strip or frame[BETWEEN] else []
    steps += [normalizers.Prepend(joined[0])] if joined[0] else []
    steps += [normalizers.Replace(Regex(r"\z"), joined[1])] if joined[1] else []
    steps += [normalizer] if normalizer is not None else []
    if steps:
        backend.normalizer = normalizers.Sequence(steps)
    frames = {name: ids for name, ids in frame.items() if ids}
    content = json.loads(backend.to_str())
    content["post_processor"] = {
        "type": "TemplateProcessing",
        "single": _pieces((HEAD, 0), ("A", 0), (TAIL, 0), frames=frames),
        "pair": _pieces((HEAD, 0), ("A", 0), (BETWEEN, 0), (REST, 1), ("B", 1), (TAIL, 1), frames=frames),
        "special_tokens": {
            name: {"id": name, "ids": ids, "tokens": [str(tokenizer.convert_ids_to_tokens(one)) for one in ids]}
            for name, ids in frames.items()
        },
    }
    splitter = content["pre_tokenizer"]
    if blank is not None and splitter is not None and splitter["type"] == "Metaspace":
        splitter["prepend_scheme"] = blank
    return Tokenizer.from_str(json.dumps(content))


def _pieces(*parts: tuple[str, int], frames: dict[str, list[int]]) -> list[dict[str, Any]]:
    """Return the pieces of a text in the words of the library `tokenizers`: each part and its segment."""
    kinds = [("Sequence" if name in "AB" else "SpecialToken", name, segment) for name, segment in parts]
    return [{kind: {"id": name, "type_id": segment}} for kind, name, segment in kinds if name in "AB" or name in frames]
