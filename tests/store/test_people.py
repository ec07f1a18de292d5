"""People in the database: roles, sessions and invites, and every way in which somebody might reach too far."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest
from sqlalchemy import insert

from proxy import bounds
from proxy.identity.actor import By, operator
from proxy.identity.roles import PLATFORM_ROLES, ROLES, Actor, Forbidden, Role, Scope
from proxy.store.keys import KeyRow, actor_of
from proxy.store.people import Session, User
from proxy.store.schema import invites, memberships
from proxy.store.store import BadData, Invite, NotDone, Store
from tests.audit.test_log import rows_of, verified
from tests.store.records import run

NOW = 1_790_000_000_000_000
HOUR = 3_600_000_000
OPERATOR = operator()
IDP = By(Actor("provider", "https://idp.acme", None, "acme"), "192.0.2.9")
PLATFORM_IDP = By(Actor("provider", "https://idp.weir", None, None), "192.0.2.9")
_numbers = itertools.count()


def as_(user_id: str, role: Role, tenant: str | None) -> By:
    """Somebody in a session."""
    return By(Actor("user", user_id, role, tenant), "192.0.2.1")


ROOT = as_("usr_root", "platform_admin", None)
ADMIN = as_("usr_admin", "tenant_admin", "acme")
OTHER = as_("usr_other", "tenant_admin", "globex")


def user(user_id: str, **fields: Any) -> User:
    """A person."""
    return User(user_id, user_id.removeprefix("usr_"), NOW, **fields)


def session(user_id: str, tenant: str | None, **fields: Any) -> Session:
    """An hour of theirs."""
    made = Session(f"ses_{next(_numbers)}", user_id, tenant, "192.0.2.1", NOW, NOW + HOUR)
    return msgspec.structs.replace(made, **fields)


def invite(role: Role, tenant: str | None, **fields: Any) -> Invite:
    """An hour to take it up."""
    return msgspec.structs.replace(Invite(f"inv_{next(_numbers)}", tenant, role, NOW, NOW + HOUR), **fields)


def digest() -> bytes:
    """Another one each time."""
    return next(_numbers).to_bytes(32, "big")


async def populated(url: str) -> Store:
    """An admin of the platform, one of each of two tenants, a member of each, and one of both."""
    store = Store.open(url)
    for name, places in {
        "usr_root": [(None, "platform_admin")],
        "usr_admin": [("acme", "tenant_admin")],
        "usr_other": [("globex", "tenant_admin")],
        "usr_member": [("acme", "tenant_member")],
        "usr_stranger": [("globex", "tenant_member")],
        "usr_both": [("acme", "tenant_member"), ("globex", "billing_viewer")],
    }.items():
        await store.add_user(user(name), OPERATOR, None)
        for tenant, role in places:
            await store.grant_role(name, role, tenant, NOW, OPERATOR)  # type: ignore[arg-type]
    return store


def told(url: str, work: Callable[[Store], Awaitable[None]]) -> None:
    """Runs `work` on a populated store; afterwards the log must be whole."""

    async def all_of_it() -> None:
        store = await populated(url)
        try:
            await work(store)
            assert await verified(store) == []
        finally:
            await store.close()

    run(all_of_it())


async def refused(attempt: Awaitable[object], sentence: str, kind: type[Exception] = Forbidden) -> None:
    """The attempt is refused with that sentence."""
    with pytest.raises(kind, match=sentence):
        await attempt


def test_nobody_below_the_platform_grants_what_is_not_theirs(url: str) -> None:
    """Every writer of roles, every role and place, by the admin and the provider of a tenant: refused and on record."""

    async def work(store: Store) -> None:
        before = await store.memberships()
        count = 0
        for by, role, tenant in itertools.product((ADMIN, IDP), ROLES, ("acme", "globex", None)):
            if (role in PLATFORM_ROLES) != (tenant is None):
                for attempt in (
                    store.grant_role("usr_member", role, tenant, NOW, by),
                    _invite(store, role, tenant, by),
                ):
                    await refused(attempt, role, ValueError)
            elif tenant != "acme":
                for attempt in (
                    store.grant_role("usr_member", role, tenant, NOW, by),
                    _invite(store, role, tenant, by),
                ):
                    await refused(attempt, "may not")
                    count += 1
        for by in (as_("usr_member", "tenant_member", "acme"), as_("usr_b", "billing_viewer", "acme")):
            await refused(store.grant_role("usr_member", "tenant_admin", "acme", NOW, by), "may not roles.grant")
            await refused(_invite(store, "tenant_member", "acme", by), "may not invites.create")
            count += 2
        assert await store.memberships() == before
        rows = [row for row in await rows_of(store) if row.outcome == "refused"]
        assert len(rows) == count
        assert {row.tenant for row in rows} == {"acme"}

    told(url, work)


def _grants(store: Store, role: Role, tenant: str | None, by: By) -> list[Awaitable[None]]:
    return [store.grant_role("usr_member", role, tenant, NOW, by), _invite(store, role, tenant, by)]


def _invite(store: Store, role: Role, tenant: str | None, by: By) -> Awaitable[None]:
    return store.invite(invite(role, tenant), digest(), by)


def test_the_database_itself_knows_where_a_role_is_held(url: str) -> None:
    """Should every judgement fail: a platform role in a tenant, or the other way, is not storable."""

    async def work(store: Store) -> None:
        for role, tenant in (("platform_admin", "acme"), ("tenant_admin", "")):
            place = {"user_id": "usr_member", "tenant": tenant, "role": role, "granted_by": "x", "granted_us": 1}
            made = {**place, "invite_id": "i", "digest": digest(), "created_by": "x", "first_only": False}
            row = {name: made[name] for name in ("invite_id", "digest", "tenant", "role", "created_by", "first_only")}
            for statement in (
                insert(memberships).values(place | {"user_id": "usr_new"}),
                insert(invites).values({**row, "created_us": 1, "expires_us": 2}),
            ):
                with pytest.raises(BadData):
                    await store.writing(lambda connection, statement=statement: connection.execute(statement))  # type: ignore[misc]

    told(url, work)


def test_an_admin_governs_their_own_tenant(url: str) -> None:
    """They change and end roles there; people who are only elsewhere do not exist for them, and come by invite."""

    async def work(store: Store) -> None:
        await store.grant_role("usr_member", "billing_viewer", "acme", NOW + 5, ADMIN)
        found = {one.user_id: one for one in await store.memberships(tenant="acme")}
        assert (found["usr_member"].role, found["usr_member"].granted_by) == ("billing_viewer", "user usr_admin")
        await refused(store.grant_role("usr_member", "billing_viewer", "acme", NOW, ADMIN), "there already", NotDone)
        await store.revoke_role("usr_member", "acme", NOW, ADMIN)
        await refused(store.revoke_role("usr_member", "acme", NOW, ADMIN), "no role there", NotDone)
        await refused(store.revoke_role("usr_stranger", "globex", NOW, ADMIN), "may not roles.revoke")
        for name in ("usr_stranger", "usr_nobody"):
            await refused(
                store.grant_role(name, "tenant_member", "acme", NOW, ADMIN), f"there is no user '{name}'", NotDone
            )
        await store.grant_role("usr_both", "tenant_admin", "acme", NOW, ADMIN)
        assert [(one.tenant, one.role) for one in await store.memberships("usr_both")] == [
            ("acme", "tenant_admin"),
            ("globex", "billing_viewer"),
        ]

    told(url, work)


def test_a_provider_speaks_of_its_own_people_alone(url: str) -> None:
    """Users, roles and sessions of whom it introduced, in its tenant; the platform's provider may grant there."""

    async def work(store: Store) -> None:
        mine = user("usr_mine", issuer="https://idp.acme", subject="s1")
        await store.add_user(mine, IDP, "acme")
        assert await store.user_by_identity("https://idp.acme", "s1") == mine
        assert await store.user_by_identity("https://idp.acme", "s2") is None
        await store.grant_role("usr_mine", "tenant_admin", "acme", NOW, IDP)
        await store.open_session(session("usr_mine", "acme"), digest(), IDP)
        # Someone else's issuer, another's user, another tenant, the platform.
        forged = user("usr_x", issuer="https://idp.weir", subject="s1")
        await refused(store.add_user(forged, IDP, "acme"), "may not speak for the people of issuer")
        await refused(store.add_user(forged, ADMIN, "acme"), "may not speak for the people of issuer")
        await refused(store.add_user(user("usr_x", issuer="https://idp.acme"), IDP, "acme"), "together", NotDone)
        await refused(store.add_user(user("usr_x"), IDP, "globex"), "may not users.create")
        await refused(store.grant_role("usr_member", "tenant_admin", "acme", NOW, IDP), "did not introduce")
        await refused(store.revoke_role("usr_member", "acme", NOW, IDP), "did not introduce")
        await refused(store.open_session(session("usr_member", "acme"), digest(), IDP), "did not introduce")
        await refused(store.open_session(session("usr_mine", None), digest(), IDP), "may not sessions.create")
        await refused(store.open_session(session("usr_other", "globex"), digest(), IDP), "may not sessions.create")
        # The same person twice, by whatever id.
        again = user("usr_y", issuer="https://idp.acme", subject="s1")
        await refused(store.add_user(again, IDP, "acme"), "known already", NotDone)
        boss = user("usr_boss", issuer="https://idp.weir", subject="s1")
        await store.add_user(boss, PLATFORM_IDP, None)
        await store.grant_role("usr_boss", "platform_viewer", None, NOW, PLATFORM_IDP)
        assert [one.role for one in await store.memberships("usr_boss")] == ["platform_viewer"]

    told(url, work)


