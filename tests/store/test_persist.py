"""Step 3 of a flush: whatever is repeated, reordered or done by several at once, rows and roll-ups stay exact."""

from __future__ import annotations

import asyncio
import random
import sqlite3
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.ext.asyncio import AsyncConnection

from proxy import bounds
from proxy.flush import fold
from proxy.flush.fold import Batch
from proxy.record import encode, encode_end
from proxy.store import database, dialect
from proxy.store.database import BadData, make_engine
from proxy.store.store import Persisted, Store, StoreUnavailable
from tests.servers import PostgresServer
from tests.store.records import batches, differences, event, mixed, run

EPOCH = bytes(range(16))
OTHER = bytes(reversed(range(16)))


def test_rows_and_rollups_say_what_the_events_said(url: str) -> None:
    """Every field of every event arrives, tags and odd letters included, and roll-ups are the sums."""
    events = {EPOCH: mixed(1, 700), OTHER: mixed(2, 300)}

    async def work() -> None:
        store = Store.open(url)
        parts = [one for epoch in events for one in batches(epoch, events[epoch], 100)]
        assert await store.persist(parts) == Persisted(new=1000)
        assert await differences(store, events) == []
        rows, _ = await store.usage_rows(limit=1000)
        tags = {(row["epoch"], row["call"]): row["tags"] for row in rows}
        assert tags == {(epoch.hex(), one.call): dict(one.tags) for epoch in events for one in events[epoch]}
        await store.close()

    run(work())


@pytest.mark.parametrize("seed", range(3))
def test_repeating_changes_nothing(url: str, seed: int) -> None:
    """Batches cut anew, shuffled, repeated and overlapping leave each call one row, and say how many were doubles."""
    rng = random.Random(seed)
    events = mixed(seed, 300)

    async def work() -> None:
        store = Store.open(url)
        new = doubles = 0
        for size in (7, 100, 31):
            parts = batches(EPOCH, events, size)
            rng.shuffle(parts)
            while parts:
                count = rng.randrange(1, 12)
                result = await store.persist(parts[:count])
                parts = parts[count:]
                new += result.new
                doubles += result.doubles
        assert (new, doubles) == (300, 600), seed
        assert await differences(store, {EPOCH: events}) == [], seed
        assert await store.persisted([EPOCH, OTHER]) == {EPOCH: 300, OTHER: 0}
        await store.close()

    run(work())


def test_four_flushers_at_once_with_the_same_records(url: str) -> None:
    """Four stores persist the same records at the same time, each in its own order: one row a call, exact sums."""
    events = {EPOCH: mixed(3, 400), OTHER: mixed(4, 400)}

    async def flusher(seed: int) -> int:
        rng = random.Random(seed)
        store = Store.open(url)
        parts = [one for epoch in events for one in batches(epoch, events[epoch], 20)]
        rng.shuffle(parts)
        new = 0
        for start in range(0, len(parts), 4):
            new += (await store.persist(parts[start : start + 4])).new
        await store.close()
        return new

    async def work() -> None:
        assert sum(await asyncio.gather(*(flusher(seed) for seed in range(4)))) == 800
        store = Store.open(url)
        assert await differences(store, events) == []
        assert await store.persisted([EPOCH, OTHER]) == {EPOCH: 400, OTHER: 400}
        await store.close()

    run(work())


def test_the_position_is_the_longest_dense_prefix(url: str) -> None:
    """Batches out of order: the position waits at the gap and jumps when it is filled; the end is noted."""
    events = mixed(5, 100)
    parts = batches(EPOCH, events, 10)

    async def work() -> None:
        store = Store.open(url)
        for number, expected in (
            (0, 10),
            (2, 10),
            (4, 10),
            (3, 10),
            (1, 50),
            (9, 50),
            (5, 60),
            (7, 60),
            (6, 80),
            (8, 100),
        ):
            await store.persist([parts[number]])
            assert (await store.persisted([EPOCH]))[EPOCH] == expected
        assert await store.persist([Batch(EPOCH, 101, 101, [encode_end(100)])]) == Persisted()
        verified = await store.verify()
        assert (verified.epochs_closed, verified.findings) == (1, [])
        await store.close()

    run(work())


