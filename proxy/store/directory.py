"""Pages of people, roles, sessions and invites: in an order that new rows do not disturb, from behind a given row."""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, Select, and_, literal, select, tuple_

from proxy.store.database import Database
from proxy.store.invites import Invite
from proxy.store.people import Membership, Session, User, place_of, values_of
from proxy.store.schema import invites, memberships, sessions, users

Position = tuple[Any, ...]


class Directory(Database):
    """The reading side of people. `tenant` None: everywhere; `after`: the order's values of the last known row."""

    async def users_page(self, tenant: str | None, after: Position | None, limit: int) -> list[User]:
        """People, oldest first; of a tenant, those who have a role there."""
        query = select(users)
        if tenant is not None:
            here = select(memberships.c.user_id).where(memberships.c.tenant == tenant)
            query = query.where(users.c.user_id.in_(here))
        return [
            User(**row) for row in await self._page(query, (users.c.created_us, users.c.user_id), after, limit, tenant)
        ]

    async def user_in(self, user_id: str, tenant: str | None) -> User | None:
        """The person, when they have a role in that tenant (None: whatever they have), or None."""
        query = select(users).where(users.c.user_id == user_id)
        if tenant is not None:
            here = and_(memberships.c.user_id == user_id, memberships.c.tenant == tenant)
            query = query.where(users.c.user_id.in_(select(memberships.c.user_id).where(here)))
        async with self.reading(tenant) as connection:
            row = (await connection.execute(query)).first()
        return None if row is None else User(**values_of(row))

    async def memberships_page(
        self, tenant: str | None, user_id: str | None, after: Position | None, limit: int
    ) -> list[Membership]:
        """Who is what where, by place and person."""
        query = select(memberships)
        if tenant is not None:
            query = query.where(memberships.c.tenant == tenant)
        if user_id is not None:
            query = query.where(memberships.c.user_id == user_id)
        order = (memberships.c.tenant, memberships.c.user_id)
        return [Membership(**row) for row in await self._page(query, order, after, limit, tenant)]

    async def membership(self, user_id: str, tenant: str | None) -> Membership | None:
        """What a person is there, or None."""
        there = and_(memberships.c.user_id == user_id, memberships.c.tenant == place_of(tenant))
        async with self.reading(tenant) as connection:
            row = (await connection.execute(select(memberships).where(there))).first()
        return None if row is None else Membership(**values_of(row))

    async def sessions_page(
        self, tenant: str | None, user_id: str | None, now_us: int, after: Position | None, limit: int
    ) -> list[Session]:
        """Sessions that are in force, oldest first."""
        query = select(sessions).where(sessions.c.revoked_us.is_(None), sessions.c.expires_us > now_us)
        if tenant is not None:
            query = query.where(sessions.c.tenant == tenant)
        if user_id is not None:
            query = query.where(sessions.c.user_id == user_id)
        order = (sessions.c.created_us, sessions.c.session_id)
        return [Session(**row) for row in await self._page(query, order, after, limit, tenant)]

    async def invites_page(self, tenant: str | None, now_us: int, after: Position | None, limit: int) -> list[Invite]:
        """Invites that can be taken up, oldest first."""
        query = select(invites).where(
            invites.c.used_us.is_(None), invites.c.revoked_us.is_(None), invites.c.expires_us > now_us
        )
        if tenant is not None:
            query = query.where(invites.c.tenant == tenant)
        order = (invites.c.created_us, invites.c.invite_id)
        return [Invite(**row) for row in await self._page(query, order, after, limit, tenant)]

    async def _page(
        self,
        query: Select[Any],
        order: tuple[ColumnElement[Any], ...],
        after: Position | None,
        limit: int,
        tenant: str | None,
    ) -> list[dict[str, Any]]:
        if after is not None:
            query = query.where(tuple_(*order) > tuple_(*map(literal, after)))
        query = query.order_by(*order).limit(limit)
        async with self.reading(tenant) as connection:
            return [values_of(row) for row in await connection.execute(query)]
