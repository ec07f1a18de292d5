"""Whose call it is: the credential decides, header and subdomain agree or choose, and every answer says it."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import os
import uuid
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy._wire import Connection
from proxy.errors import Refusal
from proxy.identity.tenancy import NOBODY, TENANT, asked_for, line_of, resolve
from proxy.policy.compile import examine
from proxy.telemetry.log import Log
from proxy.upstreams.pool import Pool
from proxy.upstreams.target import Target
from tests.identity.conftest import DOMAIN
from tests.identity.forge import token
from tests.journey.calling import Answer, Client, chat, keys_verb, once
from tests.journey.conftest import House
from tests.journey.inside import inside
from tests.world.gateway import Gateway, wait_for

# === the one function ===

ASKED = [
    # header, host, domain, what is asked for
    (None, b"weir", b"weir.example.com", None),
    (None, b"weir.example.com", b"weir.example.com", None),
    (None, b"acme.weir.example.com", b"weir.example.com", b"acme"),
    (None, b"ACME.Weir.Example.COM:8443", b"weir.example.com", b"acme"),
    (None, b"acme.weir.example.com.", b"weir.example.com", b"acme"),
    (None, b"a.b.weir.example.com", b"weir.example.com", b"a.b"),
    (None, b".weir.example.com", b"weir.example.com", b""),
    (None, b"acme-weir.example.com", b"weir.example.com", None),
    (None, b"acmeweir.example.com", b"weir.example.com", None),
    (None, b"weir.example.com.evil.example", b"weir.example.com", None),
    (None, b"[::1]:8080", b"weir.example.com", None),
    (None, b"127.0.0.1:8080", b"weir.example.com", None),
    (None, None, b"weir.example.com", None),
    (None, b"acme.weir.example.com", None, None),
    (b"acme", b"acme.weir.example.com", b"weir.example.com", b"acme"),
    (b"acme", b"weir.example.com", b"weir.example.com", b"acme"),
    (b"acme", b"other.weir.example.com", b"weir.example.com", NOBODY),
    (b"acme", b"other.weir.example.com", None, b"acme"),
    (b"ACME", b"acme.weir.example.com", b"weir.example.com", NOBODY),
    (b"", b"weir.example.com", b"weir.example.com", b""),
]


@pytest.mark.parametrize(("header", "host", "domain", "asked"), ASKED)
def test_what_a_request_asks_for(
    header: bytes | None, host: bytes | None, domain: bytes | None, asked: bytes | None
) -> None:
    """Header and subdomain, each alone, together, and against each other."""
    assert asked_for(header, host, domain) == asked


def test_the_credential_decides() -> None:
    """Among the credential's own, and nowhere else; with several, somebody has to say which."""
    assert resolve(("acme",), None) == "acme"
    assert resolve(("acme", "other"), b"other") == "other"
    for own, asked, code in (
        (("acme", "other"), None, "tenant_required"),
        (("acme",), b"other", "tenant_mismatch"),
        (("acme", "other"), NOBODY, "tenant_mismatch"),
        (("acme",), b"acm\xe9", "tenant_mismatch"),
    ):
        with pytest.raises(Refusal, match=code):
            resolve(own, asked)


@given(
    own=st.lists(st.sampled_from(["acme", "other", "third"]), min_size=1, max_size=3, unique=True),
    header=st.none() | st.sampled_from([b"acme", b"other", b"absent", b"", b"ACME"]),
    below=st.none() | st.sampled_from([b"acme", b"other", b"absent", b"a.b", b""]),
)
def test_never_another_tenant(own: list[str], header: bytes | None, below: bytes | None) -> None:
    """Whatever is asked for, in whatever combination, the tenant is one of the credential's own or there is none."""
    host = b"weir.example.com" if below is None else below + b".weir.example.com"
    said = {each for each in (header, below) if each is not None}
    asked = asked_for(header, host, b"weir.example.com")
    fits = [tenant for tenant in own if said <= {tenant.encode()}]
    if len(fits) == 1:
        assert resolve(tuple(own), asked) == fits[0]
    else:
        with pytest.raises(Refusal, match="tenant_mismatch" if said else "tenant_required"):
            resolve(tuple(own), asked)


# === on the wire ===


def ask(world: House, key: str | None = None, body: bytes | None = None, **headers: str) -> Answer:
    """One short call."""
    return asyncio.run(once(world.weir, body or chat({"tokens": 1}), key, **headers))


