"""The flusher among outages: whatever is away, forgotten, full or taken, it goes on, and rows are exact."""

from __future__ import annotations

import asyncio

import pytest

from proxy import bounds
from proxy.store.redis import RedisTransport, RedisUnavailable, stream_name
from proxy.store.store import Persisted, Store
from tests.flush.flushing import (
    EPOCH,
    EVENTS,
    PARTS,
    STREAM,
    Lines,
    complete,
    drained,
    flushing,
    said,
    ship,
)
from tests.servers import PostgresServer, RedisServer
from tests.store.records import differences, eventually, run


@pytest.mark.parametrize("persistence", ["none", "always"])
def test_redis_dies_and_comes_back(sqlite_url: str, lines: Lines, persistence: str) -> None:
    """Killed twice, with and without its memory: said once per change, and what it forgot is sent again."""
    with RedisServer(persistence) as server:  # type: ignore[arg-type]

        async def work() -> None:
            async with flushing(sqlite_url, server.url, lines) as (_, store, transport):
                for start in (0, 12):
                    await ship(transport, PARTS[start : start + 12])
                    server.kill()
                    await eventually(said(lines, "Redis", "error"), "the flusher says that Redis is away")
                    await asyncio.to_thread(server.start)
                    await eventually(said(lines, "Redis", "info"), "the flusher says that Redis is back")
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
                await eventually(said(lines, "Redis"), "the flusher says that Redis is away")
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
                await eventually(said(lines, "Redis"), "the flusher says that Redis is away")
                server.thaw()
                await eventually(transport.ping, "Redis answers again")
                await complete(transport, store, PARTS)
                assert await differences(store, EVENTS) == []

        run(work())


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
            await eventually(said(lines, taken), "the alarm")
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
            await eventually(said(lines, "weir:streams"), "the alarm")
            redis_server.command("DEL", "weir:streams")
            await complete(transport, store, PARTS)
            assert await differences(store, EVENTS) == []
        assert lines.about("weir:streams") == ["error", "info"]

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
                await ship(transport, PARTS[start : start + 6])
                await asyncio.sleep(0.02)
                await asyncio.to_thread(own_postgres.kill)
                await ship(transport, PARTS[start + 6 : start + 12])
                await eventually(said(lines, "database", "error"), "the flusher says that the database is away")
                await asyncio.to_thread(own_postgres.start)
                await eventually(said(lines, "database", "info"), "the flusher says that the database is back")
            await eventually(drained(transport), "the stream is drained")
            assert await differences(store, EVENTS) == []
            assert (await store.verify()).findings == []
        assert lines.about("database") == ["error", "info"] * 3

    run(work())


def test_postgresql_is_frozen_and_thawed(
    own_postgres: PostgresServer, redis_server: RedisServer, lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGSTOP to the whole cluster: the transaction ends at its bound, and after SIGCONT nothing is double."""
    url = own_postgres.url(own_postgres.create_database())

    async def work() -> None:
        from proxy.store.store import migrate

        await migrate(url)
        patient = Store.open(url)
        monkeypatch.setattr(bounds, "FLUSH_SECONDS_MAX", 1)
        monkeypatch.setattr(bounds, "DATABASE_CONNECT_SECONDS_MAX", 1)
        async with flushing(url, redis_server.url, lines) as (_, _, transport):
            await ship(transport, PARTS[:4])
            await eventually(drained(transport), "the first entries are flushed")
            own_postgres.freeze()
            await ship(transport, PARTS[4:])
            await eventually(said(lines, "database"), "the flusher says that the database is away")
            own_postgres.thaw()
            await eventually(drained(transport), "the stream is drained")
            assert await differences(patient, EVENTS) == []
        await patient.close()

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
            await eventually(drained(transport, None), "everything is acknowledged")
            assert flusher.totals == Persisted(new=600)
            assert await differences(store, {EPOCH: EVENTS[EPOCH]}) == []

    run(work())
