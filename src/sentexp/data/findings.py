"""What an audit looks for in texts: duplicates by degree, contradictions, and signs of broken encodings or copying."""

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from sentexp.data.delimited import FORMULA
from sentexp.data.near_duplicates import near_pairs
from sentexp.data.splits import NAMES, Examples, firsts
from sentexp.data.targets import as_numbers
from sentexp.data.text_hash import Numbers

if TYPE_CHECKING:
    import pyarrow as pa

EXAMPLES = 3
SHOWN = 100
SIGNS = {
    "replacement character U+FFFD": "\ufffd",
    "control character": r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]",
    "bidirectional control character": "[\u202a-\u202e\u2066-\u2069]",
    "piece of HTML": r"(?i)<br ?/?>|</?(p|div|span|a|b|i|em|strong|u|li|ul)( [^>]*)?>|&(amp|lt|gt|quot|nbsp|#[0-9]+);",
    "written-out escape such as \\u2019": r"\\u[0-9a-fA-F]{4}|\\x[0-9a-fA-F]{2}",
    "spreadsheet formula": FORMULA,
}
"""What makes a text suspicious, as patterns that RE2 and Python read alike."""
GROUPED = "group also in train"
MOJIBAKE = "piece of mojibake (bytes decoded with a wrong encoding)"


@dataclass(kw_only=True, slots=True)
class Finding:
    """Something that was looked for: in how many rows of each split it is, and where, for instance."""

    name: str
    rows: dict[str, int]
    examples: list[str] = field(default_factory=list)

    @property
    def found(self) -> bool:
        """Whether any split has such rows."""
        return any(self.rows.values())


def find_faults(examples: Examples, near: bool) -> list[Finding]:
    """Return what is repeated, contradicts itself or looks broken in the texts of the three splits.

    Args:
        examples: the splits.
        near: look for near-duplicates as well, which takes longer than all the rest.
    """
    duplicates = _Duplicates(examples)
    near_duplicates = _near_duplicates(examples, duplicates) if near else []
    stripped = []
    if any(examples.stripped.values()):
        stripped.append(Finding(name="surrounding blanks, which were removed", rows=dict(examples.stripped)))
    return [*duplicates.findings(), *near_duplicates, *_signs(examples), *stripped]


class _Duplicates:
    """Exact and normalised duplicates, and labels that contradict each other."""

    def __init__(self, examples: Examples) -> None:
        self.examples = examples
        self.sizes = {name: examples.split(name).num_rows for name in NAMES}
        self.keys = {name: examples.keys(name) for name in NAMES}

    def findings(self) -> list[Finding]:
        """Return what is repeated within a split, what is also in another, and what has several labels."""
        within = {name: ~firsts(self.keys[name]) for name in NAMES}
        exact = {name: self._exact(name, within[name]) for name in NAMES}
        grouped = [self._grouped()] if "group" in self.examples.train.column_names else []
        return [
            Finding(name="repeated text (exact)", rows=exact),
            _finding("repeated text (normalised)", self.examples, within),
            _finding("text also in train", self.examples, {name: self._also_in(name, "train") for name in NAMES[1:]}),
            _finding("text also in validation", self.examples, {"test": self._also_in("test", "validation")}),
            _finding("text that has another label elsewhere", self.examples, self._contradicting()),
            *grouped,
        ]

    def _grouped(self) -> Finding:
        """Return the rows whose group is in train as well, where the source's own splits divide groups."""
        import pyarrow.compute as pc

        columns = {name: self.examples.split(name).column("group") for name in NAMES}
        groups_in_train = pc.unique(columns["train"].filter(pc.not_equal(pc.fill_null(columns["train"], ""), "")))
        masks = {name: np.asarray(pc.is_in(columns[name], groups_in_train)) for name in NAMES[1:]}
        return _finding(GROUPED, self.examples, masks)

    def _exact(self, name: str, repeated: Numbers) -> int:
        """Return how many rows repeat the characters of an earlier one; they repeat its normalised form as well."""
        import pyarrow as pa
        import pyarrow.compute as pc

        members = np.isin(self.keys[name], self.keys[name][repeated])
        texts = self.examples.split(name).column("text").filter(pa.array(members))
        return len(texts) - int(pc.count_distinct(texts).as_py())

    def _also_in(self, name: str, other: str) -> Numbers:
        return np.isin(self.keys[name], self.keys[other])

    def _contradicting(self) -> dict[str, Numbers]:
        """Return the rows whose normalised text has several labels over all splits."""
        keys = np.concatenate([self.keys[name] for name in NAMES])
        labels = as_numbers(np.concatenate([self.examples.targets(name) for name in NAMES]))
        order = np.lexsort((labels, keys))
        same_key = keys[order][1:] == keys[order][:-1]
        changes = order[1:][same_key & (labels[order][1:] != labels[order][:-1])]
        rows = np.isin(keys, keys[changes])
        return dict(zip(NAMES, np.split(rows, np.cumsum([self.sizes[name] for name in NAMES])[:-1]), strict=True))


