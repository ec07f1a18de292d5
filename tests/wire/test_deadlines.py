"""Deadlines and lag: one timer looks at all relays. Times are scaled down; the sweep's period is their precision."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import pytest

from proxy import _wire as wire
from proxy import bounds
from tests.wire import answers
from tests.wire.rig import LOOPS, Bench, Transport, bench, make_relay, run
from tests.wire.test_relay import HEAD, piece

LONG = 20_000
Main = Callable[[], Awaitable[None]]


def start(made: Bench, client: Transport, **options: object) -> tuple[wire.Relay, asyncio.Future[None]]:
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    relay = make_relay(client.write, client.get_write_buffer_size, done, **options)  # type: ignore[arg-type]
    made.connection.start(relay, b"x")
    return relay, done


@pytest.mark.parametrize("kind", LOOPS)
@pytest.mark.parametrize(
    ("limits", "fed", "ending"),
    [
        ((100, LONG, LONG), [], wire.FIRST_BYTE_TIMEOUT),
        ((100, LONG, LONG), [b"HTTP/1.1 200 OK\r\n"], wire.FIRST_BYTE_TIMEOUT),
        ((100, LONG, LONG), [HEAD], wire.FIRST_BYTE_TIMEOUT),
        ((LONG, 100, LONG), [HEAD, piece(answers.FRAMES[0])], wire.IDLE_TIMEOUT),
        ((LONG, LONG, 100), [HEAD, piece(answers.FRAMES[0])], wire.TOTAL_TIMEOUT),
        ((LONG, LONG, 100), [], wire.TOTAL_TIMEOUT),
        ((100, LONG, LONG), [b"HTTP/1.1 500 No\r\ncontent-length: 5\r\n\r\nab"], wire.ANSWERED),
    ],
    ids=["silent", "half a head", "head alone", "idle", "total", "total, silent", "error without its end"],
)  # fmt: skip
def test_each_deadline(kind: str, limits: tuple[int, int, int], fed: list[bytes], ending: int) -> None:
    """A relay ends by the deadline that passed, its future is resolved and its connection aborted."""

    async def main() -> None:
        sweeper = wire.Sweeper(asyncio.get_running_loop())
        with bench() as made:
            client = Transport()
            first, idle, total = limits
            relay, done = start(made, client, first_byte_ms=first, idle_ms=idle, total_ms=total)
            sweeper.add(relay)
            assert sweeper.running() == 1
            for data in fed:
                made.connection.data_received(data)
            await done
            assert relay.ending == ending
            assert made.upstream.aborted
            assert made.reported == [False]
            assert sweeper.running() == 0
            client.close_sockets()
        sweeper.close()

    run(kind, main)


@pytest.mark.parametrize("kind", LOOPS)
def test_activity_keeps_a_relay(kind: str) -> None:
    """A stream that trickles longer than its idle time, but never pauses for so long, goes on."""

    async def main() -> None:
        sweeper = wire.Sweeper(asyncio.get_running_loop())
        with bench() as made:
            client = Transport()
            relay, done = start(made, client, idle_ms=1000)
            sweeper.add(relay)
            made.connection.data_received(HEAD)
            for _ in range(15):
                made.connection.data_received(piece(answers.FRAMES[0]))
                await asyncio.sleep(0.1)
            assert relay.ending == wire.RUNNING
            relay.cancel()
            await done
            client.close_sockets()
        sweeper.close()

    run(kind, main)


@pytest.mark.parametrize("kind", LOOPS)
def test_stalled_client(kind: str) -> None:
    """A paused upstream is not idle; a client that reads nothing for too long ends the relay."""

    async def main() -> None:
        sweeper = wire.Sweeper(asyncio.get_running_loop(), stall_seconds=0.7)
        with bench() as made:
            client = Transport()
            relay, done = start(made, client, idle_ms=200)
            sweeper.add(relay)
            client.unread = bounds.CLIENT_BUFFER_BYTES_MAX + 1
            block = b": " + b"x" * client.unread + b"\n\n"
            made.connection.data_received(HEAD + piece(block))
            assert made.upstream.paused
            await done
            assert relay.ending == wire.CLIENT_STALLED
            client.close_sockets()
        sweeper.close()

    run(kind, main)


@pytest.mark.parametrize("kind", LOOPS)
def test_slow_client_is_not_stalled(kind: str) -> None:
    """A client that takes a little now and then, over longer than the stall time, is waited for."""

    async def main() -> None:
        sweeper = wire.Sweeper(asyncio.get_running_loop(), stall_seconds=1.5)
        with bench() as made:
            client = Transport()
            relay, done = start(made, client, idle_ms=200)
            sweeper.add(relay)
            client.unread = 2 * bounds.CLIENT_BUFFER_BYTES_MAX
            made.connection.data_received(HEAD + piece(b": " + b"x" * client.unread + b"\n\n"))
            for _ in range(20):
                client.unread -= 1000
                await asyncio.sleep(0.1)
            assert relay.ending == wire.RUNNING
            relay.cancel()
            await done
            client.close_sockets()
        sweeper.close()

    run(kind, main)


@pytest.mark.parametrize("kind", LOOPS)
def test_relay_that_is_never_sent(kind: str) -> None:
    """A relay that is watched but finds no connection does not stay for ever."""

    async def main() -> None:
        sweeper = wire.Sweeper(asyncio.get_running_loop())
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        relay = make_relay(print, int, done, first_byte_ms=100)
        sweeper.add(relay)
        await done
        assert relay.ending == wire.FIRST_BYTE_TIMEOUT
        assert sweeper.running() == 0
        sweeper.close()

    run(kind, main)


@pytest.mark.parametrize("kind", LOOPS)
def test_transport_that_cannot_be_asked(kind: str) -> None:
    """A client's transport that raises ends its own relay in the sweep, and no other's."""

    async def main() -> None:
        sweeper = wire.Sweeper(asyncio.get_running_loop())
        with bench() as made, bench() as other:
            client = Transport()
            broken = False

            def buffered() -> int:
                if broken:
                    raise RuntimeError("closed")
                return 2 * bounds.CLIENT_BUFFER_BYTES_MAX

            done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            relay = make_relay(client.write, buffered, done)
            made.connection.start(relay, b"x")
            silent, _ = start(other, client)
            for each in (silent, relay):
                sweeper.add(each)
            made.connection.data_received(HEAD + piece(b": " + b"x" * bounds.CLIENT_BUFFER_BYTES_MAX + b"\n\n"))
            assert made.upstream.paused
            broken = True
            await done
            assert relay.ending == wire.CLIENT_GONE
            assert silent.ending == wire.RUNNING
            client.close_sockets()
        sweeper.close()

    run(kind, main)


@pytest.mark.parametrize("kind", LOOPS)
def test_loop_that_stood_still_judges_nobody_by_it(kind: str) -> None:
    """After a pause of the whole loop, what arrived meanwhile is read before anything is judged; the lag is told."""

    async def main() -> None:
        sweeper = wire.Sweeper(asyncio.get_running_loop())
        with bench() as made:
            client = Transport()
            relay, done = start(made, client, idle_ms=400)
            sweeper.add(relay)
            made.connection.data_received(HEAD + piece(answers.FRAMES[0]))
            sweeper.lag_us()
            time.sleep(0.8)  # the loop stands still
            lag = 0
            while lag < 500_000:
                await asyncio.sleep(0)
                lag = max(lag, sweeper.lag_us())
            assert relay.ending == wire.RUNNING
            await done  # nothing came all the same: the next sweep says so
            assert relay.ending == wire.IDLE_TIMEOUT
            client.close_sockets()
        sweeper.close()

    run(kind, main)


@pytest.mark.parametrize("kind", LOOPS)
def test_many_relays_end_in_any_order(kind: str) -> None:
    """Places in the list are handed on rightly: each of many relays ends by its own deadline or by hand."""

    async def main() -> None:
        sweeper = wire.Sweeper(asyncio.get_running_loop())
        benches = [Bench() for _ in range(60)]
        client = Transport()
        waiting = []
        for number, made in enumerate(benches):
            relay, done = start(made, client, first_byte_ms=(100, 250, LONG)[number % 3])
            sweeper.add(relay)
            sweeper.add(relay)  # a second time changes nothing
            waiting.append((number, relay, done))
        assert sweeper.running() == 60
        for number, relay, done in waiting:
            if number % 3 == 2 and number % 2:
                relay.cancel()
            elif number % 3 != 2:
                await done
        for number, relay, _ in waiting:
            expected = wire.FIRST_BYTE_TIMEOUT if number % 3 != 2 else wire.CANCELLED if number % 2 else wire.RUNNING
            assert relay.ending == expected, number
        assert sweeper.running() == 10
        for made in benches:
            made.close()
        assert sweeper.running() == 0
        sweeper.close()
        client.close_sockets()

    run(kind, main)
