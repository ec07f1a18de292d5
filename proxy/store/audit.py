"""Changes and their records in one transaction, and the reading of the log.

Every writer goes through `audited`. It locks the one head row first, so that changes and records are in one order on
every host; then the change is judged and made; then its records are appended and the head moves on; then it commits.
So there is no change without its row and no row without its change. A refused attempt is recorded by itself.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from msgspec import Struct
from msgspec.structs import asdict
from sqlalchemy import Row, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from proxy import bounds, clock, failpoint
from proxy.audit.chain import GENESIS, Entry, NotRecordable, Record, canonical, clean, follow
from proxy.identity.actor import By
from proxy.identity.roles import Forbidden
from proxy.store.database import BadData, Database
from proxy.store.once import ByOnce
from proxy.store.schema import audit, audit_head

T = TypeVar("T")
_INSERT_ROWS = 500  # in one statement: SQLite allows 32,766 parameters


class NotDone(Exception):
    """The change cannot be made as things stand: no such thing, or it is so already. The message says which."""


class Absent(NotDone):
    """There is no such thing, or it is not the actor's to see: nobody is told which."""


class Stale(NotDone):
    """The thing is no longer as the caller last saw it."""


class Attempt(Struct, frozen=True):
    """What is being tried, as it is recorded when it is refused. `tenant` None is the platform."""

    action: str
    tenant: str | None
    target: str


class Head(Struct, frozen=True):
    """The end of the chain: its last row (0: none) and that row's hash, and the last rows that were about keys."""

    seq: int = 0
    hash: bytes = GENESIS
    keys_made_seq: int = 0  # about a new key
    keys_seq: int = 0  # about another change of keys: it may have ended or narrowed one


class KeysMark(NamedTuple):
    """A look at the key table. While only `made` rises, every key that was valid still is, and still may the same.

    Both fall only when an older copy of the database takes its place.
    """

    made: int  # rises with every new key
    changed: int  # rises with whatever may have ended or narrowed one


class Notes:
    """What one transaction did, as its work tells it."""

    def __init__(self, by: By) -> None:
        self._by = by
        self.records: list[Record] = []
        self.keys_made = False
        self.keys_changed = False

    def add(
        self,
        action: str,
        tenant: str | None,
        target: str,
        before: Mapping[str, Any] | None,
        after: Mapping[str, Any] | None,
        reason: str = "",
    ) -> None:
        """One change that was made: the thing's state before (None: there was none) and after (None: it is gone)."""
        record = _record(self._by, Attempt(action, tenant, target), reason)
        self.records.append(_with(record, before, after))
        if action == "keys.create":
            self.keys_made = True
        elif action.startswith("keys.") or action == "users.write":
            self.keys_changed = True  # a user's tokens are known as keys are, and end with the user


def _record(by: By, attempt: Attempt, reason: str, outcome: str = "ok") -> Record:
    actor = by.actor
    return Record(
        actor_kind=actor.kind,
        actor_id=clean(actor.id),
        actor_role=actor.role or "",
        actor_tenant=actor.tenant,
        origin=clean(by.origin),
        action=attempt.action,
        tenant=None if attempt.tenant is None else clean(attempt.tenant),
        target=clean(attempt.target),
        before=None,
        after=None,
        outcome="ok" if outcome == "ok" else "refused",
        reason=clean(reason),
    )


def _with(record: Record, before: Mapping[str, Any] | None, after: Mapping[str, Any] | None) -> Record:
    return Record(**{**asdict(record), "before": canonical(before), "after": canonical(after)})


Work = Callable[[AsyncConnection, Notes], Awaitable[T]]


