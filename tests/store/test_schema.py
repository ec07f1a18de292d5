"""Opening, migrating, and refusing a schema that is not this version's."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text

from proxy.flush.fold import ROW_FIELDS, row_of
from proxy.identity.actor import operator
from proxy.store.database import Database, make_engine, parse_url
from proxy.store.migrate import alembic_config
from proxy.store.schema import REVISION, metadata
from proxy.store.store import SchemaMismatch, Store, StoreUnavailable, migrate
from tests.store.records import event, run


def test_the_migrations_make_the_tables_that_the_code_expects(url: str) -> None:
    """Alembic's own comparison of a migrated database with schema.py finds no difference."""

    def compare(connection: Connection) -> list[object]:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        return list(compare_metadata(context, metadata))

    async def work() -> list[object]:
        store = Store.open(url)
        async with store.engine.connect() as connection:
            found = await connection.run_sync(compare)
        await store.close()
        return found

    assert run(work()) == []


def test_the_revision_is_the_newest_script() -> None:
    """check_schema compares with a constant, to spare every worker Alembic's import: the constant must be true."""
    scripts = ScriptDirectory.from_config(alembic_config())
    assert scripts.get_heads() == [REVISION]
    revisions = [script.revision for script in scripts.walk_revisions()]
    assert sorted(revisions, reverse=True) == revisions  # older and newer are told apart by comparing them


def test_rows_of_an_older_schema_stay(empty_url: Callable[[], str]) -> None:
    """A database of the first schema with a row in it is brought up to date: the row is no lower bound."""
    url = empty_url()
    old = [name for name in ROW_FIELDS if name != "lower_bound"]
    row = dict(zip(ROW_FIELDS, row_of(b"e" * 16, event(1), 7), strict=True))
    tags = "CAST(:tags AS jsonb)" if url.startswith("postgresql") else ":tags"
    values = ", ".join(tags if name == "tags" else f":{name}" for name in old)
    names = ", ".join(f'"{name}"' for name in old)

    async def work() -> tuple[object, ...]:
        engine = make_engine(url, create=True)
        async with engine.begin() as connection:

            def first(inner: Connection) -> None:
                config = alembic_config()
                config.attributes["connection"] = inner
                command.upgrade(config, "0001")

            await connection.run_sync(first)
            await connection.execute(text(f"INSERT INTO usage ({names}) VALUES ({values})"), row)
        await engine.dispose()
        await migrate(url)
        store = Store.open(url)
        await store.check_schema()
        rows, _ = await store.usage_rows()
        await store.close()
        return rows[0]["prompt_tokens"], rows[0]["lower_bound"]

    assert run(work()) == (10, False)


def test_only_one_of_many_migrates(empty_url: Callable[[], str]) -> None:
    """Four processes' worth of migrations at once on an empty database: all succeed, and it is usable."""
    url = empty_url()

    async def work() -> None:
        await asyncio.gather(*(migrate(url) for _ in range(4)))
        store = Store.open(url)
        await store.check_schema()
        await store.close()

    run(work())


def test_a_schema_of_another_version_is_refused_with_what_to_run(empty_url: Callable[[], str]) -> None:
    """No schema, an older and a newer one: each sentence names both versions and the remedy."""
    url = empty_url()

    async def refused() -> str:
        store = Store.open(url, readonly=True)
        with pytest.raises(SchemaMismatch) as caught:
            await store.check_schema()
        await store.close()
        return str(caught.value)

    async def pretend(version: str) -> None:
        engine = make_engine(url)
        async with engine.begin() as connection:
            await connection.execute(text(f"UPDATE alembic_version SET version_num = '{version}'"))
        await engine.dispose()

    assert "has no Weir schema" in run(refused())
    run(migrate(url))
    run(pretend("0000"))
    assert "Run `weir run` or `weir flush --migrate` of this version once." in run(refused())
    run(pretend("9999"))
    assert "is 9999, newer than" in run(refused())
    with pytest.raises(SchemaMismatch, match="newer than"):
        run(migrate(url))


def test_an_absent_postgresql_is_not_a_mismatch(tmp_path: Path) -> None:
    """A database that cannot be asked is away; nobody is told to migrate it."""

    async def work() -> None:
        store = Store.open(f"postgresql://weir@/weir?host={tmp_path}")
        with pytest.raises(StoreUnavailable):
            await store.check_schema()
        await store.close()

    run(work())