def test_a_call_that_comes_twice_with_other_content_is_a_conflict(url: str) -> None:
    """The first row stands, roll-ups do not move, and the second record is kept whole, once."""
    first, second = event(1), event(1, completion_tokens=999)

    async def work() -> None:
        store = Store.open(url)
        await store.persist([Batch(EPOCH, 1, 1, [encode(first)])])
        for _ in range(2):
            assert await store.persist([Batch(EPOCH, 2, 2, [encode(second)])]) == Persisted(conflicts=1)
        # Inside one batch too.
        pair = [encode(event(2)), encode(event(2, user="else"))]
        assert await store.persist([Batch(EPOCH, 3, 4, pair)]) == Persisted(new=1, conflicts=1)
        assert await differences(store, {EPOCH: [first, event(2)]}) == []
        async with store.reading() as connection:
            kept = (await connection.execute(text("SELECT call, payload FROM conflicts ORDER BY call"))).all()
        assert [(call, bytes(payload)) for call, payload in kept] == [(1, encode(second)), (2, pair[1])]
        await store.close()

    run(work())


def test_what_cannot_be_read_is_kept_and_does_not_block(url: str) -> None:
    """Unreadable records go to quarantine with their position; the others of the batch and the position go on."""
    records = [
        encode(event(1)),
        b"garbage",
        b"",
        b"E\x91",
        b"Wreck",
        encode(event(2)),
        encode(event(3, started_us=2**62)),
    ]

    async def work() -> None:
        store = Store.open(url)
        batch = Batch(EPOCH, 1, 7, records)
        assert await store.persist([batch]) == Persisted(new=2, quarantined=5)
        assert await store.persist([batch]) == Persisted(doubles=2, quarantined=5)
        assert (await store.persisted([EPOCH]))[EPOCH] == 7
        async with store.reading() as connection:
            kept = (await connection.execute(text("SELECT seq, payload FROM quarantine ORDER BY seq"))).all()
        assert [(seq, bytes(payload)) for seq, payload in kept] == [(seq, records[seq - 1]) for seq in (2, 3, 4, 5, 7)]
        await store.close()

    run(work())


def test_a_batch_whose_positions_cannot_be_trusted_is_not_counted_as_persisted(url: str) -> None:
    """A count that does not fit its records: kept for a person, and the position stays, so the journal sends again."""

    async def work() -> None:
        store = Store.open(url)
        assert await store.persist([Batch(EPOCH, 1, 5, [encode(event(1))])]) == Persisted(quarantined=1)
        assert await store.persist([Batch(b"short", 1, 1, [encode(event(1))])]) == Persisted(quarantined=1)
        assert await store.persisted([EPOCH]) == {EPOCH: 0}
        await store.close()

    run(work())


def test_text_that_postgresql_cannot_hold(url: str) -> None:
    """NUL in a client's user, a tag or an id becomes U+FFFD in both databases, and blocks nothing."""
    odd = event(1, user="a\0b", request_id="\0", tags=(("t\0", "v\0"), ("x\\u0000", "y")))

    async def work() -> None:
        store = Store.open(url)
        assert await store.persist([Batch(EPOCH, 1, 2, [encode(odd), encode(event(2))])]) == Persisted(new=2)
        rows, _ = await store.usage_rows()
        row = next(row for row in rows if row["call"] == 1)
        assert (row["user"], row["request_id"]) == ("a\ufffdb", "\ufffd")
        assert row["tags"] == {"t\ufffd": "v\ufffd", "x\\u0000": "y"}
        await store.close()

    run(work())


