"""Splits and subsets by hash: stratified, nested, the same on every machine; duplicates and groups stay together."""

import hashlib
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from sentexp.config import AGREEMENT_LEVELS, DataConfig, PhraseBank
from sentexp.data.arrow_spill import collect
from sentexp.data.sources import SLICE, Source, load_source
from sentexp.errors import require

if TYPE_CHECKING:
    import pyarrow as pa

NAMES = ("train", "validation", "test")
MOST_SLICES = 100
KEY = "key"
BLOCK = 1 << 14  # rows that are Python strings at one time
Numbers = np.ndarray[Any, np.dtype[Any]]


@dataclass(kw_only=True, slots=True)
class Examples:
    """The three splits as tables (see `Source`), and what they were drawn from.

    `available` counts rows before subsets; `removed` the training rows that `data.deduplicate` took away.
    """

    train: "pa.Table"
    validation: "pa.Table"
    test: "pa.Table"
    labels: list[str]
    available: dict[str, int]
    removed: int = 0
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
        """Return the class indices of a split, shape (rows,)."""
        return np.asarray(self.split(name).column("label"))

    def counts(self) -> dict[str, dict[str, int]]:
        """Return the number of rows per class, for each split."""
        found = {name: np.bincount(self.targets(name), minlength=len(self.labels)) for name in NAMES}
        return {name: dict(zip(self.labels, map(int, counts), strict=True)) for name, counts in found.items()}

    def slices(self, name: str) -> dict[str, dict[str, Numbers]]:
        """Return for each slice column the rows of each of its values in a split, as masks of shape (rows,)."""
        table, masks = self.split(name), {}
        for column in table.column_names:
            if column.startswith(SLICE):
                values, numbers = _numbered(table.column(column))
                masks[column.removeprefix(SLICE)] = {value: numbers == n for n, value in enumerate(values)}
        return masks

    def digest(self) -> str:
        """Return the SHA-256 over split names, texts and labels, in order."""
        return hashlib.sha256("".join(split_digest(self.split(name)) for name in NAMES).encode()).hexdigest()


def load_examples(data: DataConfig, whole: bool = False, needed: Sequence[str] = NAMES) -> Examples:
    """Load the source and apply the split laws: carve what the source lacks, then take the subsets.

    Args:
        data: the source, its splits and subsets.
        whole: leave the subsets out.
        needed: splits that must have rows.

    Raises:
        UserError: a fault in the source, a needed split without rows, or a train split with one class.
    """
    source = load_source(data)
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
    classes = {source.labels[label] for label in np.unique(splits["train"].column("label").to_numpy())}
    require(
        len(classes) > 1 or "train" not in needed,
        f"data={data.name} has one class in its train split, {', '.join(classes)}: a classifier needs at least two.",
    )
    return Examples(
        **{name: splits[name] for name in NAMES},
        labels=source.labels,
        available=available,
        removed=removed,
        left_out=source.left_out,
        stripped=source.stripped,
        notes=source.notes,
    )


def _why(name: str, source: Source) -> str:
    """Return why a split is probably empty, and what to do."""
    left = sum(count for reasons in source.left_out.values() for count in reasons.values())
    kept = sum(rows.num_rows for rows in source.splits.values())
    told = f"{left:,} rows were left out, which leaves {kept:,}; " if left else f"there are {kept:,} rows; "
    if "group" in source.splits["train"].column_names:
        told += "rows of a group (data.group), and of groups that share a text, stay together; "
    if name == "train":
        return f"{told}give it more rows."
    return f"{told}give it more rows, or change data.{name}_fraction or data.splits.{name}."


def _require_few_slices(test: "pa.Table", data: DataConfig) -> None:
    import pyarrow.compute as pc

    for name in data.slice_names():
        values = len(pc.unique(test.column(SLICE + name)))
        require(
            values <= MOST_SLICES,
            f"data.slices: the column {name} of data={data.name} has {values:,} different values in the test split, "
            f"and each would get metrics of its own: name a column with at most {MOST_SLICES}.",
        )


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


def split_digest(rows: "pa.Table") -> str:
    """Return the SHA-256 over the texts and labels of a split, in order."""
    digest = hashlib.sha256()
    for batch in rows.select(["text", "label"]).to_batches(max_chunksize=BLOCK):
        labels, texts = batch.column("label").to_pylist(), batch.column("text").to_pylist()
        digest.update(
            "".join([f"{label}\0{len(text)}\0{text}\0" for label, text in zip(labels, texts, strict=True)]).encode()
        )
    return digest.hexdigest()


