"""`weir keys create|list|revoke`: the keys of the tenants. A key's secret is printed once, when it is made."""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import sys
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from proxy import board, bounds, settings
from proxy._fastpath import Arena, key_digest
from proxy.clock import boot_id, wall_us
from proxy.identity import keys, pepper
from proxy.policy.compile import compile_policy
from proxy.policy.load import PolicyErrors
from proxy.settings import Settings
from proxy.store.store import BadData, KeyRow, SchemaMismatch, Store, StoreUnavailable

RUN_KEY_NAME = "weir run"
RUN_KEY_HOURS = 24
_UNITS = {"m": 60, "h": 3600, "d": 86400}


class Wrong(Exception):
    """What the operator asked for cannot be done; the text says what would be right."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `weir keys`."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    create = actions.add_parser("create", help="make a key and print its secret, once")
    create.add_argument("--tenant", required=True)
    create.add_argument("--name", default="", help="a word for people")
    create.add_argument("--env", default="live", help="part of the key: live, test, ... (default live)")
    create.add_argument("--owner", help="the person or team it belongs to")
    create.add_argument("--tag", action="append", default=[], metavar="NAME=VALUE", help="stands on every usage row")
    create.add_argument("--endpoint", action="append", metavar="NAME", help="only these endpoints")
    create.add_argument("--model", action="append", metavar="NAME", help="only these models")
    create.add_argument("--expires-in", metavar="TIME", help="such as 90d, 12h or 30m")
    listing = actions.add_parser("list", help="the keys, without their secrets")
    listing.add_argument("--tenant")
    revoke = actions.add_parser("revoke", help="end a key: the next request with it is refused")
    revoke.add_argument("key_id")
    for action in (create, listing, revoke):
        action.add_argument("--config", type=Path, default=Path("config"))
        action.add_argument("--json", action="store_true")


def run(args: argparse.Namespace) -> int:
    """Does it. 0 done, 1 refused with a sentence on standard error."""
    try:
        process = settings.load(args.config)
        actions: dict[str, Callable[[argparse.Namespace, Settings], Coroutine[Any, Any, None]]] = {
            "create": _create,
            "list": _list,
            "revoke": _revoke,
        }
        asyncio.run(actions[args.action](args, process))
    except (Wrong, PolicyErrors, SchemaMismatch, StoreUnavailable, BadData, ValueError) as error:
        print(f"weir keys: {error}", file=sys.stderr)
        return 1
    return 0


async def _create(args: argparse.Namespace, process: Settings) -> None:
    tenants = compile_policy(args.config).tenants
    if args.tenant not in tenants:
        raise Wrong(f"tenant {args.tenant!r} is not in {args.config}/tenants; there are: {', '.join(sorted(tenants))}")
    secret, row = new_row(
        process,
        args.tenant,
        args.name,
        env=args.env,
        owner=args.owner,
        tags=_tags(args.tag),
        endpoints=args.endpoint,
        models=args.model,
        seconds=_seconds(args.expires_in),
    )
    store = Store.open(process.database)
    try:
        await store.insert_key(row)
    finally:
        await store.close()
    _announce(process, board.KEYS_CREATED)
    if args.json:
        print(json.dumps({**_public(row), "key": secret}))
    else:
        print(f"key id  {row.key_id}\nkey     {secret}\n\nThe key is shown this once; Weir keeps only its digest.")


async def _list(args: argparse.Namespace, process: Settings) -> None:
    store = Store.open(process.database, readonly=True)
    try:
        rows = await store.list_keys(args.tenant)
    finally:
        await store.close()
    if args.json:
        print(json.dumps([_public(row) for row in rows]))
        return
    table = [("KEY ID", "TENANT", "NAME", "ENDS", "STATE", "LAST 4")]
    table += [(r.key_id, r.tenant, r.name, _time(r.expires_us), _state(r), r.last4) for r in rows]
    widths = [max(len(line[column]) for line in table) for column in range(len(table[0]))]
    for line in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


async def _revoke(args: argparse.Namespace, process: Settings) -> None:
    store = Store.open(process.database)
    try:
        done = await store.revoke_key(args.key_id, wall_us())
    finally:
        await store.close()
    if not done:
        raise Wrong(f"no key {args.key_id!r} that is still in force; `weir keys list` names them")
    _announce(process, board.KEYS_GENERATION)
    print(json.dumps({"key_id": args.key_id, "revoked": True}) if args.json else f"{args.key_id} is revoked")


def new_row(
    process: Settings,
    tenant: str,
    name: str,
    *,
    env: str = "live",
    owner: str | None = None,
    tags: tuple[tuple[str, str], ...] = (),
    endpoints: list[str] | None = None,
    models: list[str] | None = None,
    seconds: int | None = None,
) -> tuple[str, KeyRow]:
    """A new secret and the row that is stored of it."""
    secret = keys.new_secret(env)
    now_us = wall_us()
    row = KeyRow(
        key_id=keys.new_key_id(),
        digest=key_digest(secret.encode(), pepper.of(process.data_dir, process.pepper)),
        tenant=tenant,
        name=name,
        owner=owner,
        tags=tags,
        endpoints=None if endpoints is None else tuple(endpoints),
        models=None if models is None else tuple(models),
        last4=secret[-4:],
        created_us=now_us,
        expires_us=None if seconds is None else now_us + seconds * 1_000_000,
        revoked_us=None,
    )
    return secret, row


def replace_run_key(process: Settings, tenant: str) -> str:
    """The key that `weir run` prints: made anew, valid for a day, its predecessor revoked. Returns the secret."""

    async def replace() -> str:
        secret, row = new_row(process, tenant, RUN_KEY_NAME, env="run", seconds=RUN_KEY_HOURS * 3600)
        store = Store.open(process.database)
        try:
            await store.revoke_keys_named(tenant, RUN_KEY_NAME, wall_us())
            await store.insert_key(row)
        finally:
            await store.close()
        _announce(process, board.KEYS_GENERATION, board.KEYS_CREATED)
        return secret

    return asyncio.run(replace())


def _announce(process: Settings, first: int, *more: int) -> None:
    """Makes every worker of this host look again. After the commit: a word raised before it would announce nothing."""
    arena = Arena(str(process.data_dir / "arena"), boot_id())
    for word in (first, *more):
        arena.raise_word(word)
    arena.close()


def _tags(words: list[str]) -> tuple[tuple[str, str], ...]:
    tags = []
    for word in words:
        name, sign, value = word.partition("=")
        if not name or not sign:
            raise Wrong(f"--tag {word!r}: must be NAME=VALUE")
        tags.append((name, value))
    if len(tags) > bounds.TAGS_MAX:
        raise Wrong(f"{len(tags)} tags: a key has at most {bounds.TAGS_MAX}")
    size = sum(len(name.encode()) + len(value.encode()) for name, value in tags)
    if size > bounds.TAGS_BYTES_MAX:
        raise Wrong(f"the tags have {size} bytes together: at most {bounds.TAGS_BYTES_MAX}")
    return tuple(tags)


def _seconds(text: str | None) -> int | None:
    if text is None:
        return None
    match = re.fullmatch(r"([1-9]\d{0,5})([mhd])", text)
    if match is None:
        raise Wrong(f"--expires-in {text!r}: must be a number and m, h or d, such as 90d")
    return int(match[1]) * _UNITS[match[2]]


def _state(row: KeyRow) -> str:
    if row.revoked_us is not None:
        return "revoked"
    return "expired" if row.expires_us is not None and row.expires_us <= wall_us() else "active"


def _time(us: int | None) -> str:
    return "never" if us is None else datetime.fromtimestamp(us / 1e6, UTC).strftime("%Y-%m-%d %H:%M UTC")


def _public(row: KeyRow) -> dict[str, object]:
    return {
        "key_id": row.key_id,
        "tenant": row.tenant,
        "name": row.name,
        "owner": row.owner,
        "tags": dict(row.tags),
        "endpoints": row.endpoints,
        "models": row.models,
        "last4": row.last4,
        "created_us": row.created_us,
        "expires_us": row.expires_us,
        "state": _state(row),
    }
