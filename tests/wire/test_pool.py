"""The pool: reuse, replacement, bounds, waiting, and that nothing leaks whoever gives up when."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

from proxy import _wire as wire
from proxy import bounds
from proxy._wire import Connection, Relay
from proxy.errors import Refusal
from proxy.upstreams.pool import Pool
from proxy.upstreams.target import Target
from tests.wire import answers
from tests.wire.rig import LOOPS, Script, Transport, Upstream, make_relay, read_request, run, settle, upstream

SEED = 5
REQUEST = b"POST /v1/x HTTP/1.1\r\ncontent-length: 2\r\n\r\n{}"
RAW = answers.GOOD[0].raw

pytestmark = pytest.mark.parametrize("kind", LOOPS)


async def obliging(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answers every request on the connection."""
    while True:
        await read_request(reader)
        writer.write(RAW)
        await writer.drain()


async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Accepts and says nothing."""
    await reader.read()


@asynccontextmanager
async def pooled(script: Script, **options: Any) -> AsyncIterator[tuple[Pool, Upstream]]:
    """A pool in front of a scripted server; at the end it must be empty and in order."""
    async with upstream(script) as server:
        options = {"max_connections": 4, "max_waiting": 4, "connect_ms": 5000, **options}
        pool = Pool(Target(f"http://127.0.0.1:{server.port}/v1", "k"), **options)
        try:
            yield pool, server
        finally:
            pool.close()
            assert repr(pool) == "[Requests: 0 active, 0 queued | Connections: 0 active, 0 idle]"
            await settle()


async def ask(connection: Connection) -> Relay:
    """One whole request and answer."""
    client = Transport()
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    relay = make_relay(client.write, client.get_write_buffer_size, done)
    try:
        connection.start(relay, REQUEST)
        await done
    finally:
        relay.cancel()
        client.close_sockets()
    return relay


def test_last_used_first_taken(kind: str) -> None:
    """Connections are reused, the last one given back first, and the pool's own words count them."""

    async def main() -> None:
        async with pooled(obliging) as (pool, server):
            assert pool.take() is None
            one, two = await pool.connect(), await pool.connect()
            assert repr(pool) == "[Requests: 2 active, 0 queued | Connections: 2 active, 0 idle]"
            await ask(one)
            await ask(two)
            assert repr(pool) == "[Requests: 0 active, 0 queued | Connections: 0 active, 2 idle]"
            for _ in range(5):
                assert pool.take() is two
                await ask(two)
            assert pool.take() is two
            assert pool.take() is one
            assert pool.take() is None
            pool.give_back(one)
            pool.give_back(two)
            assert server.connections == 2
            assert (one.answers, two.answers) == (1, 6)

    run(kind, main)


def test_connection_closed_while_idle_is_replaced(kind: str) -> None:
    """An idle connection that the upstream closed leaves the pool, and the next call gets a new one unnoticed."""

    async def once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(RAW)
        await writer.drain()

    async def main() -> None:
        async with pooled(once) as (pool, server):
            for turn in range(20):
                connection = pool.take() or await pool.connect()
                assert (await ask(connection)).ending == wire.COMPLETE
                while pool.idle:
                    await asyncio.sleep(0)
                assert (connection.closed, pool.active) == (True, 0)
                assert server.connections == turn + 1

    run(kind, main)


def test_connection_closed_in_the_kernel_only(kind: str) -> None:
    """A close that the loop has not read yet is found by looking at the socket: no request is lost to it."""

    async def main() -> None:
        listener = socket.create_server(("127.0.0.1", 0))
        pool = Pool(
            Target(f"http://127.0.0.1:{listener.getsockname()[1]}/v1", None),
            max_connections=2, max_waiting=0, connect_ms=5000,
        )  # fmt: skip
        connection = await pool.connect()
        far, _ = listener.accept()
        pool.give_back(connection)
        assert connection.alive()
        far.close()  # and no turn of the loop before the next call
        assert not connection.alive()
        assert pool.take() is None
        assert pool.idle == pool.active == 0
        fresh = await pool.connect()
        far, _ = listener.accept()
        pool.give_back(fresh)
        far.send(b"HTTP/1.1 408 Request Timeout\r\n\r\n")  # what some servers say before they close
        assert pool.take() is None
        far.close()
        listener.close()
        pool.close()
        await settle()

    run(kind, main)


