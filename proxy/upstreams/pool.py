"""The connections of one upstream: kept while they are idle, bounded in number, with a bounded queue in front."""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from pathlib import Path

from proxy import bounds
from proxy._wire import Connection
from proxy.errors import Refusal
from proxy.identity.tenancy import TENANT
from proxy.upstreams.target import Target


class Pool:
    """Connections to one target, for one event loop.

    The last one used is the first one taken, so that a quiet hour leaves few of them. A connection that the upstream
    closed while it was idle is found out before it is used and replaced. A request is written once: when its
    connection is lost afterwards nobody knows whether the upstream has read it, so it is never sent again from here.
    """

    def __init__(
        self,
        target: Target,
        *,
        max_connections: int,
        max_waiting: int,
        connect_ms: int,
        ca_bundle: Path | None = None,
        wait_ms: int = bounds.UPSTREAM_WAIT_SECONDS_MAX * 1000,
    ) -> None:
        """ca_bundle: a PEM file, trusted in place of the system's authorities. ValueError when it is unusable."""
        self.target = target
        self._max_connections = max_connections
        self._max_waiting = max_waiting
        self._connect_seconds = connect_ms / 1000
        self._wait_seconds = wait_ms / 1000
        self._tls = _tls_context(ca_bundle) if target.tls else None
        self._all: set[Connection] = set()
        self._idle: list[Connection] = []  # the longest idle one first
        self._opening = 0  # places promised to connections that do not stand yet
        self._waiting: deque[asyncio.Future[Connection | None]] = deque()
        self._reaper: asyncio.TimerHandle | None = None
        self._closed = False
        self.made = 0  # connections opened so far

    def __repr__(self) -> str:
        active = self.active
        return (
            f"[Requests: {active} active, {self.waiting} queued | Connections: {active} active, {len(self._idle)} idle]"
        )

    @property
    def active(self) -> int:
        """Connections that are taken or being opened."""
        return len(self._all) - len(self._idle) + self._opening

    @property
    def idle(self) -> int:
        """Connections that could be taken."""
        return len(self._idle)

    @property
    def waiting(self) -> int:
        """Calls that wait for a place."""
        return sum(not waiter.done() for waiter in self._waiting)

    def take(self) -> Connection | None:
        """An idle connection that still stands, or None: then `connect` has to be awaited."""
        while self._idle:
            connection = self._idle.pop()
            if connection.alive():
                return connection
            connection.abort()
        return None

    async def connect(self) -> Connection:
        """A connection of one's own: a new one, or one that another call has given back.

        Raises Refusal: upstream_overloaded (no place in the queue, or none came free in time),
        upstream_connect_timeout, upstream_unreachable (refused, no route, unknown name, TLS not trusted), not_ready
        (the pool is closed). Cancelling leaves nothing behind.
        """
        if self._closed:
            raise Refusal("not_ready", "its upstream has been removed")
        again = False
        while len(self._all) + self._opening >= self._max_connections:
            connection = await self._wait(first=again)
            if connection is None:
                return await self._open()
            if connection.alive():
                return connection
            if connection in self._all:
                self._opening += 1  # before the abort, or its place would go to the next in the queue
                connection.abort()
                return await self._open()
            again = True  # it died on the way here, and its place was given on
        self._opening += 1
        return await self._open()

    def give_back(self, connection: Connection) -> None:
        """Returns a connection on which nothing is under way. When an answer ends, its connection does so itself."""
        if self._closed or len(self._idle) >= bounds.UPSTREAM_IDLE_CONNECTIONS_MAX:
            connection.abort()
            return
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(connection)
                return
        self._idle.append(connection)
        if self._reaper is None:
            self._reap_later()

    def retire(self) -> None:
        """Takes no more calls: idle connections are closed now, the others when their answer has ended."""
        self._closed = True
        if self._reaper is not None:
            self._reaper.cancel()
            self._reaper = None
        for waiter in self._waiting:
            if not waiter.done():
                waiter.set_exception(Refusal("not_ready", "its upstream has been removed"))
        self._waiting.clear()
        for connection in tuple(self._idle):
            connection.abort()

    def close(self) -> None:
        """Closes everything; answers under way end as cancelled."""
        self.retire()
        for connection in tuple(self._all):
            connection.abort()

    def _on_idle(self, connection: Connection, reusable: bool) -> None:
        if reusable:
            self.give_back(connection)
            return
        self._all.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)
        self._wake()

    def _wake(self) -> None:
        """Promises free places to the first in the queue."""
        while self._waiting and len(self._all) + self._opening < self._max_connections:
            waiter = self._waiting.popleft()
            if not waiter.done():
                self._opening += 1
                waiter.set_result(None)

    async def _wait(self, *, first: bool) -> Connection | None:
        """A connection that was given back, or None: a place is promised and `_opening` counts it."""
        if not first and self.waiting >= self._max_waiting:
            raise Refusal("upstream_overloaded")
        waiter: asyncio.Future[Connection | None] = asyncio.get_running_loop().create_future()
        if first:
            self._waiting.appendleft(waiter)
        else:
            self._waiting.append(waiter)
        try:
            async with asyncio.timeout(self._wait_seconds):
                return await waiter
        except BaseException as fault:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                # Served and given up in the same instant: what it got goes to the next.
                connection = waiter.result()
                if connection is None:
                    self._opening -= 1
                    self._wake()
                else:
                    self.give_back(connection)
            elif waiter in self._waiting:
                self._waiting.remove(waiter)
            if isinstance(fault, TimeoutError):
                raise Refusal("upstream_overloaded") from None
            raise

    async def _open(self) -> Connection:
        connection = Connection(self._on_idle)
        # A transport keeps the context it was made in for all its callbacks, and serves many tenants.
        token = TENANT.set("")
        try:
            async with asyncio.timeout(self._connect_seconds):
                await asyncio.get_running_loop().create_connection(
                    lambda: connection,
                    self.target.host,
                    self.target.port,
                    ssl=self._tls,
                    server_hostname=self.target.host if self._tls is not None else None,
                )
            if self._closed:
                raise Refusal("not_ready", "its upstream has been removed")
            if connection.closed:
                raise ConnectionResetError("closed as soon as it was accepted")
        except BaseException as fault:
            self._opening -= 1
            connection.abort()
            if isinstance(fault, TimeoutError):
                raise Refusal("upstream_connect_timeout") from None
            if isinstance(fault, (OSError, UnicodeError)):  # UnicodeError: a name that IDNA cannot carry
                raise Refusal("upstream_unreachable") from fault
            raise
        finally:
            TENANT.reset(token)
        self._opening -= 1
        self.made += 1
        self._all.add(connection)
        return connection

    def _reap_later(self) -> None:
        loop = asyncio.get_running_loop()
        self._reaper = loop.call_later(bounds.UPSTREAM_IDLE_SECONDS_MAX / 2, self._reap)

    def _reap(self) -> None:
        """Closes what has been idle for too long, or was closed by the upstream without our noticing."""
        self._reaper = None
        for connection in tuple(self._idle):
            if not connection.alive():
                connection.abort()
        if self._idle:
            self._reap_later()


def _tls_context(ca_bundle: Path | None) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=ca_bundle)
    except (OSError, ssl.SSLError) as fault:
        raise ValueError(f"{ca_bundle}: not a usable bundle of CA certificates in PEM: {fault}") from None
    context.set_alpn_protocols(["http/1.1"])
    return context
