"""Labels of which a text has any number: lists, delimited texts, or a column of 0 and 1 for each."""

import ast
import json
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from sentexp.config import TableData
from sentexp.data.labels import LEFT_OUT, UNKNOWN, LabelEncoder, classes_of, different_values, word_of

if TYPE_CHECKING:
    import pyarrow as pa

CELL = "\x1f"
"""Between the cells of a row, where each label has a column."""
YES, NO = ("1", "true"), ("0", "false")


class LabelSetEncoder(LabelEncoder):
    """Turns raw rows into texts and sets of labels: lists of 0 and 1, one for each class.

    A label that `data.labels` maps to null is taken out of its set, and the row stays.

    Args:
        data: how labels are written, their mapping, and what to do with rows that cannot be used.
        classes: class names in the order of their indices.
    """

    def __init__(self, data: TableData, classes: list[str]) -> None:
        super().__init__(data, classes)
        self.table = data
        self.sets: dict[tuple[int, ...], int] = {}

    def _index(self, value: str | None) -> float:
        """Return the number of a set."""
        found = self._flags(value) if self._by_column else self._members(value)
        return UNKNOWN if found is None else self.sets.setdefault(found, len(self.sets))

    @property
    def _by_column(self) -> bool:
        return not isinstance(self.table.label, str)

    def _members(self, value: str | None) -> tuple[int, ...] | None:
        """Return the numbers of the classes in a set; None where it cannot be read."""
        words = split_labels(value, self.table.label_delimiter)
        numbers = {UNKNOWN} if words is None else {int(super(LabelSetEncoder, self)._index(word)) for word in words}
        return None if UNKNOWN in numbers else tuple(sorted(numbers - {LEFT_OUT}))

    def _flags(self, value: str | None) -> tuple[int, ...] | None:
        cells = _cells(value)
        if not all(cell in (*YES, *NO) for cell in cells):
            return None
        return tuple(number for number, cell in enumerate(cells) if cell in YES)

    def _column(self, labels: Any) -> "pa.Array":
        members = np.zeros((len(self.sets), len(self.classes)), np.uint8)
        for numbers, place in self.sets.items():
            members[place, list(numbers)] = 1
        return as_column(members[np.maximum(labels, 0)] if len(members) else np.zeros((len(labels), len(self.classes))))

    def _fault(self, row: int, where: str, value: str | None) -> tuple[str, str]:
        place = f"Row {row} of {where}"
        if self._by_column:
            name, cell = next(
                (name, cell) for name, cell in zip(self.classes, _cells(value), strict=True) if cell not in (*YES, *NO)
            )
            return (
                f"{place} has {cell[:60]!r} in the column {name} of data.label",
                "write 1 where it has that label, else 0",
            )
        words = split_labels(value, self.table.label_delimiter)
        if value is None:
            return f"{place} has no list of labels", "write an empty one where none holds"
        if words is None:
            return f"{place} has the labels {value[:60]!r}, which are no list of texts", 'write them as ["joy", "fear"]'
        wrong = next(word for word in words if super(LabelSetEncoder, self)._index(word) == UNKNOWN)
        among = "" if len(words) == 1 else f" among {value.strip()[:60]!r}"
        mapped = "fix it, map it with data.labels={value: class, ...}"
        return f"{place} has the label {wrong[:60]!r}{among}, which is {self._legal(wrong)}", mapped


def label_set_classes(data: TableData, tables: dict[str, "pa.Table"]) -> tuple[list[str], list[str]]:
    """Return the classes of sets of labels in the order of their indices, and notes on them."""
    if not isinstance(data.label, str):
        return list(data.label), []
    split = partial(split_labels, delimiter=data.label_delimiter)
    return classes_of(data, lambda: {word for value in different_values(tables) for word in split(value) or []})


def split_labels(value: str | None, delimiter: str) -> list[str] | None:
    """Return the labels that a cell holds, as they are compared; None where there is no list to read.

    A list is written in JSON or as Python prints it; any other text is labels with the delimiter between them.
    """
    if value is None:
        return None
    bare = value.strip()
    if not bare.startswith("["):
        return [word for part in bare.split(delimiter) if (word := word_of(part))]
    readers: tuple[Callable[[str], Any], ...] = (json.loads, _printed)
    for read in readers:
        try:
            items = read(bare)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        if isinstance(items, list) and all(isinstance(item, str | int | float) for item in items):
            return [word for item in items if (word := word_of(str(item)))]
        return None
    return None


def _printed(text: str) -> list[Any]:
    """Return a list as Python prints it.

    Raises:
        ValueError: it is not, or texts follow each other without a comma, as numpy prints them.
    """
    tree = ast.parse(text, mode="eval").body
    items = tree.elts if isinstance(tree, ast.List) else [tree]
    for item in items:
        one = item.operand if isinstance(item, ast.UnaryOp) else item
        source = ast.get_source_segment(text, one) or ""
        if not isinstance(one, ast.Constant) or source != repr(one.value):
            raise ValueError
    return list(ast.literal_eval(text))


def _cells(value: str | None) -> list[str]:
    """Return the cells of a row whose labels have a column each."""
    return [word_of(cell).casefold() for cell in (value or "").split(CELL)]


def joined_cells(columns: "list[pa.ChunkedArray]") -> "pa.ChunkedArray":
    """Return the cells of the columns of labels as one column of texts."""
    import pyarrow as pa
    import pyarrow.compute as pc

    filled = [pc.fill_null(column, "") for column in columns]
    return pc.binary_join_element_wise(*filled, pa.scalar(CELL, pa.large_string()))


def as_column(members: Any) -> "pa.Array":
    """Return sets of labels as a column.

    Args:
        members: 1 where a row has a label, shape (rows, labels).
    """
    import pyarrow as pa

    flat = pa.array(np.ascontiguousarray(members, np.uint8).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, members.shape[1])
