"""The audit of a data set: what is in its splits, and what is probably wrong with it. It changes nothing.

Duplicates have degrees. `exact`: the same characters; `normalised`: the same but for case, width and white
space; `near`: the sets of their words are alike (see `near_duplicates`).
"""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from sentexp.config import TargetKind
from sentexp.data.findings import GROUPED, MOJIBAKE, SIGNS, Finding, find_faults
from sentexp.data.splits import NAMES, Examples
from sentexp.data.tokens import TokenRows

IMBALANCED = 3
NOTED_CUT = 0.01


@dataclass(kw_only=True, slots=True)
class DataAudit:
    """The audit of three splits.

    `rows`, `labels` count the rows that are used, `available` those before subsets; `cut` is the share of rows longer
    than `max_length` tokens, `tokens` the histogram of their lengths (counts between consecutive `token_edges`) and
    `token_quantiles` the 5th, 50th, 95th and 100th percentile. Where a text has any number of labels, `unlabelled`
    counts the rows without any, and `together` the training rows that have two labels both.
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
    unlabelled: dict[str, int] = field(default_factory=dict)
    together: dict[str, dict[str, int]] = field(default_factory=dict)

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
        findings=find_faults(examples, near),
        warnings=[],
        left_out={split: reasons for split, reasons in examples.left_out.items() if reasons},
        removed_duplicates=examples.removed,
        **(_label_sets(examples) if examples.kind is TargetKind.label_sets else {}),
    )
    result.warnings = _warnings(result, examples)
    return result


def _label_sets(examples: Examples) -> dict[str, Any]:
    """Return what there is to count of sets of labels."""
    members = examples.targets("train").astype(np.int64)
    pairs = members.T @ members
    names = examples.labels
    return {
        "unlabelled": {split: int((~examples.targets(split).any(1)).sum()) for split in NAMES},
        "together": {
            name: dict(zip(names, map(int, row), strict=True)) for name, row in zip(names, pairs, strict=True)
        },
    }


def _histogram(tokens: dict[str, TokenRows]) -> tuple[list[int], dict[str, list[int]]]:
    """Return 40 bins up to the 99th percentile and one for what is longer, and the rows of each split in them."""
    longest = max(int(tokens[name].text_lengths.max()) for name in NAMES)
    usual = max(float(np.quantile(tokens[name].text_lengths, 0.99)) for name in NAMES)
    step = max(1, math.ceil(usual / 40))
    edges = np.append(np.arange(0, usual + step, step, dtype=int), longest + step)
    return edges.tolist(), {name: np.histogram(tokens[name].text_lengths, edges)[0].tolist() for name in NAMES}


def _warnings(result: DataAudit, examples: Examples) -> list[str]:
    """Return what a person should know before spending training time, as sentences."""
    return [
        *examples.notes,
        *_label_warnings(result, examples.kind),
        *_duplicate_warnings(result),
        *_text_warnings(result),
    ]


def _label_warnings(result: DataAudit, kind: TargetKind) -> Iterator[str]:
    for split, reasons in result.left_out.items():
        reasons_text = ", ".join(f"{count:,} ({reason})" for reason, count in reasons.items())
        yield f"Rows left out of the source's {split} split: {reasons_text}."
    if kind is TargetKind.scores:
        return
    for split, counts in result.labels.items():
        if missing := [label for label, count in counts.items() if count == 0]:
            why = "it cannot be learnt" if split == "train" else "no metric of it can be measured there"
            yield f"No row of the {split} split has the label {', '.join(missing)}: {why}."
    if kind is TargetKind.label_sets and sum(result.labels["train"].values()) == _labelled_rows(result):
        yield (
            "No training row has more than one label: classes of which each text has one are learned by "
            "task.loss=cross_entropy."
        )
    if any(result.unlabelled.values()):
        unlabelled = ", ".join(f"{count:,} of {split}" for split, count in result.unlabelled.items())
        yield f"Rows without any label, which teach what has none: {unlabelled}."
    if result.imbalance > IMBALANCED and kind is TargetKind.label_sets:
        yield (
            f"The most frequent label of the training split has {result.imbalance:.1f} times the rows of the rarest: "
            "f1_micro hides the rare ones; read f1_macro, and the table of the labels."
        )
    elif result.imbalance > IMBALANCED:
        yield (
            f"The largest class of the training split has {result.imbalance:.1f} times the rows of the smallest: "
            "accuracy hides the small one; read f1_macro, or try data.class_weights=balanced."
        )


def _labelled_rows(result: DataAudit) -> int:
    return result.rows["train"] - result.unlabelled["train"]


def _duplicate_warnings(result: DataAudit) -> Iterator[str]:
    if result.removed_duplicates:
        yield (
            f"data.deduplicate removed {result.removed_duplicates:,} training rows whose text is also in "
            "validation or test."
        )
    if leaked := result.finding("text also in train").rows["test"]:
        yield (
            f"{leaked:,} test texts are also in the training split: the test metrics are given without them as well "
            "(duplicate_free), and data.deduplicate=true removes them from training."
        )
    grouped = [finding for finding in result.findings if finding.name == GROUPED]
    if grouped and grouped[0].found:
        counts = ", ".join(f"{rows:,} {split}" for split, rows in grouped[0].rows.items())
        yield f"Rows whose group is also in the training split, which the source's own splits divide: {counts}."
    if contradicting := sum(result.finding("text that has another label elsewhere").rows.values()):
        yield f"{contradicting:,} rows have a text that is elsewhere with another label."


def _text_warnings(result: DataAudit) -> Iterator[str]:
    cut = {split: share for split, share in result.cut.items() if share > NOTED_CUT}
    if cut:
        shares = ", ".join(f"{share:.1%} of {split}" for split, share in cut.items())
        longest = max(values[-1] for values in result.token_quantiles.values())
        yield (
            f"Texts are cut at {result.max_length:,} tokens (data.max_length, or what the prompt leaves of the model's "
            f"positions): {shares}; the longest has {longest:,}."
        )
    for finding in result.findings:
        if finding.name in (*SIGNS, MOJIBAKE) and (total := sum(finding.rows.values())):
            yield f"{total:,} {'text holds' if total == 1 else 'texts hold'} a {finding.name}."
