"""What a client may say: exactly what the table asks for, in one spelling, within bounds."""

from __future__ import annotations

import asyncio
import json
import threading
from pathlib import Path

import pytest

from proxy import bounds
from proxy.audit import files
from proxy.control.table import OPERATIONS, Operation
from tests.control.admin import Admin, admin
from tests.control.test_operations import request_for

WITH_BODY = [one for one in OPERATIONS if one.body is not None]


def servers_own(operation: Operation) -> list[str]:
    """Names that stand in the answer and are not the client's to say, and one that nobody knows."""
    assert operation.body is not None
    answered = () if operation.answer is None else operation.answer.__struct_fields__
    return [*sorted(set(answered) - set(operation.body.__struct_fields__)), "zebra", "digest", "created_by"]


@pytest.mark.parametrize("operation", WITH_BODY, ids=lambda one: one.id)
def test_unknown_and_server_owned_fields(sqlite_url: str, tmp_path: Path, operation: Operation) -> None:
    """A field that is not asked for is 422 with its own path, whatever it is, and nothing is changed."""

    async def work() -> None:
        async with admin(tmp_path, sqlite_url) as api:
            path, body, headers = await request_for(api, operation)
            token = None if operation.open else api.root
            before = (await api.store.audit_head()).seq
            for name in servers_own(operation):
                reply = await api.call(operation.method, path, token, {**body, name: "x"}, headers=headers)
                assert (reply.status, reply.code, reply.said["error"]["path"]) == (422, "invalid", f"$.{name}")
            assert (await api.store.audit_head()).seq == before

    asyncio.run(work())


@pytest.mark.parametrize(
    ("raw", "status", "path"),
    [
        (b'{"name":"a","name":"b"}', 400, None),
        (b'{"tags":{"a":"1","a":"2"}}', 400, None),
        (b'{"tags":{"a":1}}', 422, "$.tags[...]"),
        (b"[]", 400, None),
        (b'"name"', 400, None),
        (b"{", 400, None),
        (b'{"name":NaN}', 400, None),
        (b'{"name":"\\ud800"}', 400, None),
        (b'{"name":"\\u0000"}', 422, "$.name"),
        # A line's end at the very end, before which Python's `$` stands too.
        (b'{"name":"a\\n"}', 422, "$.name"),
        (b'{"env":"live\\n"}', 422, "$.env"),
        (b'{"models":["m\\n"]}', 422, "$.models[0]"),
        (b'{"tags":{"a":"b\\n"}}', 422, "$.tags[...]"),
        (b'{"owner":""}', 422, "$.owner"),
        (b'{"owner":" anna"}', 422, "$.owner"),
        (b'{"owner":"anna\\u202e"}', 422, "$.owner"),
        (b'{"owner":"Ame\\u0301lie"}', 422, "$.owner"),
        (b'{"tags":{"a":"\\u2066b"}}', 422, "$"),
        (b'{"budget_tokens":9223372036854775808,"budget_period":"day"}', 422, "$.budget_tokens"),
        (b'{"expires_in_seconds":1000000000000000000000}', 422, "$.expires_in_seconds"),
        (b'\xef\xbb\xbf{"name":"a"}', 400, None),
        (b'{"name":"\xff"}', 400, None),
        (b'{"name":null}', 422, "$.name"),
        (b'{"requests_per_minute":0}', 422, "$.requests_per_minute"),
        (b'{"requests_per_minute":1.5}', 422, "$.requests_per_minute"),
        (b'{"requests_per_minute":true}', 422, "$.requests_per_minute"),
        (b'{"requests_per_minute":"5"}', 422, "$.requests_per_minute"),
        (b'{"requests_per_minute":1e999}', 422, "$.requests_per_minute"),
        (b'{"networks":["10.0.0.1/8"]}', 422, "$.networks"),
        (b'{"networks":["fe80::%x"]}', 422, "$.networks"),
        (b'{"rights":["users.write"]}', 422, "$.rights[0]"),
        (b'{"budget_nanos":5}', 422, "$"),
        (b'{"plan":"no such plan"}', 422, "$.plan"),
        (b'{"env":"LIVE"}', 422, "$.env"),
        (b'{"a":' * 2000 + b"1" + b"}" * 2000, 400, None),
        (b'{"name":"' + b"x" * bounds.CONTROL_BODY_BYTES_MAX + b'"}', 413, None),
    ],
)
def test_bodies_that_are_not_read(sqlite_url: str, tmp_path: Path, raw: bytes, status: int, path: str | None) -> None:
    """Each is refused with its status and, where a field is at fault, with its path; nothing is made."""

    async def work() -> None:
        async with admin(tmp_path, sqlite_url) as api:
            said = raw.replace(b"{", b'{"tenant":"acme",', 1) if status == 422 else raw
            reply = await api.call("POST", "/keys", api.root, raw=said)
            assert reply.status == status, reply
            assert reply.said["error"].get("path") == path, reply
            assert await api.store.list_keys() == []

    asyncio.run(work())


