"""Who leaves, and when: clients at each stage, Weir by a fault, in a drain, by its bounds. Nothing of them stays."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import socket
import struct
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from proxy import bounds
from proxy._front import Client as Quick
from proxy._front import Request
from proxy._wire import Relay
from proxy.exchange import Exchange
from proxy.house import House
from proxy.journey import serve
from tests.front.listening import Tell, Watched, listening, rest_of, until
from tests.front.talk import Talk
from tests.journey.calling import Client, chat, request
from tests.journey.inside import Inside, inside
from tests.wire.rig import LOOPS, run

ODD = {"x_odd": "caf\u00e9"}  # a value that makes a request aiohttp's


def reset(client: Client) -> None:
    """Leaves as a killed process does."""
    near = client.writer.get_extra_info("socket")
    with socket.socket(fileno=near.fileno()) as double:
        double.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        double.detach()
    client.writer.transport.abort()


@asynccontextmanager
async def many(weir: Inside, count: int) -> AsyncIterator[list[Client]]:
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(Client(weir)) for _ in range(count)]


@pytest.mark.parametrize("part", [0, 30, -1])
def test_clients_that_leave_before_their_request_is_whole(tell: Tell, part: int) -> None:
    """Before the head, in it, and in the body: nothing is asked, nothing has a row, nothing stays."""

    async def story(front: Watched, weir: Inside) -> None:
        whole = request(chat(), weir.key)
        async with many(weir, 12) as clients:
            for client in clients:
                client.writer.write(whole[:part])
                await client.writer.drain()
            await until("all of them to be here", lambda: len(front.doors) == 12)
            await until("the bodies to be waited for", lambda: front.requests == (12 if part == -1 else 0))
            for number, client in enumerate(clients):
                if number % 3 == 0:
                    reset(client)
                elif number % 3 == 1:
                    client.writer.close()
                else:
                    client.writer.write_eof()
            await until("them to be forgotten", lambda: not front.doors and not front.requests)
        assert weir.upstream.requests == []
        assert weir.epoch.writer.calls == 0

    tell(story)


@pytest.mark.parametrize("how", ["reset", "close", "half"])
@pytest.mark.parametrize("when", ["waiting", "streaming"])
def test_clients_that_leave_their_answer(tell: Tell, when: str, how: str) -> None:
    """While the upstream is silent, and in mid-stream: it is told at once, and the row says that the client is gone."""
    script = {"first_ms": 60_000} if when == "waiting" else {"endless": True, "delay_ms": 5}

    async def story(front: Watched, weir: Inside) -> None:
        talk = Talk(weir, weir.port)
        async with many(weir, 5) as clients:
            for client in clients:
                await client.send(chat(script, stream=True))
                if when == "streaming":
                    await client.head()
            await until("every upstream to be asked", lambda: len(weir.upstream.requests) == 5)
            for client in clients:
                if how == "reset":
                    reset(client)
                elif how == "close":
                    client.writer.close()
                else:
                    client.writer.write_eof()
            await until("the upstream to notice", lambda: len(weir.upstream.ends()) == 5)
            assert {end["how"] for end in weir.upstream.ends()} == {"client_gone"}
            rows = await talk.rows()
            assert [row.termination for row in rows] == ["client_gone"] * 5
            assert {row.status for row in rows} == ({499} if when == "waiting" else {200})
            await until("them to be forgotten", lambda: not front.doors and not front.requests)

    tell(story)


def failing(before: bool) -> object:
    """A journey that breaks before or after the first byte of its answer, for those who ask for it."""

    async def broken(exchange: Exchange, house: House) -> None:
        if exchange.raw_path != "/v1/broken":
            await serve(exchange, house)
            return
        if not before:
            exchange.answer(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf", close=False)
            await asyncio.sleep(0.01)
        raise ValueError("a mistake of ours")

    return broken


@pytest.mark.parametrize("kind", LOOPS)
@pytest.mark.parametrize("odd", [False, True])
@pytest.mark.parametrize("before", [True, False])
def test_a_fault_of_our_own(
    kind: str, odd: bool, before: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Before the first byte it is a 500 that ends the connection; after it the connection is cut. The log has it."""

    async def main() -> None:
        async with inside(tmp_path) as house, listening(house, failing(before)) as (front, weir):  # type: ignore[arg-type]
            async with Client(weir) as client:
                assert (await client.call(None, "/v1/models", **(ODD if odd else {}))).status == 200
                await client.send(None, "/v1/broken")
                answer = await client.answer()
                assert answer.status == (500 if before else 200)
                assert answer.whole is before
                assert await rest_of(client.reader) == b""
            await until("it to be forgotten", lambda: not front.doors)
            async with Client(weir) as client:
                assert (await client.call(chat())).status == 200

    with caplog.at_level(logging.ERROR, "weir.front"):
        run(kind, main)
    assert [record.message for record in caplog.records if record.name == "weir.front"] == [
        "a request failed inside Weir"
    ]


