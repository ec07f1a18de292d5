"""The transport's own promises, against a real Redis."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy import bounds
from proxy.store.redis import (
    Entry,
    Malformed,
    RedisTransport,
    RedisUnavailable,
    StreamState,
    WrongType,
    directory_id,
    pack,
    read_batch,
    stream_name,
    unpack,
)
from tests.servers import RedisServer
from tests.store.records import eventually, run

ORIGIN = "0123456789abcdef"
STREAM = stream_name(ORIGIN)
EPOCH = bytes(range(16))


PATIENT_SECONDS = 10.0


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """These are no tests of the machine's speed: a Redis that has to wait for its turn is not away."""
    monkeypatch.setattr(bounds, "REDIS_SECONDS_MAX", PATIENT_SECONDS)


def with_transport(server: RedisServer, work: Callable[[RedisTransport], Awaitable[None]]) -> None:
    """Runs `work` with a transport that is closed afterwards."""

    async def opened() -> None:
        transport = RedisTransport(server.url)
        try:
            await work(transport)
        finally:
            await transport.close()

    run(opened())


@given(st.lists(st.binary(max_size=300), max_size=20))
def test_records_come_out_as_they_went_in(records: list[bytes]) -> None:
    """pack and unpack, for any bytes."""
    assert unpack(pack(records)) == records


@given(st.lists(st.binary(max_size=30), min_size=1, max_size=5), st.data())
def test_a_cut_field_never_passes_for_the_whole(records: list[bytes], data: st.DataObject) -> None:
    """Any proper prefix is either refused or fewer records; it never raises anything but ValueError."""
    blob = pack(records)
    cut = data.draw(st.integers(0, len(blob) - 1))
    try:
        found = unpack(blob[:cut])
    except ValueError:
        return
    assert found == records[: len(found)]
    assert len(found) < len(records)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {b"e": EPOCH, b"f": b"1", b"l": b"1"},
        {b"e": EPOCH, b"f": b"one", b"l": b"1", b"r": b""},
        {b"e": EPOCH, b"f": b"1", b"l": b"1", b"r": b"\xff\xff\xff\xffx"},
        {b"e": EPOCH, b"f": b"9" * 5000, b"l": b"1", b"r": b""},
    ],
)
def test_an_entry_nobody_has_written_is_malformed(fields: dict[bytes, bytes]) -> None:
    """It says what is wrong and carries what it held."""
    with pytest.raises(Malformed) as caught:
        read_batch(Entry(STREAM, "1-0", fields))
    assert STREAM in str(caught.value)


def test_a_data_directory_has_one_name(tmp_path: Path) -> None:
    """Made once, whole at once, the same for all that ask at the same time; a broken one is refused."""
    names: list[str] = []
    barrier = threading.Barrier(8)

    def ask() -> None:
        barrier.wait()
        names.append(directory_id(tmp_path))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(names) == 8
    assert len(set(names)) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["id"]
    (tmp_path / "id").write_text("Bob\n")
    with pytest.raises(ValueError, match="Remove the file"):
        directory_id(tmp_path)


def test_the_way_of_an_entry(redis_server: RedisServer) -> None:
    """Shipped, delivered once, drained only when acknowledged, trimmed only when nobody needs it."""

    async def work(transport: RedisTransport) -> None:
        assert await transport.state(ORIGIN) == StreamState(False, 0, 0, False, 0)
        for first in (1, 3, 5):
            await transport.ship(ORIGIN, EPOCH, first, first + 1, pack([b"a", b"b"]))
        assert await transport.streams() == [STREAM]
        assert (await transport.state(ORIGIN)).drained is False
        with pytest.raises(KeyError):
            await transport.read([STREAM], 10, 1)
        await transport.ensure_group(STREAM)
        await transport.ensure_group(STREAM)
        entries = await transport.read([STREAM], 10, 1)
        assert [(batch.first, batch.last, batch.origin) for batch in map(read_batch, entries)] == [
            (1, 2, ORIGIN),
            (3, 4, ORIGIN),
            (5, 6, ORIGIN),
        ]
        assert await transport.read([STREAM], 10, 1) == []
        state = await transport.state(ORIGIN)
        assert (state.entries, state.pending, state.drained) == (3, 3, False)
        await transport.acknowledge(STREAM, [entries[1].id])
        assert await transport.trim(STREAM) == 0  # the first is still pending
        await transport.acknowledge(STREAM, [entries[0].id, entries[0].id])
        assert await transport.trim(STREAM) == 2
        await transport.acknowledge(STREAM, [entries[2].id])
        assert (await transport.state(ORIGIN)).drained is True
        await transport.ship(ORIGIN, EPOCH, 7, 7, pack([b"c"]))
        assert await transport.trim(STREAM) == 1  # the new entry is not delivered yet and stays
        state = await transport.state(ORIGIN)
        assert (state.entries, state.drained) == (1, False)
        assert [read_batch(one).first for one in await transport.read([STREAM], 10, 1)] == [7]

    with_transport(redis_server, work)


