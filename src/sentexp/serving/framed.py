"""A tokenizer that frames texts itself, so that programs which know nothing of a run's prompt give its tokens."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sentexp.data.prompts import Prompt
from sentexp.data.tokens import encode, row_limit
from sentexp.errors import require

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
)
"""Texts that begin and end in as many ways as there are texts."""
HEAD, TAIL = "<frame>", "</frame>"
BEFORE = ("", " ", "\u2581")
"""What a vocabulary may join to the first word of a text."""


def save_framed(
    tokenizer: "PreTrainedTokenizerBase", prompt: Prompt, max_length: int, positions: int, strip: bool, folder: Path
) -> None:
    """Write a tokenizer that gives a bare text the tokens that it has in a run's prompt, and cuts it inside.

    Args:
        tokenizer: of the run.
        prompt: what stands around a text.
        max_length: the most tokens of a text.
        positions: the most tokens that the model reads.
        strip: whether surrounding blanks are taken off.
        folder: to write it to.

    Raises:
        UserError: the tokenizer joins texts to their prompt in ways that no file of a tokenizer can say.
    """
    from transformers import PreTrainedTokenizerFast

    limit, _ = row_limit(tokenizer, prompt, max_length, positions)
    require(
        getattr(tokenizer, "backend_tokenizer", None) is not None,
        "The tokenizer of this run is no fast one, so it cannot be written with its prompt: use format=peft.",
    )
    wanted, _ = encode(SAMPLES, tokenizer, prompt, positions)
    head, tail = len(os.path.commonprefix(wanted)), len(os.path.commonprefix([ids[::-1] for ids in wanted]))
    for before in BEFORE:
        backend = _framing(tokenizer, wanted[0][:head], wanted[0][len(wanted[0]) - tail :], before, strip)
        if [backend.encode(text).ids for text in SAMPLES] == wanted:
            break
    else:
        require(
            False,
            "The tokenizer of this run joins the words of task.template to those of a text, which no file of a "
            'tokenizer can say: use format=peft, or train with a template such as "{text}" or one that has line '
            "breaks around the text.",
        )
    special = {name: value for name, value in tokenizer.special_tokens_map.items() if isinstance(value, str)}
    made = PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=limit, **special)
    made.padding_side, made.truncation_side = "right", "right"
    made.save_pretrained(folder)


def _framing(
    tokenizer: "PreTrainedTokenizerBase", head: list[int], tail: list[int], before: str, strip: bool
) -> Any:
    """Return the tokenizer with these tokens around each text."""
    from tokenizers import Tokenizer, normalizers

    backend: Any = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.no_truncation()
    backend.no_padding()
    own = backend.normalizer
    steps = [normalizers.Strip()] if strip else []
    steps += [normalizers.Prepend(before)] if before else []
    steps += [own] if own is not None else []
    if steps:
        backend.normalizer = normalizers.Sequence(steps)
    frames = {HEAD: head, TAIL: tail}
    single = [{"SpecialToken": {"id": name, "type_id": 0}} for name in frames if frames[name]]
    single.insert(1 if head else 0, {"Sequence": {"id": "A", "type_id": 0}})
    said = {
        name: {"id": name, "ids": ids, "tokens": [str(tokenizer.convert_ids_to_tokens(one)) for one in ids]}
        for name, ids in frames.items()
        if ids
    }
    content = json.loads(backend.to_str())
    content["post_processor"] = {
        "type": "TemplateProcessing",
        "single": single,
        "pair": [*single, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": said,
    }
    return Tokenizer.from_str(json.dumps(content))
