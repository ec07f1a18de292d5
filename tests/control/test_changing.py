"""Changes that were overtaken, and changes that are asked for again."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from proxy import bounds
from proxy.control import on_keys, server
from proxy.identity.roles import Role
from proxy.store.once import Once
from proxy.store.store import Store
from tests.control.admin import OPERATOR, Admin, Reply, admin, configured
from tests.world.gateway import ROOT, free_port, wait_for


def test_a_change_names_what_it_changes(sqlite_url: str, tmp_path: Path) -> None:
    """Without If-Match 428, with an old one 412 and nothing changed, with the newest done; null lifts a limit."""

    async def work() -> None:
        async with admin(tmp_path, sqlite_url) as api:
            row, _ = await api.key(requests_per_minute=7)
            path = f"/keys/{row.key_id}"
            assert (await api.call("PATCH", path, api.root, {"name": "x"})).status == 428
            first = (await api.call("GET", path, api.root)).etag
            body: Any = {"name": "other", "tags": {"team": "a"}, "requests_per_minute": None, "tokens_per_minute": 9}
            done = await api.call("PATCH", path, api.root, body, headers={"if-match": first})
            assert (done.status, {name: done.said[name] for name in body}) == (200, body)
            late = await api.call("PATCH", path, api.root, {"name": "late"}, headers={"if-match": first})
            assert (late.status, late.code) == (412, "changed_meanwhile")
            now = await api.call("GET", path, api.root)
            assert (now.said["name"], now.etag) == ("other", done.etag)
            half = await api.call("PATCH", path, api.root, {"budget_nanos": 5}, headers={"if-match": done.etag})
            assert (half.status, half.code) == (409, "conflict")
            entries = (await api.call("GET", "/audit?action=keys.change", api.root)).said["items"]
            assert [(one["outcome"], one["target"]) for one in entries] == [
                ("refused", row.key_id),
                ("refused", row.key_id),
                ("ok", row.key_id),
            ]
            assert json.loads(entries[-1]["before"])["requests_per_minute"] == 7

    asyncio.run(work())


def test_a_role_is_given_to_what_was_seen(url: str, tmp_path: Path) -> None:
    """If-None-Match for a first role, If-Match for another one; whoever saw something else gets 412."""

    async def work() -> None:
        async with admin(tmp_path, url) as api:
            user, _ = await api.person(None, "acme")
            path = f"/memberships/{user.user_id}/acme"

            async def put(role: Role, **headers: str) -> Reply:
                sent = {name.replace("_", "-"): value for name, value in headers.items()}
                return await api.call("PUT", path, api.root, {"role": role}, headers=sent)

            assert (await put("tenant_member")).status == 428
            assert (await put("tenant_member", if_match='"abc"')).status == 412
            first = await put("tenant_member", if_none_match="*")
            assert first.status == 200
            assert (await put("tenant_admin", if_none_match="*")).status == 412
            second = await put("tenant_admin", if_match=first.etag)
            assert (second.status, second.said["role"]) == (200, "tenant_admin")
            assert (await put("tenant_member", if_match=first.etag)).status == 412
            assert (await put("platform_admin", if_match=second.etag)).said["error"]["path"] == "$.role"
            assert (await api.call("DELETE", path, api.root, headers={"if-match": first.etag})).status == 412
            assert (await api.call("DELETE", path, api.root, headers={"if-match": second.etag})).status == 204
            assert (await api.call("GET", path, api.root)).status == 404

    asyncio.run(work())


def named(key: str) -> dict[str, str]:
    """The header of a request that may be sent again."""
    return {"idempotency-key": key}


def test_asked_again_it_is_not_done_again(url: str, tmp_path: Path) -> None:
    """The same request gives the first one's answer without its secret; another one under that key is 409."""

    async def work() -> None:
        async with admin(tmp_path, url) as api:
            _, other = await api.person("tenant_admin", "acme")
            body = {"tenant": "acme", "name": "once"}
            first = await api.call("POST", "/keys", api.root, body, headers=named("k"))
            again = await api.call("POST", "/keys", api.root, body, headers=named("k"))
            assert first.status == again.status == 201
            assert again.headers["idempotency-replayed"] == "true"
            assert "idempotency-replayed" not in first.headers
            assert (first.said["key"] is None, again.said["key"]) == (False, None)
            assert {**first.said, "key": None} == again.said
            mismatch = await api.call("POST", "/keys", api.root, {**body, "name": "x"}, headers=named("k"))
            assert (mismatch.status, mismatch.code) == (409, "idempotency_mismatch")
            assert len(await api.store.list_keys()) == 1
            # It is the caller's and the operation's own name.
            assert (await api.call("POST", "/keys", other, body, headers=named("k"))).said["key"] is not None
            key_id = first.said["key_id"]
            for _ in range(2):
                rotated = await api.call("POST", f"/keys/{key_id}/rotate", api.root, {}, headers=named("k"))
                assert rotated.said["predecessor"] == key_id
                revoked = await api.call("POST", f"/keys/{key_id}/revoke", api.root, {}, headers=named("k"))
                assert revoked.said == {"key_ids": [key_id], "revoked": 1}
                invited = await api.call("POST", "/invites", api.root, {"role": "platform_viewer"}, headers=named("k"))
                assert invited.status == 201
                user = await api.call("POST", "/users", api.root, {"name": "n"}, headers=named("k"))
                assert user.status == 201
                gone = f"/users/{user.said['user_id']}/disable"
                assert (await api.call("POST", gone, api.root, headers=named("k"))).status == 204
                ended = await api.call("POST", "/keys/revoke", api.root, {"tenant": "acme"}, headers=named("k"))
                assert ended.said["revoked"] == 2  # the successor, and the other admin's
            assert invited.said["token"] is None
            assert len(await api.store.list_keys()) == 3
            for bad in ("", "x" * 256, "ä"):
                assert (await api.call("POST", "/keys", api.root, body, headers=named(bad))).status == 400
            reply = await api.call("POST", "/sessions", api.root, {"id_token": "x"}, headers=named("k"))
            assert (reply.status, reply.code) == (400, "bad_header")

    asyncio.run(work())


