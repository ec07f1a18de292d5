"""`weir usage`: who used which model and what it cost; `weir usage verify`: whether every call is one row."""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from proxy import clock, settings
from proxy.flush.fold import DAY_US, SUM_FIELDS
from proxy.policy.load import PolicyErrors
from proxy.store.redis import directory_id
from proxy.store.store import Filters, Report, SchemaMismatch, Store, StoreUnavailable, Verified
from proxy.store.usage import BY, Sums
from proxy.store.verify import check_journals
from proxy.verbs import config_argument

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = datetime.resolution
_RELATIVE = re.compile(r"(\d{1,6})([hd])")
_HEADINGS = {
    "requests": "requests",
    "prompt_tokens": "prompt",
    "cached_tokens": "cached",
    "completion_tokens": "completion",
    "reasoning_tokens": "reasoning",
    "audio_tokens": "audio",
    "cost_nanos": "cost",
    "unpriced": "unpriced",
    "estimated": "estimated",
}
_AT_LEAST = "≥"  # before completion tokens of a model that thinks in tokens it never sends
_ROW_COLUMNS = (
    "started_us",
    "tenant",
    "key_id",
    "user",
    "model",
    "upstream",
    "status",
    "termination",
    "prompt_tokens",
    "completion_tokens",
    "source",
    "cost_nanos",
    "total_us",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `weir usage`."""
    parser.add_argument("action", nargs="?", choices=["show", "verify"], default="show")
    parser.add_argument("--by", default="tenant", metavar="WORDS", help=f"any of {', '.join(BY)}, joined by commas")
    parser.add_argument("--since", metavar="TIME", help="2026-07-01, 2026-07-01T12:00:00Z, 7d (whole days) or 12h")
    parser.add_argument("--until", metavar="TIME", help="before this time; forms as for --since")
    parser.add_argument("--tenant", metavar="NAME")
    parser.add_argument("--model", metavar="NAME", help="as clients ask for it")
    parser.add_argument("--key", metavar="ID", help="a key's id, not the key")
    parser.add_argument("--rows", action="store_true", help="single calls, newest first")
    parser.add_argument("--limit", type=int, default=50, metavar="N", help="rows to a page (default %(default)s)")
    parser.add_argument("--cursor", help="of the page before, to see the next")
    parser.add_argument("--json", action="store_true", help="for programs")
    config_argument(parser)
    parser.add_argument("--database", metavar="URL", help="instead of the configuration's")


def run(args: argparse.Namespace) -> int:
    """Prints. 0 done; 1 when verify found something, or the question cannot be answered."""
    try:
        return asyncio.run(_answer(args))
    except (PolicyErrors, SchemaMismatch, StoreUnavailable, ValueError) as error:
        print(f"weir usage: {error}", file=sys.stderr)
        return 1


async def _answer(args: argparse.Namespace) -> int:
    data_dir: Path | None = None
    database = args.database
    if not database:
        process = settings.load(args.config)
        database, data_dir = process.database, process.data_dir
    store = Store.open(database, readonly=True, patient=True)
    try:
        await store.check_schema()
        if args.action == "verify":
            return await _verify(store, data_dir, as_json=args.json)
        now = clock.wall_us()
        filters = Filters(args.tenant, args.model, args.key, parse_time(args.since, now), parse_time(args.until, now))
        if args.rows:
            if args.limit < 1:
                raise ValueError(f"--limit is {args.limit}; at least 1 is expected.")
            rows, cursor = await store.usage_rows(filters, args.limit, args.cursor)
            print(json.dumps({"rows": rows, "cursor": cursor}) if args.json else _rows_table(rows, cursor))
            return 0
        by = args.by.split(",")
        for word in by:
            if word not in BY:
                raise ValueError(f"--by {word}: it must be one of {', '.join(BY)}.")
        report = await store.usage_by(by, filters)
        print(json.dumps(_report_json(report, filters)) if args.json else _report_table(report))
        return 0
    finally:
        await store.close()


async def _verify(store: Store, data_dir: Path | None, *, as_json: bool) -> int:
    if data_dir is None or not (data_dir / "journal").is_dir():
        verified = await store.verify()
    else:
        verified = await _verify_with_journals(store, data_dir)
    print(msgspec.json.encode(verified).decode() if as_json else _verified_text(verified))
    return 1 if verified.findings else 0


async def _verify_with_journals(store: Store, data_dir: Path) -> Verified:
    # Imported here: a report on a database alone must work without the compiled journal.
    from proxy.epochs import live_and_dead

    origin = directory_id(data_dir)
    before = live_and_dead(data_dir / "journal")
    verified = await store.verify()
    # Epochs begin and end meanwhile. One that was open at the look in between is in one of the two lists.
    after = live_and_dead(data_dir / "journal")
    dead = {one.epoch for one in after if not one.alive and not one.recovered}
    check_journals(verified, origin, {one.epoch for one in (*before, *after)}, dead)
    return verified


def _verified_text(verified: Verified) -> str:
    lines = [f"{verified.rows} rows of {verified.epochs_closed} closed and {len(verified.epochs_open)} open epochs"]
    for finding in verified.findings:
        where = f" epoch {finding.epoch}:" if finding.epoch else ""
        calls = ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in finding.calls)
        lines.append(f"{finding.kind}:{where} {finding.sentence}{f' ({calls})' if calls else ''}")
    lines.append(f"{len(verified.findings)} findings" if verified.findings else "nothing is missing, nothing is double")
    return "\n".join(lines)


def parse_time(text: str | None, now_us: int) -> int | None:
    """Wall-clock microseconds. Days count from midnight UTC, so that roll-ups can answer. Raises ValueError."""
    if text is None:
        return None
    relative = _RELATIVE.fullmatch(text)
    if relative:
        number = int(relative[1])
        moment = now_us // DAY_US * DAY_US - number * DAY_US if relative[2] == "d" else now_us - number * 3_600_000_000
        return max(moment, 0)
    try:
        when = datetime.fromisoformat(text)
    except ValueError as error:
        raise ValueError(f"{text!r} is no time: write 2026-07-01, 2026-07-01T12:00:00Z, 7d or 12h.") from error
    if when.tzinfo is None:
        when = when.replace(tzinfo=UTC)
    return max((when - _EPOCH) // _MICROSECOND, 0)


def dollars(nanos: int) -> str:
    """Integer nano-dollars as dollars, exactly: at least two decimals, no more than needed."""
    whole, rest = divmod(nanos, 10**9)
    decimals = f"{rest:09d}".rstrip("0").ljust(2, "0")
    return f"${whole}.{decimals}"


def _cell(name: str, value: Any) -> str:
    if name == "cost_nanos":
        return dollars(value)
    if name == "started_us":
        moment: datetime = _EPOCH + value * _MICROSECOND
        return moment.strftime("%Y-%m-%d %H:%M:%S")
    if name == "total_us":
        return f"{value / 1000:.1f} ms"
    text = str(value)
    return "".join(char if char.isprintable() else "?" for char in text)


def _table(headings: Sequence[str], lines: Sequence[Sequence[str]], left: int) -> str:
    """Aligned columns: the first `left` to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(headings, *lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if index < left else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in [headings, *lines]
    )


def _report_table(report: Report) -> str:
    def cells(group: Sequence[str], sums: Sums) -> list[str]:
        values = {name: _cell(name, getattr(sums, name)) for name in _HEADINGS}
        if sums.lower_bound:
            values["completion_tokens"] = _AT_LEAST + values["completion_tokens"]
        return [*(_cell("", word) or "-" for word in group), *values.values()]

    lines = [cells(line.group, line) for line in report.lines]
    total = cells(["total", *["" for _ in report.by[1:]]], report.total)
    total[1 : len(report.by)] = ["" for _ in report.by[1:]]
    return _table([*report.by, *_HEADINGS.values()], [*lines, total], len(report.by))


def _report_json(report: Report, filters: Filters) -> dict[str, Any]:
    def sums(line: Sums) -> dict[str, Any]:
        return {name: getattr(line, name) for name in SUM_FIELDS} | {"cost_dollars": dollars(line.cost_nanos)[1:]}

    return {
        "by": report.by,
        "source": report.source,
        "filters": msgspec.structs.asdict(filters),
        "lines": [dict(zip(report.by, line.group, strict=True)) | sums(line) for line in report.lines],
        "total": sums(report.total),
    }


def _rows_table(rows: Sequence[dict[str, Any]], cursor: str | None) -> str:
    lines = [[_cell(name, row[name]) or "-" for name in _ROW_COLUMNS] for row in rows]
    for line, row in zip(lines, rows, strict=True):
        if not row["price_version"]:
            line[_ROW_COLUMNS.index("cost_nanos")] = "unpriced"
        if row["lower_bound"]:
            line[_ROW_COLUMNS.index("completion_tokens")] = f"{_AT_LEAST}{row['completion_tokens']}"
    headings = [name.removesuffix("_us").removesuffix("_nanos").removesuffix("_tokens") for name in _ROW_COLUMNS]
    text = _table(headings, lines, 6)
    return f"{text}\nmore: --cursor {cursor}" if cursor else text
