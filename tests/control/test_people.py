"""How people come in: by an invite, by their identity provider; and what they are told of themselves."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import asdict

from proxy import bounds
from proxy.clock import wall_us
from proxy.store.store import User
from tests.control.admin import OPERATOR, Admin, admin
from tests.identity.forge import ISSUER, jwk, key_set, token


def with_issuer(directory: Path, **more: Any) -> dict[str, Any]:
    """Settings under which the issuer of the forge signs people in to acme."""
    keys = directory / "keys.json"
    keys.write_text(json.dumps(key_set(jwk("rsa"))))
    keys.chmod(0o600)
    corp = {"issuer": ISSUER, "tenants": ["acme"], "audiences": ["weir", "weir-admin"], "keys": f"file:{keys}", **more}
    return {"issuers": {"corp": corp}, "control": {"audience": "weir-admin"}}


async def known(api: Admin, subject: str, tenant: str | None = "acme") -> User:
    """A person whom the issuer knows, a tenant_admin there."""
    user = User(f"usr_{subject}", subject, wall_us(), issuer=ISSUER, subject=subject)
    await api.store.add_user(user, OPERATOR, None)
    if tenant is not None:
        await api.store.grant_role(user.user_id, "tenant_admin", tenant, wall_us(), OPERATOR)
    return user


def test_by_an_invite(sqlite_url: str, tmp_path: Path) -> None:
    """It works once; a new person gets its role and a session; a known one comes by their own session alone."""

    async def work() -> None:
        async with admin(tmp_path, sqlite_url) as api:
            invited = await api.call("POST", "/invites", api.root, {"role": "tenant_admin", "tenant": "acme"})
            body = {"token": invited.said["token"], "name": "Ada"}
            for wrong, path in (
                ({"name": ""}, "$.name"),
                ({"name": "Ada\u202e"}, "$.name"),
                ({"name": "Ada "}, "$.name"),
                ({"name": "Ame\u0301lie"}, "$.name"),
                ({"email": "ada"}, "$.email"),
                ({"email": "ADA@example.com "}, "$.email"),
                ({"email": "a@b@example.com"}, "$.email"),
                ({"email": "a b@example.com"}, "$.email"),
            ):
                reply = await api.call("POST", "/invites/redeem", None, {**body, **wrong})
                assert (reply.status, reply.said["error"].get("path")) == (422, path), wrong
            made = await api.call("POST", "/invites/redeem", None, body)
            assert (made.status, made.said["role"], made.said["tenant"]) == (201, "tenant_admin", "acme")
            me = (await api.call("GET", "/me", made.said["token"])).said
            assert (me["id"], me["kind"], me["role"]) == (made.said["user_id"], "user", "tenant_admin")
            assert (me["actions"]["keys.create"], me["session_id"]) == ("tenant", made.said["session_id"])
            assert (await api.call("POST", "/invites/redeem", None, body)).status == 409
            invite, secret = await api.invite("globex", "tenant_member")
            body = {"token": secret, "name": "ignored"}
            joined = await api.call("POST", "/invites/redeem", made.said["token"], body)
            assert (joined.said["user_id"], joined.said["tenant"]) == (made.said["user_id"], "globex")
            # Each session is of one tenant.
            here = (await api.call("GET", "/me", joined.said["token"])).said
            assert (here["tenant"], here["role"]) == ("globex", "tenant_member")
            assert (await api.call("GET", "/users", joined.said["token"])).status == 403
            # And from one a person comes to the other, never to where they are nobody, and never up.
            back = await api.call("POST", "/sessions/switch", joined.said["token"], {"tenant": "acme"})
            assert (back.status, back.said["role"]) == (201, "tenant_admin")
            assert back.said["expires_us"] == joined.said["expires_us"]
            assert (await api.call("GET", "/me", back.said["token"])).said["tenant"] == "acme"
            assert (await api.call("POST", "/sessions/switch", back.said["token"], {"tenant": "nowhere"})).status == 404
            assert (await api.call("POST", "/sessions/switch", back.said["token"], {"tenant": None})).status == 422
            _, alone = await api.person("tenant_admin", "acme")
            assert (await api.call("POST", "/sessions/switch", alone, {"tenant": "globex"})).status == 404
            withdrawn, secret = await api.invite("acme", "tenant_member")
            assert (await api.call("DELETE", f"/invites/{withdrawn.invite_id}", api.root)).status == 204
            assert (await api.call("POST", "/invites/redeem", None, {"token": secret, "name": "x"})).status == 409
            assert (await api.call("DELETE", f"/invites/{invite.invite_id}", api.root)).status == 409

    asyncio.run(work())


def test_by_an_identity_provider(sqlite_url: str, tmp_path: Path) -> None:
    """Who it is, is the token's to say; what they are, the memberships'; the session is no longer than the token."""

    async def work() -> None:
        async with admin(tmp_path, sqlite_url, **with_issuer(tmp_path)) as api:
            user = await known(api, "u-1")
            mine = {"name": "Mallory", "issuer": ISSUER, "subject": "u-1"}
            assert "is known already" in (await api.call("POST", "/users", api.root, mine)).said["error"]["message"]
            _, tenant_admin = await api.person("tenant_admin", "acme")
            reply = await api.call("POST", "/users", tenant_admin, mine)  # who somebody is, is not a tenant's to say
            assert (reply.status, "may not speak for" in reply.said["error"]["message"]) == (403, True)
            said = {"id_token": token(aud=["weir-admin"]).decode()}
            made = await api.call("POST", "/sessions", None, said)
            assert (made.status, made.said["user_id"], made.said["tenant"]) == (201, user.user_id, "acme")
            assert made.said["expires_us"] < wall_us() + 3_600_000_000
            assert (await api.call("GET", "/me", made.said["token"])).said["role"] == "tenant_admin"
            (entry, *_) = await api.store.audit_rows(limit=1)
            assert (entry.action, entry.actor_kind, entry.actor_id) == ("sessions.create", "provider", ISSUER)
            # The token itself is no credential here.
            assert (await api.call("GET", "/me", said["id_token"])).status == 401
            for tenant, status in (("acme", 201), ("globex", 403), ("nowhere", 403)):
                assert (await api.call("POST", "/sessions", None, {**said, "tenant": tenant})).status == status, tenant
            await api.call("POST", f"/users/{user.user_id}/disable", api.root)
            refused = await api.call("POST", "/sessions", None, said)
            assert (refused.status, refused.code) == (403, "no_role")
            (entry,) = await api.store.audit_rows(action="sessions.create", limit=1)
            assert (entry.outcome, entry.actor_kind, entry.target) == ("refused", "provider", user.user_id)
            assert (entry.tenant, entry.origin) == ("acme", "127.0.0.1")
            assert (await api.call("GET", "/me", made.said["token"])).status == 401

    asyncio.run(work())


def test_a_stranger_fills_no_log(sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whom a provider vouches for and nobody here knows is on record up to the limit, by an id that tells nothing."""
    monkeypatch.setattr(bounds, "CONTROL_FAILURES_PER_MINUTE", 5)

    async def work() -> None:
        async with admin(tmp_path, sqlite_url, **with_issuer(tmp_path)) as api:
            await known(api, "u-1")
            before = (await api.store.audit_head()).seq
            stranger = {"id_token": token(aud=["weir-admin"], sub="nobody").decode()}
            for _ in range(bounds.CONTROL_FAILURES_PER_MINUTE):
                assert (await api.call("POST", "/sessions", None, stranger)).code == "no_role"
            assert (await api.call("POST", "/sessions", None, stranger)).code == "too_many_failures"
            rows = await api.store.audit_rows(action="sessions.create", limit=100)
            fresh = [entry for entry in rows if entry.seq > before]
            assert len(fresh) == bounds.CONTROL_FAILURES_PER_MINUTE
            assert {(entry.outcome, entry.target[:4]) for entry in fresh} == {("refused", "jwt_")}
            assert not [entry for entry in fresh if "nobody" in json.dumps(asdict(entry), default=str)]
            said = {"id_token": token(aud=["weir-admin"]).decode()}
            assert (await api.call("POST", "/sessions", None, said)).status == 201

    asyncio.run(work())


