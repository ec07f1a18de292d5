"""Users, what they are where, and their sessions.

A person is known by (issuer, subject) of an identity provider, never by an e-mail address. Of sessions the
database keeps digests alone. As with keys, each change is judged, made and recorded in one transaction.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from msgspec import Struct
from msgspec.structs import asdict
from sqlalchemy import ColumnElement, Row, and_, delete, func, insert, select, tuple_, update
from sqlalchemy.ext.asyncio import AsyncConnection

from proxy import bounds
from proxy.identity.actor import By
from proxy.identity.roles import (
    Actor,
    Forbidden,
    ForbiddenTold,
    Role,
    allowed,
    check_place,
    may,
    may_grant,
    may_switch,
)
from proxy.store.audit import Absent, Attempt, Auditing, NotDone, Notes, Stale
from proxy.store.keys import end_keys, valid_keys
from proxy.store.schema import keys, memberships, sessions, users

PLATFORM = ""  # how the tables write the platform


class User(Struct, frozen=True):
    """One person. `email` is for people to read; `issuer` and `subject` come together or not at all."""

    user_id: str
    name: str
    created_us: int
    email: str | None = None
    issuer: str | None = None
    subject: str | None = None
    disabled_us: int | None = None


class Membership(Struct, frozen=True):
    """What a person is in one place; `tenant` None is the platform."""

    user_id: str
    tenant: str | None
    role: Role
    granted_by: str
    granted_us: int


class Session(Struct, frozen=True):
    """A person signed in to one place, until it ends. Its token is known by its digest alone."""

    session_id: str
    user_id: str
    tenant: str | None
    origin: str  # where it was made from
    created_us: int
    expires_us: int
    revoked_us: int | None = None


# Whether what a person is there is what the caller last saw.
Seen = Callable[[Membership | None], bool]


def place_of(tenant: str | None) -> str:
    """The tenant as the tables write it."""
    return PLATFORM if tenant is None else tenant


def values_of(row: Row[Any]) -> dict[str, Any]:
    """A row's values as the nouns above take them."""
    values = dict(row._mapping)
    values.pop("digest", None)
    if "tenant" in values:
        values["tenant"] = values["tenant"] or None
    return values