def test_headers_and_paths_that_are_odd(sqlite_url: str, tmp_path: Path) -> None:
    """Paths are matched as they are sent; hosts, encodings, media types and methods are what they must be."""

    async def work() -> None:
        async with admin(tmp_path, sqlite_url) as api:
            row, _ = await api.key()
            for path in (
                "/keys/",
                "//keys",
                "/keys/../keys",
                "/%6beys",
                "/keys;x",
                "/keys/a%2fb",
                "/keys/%00",
                "/KEYS",
            ):
                assert (await api.call("GET", path, api.root)).status == 404, path
            reply = await api.call("OPTIONS", "/keys", api.root, headers={"origin": "https://evil.example"})
            assert (reply.status, reply.headers["allow"]) == (405, "GET, POST")
            assert not [name for name in reply.headers if name.lower().startswith("access-control")]
            for host, status in (("evil.example", 421), ("localhost:1", 200), ("[::1]:5", 200), ("a/b", 421)):
                assert (await api.call("GET", "/me", api.root, headers={"host": host})).status == status, host
            for kind in ("text/plain", "application/jsonx", "application/json; charset=utf-16"):
                reply = await api.call("POST", "/keys", api.root, {}, headers={"content-type": kind})
                assert reply.status == 415, kind
            reply = await api.call("GET", "/keys", api.root, {})
            assert (reply.status, reply.code) == (400, "unexpected_body")
            for tag in ('W/"x"', "*", "x", '"a", "b"'):
                reply = await api.call("PATCH", f"/keys/{row.key_id}", api.root, {}, headers={"if-match": tag})
                assert (reply.status, reply.code) == (400, "bad_header"), tag
            for query in (
                "limit=0",
                "limit=201",
                "limit=x",
                "zebra=1",
                "limit=1&limit=1",
                "tenant=%ff",
                "tenant=acme%0a",
            ):
                assert (await api.call("GET", f"/keys?{query}", api.root)).status == 422, query
            assert (await api.call("GET", f"/keys?owner={'x' * 5000}", api.root)).status == 414
            assert (await api.call("GET", "/usage?by=tenant%0a", api.root)).status == 422
            assert (await api.call("GET", f"/keys?owner={'x' * 9000}", api.root)).code == "bad_request"

    asyncio.run(work())


@pytest.mark.parametrize(
    "head",
    ["GET /admin/v1/me HTTP/1.1\r\nhost: x\r\nbad line\r\n\r\n", "\x16\x03\x01\r\n\r\n", "GET  / HTTP/9.9\r\n\r\n"],
)
def test_a_head_that_is_none(sqlite_url: str, tmp_path: Path, head: str) -> None:
    """What the parser cannot read is answered as JSON like everything, repeats nothing, and ends the connection."""

    async def work() -> None:
        async with admin(tmp_path, sqlite_url) as api:
            host, port = api.base.removeprefix("http://").split(":")
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(head.encode())
            answer = await reader.read()
            first, _, body = answer.partition(b"\r\n\r\n")
            assert first.split()[1] == b"400"
            assert b"cache-control: no-store" in first.lower()
            assert json.loads(body) == {
                "error": {"code": "bad_request", "message": "The head of the request cannot be read."}
            }
            writer.close()
            await writer.wait_closed()

    asyncio.run(work())


def test_a_credential_stands_once(sqlite_url: str, tmp_path: Path) -> None:
    """Two Authorization headers are nobody's, whichever of them is good."""

    async def work() -> None:
        async with admin(tmp_path, sqlite_url) as api:
            host, port = api.base.removeprefix("http://").split(":")
            reader, writer = await asyncio.open_connection(host, int(port))
            line = f"authorization: Bearer {api.root}\r\n"
            writer.write(f"GET /admin/v1/me HTTP/1.1\r\nhost: localhost\r\n{line}{line}\r\n".encode())
            assert (await reader.readline()).split()[1] == b"400"
            writer.close()
            await writer.wait_closed()

    asyncio.run(work())


