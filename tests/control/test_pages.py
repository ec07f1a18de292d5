"""Lists: whole whatever is added meanwhile, and cursors that are good for one list alone."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from proxy.store.store import Published
from tests.control.admin import Admin, admin
from tests.store.records import batches, event


async def all_of(api: Admin, path: str, token: str, meanwhile: Any = None) -> list[Any]:
    """Every item of a list, two at a time; `meanwhile` runs between two pages."""
    items: list[Any] = []
    cursor = ""
    while True:
        page = (await api.call("GET", f"{path}limit=2{cursor}", token)).said
        items += page["items"]
        if page["next"] is None:
            return items
        cursor = f"&cursor={page['next']}"
        if meanwhile is not None:
            await meanwhile()


def test_pages_are_whole_under_inserts(url: str, tmp_path: Path) -> None:
    """What was there at the start comes exactly once, in order, while the list grows between the pages."""

    async def work() -> None:
        async with admin(tmp_path, url) as api:
            made = [(await api.key())[0].key_id for _ in range(5)]
            added = 0

            async def more() -> None:
                nonlocal added
                added += 1
                if added < 4:
                    await api.key()

            listed = [key["key_id"] for key in await all_of(api, "/keys?tenant=acme&", api.root, more)]
            assert sorted(listed[:5]) == sorted(made)
            assert len(listed) == len(set(listed)) == 8
            whole = (await api.call("GET", "/keys?limit=200", api.root)).said["items"]
            assert listed == [key["key_id"] for key in whole]

            for _ in range(3):
                await api.person("tenant_member", "acme")
            for path in ("/users?", "/memberships?", "/sessions?", "/tenants?"):
                separate = await all_of(api, path, api.root)
                assert separate == (await api.call("GET", f"{path}limit=200", api.root)).said["items"], path
                assert len(separate) >= 2
            newest = (await api.call("GET", "/audit?limit=200", api.root)).said["items"]
            assert [row["seq"] for row in await all_of(api, "/audit?", api.root, more)] == [r["seq"] for r in newest]

    asyncio.run(work())


def test_usage_rows_by_pages(url: str, tmp_path: Path) -> None:
    """Single calls come newest first, each once."""

    async def work() -> None:
        async with admin(tmp_path, url) as api:
            await api.store.persist(batches(bytes(16), [event(number, tenant="acme") for number in range(1, 6)], 5))
            rows = await all_of(api, "/usage/rows?tenant=acme&", api.root)
            assert sorted(row["call"] for row in rows) == [1, 2, 3, 4, 5]
            assert [row["started_us"] for row in rows] == sorted((row["started_us"] for row in rows), reverse=True)

    asyncio.run(work())


def test_policy_revisions_by_pages(url: str, tmp_path: Path) -> None:
    """Every host's revisions, newest first, each once; a tenant's administrator sees none of them."""

    async def work() -> None:
        async with admin(tmp_path, url) as api:
            for at in range(5):
                one = Published(
                    version=f"v{at}", published_us=at, generation=at, tenants=1, plans=1, models=1, upstreams=1
                )
                await api.store.record_revision("ab"[at % 2], one)
            rows = await all_of(api, "/policy/revisions?", api.root)
            assert [(row["host"], row["number"], row["version"]) for row in rows] == [
                ("a", 3, "v4"),
                ("b", 2, "v3"),
                ("a", 2, "v2"),
                ("b", 1, "v1"),
                ("a", 1, "v0"),
            ]
            _, token = await api.person("tenant_admin", "acme")
            assert (await api.call("GET", "/policy/revisions", token)).status == 403

    asyncio.run(work())


def test_a_cursor_is_good_for_its_list_alone(sqlite_url: str, tmp_path: Path) -> None:
    """Another operation, another filter, another tenant's caller, a changed letter: 400, and nothing is told."""

    async def work() -> None:
        async with admin(tmp_path, sqlite_url) as api:
            for tenant in ("acme", "globex"):
                for _ in range(3):
                    await api.key(tenant)
            _, acme = await api.person("tenant_admin", "acme")
            _, globex = await api.person("tenant_admin", "globex")
            cursor = (await api.call("GET", "/keys?limit=1", acme)).said["next"]
            assert (await api.call("GET", f"/keys?limit=3&cursor={cursor}", acme)).status == 200
            changed = [
                cursor[:number] + ("A" if cursor[number] != "A" else "B") + cursor[number + 1 :]
                for number in range(len(cursor))
            ]
            tried = [(f"/keys?cursor={one}", acme) for one in (*changed, cursor[:-1], cursor + "A", "", "AAAA")]
            tried += [
                (f"/keys?cursor={cursor}", globex),
                (f"/keys?cursor={cursor}", api.root),
                (f"/keys?cursor={cursor}&owner=x", acme),
                (f"/users?cursor={cursor}", acme),
                (f"/audit?cursor={cursor}", acme),
            ]
            for path, token in tried:
                reply = await api.call("GET", path, token)
                assert (reply.status, reply.code) == (400, "bad_cursor"), path

    asyncio.run(work())