class People(Auditing):
    """Queries over people, and their writers. Each writer raises Forbidden, NotDone, BadData and StoreUnavailable."""

    # --- users ---

    async def add_user(self, user: User, by: By, tenant: str | None) -> None:
        """Adds a person who is to belong to `tenant` (None: the platform).

        Whom a provider means is for that provider, or for the platform, to say: a tenant cannot claim somebody else's
        identity for a person of its own.
        """

        async def work(connection: AsyncConnection, notes: Notes) -> None:
            may(by.actor, "users.create", tenant)
            if (user.issuer is None) != (user.subject is None):
                raise NotDone("issuer and subject name a person together; one of them is missing")
            if user.issuer is not None and not speaks_for(by.actor, user.issuer):
                raise ForbiddenTold(f"{by.actor} may not speak for the people of issuer {user.issuer!r}")
            await add_user(connection, notes, user, tenant)

        await self.audited(by, Attempt("users.create", tenant, user.user_id), work)

    async def disable_user(self, user_id: str, at_us: int, by: By) -> None:
        """Ends a person's every session and every key that they own, and lets none begin."""

        async def work(connection: AsyncConnection, notes: Notes) -> None:
            may(by.actor, "users.write", None)
            user = await _user(connection, user_id)
            if user.disabled_us is not None:
                raise NotDone(f"user {user_id} is disabled already")
            await _keep_an_admin(connection, by.actor, user_id)
            await connection.execute(update(users).where(users.c.user_id == user_id).values(disabled_us=at_us))
            after = msgspec.structs.replace(user, disabled_us=at_us)
            notes.add("users.write", None, user_id, asdict(user), asdict(after))
            open_ones = and_(sessions.c.user_id == user_id, sessions.c.revoked_us.is_(None))
            await _end_sessions(connection, notes, open_ones, at_us)
            await _end_keys_of(connection, notes, user_id, [], at_us, "their owner was disabled")

        await self.audited(by, Attempt("users.write", None, user_id), work)

    async def user(self, user_id: str) -> User | None:
        """The person, or None."""
        async with self.reading() as connection:
            row = (await connection.execute(select(users).where(users.c.user_id == user_id))).first()
        return None if row is None else User(**values_of(row))

    async def user_by_identity(self, issuer: str, subject: str) -> User | None:
        """Whom an identity provider means, or None."""
        query = select(users).where(users.c.issuer == issuer, users.c.subject == subject)
        async with self.reading() as connection:
            row = (await connection.execute(query)).first()
        return None if row is None else User(**values_of(row))

    async def disabled_among(self, identities: Sequence[tuple[str, str]]) -> set[tuple[str, str]]:
        """Those of these (issuer, subject) whose person may no longer call. Whom nobody knows may."""
        query = select(users.c.issuer, users.c.subject).where(
            users.c.disabled_us.is_not(None), tuple_(users.c.issuer, users.c.subject).in_(identities)
        )
        async with self.reading() as connection:
            return {(row.issuer, row.subject) for row in await connection.execute(query)}

    # --- roles ---

    async def grant_role(
        self,
        user_id: str,
        role: Role,
        tenant: str | None,
        at_us: int,
        by: By,
        seen: Seen | None = None,
    ) -> Membership:
        """Makes the person this, there, instead of what they were there. ValueError: role and place do not fit.

        seen: whether what they are there is what the caller last saw; else Stale is raised.
        """
        check_place(role, tenant)

        async def work(connection: AsyncConnection, notes: Notes) -> Membership:
            may_grant(by.actor, role, tenant)
            user = await _user(connection, user_id)
            _own_people(by.actor, user)
            old = await membership_of(connection, user_id, tenant)
            if old is None:
                await _not_a_stranger(connection, by.actor, user_id)
            if seen is not None and not seen(old):
                raise Stale(f"what user {user_id} is there was changed meanwhile")
            if old is not None and old.role == role:
                raise NotDone(f"user {user_id} is {role} there already")
            if old is not None and old.role == "platform_admin":
                await _keep_an_admin(connection, by.actor, user_id)
            granted_by = f"{by.actor.kind} {by.actor.id}"
            await set_role(connection, notes, user_id, role, tenant, at_us, granted_by, old)
            return Membership(user_id, tenant, role, granted_by, at_us)

        return await self.audited(by, Attempt("roles.grant", tenant, f"{user_id} {role}"), work)

    async def revoke_role(
        self,
        user_id: str,
        tenant: str | None,
        at_us: int,
        by: By,
        seen: Seen | None = None,
    ) -> None:
        """Takes the person's role there and ends their sessions and keys there. `seen` as with `grant_role`."""

        async def work(connection: AsyncConnection, notes: Notes) -> None:
            may(by.actor, "roles.revoke", tenant)
            old = await membership_of(connection, user_id, tenant)
            if old is None:
                raise Absent(f"user {user_id} has no role there")
            _own_people(by.actor, await _user(connection, user_id))
            if seen is not None and not seen(old):
                raise Stale(f"what user {user_id} is there was changed meanwhile")
            if old.role == "platform_admin":
                await _keep_an_admin(connection, by.actor, user_id)
            there = and_(memberships.c.user_id == user_id, memberships.c.tenant == place_of(tenant))
            await connection.execute(delete(memberships).where(there))
            notes.add("roles.revoke", tenant, user_id, asdict(old), None)
            theirs = and_(sessions.c.user_id == user_id, sessions.c.tenant == place_of(tenant))
            await _end_sessions(connection, notes, and_(theirs, sessions.c.revoked_us.is_(None)), at_us)
            if tenant is not None:
                here = [keys.c.tenant == tenant]
                await _end_keys_of(connection, notes, user_id, here, at_us, "their owner has no role there any more")

        await self.audited(by, Attempt("roles.revoke", tenant, user_id), work)

    async def memberships(self, user_id: str | None = None, tenant: str | None = None) -> list[Membership]:
        """What people are where: of one person, in one tenant, or all."""
        query = select(memberships).order_by(memberships.c.tenant, memberships.c.user_id)
        if user_id is not None:
            query = query.where(memberships.c.user_id == user_id)
        if tenant is not None:
            query = query.where(memberships.c.tenant == tenant)
        async with self.reading(tenant) as connection:
            return [Membership(**values_of(row)) for row in await connection.execute(query)]

    # --- sessions ---

    async def open_session(self, session: Session, digest: bytes, by: By) -> None:
        """Signs a person in to one place, in which they have a role. To change the place is to open another."""

        async def work(connection: AsyncConnection, notes: Notes) -> None:
            may(by.actor, "sessions.create", session.tenant)
            user = await _user(connection, session.user_id)
            _own_people(by.actor, user)
            await add_session(connection, notes, session, digest)

        await self.audited(by, Attempt("sessions.create", session.tenant, session.user_id), work)

    async def switch_session(self, old_id: str, session: Session, digest: bytes, by: By) -> Role:
        """From a session of one's own to one in another tenant, which ends no later. Returns the role there.

        Raises Forbidden, and Absent where the person has no role.
        """

        async def work(connection: AsyncConnection, notes: Notes) -> Role:
            may_switch(by.actor, session.user_id, session.tenant)
            row = (await connection.execute(select(sessions).where(sessions.c.session_id == old_id))).first()
            old = None if row is None else Session(**values_of(row))
            if old is None or old.user_id != session.user_id or old.revoked_us is not None:
                raise Absent(f"there is no session {old_id!r}")
            there = await membership_of(connection, session.user_id, session.tenant)
            if there is None or session.expires_us > old.expires_us:
                raise Absent(f"user {session.user_id} has no role there")
            await add_session(connection, notes, session, digest)
            return there.role

        return await self.audited(by, Attempt("sessions.create", session.tenant, session.user_id), work)

    async def revoke_session(self, session_id: str, at_us: int, by: By) -> None:
        """Ends one session: one's own, or somebody's in the actor's reach."""

        async def work(connection: AsyncConnection, notes: Notes) -> None:
            row = (await connection.execute(select(sessions).where(sessions.c.session_id == session_id))).first()
            found = None if row is None else Session(**values_of(row))
            if found is None or not allowed(by.actor, "sessions.revoke", found.tenant, found.user_id):
                raise Absent(f"there is no session {session_id!r}")
            if found.revoked_us is not None:
                raise NotDone(f"session {session_id} is revoked already")
            await _end_sessions(connection, notes, sessions.c.session_id == session_id, at_us)

        await self.audited(by, Attempt("sessions.revoke", None, session_id), work)

    async def session_actor(self, digest: bytes, now_us: int) -> tuple[Session, Actor] | None:
        """Who acts by this session's token, with the role they have now; None when it has ended or they have none."""
        joined = sessions.join(users, users.c.user_id == sessions.c.user_id).join(
            memberships,
            and_(memberships.c.user_id == sessions.c.user_id, memberships.c.tenant == sessions.c.tenant),
        )
        query = (
            select(sessions, memberships.c.role)
            .select_from(joined)
            .where(
                sessions.c.digest == digest,
                sessions.c.revoked_us.is_(None),
                sessions.c.expires_us > now_us,
                users.c.disabled_us.is_(None),
            )
        )
        async with self.reading() as connection:
            row = (await connection.execute(query)).first()
        if row is None:
            return None
        values = values_of(row)
        role = values.pop("role")
        session = Session(**values)
        return session, Actor("user", session.user_id, role, session.tenant)


