"""The admin API in this process, on a free port, over a database of the test's; people of every kind who call it."""

from __future__ import annotations

import json
import secrets
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
from yarl import URL

from proxy import settings
from proxy.clock import wall_us
from proxy.control.office import Office
from proxy.control.server import Port
from proxy.identity.actor import By, operator
from proxy.identity.credentials import digest_of, new_id, new_token
from proxy.identity.roles import SERVICE_RIGHTS, Action, Actor, Role
from proxy.places import bind
from proxy.settings import Settings
from proxy.store.store import Invite, KeyRow, Session, Store, User
from proxy.telemetry.log import Log
from proxy.verbs.control import office_of
from tests.world.gateway import Gateway

OPERATOR = operator()
PREFIX = "/admin/v1"
ROLES: tuple[tuple[Role, str | None], ...] = (
    ("platform_admin", None),
    ("platform_viewer", None),
    ("tenant_admin", "acme"),
    ("tenant_member", "acme"),
    ("billing_viewer", "acme"),
)


class Reply(NamedTuple):
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def said(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)

    @property
    def etag(self) -> str:
        """As the next request's If-Match takes it."""
        return self.headers["etag"]

    @property
    def code(self) -> str:
        """Of an error."""
        return str(self.said["error"]["code"])


class Admin:
    """One API and its world: the tenants acme and globex."""

    def __init__(
        self, process: Settings, store: Store, office: Office, base: str, client: aiohttp.ClientSession
    ) -> None:
        self.process = process
        self.store = store
        self.office = office
        self.base = base
        self.client = client
        self.port: Port
        self.root = ""  # the token of a platform_admin

    async def call(
        self,
        method: str,
        path: str,
        token: str | None = None,
        body: Any = None,
        *,
        headers: Mapping[str, str] | None = None,
        raw: bytes | None = None,
    ) -> Reply:
        """One request; `raw` is sent as JSON to the byte."""
        sent = dict(headers or {})
        if token is not None:
            sent["authorization"] = f"Bearer {token}"
        data = raw if raw is not None else None if body is None else json.dumps(body).encode()
        if data is not None:
            sent.setdefault("content-type", "application/json")
        address = URL(self.base + PREFIX + path, encoded=True)
        async with self.client.request(method, address, data=data, headers=sent, allow_redirects=False) as answer:
            return Reply(answer.status, answer.headers, await answer.read())

    async def person(self, role: Role | None, tenant: str | None) -> tuple[User, str]:
        """A person of this role, signed in there, and the session's token. None: nobody signed in, token ""."""
        now = wall_us()
        user = User(new_id("usr"), f"a {role}", now)
        await self.store.add_user(user, OPERATOR, tenant)
        if role is None:
            return user, ""
        await self.store.grant_role(user.user_id, role, tenant, now, OPERATOR)
        token = new_token("session")
        await self.open_session(user, tenant, token)
        return user, token

    async def open_session(self, user: User, tenant: str | None, token: str) -> Session:
        """One more session of a person's."""
        now = wall_us()
        session = Session(new_id("ses"), user.user_id, tenant, "test", now, now + 3_600_000_000)
        await self.store.open_session(session, digest_of(token), OPERATOR)
        return session

    async def key(
        self, tenant: str = "acme", *, rights: tuple[Action, ...] | None = None, **more: Any
    ) -> tuple[KeyRow, str]:
        """A key and its secret."""
        secret, row = self.office.desk.new_row(tenant, "made", rights=rights, **more)
        return await self.office.desk.create_key(row, OPERATOR), secret

    async def service(self, tenant: str = "acme") -> tuple[Actor, str]:
        """A service key with every right that a key may hold."""
        row, secret = await self.key(tenant, rights=tuple(sorted(SERVICE_RIGHTS)))
        return Actor("key", row.key_id, None, tenant, row.rights or ()), secret

    async def callers(self) -> dict[str, tuple[Actor, str]]:
        """One of each kind: name → (actor, token)."""
        found = {}
        for role, tenant in ROLES:
            user, token = await self.person(role, tenant)
            found[str(role)] = Actor("user", user.user_id, role, tenant), token
        found["service key"] = await self.service()
        return found

    async def invite(self, tenant: str | None, role: Role, by: By = OPERATOR) -> tuple[Invite, str]:
        """An invite and its token."""
        token, now = new_token("invite"), wall_us()
        made = Invite(new_id("inv"), tenant, role, now, now + 3_600_000_000)
        await self.store.invite(made, digest_of(token), by)
        return made, token


def configured(directory: Path, database: str, **more: Any) -> Gateway:
    """A configuration with two tenants and two plans. Nothing of it is started."""
    weir = Gateway(directory, "http://127.0.0.1:9/v1", database=database, settings=more)
    weir.write("tenants/globex.yaml", {"name": "globex", "plan": "all"})
    weir.write("plans.yaml", {"plans": {"all": {}, "small": {"limits": {"requests_per_minute": 5}}}})
    weir.data.mkdir(exist_ok=True)
    return weir


@asynccontextmanager
async def admin(directory: Path, database: str, **more: Any) -> AsyncIterator[Admin]:
    """The API, serving."""
    weir = configured(directory, database, **more)
    process = settings.load(weir.config)
    store = Store.open(process.database)
    office = office_of(process, store)
    port = Port(office, Log("control", "off"))
    listener = bind("127.0.0.1", 0, 1)[0]
    await port.open(listener)
    try:
        base = f"http://127.0.0.1:{listener.getsockname()[1]}"
        async with aiohttp.ClientSession() as client:
            api = Admin(process, store, office, base, client)
            api.port = port
            _, api.root = await api.person("platform_admin", None)
            yield api
    finally:
        await port.close()
        await office.sign_ins.close()
        await store.close()


def unique() -> str:
    """A word that nobody else takes."""
    return secrets.token_hex(6)
