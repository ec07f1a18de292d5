"""Two tenants: to each, the other's things are as absent as what never was; and nobody climbs."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from proxy import board
from proxy._fastpath import Arena
from proxy.clock import boot_id, wall_us
from proxy.identity.actor import By
from proxy.identity.roles import SERVICE_RIGHTS, Actor
from tests.control.admin import OPERATOR, Admin, Reply, admin
from tests.control.neighbours import move_in, pairs


def plain(reply: Reply) -> tuple[int, bytes, list[tuple[str, str]]]:
    """All of an answer that could tell anything."""
    headers = [(name, value) for name, value in reply.headers.items() if name not in ("Date", "date")]
    return reply.status, reply.body, headers


@pytest.mark.parametrize("kind", ["tenant_admin", "tenant_member", "billing_viewer", "service key"])
def test_the_others_are_as_absent_as_what_never_was(url: str, tmp_path: Path, kind: str) -> None:
    """Over every operation, in every place for an identifier: globex's gives the bytes of one that does not exist."""

    async def work() -> None:
        async with admin(tmp_path, url) as api:
            token = (await api.callers())[kind][1]
            neighbour = await move_in(api)
            compared = 0
            for operation, theirs, nobodys in pairs(neighbour.names):
                compared += 1
                headers = {"if-match": '"abc"'} if operation.match else {}
                answers = []
                for path, body in (theirs, nobodys):
                    answers.append(plain(await api.call(operation.method, path, token, body, headers=headers)))
                assert answers[0] == answers[1], (operation.id, theirs)
                assert answers[0][0] in (200, 403, 404), (operation.id, theirs, answers[0])
                if answers[0][0] == 200:
                    assert b"globex" not in answers[0][1]
                    assert neighbour.key_id.encode() not in answers[0][1]
            assert compared > 25
            # And none of it was changed.
            assert (await api.call("GET", "/me", neighbour.token)).status == 200
            found = await api.store.key_by_id(neighbour.key_id)
            assert found is not None
            assert found.revoked_us is None

    asyncio.run(work())


async def refused(api: Admin, method: str, path: str, token: str, body: Any, **headers: str) -> None:
    """403 or 404, and the attempt is in the log of the attacker's own tenant or of nobody's."""
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    reply = await api.call(method, path, token, body, headers=sent)
    assert reply.status in (403, 404), (method, path, body, reply)
    (last,) = await api.store.audit_rows(limit=1)
    assert last.outcome == "refused", (method, path)
    assert last.tenant != "globex"


def test_nobody_climbs(url: str, tmp_path: Path) -> None:
    """By each writer, who is below the platform cannot reach it, another tenant, or a right they do not hold."""

    async def work() -> None:
        async with admin(tmp_path, url) as api:
            callers = await api.callers()
            actor, tenant_admin = callers["tenant_admin"]
            _, member = callers["tenant_member"]
            stranger, _ = await api.person("tenant_member", "globex")
            newcomer, _ = await api.person(None, "acme")
            row, _ = await api.key("globex")
            for user in (actor.id, newcomer.user_id, stranger.user_id):
                place = f"/memberships/{user}/~platform"
                for role in ("platform_admin", "platform_viewer"):
                    await refused(api, "PUT", place, tenant_admin, {"role": role}, if_none_match="*")
                await refused(
                    api, "PUT", f"/memberships/{user}/globex", tenant_admin, {"role": "tenant_admin"}, if_none_match="*"
                )
            there = f"/memberships/{stranger.user_id}/acme"
            await refused(api, "PUT", there, tenant_admin, {"role": "tenant_admin"}, if_none_match="*")
            await refused(api, "POST", "/invites", tenant_admin, {"role": "tenant_admin", "tenant": "globex"})
            await refused(api, "POST", "/keys", tenant_admin, {"tenant": "globex"})
            await refused(api, "POST", "/keys/revoke", tenant_admin, {"tenant": "globex"})
            await refused(api, "POST", f"/keys/{row.key_id}/revoke", tenant_admin, {})
            await refused(api, "POST", f"/keys/{row.key_id}/rotate", tenant_admin, {})
            await refused(api, "PATCH", f"/keys/{row.key_id}", tenant_admin, {"name": "x"}, if_match='"x"')
            await refused(api, "POST", f"/users/{stranger.user_id}/disable", tenant_admin, None)
            await refused(api, "POST", "/users", tenant_admin, {"name": "n", "issuer": "https://i", "subject": "s"})
            await refused(api, "POST", "/keys", member, {"rights": ["keys.read"]})
            await refused(api, "POST", "/keys", member, {"owner": "somebody else"})
            await refused(api, "POST", "/invites", member, {"role": "tenant_member"})
            # A role of the platform in a tenant's invite cannot even be said.
            reply = await api.call("POST", "/invites", tenant_admin, {"role": "platform_admin"})
            assert reply.said["error"]["path"] == "$.role"
            # Of the platform's own only admins write.
            viewer = callers["platform_viewer"][1]
            await refused(api, "POST", "/keys", viewer, {"tenant": "acme"})
            await refused(api, "POST", "/invites", viewer, {"role": "platform_viewer"})

    asyncio.run(work())