def test_subdomains(world: House) -> None:
    """A subdomain may agree with the key; any other is 403, in the same bytes whether that tenant exists or not."""
    assert ask(world, host=f"acme.{DOMAIN}").status == 200
    assert ask(world, host=DOMAIN).status == 200
    same = {"x_request_id": "same"}
    theirs, nobodys, deep, both = (
        ask(world, **same, **headers)
        for headers in (
            {"host": f"other.{DOMAIN}"},
            {"host": f"absent.{DOMAIN}"},
            {"host": f"acme.acme.{DOMAIN}"},
            {"host": f"acme.{DOMAIN}", "x_tenant_id": "other"},
        )
    )
    assert theirs == nobodys == deep == both
    assert (theirs.status, theirs.code) == (403, "tenant_mismatch")
    assert "x-tenant-id" not in theirs.headers
    assert ask(world, host=f"other.{DOMAIN}:80", x_tenant_id="acme", **same) == theirs


def test_a_token_of_several_tenants_chooses(world: House) -> None:
    """By header or by subdomain, which must not contradict each other; without a choice it is told to make one."""
    several = token(sub="u-9").decode()
    for headers in ({"x_tenant_id": "other"}, {"host": f"other.{DOMAIN}"}):
        answer = ask(world, several, **headers)
        assert (answer.status, answer.headers["x-tenant-id"]) == (200, "other")
    assert ask(world, several).code == "tenant_required"
    assert ask(world, several, host=f"other.{DOMAIN}", x_tenant_id="acme").code == "tenant_mismatch"
    for elsewhere in ("narrow", "absent"):
        refused = ask(world, several, x_tenant_id=elsewhere, x_request_id="same")
        assert refused == ask(world, several, x_tenant_id="nobody", x_request_id="same")


def test_a_bad_key_is_told_nothing_of_tenants(world: House) -> None:
    """The credential is judged first: who has none learns no more by asking for a tenant."""
    one = ask(world, "nonsense", x_tenant_id="acme", x_request_id="same", x_forwarded_for="203.0.113.1")
    two = ask(world, "nonsense", host=f"absent.{DOMAIN}", x_request_id="same", x_forwarded_for="203.0.113.1")
    assert one == two
    assert one.status == 401


def test_every_answer_says_whose_it_is(world: House) -> None:
    """Answers, streams, lists, counts, refusals before and after admission, an upstream's error passed on."""
    cut = keys_verb(world.weir, "create", "--tenant", "acme", "--requests-per-minute", "1")["key"]

    async def story() -> dict[str, Answer]:
        said = {}
        async with Client(world.weir) as client:
            said["answer"] = await client.call(chat({"tokens": 1}))
            said["stream"] = await client.call(chat({"tokens": 1}, stream=True))
            said["models"] = await client.call(None, "/v1/models")
            said["model"] = await client.call(None, "/v1/models/priced")
            said["no model"] = await client.call(None, "/v1/models/absent!")
            said["tokens"] = await client.call(chat(), "/v1/tokenize")
            said["bad body"] = await client.call(b"{")
            said["not found"] = await client.call(chat(model="m" * 97))
            said["upstream's refusal"] = await client.call(chat({"status": 400}))
            said["upstream's failure"] = await client.call(chat({"status": 500}))
        async with Client(world.weir, cut) as client:
            await client.call(chat({"tokens": 1}))
            said["limit"] = await client.call(chat({"tokens": 1}))
        return said

    said = asyncio.run(story())
    statuses = {name: answer.status for name, answer in said.items()}
    assert statuses["limit"] == 429
    assert statuses["upstream's refusal"] == 400
    assert statuses["no model"] == 404
    assert {name: answer.headers.get("x-tenant-id") for name, answer in said.items()} == dict.fromkeys(said, "acme")
    health = asyncio.run(anonymous(world))
    assert "x-tenant-id" not in health.headers


async def anonymous(world: House) -> Answer:
    """An answer to nobody."""
    async with Client(world.weir, "") as client:
        return await client.call(None, "/healthz")


