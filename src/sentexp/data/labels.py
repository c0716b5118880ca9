"""Labels and texts of raw rows: the classes, which value is which, and which rows cannot be used."""

import re
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from sentexp.config import BadRows, DataConfig
from sentexp.data.arrow_spill import concat_or_spill
from sentexp.data.label_spellings import proposal
from sentexp.errors import UserError, require

if TYPE_CHECKING:
    import pyarrow as pa

MOST_CLASSES = 100
FEWEST_RATINGS = 3
LEFT_OUT, UNKNOWN = -1, -2


def different_words(tables: dict[str, "pa.Table"]) -> set[str]:
    """Return the different labels of all splits."""
    return {word_of(value) for value in different_values(tables)}


def different_values(tables: dict[str, "pa.Table"]) -> set[str | None]:
    """Return the different values of the label columns of all splits."""
    import pyarrow.compute as pc

    return {value for table in tables.values() for value in pc.unique(table.column("label")).to_pylist()}


def classes_of(data: DataConfig, values: Callable[[], set[str]]) -> tuple[list[str], list[str]]:
    """Return the classes in the order of their indices, as configured or else as values, and notes on them.

    Values that differ only in upper and lower case are one class, as they are for configured ones.

    Args:
        data: what is configured.
        values: returns the labels that are there, which is only asked for where none are configured.
    """
    named = data.class_names()
    if named is not None:
        return named, _ratings(data, named)
    header = getattr(data, "label", None)  # a header that is repeated below is not a class, and its row is refused
    forms: dict[str, list[str]] = {}
    for word in sorted(values() - ({"", header} if isinstance(header, str) else {""}), key=_order):
        forms.setdefault(word.casefold(), []).append(word)
    words = [alike[0] for alike in forms.values()]
    require(
        len(words) <= MOST_CLASSES,
        f"data={data.name} has {len(words):,} different labels ({', '.join(words[:3])}, ...): more than {MOST_CLASSES} "
        "classes are probably no classes; check data.label, map them with data.labels={value: class, ...}"
        f"{_otherwise(words)}.",
    )
    require(
        len(words) > 1,
        f"data={data.name} has one label only, {', '.join(words) or 'the empty one'}: a classifier needs at least two "
        "classes.",
    )
    merged = [alike for alike in forms.values() if len(alike) > 1]
    notes = [f"The labels {', '.join(alike)} differ only in case and are one class." for alike in merged]
    require(
        not data.ordered or all(map(_is_number, words)),
        f"data.ordered=true needs the order of the classes, and {', '.join(words[:5])} are words: name them from the "
        "lowest to the highest with data.labels=[...].",
    )
    return words, notes + _lists(words) + proposal(words) + _ratings(data, words)


def _otherwise(words: list[str]) -> str:
    """Return what else labels are than classes, as the end of a sentence."""
    if _lists(words):
        return ", or learn lists of labels with task.loss=multi_label"
    return ", or learn them as scores with task.loss=regression" if all(map(_is_number, words)) else ""


def _lists(words: list[str]) -> list[str]:
    """Return a note on classes that are lists."""
    first = next((word for word in words if word.startswith("[")), None)
    if first is None:
        return []
    return [f"Labels such as {first[:40]} are lists: task.loss=multi_label learns several labels a text."]


def _ratings(data: DataConfig, words: list[str]) -> list[str]:
    """Return a note on classes that are probably ratings: whole numbers in a row."""
    if data.ordered or len(words) < FEWEST_RATINGS or not all(re.fullmatch(r"-?\d{1,3}", word) for word in words):
        return []
    numbers = [int(word) for word in words]
    if numbers != list(range(numbers[0], numbers[0] + len(numbers))):
        return []
    return [
        f"The labels are the numbers from {words[0]} to {words[-1]}: if they are ratings, data.ordered=true also "
        "measures how far answers are from the truth (mae, qwk, within_one)."
    ]


