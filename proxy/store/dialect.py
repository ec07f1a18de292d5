"""The statements that carry the load, in each database's own words: many rows in, and which were there before."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Table
from sqlalchemy.ext.asyncio import AsyncConnection

from proxy import bounds
from proxy.flush.fold import GROUP_FIELDS, ROW_FIELDS, SUM_FIELDS, Key, Row
from proxy.store.schema import usage, usage_rollup


def _quoted(names: Sequence[str]) -> str:
    return ", ".join(f'"{name}"' for name in names)  # `user` is a word of SQL


def _array(table: Table, name: str) -> str:
    kind = table.c[name].type.python_type
    return {bytes: "bytea", int: "int8", bool: "bool"}.get(kind, "text")


def _unnested(table: Table, names: Sequence[str]) -> str:
    """`$1::bytea[], $2::int8[], …`: one parameter a column, so that any number of rows is one and the same text."""
    return ", ".join(f"${number}::{_array(table, name)}[]" for number, name in enumerate(names, 1))


_SUMS = ", ".join(f"{name} = usage_rollup.{name} + excluded.{name}" for name in SUM_FIELDS)
_ROLLUP_FIELDS = (*GROUP_FIELDS, *SUM_FIELDS)

_PG_INSERT = (
    f"INSERT INTO usage ({_quoted(ROW_FIELDS)}) "
    f"SELECT {', '.join('tags::jsonb' if name == 'tags' else _quoted([name]) for name in ROW_FIELDS)} "
    f"FROM unnest({_unnested(usage, ROW_FIELDS)}) AS batch({_quoted(ROW_FIELDS)}) "
    "ON CONFLICT (epoch, call) DO NOTHING RETURNING epoch, call"
)
_PG_KNOWN = (
    "SELECT epoch, call, digest FROM usage "
    "JOIN unnest($1::bytea[], $2::int8[]) AS wanted(epoch, call) USING (epoch, call)"
)
_PG_ROLLUP = (
    f"INSERT INTO usage_rollup ({_quoted(_ROLLUP_FIELDS)}) "
    f"SELECT * FROM unnest({_unnested(usage_rollup, _ROLLUP_FIELDS)}) "
    f"ON CONFLICT ({_quoted(GROUP_FIELDS)}) DO UPDATE SET {_SUMS}"
)

# The keys are locked in order, so that two flushers wait for each other and never deadlock.
_PG_USED = (
    "WITH due AS (SELECT key_id, used_us FROM keys JOIN unnest($1::text[], $2::int8[]) AS used(key_id, used_us) "
    "USING (key_id) WHERE last_used_us IS NULL OR last_used_us <= used_us - $3::int8 "
    "ORDER BY key_id FOR NO KEY UPDATE OF keys) "
    "UPDATE keys SET last_used_us = due.used_us FROM due WHERE keys.key_id = due.key_id"
)
_LITE_USED = "UPDATE keys SET last_used_us = ?2 WHERE key_id = ?1 AND (last_used_us IS NULL OR last_used_us <= ?2 - ?3)"

_LITE_INSERT = f"INSERT INTO usage ({_quoted(ROW_FIELDS)}) VALUES ({', '.join('?' * len(ROW_FIELDS))})"
_LITE_KNOWN = "SELECT call, digest FROM usage WHERE epoch = ? AND call IN (SELECT value FROM json_each(?))"
_LITE_ROLLUP = (
    f"INSERT INTO usage_rollup ({_quoted(_ROLLUP_FIELDS)}) VALUES ({', '.join('?' * len(_ROLLUP_FIELDS))}) "
    f"ON CONFLICT ({_quoted(GROUP_FIELDS)}) DO UPDATE SET {_SUMS}"
)


async def insert_rows(connection: AsyncConnection, rows: Sequence[Row]) -> dict[Key, int]:
    """Inserts the rows whose key is free; returns the others' keys with the digest of the row that stands there.

    `rows` hold each key once and are sorted by it.
    """
    if not rows:
        return {}
    if connection.dialect.name == "sqlite":
        return await _insert_sqlite(connection, rows)
    columns = tuple(list(column) for column in zip(*rows, strict=True))
    fresh = {(bytes(epoch), call) for epoch, call in await _all(connection, _PG_INSERT, columns)}
    taken = [(row[0], row[1]) for row in rows if (row[0], row[1]) not in fresh]
    if not taken:
        return {}
    # READ COMMITTED: this statement sees what another transaction committed while the insert waited for it.
    wanted = tuple(list(column) for column in zip(*taken, strict=True))
    return {(bytes(epoch), call): digest for epoch, call, digest in await _all(connection, _PG_KNOWN, wanted)}


async def _insert_sqlite(connection: AsyncConnection, rows: Sequence[Row]) -> dict[Key, int]:
    # The transaction began IMMEDIATE: nobody else writes between this look and the insert. The primary key still
    # stands behind it and would refuse a double with an error.
    calls: dict[bytes, list[int]] = {}
    for row in rows:
        epoch, call = row[0], row[1]
        assert isinstance(epoch, bytes)
        assert isinstance(call, int)
        calls.setdefault(epoch, []).append(call)
    known: dict[Key, int] = {}
    for epoch, wanted in calls.items():
        for call, digest in await _all(connection, _LITE_KNOWN, (epoch, json.dumps(wanted))):
            known[(epoch, call)] = digest
    fresh = [row for row in rows if (row[0], row[1]) not in known]
    if fresh:
        await connection.exec_driver_sql(_LITE_INSERT, fresh)
    return known


async def _all(connection: AsyncConnection, statement: str, parameters: tuple[object, ...]) -> list[tuple[Any, ...]]:
    return [tuple(row) for row in await connection.exec_driver_sql(statement, parameters)]


async def add_to_rollups(connection: AsyncConnection, sums: dict[Row, list[int]]) -> None:
    """Adds sums (SUM_FIELDS) to groups (GROUP_FIELDS). Sorted, so that two transactions wait and never deadlock."""
    if not sums:
        return
    lines = [(*group, *values) for group, values in sums.items()]
    if connection.dialect.name == "sqlite":
        await connection.exec_driver_sql(_LITE_ROLLUP, lines)
    else:
        await connection.exec_driver_sql(_PG_ROLLUP, tuple(list(column) for column in zip(*lines, strict=True)))


async def mark_used(connection: AsyncConnection, used: dict[str, int]) -> None:
    """Moves the keys' last use on (key_id → wall clock, microseconds), where it is KEY_USED_SECONDS behind or more."""
    if not used:
        return
    step = bounds.KEY_USED_SECONDS * 1_000_000
    ids = sorted(used)
    if connection.dialect.name == "sqlite":
        await connection.exec_driver_sql(_LITE_USED, [(key_id, used[key_id], step) for key_id in ids])
    else:
        await connection.exec_driver_sql(_PG_USED, (ids, [used[key_id] for key_id in ids], step))