def test_an_abandoned_entry_changes_hands(redis_server: RedisServer) -> None:
    """Claimed only after its time, whole; the old owner's acknowledgement then does no harm."""

    async def work(transport: RedisTransport) -> None:
        await transport.ship(ORIGIN, EPOCH, 1, 1, pack([b"a"]))
        await transport.ensure_group(STREAM)
        entries = await transport.read([STREAM], 10, 1)
        heir = RedisTransport(redis_server.url)
        assert await heir.claim(STREAM, 60_000, 10) == ([], 0)
        assert await heir.claim(STREAM, 0, 10) == (entries, 0)
        await transport.acknowledge(STREAM, [entries[0].id])
        assert await heir.claim(STREAM, 0, 10) == ([], 0)
        await transport.leave(STREAM)
        await heir.leave(STREAM)
        assert b"consumers" in redis_server.command("XINFO", "GROUPS", STREAM)
        assert redis_server.command("XINFO", "CONSUMERS", STREAM, "flush") == b"*0\r\n"
        await heir.close()

    with_transport(redis_server, work)


def test_a_consumer_with_work_in_hand_does_not_leave(redis_server: RedisServer) -> None:
    """Deleting a consumer deletes what is pending for it: its entries would never be delivered again."""

    async def work(transport: RedisTransport) -> None:
        await transport.ship(ORIGIN, EPOCH, 1, 1, pack([b"a"]))
        await transport.ensure_group(STREAM)
        await transport.read([STREAM], 10, 1)
        await transport.leave(STREAM)
        assert (await transport.state(ORIGIN)).pending == 1

    with_transport(redis_server, work)


@pytest.mark.parametrize("read_first", [True, False])
def test_entries_deleted_under_the_group_do_not_block_it(redis_server: RedisServer, read_first: bool) -> None:
    """Someone deletes unread or pending entries: the stream still becomes drained, so the keeper sends again."""

    async def work(transport: RedisTransport) -> None:
        await transport.ship(ORIGIN, EPOCH, 1, 1, pack([b"a"]))
        await transport.ship(ORIGIN, EPOCH, 2, 2, pack([b"b"]))
        await transport.ensure_group(STREAM)
        if read_first:
            await transport.read([STREAM], 10, 1)
        redis_server.command("XTRIM", STREAM, "MAXLEN", "0")
        assert await transport.read([STREAM], 10, 1) == []
        assert await transport.claim(STREAM, 0, 10) == ([], 2 if read_first else 0)
        state = await transport.state(ORIGIN)
        assert (state.exists, state.drained) == (True, True)

    with_transport(redis_server, work)


def test_a_taken_name_is_told_apart_from_an_absent_redis(redis_server: RedisServer) -> None:
    """A key of another type under Weir's names: WrongType with the name and the remedy, whatever is asked."""
    redis_server.command("SET", STREAM, "mine")

    async def work(transport: RedisTransport) -> None:
        for attempt in (
            transport.ship(ORIGIN, EPOCH, 1, 1, b""),
            transport.state(ORIGIN),
            transport.ensure_group(STREAM),
            transport.read([STREAM], 1, 1),
            transport.claim(STREAM, 0, 1),
            transport.trim(STREAM),
        ):
            with pytest.raises(WrongType, match=STREAM):
                await attempt
        redis_server.command("DEL", "weir:streams")
        redis_server.command("SET", "weir:streams", "mine")
        with pytest.raises(WrongType, match="weir:streams"):
            await transport.streams()
        with pytest.raises(WrongType, match="weir:streams"):
            await transport.ship("f" * 16, EPOCH, 1, 1, b"")

    with_transport(redis_server, work)


