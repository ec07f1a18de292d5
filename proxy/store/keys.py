"""API keys as the database keeps them: never the secret, only its keyed digest (DESIGN section 8)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from msgspec import Struct
from sqlalchemy import Row, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from proxy.store.database import Database
from proxy.store.schema import keys


class KeyRow(Struct, frozen=True):
    """One key. Times are wall clock; `endpoints` and `models` None: whatever tenant and plan allow."""

    key_id: str
    digest: bytes  # 32 bytes
    tenant: str
    name: str
    owner: str | None
    tags: tuple[tuple[str, str], ...]
    endpoints: tuple[str, ...] | None
    models: tuple[str, ...] | None
    last4: str
    created_us: int
    expires_us: int | None = None
    revoked_us: int | None = None


def _names(value: Sequence[str] | None) -> tuple[str, ...] | None:
    return None if value is None else tuple(value)


def _key(row: Row[tuple[object, ...]]) -> KeyRow:
    return KeyRow(
        key_id=row.key_id,
        digest=bytes(row.digest),
        tenant=row.tenant,
        name=row.name,
        owner=row.owner,
        tags=tuple((name, value) for name, value in row.tags),
        endpoints=_names(row.endpoints),
        models=_names(row.models),
        last4=row.last4,
        created_us=row.created_us,
        expires_us=row.expires_us,
        revoked_us=row.revoked_us,
    )


class KeysMark(NamedTuple):
    """A look at the key table. While only `made` rises, every key that was valid still is, and still may the same."""

    made: int  # rises with every new key
    changed: int  # rises with whatever may have ended or narrowed one


class Keys(Database):
    """Queries over `keys`. A change is committed when it returns: raise the generation word after that, not before."""

    async def insert_key(self, row: KeyRow) -> None:
        """Adds a key. Raises BadData when its id or digest is taken."""
        values = {name: getattr(row, name) for name in row.__struct_fields__}

        async def work(connection: AsyncConnection) -> None:
            await connection.execute(insert(keys).values(values))

        await self.writing(work)

    async def key_by_digest(self, digest: bytes) -> KeyRow | None:
        """The key with this digest, revoked and expired ones too, or None."""
        async with self.reading() as connection:
            row = (await connection.execute(select(keys).where(keys.c.digest == digest))).first()
        return None if row is None else _key(row)

    async def keys_by_digests(self, digests: Sequence[bytes]) -> list[KeyRow]:
        """The keys with these digests, revoked and expired ones too, in no order; fewer when some do not exist."""
        async with self.reading() as connection:
            return [_key(row) for row in await connection.execute(select(keys).where(keys.c.digest.in_(digests)))]

    async def list_keys(self, tenant: str | None = None) -> list[KeyRow]:
        """Every key, oldest first, of one tenant or of all."""
        query = select(keys).order_by(keys.c.created_us, keys.c.key_id)
        if tenant is not None:
            query = query.where(keys.c.tenant == tenant)
        async with self.reading() as connection:
            return [_key(row) for row in await connection.execute(query)]

    async def keys_mark(self) -> KeysMark:
        """What a host asks to learn of the others' changes."""
        query = select(func.count(), func.count(keys.c.revoked_us))
        async with self.reading() as connection:
            made, revoked = (await connection.execute(query.select_from(keys))).one()
        return KeysMark(made, revoked)

    async def revoke_key(self, key_id: str, at_us: int) -> bool:
        """Ends a key. False when there is no such key or it was revoked before (the first time stands)."""
        return await self._revoke((keys.c.key_id == key_id,), at_us) > 0

    async def revoke_keys_named(self, tenant: str, name: str, at_us: int) -> int:
        """Ends every key of this name that is still valid; returns how many there were."""
        return await self._revoke((keys.c.tenant == tenant, keys.c.name == name), at_us)

    async def _revoke(self, which: Sequence[object], at_us: int) -> int:
        query = update(keys).where(*which, keys.c.revoked_us.is_(None)).values(revoked_us=at_us)  # type: ignore[arg-type]

        async def work(connection: AsyncConnection) -> int:
            return int((await connection.execute(query)).rowcount)

        return await self.writing(work)