def test_a_session_is_of_one_place_and_the_role_of_now(url: str) -> None:
    """Its actor has the role that the person has there at this moment, until it ends in whichever way."""

    async def work(store: Store) -> None:
        here, there = digest(), digest()
        one, two = session("usr_both", "acme"), session("usr_both", "globex")
        await store.open_session(one, here, ROOT)
        await store.open_session(two, there, ROOT)

        async def acts(token: bytes, at_us: int = NOW) -> Actor | None:
            found = await store.session_actor(token, at_us)
            return None if found is None else found[1]

        assert await acts(here) == Actor("user", "usr_both", "tenant_member", "acme")
        assert await acts(there) == Actor("user", "usr_both", "billing_viewer", "globex")
        assert await acts(digest()) is None
        await store.grant_role("usr_both", "tenant_admin", "acme", NOW, ROOT)
        assert await acts(here) == Actor("user", "usr_both", "tenant_admin", "acme")
        assert await acts(here, NOW + HOUR - 1) is not None
        assert await acts(here, NOW + HOUR) is None
        # Who may end it: oneself, the tenant's admin, the platform; for others it is not there.
        member = as_("usr_member", "tenant_member", "acme")
        for by in (member, OTHER, as_("usr_both", "billing_viewer", "globex")):
            await refused(store.revoke_session(one.session_id, NOW, by), "there is no session", NotDone)
        await store.revoke_session(one.session_id, NOW, as_("usr_both", "tenant_member", "acme"))
        assert await acts(here) is None
        await refused(store.revoke_session(one.session_id, NOW, ADMIN), "revoked already", NotDone)
        assert await acts(there) is not None
        await store.revoke_role("usr_both", "globex", NOW, OTHER)
        assert await acts(there) is None
        # A role given back does not bring the session back.
        await store.grant_role("usr_both", "tenant_member", "globex", NOW, ROOT)
        assert await acts(there) is None

    told(url, work)


