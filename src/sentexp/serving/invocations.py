"""Requests to `/invocations` in MLflow's protocol: their texts, or a clear 4xx."""

import io
import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Discriminator, StrictBool, StrictStr, Tag, ValidationError, model_validator

from sentexp.errors import first_line
from sentexp.export.pyfunc import CALIBRATED, TEXT, TEXT_PAIR

if TYPE_CHECKING:
    import pandas as pd
    from starlette.requests import Request
    from starlette.responses import Response

JSON, CSV, PARQUET = "application/json", "text/csv", "application/vnd.apache.parquet"
FORMS = ("dataframe_records", "dataframe_split", "instances", "inputs")
EXAMPLES = {
    False: 'send {"dataframe_records": [{"text": "a warm and funny film"}]}',
    True: 'send {"dataframe_records": [{"text": "a warm and funny film", "text_pair": "the cast"}]}',
}
"""Requests for a run that reads single texts, and for one that reads pairs."""
DRAINED = 64
"""Times the limit: as much of a request that is too large is read and dropped, so that its sender gets the answer."""


class Refused(Exception):
    """A request that is not answered: its status and a sentence."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


def refusal(error: Refused) -> "Response":
    """Return the answer to a request that is refused, as MLflow writes errors."""
    from starlette.responses import JSONResponse

    code = "BAD_REQUEST" if error.status < 500 else "INTERNAL_ERROR"  # noqa: PLR2004
    headers = {"connection": "close"} if error.status == 413 else None  # noqa: PLR2004 (the rest of it is not read)
    return JSONResponse({"error_code": code, "message": str(error)}, error.status, headers)


class Row(BaseModel):
    """A row, with a second text where the run reads pairs; other columns do not count."""

    text: StrictStr
    text_pair: StrictStr | None = None


class Columns(BaseModel):
    """A column of texts, with one of second texts where the run reads pairs; other columns do not count."""

    text: StrictStr | list[StrictStr]
    text_pair: StrictStr | list[StrictStr] | None = None

    @model_validator(mode="after")
    def _fits(self) -> "Columns":
        lengths = {
            len(one) if isinstance(one, list) else None for one in (self.text, self.text_pair) if one is not None
        }
        if len(lengths) > 1:
            raise ValueError(f"must have as many values of {TEXT_PAIR} as of {TEXT}")
        return self


class Split(BaseModel):
    """A table as pandas writes it with `orient="split"`."""

    columns: list[Any]
    data: list[list[Any]]

    @model_validator(mode="after")
    def _fits(self) -> "Split":
        if self.columns.count(TEXT) != 1 or any(len(row) != len(self.columns) for row in self.data):
            raise ValueError(f"must have one column {TEXT}, and a value for each column in every row")
        return self


class Params(BaseModel):
    """What may be asked for beside the texts."""

    model_config = ConfigDict(extra="forbid")
    calibrated: StrictBool = False


def _kind(value: Any) -> str:
    """Return which of the forms of `inputs` and `instances` a value has."""
    if not isinstance(value, list):
        return "columns"
    return "rows" if value and all(isinstance(row, dict) for row in value) else "texts"


Texts = Annotated[
    Annotated[Columns, Tag("columns")] | Annotated[list[Row], Tag("rows")] | Annotated[list[StrictStr], Tag("texts")],
    Discriminator(_kind),
]


class Invocation(BaseModel):
    """A request in JSON: texts in exactly one of the forms."""

    dataframe_records: list[Row] = []
    dataframe_split: Split = Split(columns=[TEXT], data=[])
    instances: Texts = []
    inputs: Texts = []
    params: Params | None = None

    @model_validator(mode="after")
    def _has_one_form(self) -> "Invocation":
        if len(self.model_fields_set & set(FORMS)) != 1:
            raise ValueError(f"must be an object with one of {', '.join(FORMS)}")
        return self

    def column(self, name: str) -> list[Any]:
        """Return the texts of a column, None where it is missing; those of `dataframe_split` may be other values."""
        if "dataframe_split" in self.model_fields_set:
            columns, data = self.dataframe_split.columns, self.dataframe_split.data
            return [row[columns.index(name)] if name in columns else None for row in data]
        given: Any = self.dataframe_records or self.instances or self.inputs
        if isinstance(given, Columns):
            values, rows = getattr(given, name), len(given.text) if isinstance(given.text, list) else 1
            return values if isinstance(values, list) else [values] * rows
        return [getattr(row, name) if isinstance(row, Row) else (row if name == TEXT else None) for row in given]


async def read_body(request: "Request", most: int) -> bytes:
    """Return the body of a request.

    Args:
        request: to be read.
        most: bytes; more are refused.

    Raises:
        Refused: it is too large, or its sender has disconnected.
    """
    from starlette.requests import ClientDisconnect

    too_large = Refused(413, f"The request is larger than {most:,} bytes: send its texts in several.")
    announced = request.headers.get("content-length", "0")
    if announced.isdigit() and int(announced) > DRAINED * most:
        raise too_large
    body, size = bytearray(), 0
    try:
        async for part in request.stream():
            size += len(part)
            if size > DRAINED * most:
                raise too_large
            if size <= most:
                body += part
    except ClientDisconnect:
        raise Refused(400, "The client disconnected before the whole request was sent.") from None
    if size > most:
        raise too_large
    return bytes(body)


def read_request(body: bytes, content_type: str, pairs: bool = False) -> tuple["pd.DataFrame", dict[str, Any]]:
    """Return the texts of a request as a table, and the parameters of the model.

    Args:
        body: of the request.
        content_type: its header.
        pairs: whether the run reads pairs, which have a column `text_pair` as well.

    Raises:
        Refused: with the status 400, or 415 for a type that is not one of these.
    """
    import pandas as pd

    kind, _, charset = content_type.lower().partition(";")
    kind = kind.strip()
    if kind not in (JSON, CSV, PARQUET) or charset.strip() not in ("", "charset=utf-8"):
        given = f"is {content_type}" if content_type else "is missing"
        raise Refused(415, f"Content-Type {given}: it must be {JSON}, {CSV} or {PARQUET}, in UTF-8.")
    if not body.strip():
        raise Refused(400, f"The request is empty: {EXAMPLES[pairs]}.")
    columns = (TEXT, TEXT_PAIR) if pairs else (TEXT,)
    if kind == CSV:
        words: Any = {"dtype": dict.fromkeys(columns, object), "keep_default_na": False, "na_values": [""]}
        return _read_table("CSV", columns, lambda: pd.read_csv(io.BytesIO(body), **words)), {}
    if kind == PARQUET:
        return _read_table("Parquet", columns, lambda: pd.read_parquet(io.BytesIO(body))), {}
    try:
        invocation = Invocation.model_validate_json(body)
    except ValidationError as error:
        raise Refused(400, f"{_reason(error)}: {EXAMPLES[pairs]}.") from None
    params = {CALIBRATED: invocation.params.calibrated} if invocation.params else {}
    return pd.DataFrame({name: invocation.column(name) for name in columns}, dtype=object), params


def _read_table(name: str, columns: Sequence[str], read: "Callable[[], pd.DataFrame]") -> "pd.DataFrame":
    """Return a table with these columns of texts."""
    try:
        table = read()
    except (ValueError, OSError) as error:  # UnicodeError, the errors of pandas' parser and of Arrow are ValueErrors
        reason = first_line(error)
        raise Refused(400, f"The request cannot be read as {name} ({reason}).") from None
    for column in columns:
        if list(table.columns).count(column) != 1:
            have = ", ".join(map(str, table))
            raise Refused(400, f"The request must have one column {column}; its columns are {have}.")
    return table


def _reason(error: ValidationError) -> str:
    """Return what is wrong with a request in JSON, in a sentence that lacks its end."""
    first = max(error.errors(include_url=False), key=lambda one: len(one["loc"]))
    place = str(first["loc"][0]) if first["loc"] else "The request"
    if first["type"] == "json_invalid":
        return f"The request is not JSON ({first['msg'][:200]})"
    if first["type"] == "value_error":
        return f"{place} {first['ctx']['error']}"
    if place == "params":
        given = f"has {first['loc'][1]}={json.dumps(first['input'])[:50]}" if first["loc"][1:] else "must be an object"
        return f"params {given}: it must be {CALIBRATED}, true or false, or be left out"
    if not first["loc"]:
        return f"The request must be an object with one of {', '.join(FORMS)}"
    if first["type"] == "missing":
        return f"{place} lacks {first['loc'][-1]}"
    expected = {"string_type": "a text", "list_type": "a list"}.get(first["type"], "an object")
    return f"{place} has {json.dumps(first['input'])[:50]} where {expected} should be"
