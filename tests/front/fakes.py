"""What stands around one `_front.Client` when no loop runs: a transport that keeps, a front and a door that listen."""

from __future__ import annotations

import asyncio
from typing import Any

from proxy._front import Client, Request

GET = b"GET /v1/models HTTP/1.1\r\nHost: weir\r\nx-empty:\r\nX-Last:  a b \r\n\r\n"
ODD = b"GET /v1/models?x HTTP/1.1\r\nhost: weir\r\n\r\n"


def post(body: bytes, size: int | None = None, *lines: bytes) -> bytes:
    """A request with this body, or with a part of one of that size."""
    more = b"".join(line + b"\r\n" for line in lines)
    return b"POST /x HTTP/1.1\r\nhost: weir\r\n%bcontent-length: %d\r\n\r\n%b" % (more, size or len(body), body)


class Transport:
    """A transport without a network."""

    def __init__(self) -> None:
        self.written = bytearray()
        self.protocol: Any = None
        self.reading = True
        self.closed = self.aborted = False

    def write(self, data: bytes) -> None:
        assert not self.aborted
        self.written += data

    def get_write_buffer_size(self) -> int:
        return 0

    def get_extra_info(self, name: str) -> Any:
        return ("192.0.2.7", 1234) if name == "peername" else None

    def set_protocol(self, protocol: Any) -> None:
        self.protocol = protocol

    def is_closing(self) -> bool:
        return self.closed or self.aborted

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.aborted = True

    def pause_reading(self) -> None:
        assert self.reading
        self.reading = False

    def resume_reading(self) -> None:
        assert not self.reading
        self.reading = True


class Work:
    """The task of a request, as far as its connection knows it."""

    def __init__(self) -> None:
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class Relay:
    """What a slow client holds up."""

    def __init__(self) -> None:
        self.resumed = 0

    def resume(self) -> None:
        self.resumed += 1


class Other:
    """The other front's connection."""

    def __init__(self, front: Front, since: int) -> None:
        self.front = front
        self.since = since
        self.received = bytearray()
        self.paused = False
        self.transport: Any = None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.front.entered(self, transport)

    def data_received(self, data: bytes) -> None:
        assert self.transport.reading
        self.received += data

    def pause_writing(self) -> None:
        self.paused = True


class Front:
    """Keeps what its connections begin."""

    def __init__(self) -> None:
        self.tick = 0
        self.draining = False
        self.doors: set[Any] = set()
        self.requests: list[Request] = []
        self.works: list[Work] = []
        self.others: list[Other] = []

    def entered(self, door: Any, transport: Any) -> None:
        self.doors.add(door)

    def left(self, door: Any) -> None:
        self.doors.remove(door)

    def begin(self, request: Request) -> Work:
        self.requests.append(request)
        self.works.append(Work())
        return self.works[-1]

    def door(self, since: int) -> Other:
        self.others.append(Other(self, since))
        return self.others[-1]


class Bench:
    """One connection with all that stands around it. `now` is the front's tick."""

    def __init__(self, loop: asyncio.AbstractEventLoop | None = None) -> None:
        self.loop = loop or asyncio.new_event_loop()
        self.front = Front()
        self.transport = Transport()
        self.client = Client(self.front, self.loop)  # type: ignore[arg-type]
        self.transport.set_protocol(self.client)
        self.client.connection_made(self.transport)  # type: ignore[arg-type]

    def feed(self, data: bytes) -> None:
        """Bytes of the client, for whoever has the connection now."""
        self.transport.protocol.data_received(data)

    @property
    def request(self) -> Request:
        """The one that was begun last."""
        return self.front.requests[-1]

    def at(self, tick: int) -> None:
        """It is so late now, and the connection is looked at."""
        self.front.tick = tick
        for door in [*self.front.doors]:
            if isinstance(door, Client):
                door.look(tick)

    def close(self) -> None:
        if self.client in self.front.doors:
            self.client.connection_lost(None)
        self.loop.close()
