"""What is rare on the client's side: aiohttp's low-level server, told to do as little as it can, and a clock for it.

It gets the connections whose next request is no ordinary one (see `_front`). Every answer is written straight to the
transport; aiohttp parses requests and keeps the connection. Only its public names are used.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

from aiohttp import web
from aiohttp.http_exceptions import LineTooLong
from aiohttp.web import BaseRequest

from proxy import bounds
from proxy._fastpath import now_ns
from proxy._wire import Relay
from proxy.accept import internal_error
from proxy.errors import Refusal

if TYPE_CHECKING:
    from proxy.front import Front

# aiohttp logs a traceback for each malformed request; a scanner must not fill the disk.
_quiet = logging.getLogger("weir.front.aiohttp")
_quiet.setLevel(logging.CRITICAL)
_OPTIONS: dict[str, Any] = {
    "access_log": None,
    "auto_decompress": False,
    "keepalive_timeout": bounds.CONNECTION_IDLE_SECONDS_MAX,
    "lingering_time": float(bounds.LINGER_SECONDS_MAX),
    "tcp_keepalive": False,
    "logger": _quiet,
}
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_TOO_LONG = Refusal("headers_too_large", str(bounds.REQUEST_LINE_BYTES_MAX))
_NOT_HTTP = Refusal("bad_request", "its line or one of its headers is not HTTP/1.1")


class _Written(web.StreamResponse):
    """What the server is handed when all is on the wire already: nothing to prepare, nothing to end."""

    _kept = True

    async def prepare(self, request: BaseRequest) -> None:
        return None

    async def write_eof(self, data: bytes = b"") -> None:
        return None

    @property
    def keep_alive(self) -> bool:
        return self._kept


class _WrittenLast(_Written):
    """The same, for the last answer of a connection."""

    _kept = False


_KEEP = _Written()
_LAST = _WrittenLast()


class AiohttpExchange:
    """One request of aiohttp's, as the journey wants it. See `exchange.Exchange`."""

    __slots__ = (
        "_body",
        "_front",
        "_request",
        "_transport",
        "arrived_ns",
        "buffered",
        "close",
        "http10",
        "lines",
        "method",
        "raw_headers",
        "raw_path",
        "started",
        "write",
    )

    def __init__(self, request: BaseRequest, transport: asyncio.Transport, front: Front) -> None:
        self._request = request
        self._transport = transport
        self._front = front
        self._body: bytes | None = None
        self.arrived_ns = now_ns()
        self.method = request.method
        self.raw_path = request.raw_path
        self.raw_headers = request.raw_headers
        self.http10 = request.version.minor == 0
        self.close = front.draining or self.http10 or not request.keep_alive
        self.started = False
        self.lines = b""
        self.write: Callable[[bytes], object] = transport.write
        self.buffered: Callable[[], int] = transport.get_write_buffer_size

    @property
    def peer(self) -> str:
        name = self._transport.get_extra_info("peername")
        return str(name[0]) if isinstance(name, tuple) else ""

    def body_now(self) -> bytes | None:
        body = self._body
        if body is None:
            content = self._request.content
            if content.is_eof():
                body = self._body = content.read_nowait(-1)
        return body

    async def body(self, bytes_max: int, seconds_max: float) -> bytes:
        parts: list[bytes] = []
        size = 0
        content = self._request.content
        try:
            async with asyncio.timeout(seconds_max):
                while chunk := await content.readany():
                    size += len(chunk)
                    if size > bytes_max:
                        raise Refusal("body_too_large", str(bytes_max))
                    parts.append(chunk)
        except TimeoutError:
            raise Refusal("body_timeout", str(seconds_max)) from None
        except web.RequestPayloadError:
            raise Refusal("bad_request", "its body's framing is broken") from None
        body = self._body = b"".join(parts)
        return body

    def forget_body(self) -> None:
        self._body = b""

    def say_continue(self) -> None:
        self._transport.write(_CONTINUE)

    def answer(self, data: bytes, *, close: bool) -> None:
        self.started = True
        if close:
            self.close = True
        if not self._transport.is_closing():
            self._transport.write(data)

    def paused(self, relay: Relay) -> None:
        self._front.keep(self._resume(relay))

    async def _resume(self, relay: Relay) -> None:
        try:
            await self._request.writer.drain()
        except ConnectionError:
            return  # the handler is told by its own cancellation
        relay.resume()

    def abort(self) -> None:
        self._transport.abort()

    def ended(self) -> None:
        door = cast(Door, self._request.protocol)
        door.busy = False
        if self._front.draining:
            door.idle_ns = now_ns()


class Door(web.RequestHandler):
    """One connection: aiohttp's handler of it, which also knows when the connection last made progress.

    aiohttp closes an idle connection by its own timer, but would wait for ever for the rest of a head. And its own
    answer to what it cannot parse would be plain text that quotes the offending line, and so perhaps a key.
    """

    __slots__ = ("begun", "busy", "front", "idle_ns", "since", "waiting")

    def __init__(self, front: Front, server: web.Server, since: int) -> None:
        super().__init__(server, loop=front.loop, **_OPTIONS)
        self.front = front
        self.busy = False  # a request is being answered
        self.begun = False  # some bytes of the next head have come
        self.waiting = True  # bytes of a head are owed
        self.idle_ns = 0  # when its last answer ended; only kept while draining
        self.since = since  # front ticks: when that began

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.front.entered(self, transport)

    def data_received(self, data: bytes) -> None:
        if not self.busy and not self.begun:
            self.begun = True
            if not self.waiting:
                self.waiting = True
                self.since = self.front.tick
        _feed(self, data)

    def connection_lost(self, exc: BaseException | None) -> None:
        self.front.left(self)
        super().connection_lost(exc)

    def handle_error(
        self, request: BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        """The answer to a request without a handler's: malformed ones. The connection ends with it."""
        transport = request.transport
        if transport is not None and not transport.is_closing():
            refusal = _TOO_LONG if isinstance(exc, LineTooLong) else _NOT_HTTP
            transport.write(self.front.malformed(refusal) if status == 400 else internal_error(b""))
        return _LAST

    def look(self, tick: int) -> None:
        """Once a second, with the front's tick: ends a connection that owes the rest of a head for too long."""
        late = self.since < tick - bounds.HEADERS_SECONDS_MAX
        if self.waiting and not self.busy and late and self.transport is not None:
            self.transport.abort()

    def end_idle(self, before_ns: int) -> None:
        """Closes a connection that has carried nothing since `before_ns` (CLOCK_BOOTTIME)."""
        if not self.busy and not self.begun and self.idle_ns < before_ns and self.transport is not None:
            self.transport.close()


_feed = web.RequestHandler.data_received  # found once: `super()` would be looked up for each read


def server_of(front: Front) -> web.Server:
    """aiohttp's server, which gives each of its requests to the front's `run`."""

    async def handle(request: BaseRequest) -> web.StreamResponse:
        transport = request.transport
        if transport is None:
            return _LAST
        door = cast(Door, request.protocol)
        door.busy = True
        door.begun = door.waiting = False
        exchange = AiohttpExchange(request, transport, front)
        await front.run(exchange)
        return _LAST if exchange.close else _KEEP

    return web.Server(handle, handler_cancellation=True)
