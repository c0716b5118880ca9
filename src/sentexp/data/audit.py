"""The audit of a data set: what is in its splits, and what is probably wrong with it. It changes nothing.

Duplicates are told apart by degree. `exact`: the same characters; `normalised`: the same but for case, width and white
space; `near`: the sets of their words are alike (see `near.py`).
"""

import math
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from sentexp.data.near_duplicates import near_pairs
from sentexp.data.splits import NAMES, Examples, Numbers
from sentexp.data.tokens import TokenRows

if TYPE_CHECKING:
    import pyarrow as pa

EXAMPLES = 3
SHOWN = 100
IMBALANCED = 3
SIGNS = {
    "replacement character U+FFFD": "\ufffd",
    "control character": r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]",
    "bidirectional control character": "[\u202a-\u202e\u2066-\u2069]",
    "piece of HTML": r"(?i)<br ?/?>|</?(p|div|span|a|b|i|em|strong|u|li|ul)( [^>]*)?>|&(amp|lt|gt|quot|nbsp|#[0-9]+);",
    "written-out escape such as \\u2019": r"\\u[0-9a-fA-F]{4}|\\x[0-9a-fA-F]{2}",
    "spreadsheet formula": r"^[=+@-][A-Za-z]+\(|^=|^[+@-][^|]*\|.*!",
}
"""What makes a text suspicious, as patterns that RE2 and Python read alike."""
GROUPED = "group also in train"
MOJIBAKE = "piece of mojibake (bytes decoded with a wrong encoding)"
NOTED_CUT = 0.01


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


@dataclass(kw_only=True, slots=True)
class DataAudit:
    """The audit of three splits.

    `rows`, `labels` count the rows that are used, `available` those before subsets; `cut` is the share of rows longer
    than `max_length` tokens, `tokens` the histogram of their lengths (counts between consecutive `token_edges`) and
    `token_quantiles` the 5th, 50th, 95th and 100th percentile.
    """

    data: str
    rows: dict[str, int]
    available: dict[str, int]
    labels: dict[str, dict[str, int]]
    imbalance: float
    max_length: int
    cut: dict[str, float]
    token_edges: list[int]
    tokens: dict[str, list[int]]
    token_quantiles: dict[str, list[int]]
    findings: list[Finding]
    warnings: list[str]
    left_out: dict[str, dict[str, int]]
    removed_duplicates: int

    def to_dict(self) -> dict[str, Any]:
        """Return the audit as JSON values."""
        return asdict(self)

    def finding(self, name: str) -> Finding:
        """Return a finding by its name."""
        return next(finding for finding in self.findings if finding.name == name)


def audit(name: str, examples: Examples, tokens: dict[str, TokenRows], near: bool) -> DataAudit:
    """Look at every row of the three splits.

    Args:
        name: of the data set.
        examples: the splits.
        tokens: their token ids.
        near: look for near-duplicates as well, which takes longer than all the rest.
    """
    counts = examples.counts()
    duplicates = _Duplicates(examples)
    findings = duplicates.findings()
    if near:
        findings += _near_duplicates(examples, duplicates)
    findings += _signs(examples)
    if any(examples.stripped.values()):
        findings.append(Finding(name="surrounding blanks, which were taken off", rows=dict(examples.stripped)))
    edges, histogram = _histogram(tokens)
    labelled = [count for count in counts["train"].values() if count]
    result = DataAudit(
        data=name,
        rows={split: examples.split(split).num_rows for split in NAMES},
        available=examples.available,
        labels=counts,
        imbalance=max(labelled) / min(labelled),
        max_length=tokens["train"].limit - tokens["train"].frame,
        cut={split: float(tokens[split].cut.mean()) for split in NAMES},
        token_edges=edges,
        tokens=histogram,
        token_quantiles={
            split: np.quantile(tokens[split].text_lengths, (0.05, 0.5, 0.95, 1)).astype(int).tolist() for split in NAMES
        },
        findings=findings,
        warnings=[],
        left_out={split: reasons for split, reasons in examples.left_out.items() if reasons},
        removed_duplicates=examples.removed,
    )
    result.warnings = _warnings(result, examples)
    return result


def duplicate_free(examples: Examples) -> Numbers:
    """Return a mask of the test rows whose normalised text stands in no other split and not above, shape (rows,)."""
    others = np.concatenate([examples.keys("train"), examples.keys("validation")])
    return _firsts(examples.keys("test")) & ~np.isin(examples.keys("test"), others)


class _Duplicates:
    """Exact and normalised duplicates, and labels that contradict each other."""

    def __init__(self, examples: Examples) -> None:
        self.examples = examples
        self.sizes = {name: examples.split(name).num_rows for name in NAMES}
        self.keys = {name: examples.keys(name) for name in NAMES}

    def findings(self) -> list[Finding]:
        """Return what is repeated within a split, what stands in another, and what has several labels."""
        within = {name: ~_firsts(self.keys[name]) for name in NAMES}
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
        """Return the rows whose group stands in train as well, where the source's own splits divide groups."""
        import pyarrow.compute as pc

        columns = {name: self.examples.split(name).column("group") for name in NAMES}
        known = pc.unique(columns["train"].filter(pc.not_equal(pc.fill_null(columns["train"], ""), "")))
        masks = {name: np.asarray(pc.is_in(columns[name], known)) for name in NAMES[1:]}
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
        labels = np.concatenate([self.examples.targets(name) for name in NAMES]).astype(np.uint64)
        order = np.lexsort((labels, keys))
        same_key = keys[order][1:] == keys[order][:-1]
        changes = order[1:][same_key & (labels[order][1:] != labels[order][:-1])]
        rows = np.isin(keys, keys[changes])
        return dict(zip(NAMES, np.split(rows, np.cumsum([self.sizes[name] for name in NAMES])[:-1]), strict=True))


