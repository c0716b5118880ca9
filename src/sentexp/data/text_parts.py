"""Texts of several columns: what a template makes of the rows of a table."""

from typing import TYPE_CHECKING, Any

from sentexp.config import TextTemplate

if TYPE_CHECKING:
    import pyarrow as pa


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
    for batch in table.select(dict.fromkeys(template.columns)).to_batches():
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
