"""Whole answers over real sockets: what the client gets when the upstream or the client fails at each stage."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from proxy import _wire as wire
from proxy._wire import Outbox, Relay
from proxy.upstreams.pool import Pool
from proxy.upstreams.target import Target
from tests.wire import answers
from tests.wire.answers import DONE, FRAMES, STREAM
from tests.wire.rig import (
    LOOPS,
    Answer,
    Client,
    Script,
    client,
    make_relay,
    new_slot,
    read_request,
    run,
    settle,
    upstream,
)
from tests.wire.test_relay import HEAD, piece

pytestmark = pytest.mark.parametrize("kind", LOOPS)
BODY = b'{"model": "m-1"}'
Write = Callable[[asyncio.StreamWriter], Awaitable[None]]


def saying(write: Write) -> Script:
    """A script that reads each request whole and then writes; the connection stays open."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            request = await read_request(reader)
            assert request.startswith(b"POST /v1/chat/completions HTTP/1.1\r\n")
            assert request.endswith(BODY)
            await write(writer)

    return script


class Setting:
    """A pool, an upstream and a client, with relays between them."""

    def __init__(self, pool: Pool, far: Client) -> None:
        self.pool = pool
        self.client = far
        self.outbox = Outbox(asyncio.get_running_loop().call_soon)

    async def begin(self, **options: Any) -> tuple[Relay, asyncio.Future[None]]:
        connection = self.pool.take() or await self.pool.connect()
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        door = self.client.door
        relay = make_relay(door.write, door.buffered, done, outbox=self.outbox, **options)
        door.relay = relay
        request = self.pool.target.request("/chat/completions", b"content-type: application/json\r\n", b"r1", BODY)
        connection.start(relay, request)
        return relay, done

    async def end(self) -> Answer:
        """Closes the client's connection, as the owner does after it, and reads what arrived."""
        self.client.door.transport.close()
        return Answer(await self.client.read_all())


@asynccontextmanager
async def setting(script: Script, *, receive_buffer: int | None = None, tls: Any = None) -> AsyncIterator[Setting]:
    async with upstream(script, tls=tls) as server, client(receive_buffer=receive_buffer) as far:
        target = Target(f"http://127.0.0.1:{server.port}/v1", "k")
        pool = Pool(target, max_connections=2, max_waiting=0, connect_ms=5000)
        try:
            yield Setting(pool, far)
        finally:
            assert pool.active == 0, pool
            pool.close()
            await settle()


@pytest.mark.parametrize("recorded", answers.ALL, ids=lambda recorded: recorded.name)
def test_each_recorded_answer(kind: str, recorded: answers.Recorded) -> None:
    """Over the network, in two writes, each answer ends as it does without one, and a reusable connection is reused."""

    async def write(writer: asyncio.StreamWriter) -> None:
        half = len(recorded.raw) // 2
        for part in (recorded.raw[:half], recorded.raw[half:]):
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(0)
        if recorded.eof:
            writer.write_eof()

    async def main() -> None:
        async with setting(saying(write)) as made:
            relay, done = await made.begin()
            await done
            assert relay.ending == recorded.ending, relay.detail
            assert made.pool.idle == int(relay.reusable)
            if "after the end" not in recorded.name:
                assert relay.reusable == recorded.reusable
            answer = await made.end()
            assert answer.body == (recorded.payload or b"")
            assert answer.whole is (recorded.whole and recorded.payload is not None)

    run(kind, main)


def test_keep_alive(kind: str) -> None:
    """Many answers go over one connection to the upstream and one to the client."""

    async def write(writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD)
        for part in STREAM:
            writer.write(piece(part))
        writer.write(b"0\r\n\r\n")

    async def main() -> None:
        async with setting(saying(write)) as made:
            for _ in range(50):
                relay, done = await made.begin()
                await done
                assert relay.ending == wire.COMPLETE
                assert relay.usage == (11, 0, 3, 0, 0)
            assert made.pool.idle == 1
            connection = made.pool.take()
            assert connection is not None
            assert connection.answers == 50
            made.pool.give_back(connection)

    run(kind, main)


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize(
    ("said", "started", "frames"),
    [
        (b"", False, 0),
        (b"HTTP/1.1 200 O", False, 0),
        (HEAD, False, 0),
        (HEAD + b"5", False, 0),
        (HEAD + piece(FRAMES[0]), True, 1),
        (HEAD + piece(FRAMES[0]) + b"ff\r\nda", True, 1),
        (HEAD + piece(FRAMES[0] + DONE) + b"0\r\n", True, 2),
    ],
    ids=["request", "half a head", "head", "chunk size", "one chunk", "in a chunk", "before the last line"],
)
def test_upstream_lost_at_each_stage(kind: str, reset: bool, said: bytes, started: bool, frames: int) -> None:
    """An upstream that closes or resets is LOST: nothing was relayed before its first byte, no clean end after it."""

    async def write(writer: asyncio.StreamWriter) -> None:
        writer.write(said)
        await relayed.wait()
        if reset:  # closing with unsent or lingering data at zero seconds sends RST
            option = struct.pack("ii", 1, 0)
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, option)
        writer.close()

    relayed = asyncio.Event()

    async def main() -> None:
        async with setting(saying(write)) as made:
            slot = new_slot()
            relay, done = await made.begin(slot=slot)
            if started:
                while relay.frames < frames:
                    await asyncio.sleep(0)
            else:
                await asyncio.sleep(0.02)
            relayed.set()
            await done
            assert relay.ending == wire.LOST
            assert relay.started is started
            assert made.pool.idle == 0
            answer = await made.end()
            assert not answer.whole
            assert answer.body.count(b"\n\n") == frames == relay.frames == slot.counters()[0]

    run(kind, main)


