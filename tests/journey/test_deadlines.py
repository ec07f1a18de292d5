"""Whoever is slow, on either side, holds no more than its share and no longer than its time."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path

import pytest

from proxy import board, bounds
from proxy._fastpath import Arena
from proxy.clock import boot_id
from tests.journey.calling import Client, chat, once, request
from tests.journey.conftest import House
from tests.journey.inside import inside
from tests.journey.test_stream import resident_bytes
from tests.world.gateway import Gateway, wait_for
from tests.world.process import UpstreamProcess

SLACK_BYTES = 512 * 1024  # what one stalled reader may keep buffered in a worker


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """One worker, and an upstream whose deadlines are short."""
    directory: Path = tmp_path_factory.mktemp("deadlines")
    with ExitStack() as stack:
        upstream = stack.enter_context(UpstreamProcess(directory / "ledger.jsonl"))
        # One short deadline each: no other could end the call in its place before the test's patience ends.
        short = {
            "silent": {"first_byte_seconds": 4},
            "stalls": {"idle_seconds": 4.2},
            "long": {"total_seconds": 9},
        }
        hole = stack.enter_context(socket.create_server(("127.0.0.1", 0)))  # accepts nothing, says nothing
        hole_url = f"http://127.0.0.1:{hole.getsockname()[1]}/v1"
        settings = {
            "upstreams": {
                **{name: {"url": upstream.url, "timeouts": timeouts} for name, timeouts in short.items()},
                "hole": {"url": hole_url, "timeouts": short["silent"]},
            },
            "models": {name: {"upstream": name, "unpriced": True} for name in (*short, "hole")},
        }
        with Gateway(directory, upstream.url, settings=settings) as weir:
            yield House(weir, upstream)
            weir.assert_at_rest()


@pytest.fixture(scope="module", autouse=True)
def slow_heads(house: House) -> Iterator[Future[set[bytes]]]:
    """What three hundred slow connections were told before they were closed, once they all are."""
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(lambda: asyncio.run(dawdle(house)))


async def dawdle(house: House) -> set[bytes]:
    """Connections of which each owes a head for ever: all that they receive until they are closed."""
    whole = request(None, house.weir.key, "/v1/models")

    async def drip(client: Client) -> None:
        for at in range(20, len(whole) - 4):
            client.writer.write(whole[at : at + 1])
            await asyncio.sleep(0.25)

    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(Client(house.weir)) for _ in range(300)]
        for client in clients[100:]:
            client.writer.write(whole[:20])
        dripping = [asyncio.create_task(drip(client)) for client in clients[200:]]
        # One that had an answer before owes the next head in time too.
        kept = await stack.enter_async_context(Client(house.weir))
        assert (await kept.call(None, "/v1/models")).status == 200
        kept.writer.write(whole[:20])
        patience = bounds.HEADERS_SECONDS_MAX + 40
        said = await asyncio.gather(*(ends(client.reader, patience) for client in [*clients, kept]))
        for task in dripping:
            task.cancel()
        await asyncio.gather(*dripping, return_exceptions=True)
        return set(said)


async def ends(reader: asyncio.StreamReader, seconds: float) -> bytes:
    """What comes until the other side closes; TimeoutError when it does not."""
    async with asyncio.timeout(seconds):
        try:
            return await reader.read()
        except ConnectionResetError:
            return b""


def test_slow_bodies_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A body that does not come in time is a 408; nothing was admitted. The bound is scaled from 60 s to one."""
    monkeypatch.setattr(bounds, "BODY_SECONDS_MAX", 1)

    async def story() -> None:
        async with inside(tmp_path) as weir, AsyncExitStack() as stack:
            clients = [await stack.enter_async_context(Client(weir)) for _ in range(30)]
            whole = request(chat(), weir.key)
            for client in clients:
                client.writer.write(whole[:-10])
            async with Client(weir) as other:
                assert (await other.call(chat({"tokens": 1}))).status == 200
            for client in clients:
                answer = await client.answer()
                assert (answer.status, answer.code) == (408, "body_timeout")
                assert (answer.headers["connection"], answer.headers["x-should-retry"]) == ("close", "false")
                assert await ends(client.reader, 60) == b""
            assert len(weir.upstream.requests) == 1
            assert weir.epoch.writer.calls == 1

    asyncio.run(story())


@pytest.mark.parametrize("count", [200, pytest.param(500, marks=pytest.mark.soak)])
def test_slow_readers_cost_their_share(house: House, count: int) -> None:
    """Hundreds of clients that read nothing of an endless stream: memory stays bounded, the upstream is held back.

    When they go, each has its row, and no row says less than what its client may have received.
    """
    (worker,) = house.weir.processes("worker")
    before = resident_bytes(worker)
    body = chat({"endless": True, "word": "x" * 50_000}, stream=True)
    readers = []
    try:
        for number in range(count):
            reader = socket.socket()
            readers.append(reader)
            reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            reader.connect(("127.0.0.1", house.weir.port))
            reader.sendall(request(body, house.weir.key, x_request_id=f"slow-{count}-{number}"))

        wait_for("all streams to be open", lambda: open_streams(house) == count)
        most = 0
        for _ in range(30):  # an upstream that nobody held back would say gigabytes meanwhile
            most = max(most, resident_bytes(worker))
            time.sleep(0.05)
        assert open_streams(house) == count
        assert most - before < count * SLACK_BYTES, (before, most)
        # The others are not held back.
        assert asyncio.run(once(house.weir, chat({"tokens": 50}, stream=True))).whole
    finally:
        for reader in readers:
            reader.close()
    rows = wait_for("their rows", lambda: mine if len(mine := rows_of(house, f"slow-{count}-")) == count else None)
    assert {row["termination"] for row in rows} == {"client_gone"}
    house.upstream.wait_idle()
    sent = {event["n"]: event["bytes"] for event in house.upstream.events() if event["event"] == "end"}
    asked = {event["id"]: event["n"] for event in house.upstream.events() if event["event"] == "request"}
    assert all(0 < row["relayed_bytes"] <= sent[asked[row["request_id"]]] for row in rows)
    print(f"{count} slow readers: {(most - before) / count / 1024:.0f} KB each in the worker")