async def half_asked(weir: Inside, clients: Sequence[Client]) -> None:
    """Five connections: silent, half a head, half an odd head, half a head and half an odd one after an answer."""
    head = request(None, weir.key, "/v1/models")
    clients[1].writer.write(head[:25])
    clients[2].writer.write(b"GET /v1/models?x HTTP")
    for client, half in zip(clients[3:], (head[:25], b"GET /v1/models?x HTTP"), strict=True):
        assert (await client.call(None, "/v1/models")).status == 200
        client.writer.write(half)


def test_heads_that_do_not_come(tell: Tell) -> None:
    """Silent and slow heads, ordinary or not: each has its seconds, counted from the first byte that is owed."""

    async def story(front: Watched, weir: Inside) -> None:
        async with many(weir, 6) as clients:
            *owing, idle = clients
            assert (await idle.call(None, "/v1/models")).status == 200
            await half_asked(weir, owing)
            await until("the odd ones to be handed over", lambda: front.others == 2)
            assert (await idle.call(None, "/v1/models")).status == 200
            front.later(bounds.HEADERS_SECONDS_MAX)
            assert len(front.doors) == 6
            front.later(1)
            for client in owing:
                assert await rest_of(client.reader) == b""
            await until("them to be forgotten", lambda: len(front.doors) == 1)
            front.later(bounds.CONNECTION_IDLE_SECONDS_MAX - bounds.HEADERS_SECONDS_MAX - 1)
            assert (await idle.call(None, "/v1/models")).status == 200
            front.later(bounds.CONNECTION_IDLE_SECONDS_MAX + 1)
            assert await rest_of(idle.reader) == b""

    tell(story)


def test_no_clock_runs_while_an_answer_is_due(tell: Tell) -> None:
    """An hour of a stream costs its connection nothing, nor what was sent ahead meanwhile."""

    async def story(front: Watched, weir: Inside) -> None:
        head = request(None, weir.key, "/v1/models")
        for odd in ({}, ODD):
            async with Client(weir) as client:
                await client.send(chat({"tokens": 40, "delay_ms": 5}, stream=True), **odd)
                _, headers = await client.head()
                front.later(3600)
                client.writer.write(head[:25])
                assert (await client.rest(headers))[1]
                await until("the answer to have ended", lambda: not front.requests)
                front.later(bounds.HEADERS_SECONDS_MAX)
                client.writer.write(head[25:])
                assert (await client.answer()).status == 200

    tell(story)


def test_as_many_connections_as_may_be(tell: Tell, monkeypatch: pytest.MonkeyPatch) -> None:
    """One too many ends at once; being handed over is not being one more; who leaves makes room."""
    monkeypatch.setattr(bounds, "CONNECTIONS_MAX", 5)

    async def story(front: Watched, weir: Inside) -> None:
        async with many(weir, 5) as clients:
            await until("all of them to be here", lambda: len(front.doors) == 5)
            async with Client(weir) as sixth:
                assert await rest_of(sixth.reader) == b""
            await until("the sixth to be forgotten", lambda: len(front.doors) == 5)
            for client in clients:
                assert (await client.call(None, "/v1/models", **ODD)).status == 200
            assert (len(front.doors), front.others) == (5, 5)
            clients[0].writer.close()
            await until("one to leave", lambda: len(front.doors) == 4)
            async with Client(weir) as client:
                assert (await client.call(None, "/v1/models")).status == 200

    tell(story)


