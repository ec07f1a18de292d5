"""Invites: roles that wait for whoever brings a token. By one of them comes the platform's first admin.

The token is shown once, to who made the invite, and works once. What it gives was judged when it was made and is
judged again when it is taken up, by what its maker may grant then.
"""

from __future__ import annotations

import msgspec
from msgspec import Struct
from msgspec.structs import asdict
from sqlalchemy import and_, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from proxy import bounds
from proxy.identity.actor import By
from proxy.identity.roles import Actor, Forbidden, Role, allowed, check_place, may, may_grant
from proxy.store.audit import Absent, Attempt, NotDone, Notes
from proxy.store.people import (
    PLATFORM,
    People,
    Session,
    User,
    add_session,
    add_user,
    admins,
    membership_of,
    place_of,
    set_role,
    speaks_for,
    values_of,
)
from proxy.store.schema import invites, users


class Invite(Struct, frozen=True):
    """A role that waits for whoever brings the token. `first_only`: void once the platform has an admin."""

    invite_id: str
    tenant: str | None
    role: Role
    created_us: int
    expires_us: int
    first_only: bool = False
    created_by: str = ""  # kind and id of the actor
    used_us: int | None = None
    used_by: str | None = None
    revoked_us: int | None = None


class Invites(People):
    """Queries over invites, and their writers. Each writer raises Forbidden, NotDone, BadData and StoreUnavailable."""

    async def invite(self, made: Invite, digest: bytes, by: By) -> None:
        """Keeps a role ready for whoever brings the token of this digest before it expires."""
        check_place(made.role, made.tenant)

        async def work(connection: AsyncConnection, notes: Notes) -> None:
            may(by.actor, "invites.create", made.tenant)
            may_grant(by.actor, made.role, made.tenant)
            await _add(connection, notes, made, digest, by, bounds.INVITE_SECONDS_MAX)

        await self.audited(by, Attempt("invites.create", made.tenant, f"{made.invite_id} {made.role}"), work)

    async def bootstrap(self, made: Invite, digest: bytes, by: By) -> None:
        """An invite to the platform's first admin; earlier ones of the operator's are void from now on.

        Unless `first_only` is off, that is refused once there is an admin. Only the host's operator has this.
        """

        async def work(connection: AsyncConnection, notes: Notes) -> None:
            if by.actor.kind != "operator":
                raise Forbidden(f"{by.actor} may not bootstrap: only the operator of the host may")
            may_grant(by.actor, made.role, made.tenant)
            if made.first_only and await admins(connection):
                raise NotDone("the platform has an admin, who can invite others; --another makes one more all the same")
            still = and_(invites.c.tenant == PLATFORM, invites.c.used_us.is_(None), invites.c.revoked_us.is_(None))
            open_ones = and_(still, invites.c.created_by.startswith("operator "))
            for row in (await connection.execute(select(invites).where(open_ones))).all():
                old = Invite(**values_of(row))
                after = msgspec.structs.replace(old, revoked_us=made.created_us)
                notes.add("invites.revoke", None, old.invite_id, asdict(old), asdict(after), "a newer one was made")
            await connection.execute(update(invites).where(open_ones).values(revoked_us=made.created_us))
            await _add(connection, notes, made, digest, by, bounds.BOOTSTRAP_SECONDS_MAX)

        await self.audited(by, Attempt("invites.create", None, f"{made.invite_id} {made.role}"), work)

    async def revoke_invite(self, invite_id: str, at_us: int, by: By) -> None:
        """Withdraws an invite that nobody took up. Whom it was meant for is not told apart from an unknown token."""

        async def work(connection: AsyncConnection, notes: Notes) -> None:
            query = select(invites).where(invites.c.invite_id == invite_id).with_for_update()
            row = (await connection.execute(query)).first()
            found = None if row is None else Invite(**values_of(row))
            if found is None or not allowed(by.actor, "users.read", found.tenant):
                raise Absent(f"there is no invite {invite_id!r}")
            may(by.actor, "invites.revoke", found.tenant)
            if found.used_us is not None or found.revoked_us is not None:
                raise NotDone(f"invite {invite_id} was taken up or withdrawn already")
            after = msgspec.structs.replace(found, revoked_us=at_us)
            await connection.execute(update(invites).where(invites.c.invite_id == invite_id).values(revoked_us=at_us))
            notes.add("invites.revoke", found.tenant, invite_id, asdict(found), asdict(after))

        await self.audited(by, Attempt("invites.revoke", None, invite_id), work)

    async def invite_waits(self, digest: bytes, now_us: int) -> bool:
        """Whether an invite of this digest can still be taken up, as far as a look tells."""
        query = select(invites.c.invite_id).where(invites.c.digest == digest, invites.c.expires_us > now_us)
        query = query.where(invites.c.used_us.is_(None), invites.c.revoked_us.is_(None))
        async with self.reading() as connection:
            return (await connection.execute(query)).first() is not None

    async def redeem(self, digest: bytes, user: User, session: Session, session_digest: bytes, by: By) -> Invite:
        """Takes an invite up, once: the person gets its role, and a session in its place whatever `session` says.

        `by` is who brought the token: an invite's bearer for a new person, the person themselves for a known one.
        Raises NotDone, with one and the same sentence for an unknown, a used, a withdrawn and an expired invite.
        """

        async def work(connection: AsyncConnection, notes: Notes) -> Invite:
            query = select(invites).where(invites.c.digest == digest).with_for_update()
            row = (await connection.execute(query)).first()
            found = None if row is None else Invite(**values_of(row))
            now_us = session.created_us
            if found is None or found.used_us or found.revoked_us or found.expires_us <= now_us:
                raise NotDone("this invite is not valid: unknown, used, withdrawn or expired")
            if found.first_only and await admins(connection):
                raise NotDone("this invite was for the first admin, and there is one")
            await _judge_again(connection, found)
            await _introduce(connection, notes, user, found.tenant, by.actor)
            if await membership_of(connection, user.user_id, found.tenant) is not None:
                # It would replace what they are, perhaps by less.
                raise NotDone(f"user {user.user_id} has a role there already")
            granted_by = f"invite {found.invite_id}"
            await set_role(connection, notes, user.user_id, found.role, found.tenant, now_us, granted_by, None)
            used = msgspec.structs.replace(found, used_us=now_us, used_by=user.user_id)
            change = update(invites).where(invites.c.invite_id == found.invite_id)
            await connection.execute(change.values(used_us=now_us, used_by=user.user_id))
            notes.add("invites.redeem", found.tenant, found.invite_id, asdict(found), asdict(used))
            there = msgspec.structs.replace(session, user_id=user.user_id, tenant=found.tenant)
            await add_session(connection, notes, there, session_digest)
            return used

        return await self.audited(by, Attempt("invites.redeem", None, user.user_id), work)


