"""Splits and subsets by hash: stratified, nested, the same on every machine; duplicates and groups stay together."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from sentexp.config import AGREEMENT_LEVELS, DataConfig, PhraseBank, TargetKind
from sentexp.data.arrow_spill import concat_or_spill
from sentexp.data.scores import score_counts
from sentexp.data.sources import SLICE, Source, load_source
from sentexp.data.stratification import group_units, most_frequent, numbered, strata_of, stratified_position
from sentexp.data.targets import kind_of_rows, target_array
from sentexp.data.text_hash import KEY, Numbers, column_hashes, split_digest, text_keys
from sentexp.errors import require

if TYPE_CHECKING:
    import pyarrow as pa

NAMES = ("train", "validation", "test")
MOST_SLICES = 100


@dataclass(kw_only=True, slots=True)
class Examples:
    """The three splits as tables (see `Source`), and what they were drawn from.

    `available` counts rows before subsets; `removed` the training rows that `data.deduplicate` took away; `carved`
    names the splits that the source lacks, which are parts of its train split.
    """

    train: "pa.Table"
    validation: "pa.Table"
    test: "pa.Table"
    labels: list[str]
    available: dict[str, int]
    removed: int = 0
    carved: list[str] = field(default_factory=list)
    left_out: dict[str, dict[str, int]] = field(default_factory=dict)
    stripped: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def keys(self, name: str) -> Numbers:
        """Return the keys of the texts of a split (see `text_keys`), shape (rows,)."""
        return text_keys(self.split(name))

    def split(self, name: str) -> "pa.Table":
        """Return a split by name."""
        return getattr(self, name)

    def targets(self, name: str) -> Numbers:
        """Return class indices or scores, shape (rows,), or for each row which labels it has, shape (rows, labels)."""
        return target_array(self.split(name).column("label"))

    @property
    def kind(self) -> TargetKind:
        """What the labels are."""
        return kind_of_rows(self.train)

    def scale(self) -> tuple[float, float] | None:
        """Return mean and standard deviation of the training scores; None of classes."""
        if self.kind is not TargetKind.scores:
            return None
        scores = self.targets("train")
        return float(scores.mean()), float(scores.std())

    def counts(self) -> dict[str, dict[str, int]]:
        """Return the number of rows per class or label, or per score or range of scores, for each split."""
        targets = {name: self.targets(name) for name in NAMES}
        if self.kind is TargetKind.scores:
            return score_counts(targets)
        is_set = self.kind is TargetKind.label_sets
        counts_of = {
            name: each.sum(0, dtype=np.int64) if is_set else np.bincount(each, minlength=len(self.labels))
            for name, each in targets.items()
        }
        return {name: dict(zip(self.labels, map(int, counts), strict=True)) for name, counts in counts_of.items()}

    def slices(self, name: str) -> dict[str, dict[str, Numbers]]:
        """Return for each slice column the rows of each of its values in a split, as masks of shape (rows,)."""
        table, masks = self.split(name), {}
        for column in table.column_names:
            if column.startswith(SLICE):
                values, numbers = numbered(table.column(column))
                masks[column.removeprefix(SLICE)] = {value: numbers == n for n, value in enumerate(values)}
        return masks

    def digest(self) -> str:
        """Return the SHA-256 over split names, texts and labels, in order."""
        return hashlib.sha256("".join(split_digest(self.split(name)) for name in NAMES).encode()).hexdigest()


def load_examples(
    data: DataConfig, whole: bool = False, needed: Sequence[str] = NAMES, kind: TargetKind = TargetKind.classes
) -> Examples:
    """Load the source and apply the split laws: carve what the source lacks, then take the subsets.

    Args:
        data: the source, its splits and subsets.
        whole: leave the subsets out.
        needed: splits that must have rows.
        kind: what the labels are.

    Raises:
        UserError: a fault in the source, a needed split without rows, or a train split with one class.
    """
    source = load_source(data, kind)
    splits = {name: rows.append_column(KEY, [text_keys(rows)]) for name, rows in source.splits.items()}
    if missing := [name for name in NAMES if name not in splits]:
        splits |= carve(splits["train"], {name: getattr(data, f"{name}_fraction") for name in missing}, data.split_seed)
    if isinstance(data, PhraseBank):  # carved as a whole, so that a sentence is in the same split at every level
        splits = {name: _of_agreement(rows, data.agreement) for name, rows in splits.items()}
    for name in needed:
        require(splits[name].num_rows > 0, f"data={data.name} has no rows in the {name} split: {_why(name, source)}")
    _require_few_slices(splits["test"], data)
    available = {name: splits[name].num_rows for name in NAMES}
    if data.deduplicate:
        splits["train"] = _without_evaluated(splits)
    removed = available["train"] - splits["train"].num_rows
    for name, size in (("train", data.train_subset), ("validation", data.validation_subset)):
        if size is not None and not whole:
            splits[name] = _take(splits[name], subset(splits[name], size, data.subset_seed, f"data.{name}_subset"))
    if "train" in needed:
        _require_several(splits["train"], source.labels, data)
    return Examples(
        **{name: splits[name] for name in NAMES},
        labels=source.labels,
        available=available,
        removed=removed,
        carved=missing,
        left_out=source.left_out,
        stripped=source.stripped,
        notes=source.notes,
    )


def _require_several(train: "pa.Table", labels: list[str], data: DataConfig) -> None:
    kind, targets = kind_of_rows(train), target_array(train.column("label"))
    values = np.unique(targets)
    if kind is TargetKind.label_sets:
        require(bool(targets.any()), f"data={data.name} has no label in its train split: there is nothing to learn.")
        return
    if kind is TargetKind.scores:
        require(len(values) > 1, f"data={data.name} has one score in its train split: there is nothing to learn.")
        return
    classes = {labels[label] for label in values}
    require(
        len(classes) > 1,
        f"data={data.name} has one class in its train split, {', '.join(classes)}: a classifier needs at least two.",
    )


def _why(name: str, source: Source) -> str:
    """Return why a split is probably empty, and what to do."""
    left = sum(count for reasons in source.left_out.values() for count in reasons.values())
    kept = sum(rows.num_rows for rows in source.splits.values())
    reason = f"{left:,} rows were left out, which leaves {kept:,}; " if left else f"there are {kept:,} rows; "
    if "group" in source.splits["train"].column_names:
        reason += "rows of a group (data.group), and of groups that share a text, stay together; "
    if name == "train":
        return f"{reason}give it more rows."
    return f"{reason}give it more rows, or change data.{name}_fraction or data.splits.{name}."


def _require_few_slices(test: "pa.Table", data: DataConfig) -> None:
    import pyarrow.compute as pc

    for name in data.slice_names():
        values = len(pc.unique(test.column(SLICE + name)))
        require(
            values <= MOST_SLICES,
            f"data.slices: the column {name} of data={data.name} has {values:,} different values in the test split, "
            f"and each would get metrics of its own: name a column with at most {MOST_SLICES}.",
        )


def carve(train: "pa.Table", fractions: dict[str, float], seed: int = 0) -> dict[str, "pa.Table"]:
    """Divide `train` by hash, stratified by class (and within it by slice); equal texts and groups stay together.

    Each class gives up `fraction` of its rows to within one row, but for what texts that occur several times, and
    groups, move at once. A set of rows is divided alike in any order and on any machine.

    Args:
        train: the rows.
        fractions: by name, the shares that train gives up.
        seed: another seed is another split.
    """
    keys = text_keys(train, seed)
    units = group_units(keys, train)
    # The hash of a unit is its smallest, its class that of most of its rows: neither depends on the order of the rows.
    hashes = np.full(int(units.max(initial=-1)) + 1, np.iinfo(np.uint64).max, np.uint64)
    np.minimum.at(hashes, units, keys)
    strata = strata_of(train)
    unit_strata = [most_frequent(level, units, len(hashes)) for level in strata]
    sizes = np.bincount(units, minlength=len(hashes))
    place = stratified_position(hashes, unit_strata, sizes)[units]
    parts, low = {}, 0.0
    for name, fraction in fractions.items():
        parts[name] = (place >= low) & (place < low + fraction)
        low += fraction
    parts["train"] = place >= low
    return {name: _take(train, np.flatnonzero(rows)) for name, rows in parts.items()}


def subset(rows: "pa.Table", size: float, seed: int, key: str) -> Numbers:
    """Return the rows of a stratified subset, in order; a smaller one is contained in a larger one of the same seed.

    Every prefix holds the classes in their natural proportions to within one row; where there are groups, they come
    one after the other.

    Args:
        rows: a split.
        size: a number of rows, or a fraction below 1.
        seed: another seed is another subset.
        key: the configuration key, for the message when there are too few rows.
    """
    total = rows.num_rows
    wanted = round(size * total) if size < 1 else int(size)
    require(
        1 <= wanted <= total,
        f"{key}={size:g} asks for {wanted} of {total} rows: it must be between 1 and {total}, a fraction below 1, or "
        "null for all rows.",
    )
    hashes = column_hashes(rows.column("text"), seed)
    if "group" in rows.column_names:
        hashes = np.lexsort((hashes, column_hashes(rows.column("group"), seed))).argsort()
    strata = strata_of(rows)
    place = stratified_position(hashes, strata, np.ones(total, int))
    return np.sort(np.lexsort((strata[0], place))[:wanted])


def _of_agreement(rows: "pa.Table", level: str) -> "pa.Table":
    """Return the sentences on which the annotators agree at least as much as `level` says."""
    import pyarrow as pa
    import pyarrow.compute as pc

    levels = pa.array(AGREEMENT_LEVELS[AGREEMENT_LEVELS.index(level) :], pa.large_string())
    return rows.filter(pc.is_in(rows.column(SLICE + "agreement"), levels))


def _without_evaluated(splits: dict[str, "pa.Table"]) -> "pa.Table":
    """Return the training rows whose normalised text is neither in validation nor in test."""
    evaluated = np.concatenate([text_keys(splits[name]) for name in NAMES[1:]])
    return _take(splits["train"], np.flatnonzero(~np.isin(text_keys(splits["train"]), evaluated)))


def _take(rows: "pa.Table", numbers: Numbers) -> "pa.Table":
    """Return some rows, whose numbers are in order, batch after batch."""
    import pyarrow as pa

    def pieces() -> Iterator[pa.Table]:
        start = 0
        yield rows.slice(0, 0)
        for batch in rows.to_batches():
            low, high = np.searchsorted(numbers, (start, start + batch.num_rows))
            yield pa.Table.from_batches([batch.take(pa.array(numbers[low:high] - start, pa.int64()))])
            start += batch.num_rows

    return concat_or_spill(pieces())


def duplicate_free(examples: Examples) -> Numbers:
    """Return a mask of the test rows whose normalised text is in no other split and not above, shape (rows,)."""
    others = np.concatenate([examples.keys("train"), examples.keys("validation")])
    return firsts(examples.keys("test")) & ~np.isin(examples.keys("test"), others)


def firsts(keys: Numbers) -> Numbers:
    """Return a mask of the first row of each key."""
    first = np.zeros(len(keys), bool)
    first[np.unique(keys, return_index=True)[1]] = True
    return first
