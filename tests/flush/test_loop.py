"""The flusher at its work: rows, sums, sharing, and entries that cannot be taken."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from proxy.flush.fold import Folded
from proxy.flush.loop import Flusher
from proxy.store.redis import RedisTransport
from proxy.store.store import BadData, Persisted, Store
from tests.flush.flushing import (
    EPOCH,
    EVENTS,
    ORIGIN,
    OTHER,
    PARTS,
    STREAM,
    Lines,
    drained,
    flushing,
    said,
    ship,
)
from tests.servers import RedisServer
from tests.store.records import batches, differences, eventually, mixed, run


def test_what_is_shipped_becomes_rows(url: str, redis_server: RedisServer, lines: Lines) -> None:
    """Each record one row, roll-ups exact, the stream acknowledged and trimmed to nothing, and no word of trouble."""

    async def work() -> None:
        async with flushing(url, redis_server.url, lines) as (flusher, store, transport):
            await ship(transport, PARTS)
            await eventually(drained(transport), "the stream is drained")
            assert await differences(store, EVENTS) == []
            assert flusher.totals == Persisted(new=900)
        assert lines.errors() == []

    run(work())


def test_four_flushers_share_six_streams(url: str, redis_server: RedisServer, lines: Lines) -> None:
    """Any number of flushers, any number of data directories: nothing twice and nothing left."""
    directories = [f"{number:016x}" for number in range(6)]
    events = {bytes([number]) * 16: mixed(number, 100) for number in range(6)}

    async def work() -> None:
        async with (
            flushing(url, redis_server.url, lines) as (one, store, transport),
            flushing(url, redis_server.url, lines) as (two, _, _),
            flushing(url, redis_server.url, lines) as (three, _, _),
            flushing(url, redis_server.url, lines) as (four, _, _),
        ):
            for origin, (epoch, made) in zip(directories, events.items(), strict=True):
                await ship(transport, batches(epoch, made, 10), origin)

            async def done() -> bool:
                return all([(await transport.state(origin)).drained for origin in directories])

            await eventually(done, "all streams are drained")
            assert await differences(store, events) == []
            assert sum(flusher.totals.new for flusher in (one, two, three, four)) == 600

    run(work())


def test_an_entry_nobody_has_written_is_set_aside(url: str, redis_server: RedisServer, lines: Lines) -> None:
    """Odd fields, and a count that does not fit: quarantined with an alarm, acknowledged, and the rest flows."""

    async def work() -> None:
        async with flushing(url, redis_server.url, lines) as (flusher, store, transport):
            await ship(transport, PARTS[:24])
            redis_server.command("XADD", STREAM, "*", "hello", "world\0\xff")
            redis_server.command("XADD", STREAM, "*", "e", "x" * 16, "f", "1", "l", "9", "r", b"\x01\0\0\0Z")
            await ship(transport, PARTS[24:])
            await eventually(drained(transport), "the stream is drained")
            assert await differences(store, EVENTS) == []
            assert flusher.totals == Persisted(new=900, quarantined=2)
            assert [finding.kind for finding in (await store.verify()).findings] == ["quarantine"]
        assert "unreadable records are in quarantine; see `weir usage verify`" in lines.errors()

    run(work())


def test_an_entry_that_the_database_refuses_does_not_stop_the_others(
    sqlite_url: str, redis_server: RedisServer, lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refused for no reason that the fold could see: left pending with an alarm, tried again later, never lost."""
    refuse = True
    persist = Store.persist_folded

    async def persist_folded(self: Store, folded: Folded) -> Persisted:
        if refuse and (EPOCH, 30) in folded.rows:
            raise BadData("no")
        return await persist(self, folded)

    monkeypatch.setattr(Store, "persist_folded", persist_folded)

    async def work() -> None:
        nonlocal refuse
        async with flushing(sqlite_url, redis_server.url, lines) as (_, store, transport):
            await ship(transport, PARTS)

            async def others() -> bool:
                found = await store.persisted([OTHER])
                return found[OTHER] == 300 and (await transport.state(ORIGIN)).pending == 1

            await eventually(others, "everything else is in the database")
            assert (await store.persisted([EPOCH]))[EPOCH] == 25
            assert any("left in the stream" in message for message in lines.errors())
            refuse = False
            await eventually(drained(transport), "the entry is claimed and taken")
            assert await differences(store, EVENTS) == []

    run(work())


def test_stopping_does_not_wait_for_what_is_away(tmp_path: Path, lines: Lines) -> None:
    """Neither Redis nor the database is there: `run` still ends at once when it is told to."""

    async def work() -> None:
        store = Store.open(f"postgresql://weir@/weir?host={tmp_path}")
        transport = RedisTransport(f"unix://{tmp_path}/absent.sock")
        flusher = Flusher(store, transport, lines.log)
        stop = asyncio.Event()
        task = asyncio.create_task(flusher.run(stop))
        await eventually(said(lines, "Redis"), "the flusher says that Redis is away")
        stop.set()
        async with asyncio.timeout(5):
            await task
        await store.close()
        await transport.close()

    run(work())


def test_every_topic_of_trouble_names_no_secret(tmp_path: Path, lines: Lines) -> None:
    """Addresses hold passwords: what the flusher says of an absent server shows none."""

    async def work() -> None:
        transport = RedisTransport("redis://user:hunter2@127.0.0.1:1/0")
        store = Store.open("postgresql://user:hunter2@127.0.0.1:1/weir")
        for attempt in (transport.ping(), store.ping()):
            try:
                await attempt
            except Exception as error:
                lines.log.error(str(error))
        await store.close()
        await transport.close()

    run(work())
    assert len(lines.errors()) == 2
    assert "hunter2" not in (tmp_path / "log").read_text()
