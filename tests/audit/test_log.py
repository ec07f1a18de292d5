"""The log in the database: no change without its row and no row without its change, whoever writes, dies or meddles."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from proxy.audit.chain import FIELDS, Entry, NotRecordable
from proxy.audit.verify import Finding, Walk
from proxy.failpoint import VARIABLE
from proxy.identity.roles import Forbidden
from proxy.store.audit import Attempt, Head, Notes
from proxy.store.schema import audit
from proxy.store.store import BadData, NotDone, Store, StoreUnavailable
from tests.audit.writer import by, row
from tests.store.records import run

ROOT = Path(__file__).resolve().parents[2]


async def verified(store: Store) -> list[Finding]:
    """The findings of a walk along the database, head and all, without anchors."""
    walk = Walk()
    head = None
    async for one in store.audit_all():
        if isinstance(one, Head):
            head = (one.seq, one.hash)
        else:
            walk.step(one)
    return walk.end(head)


async def rows_of(store: Store) -> list[Entry]:
    """Every row, oldest first."""
    return [one async for one in store.audit_all() if isinstance(one, Entry)]


def test_a_change_and_its_record_are_one(url: str) -> None:
    """What was made, by whom, from where, before and after; secrets and digests are nowhere in it."""

    async def work() -> None:
        store = Store.open(url)
        made = row("anna", 1)
        await store.insert_key(made, by("anna"))
        await store.revoke_key(made.key_id, 77, by("anna"), "leaked")
        first, second = await rows_of(store)
        assert (first.seq, first.actor_kind, first.actor_id, first.actor_role) == (1, "user", "anna", "tenant_admin")
        assert (first.origin, first.action, first.tenant, first.target) == (
            "192.0.2.7",
            "keys.create",
            "acme",
            made.key_id,
        )
        assert (first.outcome, first.before) == ("ok", None)
        assert first.after is not None
        assert json.loads(first.after)["created_by"] == "user anna"
        assert (second.action, second.reason) == ("keys.revoke", "leaked")
        assert second.before == first.after
        assert second.after is not None
        assert json.loads(second.after) == {**json.loads(first.after), "revoked_us": 77, "revoked_reason": "leaked"}
        assert made.digest.decode() not in str([first, second])
        assert await verified(store) == []
        await store.close()

    run(work())


def test_a_refused_attempt_is_recorded_and_changes_nothing(url: str) -> None:
    """By the judgement, by what there is, by the database: in the log of the actor's own tenant, with the reason."""

    async def work() -> None:
        store = Store.open(url)
        await store.insert_key(row("anna", 1), by("anna"))
        with pytest.raises(Forbidden):
            await store.insert_key(row("anna", 2, "globex"), by("anna"))
        with pytest.raises(NotDone):
            await store.revoke_key("key_nobody", 1, by("anna"))
        with pytest.raises(BadData):
            await store.insert_key(row("anna", 1), by("anna"))
        with pytest.raises(NotDone):
            await store.revoke_key("key_anna_1", 1, by("bert", "globex"))
        refused = (await rows_of(store))[1:]
        assert [(one.outcome, one.tenant, one.action) for one in refused] == [
            ("refused", "acme", "keys.create"),
            ("refused", "acme", "keys.revoke"),
            ("refused", "acme", "keys.create"),
            ("refused", "globex", "keys.revoke"),
        ]
        assert all(one.before is None and one.after is None for one in refused)
        assert "in tenant 'globex'" in refused[0].reason
        # Another tenant's key and one that is not there: the same words, for the actor and in the log.
        assert refused[3].reason.replace("key_anna_1", "X") == refused[1].reason.replace("key_nobody", "X")
        assert [key.key_id for key in await store.list_keys()] == ["key_anna_1"]
        assert await verified(store) == []
        await store.close()

    run(work())


def test_a_writer_that_notes_nothing_changes_nothing(url: str) -> None:
    """Work that forgets its record, fails, or has too much to record is taken back whole."""

    async def work() -> None:
        store = Store.open(url)
        insert = text("INSERT INTO meta (name, value) VALUES ('x', 'y')")

        async def silent(connection: object, notes: Notes) -> None:
            await connection.execute(insert)  # type: ignore[attr-defined]

        async def huge(connection: object, notes: Notes) -> None:
            await connection.execute(insert)  # type: ignore[attr-defined]
            notes.add("policy.write", None, "x", None, {"a": "b" * 100_000})

        attempt = Attempt("policy.write", None, "x")
        with pytest.raises(RuntimeError, match="noted nothing"):
            await store.audited(by("anna"), attempt, silent)
        with pytest.raises(NotRecordable):
            await store.audited(by("anna"), attempt, huge)
        async with store.reading() as connection:
            assert (await connection.execute(text("SELECT count(*) FROM meta"))).scalar() == 0
        assert [one.outcome for one in await rows_of(store)] == ["refused"]
        await store.close()

    run(work())


