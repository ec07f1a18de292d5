"""PostgreSQL's row-level security: what is read for one tenant cannot show another's, whatever the query forgot."""

from __future__ import annotations

import pytest
from sqlalchemy import select, text

from proxy.identity.actor import operator
from proxy.store.people import Session, User
from proxy.store.schema import metadata
from proxy.store.store import Filters, Invite, Store, StoreUnavailable, migrate
from tests.servers import PostgresServer
from tests.store.records import batches, event, run
from tests.store.test_keys import key

TENANTS = ("acme", "globex")
WALLED = ("usage", "usage_rollup", "keys", "memberships", "sessions", "invites", "audit", "users")
BY = operator()


async def populated(url: str) -> Store:
    """Something of each tenant in every table that has tenants."""
    store = Store.open(url)
    for number, tenant in enumerate(TENANTS):
        await store.insert_key(key(number, tenant=tenant), BY)
        await store.add_user(User(f"usr_{tenant}", tenant, 1), BY, tenant)
        await store.grant_role(f"usr_{tenant}", "tenant_admin", tenant, 1, BY)
        await store.open_session(Session(f"ses_{tenant}", f"usr_{tenant}", tenant, "x", 1, 2), bytes([number]) * 32, BY)
        await store.invite(Invite(f"inv_{tenant}", tenant, "tenant_member", 1, 2), bytes([number]) * 32, BY)
        events = [event(1, tenant=tenant), event(2, tenant=tenant)]
        await store.persist(batches(bytes([number]) * 16, events, 2))
    return store


def test_every_table_with_tenants_is_walled(postgres_url: str) -> None:
    """A query without any condition, for one tenant: its own rows and no others, in each table."""

    async def work() -> None:
        store = await populated(postgres_url)
        for name in WALLED:
            table = metadata.tables[name]
            owned = table.c.tenant if "tenant" in table.c else table.c.name
            for tenant in TENANTS:
                async with store.reading(tenant) as connection:
                    assert {row[0] for row in await connection.execute(select(owned))} == {tenant}, name
            async with store.reading() as connection:
                assert {row[0] for row in await connection.execute(select(owned))} >= set(TENANTS), name
        assert store.walled is True
        with_tenants = {name for name, table in metadata.tables.items() if "tenant" in table.c}
        assert with_tenants | {"users"} == set(WALLED)
        await store.close()

    run(work())


async def attempt(store: Store, statement: str) -> None:
    """One statement behind the wall of acme."""
    async with store.reading("acme") as connection:
        await connection.execute(text(statement))


def test_what_is_read_for_one_tenant_changes_nothing(postgres_url: str) -> None:
    """No write, not even to one's own rows, and no look at what has no tenant; after it the connection is as before."""

    async def work() -> None:
        store = await populated(postgres_url)
        for statement in (
            "UPDATE keys SET name = 'x'",
            "DELETE FROM memberships",
            "INSERT INTO audit_head (one, seq, hash, keys_made_seq, keys_seq) VALUES (1, 1, '', 1, 1)",
            "SELECT * FROM audit_head",
            "SELECT * FROM epochs",
            "SELECT * FROM meta",
        ):
            with pytest.raises(StoreUnavailable, match="permission denied"):
                await attempt(store, statement)
        async with store.reading("acme") as connection:
            assert (await connection.execute(text("SELECT current_user"))).scalar() == "weir_tenant"
        for _ in range(8):
            async with store.reading() as connection:
                assert (await connection.execute(text("SELECT current_user"))).scalar() == "weir"
        await store.insert_key(key(9), BY)
        await store.close()

    run(work())


def test_the_reports_of_a_tenant_go_through_the_wall(postgres_url: str) -> None:
    """Keys, roles, audit and usage of one tenant: right, and read behind the wall."""

    async def work() -> None:
        store = await populated(postgres_url)

        async def look() -> list[set[str]]:
            report = await store.usage_by(["tenant"], Filters("acme"))
            rows, _ = await store.usage_rows(Filters("acme"))
            return [
                {row.tenant for row in await store.list_keys("acme")},
                {str(row.tenant) for row in await store.memberships(tenant="acme")},
                {str(row.tenant) for row in await store.audit_rows(tenant="acme")},
                {line.group[0] for line in report.lines},
                {row["tenant"] for row in rows},
            ]

        assert await look() == [{"acme"}] * 5
        assert store.walled
        await store.close()

    run(work())


def test_without_the_role_reading_goes_on_and_says_so(postgres: PostgresServer, postgres_database: str) -> None:
    """An ordinary owner of the database, with the role given and without it: the same answers, `walled` differs."""
    assert postgres_database, "its migration has made the cluster's role"
    name = postgres.create_database()
    postgres.sql(f"CREATE ROLE owner_{name} LOGIN")
    postgres.sql(f"ALTER DATABASE {name} OWNER TO owner_{name}")
    url = postgres.url(name).replace("//weir@", f"//owner_{name}@")

    async def look() -> tuple[list[str], bool | None]:
        store = Store.open(url)
        found = [row.tenant for row in await store.list_keys("acme")]
        walled = store.walled
        await store.close()
        return found, walled

    async def prepare() -> None:
        await migrate(url)
        await (await populated(url)).close()

    run(prepare())
    assert run(look()) == (["acme"], False)
    postgres.sql(f"GRANT weir_tenant TO owner_{name}")
    assert run(look()) == (["acme"], True)
    # Its own dump needs no right that it does not have: the owner of the tables is not held by the policies.
    everything = postgres.sql(f"SET ROLE owner_{name}; SET row_security = off; SELECT count(*) FROM keys", name)
    assert everything.strip() == "2"
    postgres.sql(f"ALTER DATABASE {name} OWNER TO weir; REVOKE weir_tenant FROM owner_{name}")


def test_sqlite_has_no_such_wall(sqlite_url: str) -> None:
    """The same call, the same rows by the query's own condition."""

    async def work() -> None:
        store = await populated(sqlite_url)
        assert {row.tenant for row in await store.list_keys("acme")} == {"acme"}
        assert store.walled is None
        await store.close()

    run(work())
