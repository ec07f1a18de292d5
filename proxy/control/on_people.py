"""The operations on people: users, what they are where, sessions and invites."""

from __future__ import annotations

from hashlib import sha256
from typing import Any

import msgspec
from msgspec.structs import asdict

from proxy import bounds
from proxy.clock import wall_us
from proxy.control import persons
from proxy.control.callers import unauthorized
from proxy.control.office import Answer, Ask, Handler, Office, page, where
from proxy.control.problems import forbidden, invalid, not_found
from proxy.control.signing import NoEntry, made
from proxy.control.table import PLATFORM
from proxy.errors import Refusal
from proxy.identity import fields
from proxy.identity.actor import By
from proxy.identity.credentials import digest_of, new_id, new_token
from proxy.identity.roles import ACTIONS, Actor, allowed, check_place, reach
from proxy.store.store import Invite, Membership, NotDone, Session, User

# === users ===


def _user(user: User) -> persons.User:
    return msgspec.convert(asdict(user), persons.User)


async def get_me(_: Office, ask: Ask) -> Answer:
    """The caller."""
    actor, session = ask.actor, ask.caller.session if ask.caller else None
    return Answer(
        msgspec.convert(
            {
                "kind": actor.kind,
                "id": actor.id,
                "tenant": actor.tenant,
                "role": actor.role,
                "actions": {action: far for action in ACTIONS if (far := reach(actor, action)) is not None},
                "session_id": None if session is None else session.session_id,
            },
            persons.Me,
        )
    )


async def list_users(office: Office, ask: Ask) -> Answer:
    """People in the caller's reach."""
    tenant, _ = where(ask.actor, "users.read", ask.query.tenant)
    rows, following = await page(
        office,
        ask,
        (tenant,),
        lambda after, limit: office.store.users_page(tenant, after, limit),
        lambda user: (user.created_us, user.user_id),
    )
    return Answer(persons.UserPage([_user(user) for user in rows], following))


async def create_user(office: Office, ask: Ask) -> Answer:
    """A person without a role."""
    body: persons.UserNew = ask.body
    tenant = body.tenant or ask.actor.tenant
    name, email = _called(body)
    if tenant is not None and allowed(ask.actor, "users.create", tenant):
        _known(office, tenant)
    user = User(new_id("usr"), name, wall_us(), email, body.issuer, body.subject)
    ask.keep(lambda _: _user(user))
    await office.store.add_user(user, ask.by, tenant)
    return Answer(_user(user))


def _called(body: persons.UserNew | persons.Redemption) -> tuple[str, str | None]:
    """A person's name and address. Raises Wrong."""
    return fields.name(body.name, "$.name"), fields.email(body.email, "$.email")


def _known(office: Office, tenant: str, path: str = "$.tenant") -> None:
    if tenant not in office.policies.current().tenants:
        raise invalid("there is no such tenant in the policy", path)


async def get_user(office: Office, ask: Ask) -> Answer:
    """A person who has a role in the caller's tenant; for the platform's people, any."""
    tenant, _ = where(ask.actor, "users.read", None)
    user = await office.store.user_in(ask.names["user_id"], tenant)
    if user is None:
        raise not_found()
    return Answer(_user(user))


async def disable_user(office: Office, ask: Ask) -> Answer:
    """Ends a person's every session, token and key."""
    await office.desk.disable_user(ask.names["user_id"], ask.by)
    return Answer()


# === memberships ===


def etag_of(membership: Membership) -> str:
    """Changes with what the person is there."""
    return sha256(msgspec.json.encode(membership)).hexdigest()[:32]


def _membership(membership: Membership) -> persons.Membership:
    return msgspec.convert(asdict(membership), persons.Membership)


def _place(ask: Ask) -> str | None:
    place = ask.names["place"]
    return None if place == PLATFORM else place


