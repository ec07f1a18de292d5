"""The flusher among faults: whatever is away, forgotten, full, taken or malformed, it goes on and rows are exact."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from proxy import bounds
from proxy.flush.fold import Folded
from proxy.flush.loop import Flusher
from proxy.store.redis import RedisTransport, RedisUnavailable, stream_name
from proxy.store.store import BadData, Persisted, Store
from tests.flush.flushing import ORIGIN, Lines, complete, flushing, ship
from tests.servers import PostgresServer, RedisServer
from tests.store.records import batches, differences, eventually, mixed, run

EPOCH = bytes(range(16))
OTHER = bytes(reversed(range(16)))
STREAM = stream_name(ORIGIN)
EVENTS = {EPOCH: mixed(1, 600), OTHER: mixed(2, 300)}
PARTS = [part for epoch, events in EVENTS.items() for part in batches(epoch, events, 25, ORIGIN)]


@pytest.fixture
def lines(tmp_path: Path) -> Iterator[Lines]:
    """The flusher's log."""
    found = Lines(tmp_path / "log")
    yield found
    found.close()


@pytest.fixture(autouse=True)
def _short_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits between tries scaled to the test's patience."""
    monkeypatch.setattr(bounds, "FLUSH_BACKOFF_SECONDS_MAX", 0.2)


def drained(transport: RedisTransport, entries: int = 0) -> Callable[[], object]:
    """Whether the stream is acknowledged and trimmed down to `entries`."""

    async def look() -> bool:
        state = await transport.state(ORIGIN)
        return state.drained and state.entries == entries

    return look


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


@pytest.mark.parametrize("persistence", ["none", "always"])
def test_redis_dies_and_comes_back(sqlite_url: str, lines: Lines, persistence: str) -> None:
    """Killed twice, with and without its memory: said once per change, and what it forgot is sent again."""
    with RedisServer(persistence) as server:  # type: ignore[arg-type]

        async def work() -> None:
            async with flushing(sqlite_url, server.url, lines) as (_, store, transport):
                for start in (0, 12):
                    await ship(transport, PARTS[start : start + 12])
                    server.kill()
                    await eventually(lambda: _troubled(lines, "Redis"), "the flusher says that Redis is away")
                    await asyncio.to_thread(server.start)
                    await eventually(lambda: _well(lines, "Redis"), "the flusher says that Redis is back")
                    await eventually(transport.ping, "Redis answers again")
                await complete(transport, store, PARTS)
                assert await differences(store, EVENTS) == []
            assert lines.about("Redis")[:4] == ["error", "info", "error", "info"]

        run(work())


def test_redis_becomes_a_replica_and_an_older_copy_is_promoted(sqlite_url: str, lines: Lines) -> None:
    """Read-only: waits and says so. Promoted without the newest entries: they are sent again, and rows are exact."""
    with RedisServer("always") as server:

        async def work() -> None:
            async with flushing(sqlite_url, server.url, lines) as (_, store, transport):
                await ship(transport, PARTS[:10])
                await eventually(drained(transport), "the first part is drained")
                server.command("REPLICAOF", "127.0.0.1", "1")
                with pytest.raises(RedisUnavailable, match="read only replica"):
                    await ship(transport, PARTS[10:11])
                await eventually(lambda: _said(lines, "Redis"), "the flusher says that Redis is away")
                server.command("REPLICAOF", "NO", "ONE")
                await ship(transport, PARTS[10:20])
                await eventually(drained(transport), "the second part is drained")
            transport = RedisTransport(server.url)
            await ship(transport, PARTS[20:28])
            older = (server.directory / "appendonly.aof").read_bytes()
            await ship(transport, PARTS[28:])
            server.kill()
            (server.directory / "appendonly.aof").write_bytes(older)
            await asyncio.to_thread(server.start)
            await transport.close()
            async with flushing(sqlite_url, server.url, lines) as (_, store, transport):
                await complete(transport, store, PARTS)
                assert await differences(store, EVENTS) == []

        run(work())