def test_a_full_redis_can_be_drained(redis_server: RedisServer) -> None:
    """Out of memory without eviction: nothing can be added, everything can be read, acknowledged and trimmed."""

    async def work(transport: RedisTransport) -> None:
        await transport.ship(ORIGIN, EPOCH, 1, 1, pack([b"a" * 1000]))
        await transport.ensure_group(STREAM)
        redis_server.command("CONFIG", "SET", "maxmemory", "1")
        try:
            with pytest.raises(RedisUnavailable, match="maxmemory"):
                await transport.ship(ORIGIN, EPOCH, 2, 2, pack([b"b"]))
            entries = await transport.read([STREAM], 10, 1)
            assert len(entries) == 1
            assert await transport.claim(STREAM, 0, 10) == (entries, 0)
            await transport.acknowledge(STREAM, [entries[0].id])
            assert await transport.trim(STREAM) == 1
            assert (await transport.state(ORIGIN)).drained is True
        finally:
            redis_server.command("CONFIG", "SET", "maxmemory", "0")

    with_transport(redis_server, work)


def test_a_cancelled_call_is_cancelled(redis_server: RedisServer) -> None:
    """Whenever the cancellation comes: a duty whose cancellation is lost would outlive the end of its process."""

    async def work(transport: RedisTransport) -> None:
        async def duty() -> None:
            while True:
                await transport.state(ORIGIN)

        for steps in range(1, 61):
            task = asyncio.create_task(duty())
            for _ in range(steps):
                await asyncio.sleep(0)
            task.cancel()
            # By then the answer of a call that went on is here, and the next call is on its way.
            await asyncio.wait([task], timeout=5)
            lost = not task.done()
            while not task.done():
                task.cancel()
                await asyncio.wait([task], timeout=0.05)
            assert not lost, f"cancelled after {steps} steps, and it went on"

    with_transport(redis_server, work)


def test_a_frozen_redis_looks_like_an_absent_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGSTOP: each call ends in RedisUnavailable within its bound; after SIGCONT answers belong to their questions."""
    monkeypatch.setattr(bounds, "REDIS_SECONDS_MAX", 0.5)
    with RedisServer() as server:

        async def work(transport: RedisTransport) -> None:
            await transport.ship(ORIGIN, EPOCH, 1, 1, pack([b"a"]))
            server.freeze()
            for attempt in (transport.ping(), transport.ship(ORIGIN, EPOCH, 2, 2, pack([b"b"]))):
                # Twenty times the bound: a library's own retries, ten of them, would take longer.
                async with asyncio.timeout(10):
                    with pytest.raises(RedisUnavailable):
                        await attempt
            server.thaw()
            monkeypatch.setattr(bounds, "REDIS_SECONDS_MAX", PATIENT_SECONDS)
            await eventually(transport.ping, "Redis answers again")
            assert await transport.streams() == [STREAM]
            assert (await transport.state(ORIGIN)).entries in (1, 2)  # the second may have arrived or not
            server.kill()
            with pytest.raises(RedisUnavailable):
                await transport.ping()
            server.start()
            await eventually(transport.ping, "Redis answers again")
            assert (await transport.state(ORIGIN)).exists is False

        with_transport(server, work)


def test_an_append_only_redis_remembers() -> None:
    """The server helper's promise that the fault tests lean on: with "always" a kill loses nothing, wiped it does."""
    with RedisServer("always") as server:

        async def work(transport: RedisTransport) -> None:
            await transport.ship(ORIGIN, EPOCH, 1, 1, pack([b"a"]))
            server.kill()
            server.start()
            await eventually(transport.ping, "Redis answers again")
            assert (await transport.state(ORIGIN)).entries == 1
            server.kill()
            server.forget()
            server.start()
            await eventually(transport.ping, "Redis answers again")
            await eventually(transport.ping, "Redis answers again")
            assert (await transport.state(ORIGIN)).exists is False

        with_transport(server, work)