async def list_memberships(office: Office, ask: Ask) -> Answer:
    """Who is what where, in the caller's reach."""
    user_id = ask.query.user_id
    tenant, _ = where(ask.actor, "users.read", ask.query.tenant)
    rows, following = await page(
        office,
        ask,
        (tenant, user_id),
        lambda after, limit: office.store.memberships_page(tenant, user_id, after, limit),
        lambda one: (one.tenant or "", one.user_id),
    )
    return Answer(persons.MembershipPage([_membership(one) for one in rows], following))


async def get_membership(office: Office, ask: Ask) -> Answer:
    """What a person is there."""
    place = _place(ask)
    where(ask.actor, "users.read", None)
    found = None
    if allowed(ask.actor, "users.read", place):
        found = await office.store.membership(ask.names["user_id"], place)
    if found is None:
        raise not_found()
    return Answer(_membership(found), etag_of(found))


async def put_membership(office: Office, ask: Ask) -> Answer:
    """Gives a role. If-None-Match: * where the person has none there, else If-Match with what was last seen."""
    place, role = _place(ask), ask.body.role
    try:
        check_place(role, place)
    except ValueError:
        raise invalid(f"{role} is not a role of that place", "$.role") from None
    if (
        place is not None
        and allowed(ask.actor, "roles.grant", place)
        and place not in office.policies.current().tenants
    ):
        raise not_found()
    new = await office.store.grant_role(ask.names["user_id"], role, place, wall_us(), ask.by, _seen(ask))
    return Answer(_membership(new), etag_of(new))


async def delete_membership(office: Office, ask: Ask) -> Answer:
    """Takes it, and what the person holds there."""
    await office.desk.revoke_role(ask.names["user_id"], _place(ask), ask.by, _seen(ask))
    return Answer()


def _seen(ask: Ask) -> Any:
    def seen(old: Membership | None) -> bool:
        return ask.fresh if old is None else etag_of(old) == ask.match

    return seen


# === sessions ===


async def list_sessions(office: Office, ask: Ask) -> Answer:
    """Sessions in the caller's reach."""
    asked: persons.SessionList = ask.query
    tenant, own = where(ask.actor, "sessions.read", asked.tenant)
    if own is not None and asked.user_id not in (None, own):
        return Answer(persons.SessionPage([], None))
    user_id = own or asked.user_id
    rows, following = await page(
        office,
        ask,
        (tenant, user_id),
        lambda after, limit: office.store.sessions_page(tenant, user_id, wall_us(), after, limit),
        lambda session: (session.created_us, session.session_id),
    )
    shown = [
        persons.Session(
            session_id=one.session_id,
            user_id=one.user_id,
            tenant=one.tenant,
            origin=one.origin,
            created_us=one.created_us,
            expires_us=one.expires_us,
        )
        for one in rows
    ]
    return Answer(persons.SessionPage(shown, following))


async def create_session(office: Office, ask: Ask) -> Answer:
    """Signs in by an identity provider."""
    try:
        return Answer(await office.sign_ins.enter(ask.body.id_token, ask.body.tenant, ask.peer))
    except (Refusal, NoEntry) as refused:
        office.callers.failures.note(ask.peer)  # above the limit it ends here: the log is nobody's to fill
        if isinstance(refused, NoEntry):
            await office.store.refused(refused.by, refused.attempt, refused.message)
        raise


async def switch_session(office: Office, ask: Ask) -> Answer:
    """From one tenant to another, with a token of its own."""
    old, tenant = ask.caller.session if ask.caller else None, ask.body.tenant
    if old is None:
        raise forbidden("sessions.create")
    secret = new_token("session")
    session = Session(new_id("ses"), old.user_id, tenant, ask.peer, wall_us(), old.expires_us)
    role = await office.store.switch_session(old.session_id, session, digest_of(secret), ask.by)
    return Answer(made(session, role, secret))


async def delete_session(office: Office, ask: Ask) -> Answer:
    """Ends a session."""
    await office.store.revoke_session(ask.names["session_id"], wall_us(), ask.by)
    return Answer()


# === invites ===


def _invite(invite: Invite) -> dict[str, Any]:
    return {name: getattr(invite, name) for name in persons.Invite.__struct_fields__}