def test_a_service_key_gives_no_more_than_it_has(sqlite_url: str, tmp_path: Path) -> None:
    """What it makes is within its own rights, plan, limits, models, networks and life, also by rotation and change."""

    async def work() -> None:
        async with admin(tmp_path, sqlite_url) as api:
            narrow = {"endpoints": ("embeddings",), "models": ("m",), "networks": ("127.0.0.0/8",), "seconds": 3600}
            narrow |= {"plan": "small", "requests_per_minute": 5, "budget_tokens": 9, "budget_period": "day"}
            rights = ("keys.create", "keys.read", "keys.rotate")
            _, service = await api.key(rights=rights, **narrow)
            good = {
                "endpoints": ["embeddings"],
                "models": ["m"],
                "networks": ["127.0.0.1/32"],
                "expires_in_seconds": 60,
                "plan": "small",
                "requests_per_minute": 5,
                "budget_tokens": 9,
                "budget_period": "day",
            }
            assert (await api.call("POST", "/keys", service, {**good, "rights": list(rights)})).status == 201
            wider: list[dict[str, Any]] = [
                {"endpoints": None},
                {"endpoints": ["embeddings", "completions"]},
                {"models": ["m", "n"]},
                {"models": ["*"]},
                {"networks": ["0.0.0.0/0"]},
                {"expires_in_seconds": 7200},
                {"expires_in_seconds": None},
                {"rights": ["keys.revoke"]},
                {"plan": None},
                {"plan": "all"},
                {"requests_per_minute": None},
                {"requests_per_minute": 6},
                {"budget_tokens": 10},
                {"budget_period": "month"},
            ]
            for one in wider:
                await refused(api, "POST", "/keys", service, {**good, **one})
            reply = await api.call("POST", "/keys", service, {**good, "models": None})
            assert "wider models than its own" in reply.said["error"]["message"]
            child = await api.call("POST", "/keys", service, good)
            tag = {"if-match": child.etag}
            path = f"/keys/{child.said['key_id']}"
            reply = await api.call("PATCH", path, service, {"requests_per_minute": None}, headers=tag)
            assert reply.status == 403
            assert (await api.call("PATCH", path, service, {"requests_per_minute": 4}, headers=tag)).status == 200
            wide, _ = await api.key()
            await refused(api, "POST", f"/keys/{wide.key_id}/rotate", service, {})
            tag = (await api.call("GET", f"/keys/{wide.key_id}", service)).etag
            await refused(api, "PATCH", f"/keys/{wide.key_id}", service, {"name": "x"}, if_match=tag)
            everything, _ = await api.key(rights=tuple(sorted(SERVICE_RIGHTS)))
            await refused(api, "POST", f"/keys/{everything.key_id}/rotate", service, {})

    asyncio.run(work())


def test_who_loses_a_role_loses_their_invites(sqlite_url: str, tmp_path: Path) -> None:
    """An invite is judged again when it is taken up, by what its maker may give then."""

    async def work() -> None:
        async with admin(tmp_path, sqlite_url) as api:
            user, _ = await api.person("tenant_admin", "acme")
            maker = By(Actor("user", user.user_id, "tenant_admin", "acme"), "test")
            _, token = await api.invite("acme", "tenant_admin", maker)
            path = f"/memberships/{user.user_id}/acme"
            etag = (await api.call("GET", path, api.root)).etag
            await api.call("DELETE", path, api.root, headers={"if-match": etag})
            assert (await api.call("POST", "/invites/redeem", None, {"token": token, "name": "n"})).status == 403

    asyncio.run(work())


