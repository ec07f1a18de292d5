"""What these tests share: a transport without a network, scripted upstreams, a client that reads raw bytes."""

from __future__ import annotations

import asyncio
import http.client
import io
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any

import uvloop

from proxy import clock
from proxy._journal import Segment, Slot, Slots, Writer, slots_bytes
from proxy._wire import Connection, Outbox, Relay

LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "uvloop": uvloop.new_event_loop,
    "asyncio": asyncio.new_event_loop,
}
SECONDS_MAX = 400  # for one test's coroutine: a hang is an error that names its place


def run(kind: str, main: Callable[[], Awaitable[None]]) -> None:
    """Runs the coroutine on a fresh loop of this kind and checks that no task is left."""

    async def bounded() -> None:
        async with asyncio.timeout(SECONDS_MAX):
            await main()
        for _ in range(200):  # a server's task may still be closing its own connection
            left = asyncio.all_tasks() - {asyncio.current_task()}
            if not left:
                return
            await asyncio.sleep(0.01)
        raise AssertionError(f"tasks left behind: {left}")

    with asyncio.Runner(loop_factory=LOOPS[kind]) as runner:
        runner.run(bounded())


async def settle() -> None:
    """Turns of the loop, with a little time for each: closed transports tell their protocols, and TLS says goodbye.

    Turns and not time alone: a process that is not let run sleeps through any time in one turn.
    """
    for _ in range(50):
        await asyncio.sleep(0.001)


class Transport:
    """A transport that keeps what is written. Its socket is real, so that a connection can look at it."""

    def __init__(self) -> None:
        self.near, self.far = socket.socketpair()
        self.near.setblocking(False)
        self.written: list[bytes] = []
        self.unread = 0
        self.aborted = self.paused = False
        self.pauses = 0

    def get_extra_info(self, name: str) -> socket.socket:
        assert name == "socket"
        return self.near

    def write(self, data: bytes) -> None:
        if self.aborted:
            raise RuntimeError("unable to perform operation on a closed transport")
        self.written.append(data)

    def get_write_buffer_size(self) -> int:
        return self.unread

    def pause_reading(self) -> None:
        self.paused = True
        self.pauses += 1

    def resume_reading(self) -> None:
        self.paused = False

    def is_closing(self) -> bool:
        return self.aborted

    def abort(self) -> None:
        self.aborted = True

    def close_sockets(self) -> None:
        self.near.close()
        self.far.close()


class Bench:
    """A connection over a transport without a network: answers are fed piece by piece, with no loop running."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.upstream = Transport()
        self.reported: list[bool] = []
        self.connection = Connection(lambda _, reusable: self.reported.append(reusable))
        self.connection.connection_made(self.upstream)  # type: ignore[arg-type]

    def close(self) -> None:
        self.connection.abort()
        self.connection.connection_lost(None)
        self.upstream.close_sockets()
        self.loop.close()

    def relay(self, client: Transport, **options: Any) -> Relay:
        return make_relay(client.write, client.get_write_buffer_size, self.loop.create_future(), **options)


@contextmanager
def bench() -> Iterator[Bench]:
    made = Bench()
    try:
        yield made
    finally:
        made.close()


def at_once() -> Outbox:
    """An outbox whose turns end with each write."""
    return Outbox(lambda flush, context: flush())


def make_relay(
    write: Callable[[bytes], Any],
    buffered: Callable[[], int],
    done: asyncio.Future[None],
    *,
    outbox: Outbox | None = None,
    on_pause: Callable[[Relay], None] = lambda relay: None,
    slot: Any = None,
    head: bytes = b"x-request-id: abc\r\n",
    http10: bool = False,
    close: bool = False,
    hide_usage: bool = False,
    hold_end: bool = False,
    first_byte_ms: int = 20_000,
    idle_ms: int = 20_000,
    total_ms: int = 60_000,
    counter: Any = None,
    bytes_per_token_milli: int = 4000,
) -> Relay:
    """A relay with everything off that the test does not ask for."""
    return Relay(
        write,
        buffered,
        on_pause,
        done,
        outbox or at_once(),
        slot,
        clock.now_ns(),
        head,
        http10=http10,
        close=close,
        hide_usage=hide_usage,
        hold_end=hold_end,
        first_byte_ms=first_byte_ms,
        idle_ms=idle_ms,
        total_ms=total_ms,
        counter=counter,
        bytes_per_token_milli=bytes_per_token_milli,
    )


class Answer:
    """What a client made of the bytes it got, by the standard library's reader."""

    def __init__(self, raw: bytes) -> None:
        self.raw = raw
        self.status = 0
        self.headers: dict[str, str] = {}
        self.body = b""
        self.whole = False
        self.chunks: list[bytes] = []
        if not raw:
            return
        response = http.client.HTTPResponse(_Bytes(raw), method="POST")  # type: ignore[arg-type]
        response.begin()
        self.status = response.status
        names = [name.lower() for name, _ in response.getheaders()]
        assert len(names) == len(set(names)), f"a header stands twice: {names}"
        self.headers = {name.lower(): value for name, value in response.getheaders()}
        try:
            self.body = response.read()
            self.whole = True
        except http.client.IncompleteRead as cut:
            self.body = cut.partial
        response.close()

    def written_chunks(self) -> int:
        """Chunks of a whole chunked answer, the last one aside."""
        rest = self.raw.split(b"\r\n\r\n", 1)[1]
        count = 0
        while True:
            size, rest = rest.split(b"\r\n", 1)
            if int(size, 16) == 0:
                assert rest == b"\r\n"
                return count
            rest = rest[int(size, 16) + 2 :]
            count += 1