async def list_invites(office: Office, ask: Ask) -> Answer:
    """Invites that still wait, in the caller's reach."""
    tenant, _ = where(ask.actor, "users.read", ask.query.tenant)
    rows, following = await page(
        office,
        ask,
        (tenant,),
        lambda after, limit: office.store.invites_page(tenant, wall_us(), after, limit),
        lambda invite: (invite.created_us, invite.invite_id),
    )
    return Answer(persons.InvitePage([msgspec.convert(_invite(one), persons.Invite) for one in rows], following))


async def create_invite(office: Office, ask: Ask) -> Answer:
    """Keeps a role ready."""
    body: persons.InviteNew = ask.body
    tenant = body.tenant or ask.actor.tenant
    try:
        check_place(body.role, tenant)
    except ValueError:
        raise invalid(f"{body.role} is not a role of that place", "$.role") from None
    if tenant is not None and allowed(ask.actor, "invites.create", tenant):
        _known(office, tenant)
    now_us = wall_us()
    secret = new_token("invite")
    invite = Invite(new_id("inv"), tenant, body.role, now_us, now_us + body.expires_in_seconds * 1_000_000)
    invite = msgspec.structs.replace(invite, created_by=f"{ask.actor.kind} {ask.actor.id}")

    def shown(token: str | None) -> persons.InviteMade:
        return msgspec.convert({**_invite(invite), "token": token}, persons.InviteMade)

    ask.keep(lambda _: shown(None))
    await office.store.invite(invite, digest_of(secret), ask.by)
    return Answer(shown(secret))


async def delete_invite(office: Office, ask: Ask) -> Answer:
    """Withdraws one."""
    await office.store.revoke_invite(ask.names["invite_id"], wall_us(), ask.by)
    return Answer()


async def redeem_invite(office: Office, ask: Ask) -> Answer:
    """Takes an invite up: as a new person, or, with a session's token, as the person of that session."""
    body: persons.Redemption = ask.body
    user, bearer = await _bearer(office, ask)
    now_us, digest, failures = wall_us(), digest_of(body.token), office.callers.failures
    if failures.above(ask.peer) and not await office.store.invite_waits(digest, now_us):
        # Each attempt is put on record, and whoever guesses needs no credential: the log must not be theirs to fill.
        failures.note(ask.peer)
    secret = new_token("session")
    until_us = now_us + bounds.SESSION_SECONDS_MAX * 1_000_000
    session = Session(new_id("ses"), user.user_id, None, ask.peer, now_us, until_us)
    try:
        used = await office.store.redeem(digest, user, session, digest_of(secret), By(bearer, ask.peer))
    except NotDone:
        failures.note(ask.peer)
        raise
    return Answer(made(msgspec.structs.replace(session, tenant=used.tenant), used.role, secret))


async def _bearer(office: Office, ask: Ask) -> tuple[User, Actor]:
    """Who brings the invite: somebody new, or whose session came with it. Raises Wrong, and Problem for a key."""
    name, email = _called(ask.body)
    if ask.caller is None:
        user = User(new_id("usr"), name, wall_us(), email)
        return user, Actor("invite", user.user_id, None, None)
    known = await office.store.user(ask.actor.id) if ask.actor.kind == "user" else None
    if known is None:
        raise unauthorized()
    return known, ask.actor


HANDLERS: dict[str, Handler] = {
    "get_me": get_me,
    "list_users": list_users,
    "create_user": create_user,
    "get_user": get_user,
    "disable_user": disable_user,
    "list_memberships": list_memberships,
    "get_membership": get_membership,
    "put_membership": put_membership,
    "delete_membership": delete_membership,
    "list_sessions": list_sessions,
    "create_session": create_session,
    "switch_session": switch_session,
    "delete_session": delete_session,
    "list_invites": list_invites,
    "create_invite": create_invite,
    "delete_invite": delete_invite,
    "redeem_invite": redeem_invite,
}