# === inside a transaction ===


def speaks_for(actor: Actor, issuer: str) -> bool:
    """Whether the actor may say whom an issuer means: that issuer itself, or the platform's people."""
    if actor.kind == "provider":
        return actor.id == issuer
    return actor.kind in ("operator", "user") and actor.tenant is None


def _own_people(actor: Actor, user: User) -> None:
    """A provider speaks of the people it knows, and of no others."""
    if actor.kind == "provider" and user.issuer != actor.id:
        raise Forbidden(f"{actor} may not speak for user {user.user_id}: it did not introduce them")


async def _not_a_stranger(connection: AsyncConnection, actor: Actor, user_id: str) -> None:
    """Below the platform, people of other tenants do not exist: they come by an invite, of their own will."""
    if actor.kind != "user" or actor.tenant is None:
        return
    elsewhere = select(func.count()).select_from(memberships).where(memberships.c.user_id == user_id)
    if (await connection.execute(elsewhere)).scalar_one():
        raise Absent(f"there is no user {user_id!r}")


async def _user(connection: AsyncConnection, user_id: str) -> User:
    row = (await connection.execute(select(users).where(users.c.user_id == user_id))).first()
    if row is None:
        raise Absent(f"there is no user {user_id!r}")
    return User(**values_of(row))


async def add_user(connection: AsyncConnection, notes: Notes, user: User, tenant: str | None) -> None:
    """Adds the person and notes it. Raises NotDone for texts that are too long."""
    for name in ("name", "email", "issuer", "subject"):
        if len((getattr(user, name) or "").encode()) > bounds.PEOPLE_TEXT_BYTES_MAX:
            raise NotDone(f"a person's {name} has at most {bounds.PEOPLE_TEXT_BYTES_MAX} bytes")
    if user.issuer is not None:
        query = select(users.c.user_id).where(users.c.issuer == user.issuer, users.c.subject == user.subject)
        if (await connection.execute(query)).first() is not None:
            raise NotDone("the person of this issuer and subject is known already")
    await connection.execute(insert(users).values(asdict(user)))
    notes.add("users.create", tenant, user.user_id, None, asdict(user))


