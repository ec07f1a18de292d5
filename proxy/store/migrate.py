"""Brings a database to this version's schema. One process at a time; the others wait and then find nothing to do."""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Connection, text

from proxy import bounds, clock
from proxy.store.database import Database, SchemaMismatch, StoreUnavailable, make_engine, parse_url
from proxy.store.schema import REVISION

if TYPE_CHECKING:
    from alembic.config import Config

# Alembic is imported where it is used: every worker and every command opens a store, and few of them migrate.
_SCRIPTS = Path(__file__).parent / "migrations"
_ADVISORY_LOCK = 0x57656972  # "Weir": any number that other users of the database do not take


def alembic_config() -> Config:
    """Alembic's configuration without a file: where the scripts are."""
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(_SCRIPTS).replace("%", "%%"))
    return config


async def migrate(url: str) -> None:
    """Creates a missing SQLite file and runs every missing migration in one transaction.

    Raises SchemaMismatch when the database is newer than this version, StoreUnavailable when it cannot be reached.
    """
    parsed = parse_url(url)
    database = Database(make_engine(url, create=True), readonly=False)
    try:
        if database.sqlite:
            path = Path(parsed.database or "")
            path.parent.mkdir(parents=True, exist_ok=True)
            async with _file_lock(path.with_name(path.name + ".lock")):
                # Owner only: the file holds who used what, and the digests of keys.
                os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
                await _upgrade(database)
        else:
            await _upgrade(database)
    finally:
        await database.close()


async def _upgrade(database: Database) -> None:
    async def work(connection: object) -> None:
        assert hasattr(connection, "execute")
        if not database.sqlite:
            await connection.execute(text(f"SELECT pg_advisory_xact_lock({_ADVISORY_LOCK})"))
        await connection.run_sync(_run)  # type: ignore[attr-defined]

    await database.writing(work)


def _run(connection: Connection) -> None:
    from alembic import command
    from alembic.util import CommandError

    config = alembic_config()
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, "head")
    except CommandError as error:
        raise SchemaMismatch(
            f"The database's schema is newer than {REVISION} of this Weir ({error}). "
            "Start a Weir at least as new as the one that wrote it."
        ) from error


@asynccontextmanager
async def _file_lock(path: Path) -> AsyncIterator[None]:
    """flock on a file beside the database: it ends with its holder, however that dies."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        deadline = clock.now_ns() + bounds.MIGRATE_SECONDS_MAX * 1_000_000_000
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if clock.now_ns() > deadline:
                    raise StoreUnavailable(f"another process has been migrating for long; it holds {path}") from None
                await asyncio.sleep(0.05)
        yield
    finally:
        os.close(descriptor)