def test_redis_is_frozen_and_thawed(sqlite_url: str, lines: Lines) -> None:
    """SIGSTOP in the middle of a stream of entries: waits, goes on, exact."""
    with RedisServer() as server:

        async def work() -> None:
            async with flushing(sqlite_url, server.url, lines) as (_, store, transport):
                await ship(transport, PARTS[:20])
                server.freeze()
                await eventually(lambda: _said(lines, "Redis"), "the flusher says that Redis is away")
                server.thaw()
                await eventually(transport.ping, "Redis answers again")
                await complete(transport, store, PARTS)
                assert await differences(store, EVENTS) == []

        run(work())


async def _said(lines: Lines, topic: str) -> bool:
    return bool(lines.about(topic))


async def _troubled(lines: Lines, topic: str) -> bool:
    return lines.about(topic)[-1:] == ["error"]


async def _well(lines: Lines, topic: str) -> bool:
    return lines.about(topic)[-1:] == ["info"]


def test_redis_forgets_everything(url: str, redis_server: RedisServer, lines: Lines) -> None:
    """FLUSHALL between and during reads: the group is made anew at 0, and what was lost is sent again."""

    async def work() -> None:
        async with flushing(url, redis_server.url, lines) as (_, store, transport):
            for start in range(0, len(PARTS), 12):
                await ship(transport, PARTS[start : start + 12])
                await asyncio.sleep(0.05)
                redis_server.command("FLUSHALL")
            await complete(transport, store, PARTS)
            assert await differences(store, EVENTS) == []

    run(work())


def test_the_group_is_destroyed(sqlite_url: str, redis_server: RedisServer, lines: Lines) -> None:
    """NOGROUP: made anew at 0, what was delivered before comes again as doubles, and nothing is missing."""

    async def work() -> None:
        async with flushing(sqlite_url, redis_server.url, lines) as (_, store, transport):
            await ship(transport, PARTS[:10])
            await eventually(drained(transport), "the first part is drained")
            redis_server.command("XGROUP", "DESTROY", STREAM, "flush")
            await ship(transport, PARTS[8:])
            await eventually(drained(transport), "the second part is drained")
            assert await differences(store, EVENTS) == []

    run(work())


def test_a_taken_name_stops_only_its_own_stream(sqlite_url: str, redis_server: RedisServer, lines: Lines) -> None:
    """One stream's name holds another type: one alarm that names it, the other streams flow, and it heals."""
    taken = stream_name("f" * 16)
    redis_server.command("SET", taken, "mine")
    redis_server.command("SADD", "weir:streams", "f" * 16)

    async def work() -> None:
        async with flushing(sqlite_url, redis_server.url, lines) as (_, store, transport):
            await ship(transport, PARTS[:24])
            await eventually(drained(transport), "the good stream is drained")
            await eventually(lambda: _said(lines, taken), "the alarm")
            redis_server.command("DEL", taken)
            await ship(transport, PARTS[24:], "f" * 16)

            async def complete() -> bool:
                return await differences(store, EVENTS) == []

            await eventually(complete, "the healed stream is flushed")
        assert lines.about(taken) == ["error", "info"]

    run(work())


def test_the_list_of_streams_is_taken(sqlite_url: str, redis_server: RedisServer, lines: Lines) -> None:
    """`weir:streams` holds another type: an alarm, no crash, and it heals when the key is gone."""
    redis_server.command("SET", "weir:streams", "mine")

    async def work() -> None:
        async with flushing(sqlite_url, redis_server.url, lines) as (_, store, transport):
            await eventually(lambda: _said(lines, "weir:streams"), "the alarm")
            redis_server.command("DEL", "weir:streams")
            await complete(transport, store, PARTS)
            assert await differences(store, EVENTS) == []
        assert lines.about("weir:streams") == ["error", "info"]

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


def test_a_full_redis_is_drained_by_a_new_flusher(sqlite_url: str, lines: Lines) -> None:
    """Out of memory without eviction: the flusher that starts then still reads, acknowledges and trims."""
    with RedisServer() as server:

        async def work() -> None:
            async with flushing(sqlite_url, server.url, lines) as (_, _, transport):
                await ship(transport, PARTS[:1])
                await eventually(drained(transport), "the group exists and is drained")
            transport = RedisTransport(server.url)
            await ship(transport, PARTS)
            server.command("CONFIG", "SET", "maxmemory", "1")
            with pytest.raises(RedisUnavailable):
                await ship(transport, PARTS[:1])
            async with flushing(sqlite_url, server.url, lines) as (_, store, _):
                await eventually(drained(transport), "the full Redis is drained")
                assert await differences(store, EVENTS) == []
            await transport.close()

        run(work())


