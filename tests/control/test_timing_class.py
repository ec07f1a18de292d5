"""How long an answer takes tells nothing either: for another's and for what never was, the database does the same.

No clock is read. What is compared is the work itself: the statements sent, in their order, and how each transaction
ended. The time of a statement is the database's own; how many there are, and which, is ours.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, event

from proxy import settings
from proxy.clock import wall_us
from proxy.control.table import OPERATIONS
from proxy.identity.actor import operator
from proxy.identity.credentials import new_token
from proxy.identity.keys import new_secret
from proxy.store.store import KeyRow, Store
from proxy.verbs.keys import new_row
from tests.control.admin import admin
from tests.control.neighbours import MISSING, move_in, pairs
from tests.journey.calling import Client, chat, once
from tests.journey.inside import inside

Work = list[str]


@contextmanager
def watched() -> Iterator[Work]:
    """What every engine of this process is told, without the parameters."""
    work: Work = []

    def sent(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        work.append(statement)

    def committed(_connection: Any) -> None:
        work.append("committed")

    def rolled_back(_connection: Any) -> None:
        work.append("rolled back")

    heard = (("before_cursor_execute", sent), ("commit", committed), ("rollback", rolled_back))
    for name, listener in heard:
        event.listen(Engine, name, listener)
    try:
        yield work
    finally:
        for name, listener in heard:
            event.remove(Engine, name, listener)


@pytest.mark.parametrize("kind", ["tenant_admin", "billing_viewer", "tenant_member", "service key"])
def test_the_database_does_the_same_for_anothers_as_for_nobodys(url: str, tmp_path: Path, kind: str) -> None:
    """Over every operation, in every place for an identifier: globex's costs the statements of one that never was."""

    async def work() -> None:
        async with admin(tmp_path, url) as api:
            token = (await api.callers())[kind][1]
            neighbour = await move_in(api)
            asked = set()
            different = []
            for operation, theirs, nobodys in pairs(neighbour.names):
                headers = {"if-match": '"abc"'} if operation.match else {}
                done = []
                for path, said in (theirs, nobodys):
                    with watched() as statements:
                        await api.call(operation.method, path, token, said, headers=headers)
                    assert statements, "who calls is looked up in any case"
                    done.append(statements)
                asked.add(operation.id)
                if done[0] != done[1]:
                    different.append((operation.id, theirs, done))
            assert not different
            assert asked >= {operation.id for operation in OPERATIONS if operation.names}
            # The same comparison tells one's own from nobody's: it is not blind.
            own, _ = await api.key()
            seen = []
            for key_id in (own.key_id, MISSING["key_id"]):
                with watched() as statements:
                    await api.call("POST", f"/keys/{key_id}/revoke", api.root, {})
                seen.append(statements)
            assert seen[0] != seen[1]

    asyncio.run(work())


def test_a_credential_that_opens_nothing_costs_the_same_whyever(url: str, tmp_path: Path) -> None:
    """To the admin API, a key or session that never was, that was ended, or that has no right takes one look-up."""

    async def work() -> None:
        async with admin(tmp_path, url) as api:
            ended, ended_secret = await api.service("globex")
            assert (await api.call("POST", f"/keys/{ended.id}/revoke", api.root, {})).status == 200
            _, powerless = await api.key("globex")
            user, closed = await api.person("tenant_member", "globex")
            assert (await api.call("POST", f"/users/{user.user_id}/disable", api.root)).status == 204
            for tokens in ((new_secret("live"), ended_secret, powerless), (new_token("session"), closed)):
                done = []
                for token in tokens:
                    with watched() as statements:
                        assert (await api.call("GET", "/me", token)).status == 401
                    done.append(statements)
                assert done[0], "it is looked up"
                assert all(one == done[0] for one in done), done

    asyncio.run(work())


def test_calls_cost_the_same_for_anothers_as_for_nobodys(url: str, tmp_path: Path) -> None:
    """A key that opens nothing takes one look-up whyever; another's model and tenant id take none, as nobody's do."""
    models = {name: {"upstream": "mock", "unpriced": True} for name in ("m1", "others-model")}
    there = tmp_path / "config" / "tenants"
    there.mkdir(parents=True)
    (there / "globex.yaml").write_text("name: globex\nplan: all\n")

    async def work(store: Store) -> None:
        async def table(digests: Any, _: KeyRow) -> list[KeyRow]:
            return await store.keys_by_digests(digests)

        async with inside(tmp_path, table=table, tenant={"models": ["m1"]}, written={"models": models}) as weir:
            await store.insert_key(weir.row, operator())
            process = settings.load(tmp_path / "config")
            secrets = [new_secret("live")]
            for tenant in ("acme", "globex", "gone"):
                secret, row = new_row(process, tenant, "ended")
                await store.insert_key(row, operator())
                await store.revoke_key(row.key_id, wall_us(), operator())
                secrets.append(secret)
            done = []
            for secret in secrets:
                with watched() as statements:
                    assert (await once(weir, None, secret, path="/v1/models")).code == "invalid_api_key"
                done.append(statements)
            assert done[0], "it is looked up"
            assert all(one == done[0] for one in done), done
            async with Client(weir) as client:
                assert (await client.call(None, "/v1/models/m1")).status == 200
                with watched() as statements:
                    for secret in secrets:  # by now each is known to open nothing
                        assert (await once(weir, None, secret, path="/v1/models")).code == "invalid_api_key"
                    for model in ("others-model", "absent-model"):
                        assert (await client.call(None, f"/v1/models/{model}")).status == 404
                        assert (await client.call(chat(model=model))).status == 404
                    for tenant in ("globex", "nowhere"):
                        assert (await client.call(None, "/v1/models", x_tenant_id=tenant)).status == 403
                assert not statements

    async def opened() -> None:
        store = Store.open(url)
        try:
            await work(store)
        finally:
            await store.close()

    asyncio.run(opened())