class Auditing(Database):
    """The audit log's both sides."""

    async def audited(self, by: By, attempt: Attempt, work: Work[T]) -> T:
        """Runs `work`, which judges, changes and notes, in one transaction with the records of it.

        A request that was done before (`ByOnce`) is not done again: raises Repeated, or OtherRequest.
        What `work` refuses (Forbidden, NotDone, NotRecordable) or the database does (BadData) is recorded as a refused
        attempt and raised again. Raises StoreUnavailable: then nothing was decided, or its fate is unknown.
        """

        async def all_of_it(connection: AsyncConnection) -> T:
            head = await self._lock_head(connection)
            notes = Notes(by)
            if isinstance(by, ByOnce):
                await by.once.recall(connection)
            result = await work(connection, notes)
            if not notes.records:
                raise RuntimeError(f"{attempt.action} noted nothing of what it did: it is taken back")
            failpoint.reach("audit.before_append")
            await self._append(connection, head, notes.records, notes)
            if isinstance(by, ByOnce):
                await by.once.keep(connection, result)
            failpoint.reach("audit.before_commit")
            return result

        try:
            result = await self.writing(all_of_it)
        except (Forbidden, NotDone, NotRecordable, BadData) as error:
            await self.refused(by, attempt, str(error))
            raise
        if isinstance(by, ByOnce):
            by.once.kept = True
        failpoint.reach("audit.after_commit")
        return result

    async def refused(self, by: By, attempt: Attempt, reason: str) -> None:
        """Records an attempt that came to nothing.

        It stands in the log of the actor's own tenant, wherever it was aimed: who knocks on another tenant's door is
        not shown to that tenant, and cannot fill its log.
        """
        if by.actor.tenant is not None:
            attempt = Attempt(attempt.action, by.actor.tenant, attempt.target)

        async def work(connection: AsyncConnection) -> None:
            head = await self._lock_head(connection)
            await self._append(connection, head, [_record(by, attempt, reason, "refused")])

        await self.writing(work)

    async def _lock_head(self, connection: AsyncConnection) -> Head:
        upsert = sqlite.insert(audit_head) if self.sqlite else postgresql.insert(audit_head)
        first = {"one": 1, "seq": 0, "hash": GENESIS, "keys_made_seq": 0, "keys_seq": 0}
        await connection.execute(upsert.on_conflict_do_nothing(), first)
        # SQLite has no row locks and needs none: the transaction began IMMEDIATE.
        row = (await connection.execute(select(audit_head).with_for_update())).one()
        return Head(row.seq, bytes(row.hash), row.keys_made_seq, row.keys_seq)

    async def _append(
        self, connection: AsyncConnection, head: Head, records: Sequence[Record], notes: Notes | None = None
    ) -> None:
        seq, last = head.seq, head.hash
        now = clock.wall_us()
        rows = []
        for record in records:
            seq += 1
            entry = follow(record, seq, now, last)
            last = entry.hash
            rows.append(asdict(entry))
        for start in range(0, len(rows), _INSERT_ROWS):
            await connection.execute(insert(audit), rows[start : start + _INSERT_ROWS])
        moved = {"seq": seq, "hash": last}
        if notes is not None and notes.keys_made:
            moved["keys_made_seq"] = seq
        if notes is not None and notes.keys_changed:
            moved["keys_seq"] = seq
        await connection.execute(update(audit_head).values(**moved))

    # --- reading ---

    async def audit_head(self) -> Head:
        """The end of the chain as the head row tells it."""
        async with self.reading() as connection:
            return await _head(connection)

    async def keys_mark(self) -> KeysMark:
        """What a host asks to learn of the others' changes. One row is read."""
        head = await self.audit_head()
        return KeysMark(head.keys_made_seq, head.keys_seq)

    async def audit_rows(
        self,
        *,
        tenant: str | None = None,
        actor: str | None = None,
        action: str | None = None,
        before: int | None = None,
        limit: int = 50,
    ) -> list[Entry]:
        """Rows newest first. `actor` is an id; `action` a whole one or its first word; `before` a row's number."""
        query = select(audit).order_by(audit.c.seq.desc()).limit(limit)
        if tenant is not None:
            query = query.where(audit.c.tenant == tenant)
        if actor is not None:
            query = query.where(audit.c.actor_id == actor)
        if action is not None:
            query = query.where((audit.c.action == action) | audit.c.action.startswith(f"{action}.", autoescape=True))
        if before is not None:
            query = query.where(audit.c.seq < before)
        async with self.reading(tenant) as connection:
            return [_entry(row) for row in await connection.execute(query)]

    async def audit_after(self, seq: int, limit: int) -> tuple[list[Entry], Head]:
        """Rows after `seq` in order, at most `limit`, and the head, in one look."""
        async with self.reading() as connection:
            return await _after(connection, seq, limit), await _head(connection)

    async def audit_all(self) -> AsyncIterator[Entry | Head]:
        """Every row in order, then the head: one consistent look, page by page."""
        async with self.reading() as connection:
            head = await _head(connection)
            last = None
            while page := await _after(connection, last, bounds.AUDIT_PAGE_ROWS):
                for entry in page:
                    yield entry
                last = page[-1].seq
            yield head


async def _head(connection: AsyncConnection) -> Head:
    row = (await connection.execute(select(audit_head))).first()
    return Head() if row is None else Head(row.seq, bytes(row.hash), row.keys_made_seq, row.keys_seq)


async def _after(connection: AsyncConnection, seq: int | None, limit: int) -> list[Entry]:
    query = select(audit).order_by(audit.c.seq).limit(limit)
    if seq is not None:
        query = query.where(audit.c.seq > seq)
    return [_entry(row) for row in await connection.execute(query)]


def _entry(row: Row[Any]) -> Entry:
    values = dict(row._mapping)
    values["previous"] = bytes(values["previous"])
    values["hash"] = bytes(values["hash"])
    return Entry(**values)
