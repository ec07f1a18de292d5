"""Step 3 of a flush: one transaction per list of batches. Whatever is repeated, rows and roll-ups stay exact."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from msgspec import Struct
from sqlalchemy import select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from proxy import clock, failpoint
from proxy.flush.fold import (
    DIGEST,
    ROW_FIELDS,
    Batch,
    Conflict,
    Folded,
    Key,
    Quarantined,
    Row,
    advance,
    digest_of,
    fold,
    holds,
    roll_up,
)
from proxy.store import dialect
from proxy.store.database import BadData, Database, bad_data, sentence
from proxy.store.schema import conflicts, epochs, quarantine

_KEY_ID = ROW_FIELDS.index("key_id")
_STARTED_US = ROW_FIELDS.index("started_us")


class Persisted(Struct):
    """What became of the records: all of them are in one of these counts, but for ends of epochs."""

    new: int = 0
    doubles: int = 0
    conflicts: int = 0
    quarantined: int = 0


class _Epoch(Struct):
    """A locked row of `epochs`, as the transaction changes it."""

    origin: str
    persisted: int
    beyond: list[tuple[int, int]]
    calls_total: int | None
    rows: int
    expired: list[tuple[int, int]]


class Persisting(Database):
    """The writing side of usage."""

    async def persist(self, batches: Sequence[Batch]) -> Persisted:
        """Folds and persists. Returns after the commit; raises StoreUnavailable when its fate is unknown or bad."""
        return await self.persist_folded(fold(batches))

    async def persist_folded(self, folded: Folded) -> Persisted:
        """One transaction: rows by primary key, roll-ups from really new rows only, positions, what is set aside."""
        try:
            return await self.writing(lambda connection: self._persist(connection, folded, careful=False))
        except BadData:
            # One value that the database refuses must not hold up the others: find it, row by row, and set it aside.
            return await self.writing(lambda connection: self._persist(connection, folded, careful=True))

    async def persisted(self, epochs_asked: Sequence[bytes]) -> dict[bytes, int]:
        """Epoch → the last position up to which every record is in the database; 0 for an unknown epoch."""
        found = dict.fromkeys(epochs_asked, 0)
        async with self.reading() as connection:
            for part in _parts(list(found), 500):
                query = select(epochs.c.epoch, epochs.c.persisted_seq).where(epochs.c.epoch.in_(part))
                found |= {bytes(epoch): seq for epoch, seq in await connection.execute(query)}
        return found

    async def _persist(self, connection: AsyncConnection, folded: Folded, *, careful: bool) -> Persisted:
        now = clock.wall_us()
        involved = sorted({*folded.spans, *folded.ends})
        # The epochs' rows are locked first and in order. Two flushers with the same epoch take turns from here on.
        locked = await self._lock_epochs(connection, involved, folded.origins, now)
        unread = list(folded.quarantined)
        clashes = list(folded.conflicts)
        # A row that retention has removed is not new when a forgotten entry brings it again.
        rows = {key: row for key, row in folded.rows.items() if not holds(locked[key[0]].expired, key[1])}
        result = Persisted(doubles=folded.doubles + len(folded.rows) - len(rows))

        if careful:
            known = await self._insert_one_by_one(connection, rows, folded.payloads, unread)
        else:
            known = await dialect.insert_rows(connection, list(rows.values()))
        for key, old_digest in known.items():
            row = rows.pop(key)
            new_digest = row[DIGEST]
            assert isinstance(new_digest, int)
            if old_digest == new_digest:
                result.doubles += 1
            else:
                clashes.append(Conflict(key[0], key[1], old_digest, new_digest, folded.payloads[key][1]))
        result.new = len(rows)
        failpoint.reach("flush.in_transaction")
        await dialect.add_to_rollups(connection, roll_up(rows.values()))
        await dialect.mark_used(connection, _last_used(rows.values()))

        for epoch, _call in rows:
            locked[epoch].rows += 1
        for epoch in involved:
            state = locked[epoch]
            state.persisted, state.beyond = advance(state.persisted, [*state.beyond, *folded.spans.get(epoch, [])])
            state.origin = folded.origins.get(epoch, state.origin)
            calls = folded.ends.get(epoch)
            if calls is not None and state.calls_total not in (None, calls):
                reason = f"the epoch's end counts {calls} calls, an earlier one {state.calls_total}"
                unread.append(Quarantined(epoch, state.persisted, calls.to_bytes(8, "little"), reason))
            elif calls is not None:
                state.calls_total = calls
            await self._save_epoch(connection, epoch, state, now)
        await self._set_aside(connection, unread, clashes, now)
        result.conflicts = len(clashes)
        result.quarantined = len(unread)
        return result

    async def _lock_epochs(
        self, connection: AsyncConnection, involved: Sequence[bytes], origins: dict[bytes, str], now: int
    ) -> dict[bytes, _Epoch]:
        if not involved:
            return {}
        upsert = sqlite.insert(epochs) if self.sqlite else postgresql.insert(epochs)
        new: list[dict[str, object]] = [
            {
                "epoch": epoch,
                "origin": origins.get(epoch, ""),
                "persisted_seq": 0,
                "persisted_beyond": [],
                "calls_total": None,
                "rows": 0,
                "expired_rows": 0,
                "expired_calls": [],
                "first_seen_us": now,
                "last_seen_us": now,
            }
            for epoch in involved
        ]
        await connection.execute(upsert.on_conflict_do_nothing(), new)
        found: dict[bytes, _Epoch] = {}
        for part in _parts(involved, 500):
            query = select(epochs).where(epochs.c.epoch.in_(part)).order_by(epochs.c.epoch).with_for_update()
            for row in await connection.execute(query):
                found[bytes(row.epoch)] = _Epoch(
                    row.origin,
                    row.persisted_seq,
                    [(first, last) for first, last in row.persisted_beyond],
                    row.calls_total,
                    row.rows,
                    [(first, last) for first, last in row.expired_calls],
                )
        return found

    async def _save_epoch(self, connection: AsyncConnection, epoch: bytes, state: _Epoch, now: int) -> None:
        await connection.execute(
            update(epochs)
            .where(epochs.c.epoch == epoch)
            .values(
                origin=state.origin,
                persisted_seq=state.persisted,
                persisted_beyond=[list(span) for span in state.beyond],
                calls_total=state.calls_total,
                rows=state.rows,
                last_seen_us=now,
            )
        )

    async def _insert_one_by_one(
        self,
        connection: AsyncConnection,
        rows: dict[Key, Row],
        payloads: dict[Key, tuple[int, bytes]],
        unread: list[Quarantined],
    ) -> dict[Key, int]:
        known: dict[Key, int] = {}
        for key in list(rows):
            try:
                async with connection.begin_nested():
                    known |= await dialect.insert_rows(connection, [rows[key]])
            except (DBAPIError, OverflowError) as error:
                if not bad_data(error):
                    raise
                seq, payload = payloads[key]
                unread.append(Quarantined(key[0], seq, payload, f"the database refuses the row: {sentence(error)}"))
                del rows[key]
        return known

    async def _set_aside(
        self, connection: AsyncConnection, unread: Sequence[Quarantined], clashes: Sequence[Conflict], now: int
    ) -> None:
        make = sqlite.insert if self.sqlite else postgresql.insert
        if unread:
            await connection.execute(
                make(quarantine).on_conflict_do_nothing(),
                [
                    {
                        "epoch": one.epoch,
                        "seq": one.seq,
                        "digest": digest_of(one.payload),
                        "payload": one.payload,
                        "reason": one.reason.replace("\0", "\ufffd"),
                        "at_us": now,
                    }
                    for one in unread
                ],
            )
        if clashes:
            await connection.execute(
                make(conflicts).on_conflict_do_nothing(),
                [
                    {
                        "epoch": one.epoch,
                        "call": one.call,
                        "old_digest": one.old_digest,
                        "new_digest": one.new_digest,
                        "payload": one.payload,
                        "at_us": now,
                    }
                    for one in clashes
                ],
            )


def _last_used(rows: Iterable[Row]) -> dict[str, int]:
    used: dict[str, int] = {}
    for row in rows:
        used[row[_KEY_ID]] = max(row[_STARTED_US], used.get(row[_KEY_ID], 0))
    return used


def _parts(items: Sequence[bytes], size: int) -> list[Sequence[bytes]]:
    return [items[start : start + size] for start in range(0, len(items), size)]