def test_postgresql_restarts_under_the_flusher(
    own_postgres: PostgresServer, redis_server: RedisServer, lines: Lines
) -> None:
    """Stopped at once, away for a moment, recovering: said once per change, rows and roll-ups exact."""
    url = own_postgres.url(own_postgres.create_database())

    async def work() -> None:
        from proxy.store.store import migrate

        await migrate(url)
        async with flushing(url, redis_server.url, lines) as (_, store, transport):
            for start in (0, 12, 24):
                await ship(transport, PARTS[start : start + 12])
                await asyncio.sleep(0.02)
                await asyncio.to_thread(own_postgres.kill)
                await eventually(lambda: _troubled(lines, "database"), "the flusher says that the database is away")
                await asyncio.to_thread(own_postgres.start)
                await eventually(lambda: _well(lines, "database"), "the flusher says that the database is back")
            await eventually(drained(transport), "the stream is drained")
            assert await differences(store, EVENTS) == []
            assert (await store.verify()).findings == []
        assert lines.about("database") == ["error", "info"] * 3

    run(work())


def test_postgresql_is_frozen_and_thawed(
    own_postgres: PostgresServer, redis_server: RedisServer, lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGSTOP to the whole cluster: the transaction ends at its bound, and after SIGCONT nothing is double."""
    monkeypatch.setattr(bounds, "FLUSH_SECONDS_MAX", 0.5)
    monkeypatch.setattr(bounds, "DATABASE_CONNECT_SECONDS_MAX", 0.5)
    url = own_postgres.url(own_postgres.create_database())

    async def work() -> None:
        from proxy.store.store import migrate

        await migrate(url)
        async with flushing(url, redis_server.url, lines) as (_, store, transport):
            await ship(transport, PARTS[:4])
            await eventually(drained(transport), "the first entries are flushed")
            own_postgres.freeze()
            await ship(transport, PARTS[4:])
            await eventually(lambda: _said(lines, "database"), "the flusher says that the database is away")
            own_postgres.thaw()
            await eventually(drained(transport), "the stream is drained")
            assert await differences(store, EVENTS) == []

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


def test_an_acknowledgement_that_fails_is_made_up_for(
    sqlite_url: str, redis_server: RedisServer, lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Redis is away between commit and acknowledgement: acknowledged at the next chance, without a second delivery."""
    acknowledge = RedisTransport.acknowledge
    failures = 2

    async def failing(self: RedisTransport, stream: str, ids: list[str]) -> None:
        nonlocal failures
        if failures:
            failures -= 1
            raise RedisUnavailable("away for a moment")
        await acknowledge(self, stream, ids)

    monkeypatch.setattr(RedisTransport, "acknowledge", failing)

    async def work() -> None:
        async with flushing(sqlite_url, redis_server.url, lines, claim_idle_seconds=30) as (flusher, store, transport):
            await ship(transport, PARTS[:24])
            await eventually(drained_of_pending(transport), "everything is acknowledged")
            assert flusher.totals == Persisted(new=600)
            assert await differences(store, {EPOCH: EVENTS[EPOCH]}) == []

    run(work())


def drained_of_pending(transport: RedisTransport) -> Callable[[], object]:
    """Whether nothing is pending or undelivered, trimmed or not."""

    async def look() -> bool:
        return (await transport.state(ORIGIN)).drained

    return look


def test_stopping_does_not_wait_for_what_is_away(tmp_path: Path, lines: Lines) -> None:
    """Neither Redis nor the database is there: `run` still ends at once when it is told to."""

    async def work() -> None:
        store = Store.open(f"postgresql://weir@/weir?host={tmp_path}")
        transport = RedisTransport(f"unix://{tmp_path}/absent.sock")
        flusher = Flusher(store, transport, lines.log)
        stop = asyncio.Event()
        task = asyncio.create_task(flusher.run(stop))
        await eventually(lambda: _said(lines, "Redis"), "the flusher says that Redis is away")
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