def test_a_failure_inside_weir_says_whose_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault after step 2 is a 500 with the tenant; its log line has the tenant, and the next request has none."""
    seen = []

    class Seen(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            seen.append((record.getMessage(), TENANT.get()))

    async def story() -> tuple[Answer, Answer]:
        async with inside(tmp_path) as weir:
            house = weir.front._house
            with monkeypatch.context() as patch:
                patch.setattr(house.epoch, "open", None)
                async with Client(weir) as client:  # type: ignore[arg-type]
                    failed = await client.call(chat({"tokens": 1}))
            async with Client(weir) as client:  # type: ignore[arg-type]
                await client.call(chat({"tokens": 1}))
                return failed, await client.call(chat(), "/v1/absent")

    handler = Seen()
    logging.getLogger("weir.front").addHandler(handler)
    try:
        failed, unknown = asyncio.run(story())
    finally:
        logging.getLogger("weir.front").removeHandler(handler)
    assert (failed.status, failed.code, failed.headers["x-tenant-id"]) == (500, "internal_error", "acme")
    assert seen == [("a request failed inside Weir", "acme")]
    assert (unknown.status, unknown.headers.get("x-tenant-id")) == (404, None)


def test_the_context_ends_with_the_request(tmp_path: Path) -> None:
    """On one connection: while a call runs, also in its threads, its tenant is there; between calls there is none."""
    seen: list[tuple[str, str]] = []

    async def story() -> None:
        async with inside(tmp_path) as weir:
            house = weir.front._house
            serve, passed_through = weir.front._serve, house.lines.request

            async def watched(exchange: Any, of: Any) -> None:
                seen.append(("before", TENANT.get()))
                await serve(exchange, of)
                seen.append(("after", await of.aside(TENANT.get)))

            weir.front._serve = watched
            house.lines.request = lambda event: (seen.append(("metered", TENANT.get())), passed_through(event))[1]  # type: ignore[method-assign]
            async with Client(weir) as client:  # type: ignore[arg-type]
                await client.call(chat({"tokens": 1}))
                await client.call(b"{}", "/v1/absent")

    asyncio.run(story())
    assert seen[:4] == [("before", ""), ("metered", "acme"), ("after", "acme"), ("before", "")]


def test_a_pooled_connection_belongs_to_nobody(tmp_path: Path) -> None:
    """What an upstream's connection logs later is not the tenant's whose call happened to open it."""

    async def story() -> list[str]:
        seen = []
        server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        pool = Pool(Target(f"http://127.0.0.1:{port}", None), max_connections=1, max_waiting=1, connect_ms=5000)
        loop = asyncio.get_running_loop()
        original = loop.create_connection

        async def create(*args: Any, **more: Any) -> Any:
            seen.append(TENANT.get())
            return await original(*args, **more)

        loop.create_connection = create  # type: ignore[method-assign]
        TENANT.set("acme")
        try:
            connection: Connection = await pool.connect()
            connection.abort()
        except Refusal:
            pass
        seen.append(TENANT.get())
        pool.close()
        server.close()
        await server.wait_closed()
        return seen

    assert asyncio.run(story()) == ["", "acme"]


def test_lines_of_libraries_carry_the_tenant(tmp_path: Path) -> None:
    """A line logged by code that knows nothing of tenants has the one of the call it is part of."""
    path = tmp_path / "log"
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    try:
        Log("worker", fd=fd).take_over()
        mark = TENANT.set("acme")
        logging.getLogger("some.library").warning("inside")
        TENANT.reset(mark)
        logging.getLogger("some.library").warning("outside")
    finally:
        root.handlers[:] = before
        root.setLevel(level)
        os.close(fd)
    lines = [json.loads(line) for line in io.StringIO(path.read_text())]
    assert [(line["message"], line.get("tenant")) for line in lines] == [("inside", "acme"), ("outside", None)]


# === upstream ===


def test_only_an_upstream_that_is_to_know_is_told(world: House) -> None:
    """The tenant goes upstream under the name that the upstream's policy gives, and nowhere else; nobody forges it."""
    forged = {"x_tenant": "other", "X_TENANT_ID": "acme", "tenant": "other"}
    for model, told in (("told-model", ["acme"]), ("m1", [])):
        request_id = uuid.uuid4().hex
        assert (
            ask(world, None, chat({"tokens": 1, "keep": True}, model), **forged, x_request_id=request_id).status == 200
        )
        (event,) = wait_for("the ledger", lambda request_id=request_id: world.asked(request_id))
        headers = [(name.lower(), value) for name, value in event["headers"]]
        assert [value for name, value in headers if "tenant" in name] == told, headers


@pytest.mark.parametrize("name", ["Authorization", "X-Request-ID", "Content-Length", "OpenAI-Beta", "Host"])
def test_a_header_with_a_meaning_of_its_own_is_refused(tmp_path: Path, name: str) -> None:
    """`weir check` names the line: an upstream would read something else from it than a tenant."""
    weir = Gateway(tmp_path, "http://127.0.0.1:9/v1", settings={"upstreams": {"mock": {"tenant_header": name}}})
    found = [str(problem) for problem in examine(weir.config).problems]
    assert len(found) == 1
    assert "tenant_header" in found[0]
    assert "name another header" in found[0]


@pytest.mark.parametrize("network", ["10.0.0.1/8", "proxy.internal", "10.0.0.0/33", "0.0.0.0/0", "::/0"])
def test_a_proxy_that_is_no_network_is_refused(tmp_path: Path, network: str) -> None:
    """`weir check` names the line of a trusted proxy that could be no address."""
    weir = Gateway(tmp_path, "http://127.0.0.1:9/v1", settings={"listen": {"trusted_proxies": [network]}})
    found = [str(problem) for problem in examine(weir.config).problems]
    assert len(found) == 1
    assert "trusted_proxies" in found[0]
    assert network in found[0]


def test_the_line_of_a_tenant() -> None:
    """One header line, ended as lines are."""
    assert line_of("acme") == b"x-tenant-id: acme\r\n"