@pytest.mark.parametrize(
    ("more", "status"),
    [
        ({"aud": ["weir"]}, 401),
        ({"aud": "weir-admin", "sub": "u-2"}, 403),
        ({"aud": "weir-admin", "sub": "elsewhere"}, 403),
        ({"aud": "weir-admin", "exp": 1}, 401),
        ({"aud": "weir-admin", "iss": "https://other.example"}, 401),
        ({"aud": "weir-admin", "key": "rsa-2"}, 401),
    ],
)
def test_tokens_that_open_nothing(sqlite_url: str, tmp_path: Path, more: dict[str, Any], status: int) -> None:
    """A token for the data plane, of a stranger, of one with a role elsewhere alone, old, another's, badly signed."""

    async def work() -> None:
        async with admin(tmp_path, sqlite_url, **with_issuer(tmp_path)) as api:
            await known(api, "u-1")
            await known(api, "u-2", None)
            await known(api, "elsewhere", "globex")
            reply = await api.call("POST", "/sessions", None, {"id_token": token(**more).decode()})
            assert reply.status == status, reply
            assert b"eyJ" not in reply.body

    asyncio.run(work())


def test_members_see_their_own(sqlite_url: str, tmp_path: Path) -> None:
    """A tenant_member makes, sees, rotates and ends keys of their own, and sees their own usage and sessions."""

    async def work() -> None:
        async with admin(tmp_path, sqlite_url) as api:
            user, member = await api.person("tenant_member", "acme")
            other, _ = await api.key(owner="somebody")
            made = await api.call("POST", "/keys", member, {"name": "mine"})
            assert (made.status, made.said["owner"], made.said["tenant"]) == (201, user.user_id, "acme")
            for path in ("/keys", f"/keys?owner={user.user_id}"):
                listed = (await api.call("GET", path, member)).said["items"]
                assert [key["key_id"] for key in listed] == [made.said["key_id"]]
            assert (await api.call("GET", "/keys?owner=somebody", member)).said["items"] == []
            assert (await api.call("GET", f"/keys/{other.key_id}", member)).status == 404
            assert (await api.call("GET", f"/policy/effective?model=m&key_id={other.key_id}", member)).status == 404
            own = await api.call("GET", f"/policy/effective?model=m&key_id={made.said['key_id']}", member)
            assert (own.status, own.said["allowed"]) == (200, True)
            assert [one["user_id"] for one in (await api.call("GET", "/sessions", member)).said["items"]] == [
                user.user_id
            ]
            rotated = await api.call("POST", f"/keys/{made.said['key_id']}/rotate", member, {"overlap_seconds": 0})
            assert rotated.status == 201
            ended = await api.call("POST", "/keys/revoke", member, {})
            assert set(ended.said["key_ids"]) == {made.said["key_id"], rotated.said["key_id"]}
            found = await api.store.key_by_id(other.key_id)
            assert found is not None
            assert found.revoked_us is None

    asyncio.run(work())