def test_an_empty_name_is_nobodys(sqlite_url: str, tmp_path: Path) -> None:
    """To end the keys of "" is refused, and ends neither everybody's of a tenant nor everybody's everywhere."""

    async def work() -> None:
        async with admin(tmp_path, sqlite_url) as api:
            row, _ = await api.key()
            _, tenant_admin = await api.person("tenant_admin", "acme")
            for token in (api.root, tenant_admin):
                for body in ({"owner": ""}, {"tenant": "acme", "owner": ""}, {"tenant": "", "owner": "anna"}):
                    reply = await api.call("POST", "/keys/revoke", token, body)
                    assert (reply.status, reply.code) == (422, "invalid"), body
            assert [key.revoked_us for key in await api.store.list_keys() if key.key_id == row.key_id] == [None]

    asyncio.run(work())


def test_who_goes_takes_their_keys_along(url: str, tmp_path: Path) -> None:
    """A person who is disabled loses the keys they own everywhere; who loses a role, those there. Others' stay."""

    async def work() -> None:
        async with admin(tmp_path, url) as api:
            user, token = await api.person("tenant_member", "acme")
            await api.store.grant_role(user.user_id, "tenant_member", "globex", wall_us(), OPERATOR)
            own = (await api.call("POST", "/keys", token, {"name": "own"})).said["key_id"]
            there, _ = await api.key("globex", owner=user.user_id)
            teams, _ = await api.key("acme", owner="team-search")

            async def ended() -> dict[str, str | None]:
                rows = {row.key_id: row for row in await api.store.list_keys()}
                return {key_id: rows[key_id].revoked_reason for key_id in (own, there.key_id, teams.key_id)}

            generation = Arena(str(api.process.data_dir / "arena"), boot_id())
            before = generation.word(board.KEYS_GENERATION)
            tag = (await api.call("GET", f"/memberships/{user.user_id}/acme", api.root)).etag
            path = f"/memberships/{user.user_id}/acme"
            assert (await api.call("DELETE", path, api.root, headers={"if-match": tag})).status == 204
            assert await ended() == {
                own: "their owner has no role there any more",
                there.key_id: None,
                teams.key_id: None,
            }
            assert generation.word(board.KEYS_GENERATION) > before  # this host's workers are told at once
            generation.close()
            assert (await api.call("POST", f"/users/{user.user_id}/disable", api.root)).status == 204
            assert (await ended())[there.key_id] == "their owner was disabled"
            assert (await ended())[teams.key_id] is None
            targets = {entry.target for entry in await api.store.audit_rows(action="keys.revoke")}
            assert targets == {own, there.key_id}

    asyncio.run(work())


def test_whoever_comes_over_does_not_tell_from_where(url: str, tmp_path: Path) -> None:
    """Of a person of two tenants the one's admin sees what they did there, and neither the other's name nor role."""

    async def work() -> None:
        async with admin(tmp_path, url) as api:
            user, token = await api.person("tenant_admin", "globex")
            _, watcher = await api.person("tenant_admin", "acme")
            _, secret = await api.invite("acme", "tenant_member")
            body = {"token": secret, "name": "ignored"}
            assert (await api.call("POST", "/invites/redeem", token, body)).status == 201
            assert (await api.call("POST", "/sessions/switch", token, {"tenant": "acme"})).status == 201
            shown = await api.call("GET", "/audit?limit=200", watcher)
            rows = [row for row in shown.said["items"] if row["actor_id"] == user.user_id]
            assert {row["action"] for row in rows} == {"roles.grant", "invites.redeem", "sessions.create"}
            assert {(row["actor_tenant"], row["actor_role"]) for row in rows} == {("~elsewhere", "")}
            for path in ("/audit?limit=200", "/users", "/memberships", "/sessions", "/invites", "/keys", "/tenants"):
                reply = await api.call("GET", path, watcher)
                assert (reply.status, b"globex" in reply.body) == (200, False), path
            whole = await api.call("GET", "/audit?limit=200", api.root)
            assert "globex" in {row["actor_tenant"] for row in whole.said["items"]}

    asyncio.run(work())
