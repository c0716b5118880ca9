"""What stands before the scoring server: requests that are too large, empty or unreadable get a clear 4xx."""

import json
from collections.abc import Iterator
from typing import Any

from sentexp.export.pyfunc import CALIBRATED, TEXT

PATH = "/invocations"
JSON, CSV, PARQUET = "application/json", "text/csv", "application/vnd.apache.parquet"
FORMS = ("dataframe_records", "dataframe_split", "instances", "inputs")
HOW = '{"dataframe_records": [{"text": "a warm and funny film"}]}'

Scope = Any
Receive = Any
Send = Any

PATIENCE = 64
"""Times the limit: as much of a request that is too large is read and dropped, so that its sender gets the answer."""


class Refused(Exception):
    """A request that is not passed on: its status and a sentence."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


class Guard:
    """ASGI middleware around MLflow's scoring server.

    Args:
        app: the server.
        most: bytes of a request.
    """

    def __init__(self, app: Any, most: int) -> None:
        self.app, self.most = app, most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, its body read whole, or answer it with why not."""
        if scope["type"] != "http" or scope["path"] != PATH or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        try:
            body = await self._body(dict(scope["headers"]), receive)
            check(body, dict(scope["headers"]).get(b"content-type", b"").decode("latin-1"))
        except Refused as error:
            await _answer(send, error.status, str(error))
            return
        given = False

        async def again() -> dict[str, Any]:
            nonlocal given
            if given:
                return dict(await receive())
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self.app(scope, again, _Sentences(send))

    async def _body(self, headers: dict[bytes, bytes], receive: Receive) -> bytes:
        told = headers.get(b"content-length", b"0")
        if told.isdigit() and int(told) > PATIENCE * self.most:
            raise self._too_large()
        parts, size = [], 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise Refused(400, "The request has ended before its end.")
            part = message.get("body", b"")
            size += len(part)
            if size <= self.most:
                parts.append(part)
            ended = not message.get("more_body", False)
            if size > (self.most if ended else PATIENCE * self.most):
                raise self._too_large()
            if ended:
                return b"".join(parts)

    def _too_large(self) -> Refused:
        return Refused(413, f"The request is larger than {self.most:,} bytes: send its texts in several.")


class _Sentences:
    """Makes a sentence of what MLflow answers to a request that is refused: without traceback, paths and the data."""

    def __init__(self, send: Send) -> None:
        self.send, self.status, self.parts = send, 200, list[bytes]()

    async def __call__(self, message: dict[str, Any]) -> None:
        """Pass an answer on; an error is held until it is whole."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
        if self.status < 400:  # noqa: PLR2004
            await self.send(message)
        elif message["type"] == "http.response.body":
            self.parts.append(message.get("body", b""))
            if not message.get("more_body", False):
                await _answer(self.send, self.status, sentence_of(b"".join(self.parts)))


def sentence_of(body: bytes) -> str:
    """Return the reason in an error of MLflow's, without what it is wrapped in."""
    try:
        told = json.loads(body)
    except ValueError:
        told = {}
    said = str(told.get("message") or told.get("detail") or "") if isinstance(told, dict) else ""
    for wrapped in ("Failed to predict data", "Failed to enforce schema"):
        if said.startswith(wrapped):
            said = said.partition("Error: ")[2] or said
    return said or f"The request cannot be answered: send {HOW}."


def check(body: bytes, content_type: str) -> None:
    """Refuse a request that the scoring server could not read.

    Args:
        body: of the request.
        content_type: its header.

    Raises:
        Refused: with the status 400, or 415 for a type that is none of the server's.
    """
    kind = content_type.partition(";")[0].strip().lower()
    if kind not in (JSON, CSV, PARQUET):
        told = f"is {content_type}" if content_type else "is missing"
        raise Refused(415, f"Content-Type {told}: it must be {JSON}, {CSV} or {PARQUET}.")
    if not body.strip():
        raise Refused(400, f"The request is empty: send {HOW}.")
    if kind != JSON:
        return
    try:
        said = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Refused(400, f"The request is no JSON ({str(error)[:200]}): send {HOW}.") from None
    forms = [form for form in FORMS if form in said] if isinstance(said, dict) else []
    if len(forms) != 1:
        raise Refused(400, f"The request must be an object with one of {', '.join(FORMS)}: send {HOW}.")
    _check_texts(forms[0], said[forms[0]])
    _check_params(said.get("params"))


def _check_texts(form: str, value: Any) -> None:
    for row in value if isinstance(value, list) else [value]:
        for text in _leaves(row[TEXT]) if isinstance(row, dict) and TEXT in row else ():
            if not isinstance(text, str):  # the server would take what a number is written as
                raise Refused(400, f"{form} has {json.dumps(text)[:50]} where a text should be: send {HOW}.")


def _check_params(params: Any) -> None:
    if params is not None and not isinstance(params, dict):
        raise Refused(400, 'params must be an object such as {"calibrated": true}.')
    if unknown := sorted(set(params or ()) - {CALIBRATED}):
        raise Refused(400, f"params has {', '.join(unknown)}: it must be {CALIBRATED}, true or false, or be left out.")


def _leaves(value: Any) -> Iterator[Any]:
    """Yield what stands in lists and objects, however deep; of an empty one, itself."""
    left = [value]
    while left:
        one = left.pop()
        if isinstance(one, dict | list) and one:
            left += one.values() if isinstance(one, dict) else one
        else:
            yield one


async def _answer(send: Send, status: int, sentence: str) -> None:
    code = "BAD_REQUEST" if status < 500 else "INTERNAL_ERROR"  # noqa: PLR2004
    body = json.dumps({"error_code": code, "message": sentence}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if status == 413:  # noqa: PLR2004 (of the largest, a part is not read)
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
