"""Every operation of the table, by every kind of caller: exactly who may, may."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from proxy.control.server import HANDLERS
from proxy.control.table import OPERATIONS, PREFIX, Operation, find
from proxy.identity.roles import Actor, allowed, reach
from tests.control.admin import Admin, admin

Request = tuple[str, Any, dict[str, str]]  # path, body, headers


async def request_for(api: Admin, operation: Operation) -> Request:
    """A request that is right in every way, aimed at something in acme that is nobody's own, made for this one."""
    path, body, headers = operation.path, None, {}
    match operation.id:
        case "create_key":
            body = {"name": "new", "tenant": "acme", "owner": "somebody"}
        case "change_key" | "get_key" | "rotate_key" | "revoke_key":
            row, _ = await api.key()
            path = path.replace("{key_id}", row.key_id)
            headers = {"if-match": (await api.call("GET", f"/keys/{row.key_id}", api.root)).etag}
            body = {"change_key": {"name": "other"}, "rotate_key": {}, "revoke_key": {}}.get(operation.id)
        case "revoke_keys":
            body = {"tenant": "acme", "owner": "nobody at all"}
        case "create_user":
            body = {"name": "new", "tenant": "acme"}
        case "get_user" | "disable_user":
            user, _ = await api.person("tenant_member", "acme")
            path = path.replace("{user_id}", user.user_id)
        case "get_membership" | "delete_membership":
            user, _ = await api.person("tenant_member", "acme")
            path = path.replace("{user_id}", user.user_id).replace("{place}", "acme")
            headers = {"if-match": (await api.call("GET", f"/memberships/{user.user_id}/acme", api.root)).etag}
        case "put_membership":
            user, _ = await api.person(None, "acme")
            path = path.replace("{user_id}", user.user_id).replace("{place}", "acme")
            body, headers = {"role": "tenant_member"}, {"if-none-match": "*"}
        case "switch_session":
            body = {"tenant": "acme"}
        case "create_session":
            body = {"id_token": "a.b.c"}
        case "delete_session":
            user, token = await api.person("tenant_member", "acme")
            session = await api.open_session(user, "acme", token + "x")
            path = path.replace("{session_id}", session.session_id)
        case "create_invite":
            body = {"role": "tenant_member", "tenant": "acme"}
        case "delete_invite":
            invite, _ = await api.invite("acme", "tenant_member")
            path = path.replace("{invite_id}", invite.invite_id)
        case "redeem_invite":
            _, token = await api.invite("globex", "tenant_member")
            body = {"token": token, "name": "new"}
        case "get_tenant":
            path = path.replace("{tenant}", "acme")
        case "get_effective":
            path += "?model=gpt-4o&tenant=acme"
    return path, body, headers


# What must be seen before it can be touched: who may not even see it is told that it is not there.
SEEN_BY = {
    "get_key": "keys.read",
    "change_key": "keys.read",
    "rotate_key": "keys.read",
    "revoke_key": "keys.read",
    "delete_session": "sessions.revoke",
    "delete_invite": "users.read",
    "get_tenant": "tenants.read",
    "get_effective": "policy.read",
}
WHOLE = {"export_audit", "verify_audit", "disable_user", "list_revisions"}  # the platform's alone


def expected(operation: Operation, actor: Actor) -> int:
    """The status, by the table of roles and nothing else."""
    action = operation.action
    if operation.id == "redeem_invite":
        return operation.status if actor.kind == "user" else 401  # a key has no face
    if operation.id == "create_session":
        return 403  # sign-in is off here
    if operation.id == "switch_session":  # to where one is already: then one may be there
        return 403 if actor.kind == "key" else operation.status if actor.tenant == "acme" else 404
    if action is None:
        return operation.status
    seen = SEEN_BY.get(operation.id)
    if seen is not None and operation.method != "GET" and not allowed(actor, seen, "acme"):
        return 404
    if seen is not None and operation.method == "GET":
        return 403 if reach(actor, action) is None else operation.status if allowed(actor, action, "acme") else 404
    if operation.id in WHOLE:
        return operation.status if allowed(actor, action, None) else 403
    if operation.method == "GET":
        return 403 if reach(actor, action) is None else operation.status
    return operation.status if allowed(actor, action, "acme") else 403


def test_every_operation_has_its_handler() -> None:
    """Table and handlers name the same operations, each path is found, and ids are unique."""
    assert {one.id for one in OPERATIONS} == set(HANDLERS) | {"get_document"}
    assert len({one.id for one in OPERATIONS}) == len({(one.method, one.path) for one in OPERATIONS}) == len(OPERATIONS)
    for one in OPERATIONS:
        path = PREFIX + "/" + "/".join("x1" if part.startswith("{") else part for part in one.segments)
        assert find(one.method, path) == (one, dict.fromkeys(one.names, "x1"))


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda one: one.id)
def test_who_may_what(sqlite_url: str, tmp_path: Path, operation: Operation) -> None:
    """Each kind of caller gets the status that the table of roles gives; without a credential nobody gets anything."""

    async def work() -> None:
        async with admin(tmp_path, sqlite_url) as api:
            for name, (actor, token) in (await api.callers()).items():
                path, body, headers = await request_for(api, operation)
                reply = await api.call(operation.method, path, token, body, headers=headers)
                assert reply.status == expected(operation, actor), (name, reply)
                assert reply.headers["cache-control"] == "no-store"
                assert "access-control-allow-origin" not in reply.headers
            path, body, headers = await request_for(api, operation)
            _, ordinary = await api.key()
            for token in ("" if operation.open else None, ordinary, "weir_session_" + "A" * 43, "x.y.z"):
                reply = await api.call(operation.method, path, token, body, headers=headers)
                wanted = 200 if operation.id == "get_document" else 401
                if token == "" and operation.open:
                    continue
                assert (reply.status, reply.body[:30]) == (wanted, reply.body[:30]), (token, reply)

    asyncio.run(work())


def test_every_operation_on_postgresql(postgres_url: str, tmp_path: Path) -> None:
    """The same statements on the other database: the platform's admin carries out each operation once."""

    async def work() -> None:
        async with admin(tmp_path, postgres_url) as api:
            callers = await api.callers()
            for operation in OPERATIONS:
                for name in ("platform_admin", "tenant_admin"):
                    actor, token = callers[name]
                    path, body, headers = await request_for(api, operation)
                    reply = await api.call(operation.method, path, token, body, headers=headers)
                    assert reply.status == expected(operation, actor), (operation.id, name, reply)

    asyncio.run(work())