def test_sessions_that_cannot_be(url: str) -> None:
    """Of nobody, of somebody without a role there or disabled, too long, or over before it began."""

    async def work(store: Store) -> None:
        long = bounds.SESSION_SECONDS_MAX * 1_000_000 + 1
        for made, sentence in (
            (session("usr_nobody", "acme"), "there is no user"),
            (session("usr_member", "globex"), "no role there"),
            (session("usr_member", None), "no role there"),
            (session("usr_member", "acme", expires_us=NOW + long), "12 hours at most"),
            (session("usr_member", "acme", expires_us=NOW), "12 hours at most"),
        ):
            await refused(store.open_session(made, digest(), ROOT), sentence, NotDone)
        token = digest()
        await store.open_session(session("usr_member", "acme"), token, ROOT)
        await refused(store.disable_user("usr_member", NOW, ADMIN), "may not users.write")
        await store.disable_user("usr_member", NOW, ROOT)
        assert await store.session_actor(token, NOW) is None
        await refused(store.open_session(session("usr_member", "acme"), digest(), ROOT), "disabled", NotDone)
        await refused(store.disable_user("usr_member", NOW, ROOT), "disabled already", NotDone)
        disabled = await store.user("usr_member")
        assert disabled is not None
        assert disabled.disabled_us == NOW

    told(url, work)


def test_whose_tokens_are_over(url: str) -> None:
    """Of many identities those of disabled people are told, by issuer and subject together; and hosts learn of it."""

    async def work(store: Store) -> None:
        for number, issuer in enumerate(("https://idp.acme", "https://idp.globex")):
            await store.add_user(user(f"usr_token{number}", issuer=issuer, subject="same"), OPERATOR, None)
        before = await store.keys_mark()
        await store.disable_user("usr_token0", NOW, ROOT)
        after = await store.keys_mark()
        assert after.changed > before.changed
        assert after.made == before.made
        many = [("https://idp.acme", f"other-{number}") for number in range(bounds.KEYS_RENEWED_AT_ONCE - 2)]
        asked = [*many, ("https://idp.acme", "same"), ("https://idp.globex", "same")]
        assert await store.disabled_among(asked) == {("https://idp.acme", "same")}
        assert await store.disabled_among(asked[-1:]) == set()

    told(url, work)


