"""Tokens: framed texts to token ids, cut inside the text and never in its frame, cached by what they depend on."""

import hashlib
import json
import sys
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sentexp.data.prompts import Prompt, holding_special_tokens
from sentexp.data.targets import target_array
from sentexp.data.text_hash import Numbers, split_digest
from sentexp.data.text_parts import PAIR
from sentexp.errors import require
from sentexp.system.atomic_write import replacing
from sentexp.system.checksums import append_checksum, without_checksum
from sentexp.system.console import tell
from sentexp.system.package_files import cache_dir

if TYPE_CHECKING:
    import pyarrow as pa
    from transformers import PreTrainedTokenizerBase

BATCH = 8192
FORMAT = "5"  # of the files in the cache

WORTH_SHARING = 2
"""Tokens that all rows must begin with, at least, to be computed apart from them."""


class TokenRows:
    """The token ids of a split, memory-mapped from the cache.

    Args:
        table: columns `input_ids` (list of int32, cut at the limit), `full_length` and `label`; in its metadata
            `limit`, the most tokens of a row, and `frame`, how many of them frame the text.
    """

    def __init__(self, table: "pa.Table") -> None:
        chunks = table.column("input_ids").chunks
        self._chunks = [(chunk.offsets.to_numpy(), chunk.values.to_numpy()) for chunk in chunks]
        self._starts = np.cumsum([0, *map(len, chunks)])
        self._full_lengths: Numbers = table.column("full_length").to_numpy()
        self.labels: Numbers = target_array(table.column("label"))
        self.limit, self.frame = (int(table.schema.metadata[key]) for key in (b"limit", b"frame"))

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def lengths(self) -> Numbers:
        """Tokens of each row with its frame, as it is, shape (rows,)."""
        return np.minimum(self._full_lengths, self.limit)

    @property
    def text_lengths(self) -> Numbers:
        """Tokens of each text before it was cut, without its frame, shape (rows,)."""
        return self._full_lengths - self.frame

    @property
    def cut(self) -> Numbers:
        """Whether a text lost its end, shape (rows,)."""
        return self._full_lengths > self.limit

    @cached_property
    def prefix(self) -> int:
        """How many tokens all rows begin with, each keeping one of its own; 0 where that is not worth sharing."""
        if not len(self):
            return 0
        most = int(self.lengths.min()) - 1
        first = self.ids([0])[0][:most]
        for offsets, values in self._chunks:
            same = (place for place in range(most) if not (values[offsets[:-1] + place] == first[place]).all())
            most = next(same, most)
        return most if most >= WORTH_SHARING else 0

    def ids(self, rows: Sequence[int]) -> list[list[int]]:
        """Return the token ids of some rows."""
        ids = []
        for row in rows:
            chunk = int(np.searchsorted(self._starts, row, side="right")) - 1
            offsets, values = self._chunks[chunk]
            place = row - self._starts[chunk]
            ids.append(values[offsets[place] : offsets[place + 1]].tolist())
        return ids


def encode(
    texts: Sequence[str], tokenizer: "PreTrainedTokenizerBase", prompt: Prompt, limit: int
) -> tuple[list[list[int]], list[int]]:
    """Return the token ids of each text in its frame, at most `limit` of them, and their number before the cut.

    A longer text loses its end; what follows the text in the frame is kept, so that the last token is the same.
    """
    tail = (
        len(tokenizer(prompt.tail + prompt.example_answer, add_special_tokens=False)["input_ids"])
        - prompt.answer_token_count
    )
    framed = [prompt.frame(text) + prompt.example_answer for text in texts]
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        encoded = tokenizer(framed, add_special_tokens=prompt.special_tokens, verbose=False)["input_ids"]
    else:  # the same ids without masks and offsets: several times faster
        backend.no_truncation()
        backend.no_padding()
        encoded = [item.ids for item in backend.encode_batch_fast(framed, add_special_tokens=prompt.special_tokens)]
    if prompt.answers:
        for row in holding_special_tokens(texts, tokenizer) if backend is not None else []:
            encoded[row] = _encode_apart(texts[row].replace(PAIR, prompt.between), backend, prompt)
        encoded = [ids[: len(ids) - prompt.answer_token_count] for ids in encoded]
    tails = dict.fromkeys(range(len(encoded)), tail)
    if prompt.between:
        tails |= {
            row: _pair_tail(texts[row], tokenizer, prompt, limit) for row, ids in enumerate(encoded) if len(ids) > limit
        }
    cut = [
        ids if len(ids) <= limit else ids[: limit - tails[row]] + ids[len(ids) - tails[row] :]
        for row, ids in enumerate(encoded)
    ]
    return cut, [len(ids) for ids in encoded]