async def membership_of(connection: AsyncConnection, user_id: str, tenant: str | None) -> Membership | None:
    """What the person is there, or None."""
    there = and_(memberships.c.user_id == user_id, memberships.c.tenant == place_of(tenant))
    row = (await connection.execute(select(memberships).where(there))).first()
    return None if row is None else Membership(**values_of(row))


async def set_role(
    connection: AsyncConnection,
    notes: Notes,
    user_id: str,
    role: Role,
    tenant: str | None,
    at_us: int,
    granted_by: str,
    old: Membership | None,
) -> None:
    """Writes what the person is there, instead of `old`, and notes it."""
    new = Membership(user_id, tenant, role, granted_by, at_us)
    values = {**asdict(new), "tenant": place_of(tenant)}
    if old is None:
        await connection.execute(insert(memberships).values(values))
    else:
        there = and_(memberships.c.user_id == user_id, memberships.c.tenant == place_of(tenant))
        await connection.execute(update(memberships).where(there).values(values))
    notes.add("roles.grant", tenant, user_id, None if old is None else asdict(old), asdict(new))


async def admins(connection: AsyncConnection, but: str = "") -> int:
    """How many people are platform_admin and not disabled, not counting `but`."""
    query = (
        select(func.count())
        .select_from(memberships.join(users, users.c.user_id == memberships.c.user_id))
        .where(
            memberships.c.role == "platform_admin",
            memberships.c.tenant == PLATFORM,
            users.c.disabled_us.is_(None),
            users.c.user_id != but,
        )
    )
    return int((await connection.execute(query)).scalar_one())


async def _keep_an_admin(connection: AsyncConnection, actor: Actor, user_id: str) -> None:
    """The last admin is not removed but by the operator of the host, who can make another."""
    old = await membership_of(connection, user_id, None)
    if old is None or old.role != "platform_admin" or actor.kind == "operator":
        return
    if not await admins(connection, but=user_id):
        raise NotDone(f"user {user_id} is the last platform_admin; make another first")


async def add_session(connection: AsyncConnection, notes: Notes, session: Session, digest: bytes) -> None:
    """Signs the person in and notes it. Raises NotDone: disabled, no role there, too long."""
    user = await _user(connection, session.user_id)
    if user.disabled_us is not None:
        raise NotDone(f"user {session.user_id} is disabled")
    if await membership_of(connection, session.user_id, session.tenant) is None:
        raise NotDone(f"user {session.user_id} has no role there")
    if not session.created_us < session.expires_us <= session.created_us + bounds.SESSION_SECONDS_MAX * 1_000_000:
        raise NotDone(f"a session lasts {bounds.SESSION_SECONDS_MAX // 3600} hours at most")
    values = {**asdict(session), "tenant": place_of(session.tenant), "digest": digest}
    await connection.execute(insert(sessions).values(values))
    notes.add("sessions.create", session.tenant, session.session_id, None, asdict(session))


async def _end_sessions(connection: AsyncConnection, notes: Notes, which: Any, at_us: int) -> None:
    found = [Session(**values_of(row)) for row in await connection.execute(select(sessions).where(which))]
    await connection.execute(update(sessions).where(which).values(revoked_us=at_us))
    for session in found:
        after = msgspec.structs.replace(session, revoked_us=at_us)
        notes.add("sessions.revoke", session.tenant, session.session_id, asdict(session), asdict(after))


async def _end_keys_of(
    connection: AsyncConnection,
    notes: Notes,
    user_id: str,
    conditions: Sequence[ColumnElement[bool]],
    at_us: int,
    reason: str,
) -> None:
    """What somebody holds by themselves goes with them: nobody would think of it again."""
    rows = await valid_keys(connection, [keys.c.owner == user_id, *conditions], bounds.KEYS_REVOKED_MAX + 1)
    if len(rows) > bounds.KEYS_REVOKED_MAX:
        raise NotDone(f"user {user_id} owns more than {bounds.KEYS_REVOKED_MAX} valid keys: end those first")
    await end_keys(connection, notes, rows, at_us, reason)
