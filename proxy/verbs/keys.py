"""`weir keys create|list|rotate|revoke`: the keys of the tenants. A key's secret is printed once, when it is made.

Every change is recorded in the audit log in the name of the operator who gave the command.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

from proxy import board, settings
from proxy.clock import wall_us
from proxy.identity import desk, pepper
from proxy.identity.actor import operator
from proxy.identity.announce import announce
from proxy.identity.desk import Desk
from proxy.identity.roles import Forbidden
from proxy.policy.compile import compile_policy
from proxy.policy.load import PolicyErrors
from proxy.policy.schema import EVERY
from proxy.settings import Settings
from proxy.store.keys import described
from proxy.store.store import BadData, KeyRow, NotDone, SchemaMismatch, Store, StoreUnavailable
from proxy.verbs import config_argument, key_fields
from proxy.verbs.key_fields import Wrong

RUN_KEY_NAME = "weir run"
RUN_KEY_HOURS = 24
_OVERLAP = "24h"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `weir keys`."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    create = actions.add_parser("create", help="make a key and print its secret, once")
    create.add_argument("--tenant", required=True)
    key_fields.add_arguments(create)
    listing = actions.add_parser("list", help="the keys, without their secrets")
    listing.add_argument("--tenant")
    listing.add_argument("--user", metavar="OWNER")
    rotate = actions.add_parser("rotate", help="make a successor and print its secret, once; the old key stops later")
    rotate.add_argument("key_id")
    rotate.add_argument(
        "--overlap", default=_OVERLAP, metavar="TIME", help=f"both work so long: 0, or such as 7d (default {_OVERLAP})"
    )
    rotate.add_argument("--env", default="live", help="part of the key: live, test, ... (default live)")
    revoke = actions.add_parser("revoke", help="end a key, or all of a tenant or user: the next request is refused")
    revoke.add_argument("key_id", nargs="?")
    revoke.add_argument("--tenant", help="every key of this tenant")
    revoke.add_argument("--user", metavar="OWNER", help="every key of this owner, with --tenant only those there")
    revoke.add_argument("--reason", default="", help="for the record")
    for action in (create, listing, rotate, revoke):
        config_argument(action)
        action.add_argument("--json", action="store_true")


def run(args: argparse.Namespace) -> int:
    """Does it. 0 done, 1 refused with a sentence on standard error."""
    try:
        process = settings.load(args.config)
        actions: dict[str, Callable[[argparse.Namespace, Settings], Coroutine[Any, Any, None]]] = {
            "create": _create,
            "list": _list,
            "rotate": _rotate,
            "revoke": _revoke,
        }
        asyncio.run(actions[args.action](args, process))
    except (
        Wrong,
        NotDone,
        Forbidden,
        PolicyErrors,
        SchemaMismatch,
        StoreUnavailable,
        BadData,
        ValueError,
    ) as error:
        print(f"weir keys: {error}", file=sys.stderr)
        return 1
    return 0


async def _create(args: argparse.Namespace, process: Settings) -> None:
    policy = compile_policy(args.config)
    tenants = policy.tenants
    if args.tenant not in tenants:
        raise Wrong(f"tenant {args.tenant!r} is not in {args.config}/tenants; there are: {', '.join(sorted(tenants))}")
    secret, row = new_row(
        process,
        args.tenant,
        args.name,
        env=args.env,
        seconds=None if args.expires_in is None else key_fields.seconds(args.expires_in, "--expires-in"),
        **key_fields.parse(args, policy),
    )
    for model in () if EVERY in policy.models else row.models or ():
        if model not in policy.models:  # it may yet be written
            print(f"weir keys: note: no entry of models serves {model!r}, so this key cannot use it", file=sys.stderr)
    async with _open(process) as store:
        row = await desk_of(process, store).create_key(row, operator())
    _show(row, secret, args)


@asynccontextmanager
async def _open(process: Settings, *, readonly: bool = False) -> AsyncIterator[Store]:
    """The database, of this version's schema. Raises SchemaMismatch, StoreUnavailable."""
    store = Store.open(process.database, readonly=readonly)
    try:
        await store.check_schema()
        yield store
    finally:
        await store.close()