def test_what_was_refused_may_be_asked_again(sqlite_url: str, tmp_path: Path) -> None:
    """Only what was done is kept: after a refusal the same key serves another request."""

    async def work() -> None:
        async with admin(tmp_path, sqlite_url) as api:
            for body, status in (({"tenant": "nowhere"}, 422), ({"tenant": "acme", "plan": "x"}, 422)):
                assert (await api.call("POST", "/keys", api.root, body, headers=named("k"))).status == status
            _, viewer = await api.person("platform_viewer", None)
            assert (await api.call("POST", "/keys", viewer, {"tenant": "acme"}, headers=named("k"))).status == 403
            assert (await api.call("POST", "/keys", api.root, {"tenant": "acme"}, headers=named("k"))).status == 201

    asyncio.run(work())


def test_many_at_once_are_one(url: str, tmp_path: Path) -> None:
    """Twelve of the same at one time: one key, one secret, twelve answers about it."""

    async def work() -> None:
        async with admin(tmp_path, url) as api:
            body = {"tenant": "acme"}
            asked = [api.call("POST", "/keys", api.root, body, headers=named("k")) for _ in range(12)]
            replies = await asyncio.gather(*asked)
            assert [reply.status for reply in replies] == [201] * 12
            assert len({reply.said["key_id"] for reply in replies}) == 1
            assert sum(reply.said["key"] is not None for reply in replies) == 1
            assert len(await api.store.list_keys()) == 1

    asyncio.run(work())


def test_a_day_later_it_is_another_request(sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After IDEMPOTENCY_SECONDS the key stands for nothing, and what was kept is gone."""

    async def work() -> None:
        async with admin(tmp_path, sqlite_url) as api:
            first = await api.call("POST", "/keys", api.root, {"tenant": "acme"}, headers=named("k"))
            late = server.wall_us() + bounds.IDEMPOTENCY_SECONDS * 1_000_000
            monkeypatch.setattr(server, "wall_us", lambda: late)
            second = await api.call("POST", "/keys", api.root, {"tenant": "acme", "name": "x"}, headers=named("k"))
            assert second.status == 201
            assert second.said["key_id"] != first.said["key_id"]

    asyncio.run(work())


def test_an_end_in_several_parts_is_kept_whole(
    sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More keys than one transaction ends: the answer that is kept speaks of all."""

    async def work() -> None:
        async with admin(tmp_path, sqlite_url) as api:
            made = {(await api.key())[0].key_id for _ in range(5)}
            monkeypatch.setattr(bounds, "KEYS_REVOKED_MAX", 2)
            for _ in range(2):
                reply = await api.call("POST", "/keys/revoke", api.root, {"tenant": "acme"}, headers=named("k"))
                assert (set(reply.said["key_ids"]), reply.said["revoked"]) == (made, 5)

    asyncio.run(work())


@pytest.mark.parametrize("point", ["audit.before_commit", "audit.after_commit"])
def test_a_killed_process_does_it_once(sqlite_url: str, tmp_path: Path, point: str) -> None:
    """`weir control` dies around the commit; asked again, another one ends with exactly one key, told truly."""
    weir = configured(tmp_path, sqlite_url, control={"port": free_port()})
    port = json.loads((weir.config / "weir.yaml").read_text())["control"]["port"]

    async def prepared() -> tuple[str, int]:
        async with admin(tmp_path, sqlite_url, control={"port": port}) as api:
            return api.root, len(await api.store.list_keys())

    root, _ = asyncio.run(prepared())

    def start(failpoints: str) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-m", "proxy", "control", "--config", str(weir.config)],
            cwd=ROOT,
            env={**os.environ, "WEIR_FAILPOINTS": failpoints},
            stderr=subprocess.DEVNULL,
        )
        wait_for("the admin API", lambda: process.poll() is not None or weir.get("/admin/v1/me", port)[0] == 401)
        return process

    async def ask() -> Reply | None:
        api = Admin(None, None, None, f"http://127.0.0.1:{port}", None)  # type: ignore[arg-type]
        import aiohttp

        async with aiohttp.ClientSession() as api.client:
            try:
                return await api.call("POST", "/keys", root, {"tenant": "acme"}, headers=named("k"))
            except aiohttp.ClientError:
                return None

    process = start(f"{point}=kill")
    try:
        assert asyncio.run(ask()) is None
        assert process.wait(120) == -9
        process = start("")
        replies = [asyncio.run(ask()) for _ in range(2)]
    finally:
        process.terminate()
        assert process.wait(120) in (0, -9)
    assert all(reply is not None and reply.status == 201 for reply in replies)

    async def keys() -> list[str]:
        store = Store.open(sqlite_url)
        try:
            return [row.key_id for row in await store.list_keys()]
        finally:
            await store.close()

    assert asyncio.run(keys()) == [replies[0].said["key_id"]] == [replies[1].said["key_id"]]  # type: ignore[union-attr]
    assert (replies[0].said["key"] is None) == (point == "audit.after_commit")  # type: ignore[union-attr]