@pytest.mark.parametrize("hold_end", [False, True])
def test_strict_end(kind: str, hold_end: bool) -> None:
    """With hold_end the client has no clean end before it is released, and all of it after."""

    async def write(writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD + b"".join(piece(part) for part in STREAM[:-1]))
        await writer.drain()
        await asyncio.sleep(0.01)
        writer.write(piece(DONE) + b"0\r\n\r\n")

    async def main() -> None:
        async with setting(saying(write)) as made:
            relay, done = await made.begin(hold_end=hold_end)
            await done
            assert relay.ending == wire.COMPLETE
            assert made.pool.idle == 1
            got = b""
            while got.count(b"\n\n") < len(STREAM) - 1:
                got += await made.client.read()
            assert Answer(got).whole is not hold_end
            relay.release_end()
            made.client.door.transport.close()
            answer = Answer(got + await made.client.read_all())
            assert answer.whole
            assert answer.body == b"".join(STREAM)

    run(kind, main)


def test_client_that_leaves(kind: str) -> None:
    """When the client hangs up the upstream's connection is closed at once, whoever notices first."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(HEAD)
        try:
            while True:
                writer.write(piece(FRAMES[0]))
                await writer.drain()
                await asyncio.sleep(0.001)
        except (ConnectionError, RuntimeError):  # uvloop's word for a write after the transport has closed
            closed.set()

    closed = asyncio.Event()

    async def main() -> None:
        async with setting(script) as made:
            relay, done = await made.begin()
            await made.client.read()
            made.client.socket.close()
            await done
            assert relay.ending in (wire.CANCELLED, wire.CLIENT_GONE)
            await closed.wait()
            assert relay.bytes % len(FRAMES[0]) == 0

    run(kind, main)


def test_stalled_reader_of_a_long_stream(kind: str) -> None:
    """A client that does not read a 50 MB stream keeps at most 512 KB in this process; when it reads, all arrives."""
    size, block = 50 * 1024 * 1024, b": " + b"x" * 65_532 + b"\n\n"

    async def write(writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD)
        for _ in range(size // len(block)):
            writer.write(piece(block))
            await writer.drain()
        writer.write(b"0\r\n\r\n")
        await writer.drain()

    async def main() -> None:
        async with setting(saying(write), receive_buffer=4096) as made:
            paused: list[Relay] = []
            door = made.client.door
            door.transport.set_write_buffer_limits(high=64 * 1024)
            relay, done = await made.begin(on_pause=paused.append)
            while not paused:
                await asyncio.sleep(0)
            stood = relay.bytes
            await asyncio.sleep(0.3)
            assert relay.bytes == stood
            assert relay.ending == wire.RUNNING
            got = 0
            while not done.done():
                got += len(await made.client.read(1 << 20))
            assert relay.ending == wire.COMPLETE, relay.detail
            assert relay.bytes == size
            assert door.most_buffered <= 512 * 1024
            door.transport.close()
            got += len(await made.client.read_all())
            assert got > size

    run(kind, main)


def test_large_request_to_an_upstream_that_answers_early(kind: str) -> None:
    """An upstream that refuses before it has read the request is heard, and its connection is not used again."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 Too Large\r\ncontent-length: 2\r\n\r\n{}")
        await over.wait()

    over = asyncio.Event()

    async def main() -> None:
        async with setting(script) as made:
            connection = await made.pool.connect()
            done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            relay = make_relay(made.client.door.write, made.client.door.buffered, done)
            connection.start(relay, made.pool.target.request("/chat/completions", b"", b"r", b"x" * 30_000_000))
            await done
            assert (relay.ending, relay.status, relay.reusable) == (wire.ANSWERED, 413, False)
            assert made.pool.idle == 0
            over.set()

    run(kind, main)