def _show(row: KeyRow, secret: str, args: argparse.Namespace) -> None:
    if args.json:
        print(json.dumps({**_public(row), "key": secret}))
    else:
        print(f"key id  {row.key_id}\nkey     {secret}\n\nThe key is shown this once; Weir keeps only its digest.")


async def _list(args: argparse.Namespace, process: Settings) -> None:
    async with _open(process, readonly=True) as store:
        rows = await store.list_keys(args.tenant, args.user)
    if args.json:
        print(json.dumps([_public(row) for row in rows]))
        return
    table = [("KEY ID", "TENANT", "NAME", "OWNER", "ENDS", "LAST USED", "STATE", "LAST 4")]
    table += [
        (
            row.key_id,
            row.tenant,
            row.name,
            row.owner or "",
            _time(row.ends_us),
            _time(row.last_used_us),
            desk.state_of(row, wall_us()),
            row.last4,
        )
        for row in rows
    ]
    widths = [max(len(line[column]) for line in table) for column in range(len(table[0]))]
    for line in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


async def _rotate(args: argparse.Namespace, process: Settings) -> None:
    overlap = 0 if args.overlap == "0" else key_fields.seconds(args.overlap, "--overlap")
    async with _open(process) as store:
        secret, row = await desk_of(process, store).rotate_key(args.key_id, args.env, overlap, operator())
    _show(row, secret, args)


async def _revoke(args: argparse.Namespace, process: Settings) -> None:
    if (args.key_id is None) == (args.tenant is None and args.user is None):
        raise Wrong("which keys? give one KEY_ID, or --tenant or --user or both")
    async with _open(process) as store:
        changing = desk_of(process, store)
        if args.key_id is not None:
            await changing.revoke_key(args.key_id, operator(), args.reason)
            done = [args.key_id]
        else:
            done = await changing.revoke_keys(operator(), tenant=args.tenant, owner=args.user, reason=args.reason)
    if args.json:
        print(json.dumps({"key_ids": done, "revoked": len(done)}))
    elif args.key_id is not None:
        print(f"{args.key_id} is revoked")
    elif done:
        print(f"{len(done)} key{'s are' if len(done) > 1 else ' is'} revoked")
    else:
        whose = [f"{option} {word!r}" for option, word in (("--tenant", args.tenant), ("--user", args.user)) if word]
        print(f"no key is revoked: none of {' and '.join(whose)} is valid")


def new_row(process: Settings, tenant: str, name: str, **fields: Any) -> tuple[str, KeyRow]:
    """A new secret and the row that is stored of it, by the pepper of these settings."""
    return desk.new_row(pepper.of(process.data_dir, process.pepper), tenant, name, **fields)


def desk_of(process: Settings, store: Store) -> Desk:
    """Where this host's keys are changed."""
    return Desk(
        store,
        lambda: pepper.of(process.data_dir, process.pepper),
        lambda *words: announce(process.data_dir, process.redis, *words),
    )


def replace_run_key(process: Settings, tenant: str) -> str:
    """The key that `weir run` prints: made anew, valid for a day, its predecessor revoked. Returns the secret."""

    async def replace() -> str:
        secret, row = new_row(process, tenant, RUN_KEY_NAME, env="run", seconds=RUN_KEY_HOURS * 3600)
        async with _open(process) as store:
            await store.revoke_keys(
                wall_us(), operator(), tenant=tenant, name=RUN_KEY_NAME, reason="weir run starts anew"
            )
            await store.insert_key(row, operator())
        await announce(process.data_dir, process.redis, board.KEYS_GENERATION, board.KEYS_CREATED)
        return secret

    return asyncio.run(replace())


def _time(us: int | None) -> str:
    return "never" if us is None else datetime.fromtimestamp(us / 1e6, UTC).strftime("%Y-%m-%d %H:%M UTC")


def _public(row: KeyRow) -> dict[str, object]:
    return {**described(row), "last_used_us": row.last_used_us, "state": desk.state_of(row, wall_us())}