class _Bytes:
    """As much of a socket as http.client asks for."""

    def __init__(self, raw: bytes) -> None:
        self.raw = raw

    def makefile(self, mode: str) -> io.BytesIO:
        return io.BytesIO(self.raw)


def facts(relay: Relay) -> dict[str, Any]:
    """Everything that a relay says, but for the time."""
    return {
        "ending": relay.ending,
        "status": relay.status,
        "started": relay.started,
        "reusable": relay.reusable,
        "is_stream": relay.is_stream,
        "frames": relay.frames,
        "bytes": relay.bytes,
        "text_bytes": relay.text_bytes,
        "text_tokens": relay.text_tokens,
        "text_estimated": relay.text_estimated,
        "usage": relay.usage,
        "model": relay.model,
        "error_body": relay.error_body,
        "error_type": relay.error_type,
        "upstream_request_id": relay.upstream_request_id,
        "upstream_error": relay.upstream_error,
        "detail": relay.detail,
    }


def new_slot() -> Slot:
    """A slot of a real journal that lives in memory."""
    epoch = bytes(range(16))
    slots_fd = os.memfd_create("slots")
    segment_fd = os.memfd_create("segment")
    os.ftruncate(slots_fd, slots_bytes(2))
    os.ftruncate(segment_fd, 64 * 1024)
    Slots.format(slots_fd, epoch, 0, 2, 64 * 1024, 0)
    slot = Writer(slots_fd, Segment(segment_fd, epoch), None).open(b"x", ())
    os.close(slots_fd)
    assert slot is not None
    return slot


# --- a real network ---

Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def read_request(reader: asyncio.StreamReader) -> bytes:
    """One whole request with a Content-Length. Raises IncompleteReadError at the end of the connection."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(next(line for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:"))[15:])
    return head + await reader.readexactly(length)


class Upstream:
    """A scripted server: `script` gets every connection; what it leaves open is closed at the end."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.port = 0
        self.connections = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()

    def hang_up(self) -> None:
        """Closes every connection in the kernel, with no turn of the loop."""
        for writer in self._writers:
            # uvloop's stand-in for a socket has no shutdown.
            with socket.socket(fileno=os.dup(writer.get_extra_info("socket").fileno())) as double:
                double.shutdown(socket.SHUT_RDWR)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        try:
            with suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
                await self.script(reader, writer)
        finally:
            self._tasks.discard(task)
            self._writers.discard(writer)
            writer.close()
            with suppress(ConnectionError, OSError):
                await writer.wait_closed()

    async def stop(self) -> None:
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@asynccontextmanager
async def upstream(script: Script, *, tls: Any = None, host: str = "127.0.0.1") -> AsyncIterator[Upstream]:
    made = Upstream(script)
    server = await asyncio.start_server(made.serve, host, 0, ssl=tls)
    made.port = server.sockets[0].getsockname()[1]
    try:
        yield made
    finally:
        server.close()
        await made.stop()
        await server.wait_closed()


class Door(asyncio.Protocol):
    """Our side of a client's connection: what aiohttp's protocol is in the product."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport
        self.made: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.writable = asyncio.Event()
        self.writable.set()
        self.relay: Relay | None = None
        self.most_buffered = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        self.made.set_result(None)

    def pause_writing(self) -> None:
        self.writable.clear()

    def resume_writing(self) -> None:
        self.writable.set()
        if self.relay is not None:
            self.relay.resume()

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set_result(None)
        if self.relay is not None:
            self.relay.cancel()

    def write(self, data: bytes) -> None:
        self.transport.write(data)
        self.most_buffered = max(self.most_buffered, self.transport.get_write_buffer_size())

    def buffered(self) -> int:
        return self.transport.get_write_buffer_size()


class Client:
    """A client's end of a real connection, and ours."""

    def __init__(self, door: Door, near: socket.socket) -> None:
        self.door = door
        self.socket = near

    async def read(self, n: int = 65536) -> bytes:
        return await asyncio.get_running_loop().sock_recv(self.socket, n)

    async def read_all(self) -> bytes:
        got = []
        with suppress(ConnectionError):
            while data := await self.read():
                got.append(data)
        return b"".join(got)


@asynccontextmanager
async def client(*, receive_buffer: int | None = None) -> AsyncIterator[Client]:
    loop = asyncio.get_running_loop()
    doors: list[Door] = []

    def factory() -> Door:
        doors.append(Door())
        return doors[-1]

    server = await loop.create_server(factory, "127.0.0.1", 0)
    near = socket.socket()
    try:
        near.setblocking(False)
        if receive_buffer is not None:
            near.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        await loop.sock_connect(near, server.sockets[0].getsockname())
        while not doors:
            await asyncio.sleep(0)
        await doors[0].made
        yield Client(doors[0], near)
    finally:
        near.close()
        for door in doors:
            door.transport.abort()
            await door.lost
        server.close()
        await server.wait_closed()


def chunked(pieces: Sequence[bytes], trailers: bytes = b"") -> bytes:
    """A chunked body with these chunks."""
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n" + trailers + b"\r\n"
