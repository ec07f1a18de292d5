"""API keys as the database keeps them: never the secret, only its keyed digest (DESIGN section 8).

Whoever changes a key says who it is. The judgement, the change and its record are one transaction; it is committed
when the call returns: raise the generation word after that, not before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Any, Literal, get_args

import msgspec
from msgspec import Struct
from msgspec.structs import asdict, fields
from sqlalchemy import ColumnElement, Row, func, insert, literal, select, tuple_, update
from sqlalchemy.ext.asyncio import AsyncConnection

from proxy import bounds
from proxy.identity.actor import By
from proxy.identity.roles import Action, Actor, Scope, allowed, may, may_issue
from proxy.store.audit import Absent, Attempt, Auditing, NotDone, Notes, Stale
from proxy.store.schema import keys

Period = Literal["day", "month", "total"]
PERIODS: tuple[Period, ...] = get_args(Period)


class KeyRow(Struct, frozen=True):
    """One key. Times are wall clock. None, where nothing else is said: whatever tenant and plan allow.

    Limits are the key's own and stand below the tenant's and plan's: effective is the least of all.
    """

    key_id: str
    digest: bytes  # 32 bytes
    tenant: str
    name: str  # a word for people
    owner: str | None  # a user_id, or any word
    tags: tuple[tuple[str, str], ...]
    endpoints: tuple[str, ...] | None
    models: tuple[str, ...] | None
    last4: str  # of the secret
    created_us: int
    expires_us: int | None = None
    revoked_us: int | None = None
    revoked_reason: str | None = None
    created_by: str | None = None  # kind and id of the actor; None: older than the record of it
    plan: str | None = None  # a plan's name: its rights and limits narrow this key too
    rights: tuple[Action, ...] | None = None  # what it may administer in its tenant; None: nothing
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrency: int | None = None
    budget_nanos: int | None = None  # nano-dollars per `budget_period`
    budget_tokens: int | None = None  # per `budget_period`
    budget_period: Period | None = None
    networks: tuple[str, ...] | None = None  # CIDR blocks from which it may be used
    predecessor: str | None = None  # key_id it replaces
    successor: str | None = None  # key_id that replaces it
    retires_us: int | None = None  # the end of the overlap with its successor
    last_used_us: int | None = None  # no finer than KEY_USED_SECONDS; moves on without a record

    @property
    def ends_us(self) -> int | None:
        """When it stops by itself: at its expiry or at the end of the overlap, whichever comes first."""
        ends = [end for end in (self.expires_us, self.retires_us) if end is not None]
        return min(ends, default=None)

    @property
    def scope(self) -> Scope:
        """What it is narrowed to."""
        return Scope(self.endpoints, self.models, self.networks, self.ends_us, self.plan, self._limits)

    @property
    def _limits(self) -> tuple[tuple[str, int], ...]:
        period = self.budget_period
        named = {name: name for name in ("requests_per_minute", "tokens_per_minute", "concurrency")}
        named |= {name: f"{name} ({period})" for name in ("budget_nanos", "budget_tokens")}
        return tuple((said, most) for name, said in named.items() if (most := getattr(self, name)) is not None)


_LISTS = ("endpoints", "models", "rights", "networks")
CHANGEABLE = frozenset(
    {
        "name",
        "tags",
        "requests_per_minute",
        "tokens_per_minute",
        "concurrency",
        "budget_nanos",
        "budget_tokens",
        "budget_period",
    }
)
_UNSAID = ("digest", "last_used_us")  # not part of a key's described state


def described(row: KeyRow) -> dict[str, Any]:
    """A key as it may be shown and recorded: everything but the digest."""
    return {**{name: value for name, value in asdict(row).items() if name not in _UNSAID}, "tags": dict(row.tags)}


def etag_of(row: KeyRow) -> str:
    """Changes with whatever may be shown of the key, but for its last use."""
    return sha256(msgspec.json.encode(described(row), order="sorted")).hexdigest()[:32]


def actor_of(row: KeyRow) -> Actor:
    """The actor that a service key is. Whether it is in force still is for whoever admits it to look at."""
    return Actor("key", row.key_id, None, row.tenant, row.rights or (), row.scope)


def _key(row: Row[Any]) -> KeyRow:
    values = dict(row._mapping)
    values["digest"] = bytes(values["digest"])
    values["tags"] = tuple((name, value) for name, value in values["tags"])
    values |= {name: tuple(values[name]) for name in _LISTS if values[name] is not None}
    return KeyRow(**values)


assert {field.name for field in fields(KeyRow)} == set(keys.c.keys())


class Keys(Auditing):
    """Queries over `keys`, and their writers."""

    async def insert_key(self, row: KeyRow, by: By) -> KeyRow:
        """Adds a key and returns it as it stands. Raises Forbidden, and BadData when its id or digest is taken."""

        async def work(connection: AsyncConnection, notes: Notes) -> KeyRow:
            may_issue(by.actor, row.tenant, row.owner, row.scope, row.rights or ())
            made = msgspec.structs.replace(row, created_by=_name(by))
            await connection.execute(insert(keys).values(asdict(made)))
            notes.add("keys.create", row.tenant, row.key_id, None, described(made))
            return made

        return await self.audited(by, Attempt("keys.create", row.tenant, row.key_id), work)

    async def rotate_key(
        self, key_id: str, digest: bytes, new_id: str, last4: str, at_us: int, overlap_us: int, by: By
    ) -> KeyRow:
        """Makes a successor that differs in its secret; the old key stops after the overlap. Returns the successor.

        A key that was to expire has a successor with as long a life. Raises Forbidden and NotDone: no such key, or it
        has ended, or it has a successor.
        """

        async def work(connection: AsyncConnection, notes: Notes) -> KeyRow:
            old = await self._found(connection, key_id, by, "keys.rotate")
            if old.revoked_us is not None or (old.ends_us is not None and old.ends_us <= at_us):
                raise NotDone(f"key {key_id} has ended; make a new one")
            if old.successor is not None:
                raise NotDone(f"key {key_id} was rotated already: {old.successor} replaces it")
            life = None if old.expires_us is None else old.expires_us - old.created_us
            new = msgspec.structs.replace(
                old,
                key_id=new_id,
                digest=digest,
                last4=last4,
                created_us=at_us,
                created_by=_name(by),
                expires_us=None if life is None else at_us + life,
                predecessor=key_id,
                last_used_us=None,
            )
            may_issue(by.actor, new.tenant, new.owner, new.scope, new.rights or (), action="keys.rotate")
            retired = msgspec.structs.replace(old, successor=new_id, retires_us=at_us + overlap_us)
            await connection.execute(insert(keys).values(asdict(new)))
            change = update(keys).where(keys.c.key_id == key_id)
            await connection.execute(change.values(successor=new_id, retires_us=retired.retires_us))
            notes.add("keys.create", new.tenant, new_id, None, described(new))
            notes.add("keys.rotate", old.tenant, key_id, described(old), described(retired))
            return new

        return await self.audited(by, Attempt("keys.rotate", None, key_id), work)

    async def change_key(self, key_id: str, changes: Mapping[str, Any], etag: str | None, by: By) -> KeyRow:
        """Changes a key's CHANGEABLE fields and returns it as it stands. Whoever could issue it so may do it.

        etag: of the key as the caller last saw it. Raises Forbidden, Stale and NotDone: no such key, or it has ended.
        """
        assert set(changes) <= CHANGEABLE

        async def work(connection: AsyncConnection, notes: Notes) -> KeyRow:
            old = await self._found(connection, key_id, by, "keys.create")
            if etag is not None and etag != etag_of(old):
                raise Stale(f"key {key_id} was changed meanwhile")
            if old.revoked_us is not None:
                raise NotDone(f"key {key_id} is revoked; make a new one")
            new = msgspec.structs.replace(old, **changes)
            may_issue(by.actor, new.tenant, new.owner, new.scope, new.rights or ())
            if (new.budget_nanos is None and new.budget_tokens is None) != (new.budget_period is None):
                raise NotDone("a budget and its period go together; one of them is missing")
            values = {name: getattr(new, name) for name in changes}
            if values:
                await connection.execute(update(keys).where(keys.c.key_id == key_id).values(values))
            notes.add("keys.change", new.tenant, key_id, described(old), described(new))
            return new

        return await self.audited(by, Attempt("keys.change", None, key_id), work)

    async def revoke_key(self, key_id: str, at_us: int, by: By, reason: str = "") -> None:
        """Ends a key. Raises Forbidden and NotDone: no such key, or revoked before (the first time stands)."""

        async def work(connection: AsyncConnection, notes: Notes) -> None:
            row = await self._found(connection, key_id, by, "keys.revoke")
            if row.revoked_us is not None:
                raise NotDone(f"key {key_id} is revoked already")
            await end_keys(connection, notes, [row], at_us, reason)

        await self.audited(by, Attempt("keys.revoke", None, key_id), work)

    async def revoke_keys(
        self,
        at_us: int,
        by: By,
        *,
        tenant: str | None = None,
        owner: str | None = None,
        name: str | None = None,
        reason: str = "",
    ) -> list[str]:
        """Ends every key that is still valid and fits all that is given; returns their ids.

        An owner's keys in every tenant are the platform's to end. More than KEYS_REVOKED_MAX are ended in several
        transactions: should one fail, what was ended stays so. Raises Forbidden, and ValueError when nothing is given,
        which would end all, or an empty word, as a shell makes it of a variable that is not set.
        """
        wanted = {
            word: said for word, said in (("tenant", tenant), ("owner", owner), ("name", name)) if said is not None
        }
        if not wanted or "" in wanted.values():
            raise ValueError("which keys? give a tenant, an owner or a name, and none of them empty")
        conditions: list[ColumnElement[bool]] = [keys.c[word] == said for word, said in wanted.items()]
        target = " ".join(f"{word}={said}" for word, said in wanted.items())

        async def work(connection: AsyncConnection, notes: Notes) -> list[str]:
            may(by.actor, "keys.revoke", tenant, owner)
            rows = await valid_keys(connection, conditions, bounds.KEYS_REVOKED_MAX)
            # The request itself is on record too: it also says what was meant when there was nothing to end.
            notes.add("keys.revoke", tenant, target, None, {"revoked": len(rows)}, reason)
            await end_keys(connection, notes, rows, at_us, reason)
            return [row.key_id for row in rows]

        done: list[str] = []
        while True:
            part = await self.audited(by, Attempt("keys.revoke", tenant, target), work)
            done += part
            if len(part) < bounds.KEYS_REVOKED_MAX:
                return done

    async def _found(self, connection: AsyncConnection, key_id: str, by: By, action: Action) -> KeyRow:
        """The key, locked. One that the actor may not even see is as absent as one that is not there."""
        query = select(keys).where(keys.c.key_id == key_id).with_for_update()
        row = (await connection.execute(query)).first()
        found = None if row is None else _key(row)
        if found is None or not allowed(by.actor, "keys.read", found.tenant, found.owner):
            raise Absent(f"there is no key {key_id!r}")
        may(by.actor, action, found.tenant, found.owner)
        return found

    async def key_by_digest(self, digest: bytes) -> KeyRow | None:
        """The key with this digest, revoked and expired ones too, or None."""
        async with self.reading() as connection:
            row = (await connection.execute(select(keys).where(keys.c.digest == digest))).first()
        return None if row is None else _key(row)

    async def keys_by_digests(self, digests: Sequence[bytes]) -> list[KeyRow]:
        """The keys with these digests, revoked and expired ones too, in no order; fewer when some do not exist."""
        async with self.reading() as connection:
            return [_key(row) for row in await connection.execute(select(keys).where(keys.c.digest.in_(digests)))]

    async def key_by_id(self, key_id: str) -> KeyRow | None:
        """The key of this public name, or None."""
        async with self.reading() as connection:
            row = (await connection.execute(select(keys).where(keys.c.key_id == key_id))).first()
        return None if row is None else _key(row)

    async def keys_page(
        self, tenant: str | None, owner: str | None, after: tuple[Any, ...] | None, limit: int
    ) -> list[KeyRow]:
        """Keys oldest first, from behind `after` (created_us, key_id): a page that new keys do not move."""
        order = (keys.c.created_us, keys.c.key_id)
        query = select(keys).order_by(*order).limit(limit)
        if tenant is not None:
            query = query.where(keys.c.tenant == tenant)
        if owner is not None:
            query = query.where(keys.c.owner == owner)
        if after is not None:
            query = query.where(tuple_(*order) > tuple_(*map(literal, after)))
        async with self.reading(tenant) as connection:
            return [_key(row) for row in await connection.execute(query)]

    async def keys_ending(self, from_us: int, until_us: int) -> int:
        """How many keys expire in this time (wall clock) and have no successor: somebody will miss them."""
        query = select(func.count()).select_from(keys)
        query = query.where(keys.c.revoked_us.is_(None), keys.c.successor.is_(None))
        query = query.where(keys.c.expires_us > from_us, keys.c.expires_us <= until_us)
        async with self.reading() as connection:
            return int((await connection.execute(query)).scalar_one())

    async def list_keys(self, tenant: str | None = None, owner: str | None = None) -> list[KeyRow]:
        """Every key, oldest first, of one tenant or of all, of one owner or of all."""
        query = select(keys).order_by(keys.c.created_us, keys.c.key_id)
        if tenant is not None:
            query = query.where(keys.c.tenant == tenant)
        if owner is not None:
            query = query.where(keys.c.owner == owner)
        async with self.reading(tenant) as connection:
            return [_key(row) for row in await connection.execute(query)]


def _name(by: By) -> str:
    return f"{by.actor.kind} {by.actor.id}"


# === inside a transaction ===


async def valid_keys(connection: AsyncConnection, conditions: Sequence[ColumnElement[bool]], most: int) -> list[KeyRow]:
    """At most so many keys that are not revoked, locked."""
    query = select(keys).where(*conditions, keys.c.revoked_us.is_(None)).order_by(keys.c.key_id).limit(most)
    return [_key(row) for row in await connection.execute(query.with_for_update())]


async def end_keys(connection: AsyncConnection, notes: Notes, rows: Sequence[KeyRow], at_us: int, reason: str) -> None:
    """Revokes them and notes it."""
    for start in range(0, len(rows), 500):
        part = [row.key_id for row in rows[start : start + 500]]
        change = update(keys).where(keys.c.key_id.in_(part))
        await connection.execute(change.values(revoked_us=at_us, revoked_reason=reason or None))
    for row in rows:
        ended = msgspec.structs.replace(row, revoked_us=at_us, revoked_reason=reason or None)
        notes.add("keys.revoke", row.tenant, row.key_id, described(row), described(ended), reason)
