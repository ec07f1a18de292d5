"""Fixtures: a fresh migrated database of either kind for each test."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from proxy.store.schema import metadata
from proxy.store.store import migrate
from tests.servers import PostgresServer


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated SQLite file, to be copied: a copy costs less than a migration."""
    path = tmp_path_factory.mktemp("template") / "weir.db"
    asyncio.run(migrate(f"sqlite:///{path}"))
    return path


@pytest.fixture(scope="session")
def postgres_database(postgres: PostgresServer) -> str:
    """The name of a migrated PostgreSQL database; to empty it costs less than to make another."""
    name = postgres.create_database()
    asyncio.run(migrate(postgres.url(name)))
    return name


@pytest.fixture
def sqlite_url(sqlite_template: Path, tmp_path: Path) -> str:
    """A fresh SQLite database."""
    shutil.copy(sqlite_template, tmp_path / "weir.db")
    return f"sqlite:///{tmp_path / 'weir.db'}"


@pytest.fixture
def postgres_url(postgres: PostgresServer, postgres_database: str) -> str:
    """An empty PostgreSQL database."""
    names = ", ".join(metadata.tables)
    # With a bound: a connection that an earlier test has left open would hold this up for ever.
    # As a replica: the audit log would refuse to be emptied.
    quietly = "SET lock_timeout = '60s'; SET session_replication_role = replica"
    postgres.sql(f"{quietly}; TRUNCATE {names}", postgres_database)
    return postgres.url(postgres_database)


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest) -> str:
    """A fresh database, once of each kind."""
    value: str = request.getfixturevalue(f"{request.param}_url")
    return value


@pytest.fixture(params=["sqlite", "postgres"])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], str]:
    """Makes URLs of databases without any schema, of each kind."""
    if request.param == "sqlite":
        return lambda: f"sqlite:///{tmp_path / 'empty.db'}"
    server: PostgresServer = request.getfixturevalue("postgres")
    return lambda: server.url(server.create_database())
