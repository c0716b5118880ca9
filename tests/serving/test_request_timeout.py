"""A client that stops in the middle of its request is let go; one that waits for its answer is not."""

import asyncio
import socket
import threading
import time
from contextlib import suppress

import pytest
import uvicorn

from sentexp.serving.request_timeout import TIMED_OUT, with_request_timeout
from sentexp.serving.serve import _listen

SECONDS = 0.3
WHOLE = b"POST / HTTP/1.1\r\nhost: here\r\ncontent-length: 4\r\n\r\ntext"


async def app(scope, receive, send):
    """Answer a request after three times as long as it may take to arrive; what is no request is not supported."""
    assert scope["type"] == "http"
    while (message := await receive()).get("more_body"):
        pass
    if message["type"] == "http.disconnect":
        return
    await asyncio.sleep(3 * SECONDS)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


@pytest.fixture
def connect():
    """Return a function that opens a connection to a server of the app above."""
    listening = _listen("127.0.0.1", 0)
    protocol = with_request_timeout(SECONDS)
    server = uvicorn.Server(uvicorn.Config(app, http=protocol, lifespan="off", log_level="warning"))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listening])))
    thread.start()
    yield lambda: socket.create_connection(listening.getsockname(), timeout=60)
    server.should_exit = True
    thread.join()


def read(connection):
    """Return all that comes until the server closes the connection."""
    parts = []
    while part := connection.recv(4096):
        parts.append(part)
    return b"".join(parts)


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"POST / HTT",
        b"POST / HTTP/1.1\r\nhost: here\r\ncontent-length: 40\r\n\r\ntext",
        b"POST / HTTP/1.1\r\nhost: here\r\ntransfer-encoding: chunked\r\n\r\n4\r\ntext\r\n",
    ],
    ids=["nothing", "half a line", "half a body", "chunks without an end"],
)
def test_a_request_that_does_not_end_is_closed(sent, connect):
    with connect() as connection:
        connection.sendall(sent)
        assert read(connection) == TIMED_OUT


def test_one_byte_after_another_does_not_hold_a_connection(connect):
    with connect() as connection:
        sender = threading.Thread(target=_trickle, args=(connection,))
        sender.start()
        assert read(connection).startswith(TIMED_OUT)
        sender.join()


def _trickle(connection):
    """Send a line that does not end, a byte at a time, until the server has closed the connection."""
    with suppress(OSError):
        connection.sendall(b"GET /")
        while True:
            connection.sendall(b"x")
            time.sleep(SECONDS / 10)


@pytest.mark.slow
def test_a_whole_request_is_answered_however_long_it_takes_and_the_next_has_its_own_time(connect):
    with connect() as connection:
        for _ in range(2):
            connection.sendall(WHOLE)
            answer = b""
            while not answer.endswith(b"ok"):
                answer += connection.recv(4096)
            assert answer.startswith(b"HTTP/1.1 200")
        connection.sendall(WHOLE[:20])
        assert read(connection).endswith(TIMED_OUT)
