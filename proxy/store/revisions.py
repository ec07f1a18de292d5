"""Which policies the hosts have published: versions and a few counts, nothing of what the policies say."""

from __future__ import annotations

from typing import Any

from msgspec import Struct
from msgspec.structs import asdict
from sqlalchemy import delete, insert, literal, select, tuple_
from sqlalchemy.ext.asyncio import AsyncConnection

from proxy import bounds
from proxy.store.database import Database
from proxy.store.schema import policy_revisions


class Published(Struct, frozen=True, kw_only=True):
    """A policy as a host published it. The last four are how many of each it has."""

    version: str
    published_us: int
    generation: int  # of that host's workers; it begins anew with the machine
    tenants: int
    plans: int
    models: int
    upstreams: int


class PolicyRevision(Published, frozen=True, kw_only=True):
    """The same as it is recorded. `host` is the id of a data directory; `number` counts its revisions from 1."""

    host: str
    number: int


class Revisions(Database):
    """The history of policies."""

    async def record_revision(self, host: str, published: Published) -> bool:
        """Records what a host published, unless it is what was last recorded for it; then False. May be repeated.

        The newest POLICY_REVISIONS_MAX of the host are kept. Raises StoreUnavailable, and BadData when two keepers of
        one data directory write at once.
        """
        table = policy_revisions.c

        async def work(connection: AsyncConnection) -> bool:
            newest = (
                select(table.number, table.version).where(table.host == host).order_by(table.number.desc()).limit(1)
            )
            last = (await connection.execute(newest)).first()
            if last is not None and last.version == published.version:
                return False
            number = 1 if last is None else last.number + 1
            await connection.execute(insert(policy_revisions).values(host=host, number=number, **asdict(published)))
            over = table.number <= number - bounds.POLICY_REVISIONS_MAX
            await connection.execute(delete(policy_revisions).where(table.host == host, over))
            return True

        return await self.writing(work)

    async def revisions_page(self, after: tuple[Any, ...] | None, limit: int) -> list[PolicyRevision]:
        """Of every host, newest first. `after`: (published_us, host, number) of the last known one."""
        table = policy_revisions.c
        order = (table.published_us, table.host, table.number)
        query = select(policy_revisions).order_by(*(column.desc() for column in order)).limit(limit)
        if after is not None:
            query = query.where(tuple_(*order) < tuple_(*map(literal, after)))
        async with self.reading() as connection:
            return [PolicyRevision(**dict(row._mapping)) for row in await connection.execute(query)]
