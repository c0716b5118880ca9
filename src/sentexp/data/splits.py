"""Splits and subsets by hash of the normalised text: the same on every machine, duplicates never straddle a split."""

import hashlib
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sentexp.config import DataConfig
from sentexp.data.sources import load_source
from sentexp.errors import require

if TYPE_CHECKING:
    from datasets import Dataset

NAMES = ("train", "validation", "test")


@dataclass(kw_only=True, slots=True)
class Examples:
    """The three splits, what they were drawn from, and a digest of every text and label in them."""

    train: "Dataset"
    validation: "Dataset"
    test: "Dataset"
    available: dict[str, int]
    labels: list[str]

    def counts(self) -> dict[str, dict[str, int]]:
        """Return the number of rows per class, for each split."""
        counters = {name: Counter(getattr(self, name)["label"]) for name in NAMES}
        return {
            name: {label: found[index] for index, label in enumerate(self.labels)} for name, found in counters.items()
        }

    def leaked(self) -> int:
        """Return how many test texts also stand, normalised, in the training split."""
        train = {normalise(text) for text in self.train["text"]}
        return sum(normalise(text) in train for text in self.test["text"])

    def digest(self) -> str:
        """Return the SHA-256 over split names, texts and labels, in order."""
        digest = hashlib.sha256()
        for name in NAMES:
            rows = getattr(self, name)
            for text, label in zip(rows["text"], rows["label"], strict=True):
                digest.update(f"{name}\0{label}\0{text}\0".encode())
        return digest.hexdigest()


def load_examples(data: DataConfig) -> Examples:
    """Load the source and apply the split laws: carve what the source lacks, then take the subsets.

    Raises:
        UserError: a fault in the source, a split without rows, or a train split with one class.
    """
    source = load_source(data)
    splits = {name: source[own] for name in NAMES if (own := getattr(data.splits, name)) in source}
    if missing := [name for name in NAMES if name not in splits]:
        splits |= carve(splits["train"], {name: getattr(data, f"{name}_fraction") for name in missing})
    for name in NAMES:
        require(
            len(splits[name]) > 0,
            f"data={data.name} has no rows in the {name} split: give it more rows, or change data.{name}_fraction or "
            f"data.splits.{name}.",
        )
    available = {name: len(splits[name]) for name in NAMES}
    for name, size in (("train", data.train_subset), ("validation", data.validation_subset)):
        rows = splits[name]
        splits[name] = rows.select(subset(rows["text"], rows["label"], size, data.subset_seed, f"data.{name}_subset"))
    classes = {data.labels[label] for label in splits["train"]["label"]}
    require(
        len(classes) > 1,
        f"data={data.name} has one class in its train split, {', '.join(classes)}: a classifier needs at least two.",
    )
    return Examples(**splits, available=available, labels=data.labels)


def normalise(text: str) -> str:
    """Return the text by which duplicates are recognised: NFKC, case folded, white space collapsed."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def hash01(text: str, salt: str) -> float:
    """Return a number in [0, 1), uniform over texts and fixed for a text and a salt."""
    return int.from_bytes(hashlib.sha256(f"{salt}\0{text}".encode()).digest()[:8]) / 2**64


def carve(train: "Dataset", fractions: dict[str, float]) -> dict[str, "Dataset"]:
    """Divide `train` by the hash of each normalised text; `fractions` are the shares that train gives up."""
    places = [hash01(normalise(text), "split") for text in train["text"]]
    parts, low = {}, 0.0
    for name, fraction in fractions.items():
        parts[name] = [row for row, place in enumerate(places) if low <= place < low + fraction]
        low += fraction
    parts["train"] = [row for row, place in enumerate(places) if place >= low]
    return {name: train.select(rows) for name, rows in parts.items()}


def subset(texts: Sequence[str], labels: Sequence[int], size: float | None, seed: int, key: str) -> list[int]:
    """Return the rows of a stratified subset; a smaller one is contained in a larger one of the same seed.

    Rows are ordered by their rank within their class, as a share of that class, so that every prefix holds the
    classes in their natural proportions; ranks follow the hash of the text.

    Args:
        texts: one text per row.
        labels: one class index per row.
        size: a number of rows, a fraction below 1, or None for all rows in their order.
        seed: another seed is another subset.
        key: the configuration key, for the message when there are too few rows.
    """
    if size is None:
        return list(range(len(texts)))
    rows = round(size * len(texts)) if size < 1 else int(size)
    require(
        1 <= rows <= len(texts),
        f"{key}={size:g} asks for {rows} of {len(texts)} rows: it must be between 1 and {len(texts)}, a fraction "
        "below 1, or null for all rows.",
    )
    totals, seen = Counter(labels), Counter[int]()
    order = sorted(range(len(texts)), key=lambda row: (hash01(texts[row], f"subset{seed}"), row))
    share = {}
    for row in order:
        label = labels[row]
        share[row] = (seen[label] + 0.5) / totals[label]
        seen[label] += 1
    return sorted(order, key=lambda row: (share[row], labels[row]))[:rows]
