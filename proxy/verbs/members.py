"""`weir admin invite|members|grant|revoke`: who is what where, by whoever has the host's files in hand."""

from __future__ import annotations

import argparse
import json
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

from msgspec.structs import asdict

from proxy import bounds
from proxy.clock import wall_us
from proxy.identity.actor import operator
from proxy.identity.credentials import digest_of, new_id, new_token
from proxy.identity.fields import Wrong
from proxy.identity.roles import ROLES, check_place
from proxy.policy.compile import compile_policy
from proxy.settings import Settings
from proxy.store.store import Invite, Store
from proxy.verbs import key_fields
from proxy.verbs.keys import desk_of

_PAGE_ROWS = 200


def add_arguments(actions: Any) -> list[argparse.ArgumentParser]:
    """The actions' own parsers, added to those of `weir admin`."""
    invite = actions.add_parser("invite", help="make a token that gives whoever brings it a role, and print it, once")
    invite.add_argument("--expires-in", default="24h", metavar="TIME", help="at most 7d (default %(default)s)")
    members = actions.add_parser("members", help="who is what where")
    members.add_argument("--user", metavar="USER_ID", help="of this person alone")
    grant = actions.add_parser("grant", help="give a person a role in a place, instead of the one they have there")
    revoke = actions.add_parser("revoke", help="take a person's role in a place; their sessions and keys there end")
    for action in (grant, revoke):
        action.add_argument("user_id", metavar="USER_ID", help="as `weir admin members` shows it")
    for action in (invite, grant):
        action.add_argument("--role", required=True, choices=ROLES, metavar="ROLE", help=", ".join(ROLES))
    for action in (invite, grant, revoke):
        action.add_argument("--tenant", help="in this tenant; without it, on the platform")
    members.add_argument("--tenant", help="in this tenant alone")
    return [invite, members, grant, revoke]


async def invite(args: argparse.Namespace, process: Settings, store: Store) -> None:
    """Keeps a role ready and prints the token of it."""
    _check(args, args.role)
    seconds = key_fields.seconds(args.expires_in, "--expires-in")
    if seconds > bounds.INVITE_SECONDS_MAX:
        raise Wrong(f"--expires-in {args.expires_in}: at most {bounds.INVITE_SECONDS_MAX // 86_400}d")
    token, now_us = new_token("invite"), wall_us()
    made = Invite(new_id("inv"), args.tenant, args.role, now_us, now_us + seconds * 1_000_000)
    await store.invite(made, digest_of(token), operator())
    if args.json:
        body = {"invite_id": made.invite_id, "tenant": made.tenant, "role": made.role, "expires_us": made.expires_us}
        print(json.dumps({**body, "token": token}))
        return
    print(
        f"token  {token}\n\nWho brings it becomes {args.role} {_place(args.tenant)}: `weir admin redeem --name NAME`,"
    )
    print(f"or POST /admin/v1/invites/redeem. It works once, until {_time(made.expires_us)}, and is shown this once.")


async def members(args: argparse.Namespace, process: Settings, store: Store) -> None:
    """Prints who is what where."""
    found = await store.memberships(args.user, args.tenant)
    if args.json:
        print(json.dumps([asdict(one) for one in found]))
        return
    names = await _names(store, args.tenant)
    table = [("USER ID", "NAME", "PLACE", "ROLE", "SINCE", "GRANTED BY")]
    table += [
        (
            one.user_id,
            _shown(names.get(one.user_id, "")),
            "the platform" if one.tenant is None else one.tenant,
            one.role,
            _time(one.granted_us),
            one.granted_by,
        )
        for one in found
    ]
    widths = [max(len(line[column]) for line in table) for column in range(len(table[0]))]
    for line in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


async def _names(store: Store, tenant: str | None) -> dict[str, str]:
    found: dict[str, str] = {}
    after = None
    while page := await store.users_page(tenant, after, _PAGE_ROWS):
        found.update({user.user_id: user.name for user in page})
        after = (page[-1].created_us, page[-1].user_id)
    return found


async def grant(args: argparse.Namespace, process: Settings, store: Store) -> None:
    """Gives a role."""
    _check(args, args.role)
    new = await store.grant_role(args.user_id, args.role, args.tenant, wall_us(), operator())
    _say(args, asdict(new), f"{new.user_id} is {new.role} {_place(new.tenant)}")


async def revoke(args: argparse.Namespace, process: Settings, store: Store) -> None:
    """Takes one."""
    await desk_of(process, store).revoke_role(args.user_id, args.tenant, operator())
    body = {"user_id": args.user_id, "tenant": args.tenant, "revoked": True}
    _say(args, body, f"{args.user_id} is nothing {_place(args.tenant)} any more")


ACTIONS: dict[str, Callable[[argparse.Namespace, Settings, Store], Awaitable[None]]] = {
    "invite": invite,
    "members": members,
    "grant": grant,
    "revoke": revoke,
}


def _check(args: argparse.Namespace, role: Any) -> None:
    """Raises Wrong for a tenant that the policy does not have, ValueError for a role that is not of that place."""
    tenants = compile_policy(args.config).tenants
    if args.tenant is not None and args.tenant not in tenants:
        raise Wrong(f"tenant {args.tenant!r} is not in {args.config}/tenants; there are: {', '.join(sorted(tenants))}")
    check_place(role, args.tenant)


def _say(args: argparse.Namespace, body: dict[str, Any], sentence: str) -> None:
    print(json.dumps(body) if args.json else sentence)


def _place(tenant: str | None) -> str:
    return "on the platform" if tenant is None else f"in tenant {tenant}"


def _time(us: int) -> str:
    return datetime.fromtimestamp(us / 1e6, UTC).strftime("%Y-%m-%d %H:%M UTC")


def _shown(text: str) -> str:
    return text if text.isprintable() else ascii(text)[1:-1]