class LabelEncoder:
    """Turns raw rows into texts and class indices.

    Args:
        data: the mapping of labels, and what to do with rows that cannot be used.
        classes: class names in the order of their indices.
    """

    dtype: Any = np.int32

    def __init__(self, data: DataConfig, classes: list[str]) -> None:
        self.data = data
        self.classes = classes
        self._indices = {name.casefold(): index for index, name in enumerate(classes)}
        self._numbered = not any(_is_number(name) for name in classes)  # else a number is a name
        if isinstance(data.labels, dict):
            self._indices = {
                word_of(value).casefold(): LEFT_OUT if name is None else classes.index(name)
                for value, name in data.labels.items()
            }
            self._numbered = False

    def encode(self, table: "pa.Table", where: str) -> tuple["pa.Table", dict[str, int], int]:
        """Return the rows with `text` and `label` as they are trained on.

        Args:
            table: columns of strings, `text` and `label` among them.
            where: the source and its split, for messages.

        Returns:
            The table; how many rows were left out, by reason; how many texts had surrounding blanks removed.

        Raises:
            UserError: a row that cannot be used, unless `data.on_bad_rows` is `skip`.
        """
        labels = self._label_indices(table.column("label"))
        empty, changed = _look_at(table.column("text"))
        unknown, dropped = self._unknown(labels), self._left_out(labels)
        if self.data.on_bad_rows is BadRows.error:
            self._refuse_bad_rows(table, empty, unknown, where)
        unmapped = dropped & ~empty
        reasons = {"empty text": empty, "unknown label": unknown & ~empty, "left out by data.labels": unmapped}
        left_out = {reason: int(rows.sum()) for reason, rows in reasons.items() if rows.any()}
        encoded = concat_or_spill(self._pieces(table, labels, ~(unknown | dropped | empty)))
        return encoded, left_out, changed if self.data.strip else 0

    def _pieces(self, table: "pa.Table", labels: Any, kept: Any) -> Iterator["pa.Table"]:
        """Yield the rows that are kept, batch after batch."""
        import pyarrow as pa
        import pyarrow.compute as pc

        start = 0
        for batch in table.to_batches():
            rows = slice(start, start + batch.num_rows)
            start += batch.num_rows
            columns = dict(zip(batch.schema.names, batch.columns, strict=True))
            if self.data.strip:
                columns["text"] = pc.utf8_trim_whitespace(columns["text"])
            columns["label"] = self._column(labels[rows])
            yield pa.table(columns).filter(pa.array(kept[rows]))

    def _column(self, labels: Any) -> "pa.Array":
        """Return the labels of rows, what cannot be used among them, as they are kept."""
        import pyarrow as pa

        return pa.array(labels)

    def _label_indices(self, labels: "pa.ChunkedArray") -> Any:
        """Return the class index of each label, shape (rows,); each different value is looked at once."""
        encoded = labels.dictionary_encode(null_encoding="encode").combine_chunks()
        parts: Iterable[Any] = encoded.chunks if hasattr(encoded, "chunks") else [encoded]
        pieces = [np.zeros(0, self.dtype)]
        for part in parts:
            values = np.array([self._index(value) for value in part.dictionary.to_pylist()], self.dtype)
            pieces.append(values[np.asarray(part.indices)])
        return np.concatenate(pieces)

    def _unknown(self, labels: Any) -> Any:
        return labels == UNKNOWN

    def _left_out(self, labels: Any) -> Any:
        return labels == LEFT_OUT

    def _index(self, value: str | None) -> float:
        word = word_of(value)
        if (by_name := self._indices.get(word.casefold())) is not None:
            return by_name
        if self._numbered and re.fullmatch(r"\d+", word) and int(word) < len(self.classes):
            return int(word)
        return UNKNOWN

    def _refuse_bad_rows(self, table: "pa.Table", empty: Any, unknown: Any, where: str) -> None:
        skip = "or leave such rows out with data.on_bad_rows=skip"
        what = "text" if getattr(self.data, "text_pair", None) is None else "text or text_pair"
        if empty.any():
            raise UserError(
                f"Row {_first(empty)} of {where} has an empty {what}{_more(empty)}: remove the row, fill it in, {skip}."
            )
        if not unknown.any():
            return
        row = _first(unknown)
        fault, instead = self._fault(row, where, table.column("label")[row - 1].as_py())
        raise UserError(f"{fault}{_more(unknown)}: {instead}, {skip}.")

    def _fault(self, row: int, where: str, value: str | None) -> tuple[str, str]:
        """Return what is wrong with the label of a row, and what to do."""
        word = word_of(value)
        if word == "" and self.data.labels is None:
            return f"Row {row} of {where} has no label", "fill it in"
        mapped = "" if self.dtype is np.float64 else ", map it with data.labels={value: class, ...}"
        return f"Row {row} of {where} has the label {word[:60]!r}, which is {self._legal(word)}", f"fix it{mapped}"

    def _legal(self, word: str) -> str:
        """Return what a label that is refused is not."""
        hint = " (-1 marks hidden labels: name a labelled split with data.splits.test)" if word == "-1" else ""
        legal = f"none of data.labels={self.data.labels or self.classes}"
        if self._numbered:
            legal += f" and no number from 0 to {len(self.classes) - 1}"
        return legal + hint


def _look_at(texts: "pa.ChunkedArray") -> tuple[Any, int]:
    """Return which texts are empty but for blanks, shape (rows,), and how many have surrounding blanks."""
    import pyarrow.compute as pc

    empty, changed = [np.zeros(0, bool)], 0
    for chunk in texts.chunks:
        filled = pc.fill_null(chunk, "")
        bare = pc.utf8_trim_whitespace(filled)
        changed += pc.sum(pc.not_equal(filled, bare)).as_py() or 0
        empty.append(np.asarray(pc.equal(bare, "")))
    return np.concatenate(empty), changed


def _first(rows: Any) -> int:
    return int(rows.argmax()) + 1


def _more(rows: Any) -> str:
    others = int(rows.sum()) - 1
    return f" (and {others:,} more row{'s' if others > 1 else ''})" if others else ""


def word_of(value: str | None) -> str:
    """Return a label as it is compared: without blanks, and 1.0 as 1, since a column with gaps is read as decimals."""
    return re.sub(r"^(-?\d+)\.0+$", r"\1", (value or "").strip())


def _is_number(word: str) -> bool:
    return re.fullmatch(r"-?\d+(\.\d+)?", word) is not None


def _order(word: str) -> tuple[bool, float, str]:
    """Return the sorting key of a label: numbers by value, then words."""
    return (not _is_number(word), float(word) if _is_number(word) else 0.0, word.casefold() + "\0" + word)