async def _add(
    connection: AsyncConnection, notes: Notes, made: Invite, digest: bytes, by: By, seconds_max: int
) -> None:
    if not made.created_us < made.expires_us <= made.created_us + seconds_max * 1_000_000:
        raise NotDone(f"this invite may last {seconds_max // 60} minutes at most")
    made = msgspec.structs.replace(made, created_by=f"{by.actor.kind} {by.actor.id}")
    values = {**asdict(made), "tenant": place_of(made.tenant), "digest": digest}
    await connection.execute(insert(invites).values(values))
    notes.add("invites.create", made.tenant, made.invite_id, None, asdict(made))


async def _introduce(connection: AsyncConnection, notes: Notes, user: User, tenant: str | None, bearer: Actor) -> None:
    """A new person is added; as a known one only they themselves may come."""
    known = (await connection.execute(select(users).where(users.c.user_id == user.user_id))).first()
    if known is not None:
        if bearer.kind != "user" or bearer.id != user.user_id:
            raise Forbidden(f"{bearer} may not take up an invite as user {user.user_id}")
        return
    if user.issuer is not None and not speaks_for(bearer, user.issuer):
        raise Forbidden(f"{bearer} may not speak for the people of issuer {user.issuer!r}")
    await add_user(connection, notes, user, tenant)


async def _judge_again(connection: AsyncConnection, found: Invite) -> None:
    kind, _, maker = found.created_by.partition(" ")
    if kind == "operator":
        return
    user = (await connection.execute(select(users).where(users.c.user_id == maker))).first()
    # The maker acted in the invite's tenant, or as one of the platform.
    for tenant in (found.tenant, None):
        now = await membership_of(connection, maker, tenant)
        if now is None or user is None or user.disabled_us is not None:
            continue
        try:
            may_grant(Actor("user", maker, now.role, tenant), found.role, found.tenant)
            return
        except Forbidden:
            continue
    raise Forbidden(f"who made this invite ({found.created_by}) may no longer grant {found.role}")
