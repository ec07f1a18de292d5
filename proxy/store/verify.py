"""Looks for what must never be: a lost call, a double, a roll-up that is not the sum of its rows; and retention."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Literal

from msgspec import Struct
from sqlalchemy import and_, delete, func, or_, select, tuple_, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from proxy.flush.fold import DAY_US, GROUP_FIELDS, SUM_FIELDS, Key, day_of, merge
from proxy.store.database import Database
from proxy.store.schema import conflicts, epochs, meta, quarantine, usage, usage_rollup
from proxy.store.usage import row_sums

SPANS_SHOWN_MAX = 20
_EXPIRED = "usage_expired_before_us"  # name in `meta`: rows that started earlier may have been removed

Kind = Literal["missing", "double", "counter", "rollup", "conflict", "quarantine", "epoch"]


class Finding(Struct, frozen=True):
    """Something that must not be. `epoch` in hex, "" where it is not about one. `calls`: spans of call numbers."""

    kind: Kind
    sentence: str
    epoch: str = ""
    calls: tuple[tuple[int, int], ...] = ()


class Verified(Struct):
    """What was looked at, and what was found; no findings: every call that was opened is one row."""

    rows: int
    epochs_closed: int
    epochs_open: list[tuple[str, str]]  # epoch in hex and the data directory's id
    findings: list[Finding]


def check_journals(verified: Verified, origin: str, alive: Collection[bytes], dead: Collection[bytes]) -> None:
    """Adds a finding for each epoch of the data directory `origin` that is neither over, nor alive, nor recovered.

    `alive`: epochs that had a journal a moment before or after the look, `dead`: those whose process is gone and which
    nobody has recovered.
    """
    for epoch, of in verified.epochs_open:
        if of == origin and bytes.fromhex(epoch) not in alive and bytes.fromhex(epoch) not in dead:
            sentence = "the epoch has no end, and its journal is gone: calls in flight at its death are lost"
            verified.findings.append(Finding("epoch", sentence, epoch))
    for one in dead:
        sentence = "the epoch's process is gone and its journal is not recovered: is a keeper running?"
        verified.findings.append(Finding("epoch", sentence, one.hex()))


class Verifying(Database):
    """`weir usage verify`, and the removal of old rows that it must understand."""

    async def verify(self) -> Verified:
        """Checks everything that the database alone can tell, in one consistent look. Raises StoreUnavailable."""
        async with self.reading() as connection:
            counted = {
                bytes(row.epoch): row
                for row in await connection.execute(
                    select(
                        usage.c.epoch,
                        func.count().label("rows"),
                        func.count(usage.c.call.distinct()).label("calls"),
                        func.min(usage.c.call).label("first"),
                        func.max(usage.c.call).label("last"),
                    ).group_by(usage.c.epoch)
                )
            }
            known = list(await connection.execute(select(epochs).order_by(epochs.c.first_seen_us, epochs.c.epoch)))
            findings: list[Finding] = []
            for row in known:
                findings += await self._check_epoch(connection, row, counted.pop(bytes(row.epoch), None))
            for epoch, count in counted.items():
                findings.append(Finding("counter", f"{count.rows} rows belong to an epoch nobody knows", epoch.hex()))
            findings += await self._check_rollups(connection)
            findings += await self._check_set_aside(connection)
            rows = (await connection.execute(select(func.count()).select_from(usage))).scalar_one()
        unended = [(bytes(row.epoch).hex(), str(row.origin)) for row in known if row.calls_total is None]
        return Verified(rows, len(known) - len(unended), unended, findings)

    async def _check_epoch(self, connection: AsyncConnection, row: Any, count: Any) -> list[Finding]:
        epoch = bytes(row.epoch)
        there, distinct, first, last = (count.rows, count.calls, count.first, count.last) if count else (0, 0, 1, 0)
        findings = []
        if there != distinct:
            findings.append(Finding("double", f"{there} rows stand for {distinct} calls", epoch.hex()))
        if there + row.expired_rows != row.rows:
            sentence = f"{row.rows} rows were inserted and {row.expired_rows} expired, but {there} are there"
            findings.append(Finding("counter", sentence, epoch.hex()))
        if row.calls_total is None:
            return findings
        if first < 1 or last > row.calls_total:
            sentence = f"calls {first} to {last} are there, but the epoch opened {row.calls_total}"
            findings.append(Finding("counter", sentence, epoch.hex()))
        if distinct + row.expired_rows < row.calls_total:
            query = select(usage.c.call).where(usage.c.epoch == epoch).order_by(usage.c.call)
            present = [(call, call) for call in (await connection.execute(query)).scalars()]
            missing = complement([*present, *((a, b) for a, b in row.expired_calls)], row.calls_total)
            number = sum(b - a + 1 for a, b in missing)
            sentence = f"{number} of {row.calls_total} calls have no row"
            if row.persisted_beyond:
                sentence += f"; records from position {row.persisted_seq + 1} on have not arrived"
            findings.append(Finding("missing", sentence, epoch.hex(), tuple(missing[:SPANS_SHOWN_MAX])))
        return findings

    async def _check_rollups(self, connection: AsyncConnection) -> list[Finding]:
        expired_before = await _expired_before(connection)
        # The first day of which no row can have been removed.
        whole = day_of(-(-expired_before // DAY_US) * DAY_US)
        groups = [usage.c[name] for name in GROUP_FIELDS]
        rows = select(*groups, *row_sums()).group_by(*groups)
        rollups = select(usage_rollup)
        left = rows.where(usage.c.day >= whole)
        right = rollups.where(usage_rollup.c.day >= whole)
        findings = []
        for differing, word in ((right.except_(left), "roll-up"), (left.except_(right), "sum of rows")):
            for line in (await connection.execute(differing.limit(SPANS_SHOWN_MAX))).mappings():
                group = ", ".join(f"{name} {line[name]!r}" for name in GROUP_FIELDS)
                sums = ", ".join(f"{name} {line[name]}" for name in SUM_FIELDS)
                findings.append(Finding("rollup", f"{group}: the {word} has no equal: {sums}"))
        older = rows.where(usage.c.day < whole).subquery()
        same = and_(*(older.c[name] == usage_rollup.c[name] for name in GROUP_FIELDS))
        short = or_(usage_rollup.c.day.is_(None), *(usage_rollup.c[name] < older.c[name] for name in SUM_FIELDS))
        query = select(older).select_from(older.outerjoin(usage_rollup, same)).where(short).limit(SPANS_SHOWN_MAX)
        for line in (await connection.execute(query)).mappings():
            group = ", ".join(f"{name} {line[name]!r}" for name in GROUP_FIELDS)
            findings.append(Finding("rollup", f"{group}: the roll-up is less than the sum of the rows still there"))
        return findings

    async def _check_set_aside(self, connection: AsyncConnection) -> list[Finding]:
        findings = []
        number = (await connection.execute(select(func.count()).select_from(quarantine))).scalar_one()
        if number:
            reason = (
                await connection.execute(select(quarantine.c.reason).order_by(quarantine.c.at_us).limit(1))
            ).scalar()
            findings.append(Finding("quarantine", f"{number} records could not be read; the first: {reason}"))
        query = select(conflicts.c.epoch, conflicts.c.call).order_by(conflicts.c.at_us).limit(SPANS_SHOWN_MAX)
        for row in await connection.execute(query):
            sentence = f"call {row.call} came a second time and said something else; the first row stands"
            findings.append(Finding("conflict", sentence, bytes(row.epoch).hex(), ((row.call, row.call),)))
        return findings

    async def expire(self, before_us: int, batch: int = 5000) -> int:
        """Deletes rows that started before `before_us`, at most `batch` to a transaction; returns how many.

        Roll-ups stay. Which calls are gone is kept, so that a deleted row is neither missed nor taken for new.
        """
        await self.writing(lambda connection: self._raise_expired_before(connection, before_us))
        deleted = 0
        while True:
            number = await self.writing(lambda connection: self._expire(connection, before_us, batch))
            deleted += number
            if number < batch:
                return deleted

    async def _raise_expired_before(self, connection: AsyncConnection, before_us: int) -> None:
        # Before the first deletion: roll-ups are compared with rows only where none can be missing.
        known = await _expired_before(connection)
        make = sqlite.insert if self.sqlite else postgresql.insert
        value = str(max(known, before_us))
        upsert = make(meta).values(name=_EXPIRED, value=value)
        await connection.execute(upsert.on_conflict_do_update(index_elements=[meta.c.name], set_={"value": value}))

    async def _expire(self, connection: AsyncConnection, before_us: int, batch: int) -> int:
        query = select(usage.c.epoch, usage.c.call).where(usage.c.started_us < before_us)
        query = query.order_by(usage.c.started_us).limit(batch)
        found = [(bytes(epoch), call) for epoch, call in await connection.execute(query)]
        if not found:
            return 0
        # The epochs first and in order, as in `persist`: the two wait for each other and never deadlock.
        involved = sorted({epoch for epoch, _ in found})
        locked = select(epochs).where(epochs.c.epoch.in_(involved)).order_by(epochs.c.epoch).with_for_update()
        known = {bytes(row.epoch): row for row in await connection.execute(locked)}
        gone: dict[bytes, list[int]] = {}
        for epoch, call in await self._delete(connection, found):
            gone.setdefault(epoch, []).append(call)
        for epoch, calls in gone.items():
            row = known[epoch]
            spans = merge([*((a, b) for a, b in row.expired_calls), *((call, call) for call in calls)])
            await connection.execute(
                update(epochs)
                .where(epochs.c.epoch == epoch)
                .values(expired_rows=row.expired_rows + len(calls), expired_calls=[list(span) for span in spans])
            )
        return len(found)

    async def _delete(self, connection: AsyncConnection, found: Sequence[Key]) -> list[Key]:
        deleted: list[Key] = []
        for start in range(0, len(found), 500):
            which = tuple_(usage.c.epoch, usage.c.call).in_(found[start : start + 500])
            query = delete(usage).where(which).returning(usage.c.epoch, usage.c.call)
            deleted += [(bytes(epoch), call) for epoch, call in await connection.execute(query)]
        return deleted


async def _expired_before(connection: AsyncConnection) -> int:
    value = (await connection.execute(select(meta.c.value).where(meta.c.name == _EXPIRED))).scalar()
    return int(value or 0)


def complement(spans: Collection[tuple[int, int]], last: int) -> list[tuple[int, int]]:
    """The numbers of 1 to `last` that no span covers, as spans."""
    missing = []
    expected = 1
    for first, end in merge(spans):
        if first > last:
            break
        if first > expected:
            missing.append((expected, first - 1))
        expected = max(expected, end + 1)
    if expected <= last:
        missing.append((expected, last))
    return missing
