"""Reports: who used which model, and what it cost. From roll-ups where they can say it, otherwise from the rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

from msgspec import Struct
from sqlalchemy import BigInteger, ColumnElement, FromClause, Table, case, cast, func, literal, select, true, tuple_

from proxy.flush.fold import DAY_US, SUM_FIELDS, day_of
from proxy.store.database import Database
from proxy.store.schema import keys, usage, usage_rollup

By = Literal["tenant", "model", "key", "user", "tag", "day"]
BY: tuple[By, ...] = get_args(By)
_COLUMNS: dict[str, str] = {"tenant": "tenant", "model": "model", "key": "key_id", "user": "user", "day": "day"}
_IN_ROLLUPS = {"tenant", "model", "key", "day"}


class Filters(Struct, frozen=True):
    """Which usage. Times are wall clock in microseconds: from `since_us`, before `until_us`. None: all."""

    tenant: str | None = None
    model: str | None = None  # as the client asked
    key_id: str | None = None
    since_us: int | None = None
    until_us: int | None = None
    owner: str | None = None  # of the keys

    @property
    def whole_days(self) -> bool:
        """Whether the times fall between UTC days, so that roll-ups can answer."""
        return (self.since_us or 0) % DAY_US == 0 and (self.until_us or 0) % DAY_US == 0


class Sums(Struct):
    """One line of a report. `unpriced` requests have no price and are not in `cost_nanos`; `lower_bound` ones may have
    had more tokens than stand here.
    """

    group: tuple[str, ...]
    requests: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    reasoning_tokens: int = 0
    audio_tokens: int = 0
    cost_nanos: int = 0
    unpriced: int = 0
    estimated: int = 0
    lower_bound: int = 0


class Report(Struct):
    """`source`: "rollups", or "rows" (then retention may have removed the oldest)."""

    by: tuple[By, ...]
    source: Literal["rollups", "rows"]
    lines: list[Sums]
    total: Sums


def row_sums() -> list[ColumnElement[Any]]:
    """SUM_FIELDS as SQL over rows."""
    counted: dict[str, ColumnElement[Any]] = {
        "requests": func.count(),
        "unpriced": func.sum(case((usage.c.price_version == "", 1), else_=0)),
        "estimated": func.sum(case((usage.c.source == "estimated", 1), else_=0)),
        "lower_bound": func.sum(case((usage.c.lower_bound, 1), else_=0)),
    }
    # PostgreSQL's sum of bigint is numeric; every value here fits a bigint.
    return [
        cast(counted[name] if name in counted else func.sum(usage.c[name]), BigInteger).label(name)
        for name in SUM_FIELDS
    ]


class Reports(Database):
    """The reading side of usage."""

    async def usage_by(self, by: Sequence[By], filters: Filters | None = None) -> Report:
        """Sums per group, dearest first (by day: in order). A row with two tags counts under each of them."""
        chosen = filters or Filters()
        rollups = set(by) <= _IN_ROLLUPS and chosen.whole_days
        table: Table = usage_rollup if rollups else usage
        source: FromClause = table
        groups: list[ColumnElement[Any]] = []
        for name in by:
            if name == "tag":
                source, tag = self._tags(source)
                groups.append(tag)
            else:
                groups.append(table.c[_COLUMNS[name]])
        sums = row_sums()
        if rollups:
            sums = [cast(func.sum(table.c[name]), BigInteger).label(name) for name in SUM_FIELDS]
        where = _conditions(table, chosen)
        query = select(*groups, *sums).select_from(source).where(*where).group_by(*groups)
        total_query = select(*sums).select_from(table).where(*where)
        async with self.reading(chosen.tenant) as connection:
            found = [tuple(row) for row in await connection.execute(query)]
            total = tuple((await connection.execute(total_query)).one())
        lines = [Sums(tuple(map(str, row[: len(by)])), *row[len(by) :]) for row in found]
        if "day" in by:
            lines.sort(key=lambda line: line.group)
        else:
            lines.sort(key=lambda line: (-line.cost_nanos, -line.requests, line.group))
        sums_of_all = Sums((), *(value or 0 for value in total))
        return Report(tuple(by), "rollups" if rollups else "rows", lines, sums_of_all)

    def _tags(self, source: FromClause) -> tuple[FromClause, ColumnElement[Any]]:
        """`name=value` for each tag of a row; "" for a row without."""
        each = func.json_each(usage.c.tags) if self.sqlite else func.jsonb_each_text(usage.c.tags)
        pairs = (
            each.table_valued("key", "value").lateral("tag") if not self.sqlite else each.table_valued("key", "value")
        )
        label = func.coalesce(pairs.c.key + literal("=") + pairs.c.value, "")
        return source.outerjoin(pairs, true()), label

    async def usage_rows(
        self, filters: Filters | None = None, limit: int = 100, cursor: str | None = None
    ) -> tuple[list[dict[str, Any]], str | None]:
        """Single rows, newest first, and the cursor of the next page (None at the end). Raises ValueError for a cursor
        that no page gave out."""
        order = (usage.c.started_us, usage.c.epoch, usage.c.call)
        query = select(usage).where(*_conditions(usage, filters or Filters()))
        if cursor is not None:
            query = query.where(tuple_(*order) < tuple_(*map(literal, _position(cursor))))
        query = query.order_by(*(column.desc() for column in order)).limit(limit + 1)
        async with self.reading(filters.tenant if filters else None) as connection:
            rows = [dict(row) for row in (await connection.execute(query)).mappings()]
        more = len(rows) > limit
        for row in rows:
            row["epoch"] = bytes(row["epoch"]).hex()
            del row["digest"]
        rows = rows[:limit]
        last = rows[-1] if more and rows else None
        return rows, f"{last['started_us']}.{last['epoch']}.{last['call']}" if last else None


def _position(cursor: str) -> tuple[int, bytes, int]:
    try:
        started_us, epoch, call = cursor.split(".")
        return int(started_us), bytes.fromhex(epoch), int(call)
    except ValueError as error:
        raise ValueError(f"{cursor!r} is not a cursor that an earlier page gave out") from error


def _conditions(table: Table, filters: Filters) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = []
    for name in ("tenant", "model", "key_id"):
        value = getattr(filters, name)
        if value is not None:
            conditions.append(table.c[name] == value)
    if filters.owner is not None:
        conditions.append(table.c.key_id.in_(select(keys.c.key_id).where(keys.c.owner == filters.owner)))
    if table is usage_rollup:
        if filters.since_us is not None:
            conditions.append(table.c.day >= day_of(filters.since_us))
        if filters.until_us is not None:
            conditions.append(table.c.day < day_of(filters.until_us))
    else:
        if filters.since_us is not None:
            conditions.append(table.c.started_us >= filters.since_us)
        if filters.until_us is not None:
            conditions.append(table.c.started_us < filters.until_us)
    return conditions