def open_streams(house: House) -> int:
    """How many relays the worker has under way, as it says on the board."""
    arena = Arena(str(house.weir.data / "arena"), boot_id(), -1)
    try:
        return sum(arena.column_word(column, board.STREAMS) for column in range(bounds.COLUMNS))
    finally:
        arena.close()


def rows_of(house: House, name: str) -> list[dict[str, object]]:
    """The rows of the requests of this name."""
    return [row for row in house.weir.rows() if row["request_id"].startswith(name)]


SLOW_UPSTREAMS = [
    # one byte a second: each is progress, so only the total time ends it
    ("long", {"tokens": 50, "drip": True, "split_ms": 900}, "asked", 200),
    # the same where a frame may have to be hidden: its first one was never whole, so nothing has gone to the client
    ("long", {"tokens": 50, "drip": True, "split_ms": 900}, True, 504),
    ("long", {"endless": True, "delay_ms": 300}, True, 200),
    ("stalls", {"tokens": 9, "stall_at": 3}, True, 200),
    ("silent", {"body_ms": 90_000}, False, 504),  # a head alone: nothing has gone to the client yet
    ("silent", {"first_ms": 90_000}, True, 504),
    ("silent", {"first_ms": 90_000}, False, 504),
]


def test_slow_upstreams_are_cut(house: House) -> None:
    """Each deadline towards the upstream ends its call: before the first byte by a 504, after it by a cut."""

    async def one(number: int) -> None:
        model, script, stream, status = SLOW_UPSTREAMS[number]
        request_id = f"slow-upstream-{number}"
        options = {"stream_options": {"include_usage": True}} if stream == "asked" else {}
        body = chat(script, model, stream=bool(stream), **options)
        answer = await once(house.weir, body, x_request_id=request_id)
        assert answer.status == status
        if status == 200:
            assert not answer.whole
        else:
            assert (answer.code, answer.headers["x-weir-error"]) == ("upstream_timeout", "upstream")
        row = await asyncio.to_thread(house.row, request_id)
        assert (row["termination"], row["status"]) == ("timeout", status)
        assert row["relayed_bytes"] >= len(answer.payload) if status == 200 else row["relayed_bytes"] == 0

    async def story() -> None:
        await asyncio.gather(*(one(number) for number in range(len(SLOW_UPSTREAMS))))

    asyncio.run(story())
    wait_for("nothing to be held", lambda: house.weir.held() == (0, 0))


def test_a_black_hole_is_left(house: House) -> None:
    """An upstream that takes the connection and says nothing is a 504 at the first-byte bound; nothing stays held."""

    async def story() -> None:
        answers = await asyncio.gather(*(once(house.weir, chat(model="hole")) for _ in range(40)))
        assert {(answer.status, answer.code) for answer in answers} == {(504, "upstream_timeout")}
        assert {answer.headers["x-should-retry"] for answer in answers} == {"false"}

    asyncio.run(story())
    wait_for("nothing to be held", lambda: house.weir.held() == (0, 0))


def test_a_reader_that_pauses_gets_everything(house: House) -> None:
    """A client that stops reading for a while in a big answer and then goes on receives each byte of it."""
    count = 3000
    script = {"tokens": count, "word": "y" * 4000, "prompt_tokens": 5}
    body = chat(script, stream=True)
    with socket.socket() as reader:
        reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        reader.settimeout(120)
        reader.connect(("127.0.0.1", house.weir.port))
        reader.sendall(request(body, house.weir.key, x_request_id="pauses", connection="close"))
        received = bytearray(reader.recv(1000))
        time.sleep(1)
        while part := reader.recv(1 << 16):
            received += part
    assert received.endswith(b"\r\n0\r\n\r\n")
    assert received.count(b"y" * 4000) == count
    row = house.row("pauses")
    assert (row["termination"], row["completion_tokens"]) == ("complete", count)


def test_slow_heads_are_cut(house: House, slow_heads: Future[set[bytes]]) -> None:
    """Silence, half a head, a head that comes byte by byte: all are cut at the bound, and no request waits for them.

    The bound of ten seconds is waited for once, by three hundred connections together, while the other tests run.
    """
    assert asyncio.run(once(house.weir, chat({"tokens": 1}))).status == 200
    assert slow_heads.result(100) == {b""}
    wait_for("the worker to have forgotten them", lambda: not house.weir.connections())
