"""Keys in the database: what goes in comes out, and a revocation is once and for all."""

from __future__ import annotations

import pytest

from proxy.identity.actor import operator
from proxy.identity.keys import principal_of
from proxy.store.keys import KeyRow
from proxy.store.store import BadData, NotDone, Store
from tests.store.records import run

OPERATOR = operator()


def key(number: int, **fields: object) -> KeyRow:
    """A key; `fields` replace the ordinary ones."""
    values: dict[str, object] = {
        "key_id": f"key_{number}",
        "digest": number.to_bytes(32, "big"),
        "tenant": "acme",
        "name": "ci",
        "owner": None,
        "tags": (),
        "endpoints": None,
        "models": None,
        "last4": "abcd",
        "created_us": number,
        "created_by": f"operator {OPERATOR.actor.id}",
    }
    return KeyRow(**values | fields)  # type: ignore[arg-type]


def test_a_key_comes_back_as_it_went_in(url: str) -> None:
    """Every field, None and empty told apart, order of tags kept."""
    rows = [
        key(1),
        key(2, owner="anna", tags=(("z", "1"), ("a", "2")), endpoints=(), models=("m", "n"), expires_us=2**50),
    ]

    async def work() -> None:
        store = Store.open(url)
        for row in rows:
            await store.insert_key(row, OPERATOR)
        for row in rows:
            assert await store.key_by_digest(row.digest) == row
        assert await store.key_by_digest(b"\0" * 32) is None
        await store.close()

    run(work())


def test_an_id_or_digest_is_taken_once(url: str) -> None:
    """A second key with the same id or digest is refused as bad data and changes nothing."""

    async def work() -> None:
        store = Store.open(url)
        await store.insert_key(key(1), OPERATOR)
        for twin in (key(1, digest=b"x" * 32), key(2, digest=key(1).digest)):
            with pytest.raises(BadData):
                await store.insert_key(twin, OPERATOR)
        assert await store.list_keys() == [key(1)]
        await store.close()

    run(work())


def test_keys_are_listed_by_tenant_and_age(url: str) -> None:
    """Oldest first; another tenant's keys do not show."""

    async def work() -> None:
        store = Store.open(url)
        for number, tenant in ((3, "acme"), (1, "globex"), (2, "acme")):
            await store.insert_key(key(number, tenant=tenant), OPERATOR)
        assert [row.key_id for row in await store.list_keys()] == ["key_1", "key_2", "key_3"]
        assert [row.key_id for row in await store.list_keys("acme")] == ["key_2", "key_3"]
        assert await store.list_keys("acme' OR '1'='1") == []
        await store.close()

    run(work())


def test_a_revocation_is_seen_by_other_connections_at_once(url: str) -> None:
    """It is committed when the call returns, its first time stands, and an unknown key says so."""

    async def work() -> None:
        store, worker = Store.open(url), Store.open(url, readonly=True)
        await store.insert_key(key(1), OPERATOR)
        seen = await worker.key_by_digest(key(1).digest)
        assert seen is not None
        assert seen.revoked_us is None
        await store.revoke_key("key_1", 77, OPERATOR, "leaked")
        seen = await worker.key_by_digest(key(1).digest)
        assert seen is not None
        assert seen.revoked_us == 77
        for word in ("key_1", "nobody"):
            with pytest.raises(NotDone, match=word):
                await store.revoke_key(word, 99, OPERATOR)
        seen = await worker.key_by_digest(key(1).digest)
        assert seen is not None
        assert seen.revoked_us == 77
        await store.close()
        await worker.close()

    run(work())


def test_many_keys_at_once(url: str) -> None:
    """A worker renews what it knows by one query: revoked keys come too, unknown digests do not."""

    async def work() -> None:
        store = Store.open(url)
        for number in range(1, 5):
            await store.insert_key(key(number), OPERATOR)
        await store.revoke_key("key_2", 7, OPERATOR)
        rows = await store.keys_by_digests([key(number).digest for number in (1, 2, 4, 9)])
        assert {row.key_id: row.revoked_us for row in rows} == {"key_1": None, "key_2": 7, "key_4": None}
        assert await store.keys_by_digests([]) == []
        await store.close()

    run(work())


def test_the_mark_tells_new_keys_from_ended_ones(url: str) -> None:
    """A host that watches the table learns what changed: only an end makes it distrust the keys it knows."""

    async def work() -> None:
        store = Store.open(url)
        empty = await store.keys_mark()
        await store.insert_key(key(1), OPERATOR)
        made = await store.keys_mark()
        assert made.made > empty.made
        assert made.changed == empty.changed
        await store.revoke_key("key_1", 7, OPERATOR)
        ended = await store.keys_mark()
        assert ended.made == made.made
        assert ended.changed > made.changed
        await store.close()

    run(work())


def test_keys_of_a_name_are_revoked_together(url: str) -> None:
    """`weir run` replaces its key: all valid ones of the tenant and name end, the others stay."""

    async def work() -> None:
        store = Store.open(url)
        for number, tenant, name in ((1, "acme", "run"), (2, "acme", "run"), (3, "acme", "ci"), (4, "globex", "run")):
            await store.insert_key(key(number, tenant=tenant, name=name), OPERATOR)
        await store.revoke_key("key_1", 5, OPERATOR)
        assert await store.revoke_keys(9, OPERATOR, tenant="acme", name="run") == ["key_2"]
        revoked = {row.key_id: row.revoked_us for row in await store.list_keys()}
        assert revoked == {"key_1": 5, "key_2": 9, "key_3": None, "key_4": None}
        await store.close()

    run(work())


def test_very_many_keys_are_revoked_in_parts(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """More than fit one transaction: all of them end, each once, and the other tenant's stay."""
    monkeypatch.setattr("proxy.bounds.KEYS_REVOKED_MAX", 2)

    async def work() -> None:
        store = Store.open(url)
        for number in range(5):
            await store.insert_key(key(number), OPERATOR)
        await store.insert_key(key(9, tenant="globex"), OPERATOR)
        assert await store.revoke_keys(7, OPERATOR, tenant="acme") == [f"key_{number}" for number in range(5)]
        assert [row.key_id for row in await store.list_keys() if row.revoked_us is None] == ["key_9"]
        records = await store.audit_rows(action="keys.revoke")
        assert sorted(one.target for one in records) == [
            *(f"key_{number}" for number in range(5)),
            *["tenant=acme"] * 3,
        ]
        await store.close()

    run(work())


@pytest.mark.parametrize(
    ("expires_us", "retires_us", "ends_us"), [(None, None, None), (5, None, 5), (None, 7, 7), (5, 7, 5), (7, 5, 5)]
)
def test_a_key_ends_by_what_comes_first(expires_us: int | None, retires_us: int | None, ends_us: int | None) -> None:
    """Its expiry or the end of its overlap with a successor: that is what a worker knows of it."""
    row = key(1, expires_us=expires_us, retires_us=retires_us)
    assert row.ends_us == ends_us
    assert principal_of(row).expires_us == ends_us
