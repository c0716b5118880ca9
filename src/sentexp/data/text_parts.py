"""Texts of several columns: what a template makes of the rows of a table."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sentexp.config import TextTemplate

if TYPE_CHECKING:
    import pyarrow as pa


PAIR = "\ue0a2"
"""Between the two texts of a pair, which are one string everywhere: a mark from the private use area."""


def pair_texts(texts: "pa.ChunkedArray", others: "pa.ChunkedArray") -> "pa.ChunkedArray":
    """Return each text and the other of its row as a pair, without blanks beside the mark; null where one is empty."""
    import pyarrow as pa
    import pyarrow.compute as pc

    mark = pa.scalar(PAIR, pa.large_string())
    first, second = (
        pc.replace_substring(pc.fill_null(part, "").cast(pa.large_string()), PAIR, " ") for part in (texts, others)
    )
    first, second = pc.utf8_rtrim_whitespace(first), pc.utf8_ltrim_whitespace(second)
    is_empty = pc.or_(*(pc.equal(pc.utf8_trim_whitespace(part), "") for part in (first, second)))
    joined = pc.binary_join_element_wise(first, second, mark)
    return pc.if_else(is_empty, pa.scalar(None, pa.large_string()), joined)


def join_pairs(texts: Sequence[str], others: Sequence[str]) -> list[str]:
    """Return pairs of texts of which none is empty; see `pair_texts`."""
    import pyarrow as pa

    columns = [pa.chunked_array([pa.array(part, pa.large_string())]) for part in (texts, others)]
    pairs: list[str] = pair_texts(*columns).to_pylist()
    return pairs


def shorten(text: str, most: int) -> str:
    """Return the beginning of a text, of so many characters; of a pair those of either text."""
    first, mark, second = text.partition(PAIR)
    return first[:most] + mark + second[:most]


def shown(text: str) -> str:
    """Return a text as people read it."""
    return text.replace(PAIR, " | ")


def text_columns(key: str, template: TextTemplate) -> dict[str, str]:
    """Return the columns of a template by what sentences call them."""
    if len(template.columns) == 1:
        return {key: template.columns[0]}
    return {f"{key} ({{{column}}})": column for column in template.columns}


def join_columns(table: "pa.Table", template: TextTemplate) -> "pa.ChunkedArray":
    """Return the text of each row: null where every column is empty, and without the value of one that is.

    Args:
        table: with the columns of the template, as strings.
        template: of the texts.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    if template.is_column:
        return table.column(template.columns[0])
    literals = [pa.scalar(literal, pa.large_string()) for literal in template.literals]
    chunks = []
    for batch in table.select(list(dict.fromkeys(template.columns))).to_batches():
        values = [pc.fill_null(batch.column(column), "").cast(pa.large_string()) for column in template.columns]
        parts: list[Any] = [literals[0]]
        for value, literal in zip(values, literals[1:], strict=True):
            parts += [value, literal]
        joined = pc.binary_join_element_wise(*parts, pa.scalar("", pa.large_string()))
        bare = [pc.equal(pc.utf8_trim_whitespace(value), "") for value in values]
        is_empty = bare[0]
        for other in bare[1:]:
            is_empty = pc.and_(is_empty, other)
        chunks.append(pc.if_else(is_empty, pa.scalar(None, pa.large_string()), joined))
    return pa.chunked_array(chunks, pa.large_string())