@pytest.mark.parametrize("odd", [{}, ODD])
def test_a_drain(tell: Tell, odd: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Idle connections end after the grace, streams run to their end, and what comes meanwhile is a last answer."""
    monkeypatch.setattr(bounds, "DRAIN_IDLE_SECONDS", 0.2)

    async def story(front: Watched, weir: Inside) -> None:
        async with many(weir, 4) as (silent, idle, busy, late):
            whole = request(chat({"tokens": 1}), weir.key, **odd)
            assert (await idle.call(None, "/v1/models", **odd)).status == 200
            late.writer.write(whole[:-5])
            await busy.send(chat({"tokens": 60, "delay_ms": 10}, stream=True), **odd)
            _, headers = await busy.head()
            await until("all of them to be here", lambda: (len(front.doors), front.requests) == (4, 2))
            front.drain()
            assert await rest_of(silent.reader) == b""
            assert await rest_of(idle.reader) == b""
            late.writer.write(whole[-5:])
            assert (await late.answer()).status == 200
            payload, whole_stream = await busy.rest(headers)
            assert whole_stream
            assert payload.endswith(b"data: [DONE]\n\n")
            assert await rest_of(busy.reader) == b""
            assert await rest_of(late.reader) == b""
            await until("nobody to be left", lambda: not front.doors)
            monkeypatch.setattr(bounds, "DRAIN_IDLE_SECONDS", 3600)
            async with Client(weir) as client:  # one that was in the listener's queue
                answer = await client.call(None, "/v1/models", **odd)
                assert (answer.status, answer.headers["connection"]) == (200, "close")
                assert await rest_of(client.reader) == b""

    tell(story)


@pytest.mark.parametrize("odd", [{}, ODD])
def test_a_drain_while_the_loop_stands_still(tell: Tell, odd: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A request that came within the grace is answered, even if the loop could not read it before its end."""
    monkeypatch.setattr(bounds, "DRAIN_IDLE_SECONDS", 0.1)

    async def story(front: Watched, weir: Inside) -> None:
        async with Client(weir) as client:
            assert (await client.call(None, "/v1/models", **odd)).status == 200
            stood = asyncio.Event()
            near, far = socket.socketpair()
            fileno = client.writer.get_extra_info("socket").fileno()

            def stand_still() -> None:
                """Between the loop's look at its sockets and the one at its timers."""
                loop.remove_reader(near)
                os.write(fileno, request(chat({"tokens": 1}), weir.key, **odd))
                time.sleep(0.5)
                stood.set()

            with near, far:
                loop = asyncio.get_running_loop()
                loop.add_reader(near, stand_still)
                front.drain()
                far.send(b".")
                await until("the loop to have stood still", stood.is_set)
            answer = await client.answer()
            assert (answer.status, answer.headers["connection"]) == (200, "close")

    tell(story)


def test_the_front_closes_with_everything_open(tell: Tell) -> None:
    """`close` cuts streams without a clean end, of both kinds; their rows are written and nothing stays."""

    async def story(front: Watched, weir: Inside) -> None:
        talk = Talk(weir, weir.port)
        async with many(weir, 6) as clients:
            heads = []
            for client, odd in zip(clients[:4], ({}, ODD, {}, ODD), strict=True):
                await client.send(chat({"endless": True, "delay_ms": 5}, stream=True), **odd)
                heads.append(await client.head())
            clients[4].writer.write(b"GET /v1/mo")
            await until("all of them to be here", lambda: len(front.doors) == 6)
            await front.close()
            for client, (_, headers) in zip(clients, heads, strict=False):
                assert not (await client.rest(headers))[1]
            for client in clients[4:]:
                assert await rest_of(client.reader) == b""
            await until("nobody to be left", lambda: not front.doors and not front.requests)
            assert [row.termination for row in await talk.rows()] == ["client_gone"] * 4

    tell(story)


def test_nothing_keeps_what_is_over(tell: Tell) -> None:
    """With the collector off, connections, requests and relays are gone when they are over, however they ended."""

    def kept() -> list[str]:
        return [type(one).__name__ for one in gc.get_objects() if type(one) in (Quick, Request, Relay)]

    async def story(front: Watched, weir: Inside) -> None:
        async with Client(weir) as client:
            assert (await client.call(chat())).status == 200
        await until("the first to be forgotten", lambda: not front.doors)
        front.transports.clear()
        gc.collect()
        gc.disable()
        try:
            for turn in range(3):
                async with many(weir, 6) as clients:
                    answer = await clients[0].call(chat({"tokens": 2}))
                    answer = await clients[0].call(chat({"tokens": 2}, stream=True))
                    assert answer.whole
                    assert (await clients[1].call(b"nonsense")).status == 400
                    assert (await clients[1].call(chat({"status": 500}))).status == 502
                    assert (await clients[1].call(chat({"status": 404}))).status == 404
                    assert (await clients[1].call(None, "/nowhere")).status == 404
                    await clients[2].send(chat({"endless": True, "delay_ms": 5}, stream=True))
                    await clients[2].head()
                    clients[3].writer.write(request(chat(), weir.key)[:-3])
                    clients[4].writer.write(b"GET /v1")
                    await clients[5].send(chat({"reset_at": 2}, stream=True))
                    _, headers = await clients[5].head()
                    assert not (await clients[5].rest(headers))[1]
                    await until("the body to be waited for", lambda: front.requests == 2)
                await until("all of them to be forgotten", lambda: not front.doors and not front.requests)
                front.transports.clear()
                await until(f"nothing to be kept in turn {turn}: {kept()}", lambda: not kept())
        finally:
            gc.enable()

    tell(story)
