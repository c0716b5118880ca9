"""The predictions of a run for every row of a split, kept as Parquet: written in blocks, read column by column."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sentexp.config import TargetKind, kind_of
from sentexp.errors import UserError, first_line
from sentexp.system.atomic_write import replacing

if TYPE_CHECKING:
    import pyarrow as pa
    from pyarrow.parquet import ParquetFile

FOLDER = "predictions"
BLOCK = 1 << 16
"""Rows that are in memory at one time while they are written; a row group of the file."""
PROBABILITY, SLICE = "p.", "slice."
WORD = r"[\p{Han}\p{Hiragana}\p{Katakana}]|[\p{L}\p{N}_]+"
"""Chinese and Japanese are written without blanks: a word is a letter."""
LENGTHS = (8, 16, 32, 64, 128, 256)
"""Most words of a text in each bucket of `slice.length`; a last one holds what is longer."""
Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(kw_only=True, slots=True)
class Predictions:
    """The predictions of a run for a split.

    `ids` identify a row by its text wherever it is, shape (rows,); `targets` are class indices, or scores, shape
    (rows,); `probabilities` are float32, shape (rows, classes), in the order of `labels`; of scores these are the
    predicted ones, shape (rows, 1). Where a text has any number of labels, targets are 1 for those that it has, shape
    (rows, labels), and `thresholds` the probabilities from which each is predicted. `slices` are numbers of values and
    the values, by slice column.
    """

    ids: Array
    targets: Array
    probabilities: Array
    labels: list[str]
    slices: dict[str, tuple[Array, list[str]]]
    thresholds: list[float] | None = None


def file_name(split: str) -> str:
    """Return where the predictions of a split are, in the run's folder and among its artifacts."""
    return f"{FOLDER}/{split}.parquet"


def write_predictions(
    rows: "pa.Table",
    labels: Sequence[str],
    probabilities: Array,
    file: Path,
    extras: Mapping[str, Array] | None = None,
    thresholds: Sequence[float] | None = None,
) -> None:
    """Write one row for each example: id, text, true and predicted label, probabilities, slices.

    Of scores the labels are numbers, and there are no probabilities; of sets of labels they are lists.

    Args:
        rows: of the split, with `text`, `label` (class indices), `key` (a digest of the text) and `slice.<name>`.
        labels: class names, in the order of the probabilities.
        probabilities: shape (rows, classes).
        file: to write; it is whole or absent.
        extras: more columns by name, shape (rows,).
        thresholds: from which each label holds, where a text has any number of them.
    """
    import pyarrow.parquet as pq

    assert rows.num_rows > 0, "a split has rows"
    ids = _ids(np.asarray(rows.column("key")))
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as unfinished, ExitStack() as opened:
        writer = None
        for start in range(0, rows.num_rows, BLOCK):
            block = slice(start, start + BLOCK)
            more = {name: values[block] for name, values in (extras or {}).items()}
            table = _block(rows.slice(start, BLOCK), labels, ids[block], probabilities[block], more, thresholds)
            if writer is None:
                writer = opened.enter_context(
                    pq.ParquetWriter(unfinished, table.schema, compression="zstd", write_page_checksum=True)
                )
            writer.write_table(table)


def _block(
    rows: "pa.Table",
    labels: Sequence[str],
    ids: list[str],
    probabilities: Array,
    extras: Mapping[str, Array],
    thresholds: Sequence[float] | None,
) -> "pa.Table":
    """Return a block of rows as it is written."""
    import pyarrow as pa
    import pyarrow.compute as pc

    scores, kind = probabilities.astype(np.float32), kind_of(labels, thresholds)
    texts = rows.column("text").combine_chunks()
    table = {"id": pa.array(ids, pa.string()), "text": texts}
    table |= _labels(rows.column("label"), labels, scores, thresholds)
    if kind is not TargetKind.scores:
        table |= {f"{PROBABILITY}{label}": pa.array(scores[:, number]) for number, label in enumerate(labels)}
    table |= {name: pa.array(values) for name, values in extras.items()}
    table |= {name: rows.column(name).cast(pa.string()) for name in rows.column_names if name.startswith(SLICE)}
    words = pc.count_substring_regex(texts, WORD).to_numpy()
    buckets = pa.array(np.searchsorted(LENGTHS, words), pa.int32())
    lengths = pa.DictionaryArray.from_arrays(buckets, pa.array(length_buckets()))
    table.setdefault(f"{SLICE}length", lengths)  # unless the data have such a column
    return pa.table(table).replace_schema_metadata({"sentexp": json.dumps(_facts(labels, thresholds))})


def _facts(labels: Sequence[str], thresholds: Sequence[float] | None) -> dict[str, Any]:
    facts: dict[str, Any] = {"labels": list(labels)}
    return facts if thresholds is None else facts | {"thresholds": list(thresholds)}