def test_what_is_kept_holds_no_secret(sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every answer that is kept, none has the secret that its request was answered with."""
    kept: list[bytes] = []
    keep = Once.keep

    async def seen(self: Once, connection: Any, result: Any) -> None:
        assert self.answer is not None
        kept.append(self.answer(result))
        await keep(self, connection, result)

    monkeypatch.setattr(Once, "keep", seen)

    async def work() -> None:
        async with admin(tmp_path, sqlite_url) as api:
            key = await api.call("POST", "/keys", api.root, {"tenant": "acme"}, headers=named("a"))
            path = f"/keys/{key.said['key_id']}/rotate"
            rotated = await api.call("POST", path, api.root, {}, headers=named("b"))
            invite = await api.call("POST", "/invites", api.root, {"role": "platform_viewer"}, headers=named("c"))
            secrets = [key.said["key"], rotated.said["key"], invite.said["token"]]
            assert len(kept) == 3
            assert not [text for text in kept for secret in secrets if secret.encode() in text]

    asyncio.run(work())


def test_the_command_line_and_the_api_make_the_same_rows(sqlite_url: str, tmp_path: Path) -> None:
    """One key by each, with everything that can be said of a key: they differ in what is each one's own, alone."""
    weir = configured(tmp_path, sqlite_url)
    words = ["--name", "n", "--owner", "o", "--tag", "a=b", "--endpoint", "embeddings", "--model", "m"]
    words += ["--plan", "small", "--network", "10.0.0.0/8", "--right", "keys.read", "--requests-per-minute", "3"]
    words += ["--tokens-per-minute", "4", "--concurrency", "5", "--budget-usd", "2", "--budget-tokens", "6"]
    words += ["--budget-period", "day", "--expires-in", "30d"]
    cli = json.loads(weir.weir("keys", "create", "--tenant", "acme", "--json", *words).stdout)
    body = {
        "tenant": "acme",
        "name": "n",
        "owner": "o",
        "tags": {"a": "b"},
        "endpoints": ["embeddings"],
        "models": ["m"],
        "plan": "small",
        "networks": ["10.0.0.0/8"],
        "rights": ["keys.read"],
        "requests_per_minute": 3,
        "tokens_per_minute": 4,
        "concurrency": 5,
        "budget_nanos": 2_000_000_000,
        "budget_tokens": 6,
        "budget_period": "day",
        "expires_in_seconds": 30 * 86_400,
    }

    async def work() -> None:
        async with admin(tmp_path, sqlite_url) as api:
            made = (await api.call("POST", "/keys", api.root, body)).said
            assert set(made) == set(cli)
            own = {"key_id", "key", "last4", "created_us", "created_by", "expires_us"}
            assert {name: made[name] for name in set(made) - own} == {name: cli[name] for name in set(cli) - own}
            listed = (await api.call("GET", "/keys", api.root)).said["items"]
            assert listed == [json.loads(json.dumps(on_keys.shown(row))) for row in await api.store.list_keys()]
            assert listed == json.loads(weir.weir("keys", "list", "--json").stdout)
            rows = [line for line in weir.weir("audit", "export").stdout.splitlines() if line]
            assert (await api.call("GET", "/audit/export", api.root)).body.decode().splitlines() == rows
            verified = (await api.call("GET", "/audit/verify", api.root)).said
            assert (verified["whole"], verified["rows"]) == (True, len(rows))
            assert OPERATOR.actor.kind == "operator"

    asyncio.run(work())