def test_usage_is_the_callers_own(sqlite_url: str, tmp_path: Path) -> None:
    """The platform sees all, a tenant its own, a member what went over their own keys; as rows and as sums."""
    from tests.store.records import batches, event

    async def work() -> None:
        async with admin(tmp_path, sqlite_url) as api:
            user, member = await api.person("tenant_member", "acme")
            _, boss = await api.person("tenant_admin", "acme")
            mine, _ = await api.key(owner=user.user_id)
            events = [
                event(1, tenant="acme", key_id=mine.key_id),
                event(2, tenant="acme", key_id="key_other"),
                event(3, tenant="globex", key_id="key_theirs"),
            ]
            await api.store.persist(batches(bytes(16), events, 3))
            for token_, calls in ((api.root, {1, 2, 3}), (boss, {1, 2}), (member, {1})):
                rows = (await api.call("GET", "/usage/rows", token_)).said["items"]
                assert {row["call"] for row in rows} == calls
                for by in ("tenant", "key,model", "user"):
                    report = (await api.call("GET", f"/usage?by={by}", token_)).said
                    assert report["total"]["requests"] == len(calls), by
                    assert sum(line["requests"] for line in report["lines"]) == len(calls)
            assert (await api.call("GET", "/usage?tenant=globex", boss)).status == 403
            assert (await api.call("GET", "/usage?key_id=key_theirs", boss)).said["total"]["requests"] == 0

    asyncio.run(work())