def _labels(
    column: "pa.ChunkedArray", labels: Sequence[str], scores: Array, thresholds: Sequence[float] | None
) -> dict[str, Any]:
    """Return the true and the predicted labels of rows as columns."""
    import pyarrow as pa

    truth = column.combine_chunks()
    if thresholds is not None:
        true = np.asarray(truth.flatten()).reshape(-1, len(labels)) > 0
        return {"label": _listed(true, labels), "predicted": _listed(holds(scores, thresholds), labels)}
    if kind_of(labels) is TargetKind.scores:
        return {"label": truth, "predicted": pa.array(scores[:, 0])}
    names, answers = pa.array(list(labels), pa.string()), pa.array(scores.argmax(1), pa.int32())
    codes = {"label": truth.cast(pa.int32()), "predicted": answers}
    return {name: pa.DictionaryArray.from_arrays(each, names) for name, each in codes.items()}


def _listed(members: Array, labels: Sequence[str]) -> "pa.Array":
    """Return the labels of each row as a list.

    Args:
        members: whether a row has a label, shape (rows, labels).
        labels: their names.
    """
    import pyarrow as pa

    names = pa.array(list(labels), pa.string())
    offsets = np.concatenate([[0], members.sum(1).cumsum()]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), names.take(pa.array(np.nonzero(members)[1])))


def holds(probabilities: Array, thresholds: Sequence[float]) -> Array:
    """Return which labels each row has, shape (rows, labels).

    Args:
        probabilities: shape (rows, labels).
        thresholds: from which each label holds.
    """
    decided: Array = probabilities.astype(np.float64) >= np.asarray(thresholds, np.float64)
    return decided


def read_predictions(file: Path) -> Predictions:
    """Return the predictions of a run for a split; its texts stay in the file.

    Raises:
        UserError: the file is not one of these.
    """
    with _opened(file) as opened:
        facts = json.loads(opened.schema_arrow.metadata[b"sentexp"])
        labels, thresholds = facts["labels"], facts.get("thresholds")
        slices = [name for name in opened.schema_arrow.names if name.startswith(SLICE)]
        columns = [f"{PROBABILITY}{label}" for label in labels]
        said = ["predicted"] if kind_of(labels, thresholds) is TargetKind.scores else columns
        table = opened.read(["id", "label", *said, *slices])
    probabilities = [table.column(name).to_numpy() for name in said]
    return Predictions(
        ids=table.column("id").to_numpy(),
        targets=_targets(table.column("label"), labels, thresholds),
        probabilities=np.stack(probabilities, 1).astype(np.float32),
        labels=labels,
        slices={name.removeprefix(SLICE): _codes(table.column(name)) for name in slices},
        thresholds=thresholds,
    )


def _targets(column: "pa.ChunkedArray", labels: list[str], thresholds: object) -> Array:
    """Return class indices or scores, shape (rows,), or 1 for the labels that a row has, shape (rows, labels)."""
    kind = kind_of(labels, thresholds)
    if kind is TargetKind.scores:
        return np.asarray(column)
    order = {label: number for number, label in enumerate(labels)}
    if kind is TargetKind.label_sets:
        members = np.zeros((len(column), len(labels)), np.uint8)
        for row, names in enumerate(column.to_pylist()):
            members[row, [order[name] for name in names]] = 1
        return members
    codes, values = _codes(column)
    return np.array([order[value] for value in values], np.int64)[codes]


def read_rows(file: Path, numbers: Sequence[int]) -> "pa.Table":
    """Return all columns of some rows, by their numbers in the file and in that order.

    Raises:
        UserError: the file is damaged.
    """
    import pyarrow as pa

    wanted = np.asarray(numbers, np.int64)
    parts, start = [], 0
    order: list[Array] = []
    with _opened(file) as opened:
        schema = opened.schema_arrow
        for group in range(opened.num_row_groups):
            rows = opened.metadata.row_group(group).num_rows
            here = np.flatnonzero((wanted >= start) & (wanted < start + rows))
            if len(here):
                parts.append(opened.read_row_group(group).take(pa.array(wanted[here] - start)))
                order.append(here)
            start += rows
    if not parts:
        return schema.empty_table()
    return pa.concat_tables(parts).take(pa.array(np.argsort(np.concatenate(order))))


@contextmanager
def _opened(file: Path) -> Iterator["ParquetFile"]:
    """Open a file of predictions, whose checksums are compared as it is read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file, page_checksum_verification=True) as opened:
            yield opened
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{file} holds no predictions of sentexp ({first_line(error)}).") from error


def length_buckets() -> list[str]:
    """Return the names of the buckets of `slice.length`, from short to long."""
    lows = [1, *(most + 1 for most in LENGTHS)]
    return [*(f"{low}-{high} words" for low, high in zip(lows, LENGTHS, strict=False)), f"{lows[-1]} words or more"]


def _ids(keys: Array) -> list[str]:
    """Return 16 hexadecimal digits for each key, and a number behind them where a key comes again."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    place = np.arange(len(keys)) - np.repeat(starts, np.diff(np.r_[starts, len(keys)]))
    times = np.empty(len(keys), np.int64)
    times[order] = place
    return [f"{key:016x}" if time == 0 else f"{key:016x}-{time + 1}" for key, time in zip(keys, times, strict=True)]


def _codes(column: "pa.ChunkedArray") -> tuple[Array, list[str]]:
    """Return the number of each row's value, and the values; a row without one has the value ''."""
    import pyarrow as pa
    import pyarrow.compute as pc

    plain = pc.fill_null(column.cast(pa.string()), "")
    encoded = plain.combine_chunks().dictionary_encode()
    return encoded.indices.to_numpy(), encoded.dictionary.to_pylist()
