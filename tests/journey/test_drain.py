"""Draining: rolling restarts lose nothing, SIGTERM lets streams finish, and a kill in the middle keeps the books."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from proxy import bounds
from tests.journey.calling import Client, chat, once, request
from tests.journey.conftest import House
from tests.world.gateway import Gateway, wait_for
from tests.world.ledger import Seen, check
from tests.world.process import UpstreamProcess

SOAK = bool(os.environ.get("WEIR_SOAK"))


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """A Weir of two workers that each test finds running, whatever the one before did to it."""
    directory: Path = tmp_path_factory.mktemp("drain")
    with UpstreamProcess(directory / "ledger.jsonl") as upstream:
        timeouts = {"connect_seconds": 8, "first_byte_seconds": 8, "idle_seconds": 8, "total_seconds": 8}
        settings = {
            "upstreams": {"brief": {"url": upstream.url, "timeouts": timeouts}},
            "models": {"brief": {"upstream": "brief", "unpriced": True}},
            "drain_seconds": 600,  # far above any wait below: what ends, ends because it is done
            "log": {"requests": "off"},
        }
        with Gateway(directory, upstream.url, workers=2, settings=settings) as weir:
            yield House(weir, upstream)
            weir.start()
            weir.assert_at_rest()
            assert check(upstream.events(), weir.rows()) == []


@pytest.fixture
def weir(house: House) -> Gateway:
    """Running and ready."""
    house.weir.start()
    return house.weir


class Load:
    """Clients that stream and clients that keep their connection, until told to stop."""

    def __init__(self, weir: Gateway, streams: int, keepers: int, delay_ms: int = 25) -> None:
        self.weir = weir
        self.streams = streams
        self.keepers = keepers
        self.delay_ms = delay_ms
        self.good: Counter[str] = Counter()
        self.closed = 0  # keep-alive connections that a draining worker announced the end of
        self.bad: list[str] = []
        self.stop = asyncio.Event()

    async def stream(self) -> None:
        """One stream after the other, each on a new connection."""
        while not self.stop.is_set():
            try:
                answer = await once(self.weir, chat({"tokens": 16, "delay_ms": self.delay_ms}, stream=True))
                if answer.status != 200 or not answer.whole or not answer.payload.endswith(b"data: [DONE]\n\n"):
                    self.bad.append(f"stream: {answer}")
                self.good["stream"] += 1
            except (OSError, EOFError) as error:
                self.bad.append(f"stream: {error!r}")

    async def keep(self) -> None:
        """One request after the other on one connection, as long as it is not told to close it.

        A draining worker leaves it open for DRAIN_IDLE_SECONDS after an answer, for a request that is on its way. It
        is no fault of the worker when this process is not let run for so long and asks too late.
        """
        while not self.stop.is_set():
            asked = before = time.monotonic()
            try:
                async with Client(self.weir) as client:
                    while not self.stop.is_set():
                        before, asked = asked, time.monotonic()
                        answer = await client.call(chat({"tokens": 1}))
                        if answer.status != 200 or not answer.whole:
                            self.bad.append(f"kept: {answer}")
                        self.good["kept"] += 1
                        if answer.headers.get("connection") == "close":
                            self.closed += 1
                            break
                        await asyncio.sleep(0.01)
            except (OSError, EOFError) as error:
                if asked - before < bounds.DRAIN_IDLE_SECONDS / 2:
                    self.bad.append(f"kept: {error!r}")

    async def during(self, restarts: int) -> None:
        """The load while `weir restart` runs so many times."""
        clients = [asyncio.create_task(self.stream()) for _ in range(self.streams)]
        clients += [asyncio.create_task(self.keep()) for _ in range(self.keepers)]
        try:
            for _ in range(restarts):
                done = await asyncio.to_thread(self.weir.weir, "restart")
                assert done.stdout == "restarted\n"
        finally:
            self.stop.set()
            await asyncio.gather(*clients)


def restarted(weir: Gateway, times: int) -> None:
    """Restarts under load; nothing may fail, nothing may be cut, every worker must be another one."""
    before = set(weir.processes("worker", "keeper"))
    load = Load(weir, streams=12, keepers=12)
    asyncio.run(load.during(times))
    assert load.bad == [], (len(load.bad), load.bad[:5])
    assert load.good["stream"] > 12
    assert load.good["kept"] > 50 * times
    assert load.closed >= 12  # told by the draining worker's answer, so that no request raced with a close
    assert not before & set(weir.processes("worker", "keeper"))


def test_rolling_restarts(weir: Gateway) -> None:
    """Restarts under a load of streams and kept connections: no request fails and no stream is cut."""
    restarted(weir, 2)


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_twenty_rolling_restarts(weir: Gateway) -> None:
    """The same, twenty times."""
    restarted(weir, 20)


async def opened(
    weir: Gateway, stack: AsyncExitStack, count: int, script: dict[str, object], name: str
) -> list[Client]:
    """So many clients whose streams have begun."""
    clients = [await stack.enter_async_context(Client(weir)) for _ in range(count)]
    for number, client in enumerate(clients):
        await client.send(chat(script, stream=True), x_request_id=f"{name}-{number}")
    return clients


async def ends(clients: list[Client], heads: list[tuple[int, dict[str, str]]]) -> list[tuple[bytes, bool]]:
    """What follows each of the heads, and whether it is whole."""
    return list(await asyncio.gather(*(c.rest(headers) for c, (_, headers) in zip(clients, heads, strict=True))))


def refuses(weir: Gateway) -> bool:
    """Whether nobody listens any more."""
    try:
        socket.create_connection(("127.0.0.1", weir.port), timeout=120).close()
    except ConnectionRefusedError:
        return True
    return False


@pytest.mark.parametrize("count", [200, pytest.param(500, marks=pytest.mark.soak)])
def test_sigterm_lets_streams_finish(weir: Gateway, house: House, count: int) -> None:
    """SIGTERM with hundreds of streams: nobody new gets in, each of them ends whole, exit code 0, and all have rows.

    What is answered meanwhile on kept connections says that it is the last answer there, and is. A stream that never
    ends is cut at its total time, as it would be without a drain.
    """
    name = f"term-{count}"

    async def story() -> None:
        async with AsyncExitStack() as stack:
            kept = [await stack.enter_async_context(Client(weir)) for _ in range(10)]
            for client in kept:
                assert "connection" not in (await client.call(None, "/v1/models")).headers
            endless = await stack.enter_async_context(Client(weir))
            await endless.send(chat({"endless": True, "delay_ms": 20}, "brief", stream=True), x_request_id=f"{name}-x")
            _, endless_head = await endless.head()
            clients = await opened(weir, stack, count, {"tokens": 20, "delay_ms": 200}, name)
            heads = [await client.head() for client in clients]
            assert {status for status, _ in heads} == {200}
            # A head that has begun keeps its connection from the grace for idle ones, on a machine of any speed.
            asks = [request(chat({"tokens": 1}), weir.key, x_request_id=f"{name}-kept-{n}") for n in range(10)]
            for client, ask in zip(kept, asks, strict=True):
                client.writer.write(ask[:40])
            proxy = weir.parts["proxy"]
            proxy.send_signal(signal.SIGTERM)
            await asyncio.to_thread(wait_for, "the listener to close", lambda: refuses(weir))
            assert proxy.poll() is None
            for client, ask in zip(kept, asks, strict=True):
                client.writer.write(ask[40:])
                answer = await client.answer()
                assert (answer.status, answer.headers["connection"]) == (200, "close")
                assert await client.reader.read() == b""
            rest = await ends(clients, heads)
            assert sum(whole for _, whole in rest) == count
            assert {payload.count(b"\n\n") for payload, _ in rest} == {21}
            payload, whole = await endless.rest(endless_head)
            assert (whole, payload.count(b"\n\n") > 10) == (False, True)
            assert await asyncio.to_thread(proxy.wait, 120) == 0

    asyncio.run(story())
    rows = rows_of(weir, name)
    assert Counter(row["termination"] for row in rows) == {"complete": count + 10, "timeout": 1}


def test_idle_connections_do_not_hold_the_drain(weir: Gateway) -> None:
    """Connections that never spoke, that had an answer, or whose stream ended meanwhile are closed after a grace."""

    async def story() -> None:
        async with AsyncExitStack() as stack:
            kept = [await stack.enter_async_context(Client(weir)) for _ in range(12)]
            for client in kept[:4]:
                assert (await client.call(chat({"tokens": 1}))).status == 200
            for client in kept[4:8]:
                await client.send(chat({"tokens": 4, "delay_ms": 100}, stream=True))
            heads = [await client.head() for client in kept[4:8]]
            weir.parts["proxy"].send_signal(signal.SIGTERM)
            assert all(whole for _, whole in await ends(kept[4:8], heads))
            for client in kept:
                async with asyncio.timeout(60):  # by itself a connection that is kept would stay for longer
                    assert await client.reader.read() == b""

    asyncio.run(story())
    assert weir.parts["proxy"].wait(120) == 0


def test_a_second_sigterm_hurries(weir: Gateway, house: House) -> None:
    """The second SIGTERM cuts what runs without a clean ending; rows say so, and the exit code is still 0."""

    async def story() -> None:
        async with AsyncExitStack() as stack:
            clients = await opened(weir, stack, 20, {"endless": True, "delay_ms": 50}, "hurry")
            heads = [await client.head() for client in clients]
            proxy = weir.parts["proxy"]
            proxy.send_signal(signal.SIGTERM)
            await asyncio.to_thread(wait_for, "the listener to close", lambda: refuses(weir))
            assert proxy.poll() is None
            proxy.send_signal(signal.SIGTERM)
            rest = await asyncio.gather(
                *(client.rest(headers) for client, (_, headers) in zip(clients, heads, strict=True))
            )
            assert not any(whole for _, whole in rest)
            assert await asyncio.to_thread(proxy.wait, 120) == 0

    asyncio.run(story())
    rows = [row for row in weir.rows() if row["request_id"].startswith("hurry-")]
    assert len(rows) == 20
    endings = {row["termination"] for row in rows}
    assert "complete" not in endings
    assert endings != {"crash"}, "the workers did not hurry: they had to be killed"


@pytest.mark.parametrize("victim", ["worker", "all"])
def test_killed_while_draining(weir: Gateway, house: House, victim: str) -> None:
    """SIGKILL in the middle of a drain, to the workers or to every part: after a start the books are exact."""
    name = f"slain-{victim}"

    async def story() -> dict[str, Seen]:
        async with AsyncExitStack() as stack:
            clients = await opened(weir, stack, 40, {"endless": True, "delay_ms": 50}, name)
            heads = [await client.head() for client in clients]
            weir.parts["proxy"].send_signal(signal.SIGTERM)
            await asyncio.to_thread(wait_for, "the listener to close", lambda: refuses(weir))
            for pid in weir.processes() if victim == "all" else weir.processes(victim):
                os.kill(pid, signal.SIGKILL)
            rest = await asyncio.gather(
                *(client.rest(headers) for client, (_, headers) in zip(clients, heads, strict=True))
            )
            return {
                f"{name}-{number}": Seen("complete" if whole else "cut", 200, payload.count(b"\n\n"), len(payload))
                for number, (payload, whole) in enumerate(rest)
            }

    seen = asyncio.run(story())
    assert {one.ended for one in seen.values()} == {"cut"}
    weir.parts["proxy"].wait(120)
    wait_for("every part to end", lambda: not weir.processes())
    weir.start()
    house.upstream.wait_idle()
    rows = wait_for("every row", lambda: mine if len(mine := rows_of(weir, name)) == len(seen) else None)
    ids = {event["n"] for event in house.upstream.events() if event.get("id", "").startswith(name)}
    assert check([event for event in house.upstream.events() if event["n"] in ids], rows, seen) == []
    assert {row["termination"] for row in rows} == {"crash"}
    wait_for("nothing to be held", lambda: weir.held() == (0, 0))


def rows_of(weir: Gateway, name: str) -> list[dict[str, object]]:
    """The rows of the requests of this name."""
    return [row for row in weir.rows() if row["request_id"].startswith(name + "-")]
