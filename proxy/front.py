"""The front: aiohttp's low-level server, told to do as little as it can, and a door before it that keeps time.

Every answer is written straight to the transport; aiohttp parses requests and keeps the connection. Only its public
names are used.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, cast

from aiohttp import web
from aiohttp.http_exceptions import LineTooLong
from aiohttp.web import BaseRequest

from proxy import bounds
from proxy._fastpath import now_ns
from proxy._wire import Relay
from proxy.dialects import openai_chat as dialect
from proxy.errors import Refusal
from proxy.exchange import Exchange

if TYPE_CHECKING:
    from proxy.house import House

log = logging.getLogger("weir.front")
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_FAILED = Refusal("internal_error")
_TOO_LONG = Refusal("headers_too_large", str(bounds.REQUEST_LINE_BYTES_MAX))
_NOT_HTTP = Refusal("bad_request", "its line or one of its headers is not HTTP/1.1")


def _internal_error(lines: bytes) -> bytes:
    """The answer to a request that failed inside Weir. lines: header lines of its own."""
    headers = lines.decode("latin-1") + dialect.refusal_headers(_FAILED)
    return dialect.answer(500, headers, dialect.refusal_body(_FAILED), close=True)


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


class Door(web.RequestHandler):
    """One connection: aiohttp's handler of it, which also knows when the connection last made progress.

    aiohttp closes an idle connection by its own timer, but would wait for ever for the rest of a head. And its own
    answer to what it cannot parse would be plain text that quotes the offending line, and so perhaps a key.
    """

    __slots__ = ("begun", "busy", "front", "idle_ns", "since", "waiting")

    def __init__(self, front: Front, **options: Any) -> None:
        super().__init__(front.server, loop=front.loop, **options)
        self.front = front
        self.busy = False  # a request is being answered
        self.begun = False  # some bytes of the next head have come
        self.waiting = True  # bytes of a head are owed
        self.idle_ns = 0  # when its last answer ended; only kept while draining
        self.since = 0  # front ticks: when that began

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.since = self.front.tick
        self.front.doors.add(self)
        super().connection_made(transport)
        if len(self.front.doors) > bounds.CONNECTIONS_MAX:
            cast(asyncio.Transport, transport).abort()

    def data_received(self, data: bytes) -> None:
        if not self.busy and not self.begun:
            self.begun = True
            if not self.waiting:
                self.waiting = True
                self.since = self.front.tick
        _feed(self, data)

    def connection_lost(self, exc: BaseException | None) -> None:
        self.front.doors.discard(self)
        super().connection_lost(exc)

    def handle_error(
        self, request: BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        """The answer to a request without a handler's: malformed ones. The connection ends with it."""
        transport = request.transport
        if transport is not None and not transport.is_closing():
            transport.write(self.front.malformed(exc) if status == 400 else _internal_error(b""))
        return _WrittenLast()


_feed = web.RequestHandler.data_received  # found once: `super()` would be looked up for each read


class Front:
    """The listening side of a worker. `serve` is the journey, and `house` what it is given with each exchange."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, serve: Callable[[Exchange, House], Awaitable[None]], house: House
    ) -> None:
        self.loop = loop
        self._house = house
        self.doors: set[Door] = set()
        self.tick = 0  # seconds since the front opened: its clock for connections
        self.draining = False
        self.requests = 0  # being answered now
        self._serve = serve
        self._kept: set[asyncio.Task[None]] = set()
        self._keep = _Written()
        self._last = _WrittenLast()
        # aiohttp logs a traceback for each malformed request; a scanner must not fill the disk.
        quiet = logging.getLogger("weir.front.aiohttp")
        quiet.setLevel(logging.CRITICAL)
        self.server = web.Server(self._handle, handler_cancellation=True)
        self._options = {
            "access_log": None,
            "auto_decompress": False,
            "keepalive_timeout": bounds.CONNECTION_IDLE_SECONDS_MAX,
            "lingering_time": 2.0,
            "tcp_keepalive": False,
            "logger": quiet,
        }
        self._ticker = loop.call_later(1.0, self._tick)
        self._ender: asyncio.TimerHandle | None = None
        self._drained_ns = 0

    def __repr__(self) -> str:
        return f"[Front: {len(self.doors)} connections, {self.requests} requests]"

    def __call__(self) -> Door:
        """A protocol for one more connection."""
        return Door(self, **self._options)

    def malformed(self, exc: BaseException | None) -> bytes:
        """The refusal of a request that cannot be parsed: counted and logged like any other, quoting nothing of it."""
        refusal = _TOO_LONG if isinstance(exc, LineTooLong) else _NOT_HTTP
        request_id = self._house.next_request_id()
        self._house.note_refusal(refusal, None, request_id, now_ns())
        lines = f"x-request-id: {request_id}\r\n{dialect.refusal_headers(refusal)}"
        return dialect.answer(refusal.kind.status, lines, dialect.refusal_body(refusal), close=True)

    def keep(self, work: Awaitable[None]) -> None:
        """Runs a small piece of work to its end, and holds on to it until then."""
        task = asyncio.ensure_future(work)
        self._kept.add(task)
        task.add_done_callback(self._kept.discard)

    async def _handle(self, request: BaseRequest) -> web.StreamResponse:
        transport = request.transport
        if transport is None:
            return self._last
        door = cast(Door, request.protocol)
        door.busy = True
        door.begun = door.waiting = False
        exchange = AiohttpExchange(request, transport, self)
        self.requests += 1
        try:
            await self._serve(exchange, self._house)
        except asyncio.CancelledError:
            raise
        except Exception:
            # aiohttp would write a second answer into the open one.
            log.exception("a request failed inside Weir")
            if exchange.started:
                transport.abort()
            else:
                exchange.answer(_internal_error(exchange.lines), close=True)
        finally:
            self.requests -= 1
            door.busy = False
            if self.draining:
                door.idle_ns = now_ns()
        return self._last if exchange.close else self._keep

    def _tick(self) -> None:
        self._ticker = self.loop.call_later(1.0, self._tick)
        self.tick += 1
        late = self.tick - bounds.HEADERS_SECONDS_MAX
        for door in list(self.doors):
            if door.waiting and not door.busy and door.since < late and door.transport is not None:
                door.transport.abort()

    def drain(self) -> None:
        """From now on each answer ends its connection; connections that stay idle are ended after a grace.

        Closing an idle connection at once would race with the request that its client is just sending.
        """
        self.draining = True
        self._drained_ns = now_ns()
        self._end_idle()

    def _end_idle(self) -> None:
        """Closes what has been idle for the grace. An answer that began before the drain could not announce its end."""
        self._ender = self.loop.call_later(bounds.DRAIN_IDLE_SECONDS / 4, self._end_idle)
        before_ns = now_ns() - int(bounds.DRAIN_IDLE_SECONDS * 1e9)
        for door in list(self.doors):
            idle_ns = max(door.idle_ns, self._drained_ns)
            if not door.busy and not door.begun and idle_ns < before_ns and door.transport is not None:
                door.transport.close()

    async def close(self) -> None:
        """Ends whatever is left."""
        self._ticker.cancel()
        if self._ender is not None:
            self._ender.cancel()
        await self.server.shutdown(0.5)
        for task in list(self._kept):
            task.cancel()
