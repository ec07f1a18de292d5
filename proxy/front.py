"""The front: the listening side of a worker. It keeps the connections, and runs the journey for each of their requests.

There are two kinds of connections: `_front.Client` for ordinary requests, which is quick, and `door.Door`, which is
aiohttp's, for everything else. Each begins as the first, and may become the second.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Any, cast

from proxy import bounds
from proxy._fastpath import now_ns
from proxy._front import Client
from proxy.accept import internal_error
from proxy.dialects import openai_chat as dialect
from proxy.door import Door, server_of
from proxy.errors import Refusal
from proxy.exchange import Exchange

if TYPE_CHECKING:
    from proxy.house import House

log = logging.getLogger("weir.front")

if sys.version_info >= (3, 12):

    def _start(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Runs it up to its first wait at once: most refusals never become a turn of the loop."""
        return asyncio.Task(work, loop=loop, eager_start=True)

else:

    def _start(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        return loop.create_task(work)


class Front:
    """The listening side of a worker. `serve` is the journey, and `house` what it is given with each exchange."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, serve: Callable[[Exchange, House], Awaitable[None]], house: House
    ) -> None:
        self.loop = loop
        self._house = house
        self.doors: set[Client | Door] = set()
        self.tick = 0  # seconds since the front opened: its clock for connections
        self.draining = False
        self.requests = 0  # being answered now
        self._serve = serve
        self._kept: set[asyncio.Task[None]] = set()
        self._server = server_of(self)
        self._ticker = loop.call_later(1.0, self._tick)
        self._ender: asyncio.TimerHandle | None = None
        self._drained_ns = 0
        self._looked_ns = 0

    def __repr__(self) -> str:
        return f"[Front: {len(self.doors)} connections, {self.requests} requests]"

    # --- connections ---

    def __call__(self) -> Client:
        """A protocol for one more connection."""
        return Client(self, self.loop)

    def door(self, since: int) -> Door:
        """A protocol of aiohttp's for a connection that has waited for its request since that tick."""
        return Door(self, self._server, since)

    def entered(self, door: Client | Door, transport: asyncio.BaseTransport) -> None:
        """One more connection; one too many ends at once."""
        self.doors.add(door)
        if len(self.doors) > bounds.CONNECTIONS_MAX:
            cast(asyncio.Transport, transport).abort()

    def left(self, door: Client | Door) -> None:
        """It has ended, or is another's now."""
        self.doors.discard(door)

    # --- requests ---

    def begin(self, exchange: Exchange) -> asyncio.Task[None]:
        """Runs one request in a task of its own, whose cancellation says that the client has left."""
        return _start(self.loop, self.run(exchange))

    async def run(self, exchange: Exchange) -> None:
        """One request, and whatever goes wrong in it. Raises only CancelledError."""
        self.requests += 1
        try:
            await self._serve(exchange, self._house)
        except asyncio.CancelledError:
            raise
        except Exception:
            log.exception("a request failed inside Weir")
            if exchange.started:
                exchange.abort()  # a second answer would be written into the open one
            else:
                exchange.answer(internal_error(exchange.lines), close=True)
        finally:
            self.requests -= 1
            exchange.ended()

    def malformed(self, refusal: Refusal) -> bytes:
        """The answer to a request that cannot be parsed: counted and logged like any other, quoting nothing of it."""
        request_id = self._house.next_request_id()
        self._house.note_refusal(refusal, None, request_id, now_ns())
        lines = f"x-request-id: {request_id}\r\n{dialect.refusal_headers(refusal)}"
        return dialect.answer(refusal.kind.status, lines, dialect.refusal_body(refusal), close=True)

    def keep(self, work: Awaitable[None]) -> None:
        """Runs a small piece of work to its end, and holds on to it until then."""
        task = asyncio.ensure_future(work)
        self._kept.add(task)
        task.add_done_callback(self._kept.discard)

    # --- time ---

    def _tick(self) -> None:
        self._ticker = self.loop.call_later(1.0, self._tick)
        self.tick += 1
        for door in list(self.doors):
            door.look(self.tick)

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
        # As of the look before: what a loop that stood still has not read since then, it has read by now.
        before_ns = self._looked_ns - int(bounds.DRAIN_IDLE_SECONDS * 1e9)
        self._looked_ns = now_ns()
        if self._drained_ns < before_ns:
            for door in list(self.doors):
                door.end_idle(before_ns)

    async def close(self) -> None:
        """Ends whatever is left."""
        self._ticker.cancel()
        if self._ender is not None:
            self._ender.cancel()
        for door in list(self.doors):
            if isinstance(door, Client):
                door.end()
        await self._server.shutdown(0.5)
        for task in list(self._kept):
            task.cancel()