def test_the_last_admin_stays(url: str) -> None:
    """Nobody takes it from the last one, in any way, but the operator of the host, who can make another."""

    async def work(store: Store) -> None:
        for attempt in (
            store.revoke_role("usr_root", None, NOW, ROOT),
            store.grant_role("usr_root", "platform_viewer", None, NOW, ROOT),
            store.disable_user("usr_root", NOW, ROOT),
        ):
            await refused(attempt, "last platform_admin", NotDone)
        await store.add_user(user("usr_two"), ROOT, None)
        await store.grant_role("usr_two", "platform_admin", None, NOW, ROOT)
        await store.disable_user("usr_two", NOW, ROOT)
        # One who is disabled is none.
        await refused(store.revoke_role("usr_root", None, NOW, ROOT), "last platform_admin", NotDone)
        await store.revoke_role("usr_root", None, NOW, OPERATOR)

    told(url, work)


def test_an_invite_is_taken_up_once(url: str) -> None:
    """Ten at one time with the same token: one gets in, with role and session of the invite's place."""

    async def work(store: Store) -> None:
        token = digest()
        await store.invite(invite("billing_viewer", "acme"), token, ADMIN)

        async def take(number: int) -> bool:
            name = f"usr_n{number}"
            bearer = By(Actor("invite", name, None, None), "192.0.2.3")
            try:
                # Wherever the newcomer would like to be: it is the invite that says where.
                await store.redeem(token, user(name), session(name, None), bytes([number]) * 32, bearer)
            except NotDone:
                return False
            return True

        done = await asyncio.gather(*(take(number) for number in range(10)))
        assert sum(done) == 1
        winner = done.index(True)
        found = await store.session_actor(bytes([winner]) * 32, NOW)
        assert found is not None
        assert found[1] == Actor("user", f"usr_n{winner}", "billing_viewer", "acme")
        assert [one.user_id for one in await store.memberships(tenant="acme") if one.user_id.startswith("usr_n")] == [
            f"usr_n{winner}"
        ]
        assert await store.user(f"usr_n{(winner + 1) % 10}") is None

    told(url, work)


def test_an_invite_gives_no_more_than_its_maker_may_now(url: str) -> None:
    """Expired, of a maker who lost the role or was disabled, or in another's name: refused, and not used up."""

    async def work(store: Store) -> None:
        tokens = [digest() for _ in range(3)]
        for token in tokens:
            await store.invite(invite("tenant_admin", "acme"), token, ADMIN)

        async def take(token: bytes, name: str = "usr_new", by: By | None = None, at_us: int = NOW) -> None:
            bearer = By(Actor("invite", name, None, None), "x")
            made = session(name, "acme", created_us=at_us, expires_us=at_us + HOUR)
            await store.redeem(token, user(name), made, digest(), by or bearer)

        await refused(take(tokens[0], at_us=NOW + HOUR), "not valid", NotDone)
        await refused(take(tokens[0], "usr_stranger"), "may not take up an invite as")
        await refused(take(tokens[0], "usr_stranger", OTHER), "may not take up an invite as")
        known = By(Actor("user", "usr_member", "tenant_member", "acme"), "x")
        await refused(take(tokens[0], "usr_member", known), "has a role there already", NotDone)
        forged = user("usr_new", issuer="https://idp.weir", subject="s")
        bearer = By(Actor("invite", "usr_new", None, None), "x")
        await refused(
            store.redeem(tokens[0], forged, session("usr_new", "acme"), digest(), bearer), "may not speak for"
        )
        await store.grant_role("usr_admin", "tenant_member", "acme", NOW, ROOT)
        await refused(take(tokens[0]), "may no longer grant")
        await store.grant_role("usr_admin", "tenant_admin", "acme", NOW, ROOT)
        await take(tokens[0], "usr_stranger", as_("usr_stranger", "tenant_member", "globex"))
        await store.disable_user("usr_admin", NOW, ROOT)
        await refused(take(tokens[1]), "may no longer grant")
        week = bounds.INVITE_SECONDS_MAX * 1_000_000
        late = invite("tenant_member", "acme", expires_us=NOW + week + 1)
        await refused(store.invite(late, digest(), OTHER), "may not invites.create")
        await refused(store.invite(late, digest(), ROOT), "at most", NotDone)

    told(url, work)