def _finding(name: str, examples: Examples, masks: dict[str, Numbers], sign: str = "^") -> Finding:
    rows = {split: int(mask.sum()) for split, mask in masks.items()}
    return Finding(name=name, rows=rows, examples=_examples(examples, masks, sign))


def _firsts(keys: Numbers) -> Numbers:
    """Return a mask of the first row of each key."""
    first = np.zeros(len(keys), bool)
    first[np.unique(keys, return_index=True)[1]] = True
    return first


def _examples(examples: Examples, masks: dict[str, Numbers], sign: str) -> list[str]:
    """Return the first rows of some masks in words; row numbers count from 1 within the split that is used."""
    found = [(split, int(row)) for split, mask in masks.items() for row in np.flatnonzero(mask)[:EXAMPLES]]
    return [
        f"{split} {row + 1}: {_shown(examples.split(split).column('text')[row].as_py(), sign)}"
        for split, row in found[:EXAMPLES]
    ]


def _shown(text: str, sign: str) -> str:
    """Return a text around a sign, with control characters written out, so that it is safe on any terminal."""
    match = re.search(sign, text)
    start = max(0, match.start() - SHOWN // 2) if match else 0
    end = start + SHOWN
    cut = ("..." if start else "") + text[start:end] + ("..." if len(text) > end else "")
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in cut)


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

    found = np.zeros(len(texts), bool)
    foreign = np.flatnonzero(np.asarray(pc.match_substring_regex(texts, r"[^\x00-\x7f]")))
    for row in foreign.tolist():
        found[row] = is_bad(texts[row].as_py())
    return found


def _histogram(tokens: dict[str, TokenRows]) -> tuple[list[int], dict[str, list[int]]]:
    """Return 40 bins up to the 99th percentile and one for what is longer, and the rows of each split in them."""
    longest = max(int(tokens[name].text_lengths.max()) for name in NAMES)
    usual = max(float(np.quantile(tokens[name].text_lengths, 0.99)) for name in NAMES)
    step = max(1, math.ceil(usual / 40))
    edges = np.append(np.arange(0, usual + step, step, dtype=int), longest + step)
    return edges.tolist(), {name: np.histogram(tokens[name].text_lengths, edges)[0].tolist() for name in NAMES}


def _warnings(found: DataAudit, examples: Examples) -> list[str]:
    """Return what a person should know before spending training time, as sentences."""
    return [*examples.notes, *_label_warnings(found), *_duplicate_warnings(found), *_text_warnings(found)]


def _label_warnings(found: DataAudit) -> Iterator[str]:
    for split, reasons in found.left_out.items():
        told = ", ".join(f"{count:,} ({reason})" for reason, count in reasons.items())
        yield f"Rows left out of the source's {split} split: {told}."
    for split, counts in found.labels.items():
        if missing := [label for label, count in counts.items() if count == 0]:
            why = "it cannot be learnt" if split == "train" else "no metric of it can be measured there"
            yield f"No row of the {split} split has the label {', '.join(missing)}: {why}."
    if found.imbalance > IMBALANCED:
        yield (
            f"The largest class of the training split has {found.imbalance:.1f} times the rows of the smallest: "
            "accuracy hides the small one; read f1_macro, or try data.class_weights=balanced."
        )


def _duplicate_warnings(found: DataAudit) -> Iterator[str]:
    if found.removed_duplicates:
        yield (
            f"data.deduplicate removed {found.removed_duplicates:,} training rows whose text also stands in validation "
            "or test."
        )
    if leaked := found.finding("text also in train").rows["test"]:
        yield (
            f"{leaked:,} test texts also stand in the training split: the test metrics are given without them as well "
            "(duplicate_free), and data.deduplicate=true removes them from training."
        )
    grouped = [finding for finding in found.findings if finding.name == GROUPED]
    if grouped and grouped[0].found:
        told = ", ".join(f"{rows:,} {split}" for split, rows in grouped[0].rows.items())
        yield f"Rows whose group also stands in the training split, which the source's own splits divide: {told}."
    if contradicting := sum(found.finding("text that has another label elsewhere").rows.values()):
        yield f"{contradicting:,} rows have a text that stands elsewhere with another label."


def _text_warnings(found: DataAudit) -> Iterator[str]:
    cut = {split: share for split, share in found.cut.items() if share > NOTED_CUT}
    if cut:
        told = ", ".join(f"{share:.1%} of {split}" for split, share in cut.items())
        longest = max(values[-1] for values in found.token_quantiles.values())
        yield (
            f"Texts are cut at {found.max_length:,} tokens (data.max_length, or what the prompt leaves of the model's "
            f"positions): {told}; the longest has {longest:,}."
        )
    for finding in found.findings:
        if finding.name in (*SIGNS, MOJIBAKE) and (total := sum(finding.rows.values())):
            yield f"{total:,} {'text holds' if total == 1 else 'texts hold'} a {finding.name}."