def test_a_value_the_database_refuses_is_found_and_set_aside(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Were the fold to let a number through that no column holds, that row alone goes to quarantine."""
    monkeypatch.setattr(fold, "INTEGER_MAX", 2**64)
    events = [event(1), event(2, total_us=2**63), event(3)]

    async def work() -> None:
        store = Store.open(url)
        assert await store.persist(batches(EPOCH, events, 3)) == Persisted(new=2, quarantined=1)
        assert await differences(store, {EPOCH: [events[0], events[2]]}) == []
        async with store.reading() as connection:
            seq, reason = (await connection.execute(text("SELECT seq, reason FROM quarantine"))).one()
        assert seq == 2
        assert "refuses" in reason
        assert "acme" not in reason  # a reason is shown to people; what the row says is in the payload
        assert (await store.persisted([EPOCH]))[EPOCH] == 3
        await store.close()

    run(work())


def test_a_second_end_of_an_epoch(url: str) -> None:
    """The same end twice is a double; another number of calls is set aside and the first stands."""

    async def work() -> None:
        store = Store.open(url)
        for _ in range(2):
            assert await store.persist([Batch(EPOCH, 2, 2, [encode_end(1)])]) == Persisted()
        assert await store.persist([Batch(EPOCH, 3, 3, [encode_end(7)])]) == Persisted(quarantined=1)
        async with store.reading() as connection:
            assert (await connection.execute(text("SELECT calls_total FROM epochs"))).scalar() == 1
        await store.close()

    run(work())


def test_sqlite_waits_for_another_writer(sqlite_url: str) -> None:
    """Another process holds the write lock for a while: persisting waits and then succeeds."""
    path = sqlite_url.removeprefix("sqlite:///")
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN EXCLUSIVE")
    timer = threading.Timer(0.3, other.execute, ["COMMIT"])

    async def work() -> None:
        store = Store.open(sqlite_url)
        timer.start()
        assert await store.persist(batches(EPOCH, mixed(6, 10), 5)) == Persisted(new=10)
        await store.close()

    run(work())
    timer.join()
    other.close()


def test_sqlite_locked_for_too_long_is_said_and_loses_nothing(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Locked past every retry: StoreUnavailable. Once free, the same call succeeds and nothing was half done."""
    monkeypatch.setattr(bounds, "DATABASE_BUSY_SECONDS_MAX", 0.02)
    monkeypatch.setattr(bounds, "TRANSACTION_TRIES_MAX", 2)
    other = sqlite3.connect(sqlite_url.removeprefix("sqlite:///"), isolation_level=None)

    async def work() -> None:
        store = Store.open(sqlite_url)
        await store.ping()
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreUnavailable, match="locked"):
            await store.persist(batches(EPOCH, mixed(6, 10), 5))
        await store.ping()  # readers go on
        other.execute("COMMIT")
        assert await store.persist(batches(EPOCH, mixed(6, 10), 5)) == Persisted(new=10)
        await store.close()

    run(work())
    other.close()