def test_the_first_admin_is_the_operators_to_make(url: str) -> None:
    """Nobody else bootstraps; a first-only invite is void once there is an admin, by whatever way."""

    async def work() -> None:
        store = Store.open(url)
        first = invite("platform_admin", None, first_only=True)
        for by in (ROOT, ADMIN, PLATFORM_IDP):
            await refused(store.bootstrap(first, digest(), by), "only the operator")
        token = digest()
        await store.bootstrap(first, token, OPERATOR)
        await store.add_user(user("usr_early"), PLATFORM_IDP, None)
        await store.add_user(user("usr_root", issuer="https://idp.weir", subject="1"), PLATFORM_IDP, None)
        await store.grant_role("usr_root", "platform_admin", None, NOW, PLATFORM_IDP)
        bearer = By(Actor("invite", "usr_new", None, None), "x")
        await refused(
            store.redeem(token, user("usr_new"), session("usr_new", None), digest(), bearer), "there is one", NotDone
        )
        await refused(
            store.bootstrap(invite("platform_admin", None, first_only=True), digest(), OPERATOR), "--another", NotDone
        )
        long = NOW + bounds.BOOTSTRAP_SECONDS_MAX * 1_000_000 + 1
        await refused(
            store.bootstrap(invite("platform_admin", None, expires_us=long), digest(), OPERATOR), "at most", NotDone
        )
        again = digest()
        await store.bootstrap(invite("platform_admin", None), again, OPERATOR)
        await store.redeem(again, user("usr_new"), session("usr_new", None), digest(), bearer)
        assert [one.role for one in await store.memberships("usr_new")] == ["platform_admin"]
        assert await verified(store) == []
        await store.close()

    run(work())


def test_keys_by_each_writer(url: str) -> None:
    """Own keys for members, the tenant's for its admin, none beyond; a service key makes none wider than itself."""

    def key(name: str, tenant: str = "acme", **fields: Any) -> KeyRow:
        row = KeyRow(f"key_{name}", digest(), tenant, name, None, (), None, None, "abcd", NOW)
        return msgspec.structs.replace(row, **fields)

    async def work(store: Store) -> None:
        member = as_("usr_member", "tenant_member", "acme")
        await store.insert_key(key("own", owner="usr_member"), member)
        await refused(store.insert_key(key("a"), member), "may not keys.create")
        await refused(store.insert_key(key("a", owner="usr_admin"), member), "may not keys.create")
        await refused(store.insert_key(key("a", "globex", owner="usr_member"), member), "may not keys.create")
        await refused(store.insert_key(key("a", owner="usr_member", rights=("keys.read",)), member), "does not hold")
        await refused(store.insert_key(key("a", rights=("roles.grant",)), ADMIN), "cannot be a key's right")
        narrow = {"models": ("small",), "expires_us": NOW + HOUR, "networks": ("10.0.0.0/8",)}
        made = await store.insert_key(
            key("svc", owner="usr_member", rights=("keys.read", "keys.create", "keys.rotate"), **narrow), ADMIN
        )
        service = By(actor_of(made), "10.1.2.3")
        assert service.actor.scope == Scope(None, ("small",), ("10.0.0.0/8",), NOW + HOUR)
        await store.insert_key(key("child", rights=("keys.read",), **narrow), service)
        await refused(store.insert_key(key("b", **{**narrow, "models": None}), service), "wider models")
        await refused(store.insert_key(key("b", **{**narrow, "expires_us": None}), service), "wider lifetime")
        await refused(store.insert_key(key("b", rights=("usage.read",), **narrow), service), "does not hold")
        await refused(store.insert_key(key("b", "globex", **narrow), service), "may not keys.create")
        await refused(store.revoke_key("key_own", NOW, service), "may not keys.revoke")

        async def rotate(key_id: str, by: By) -> KeyRow:
            return await store.rotate_key(key_id, digest(), f"key_{next(_numbers)}", "wxyz", NOW + 1, HOUR, by)

        # The member owns the service key by name; to rotate it would hand them rights that they do not have.
        await refused(rotate("key_svc", member), "does not hold")
        await rotate("key_own", member)
        # Rotating itself, a service key stays as narrow and does not live longer than it would have.
        await refused(rotate("key_svc", service), "wider lifetime")
        await refused(rotate("key_svc", OTHER), "there is no key", NotDone)
        await refused(store.revoke_keys(NOW, ADMIN, owner="usr_member"), "may not keys.revoke")
        await refused(store.revoke_keys(NOW, ADMIN, tenant="globex"), "may not keys.revoke")
        with pytest.raises(ValueError, match="which keys"):
            await store.revoke_keys(NOW, ROOT)
        assert len(await store.revoke_keys(NOW, ADMIN, tenant="acme", owner="usr_member")) == 3

    told(url, work)
