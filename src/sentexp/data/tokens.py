"""Tokens: framed texts to token ids, cut inside the text and never in its frame, cached by what they depend on."""

import hashlib
import json
from typing import TYPE_CHECKING, Any

from sentexp.errors import require
from sentexp.installed import cache_dir

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase


def encode(texts: list[str], tokenizer: "PreTrainedTokenizerBase", template: str, max_length: int) -> list[list[int]]:
    """Return the token ids of each text in its frame, at most `max_length` of them.

    A longer text loses its end; what follows the text in the template is kept, so that the last token is the same.
    """
    frame = template.partition("{text}")[2]
    tail = len(tokenizer(frame, add_special_tokens=False)["input_ids"])
    encoded = tokenizer([template.replace("{text}", text) for text in texts], verbose=False)["input_ids"]
    return [ids if len(ids) <= max_length else ids[: max_length - tail] + ids[len(ids) - tail :] for ids in encoded]


def tokenize(
    rows: "Dataset", tokenizer: "PreTrainedTokenizerBase", template: str, max_length: int, progress: bool
) -> "Dataset":
    """Return the rows with `input_ids`, `length` (tokens) and `label`; tokenised once, then read from the cache.

    Raises:
        UserError: `max_length` leaves no room for the text, or a text has no tokens.
    """
    frame = len(tokenizer(template.replace("{text}", ""))["input_ids"])
    require(
        max_length > frame,
        f"data.max_length={max_length} leaves no room for the text: task.template alone has {frame} tokens.",
    )

    def encode_batch(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        ids = encode(batch["text"], tokenizer, template, max_length)
        return {"input_ids": ids, "length": [len(row) for row in ids]}

    key = _key(rows, tokenizer, template, max_length)
    file = cache_dir() / "tokens" / f"{key}.arrow"
    file.parent.mkdir(parents=True, exist_ok=True)
    from datasets.utils.logging import disable_progress_bar, enable_progress_bar

    (enable_progress_bar if progress else disable_progress_bar)()
    tokenised = rows.map(
        encode_batch,
        batched=True,
        remove_columns=["text"],
        cache_file_name=str(file),
        new_fingerprint=key,
        desc="Tokenising",
    )
    require(min(tokenised["length"]) > 0, "A text has no tokens: remove the row, or give task.template some words.")
    return tokenised


def truncated(tokenised: "Dataset", max_length: int) -> float:
    """Return the share of rows that fill `max_length`, so were probably cut."""
    return float(sum(length == max_length for length in tokenised["length"]) / len(tokenised))


def _key(rows: "Dataset", tokenizer: "PreTrainedTokenizerBase", template: str, max_length: int) -> str:
    """Return a digest of everything that the token ids depend on."""
    digest = hashlib.sha256(json.dumps([template, max_length, type(tokenizer).__name__]).encode())
    backend = getattr(tokenizer, "backend_tokenizer", None)
    digest.update(
        json.dumps(tokenizer.get_vocab(), sort_keys=True).encode() if backend is None else backend.to_str().encode()
    )
    for text, label in zip(rows["text"], rows["label"], strict=True):
        digest.update(f"{label}\0{text}\0".encode())
    return digest.hexdigest()[:32]
