"""One more front in a test's house, whose clock the test moves and whose transports it sees."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from proxy.door import Door
from proxy.exchange import Exchange
from proxy.front import Front
from proxy.house import House
from proxy.journey import serve
from tests.journey.inside import Inside

SECONDS_MAX = 60.0  # for what must come in the end


class Watched(Front):
    """The front itself. Its time stands still until `later` moves it, and it keeps who has entered."""

    def __init__(self, *args: Any) -> None:
        self.transports: list[asyncio.Transport] = []
        self.served = 0
        super().__init__(*args)

    def entered(self, door: Any, transport: asyncio.BaseTransport) -> None:
        self.transports.append(transport)  # type: ignore[arg-type]
        super().entered(door, transport)

    async def run(self, exchange: Exchange) -> None:
        self.served += 1
        await super().run(exchange)

    def _tick(self) -> None:
        """Time is moved by hand."""

    def later(self, seconds: int) -> None:
        """So many ticks pass, one by one."""
        for _ in range(seconds):
            self.tick += 1
            for door in list(self.doors):
                door.look(self.tick)

    @property
    def others(self) -> int:
        """Connections that are aiohttp's."""
        return sum(isinstance(door, Door) for door in self.doors)


Story = Callable[[Watched, Inside], Awaitable[None]]
Tell = Callable[[Story], None]


@asynccontextmanager
async def listening(
    weir: Inside,
    journey: Callable[[Exchange, House], Awaitable[None]] = serve,
    tls: ssl.SSLContext | None = None,
    send_buffer: int = 0,
) -> AsyncIterator[tuple[Watched, Inside]]:
    """(the front, its house as a client sees it). When the block ends nothing of it may be left.

    send_buffer: bytes that the kernel shall take for a client that does not read; 0 leaves it to the kernel.
    """
    front = Watched(weir.front.loop, journey, weir.house)
    listener = socket.create_server(("127.0.0.1", 0))
    if send_buffer:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
    server = await weir.front.loop.create_server(front, sock=listener, ssl=tls)
    try:
        yield front, weir._replace(front=front, port=listener.getsockname()[1])
    finally:
        server.close()
        await front.close()
        await until("every connection to have ended", lambda: not front.doors and not front.requests)
        await server.wait_closed()


async def until(what: str, happened: Callable[[], Any]) -> None:
    """Waits for it. AssertionError when it takes longer than anything may."""
    try:
        async with asyncio.timeout(SECONDS_MAX):
            while not happened():
                await asyncio.sleep(0.002)
    except TimeoutError:
        raise AssertionError(f"{what}: not within {SECONDS_MAX:g} s") from None


async def rest_of(reader: asyncio.StreamReader) -> bytes:
    """What comes until the other side ends the connection, in whatever way."""
    async with asyncio.timeout(SECONDS_MAX):
        received = b""
        try:
            while part := await reader.read(1 << 16):
                received += part
        except OSError:
            pass
        return received
