"""Clients that read slowly hold their upstream back and lose nothing; TLS changes none of it, for either front."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from proxy import bounds
from tests.front.listening import Tell, Watched, listening, rest_of, until
from tests.front.talk import Talk
from tests.journey.calling import Client, chat, request
from tests.journey.inside import Inside, inside
from tests.wire.rig import LOOPS, run

ODD = {"x_odd": "caf\u00e9"}  # a value that makes a request aiohttp's
WORD = 4000
FRAMES = 4000  # far more than all buffers between upstream and client hold


@asynccontextmanager
async def slow_reader(weir: Inside) -> AsyncIterator[socket.socket]:
    """A connection whose kernel keeps little of what it does not read."""
    with socket.socket() as reader:
        reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        reader.setblocking(False)
        await asyncio.get_running_loop().sock_connect(reader, ("127.0.0.1", weir.port))
        yield reader


async def received(reader: socket.socket, until_has: bytes, have: bytes = b"") -> bytes:
    """What has come when these bytes end it."""
    loop = asyncio.get_running_loop()
    parts = bytearray(have)
    async with asyncio.timeout(60):
        while not parts.endswith(until_has):
            part = await loop.sock_recv(reader, 1 << 16)
            assert part, "the connection ended"
            parts += part
    return bytes(parts)


@pytest.mark.parametrize("odd", [{}, ODD])
def test_a_slow_reader_holds_its_upstream_back(tell: Tell, odd: dict[str, str]) -> None:
    """While nothing is read the upstream cannot send, and little is kept; then everything arrives, again and again."""

    async def story(front: Watched, weir: Inside) -> None:
        talk = Talk(weir, weir.port)
        loop = asyncio.get_running_loop()
        async with slow_reader(weir) as reader:
            body = chat({"tokens": FRAMES, "word": "y" * WORD, "prompt_tokens": 1}, stream=True)
            await loop.sock_sendall(reader, request(body, weir.key, **odd))
            got = b""
            for turn in (1, 2):
                await until(
                    "the upstream to be held back",
                    lambda: any(not one.writable.is_set() for one in weir.upstream.connections),
                )
                (transport,) = set(front.transports)
                # One read of the upstream's may come on top of the bound.
                assert transport.get_write_buffer_size() < bounds.CLIENT_BUFFER_BYTES_MAX + 600_000
                async with asyncio.timeout(60):
                    while len(got) < turn << 20:
                        got += await loop.sock_recv(reader, 1 << 16)
            got = await received(reader, b"\r\n0\r\n\r\n", got)
            assert got.count(b"y" * WORD) == FRAMES
            (row,) = await talk.rows()
            assert (row.termination, row.completion_tokens) == ("complete", FRAMES)
            # The connection is in order.
            await loop.sock_sendall(reader, request(None, weir.key, "/v1/models"))
            assert (await received(reader, b"}")).startswith(b"HTTP/1.1 200 OK")

    tell(story)


def test_a_slow_reader_that_leaves(tell: Tell) -> None:
    """A client that goes while its upstream is held back: the row says so, and the relay is not kept waiting."""

    async def story(front: Watched, weir: Inside) -> None:
        talk = Talk(weir, weir.port)
        async with slow_reader(weir) as reader:
            body = chat({"tokens": FRAMES, "word": "y" * WORD}, stream=True)
            await asyncio.get_running_loop().sock_sendall(reader, request(body, weir.key))
            await until(
                "the upstream to be held back",
                lambda: any(not one.writable.is_set() for one in weir.upstream.connections),
            )
        await until("the connection to be forgotten", lambda: not front.doors and not front.requests)
        (row,) = await talk.rows()
        assert row.termination == "client_gone"
        await until("the upstream to notice", lambda: [end["how"] for end in weir.upstream.ends()] == ["client_gone"])

    tell(story)


@pytest.mark.parametrize("kind", LOOPS)
@pytest.mark.parametrize("odd", [{}, ODD])
def test_the_next_request_comes_while_the_answer_is_not_read(kind: str, odd: dict[str, str], tmp_path: Path) -> None:
    """An answer whose last bytes still wait for their reader: the next request begins behind it, with either front."""

    async def story(front: Watched, weir: Inside) -> None:
        loop = asyncio.get_running_loop()
        async with slow_reader(weir) as reader:
            # More than the transport takes without a pause, and less than makes the relay pause its upstream.
            first = chat({"tokens": 30, "word": "y" * WORD}, stream=True)
            await loop.sock_sendall(reader, request(first, weir.key))
            await until("the stream to have ended", lambda: weir.epoch.writer.calls and not front.requests)
            (transport,) = front.transports
            assert 64 * 1024 < transport.get_write_buffer_size() < bounds.CLIENT_BUFFER_BYTES_MAX
            second = chat({"tokens": FRAMES, "word": "z" * WORD}, stream=True)
            await loop.sock_sendall(reader, request(second, weir.key, **odd))
            await until(
                "the upstream to be held back",
                lambda: any(not one.writable.is_set() for one in weir.upstream.connections),
            )
            assert front.others == bool(odd)
            # As much again could only have come from a relay that did not wait.
            assert transport.get_write_buffer_size() < bounds.CLIENT_BUFFER_BYTES_MAX + 600_000
            got = b""
            for _ in range(2):
                got = await received(reader, b"\r\n0\r\n\r\n", got + await loop.sock_recv(reader, 1))
                if got.count(b"\r\n0\r\n\r\n") == 2:
                    break
            assert got.count(b"y" * WORD) == 30
            assert got.count(b"z" * WORD) == FRAMES
            assert got.rindex(b"y" * WORD) < got.index(b"z" * WORD)

    async def main() -> None:
        async with inside(tmp_path) as house, listening(house, send_buffer=8192) as (front, weir):
            await story(front, weir)

    run(kind, main)


@pytest.mark.parametrize("kind", LOOPS)
def test_over_tls(kind: str, tls: tuple[ssl.SSLContext, ssl.SSLContext], tmp_path: Path) -> None:
    """Calls, streams, refusals, what is sent ahead, odd requests, leaving and hurrying: all as without TLS."""
    server, trust = tls

    async def main() -> None:
        async with inside(tmp_path) as house, listening(house, tls=server) as (front, weir):
            talk = Talk(weir, weir.port)
            for odd in ({}, ODD):
                async with Client(weir, tls=trust) as client:
                    for _ in range(10):
                        assert (await client.call(chat({"tokens": 2}))).status == 200
                        assert (await client.call(chat({"tokens": 2}, stream=True), **odd)).whole
                    assert front.others == bool(odd)
                    assert (await client.call(b"nonsense")).status == 400
                    body = chat({"tokens": 1}, ignored="x" * 1_000_000)
                    assert (await client.call(body, **odd)).status == 200
                    for _ in range(10):
                        client.writer.write(request(chat({"tokens": 1}), weir.key))
                    for _ in range(10):
                        assert (await client.answer()).status == 200
                    await client.send(chat({"tokens": FRAMES, "word": "y" * WORD}, stream=True), **odd)
                    _, headers = await client.head()
                    await until(
                        "the upstream to be held back",
                        lambda: any(not one.writable.is_set() for one in weir.upstream.connections),
                    )
                    payload, whole = await client.rest(headers)
                    assert (whole, payload.count(b"y" * WORD)) == (True, FRAMES)
                await until("it to be forgotten", lambda: not front.doors)
                async with Client(weir, tls=trust) as client:
                    await client.send(chat({"endless": True, "delay_ms": 5}, stream=True), **odd)
                    await client.head()
                await until("it to be forgotten", lambda: not front.doors)
                async with Client(weir, "wk_live_wrong", tls=trust) as client:
                    client.writer.write(request(b"x" * 3_000_000, client.key, **odd))
                    assert (await client.answer()).status == 401
                    assert await rest_of(client.reader) == b""
            rows = await talk.rows()
            assert [row.termination for row in rows] == (["complete"] * 32 + ["client_gone"]) * 2

    run(kind, main)
