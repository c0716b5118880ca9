"""Hashes of texts: by which duplicates are recognised, and splits and subsets drawn, alike on every machine."""

import hashlib
import unicodedata
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa

Numbers = np.ndarray[Any, np.dtype[Any]]
KEY = "key"
BLOCK = 1 << 14  # rows that are Python strings at one time


def normalise(text: str) -> str:
    """Return the text by which duplicates are recognised: NFKC, case folded, white space collapsed."""
    return " ".join(fold(text).split())


def fold(text: str) -> str:
    """Return the text in NFKC, case folded; for ASCII that is lower case, which is faster."""
    return text.lower() if text.isascii() else unicodedata.normalize("NFKC", text).casefold()


def hash64(text: str, salt: str) -> int:
    """Return 64 bits, uniform over texts and fixed for a text and a salt."""
    return int.from_bytes(hashlib.sha256(f"{salt}\0{text}".encode()).digest()[:8])


def text_keys(rows: "pa.Table", seed: int = 0) -> Numbers:
    """Return one uint64 for each row, shape (rows,): equal where the normalised texts are equal.

    Those of seed 0 tell duplicates, and are kept in the column `key` once they are known.
    """
    if seed == 0 and KEY in rows.column_names:
        return np.asarray(rows.column(KEY))
    salt = f"split{seed}" if seed else "split"
    keys = np.empty(rows.num_rows, np.uint64)
    for start in range(0, len(keys), BLOCK):
        texts = rows.column("text").slice(start, BLOCK).to_pylist()
        keys[start : start + len(texts)] = [hash64(normalise(text), salt) for text in texts]
    return keys


def column_hashes(column: "pa.ChunkedArray", seed: int) -> Numbers:
    """Return 64 bits for each value of a column, for a seed of subsets, shape (rows,)."""
    hashes = np.empty(len(column), np.uint64)
    for start in range(0, len(column), BLOCK):
        values = column.slice(start, BLOCK).to_pylist()
        hashes[start : start + len(values)] = [hash64(value or "", f"subset{seed}") for value in values]
    return hashes


def split_digest(rows: "pa.Table") -> str:
    """Return the SHA-256 over the texts and labels of a split, in order."""
    digest = hashlib.sha256()
    for batch in rows.select(["text", "label"]).to_batches(max_chunksize=BLOCK):
        labels, texts = batch.column("label").to_pylist(), batch.column("text").to_pylist()
        digest.update(
            "".join([f"{label}\0{len(text)}\0{text}\0" for label, text in zip(labels, texts, strict=True)]).encode()
        )
    return digest.hexdigest()