def test_postgresql_lock_is_waited_for_within_a_bound(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The table is locked by someone else: the transaction gives up after FLUSH_SECONDS_MAX and changes nothing."""

    async def work() -> None:
        holder, store = make_engine(postgres_url), Store.open(postgres_url)
        async with holder.connect() as connection:
            await connection.execute(text("LOCK TABLE usage IN ACCESS EXCLUSIVE MODE"))
            with monkeypatch.context() as patch:
                patch.setattr(bounds, "FLUSH_SECONDS_MAX", 0.3)
                hasty = Store.open(postgres_url)
                with pytest.raises(StoreUnavailable):
                    await hasty.persist(batches(EPOCH, mixed(7, 10), 5))
                await hasty.close()
        assert await store.persist(batches(EPOCH, mixed(7, 10), 5)) == Persisted(new=10)
        assert await differences(store, {EPOCH: mixed(7, 10)}) == []
        await store.close()
        await holder.dispose()

    run(work())


def test_postgresql_deadlock_is_run_again(postgres_url: str) -> None:
    """Two transactions take two rows in opposite order: one becomes the victim, is run again, and both commit."""

    async def work() -> None:
        store = Store.open(postgres_url)
        await store.persist([Batch(EPOCH, 1, 1, [encode(event(1))]), Batch(OTHER, 1, 1, [encode(event(1))])])
        both = asyncio.Barrier(2)
        tries = 0

        async def crossing(first: bytes, second: bytes) -> None:
            waited = False

            async def twice(connection: object) -> None:
                nonlocal waited, tries
                tries += 1
                for epoch in (first, second):
                    statement = text("UPDATE epochs SET rows = rows + 1 WHERE epoch = :epoch")
                    await connection.execute(statement, {"epoch": epoch})  # type: ignore[attr-defined]
                    if not waited:
                        waited = True
                        await both.wait()

            await store.writing(twice)

        await asyncio.gather(crossing(EPOCH, OTHER), crossing(OTHER, EPOCH))
        async with store.reading() as connection:
            assert (await connection.execute(text("SELECT sum(rows) FROM epochs"))).scalar() == 6
        assert tries == 3
        await store.close()

    run(work())


def test_an_absent_database_is_unavailable_and_not_made(tmp_path: Path) -> None:
    """Neither kind is created by opening it, and both say so as StoreUnavailable."""

    async def work(url: str) -> None:
        store = Store.open(url)
        with pytest.raises(StoreUnavailable):
            await store.persist(batches(EPOCH, mixed(8, 3), 3))
        await store.close()

    run(work(f"sqlite:///{tmp_path / 'absent.db'}"))
    run(work(f"postgresql://weir@/weir?host={tmp_path}"))
    assert list(tmp_path.iterdir()) == []


def test_a_broken_rollup_is_bad_data_and_changes_nothing(url: str) -> None:
    """A sum that no column can hold: the whole transaction is refused as BadData, so the caller can say so."""

    async def work() -> None:
        store = Store.open(url)
        await store.persist(batches(EPOCH, [event(1)], 1))
        async with store.engine.connect() as connection:
            connection = await connection.execution_options(write=True)
            await connection.execute(text(f"UPDATE epochs SET rows = {2**63 - 1}"))
            await connection.commit()
        with pytest.raises((BadData, StoreUnavailable)):
            await store.persist([Batch(EPOCH, 2, 2, [encode(event(2))])])
        assert (await store.persisted([EPOCH]))[EPOCH] == 1
        await store.close()

    run(work())


def test_a_flusher_frozen_inside_its_transaction_blocks_nobody_for_long(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its locks fall after FLUSH_SECONDS_MAX, others persist the same records, and its own commit then fails whole."""
    monkeypatch.setattr(bounds, "FLUSH_SECONDS_MAX", 2)
    events = mixed(9, 20)

    async def work() -> None:
        frozen = Store.open(postgres_url)
        monkeypatch.setattr(bounds, "FLUSH_SECONDS_MAX", 20)
        other = Store.open(postgres_url)
        await other.persist(batches(EPOCH, events[:1], 1))
        async with frozen.engine.connect() as connection:
            await connection.execute(text("SELECT * FROM epochs FOR UPDATE"))
            assert (await other.persist(batches(EPOCH, events, 5))).new == 19
            with pytest.raises(DBAPIError):
                await connection.execute(text("UPDATE epochs SET rows = 0"))
            await connection.invalidate()
        assert await differences(other, {EPOCH: events}) == []
        await frozen.close()
        await other.close()

    run(work())


def test_no_call_waits_for_ever_for_a_frozen_server(
    own_postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even the rollback at a connection's end, which no cancellation reaches: it is the database that is away."""
    monkeypatch.setattr(bounds, "FLUSH_SECONDS_MAX", 1)
    monkeypatch.setattr(database, "_GRACE_SECONDS", 1)

    async def work() -> None:
        store = Store.open(own_postgres.url(own_postgres.create_database()))

        async def look() -> None:
            async with store.reading() as connection:
                await connection.execute(text("SELECT 1"))
                own_postgres.freeze()

        with pytest.raises(StoreUnavailable):
            await look()
        own_postgres.thaw()
        await store.close()

    run(work())


def test_a_row_is_not_set_aside_because_the_database_is_slow(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """While rows are tried one by one, a timeout is a timeout: nothing goes to quarantine that could be a row."""
    insert_rows = dialect.insert_rows

    async def slow(connection: AsyncConnection, rows: Sequence[fold.Row]) -> dict[fold.Key, int]:
        if len(rows) > 1:
            raise OverflowError("a value that no column holds")
        raise OperationalError("INSERT", None, RuntimeError("canceling statement due to statement timeout"))

    async def work() -> None:
        store = Store.open(url)
        monkeypatch.setattr(dialect, "insert_rows", slow)
        with pytest.raises(StoreUnavailable, match="statement timeout"):
            await store.persist(batches(EPOCH, [event(1), event(2)], 2))
        monkeypatch.setattr(dialect, "insert_rows", insert_rows)
        assert await store.persist(batches(EPOCH, [event(1), event(2)], 2)) == Persisted(new=2)
        await store.close()

    run(work())