def _pair_tail(text: str, tokenizer: "PreTrainedTokenizerBase", prompt: Prompt, limit: int) -> int:
    """Return how many tokens a pair keeps behind its first text: the second, and all that follows it.

    A second text that would take more than half of the row loses its beginning.
    """
    _, mark, second = text.partition(PAIR)
    if not mark:
        return 0
    behind = prompt.between + second + prompt.tail + prompt.example_answer
    plain = tokenizer(behind, add_special_tokens=False, verbose=False)["input_ids"]
    ending = 0
    if prompt.special_tokens:
        ids = tokenizer("a", verbose=False)["input_ids"]
        inner = tokenizer("a", add_special_tokens=False)["input_ids"]
        ending = len(ids) - len(inner) - next(place for place in range(len(ids)) if ids[place] == inner[0])
    return min(len(plain) - prompt.answer_token_count + ending, limit // 2)


def _encode_apart(text: str, backend: Any, prompt: Prompt) -> list[int]:
    """Return the tokens of a framed text in which special tokens are text: a review cannot end its own turn."""
    head = backend.encode(prompt.head, add_special_tokens=prompt.special_tokens).ids
    backend.encode_special_tokens = True
    try:
        inner = backend.encode(text, add_special_tokens=False).ids
    finally:
        backend.encode_special_tokens = False
    return [*head, *inner, *backend.encode(prompt.tail + prompt.example_answer, add_special_tokens=False).ids]


def frame_length(tokenizer: "PreTrainedTokenizerBase", prompt: Prompt) -> int:
    """Return how many tokens frame a text."""
    framed = prompt.frame("") + prompt.example_answer
    ids = tokenizer(framed, add_special_tokens=prompt.special_tokens, verbose=False)["input_ids"]
    return len(ids) - prompt.answer_token_count


def row_limit(tokenizer: "PreTrainedTokenizerBase", prompt: Prompt, max_length: int, positions: int) -> tuple[int, int]:
    """Return the most tokens of a row, and how many of them frame the text; see `tokenize`.

    Raises:
        UserError: the prompt leaves no room for a text.
    """
    frame = frame_length(tokenizer, prompt)
    limit = min(frame + max_length, positions - prompt.max_answer_tokens)
    require(
        limit > frame,
        f"task.template leaves no room for the text: the prompt has {frame:,} tokens, its answer up to "
        f"{prompt.max_answer_tokens}, and the model reads {positions:,}: use a shorter one, or fewer task.shots.",
    )
    return limit, frame


def tokenize(
    rows: "pa.Table",
    tokenizer: "PreTrainedTokenizerBase",
    prompt: Prompt,
    max_length: int,
    positions: int,
    progress: bool,
) -> TokenRows:
    """Return the token ids of a split; tokenised once, then read from the cache.

    The file is moved into place when it is whole, under a lock, so that neither a killed process nor a second one at
    the same time leaves half a file.

    Args:
        rows: a split.
        tokenizer: of the backbone.
        prompt: what frames a text.
        max_length: the most tokens of a text.
        positions: the most tokens that the backbone can read, answer included.
        progress: show it.

    Raises:
        UserError: the prompt leaves no room for a text, or a text has no tokens.
    """
    from filelock import FileLock

    limit, frame = row_limit(tokenizer, prompt, max_length, positions)
    file = cache_dir() / "tokens" / f"{_key(rows, tokenizer, prompt, limit)}.arrow"
    tokens = _read(file)
    if tokens is None:
        file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(file.with_suffix(".lock")):
            if _read(file) is None:
                if file.is_file():
                    tell(f"{file} is damaged: it is made again.")
                with replacing(file) as unfinished:
                    _write(unfinished, rows, tokenizer, prompt, (limit, frame), progress)
                    append_checksum(unfinished)
        tokens = _read(file)
    assert tokens is not None
    require(int(tokens.lengths.min()) > 0, "A text has no tokens: remove the row, or give task.template some words.")
    return tokens


def _read(file: Path) -> TokenRows | None:
    """Return the tokens in a file; None if it is not there, or is damaged."""
    import pyarrow as pa

    try:
        content = pa.memory_map(str(file)).read_buffer()
    except FileNotFoundError:
        return None
    arrow = without_checksum(memoryview(content))
    return None if arrow is None else TokenRows(pa.ipc.open_file(pa.py_buffer(arrow)).read_all())


def _write(
    file: Path,
    rows: "pa.Table",
    tokenizer: "PreTrainedTokenizerBase",
    prompt: Prompt,
    sizes: tuple[int, int],
    progress: bool,
) -> None:
    import pyarrow as pa
    from tqdm import tqdm

    schema = pa.schema(
        {"input_ids": pa.list_(pa.int32()), "full_length": pa.int32(), "label": rows.schema.field("label").type},
        metadata={"limit": str(sizes[0]), "frame": str(sizes[1])},
    )
    bar = tqdm(total=rows.num_rows, desc="Tokenising", unit="row", disable=not progress, file=sys.stderr, leave=False)
    with bar, pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        for batch in rows.select(["text", "label"]).to_batches(max_chunksize=BATCH):
            ids, lengths = encode(batch.column("text").to_pylist(), tokenizer, prompt, sizes[0])
            arrays: list[Any] = [pa.array(ids, schema.types[0]), pa.array(lengths, pa.int32()), batch.column("label")]
            writer.write_batch(pa.record_batch(arrays, schema=schema))
            bar.update(len(ids))


def _key(rows: "pa.Table", tokenizer: "PreTrainedTokenizerBase", prompt: Prompt, limit: int) -> str:
    """Return a digest of everything that the token ids depend on."""
    digest = hashlib.sha256(json.dumps([FORMAT, prompt.to_dict(), limit, type(tokenizer).__name__]).encode())
    backend = getattr(tokenizer, "backend_tokenizer", None)
    digest.update(
        json.dumps(tokenizer.get_vocab(), sort_keys=True).encode() if backend is None else backend.to_str().encode()
    )
    digest.update(split_digest(rows).encode())
    return digest.hexdigest()[:32]