def test_old_idle_connections_are_closed(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reaper closes what was idle for too long and keeps the rest; with nothing idle it does not run."""

    async def main() -> None:
        async with pooled(obliging) as (pool, _):
            old, young = await pool.connect(), await pool.connect()
            with monkeypatch.context() as patch:
                patch.setattr(bounds, "UPSTREAM_IDLE_SECONDS_MAX", 0.02)  # how often the reaper looks
                pool.give_back(old)
            pool.give_back(young)
            old.idle_since_ns -= int(bounds.UPSTREAM_IDLE_SECONDS_MAX * 1e9)
            while pool.idle == 2:
                await asyncio.sleep(0.01)
            assert old.closed
            assert pool.take() is young
            young.idle_since_ns -= int(bounds.UPSTREAM_IDLE_SECONDS_MAX * 1e9)
            pool.give_back(young)
            assert pool.take() is None  # found too old on the way out as well
            pool._reap()
            assert pool._reaper is None

    run(kind, main)


def test_idle_connections_are_bounded(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the bound on idle connections the one given back is closed."""

    async def main() -> None:
        monkeypatch.setattr(bounds, "UPSTREAM_IDLE_CONNECTIONS_MAX", 2)
        async with pooled(obliging) as (pool, _):
            connections = [await pool.connect() for _ in range(4)]
            for connection in connections:
                await ask(connection)
            assert (pool.idle, pool.active) == (2, 0)

    run(kind, main)


def test_bounds_and_queue(kind: str) -> None:
    """Never more connections than allowed; the queue is served in order; beyond it a call is refused."""

    async def main() -> None:
        async with pooled(obliging, max_connections=2, max_waiting=2) as (pool, server):
            one, two = await pool.connect(), await pool.connect()
            order: list[int] = []

            async def queued(number: int) -> None:
                connection = await pool.connect()
                order.append(number)
                await ask(connection)

            waiting = [asyncio.create_task(queued(number)) for number in range(2)]
            await asyncio.sleep(0)
            assert repr(pool) == "[Requests: 2 active, 2 queued | Connections: 2 active, 0 idle]"
            with pytest.raises(Refusal) as refused:
                await pool.connect()
            assert refused.value.code == "upstream_overloaded"
            await ask(one)  # given back: to the first
            two.abort()  # gone: its place to the second
            await asyncio.gather(*waiting)
            assert order == [0, 1]
            assert server.connections == 3
            assert (pool.active, pool.waiting) == (0, 0)

    run(kind, main)


def test_queue_has_a_time_limit(kind: str) -> None:
    """A call that waits too long for a place is refused, and leaves the queue."""

    async def main() -> None:
        async with pooled(silent, max_connections=1, wait_ms=50) as (pool, _):
            held = await pool.connect()
            with pytest.raises(Refusal) as refused:
                await pool.connect()
            assert refused.value.code == "upstream_overloaded"
            assert pool.waiting == 0
            pool.give_back(held)
            assert pool.idle == 1

    run(kind, main)


def test_cancelled_in_the_queue(kind: str) -> None:
    """Whoever gives up while waiting leaves; one who is served in the same instant passes it on."""

    async def main() -> None:
        async with pooled(obliging, max_connections=1) as (pool, server):
            held = await pool.connect()
            first = asyncio.create_task(pool.connect())
            second = asyncio.create_task(pool.connect())
            third = asyncio.create_task(pool.connect())
            await asyncio.sleep(0)
            first.cancel()
            await asyncio.sleep(0)
            pool.give_back(held)  # to the second ...
            second.cancel()  # ... which gives up before it runs
            assert await third is held
            assert (pool.active, pool.waiting) == (1, 0)
            fourth = asyncio.create_task(pool.connect())
            await asyncio.sleep(0)
            held.abort()  # a promised place ...
            fourth.cancel()  # ... that nobody wants
            with suppress(asyncio.CancelledError):
                await fourth
            assert (pool.active, pool.waiting) == (0, 0)
            assert first.cancelled()
            assert second.cancelled()
            pool.give_back(await pool.connect())
            assert server.connections == 2

    run(kind, main)


@pytest.mark.parametrize("known", [False, True])
def test_connection_that_dies_in_the_queue(kind: str, known: bool) -> None:
    """A connection that died between being given back and being taken is replaced, and the bound still holds."""

    async def main() -> None:
        async with pooled(obliging, max_connections=1, max_waiting=2) as (pool, server):
            held = await pool.connect()
            served = 0

            async def caller() -> None:
                nonlocal served
                connection = await pool.connect()
                assert len(pool._all) + pool._opening == 1
                assert (await ask(connection)).ending == wire.COMPLETE
                served += 1

            callers = [asyncio.create_task(caller()) for _ in range(2)]
            await asyncio.sleep(0)
            pool.give_back(held)
            if known:
                held.abort()
            else:
                server.hang_up()
            await asyncio.gather(*callers)
            assert (served, pool.active, pool.waiting) == (2, 0, 0)
            assert server.connections == 2

    run(kind, main)


def test_refused_and_timed_out(kind: str) -> None:
    """A closed port is `upstream_unreachable`; a connection that is never accepted is `upstream_connect_timeout`."""

    async def main() -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            target = Target(f"http://127.0.0.1:{taken.getsockname()[1]}/v1", None)
            pool = Pool(target, max_connections=1, max_waiting=0, connect_ms=5000)
            for _ in range(3):
                with pytest.raises(Refusal) as refused:
                    await pool.connect()
                assert refused.value.code == "upstream_unreachable"
                assert pool.active == 0
            taken.listen(0)
            fillers = []
            for _ in range(4):  # fills the queue of connections that nobody accepts
                filler = socket.socket()
                filler.setblocking(False)
                filler.connect_ex(taken.getsockname())
                fillers.append(filler)
            pool = Pool(target, max_connections=1, max_waiting=0, connect_ms=200)
            with pytest.raises(Refusal) as refused:
                await pool.connect()
            assert refused.value.code == "upstream_connect_timeout"
            assert pool.active == 0
            for filler in fillers:
                filler.close()
        # A name that no resolver can be asked for.
        pool = Pool(Target(f"http://{'a' * 64}.invalid/v1", None), max_connections=1, max_waiting=0, connect_ms=5000)
        with pytest.raises(Refusal) as refused:
            await pool.connect()
        assert refused.value.code == "upstream_unreachable"
        assert pool.active == 0

    run(kind, main)


def test_closed_pool(kind: str) -> None:
    """A retired pool lets answers finish and takes no more calls; a closed one ends them."""

    async def main() -> None:
        async with pooled(obliging, max_connections=2) as (pool, _):
            one, two = await pool.connect(), await pool.connect()
            waiting = asyncio.create_task(pool.connect())
            await asyncio.sleep(0)
            pool.retire()
            with pytest.raises(Refusal) as refused:
                await waiting
            assert refused.value.code == "not_ready"
            with pytest.raises(Refusal):
                await pool.connect()
            assert (await ask(one)).ending == wire.COMPLETE
            assert (pool.active, pool.idle) == (1, 0)
            asking = asyncio.create_task(ask(two))
            await asyncio.sleep(0)
            pool.close()
            assert (await asking).ending in (wire.CANCELLED, wire.COMPLETE)

    run(kind, main)


def test_nothing_leaks_whoever_gives_up_when(kind: str) -> None:
    """Seeded chaos of callers that finish, abort, or are cancelled at any point: at the end every place is free."""

    async def main() -> None:
        rng = random.Random(SEED)
        async with pooled(obliging, max_connections=5, max_waiting=20) as (pool, _):

            async def caller() -> None:
                with suppress(Refusal):
                    connection = pool.take() or await pool.connect()
                    if rng.random() < 0.2:
                        connection.abort()
                    elif rng.random() < 0.1:
                        pool.give_back(connection)
                    else:
                        await ask(connection)

            for turn in range(60):
                tasks = [asyncio.create_task(caller()) for _ in range(rng.randrange(30))]
                for _ in range(rng.randrange(12)):
                    await asyncio.sleep(0)
                    assert len(pool._all) + pool._opening <= 5, f"seed {SEED}, turn {turn}"
                    if tasks and rng.random() < 0.7:
                        rng.choice(tasks).cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                assert (pool.active, pool.waiting) == (0, 0), f"seed {SEED}, turn {turn}: {pool}"

    run(kind, main)
