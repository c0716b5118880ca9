"""The label column of rows as an array: class indices, scores, or sets of labels."""

from typing import TYPE_CHECKING

import numpy as np

from sentexp.config import TargetKind
from sentexp.data.text_hash import Numbers

if TYPE_CHECKING:
    import pyarrow as pa


def target_array(column: "pa.ChunkedArray") -> Numbers:
    """Return class indices or scores, shape (rows,), or for each row which labels it has, shape (rows, labels)."""
    import pyarrow as pa

    if not pa.types.is_fixed_size_list(column.type):
        return np.asarray(column)
    flat = [np.asarray(chunk.flatten()) for chunk in column.chunks]
    return np.concatenate([np.zeros(0, np.uint8), *flat]).reshape(-1, column.type.list_size)


def kind_of_rows(rows: "pa.Table") -> TargetKind:
    """Return what the labels of rows are."""
    import pyarrow as pa

    type_of = rows.schema.field("label").type
    if pa.types.is_fixed_size_list(type_of):
        return TargetKind.label_sets
    return TargetKind.scores if pa.types.is_floating(type_of) else TargetKind.classes


def as_numbers(targets: Numbers) -> Numbers:
    """Return one number for each row, shape (rows,): targets as they are, of sets of labels which of these it is."""
    return targets if targets.ndim == 1 else np.unique(targets, axis=0, return_inverse=True)[1].reshape(-1)


def rarest_labels(members: Numbers) -> Numbers:
    """Return for each row which of its labels the fewest rows have, shape (rows,), the first of several.

    A row without any is of a kind of its own.

    Args:
        members: shape (rows, labels).
    """
    counts = members.sum(0, dtype=np.int64)
    order = np.lexsort((np.arange(len(counts)), counts))
    first = members[:, order].argmax(1)
    found: Numbers = np.where(members.any(1), order[first], len(counts))
    return found