def _near_duplicates(examples: Examples, duplicates: _Duplicates) -> list[Finding]:
    """Return near-duplicates within and across splits; texts with the same normalised form count as one text here."""
    keys = np.concatenate([duplicates.keys[name] for name in NAMES])
    distinct, first, text_of_row = np.unique(keys, return_index=True, return_inverse=True)
    sizes = [duplicates.sizes[name] for name in NAMES]
    rows_of = _row_texts(examples, first)
    left, right = near_pairs(rows_of)
    split_of_row = np.repeat(np.arange(len(NAMES)), sizes)
    holds = np.zeros((len(distinct), len(NAMES)), bool)  # which splits hold a text
    holds[text_of_row, split_of_row] = True
    near = np.zeros((len(distinct), len(NAMES)), bool)  # which splits hold a text that is near to it
    np.logical_or.at(near, left, holds[right])
    np.logical_or.at(near, right, holds[left])
    per_row = dict(zip(NAMES, np.split(near[text_of_row], np.cumsum(sizes)[:-1]), strict=True))
    in_train = {name: per_row[name][:, 0] for name in NAMES[1:]}
    return [
        _finding("near-duplicate of a text in its split", examples, {n: per_row[n][:, i] for i, n in enumerate(NAMES)}),
        _finding("near-duplicate of a text in train", examples, in_train),
        _finding("near-duplicate of a text in validation", examples, {"test": per_row["test"][:, 1]}),
    ]


def _row_texts(examples: Examples, rows: Numbers) -> "pa.ChunkedArray":
    import pyarrow as pa

    texts = pa.chunked_array([chunk for name in NAMES for chunk in examples.split(name).column("text").chunks])
    return texts.take(pa.array(rows))


def _signs(examples: Examples) -> list[Finding]:
    """Return what in the texts looks like a fault of encoding or of copying."""
    import pyarrow.compute as pc

    columns = {name: examples.split(name).column("text") for name in NAMES}
    findings = []
    for name, pattern in SIGNS.items():
        masks = {split: np.asarray(pc.match_substring_regex(column, pattern)) for split, column in columns.items()}
        findings.append(_finding(name, examples, masks, pattern))
    masks = {split: _mojibake(column) for split, column in columns.items()}
    findings.append(_finding(MOJIBAKE, examples, masks))
    return findings


def _mojibake(texts: "pa.ChunkedArray") -> Numbers:
    """Return the rows that ftfy takes for text decoded with a wrong encoding; plain ASCII never is."""
    import pyarrow.compute as pc
    from ftfy.badness import is_bad

    is_broken = np.zeros(len(texts), bool)
    foreign = np.flatnonzero(np.asarray(pc.match_substring_regex(texts, r"[^\x00-\x7f]")))
    for row in foreign.tolist():
        is_broken[row] = is_bad(texts[row].as_py())
    return is_broken


def _finding(name: str, examples: Examples, masks: dict[str, Numbers], sign: str = "^") -> Finding:
    rows = {split: int(mask.sum()) for split, mask in masks.items()}
    return Finding(name=name, rows=rows, examples=_examples(examples, masks, sign))


def _examples(examples: Examples, masks: dict[str, Numbers], sign: str) -> list[str]:
    """Return the first rows of some masks in words; row numbers count from 1 within the split that is used."""
    places = [(split, int(row)) for split, mask in masks.items() for row in np.flatnonzero(mask)[:EXAMPLES]]
    return [
        f"{split} {row + 1}: {_shown(examples.split(split).column('text')[row].as_py(), sign)}"
        for split, row in places[:EXAMPLES]
    ]


def _shown(text: str, sign: str) -> str:
    """Return a text around a sign, with control characters written out, so that it is safe on any terminal."""
    match = re.search(sign, text)
    start = max(0, match.start() - SHOWN // 2) if match else 0
    end = start + SHOWN
    cut = ("..." if start else "") + text[start:end] + ("..." if len(text) > end else "")
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in cut)
