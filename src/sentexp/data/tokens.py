"""Tokens: framed texts to token ids, cut inside the text and never in its frame, cached by what they depend on."""

import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sentexp.data.splits import Numbers, split_digest
from sentexp.errors import require
from sentexp.installed import cache_dir

if TYPE_CHECKING:
    import pyarrow as pa
    from transformers import PreTrainedTokenizerBase

BATCH = 8192
FORMAT = "2"  # of the files in the cache


class TokenRows:
    """The token ids of a split, memory-mapped from the cache.

    Args:
        table: columns `input_ids` (list of int32, cut at the maximum length), `full_length` and `label`.
    """

    def __init__(self, table: "pa.Table") -> None:
        chunks = table.column("input_ids").chunks
        self._chunks = [(chunk.offsets.to_numpy(), chunk.values.to_numpy()) for chunk in chunks]
        self._starts = np.cumsum([0, *map(len, chunks)])
        self.full_lengths: Numbers = table.column("full_length").to_numpy()
        """Tokens of each row before it was cut, shape (rows,)."""
        self.labels: Numbers = table.column("label").to_numpy()
        self.max_length = int((table.schema.metadata or {}).get(b"max_length", 1 << 30))

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def lengths(self) -> Numbers:
        """Tokens of each row, shape (rows,)."""
        return np.minimum(self.full_lengths, self.max_length)

    @property
    def cut(self) -> float:
        """The share of rows that were longer than the maximum length."""
        return float((self.full_lengths > self.max_length).mean())

    def ids(self, rows: Sequence[int]) -> list[list[int]]:
        """Return the token ids of some rows."""
        found = []
        for row in rows:
            chunk = int(np.searchsorted(self._starts, row, side="right")) - 1
            offsets, values = self._chunks[chunk]
            place = row - self._starts[chunk]
            found.append(values[offsets[place] : offsets[place + 1]].tolist())
        return found


def encode(
    texts: Sequence[str], tokenizer: "PreTrainedTokenizerBase", template: str, max_length: int
) -> tuple[list[list[int]], list[int]]:
    """Return the token ids of each text in its frame, at most `max_length` of them, and their number before the cut.

    A longer text loses its end; what follows the text in the template is kept, so that the last token is the same.
    """
    frame = template.partition("{text}")[2]
    tail = len(tokenizer(frame, add_special_tokens=False)["input_ids"])
    framed = [template.replace("{text}", text) for text in texts]
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        encoded = tokenizer(framed, verbose=False)["input_ids"]
    else:  # the same ids without masks and offsets: several times faster
        backend.no_truncation()
        backend.no_padding()
        encoded = [item.ids for item in backend.encode_batch_fast(framed)]
    cut = [ids if len(ids) <= max_length else ids[: max_length - tail] + ids[len(ids) - tail :] for ids in encoded]
    return cut, [len(ids) for ids in encoded]


def tokenize(
    rows: "pa.Table", tokenizer: "PreTrainedTokenizerBase", template: str, max_length: int, progress: bool
) -> TokenRows:
    """Return the token ids of a split; tokenised once, then read from the cache.

    The file is moved into place when it is whole, under a lock, so that neither a killed process nor a second one at
    the same time leaves half a file.

    Raises:
        UserError: `max_length` leaves no room for the text, or a text has no tokens.
    """
    from filelock import FileLock

    frame = len(tokenizer(template.replace("{text}", ""))["input_ids"])
    require(
        max_length > frame,
        f"data.max_length={max_length} leaves no room for the text: task.template alone has {frame} tokens.",
    )
    file = cache_dir() / "tokens" / f"{_key(rows, tokenizer, template, max_length)}.arrow"
    tokens = _read(file)
    if tokens is None:
        file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(file.with_suffix(".lock")):
            if _read(file) is None:
                partial = file.with_suffix(".part")
                _write(partial, rows, tokenizer, template, max_length, progress)
                partial.replace(file)
        tokens = _read(file)
    assert tokens is not None
    require(
        int(tokens.full_lengths.min()) > 0, "A text has no tokens: remove the row, or give task.template some words."
    )
    return tokens


def _read(file: Path) -> TokenRows | None:
    """Return the tokens in a file; None if it is not there, or is damaged."""
    import pyarrow as pa

    try:
        return TokenRows(pa.ipc.open_file(pa.memory_map(str(file))).read_all())
    except (FileNotFoundError, pa.ArrowInvalid, KeyError):
        return None


def _write(
    file: Path,
    rows: "pa.Table",
    tokenizer: "PreTrainedTokenizerBase",
    template: str,
    max_length: int,
    progress: bool,
) -> None:
    import pyarrow as pa
    from tqdm import tqdm

    schema = pa.schema(
        {"input_ids": pa.list_(pa.int32()), "full_length": pa.int32(), "label": pa.int32()},
        metadata={"max_length": str(max_length)},
    )
    bar = tqdm(total=rows.num_rows, desc="Tokenising", unit="row", disable=not progress, file=sys.stderr, leave=False)
    with bar, pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        for batch in rows.select(["text", "label"]).to_batches(max_chunksize=BATCH):
            ids, lengths = encode(batch.column("text").to_pylist(), tokenizer, template, max_length)
            arrays: list[Any] = [pa.array(ids, schema.types[0]), pa.array(lengths, pa.int32()), batch.column("label")]
            writer.write_batch(pa.record_batch(arrays, schema=schema))
            bar.update(len(ids))


def _key(rows: "pa.Table", tokenizer: "PreTrainedTokenizerBase", template: str, max_length: int) -> str:
    """Return a digest of everything that the token ids depend on."""
    digest = hashlib.sha256(json.dumps([FORMAT, template, max_length, type(tokenizer).__name__]).encode())
    backend = getattr(tokenizer, "backend_tokenizer", None)
    digest.update(
        json.dumps(tokenizer.get_vocab(), sort_keys=True).encode() if backend is None else backend.to_str().encode()
    )
    digest.update(split_digest(rows).encode())
    return digest.hexdigest()[:32]
