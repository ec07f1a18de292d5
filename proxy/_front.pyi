"""The client's side of the wire in C: connections that carry ordinary requests, the others handed on."""

import asyncio
import builtins
from typing import Literal

from proxy._wire import Relay
from proxy.front import Front

def usual(data: builtins.bytes) -> tuple[int, int, bool, bool] | Literal[False] | None:
    """Whether `data` begins with an ordinary head: (its bytes, content length, is a POST, wants to close).

    Ordinary: GET or POST, a plain path, HTTP/1.1, header names of letters, digits, - and _, values of visible ASCII;
    one Host; at most one Content-Length and one Connection of `close` or `keep-alive`; no Transfer-Encoding, Expect,
    Upgrade or Proxy-Connection; at most REQUEST_LINE_BYTES_MAX bytes in all. None: so far it could become one. False:
    it is none.
    """

class Request:
    """One ordinary request on a connection: an `exchange.Exchange`."""

    method: str
    raw_path: str
    raw_headers: tuple[tuple[builtins.bytes, builtins.bytes], ...]
    http10: bool
    close: bool
    arrived_ns: int
    started: bool
    lines: builtins.bytes
    def write(self, data: builtins.bytes) -> object: ...
    def buffered(self) -> int: ...
    @property
    def peer(self) -> str: ...
    def body_now(self) -> builtins.bytes | None: ...
    async def body(self, bytes_max: int, seconds_max: float) -> builtins.bytes: ...
    def forget_body(self) -> None: ...
    def say_continue(self) -> None: ...
    def answer(self, data: builtins.bytes, *, close: bool) -> None: ...
    def paused(self, relay: Relay) -> None: ...
    def abort(self) -> None: ...
    def ended(self) -> None:
        """Its answer is written, or will never be: the connection goes on to its next request, or ends."""

class Client(asyncio.Protocol):
    """One connection of a client. Ordinary requests are run by the front; the first other one takes the connection
    with it to `front.door`, before a byte of it is answered here.
    """

    def __init__(self, front: Front, loop: asyncio.AbstractEventLoop) -> None: ...
    def look(self, tick: int) -> None:
        """Once a second, with the front's tick: ends a connection that keeps it waiting for longer than the bounds."""
    def end_idle(self, before_ns: int) -> None:
        """Closes a connection that has carried nothing since `before_ns` (CLOCK_BOOTTIME)."""
    def end(self) -> None:
        """Ends the connection, and whatever it carries."""