def test_sqlite_is_opened_as_promised(sqlite_url: str) -> None:
    """WAL, synchronous=FULL, foreign keys, a busy timeout; tables without a hidden row number."""

    async def work() -> list[object]:
        store = Store.open(sqlite_url)
        async with store.reading() as connection:
            words = ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
            found = [(await connection.execute(text(f"PRAGMA {word}"))).scalar() for word in words]
            layout = await connection.execute(text("SELECT sql FROM sqlite_master WHERE name = 'usage'"))
            found.append("WITHOUT ROWID" in str(layout.scalar()))
        await store.close()
        return found

    assert run(work()) == ["wal", 2, 1, 5000, True]


def test_a_sqlite_write_takes_its_turn_at_the_start(sqlite_url: str) -> None:
    """BEGIN IMMEDIATE: inside `writing` nobody else can begin to write, before anything was written."""
    path = sqlite_url.removeprefix("sqlite:///")

    async def work() -> None:
        store = Store.open(sqlite_url)

        async def look(connection: object) -> None:
            other = sqlite3.connect(path, timeout=0, isolation_level=None)
            with pytest.raises(sqlite3.OperationalError, match="locked"):
                other.execute("BEGIN IMMEDIATE")
            other.close()

        await store.writing(look)
        await store.close()

    run(work())


def test_readonly_cannot_write(url: str) -> None:
    """A read-only store refuses every change, by the database's own means."""

    async def work() -> None:
        store = Store.open(url, readonly=True)
        await store.check_schema()
        with pytest.raises(StoreUnavailable, match=r"read-?only"):
            await store.revoke_key("any", 1, operator())
        async with store.engine.connect() as connection:
            with pytest.raises(Exception, match=r"read-?only"):
                await connection.execute(text("DELETE FROM usage"))
        await store.close()

    run(work())


def test_the_sqlite_file_is_its_owners_alone(tmp_path: Path) -> None:
    """It holds who used what: mode 0600 whatever the umask says, and so do its companions."""
    old = os.umask(0)
    try:
        run(migrate(f"sqlite:///{tmp_path}/made/weir.db"))
    finally:
        os.umask(old)
    assert {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "made").iterdir()} == {
        "weir.db": 0o600,
        "weir.db.lock": 0o600,
    }


def test_an_odd_path_is_only_a_path(tmp_path: Path) -> None:
    """Question marks, spaces and percent signs in a directory's name do not become options of the URL."""
    directory = tmp_path / "a b%41?mode=ro#x"
    directory.mkdir()
    from sqlalchemy import URL

    url = URL.create("sqlite", database=str(directory / "weir.db")).render_as_string()

    async def work() -> None:
        await migrate(url)
        store = Store.open(url)
        await store.check_schema()
        await store.close()

    run(work())
    assert (directory / "weir.db").exists()


@pytest.mark.parametrize(
    ("url", "word"),
    [
        ("mysql://x/y", "mysql"),
        ("sqlite://", "needs a file"),
        ("sqlite:///:memory:", "needs a file"),
        ("nonsense", "cannot be read"),
        ("postgresql://user:secret@host:port/x", "cannot be read"),
    ],
)
def test_a_wrong_url_is_refused_without_showing_it(url: str, word: str) -> None:
    """The sentence says what is expected and never repeats a URL, which may hold a password."""
    with pytest.raises(ValueError) as caught:
        parse_url(url)
    assert word in str(caught.value)
    assert "secret" not in str(caught.value)


def test_libpqs_sslmode_is_understood() -> None:
    """`sslmode` is what people know from psql; asyncpg calls it `ssl`."""
    assert dict(parse_url("postgresql://h/d?sslmode=require").query) == {"ssl": "require"}


def test_opening_a_store_does_not_import_alembic() -> None:
    """Workers open the store and never migrate: they need not pay for it in memory and start-up time."""
    code = "import sys, proxy.store.database, proxy.store.keys; sys.exit('alembic' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=100).returncode == 0


def test_repr_shows_no_password() -> None:
    """What a log or a traceback shows of a store."""
    database = Database.open("postgresql://weir:secret@h/d")
    assert repr(database) == "<Database postgresql>"
    run(database.close())