def test_bad_credentials_are_counted_and_good_ones_served(sqlite_url: str, tmp_path: Path) -> None:
    """Above the limit a bad credential is 429 with a time to wait, and a good one from there is served all the same."""

    async def work() -> None:
        async with admin(tmp_path, sqlite_url) as api:
            statuses = [
                (await api.call("GET", "/me", f"weir_session_{number:043d}")).status
                for number in range(bounds.CONTROL_FAILURES_PER_MINUTE + 3)
            ]
            assert statuses == [401] * bounds.CONTROL_FAILURES_PER_MINUTE + [429] * 3
            reply = await api.call("GET", "/me", "wk_no")
            assert 1 <= int(reply.headers["retry-after"]) <= 60
            assert (await api.call("GET", "/me", api.root)).status == 200
            assert (await api.call("GET", "/me")).status == 401  # who brings none has guessed nothing

    asyncio.run(work())


def test_whoever_guesses_invites_fills_no_log(sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each guess is on record up to the limit, and none above it; a good invite from there is taken up all the same."""
    monkeypatch.setattr(bounds, "CONTROL_FAILURES_PER_MINUTE", 5)

    async def work() -> None:
        async with admin(tmp_path, sqlite_url) as api:
            _, good = await api.invite("acme", "tenant_member")
            before = (await api.store.audit_head()).seq
            for number in range(bounds.CONTROL_FAILURES_PER_MINUTE):
                body = {"token": f"weir_invite_{number}", "name": "Mallory"}
                assert (await api.call("POST", "/invites/redeem", None, body)).status == 409
            recorded = (await api.store.audit_head()).seq
            assert recorded == before + bounds.CONTROL_FAILURES_PER_MINUTE
            for _ in range(3):
                reply = await api.call("POST", "/invites/redeem", None, {"token": "x", "name": "Mallory"})
                assert (reply.status, reply.code) == (429, "too_many_failures")
            assert (await api.store.audit_head()).seq == recorded
            body = {"token": good, "name": "Anna"}
            assert (await api.call("POST", "/invites/redeem", None, body)).status == 201
            reply = await api.call("POST", "/invites/redeem", None, body)  # it has been taken up, and is a guess now
            assert reply.status == 429

    asyncio.run(work())


def test_a_tenant_that_changes_without_end_waits(
    sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Above so many changes a minute a tenant is 429, all its people and keys together; reads and others go on."""
    monkeypatch.setattr(bounds, "CONTROL_CHANGES_PER_MINUTE", 5)

    async def work() -> None:
        async with admin(tmp_path, sqlite_url) as api:
            _, one = await api.person("tenant_member", "acme")
            _, service = await api.service("acme")
            _, other = await api.person("tenant_admin", "globex")
            for token in (one, one, service, service):
                assert (await api.call("POST", "/keys", token, {})).status in (201, 403)
            assert (await api.call("POST", "/keys", one, {"name": " no"})).status == 422  # it counts all the same
            before = (await api.store.audit_head()).seq
            for token in (one, service):
                reply = await api.call("POST", "/keys", token, {})
                assert (reply.status, reply.code) == (429, "too_many_changes")
                assert 1 <= int(reply.headers["retry-after"]) <= 60
                assert (await api.call("GET", "/keys", token)).status == 200
            assert (await api.store.audit_head()).seq == before
            assert (await api.call("POST", "/keys", other, {})).status == 201
            for _ in range(7):
                assert (await api.call("POST", "/keys", api.root, {"tenant": "acme"})).status == 201

    asyncio.run(work())


def test_anchors_are_read_beside_the_loop(sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Years of anchors take seconds to verify: in a thread, so that others are answered meanwhile."""
    threads = []

    def read_lines(_: Path) -> tuple[bytes, ...]:
        threads.append(threading.current_thread())
        return ()

    monkeypatch.setattr(files, "read_lines", read_lines)

    async def work() -> None:
        async with admin(tmp_path, sqlite_url) as api:
            assert (await api.call("GET", "/audit/verify", api.root)).said["whole"]

    asyncio.run(work())
    assert [thread is threading.main_thread() for thread in threads] == [False]


def test_who_says_nothing_is_left(sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection without a request, or with half a head, is closed at the bound; one that has spoken is not."""
    monkeypatch.setattr(bounds, "HEADERS_SECONDS_MAX", 0.3)

    async def work() -> None:
        async with admin(tmp_path, sqlite_url) as api:
            host, port = api.base.removeprefix("http://").split(":")
            for said in (b"", b"GET /admin/v1/me HTT"):
                reader, writer = await asyncio.open_connection(host, int(port))
                writer.write(said)
                assert await asyncio.wait_for(reader.read(), 120) == b""
                writer.close()
                await writer.wait_closed()
            monkeypatch.setattr(bounds, "HEADERS_SECONDS_MAX", 60)
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(b"GET /admin/v1/me HTTP/1.1\r\nhost: localhost\r\n\r\n")
            assert (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 120)).startswith(b"HTTP/1.1 401")
            (connection,) = api.port.connections()
            assert connection._timer is None
            writer.close()
            await writer.wait_closed()

    asyncio.run(work())


def test_connections_have_a_bound(sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One connection too many is closed, and the others go on."""
    monkeypatch.setattr(bounds, "CONTROL_CONNECTIONS_MAX", 3)

    async def work() -> None:
        async with admin(tmp_path, sqlite_url) as api:
            host, port = api.base.removeprefix("http://").split(":")
            opened = [await asyncio.open_connection(host, int(port)) for _ in range(3)]
            for reader, writer in opened:
                writer.write(b"GET /admin/v1/me HTTP/1.1\r\nhost: localhost\r\n\r\n")
                assert (await reader.readline()).split()[1] == b"401"
            reader, writer = await asyncio.open_connection(host, int(port))
            assert await asyncio.wait_for(reader.read(), 120) == b""
            for _, each in (*opened, (reader, writer)):
                each.close()
                await each.wait_closed()

    asyncio.run(work())


async def opens(api: Admin, token: str) -> bool:
    """Whether the credential opens anything."""
    return (await api.call("GET", "/me", token)).status == 200


def test_what_is_ended_opens_nothing(sqlite_url: str, tmp_path: Path) -> None:
    """A revoked key, an expired one, one from another network, an ended session, a role that was taken: at once."""

    async def work() -> None:
        async with admin(tmp_path, sqlite_url) as api:
            row, secret = await api.key(rights=("keys.read",))
            assert await opens(api, secret)
            await api.call("POST", f"/keys/{row.key_id}/revoke", api.root, {})
            assert not await opens(api, secret)
            assert not await opens(api, (await api.key(rights=("keys.read",), seconds=-1))[1])
            assert not await opens(api, (await api.key(rights=("keys.read",), networks=("10.0.0.0/8",)))[1])
            assert await opens(api, (await api.key(rights=("keys.read",), networks=("127.0.0.0/8",)))[1])
            assert not await opens(api, (await api.key(rights=()))[1])
            assert not await opens(api, (await api.key("gone", rights=("keys.read",)))[1])  # no such tenant
            user, token = await api.person("tenant_admin", "acme")
            (session,) = (await api.call("GET", f"/sessions?user_id={user.user_id}", api.root)).said["items"]
            assert (await api.call("DELETE", f"/sessions/{session['session_id']}", token)).status == 204
            assert not await opens(api, token)
            user, token = await api.person("tenant_admin", "acme")
            await api.call("POST", f"/users/{user.user_id}/disable", api.root)
            assert not await opens(api, token)
            user, token = await api.person("tenant_admin", "acme")
            place = f"/memberships/{user.user_id}/acme"
            etag = (await api.call("GET", place, api.root)).etag
            assert (await api.call("DELETE", place, api.root, headers={"if-match": etag})).status == 204
            assert not await opens(api, token)

    asyncio.run(work())


def test_no_answer_holds_a_digest_or_an_old_secret(sqlite_url: str, tmp_path: Path) -> None:
    """Of a key's secret and digest nothing stands in any list, nor in the audit log."""

    async def work() -> None:
        async with admin(tmp_path, sqlite_url) as api:
            made = await api.call("POST", "/keys", api.root, {"tenant": "acme"})
            secret = made.said["key"]
            row = await api.store.key_by_id(made.said["key_id"])
            assert row is not None
            for path in ("/keys", f"/keys/{row.key_id}", "/audit", "/audit/export"):
                body = (await api.call("GET", path, api.root)).body
                assert secret.encode() not in body
                assert row.digest.hex().encode() not in body
                assert b'"digest"' not in body
            assert json.loads(made.body)["last4"] == secret[-4:]

    asyncio.run(work())
