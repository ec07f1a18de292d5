"""`weir admin`: how the platform's first administrator comes to be, and what people are where.

There is no default password. The operator of the host makes a token that works once and soon ends; whoever brings it
becomes the administrator and gets a session. All of it is in the audit log, in the operator's name.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from datetime import UTC, datetime

from proxy import bounds, settings
from proxy.clock import wall_us
from proxy.identity import fields
from proxy.identity.actor import CLI, By, operator
from proxy.identity.credentials import digest_of, new_id, new_token
from proxy.identity.roles import Actor, Forbidden
from proxy.policy.load import PolicyErrors
from proxy.settings import Settings
from proxy.store.store import BadData, Invite, NotDone, SchemaMismatch, Session, Store, StoreUnavailable, User
from proxy.verbs import config_argument, members
from proxy.verbs.key_fields import Wrong, seconds

_EXPIRES = "15m"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `weir admin`."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    bootstrap = actions.add_parser("bootstrap", help="make a token for the platform's first admin and print it, once")
    bootstrap.add_argument("--expires-in", default=_EXPIRES, metavar="TIME", help="at most 1h (default %(default)s)")
    bootstrap.add_argument("--another", action="store_true", help="although there is an admin, who could invite one")
    redeem = actions.add_parser("redeem", help="become what an invite says; the token is read from standard input")
    redeem.add_argument("--name", required=True, help="who you are, for people")
    redeem.add_argument("--email", help="for people")
    for action in (bootstrap, redeem, *members.add_arguments(actions)):
        config_argument(action)
        action.add_argument("--json", action="store_true", help="for programs")


def run(args: argparse.Namespace) -> int:
    """Does it. 0 done, 1 refused with a sentence on standard error."""
    try:
        process = settings.load(args.config)
        asyncio.run(_do(args, process))
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
        print(f"weir admin: {error}", file=sys.stderr)
        return 1
    return 0


async def _do(args: argparse.Namespace, process: Settings) -> None:
    actions = {"bootstrap": _bootstrap, "redeem": _redeem, **members.ACTIONS}
    store = Store.open(process.database)
    try:
        await store.check_schema()
        await actions[args.action](args, process, store)
    finally:
        await store.close()


async def _bootstrap(args: argparse.Namespace, process: Settings, store: Store) -> None:
    length = seconds(args.expires_in, "--expires-in")
    if length > bounds.BOOTSTRAP_SECONDS_MAX:
        raise Wrong(f"--expires-in {args.expires_in}: at most {bounds.BOOTSTRAP_SECONDS_MAX // 60}m")
    token, now_us = new_token("invite"), wall_us()
    made = Invite(
        invite_id=new_id("inv"),
        tenant=None,
        role="platform_admin",
        created_us=now_us,
        expires_us=now_us + length * 1_000_000,
        first_only=not args.another,
    )
    await store.bootstrap(made, digest_of(token), operator())
    if args.json:
        print(json.dumps({"invite_id": made.invite_id, "token": token, "expires_us": made.expires_us}))
        return
    until = datetime.fromtimestamp(made.expires_us / 1e6, UTC).strftime("%H:%M:%S UTC")
    print(f"token  {token}\n\nIt works once, until {until}, for whoever brings it: `weir admin redeem --name NAME`.")
    print("It is shown this once; Weir keeps only its digest. Tokens made before it no longer work.")


async def _redeem(args: argparse.Namespace, process: Settings, store: Store) -> None:
    name, email = fields.name(args.name, "--name"), fields.email(args.email, "--email")
    token = sys.stdin.readline(bounds.PEOPLE_TEXT_BYTES_MAX).strip()
    if not token:
        raise Wrong("no token: it is read from standard input, so that no list of processes shows it")
    now_us = wall_us()
    user = User(new_id("usr"), name, now_us, email)
    secret = new_token("session")
    session = Session(new_id("ses"), user.user_id, None, CLI, now_us, now_us + bounds.SESSION_SECONDS_MAX * 1_000_000)
    # Whoever brings a token is known by nothing else yet.
    bearer = By(Actor("invite", user.user_id, None, None), CLI)
    used = await store.redeem(digest_of(token), user, session, digest_of(secret), bearer)
    place = "the platform" if used.tenant is None else f"tenant {used.tenant}"
    if args.json:
        body = {"user_id": user.user_id, "role": used.role, "tenant": used.tenant, "session": secret}
        print(json.dumps(body))
    else:
        print(f"user     {user.user_id}\nrole     {used.role} of {place}\nsession  {secret}")
        print(f"\nThe session is shown this once and ends in {bounds.SESSION_SECONDS_MAX // 3600} hours.")
