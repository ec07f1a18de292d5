"""`weir audit list|export|verify|key`: who changed what, and whether the record of it is whole."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from proxy import bounds, settings
from proxy.audit import anchor, files
from proxy.audit.chain import Entry, from_line, to_line
from proxy.audit.verify import Finding, Walk
from proxy.policy.load import PolicyErrors
from proxy.settings import Settings
from proxy.store.store import Head, SchemaMismatch, Store, StoreUnavailable
from proxy.verbs import config_argument

_ROWS_MAX = 1_000_000_000_000
_LINE_BYTES_MAX = 4 * bounds.AUDIT_JSON_BYTES_MAX  # two states and the rest, with room for what JSON escapes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `weir audit`."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    listing = actions.add_parser("list", help="the newest changes, and attempts that were refused")
    listing.add_argument("--tenant")
    listing.add_argument("--actor", metavar="ID", help="whose: as the listing shows it")
    listing.add_argument("--what", metavar="ACTION", help="such as keys.create, or keys for all about keys")
    listing.add_argument("--limit", type=int, default=50, metavar="N", help="default %(default)s")
    listing.add_argument("--before", type=int, metavar="ROW", help="only rows before this one: the next page")
    export = actions.add_parser("export", help="the whole log as JSON lines, oldest first")
    export.add_argument("--output", type=Path, metavar="FILE", help="instead of standard output")
    verify = actions.add_parser("verify", help="whether rows were changed, removed, moved or added; 1 when so")
    verify.add_argument("--file", type=Path, metavar="FILE", help="an export, instead of the database")
    verify.add_argument("--anchors", type=Path, metavar="FILE", help="instead of the data directory's")
    verify.add_argument(
        "--public-key",
        action="append",
        default=[],
        metavar="HEX",
        help="of who signed the anchors, instead of the data directory's; several may be given",
    )
    key = actions.add_parser("key", help="the public key of this host's anchors: keep it elsewhere")
    for action in (listing, export, verify, key):
        config_argument(action)
        action.add_argument("--json", action="store_true", help="for programs")


def run(args: argparse.Namespace) -> int:
    """Prints. 0 done; 1 when verify found something, or the question cannot be answered."""
    try:
        if args.action == "key":
            return _key(args)
        if args.action == "verify":
            return _verify(args)
        return asyncio.run(_list(args) if args.action == "list" else _export(args))
    except (PolicyErrors, SchemaMismatch, StoreUnavailable, ValueError, OSError) as error:
        print(f"weir audit: {error}", file=sys.stderr)
        return 1


def _key(args: argparse.Namespace) -> int:
    data_dir = settings.load(args.config).data_dir
    public = files.private_key(data_dir).public_key().public_bytes_raw()
    print(json.dumps({"public_key": public.hex(), "key_id": anchor.key_id(public)}) if args.json else public.hex())
    return 0


async def _list(args: argparse.Namespace) -> int:
    for option, number in (("--limit", args.limit), ("--before", args.before)):
        if number is not None and not 1 <= number <= _ROWS_MAX:
            raise ValueError(f"{option} is {number}; a number of at least 1 and at most {_ROWS_MAX} is expected.")
    store = Store.open(settings.load(args.config).database, readonly=True)
    try:
        await store.check_schema()
        rows = await store.audit_rows(
            tenant=args.tenant, actor=args.actor, action=args.what, before=args.before, limit=args.limit
        )
    finally:
        await store.close()
    if args.json:
        for row in rows:
            print(to_line(row).decode())
    else:
        _table(rows)
    return 0


def _table(rows: list[Entry]) -> None:
    lines = [["ROW", "TIME", "WHO", "FROM", "WHAT", "TENANT", "TARGET", "OUTCOME"]]
    for row in rows:
        time = datetime.fromtimestamp(row.at_us / 1e6, UTC).strftime("%Y-%m-%d %H:%M:%S")
        outcome = f"{row.outcome}: {row.reason}" if row.reason else row.outcome
        who = f"{row.actor_kind} {row.actor_id}"
        # What somebody else wrote must not move the reader's cursor.
        line = (str(row.seq), time, who, row.origin, row.action, row.tenant or "-", row.target, outcome)
        lines.append([cell if cell.isprintable() else ascii(cell)[1:-1] for cell in line])
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    for cells in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip())


async def _export(args: argparse.Namespace) -> int:
    store = Store.open(settings.load(args.config).database, readonly=True, patient=True)
    output = sys.stdout.buffer if args.output is None else args.output.open("wb")
    try:
        await store.check_schema()
        async for one in store.audit_all():
            if isinstance(one, Entry):
                output.write(to_line(one) + b"\n")
        output.flush()
    finally:
        if args.output is not None:
            output.close()
        await store.close()
    return 0


def _verify(args: argparse.Namespace) -> int:
    publics = [files.parse_public(text) for text in args.public_key]
    path: Path | None = args.anchors
    process = None
    if args.file is None or path is None or not publics:
        process = _settings(args)
        path = path or process.data_dir / files.ANCHORS
        if not publics:
            own = files.public_key(process.data_dir)
            publics = [] if own is None else [own]
    # The anchors first: what is anchored after this look may be newer than the rows that are read.
    lines = files.read_lines(path)
    anchors, wrong = anchor.read(lines, {anchor.key_id(public): public for public in publics})
    walk = Walk(anchors)
    if not lines and (args.anchors is not None or (process is not None and (process.data_dir / files.KEY).exists())):
        walk.find("anchor", 0, f"there are no anchors in {path}: was the file removed, or did no keeper run yet?")
    for sentence in wrong:
        walk.find("anchor", 0, sentence)
    if args.file is not None:
        for entry in _exported(args.file, walk):
            walk.step(entry)
        findings = walk.end()
    else:
        assert process is not None
        findings = asyncio.run(_walk(process.database, walk))
    _report(walk, findings, len(anchors), as_json=args.json)
    return 1 if findings else 0


def _settings(args: argparse.Namespace) -> Settings:
    try:
        return settings.load(args.config)
    except PolicyErrors as errors:
        if args.file is None or (args.config / "weir.yaml").exists():
            raise
        instead = "without it give --anchors FILE and --public-key HEX, which `weir audit key` prints on the host"
        raise ValueError(f"{errors}; {instead}") from None


def _exported(path: Path, walk: Walk) -> Iterator[Entry]:
    with path.open("rb") as file:
        number = 0
        while line := file.readline(_LINE_BYTES_MAX):
            number += 1
            try:
                yield from_line(line.removesuffix(b"\n"))
            except ValueError as error:
                # Where it stands tells which row it was to be.
                walk.find("changed", walk.last_seq + 1, f"line {number}, after row {walk.last_seq}: {error}")


async def _walk(database: str, walk: Walk) -> list[Finding]:
    store = Store.open(database, readonly=True, patient=True)
    head = Head()
    try:
        await store.check_schema()
        async for one in store.audit_all():
            if isinstance(one, Head):
                head = one
            else:
                walk.step(one)
    finally:
        await store.close()
    return walk.end((head.seq, head.hash))


def _report(walk: Walk, findings: list[Finding], anchors: int, *, as_json: bool) -> None:
    if as_json:
        body = {
            "rows": walk.rows,
            "last": walk.last_seq,
            "anchors": anchors,
            "anchored": walk.anchored_good,
            "findings": findings,
        }
        print(msgspec.json.encode(body).decode())
        return
    print(f"rows       {walk.rows}, the last is row {walk.last_seq}")
    print(f"anchors    {anchors}; up to row {walk.anchored_good} the log is as it was when it was signed for")
    for finding in findings:
        print(f"{finding.kind:<10} {finding.sentence}")
    print("not whole" if findings else "whole")