def test_the_database_itself_refuses_to_change_a_row(url: str) -> None:
    """UPDATE, DELETE, TRUNCATE, REPLACE and a row out of its place: by trigger, and the log is as it was."""

    async def work() -> None:
        store = Store.open(url)
        for number in range(3):
            await store.insert_key(row("anna", number), by("anna"))
        before = await rows_of(store)
        names = ", ".join(f'"{name}"' for name in FIELDS)
        copied = f"SELECT {names} FROM audit WHERE seq = 2"
        statements = [
            "UPDATE audit SET target = 'x' WHERE seq = 2",
            "UPDATE audit SET target = target",
            "DELETE FROM audit WHERE seq = 3",
        ]
        if store.sqlite:
            moved = names.replace('"seq"', "9", 1)
            statements += [
                f"INSERT OR REPLACE INTO audit ({names}) {copied}",
                f"INSERT INTO audit ({names}) SELECT {moved} FROM audit WHERE seq = 2",
            ]
        else:
            statements += [
                "TRUNCATE audit",
                f"INSERT INTO audit ({names}) {copied} ON CONFLICT (seq) DO UPDATE SET target = 'x'",
            ]
        for statement in statements:
            with pytest.raises(DBAPIError, match="only grows"):
                async with store.engine.begin() as connection:
                    await connection.execute(text(statement))
        assert await rows_of(store) == before
        await store.close()

    run(work())


async def tampered(store: Store, *statements: str) -> None:
    """What somebody with every right over the database does: the triggers out of the way, then the statements."""
    async with store.engine.begin() as connection:
        if store.sqlite:
            for name in ("audit_no_update", "audit_no_delete", "audit_in_order"):
                await connection.execute(text(f"DROP TRIGGER IF EXISTS {name}"))
        else:
            await connection.execute(text("SET LOCAL session_replication_role = replica"))
        for statement in statements:
            await connection.execute(text(statement))


def _flip(name: str, sqlite: bool) -> str:
    column = audit.c[name]
    kind = column.type.python_type
    if kind is int:
        value = f"{name} + 1000"
    elif kind is bytes:
        other = b"\1" * 32
        value = f"x'{other.hex()}'" if sqlite else f"'\\x{other.hex()}'"
    else:
        value = f"coalesce(\"{name}\", '') || '!'"
    return f'UPDATE audit SET "{name}" = {value} WHERE seq = 3'


def test_tampering_in_the_database_is_found(url: str) -> None:
    """Each column of a row, a row removed, two exchanged, the log emptied, the head set back: found and named."""

    async def work() -> None:
        store = Store.open(url)
        for number in range(5):
            await store.insert_key(row("anna", number), by("anna"))
        whole = await rows_of(store)
        assert await verified(store) == []

        async def restored() -> None:
            await tampered(store, "DELETE FROM audit")
            async with store.engine.begin() as connection:
                values = [{name: getattr(one, name) for name in FIELDS} for one in whole]
                await connection.execute(audit.insert(), values)

        blows: dict[str, list[str]] = {name: [_flip(name, store.sqlite)] for name in FIELDS}
        blows["removed"] = ["DELETE FROM audit WHERE seq = 3"]
        blows["exchanged"] = [
            "UPDATE audit SET seq = 100 WHERE seq = 3",
            "UPDATE audit SET seq = 3 WHERE seq = 4",
            "UPDATE audit SET seq = 4 WHERE seq = 100",
        ]
        for name, statements in blows.items():
            await tampered(store, *statements)
            findings = await verified(store)
            assert any(3 in (one.seq, one.seq - 1000) for one in findings), (name, findings)
            await restored()
            assert await verified(store) == [], name
        for statement in ("DELETE FROM audit WHERE seq > 3", "UPDATE audit_head SET seq = 4", "DELETE FROM audit"):
            await tampered(store, statement)
            assert [one.kind for one in await verified(store)] == ["head"]
            await tampered(store, "UPDATE audit_head SET seq = 5")
            await restored()
        # A head that was taken away does not let the log begin anew beside itself.
        await tampered(store, "DELETE FROM audit_head")
        with pytest.raises((BadData, StoreUnavailable)):
            await store.insert_key(row("anna", 9), by("anna"))
        await store.close()

    run(work())


def _start(url: str, name: str, count: int, failpoints: str = "") -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.audit.writer", url, name, str(count)],
        cwd=ROOT,
        env={**os.environ, VARIABLE: failpoints},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )


