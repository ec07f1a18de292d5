"""One database, opened: URL to engine, transactions, and errors that say whether waiting can help.

SQLite: WAL with synchronous=FULL, so a commit survives a power cut; a write transaction begins IMMEDIATE, so it waits
for its turn at the start and never fails half way. PostgreSQL: the server itself ends a statement or a pause inside a
transaction that outlives FLUSH_SECONDS_MAX, so that a frozen flusher holds no lock for ever.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self, TypeVar
from urllib.parse import quote, unquote

from sqlalchemy import URL, event, make_url, text
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from proxy import bounds
from proxy.store.schema import REVISION

T = TypeVar("T")

_GRACE_SECONDS = 5.0  # so much longer than the server's own bound is waited for its word that it was passed

_RETRIED_SQLSTATES = {"40001", "40P01", "55P03"}  # serialization failure, deadlock, lock not available (PostgreSQL, A)
_BUSY = ("database is locked", "database table is locked")  # SQLITE_BUSY as Python's sqlite3 words it

# Until the transaction ends: the next user of the connection finds nothing of it.
_WALL = text(
    "SELECT set_config('weir.tenant', :tenant, true), set_config('role', 'weir_tenant', true) "
    "FROM pg_roles WHERE rolname = 'weir_tenant' AND pg_has_role(oid, 'MEMBER') "
    "AND has_table_privilege(oid, to_regclass('keys'), 'SELECT')"
)


class StoreUnavailable(Exception):
    """The database cannot be reached or did not answer in time. Nothing was decided; the caller may try again."""


class BadData(Exception):
    """The database refuses a value. Trying again cannot help."""


class SchemaMismatch(Exception):
    """The database's schema is not this version's. The message says what to run."""


def parse_url(url: str) -> URL:
    """`sqlite:///relative/path`, `sqlite:////absolute/path` or `postgresql://…`. Raises ValueError for others."""
    try:
        parsed = make_url(url)
    except (SQLAlchemyError, ValueError) as error:
        raise ValueError(
            "The database URL cannot be read; sqlite:///path or postgresql://user@host/name is expected."
        ) from error
    backend = parsed.get_backend_name()
    if backend == "sqlite":
        if not parsed.database or parsed.database == ":memory:":
            raise ValueError("A SQLite database needs a file: several processes share it. Write sqlite:///path.")
        return parsed.set(drivername="sqlite+aiosqlite")
    if backend in ("postgresql", "postgres"):
        query = dict(parsed.query)
        if "sslmode" in query:  # libpq's name of it; asyncpg's is `ssl`
            query["ssl"] = query.pop("sslmode")
        return parsed.set(drivername="postgresql+asyncpg", query=query)
    raise ValueError(f"The database URL begins with {backend!r}; sqlite or postgresql is expected.")


def make_engine(
    url: str, *, readonly: bool = False, create: bool = False, seconds_max: float | None = None
) -> AsyncEngine:
    """An engine, not yet connected. `create` makes a missing SQLite file; `seconds_max` bounds a statement."""
    parsed = parse_url(url)
    if parsed.get_backend_name() == "sqlite":
        return _sqlite_engine(Path(parsed.database or ""), readonly=readonly, create=create)
    settings = {"timezone": "UTC", "application_name": "weir"}
    if readonly:
        settings["default_transaction_read_only"] = "on"
    if seconds_max is not None:
        limit = str(int(seconds_max * 1000))
        settings |= {"statement_timeout": limit, "idle_in_transaction_session_timeout": limit}
    return create_async_engine(
        parsed,
        pool_size=2,
        max_overflow=2,
        pool_pre_ping=True,
        pool_recycle=1800,
        hide_parameters=True,
        connect_args={
            "timeout": bounds.DATABASE_CONNECT_SECONDS_MAX,
            # A frozen server ends nothing by itself, and the rollback at a connection's end takes no cancellation.
            "command_timeout": None if seconds_max is None else seconds_max + _GRACE_SECONDS,
            "server_settings": settings,
        },
    )


def _sqlite_engine(path: Path, *, readonly: bool, create: bool) -> AsyncEngine:
    mode = "ro" if readonly else "rwc" if create else "rw"
    url = URL.create("sqlite+aiosqlite", database=f"file:{quote(str(path))}", query={"mode": mode, "uri": "true"})
    engine = create_async_engine(url, pool_size=2, max_overflow=2, hide_parameters=True)

    def connected(connection: Any, _record: object) -> None:
        # SQLAlchemy's own advice for SQLite: switch the driver's implicit BEGIN off and emit it ourselves.
        connection.isolation_level = None
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout={int(bounds.DATABASE_BUSY_SECONDS_MAX * 1000)}")
        if readonly:
            cursor.execute("PRAGMA query_only=ON")
        else:
            cursor.execute("PRAGMA journal_mode=WAL")
            cursor.execute("PRAGMA synchronous=FULL")
        cursor.execute("PRAGMA foreign_keys=ON")
        cursor.close()

    def begun(connection: Any) -> None:
        write = connection.get_execution_options().get("write", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")

    def connecting(*_: object) -> None:
        if not create and not path.exists():
            raise FileNotFoundError(f"there is no file {path}")

    event.listen(engine.sync_engine, "do_connect", connecting)
    event.listen(engine.sync_engine, "connect", connected)
    event.listen(engine.sync_engine, "begin", begun)
    return engine


def _sqlstate(error: DBAPIError) -> str:
    return str(getattr(error.orig, "sqlstate", None) or "")


def retried(error: BaseException) -> bool:
    """Whether the same transaction may pass when it is run again at once."""
    if not isinstance(error, DBAPIError):
        return False
    return _sqlstate(error) in _RETRIED_SQLSTATES or any(words in str(error.orig) for words in _BUSY)


def bad_data(error: BaseException) -> bool:
    """Whether the database, or its driver, refuses a value: the same again will be refused again."""
    if isinstance(error, DataError | IntegrityError | OverflowError):
        return True
    # Data exception and integrity violation (PostgreSQL, appendix A): the driver does not always type them as such.
    return isinstance(error, DBAPIError) and _sqlstate(error).startswith(("22", "23"))


def sentence(error: BaseException) -> str:
    """An error in one line, without the statement and its parameters: those hold who used what."""
    cause = getattr(error, "orig", None) or error
    return f"{type(cause).__name__}: {(str(cause).splitlines() or ['no further word'])[0][:300]}"


def _name(url: URL) -> str:
    """How messages call a database: its file, or its address without the password."""
    if url.get_backend_name() == "sqlite":
        return unquote(str(url.database)).removeprefix("file:")
    return url.set(drivername="postgresql", query={}).render_as_string(hide_password=True)


class Database:
    """The engine and its transactions; the queries are in the classes built on it."""

    def __init__(self, engine: AsyncEngine, *, readonly: bool) -> None:
        self.engine = engine
        self.name = _name(engine.url)
        self.readonly = readonly
        self.sqlite = engine.dialect.name == "sqlite"
        self.walled: bool | None = None  # as the last reading for one tenant found it; SQLite has no such thing

    @classmethod
    def open(cls, url: str, *, readonly: bool = False, patient: bool = False) -> Self:
        """Prepares access; connects at the first query. Raises ValueError for a URL that is neither kind.

        `patient` is for reports over a large table: no statement is ended for its length.
        """
        seconds_max = None if patient else bounds.FLUSH_SECONDS_MAX
        return cls(make_engine(url, readonly=readonly, seconds_max=seconds_max), readonly=readonly)

    async def close(self) -> None:
        """Closes every connection; the object may not be used afterwards."""
        await self.engine.dispose()

    def __repr__(self) -> str:
        return f"<Database {self.engine.dialect.name}{' readonly' if self.readonly else ''}>"

    @asynccontextmanager
    async def _translated(self) -> AsyncIterator[None]:
        """Drivers' many errors as two: the data is bad, or the database is away (a sentence without a row's values)."""
        try:
            yield
        except (SQLAlchemyError, OSError, OverflowError, TimeoutError) as error:
            if bad_data(error):
                raise BadData(sentence(error)) from error
            raise StoreUnavailable(f"database {self.name}: {sentence(error)}") from error

    @asynccontextmanager
    async def reading(self, tenant: str | None = None) -> AsyncIterator[AsyncConnection]:
        """One consistent look. Raises StoreUnavailable.

        With `tenant`, PostgreSQL itself shows the rows of that tenant alone, whatever the query forgot to say, and
        refuses every change: the second wall. `walled` says whether it stands.
        """
        async with self._translated(), self.engine.connect() as connection:
            if not self.sqlite:
                connection = await connection.execution_options(isolation_level="REPEATABLE READ")
                if tenant is not None:
                    self.walled = (await connection.execute(_WALL, {"tenant": tenant})).first() is not None
            yield connection

    async def writing(self, work: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        """Runs `work` in one transaction and commits; runs it again after a deadlock or a busy database.

        Raises StoreUnavailable (also when the commit's fate is unknown: `work` must bear being repeated) and BadData.
        """
        async with self._translated():
            tries = bounds.TRANSACTION_TRIES_MAX
            while True:
                tries -= 1
                try:
                    # SQLite waits by its own busy timeout: its thread could not be interrupted in any case.
                    async with asyncio.timeout(None if self.sqlite else bounds.FLUSH_SECONDS_MAX):
                        async with self.engine.connect() as connection:
                            connection = await connection.execution_options(write=True)
                            async with connection.begin():
                                return await work(connection)
                except DBAPIError as error:
                    if tries <= 0 or not retried(error):
                        raise
                await asyncio.sleep(random.uniform(0.005, 0.05))

    async def ping(self) -> None:
        """Raises StoreUnavailable when a trivial query is not answered."""
        async with self.reading() as connection:
            await connection.execute(text("SELECT 1"))

    async def check_schema(self) -> None:
        """Raises SchemaMismatch with a sentence that says what to run, StoreUnavailable when that cannot be known."""
        found = await self._revision()
        if found == REVISION:
            return
        if found is None:
            raise SchemaMismatch(
                f"The database {self.name} has no Weir schema; this Weir needs {REVISION}. "
                "Run `weir run` or `weir flush --migrate` once."
            )
        if found < REVISION:
            raise SchemaMismatch(
                f"The schema of {self.name} is {found}; this Weir needs {REVISION}. "
                "Run `weir run` or `weir flush --migrate` of this version once."
            )
        raise SchemaMismatch(
            f"The schema of {self.name} is {found}, newer than {REVISION} of this Weir. "
            "Start a Weir at least as new as the one that wrote it."
        )

    async def _revision(self) -> str | None:
        if self.sqlite:
            names = "SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name = 'alembic_version'"
            if not Path(self.name).exists():
                return None
        else:
            names = "SELECT count(*) FROM pg_catalog.pg_class WHERE oid = to_regclass('alembic_version')"
        async with self.reading() as connection:
            if not (await connection.execute(text(names))).scalar():
                return None
            found = (await connection.execute(text("SELECT version_num FROM alembic_version"))).scalar()
            return None if found is None else str(found)
