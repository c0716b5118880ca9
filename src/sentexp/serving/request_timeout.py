"""Connections on which a request does not arrive: uvicorn would hold them for ever."""

import asyncio
from typing import Any

TIMED_OUT = b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"


class RequestTimeout:
    """Before uvicorn's HTTP protocol: closes a connection whose next request is not whole after `seconds`.

    They begin when the connection opens, or with the first byte after an answer.
    """

    seconds: float
    timer: asyncio.TimerHandle | None = None
    cycle: Any
    loop: asyncio.AbstractEventLoop
    transport: asyncio.Transport

    def connection_made(self, transport: asyncio.Transport) -> None:
        """Start the clock of the first request."""
        super().connection_made(transport)  # type: ignore[misc]
        self._start_or_stop()

    def data_received(self, data: bytes) -> None:
        """Look whether the request is whole now."""
        super().data_received(data)  # type: ignore[misc]
        self._start_or_stop()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clock."""
        self._stop()
        super().connection_lost(exc)  # type: ignore[misc]

    def _start_or_stop(self) -> None:
        request = self.cycle
        if request is not None and not request.more_body and not request.response_complete:
            self._stop()
        elif self.timer is None:
            self.timer = self.loop.call_later(self.seconds, self._close)

    def _stop(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None

    def _close(self) -> None:
        if self.cycle is None or self.cycle.response_complete or not self.cycle.response_started:
            self.transport.write(TIMED_OUT)
        self.transport.close()


def with_request_timeout(seconds: float) -> type[asyncio.Protocol]:
    """Return uvicorn's HTTP protocol with a time in which a request must have arrived."""
    from uvicorn.protocols.http.auto import AutoHTTPProtocol

    return type("TimedProtocol", (RequestTimeout, AutoHTTPProtocol), {"seconds": seconds})