def _end(writer: subprocess.Popen[bytes]) -> None:
    writer.kill()
    writer.wait()
    for pipe in (writer.stdin, writer.stdout):
        assert pipe is not None
        pipe.close()


def test_many_processes_write_one_chain(url: str) -> None:
    """Four processes from one signal on: one gapless chain, a row for each change and each refusal, nothing else."""
    count = 25
    names = ["anna", "bert", "cleo", "dora"]
    writers = [_start(url, name, count) for name in names]
    try:
        for writer in writers:
            assert writer.stdout is not None
            assert writer.stdout.readline() == b"ready\n"
        for writer in writers:
            assert writer.stdin is not None
            writer.stdin.close()
        assert [writer.wait(100) for writer in writers] == [0] * len(names)
    finally:
        for writer in writers:
            _end(writer)

    async def work() -> None:
        store = Store.open(url)
        assert await verified(store) == []
        rows = await rows_of(store)
        assert [one.seq for one in rows] == list(range(1, len(rows) + 1))
        counts = Counter((one.actor_id, one.action, one.outcome) for one in rows)
        for name in names:
            assert counts.pop((name, "keys.create", "ok")) == count
            assert counts.pop((name, "keys.revoke", "ok")) == count // 2
            assert counts.pop((name, "keys.create", "refused")) == (count + 2) // 3
        assert not counts
        await store.close()

    run(work())


@pytest.mark.parametrize(
    ("point", "made"), [("audit.before_append", 2), ("audit.before_commit", 2), ("audit.after_commit", 3)]
)
def test_a_writer_that_is_killed_leaves_both_or_neither(url: str, point: str, made: int) -> None:
    """Killed in the third change, before and after its record and its commit: keys and rows say the same."""
    writer = _start(url, "anna", 9, f"{point}=kill@4")  # key, key, end of the second, key
    try:
        assert writer.stdin is not None
        writer.stdin.close()
        assert writer.wait(120) == -signal.SIGKILL
    finally:
        _end(writer)

    async def work() -> None:
        store = Store.open(url)
        rows = await rows_of(store)
        keys = await store.list_keys()
        assert len(keys) == made
        assert [one.target for one in rows if (one.action, one.outcome) == ("keys.create", "ok")] == [
            key.key_id for key in keys
        ]
        assert await verified(store) == []
        # The lock of the dead one is gone with it.
        await store.insert_key(row("bert", 1), by("bert"))
        assert await verified(store) == []
        await store.close()

    run(work())


def test_reading_is_filtered_and_paged(url: str) -> None:
    """Newest first; by tenant, actor, action or its first word; the next page begins where one ended."""

    async def work() -> None:
        store = Store.open(url)
        for number in range(4):
            await store.insert_key(row("anna", number), by("anna"))
        await store.insert_key(row("bert", 1, "globex"), by("bert", "globex"))
        await store.revoke_key("key_anna_1", 5, by("anna"))

        async def seqs(**filters: object) -> list[int]:
            return [one.seq for one in await store.audit_rows(**filters)]  # type: ignore[arg-type]

        assert await seqs() == [6, 5, 4, 3, 2, 1]
        assert await seqs(limit=2) == [6, 5]
        assert await seqs(limit=2, before=5) == [4, 3]
        assert await seqs(tenant="globex") == [5]
        assert await seqs(actor="anna", action="keys.revoke") == [6]
        assert await seqs(action="keys") == [6, 5, 4, 3, 2, 1]
        assert await seqs(action="key") == []
        assert await seqs(action="keys.%") == []
        await store.close()

    run(work())


def test_a_walk_sees_one_state_while_others_write(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that are added between two pages of a reading are not in it, and its head is that of its rows."""
    monkeypatch.setattr("proxy.bounds.AUDIT_PAGE_ROWS", 2)

    async def work() -> None:
        store, other = Store.open(url), Store.open(url)
        for number in range(5):
            await store.insert_key(row("anna", number), by("anna"))
        seen: list[int] = []
        head = None
        async for one in store.audit_all():
            if isinstance(one, Head):
                head = one.seq
            else:
                seen.append(one.seq)
                await other.insert_key(row("bert", one.seq), by("bert"))
        assert (seen, head) == ([1, 2, 3, 4, 5], 5)
        assert await verified(store) == []
        await store.close()
        await other.close()

    run(work())


def test_writers_in_one_process_take_turns(url: str) -> None:
    """Twenty changes started together on one store: all are done, one chain."""

    async def work() -> None:
        store = Store.open(url)
        await asyncio.gather(*(store.insert_key(row("anna", number), by("anna")) for number in range(20)))
        rows = await rows_of(store)
        assert len(rows) == 20
        assert await verified(store) == []
        await store.close()

    run(work())