def carve(train: "pa.Table", fractions: dict[str, float], seed: int = 0) -> dict[str, "pa.Table"]:
    """Divide `train` by hash, stratified by class (and within it by slice); equal texts and groups stay together.

    Each class gives up `fraction` of its rows to within one row, but for what texts that stand several times, and
    groups, move at once. A set of rows is divided alike in any order and on any machine.

    Args:
        train: the rows.
        fractions: by name, the shares that train gives up.
        seed: another seed is another split.
    """
    keys = text_keys(train, seed)
    units = _units(keys, train)
    # The hash of a unit is its smallest, its class that of most of its rows: neither depends on the order of the rows.
    hashes = np.full(int(units.max(initial=-1)) + 1, np.iinfo(np.uint64).max, np.uint64)
    np.minimum.at(hashes, units, keys)
    strata = _strata(train)
    unit_strata = [_most_frequent(level, units, len(hashes)) for level in strata]
    sizes = np.bincount(units, minlength=len(hashes))
    place = places(hashes, unit_strata, sizes)[units]
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
    hashes = _hashes(rows.column("text"), seed)
    if "group" in rows.column_names:
        hashes = np.lexsort((hashes, _hashes(rows.column("group"), seed))).argsort()
    strata = _strata(rows)
    place = places(hashes, strata, np.ones(total, int))
    return np.sort(np.lexsort((strata[0], place))[:wanted])


def places(hashes: Numbers, strata: Sequence[Numbers], sizes: Numbers) -> Numbers:
    """Return where each unit stands in its stratum, in (0, 1): the share of rows before its middle.

    With several levels of strata, units are first ordered within the finest (all levels together), and these orders
    are then merged evenly, so that each level has its natural proportions in every prefix.

    Args:
        hashes: of the units, uint64, shape (units,); the order within a stratum.
        strata: from coarse to fine, a stratum number for each unit.
        sizes: rows of each unit.
    """
    order: Numbers = hashes
    place = np.zeros(len(hashes))
    for depth in range(len(strata), 0, -1):
        stratum = np.unique(np.stack(strata[:depth]), axis=1, return_inverse=True)[1].reshape(-1)
        rank = np.lexsort((hashes, order, stratum))
        grouped, rows = stratum[rank], sizes[rank]
        before = np.cumsum(rows) - rows
        first = np.flatnonzero(np.diff(grouped, prepend=-1))
        starts = before[first][np.cumsum(np.diff(grouped, prepend=-1) != 0) - 1]
        totals = np.bincount(grouped, weights=rows)[grouped]
        place[rank] = (before - starts + rows / 2) / totals
        order = place.copy()
    return place


def _strata(rows: "pa.Table") -> list[Numbers]:
    """Return the levels of stratification: the class, then the slices."""
    slices = [name for name in rows.column_names if name.startswith(SLICE)]
    return [np.asarray(rows.column("label")), *(_numbered(rows.column(name))[1] for name in slices)]


def _numbered(column: "pa.ChunkedArray") -> tuple[list[str], Numbers]:
    """Return the different values in their order, a null as an empty one, and the number of each row's value."""
    import pyarrow as pa
    import pyarrow.compute as pc

    filled = pc.fill_null(column.cast(pa.large_string()), "")
    values = sorted(pc.unique(filled).to_pylist())
    return values, pc.index_in(filled, pa.array(values, pa.large_string())).to_numpy().astype(np.int64)


def _hashes(column: "pa.ChunkedArray", seed: int) -> Numbers:
    hashes = np.empty(len(column), np.uint64)
    for start in range(0, len(column), BLOCK):
        values = column.slice(start, BLOCK).to_pylist()
        hashes[start : start + len(values)] = [hash64(value or "", f"subset{seed}") for value in values]
    return hashes


def _units(keys: Numbers, rows: "pa.Table") -> Numbers:
    """Return the number of the unit of each row: rows with the same text or the same group are of one unit."""
    texts: Numbers = np.unique(keys, return_inverse=True)[1]
    if "group" not in rows.column_names:
        return texts
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    values, groups = _numbered(rows.column("group"))
    nodes = int(texts.max(initial=-1)) + 1
    grouped = np.asarray(values, dtype=object)[groups] != ""  # a row without a group is on its own
    ends = (texts[grouped], nodes + groups[grouped])
    size = nodes + len(values)
    graph = coo_array((np.ones(len(ends[0])), ends), shape=(size, size))
    components: Numbers = connected_components(graph, directed=False)[1]
    return np.unique(components[texts], return_inverse=True)[1]


def _most_frequent(values: Numbers, units: Numbers, count: int) -> Numbers:
    """Return the most frequent value of each unit, the smallest of several."""
    width = int(values.max(initial=0)) + 1
    pairs, frequency = np.unique(units * width + values, return_counts=True)
    rank = np.lexsort((pairs, -frequency, pairs // width))
    first = np.flatnonzero(np.diff(pairs[rank] // width, prepend=-1))
    chosen = np.zeros(count, int)
    chosen[pairs[rank][first] // width] = pairs[rank][first] % width
    return chosen


def _of_agreement(rows: "pa.Table", level: str) -> "pa.Table":
    """Return the sentences on which the annotators agree at least as much as `level` says."""
    import pyarrow as pa
    import pyarrow.compute as pc

    levels = pa.array(AGREEMENT_LEVELS[AGREEMENT_LEVELS.index(level) :], pa.large_string())
    return rows.filter(pc.is_in(rows.column(SLICE + "agreement"), levels))


def _without_evaluated(splits: dict[str, "pa.Table"]) -> "pa.Table":
    """Return the training rows whose normalised text stands neither in validation nor in test."""
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

    return collect(pieces())
