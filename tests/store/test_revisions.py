"""The history of policies: one row a change and host, bounded, in pages."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from proxy import bounds
from proxy.keeping.revisions import Recorder
from proxy.store.revisions import PolicyRevision, Published
from proxy.store.store import Store
from tests.store.records import run


def published(version: str, at_us: int) -> Published:
    """A small policy of that version."""
    return Published(version=version, published_us=at_us, generation=3, tenants=2, plans=1, models=4, upstreams=1)


async def versions(store: Store, host: str) -> list[tuple[int, str]]:
    """(number, version) of a host, newest first."""
    return [(one.number, one.version) for one in await store.revisions_page(None, 100) if one.host == host]


def test_only_another_version_is_a_row(url: str) -> None:
    """The same version again is none, also after a restart; an earlier one that comes back is; hosts are apart."""

    async def work() -> None:
        store = Store.open(url)
        made = [await store.record_revision("a", published(one, at)) for at, one in enumerate("xxyyx")]
        assert made == [True, False, True, False, True]
        await store.record_revision("b", published("x", 9))
        assert await versions(store, "a") == [(3, "x"), (2, "y"), (1, "x")]
        assert (await store.revisions_page(None, 1)) == [
            PolicyRevision(
                host="b", number=1, version="x", published_us=9, generation=3, tenants=2, plans=1, models=4, upstreams=1
            )
        ]
        await store.close()

    run(work())


def test_the_newest_of_each_host_are_kept(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Above the bound a host's oldest go; another host's stay, and numbers go on."""
    monkeypatch.setattr(bounds, "POLICY_REVISIONS_MAX", 3)

    async def work() -> None:
        store = Store.open(url)
        await store.record_revision("b", published("old", 0))
        for at in range(5):
            await store.record_revision("a", published(f"v{at}", at))
        assert await versions(store, "a") == [(5, "v4"), (4, "v3"), (3, "v2")]
        assert await versions(store, "b") == [(1, "old")]
        await store.close()

    run(work())


def test_pages_follow_each_other(url: str) -> None:
    """Rows of one instant on several hosts come once each, in one order."""

    async def work() -> None:
        store = Store.open(url)
        for host in "abc":
            for at in (1, 1, 2):
                await store.record_revision(host, published(f"{host}{len(await versions(store, host))}", at))
        found: list[PolicyRevision] = []
        after: tuple[Any, ...] | None = None
        while rows := await store.revisions_page(after, 2):
            found += rows
            after = (rows[-1].published_us, rows[-1].host, rows[-1].number)
        order = [(one.published_us, one.host, one.number) for one in found]
        assert order == sorted(order, reverse=True)
        assert len(set(order)) == 9
        await store.close()

    run(work())


def test_what_the_database_missed_is_recorded_later(sqlite_url: str, tmp_path: Path) -> None:
    """While the database is away nothing is lost and nothing fails; then all of it is there, in order and once."""
    away = tmp_path / "away.db"
    os.rename(tmp_path / "weir.db", away)

    async def work() -> None:
        store = Store.open(sqlite_url)
        recorder = Recorder("a", store)
        for at, version in enumerate("xy"):
            recorder.note(published(version, at))
            await recorder.look()
        assert repr(recorder) == "[Recorder: 2 waiting]"
        os.rename(away, tmp_path / "weir.db")
        await recorder.look()
        await recorder.look()
        assert repr(recorder) == "[Recorder: 0 waiting]"
        assert await versions(store, "a") == [(2, "y"), (1, "x")]
        await store.close()

    run(work())


def test_what_waits_is_bounded(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of more than the table would keep, the oldest are forgotten."""
    monkeypatch.setattr(bounds, "POLICY_REVISIONS_MAX", 2)

    async def work() -> None:
        store = Store.open(sqlite_url)
        recorder = Recorder("a", store)
        for at in range(5):
            recorder.note(published(f"v{at}", at))
        await recorder.look()
        assert await versions(store, "a") == [(2, "v4"), (1, "v3")]
        await store.close()

    run(work())
