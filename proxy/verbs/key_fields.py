"""What an operator may say of a key on the command line, and what each word must look like."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation
from typing import Any

from proxy import bounds
from proxy.identity import fields
from proxy.identity.fields import Wrong
from proxy.policy.snapshot import Policy
from proxy.store.keys import PERIODS

__all__ = ["Wrong", "add_arguments", "parse", "seconds"]

_UNITS = {"m": 60, "h": 3600, "d": 86400}
_NANOS = 1_000_000_000  # in a dollar


def add_arguments(create: argparse.ArgumentParser) -> None:
    """The arguments of `weir keys create` that describe the key."""
    create.add_argument("--name", default="", help="a word for people")
    create.add_argument("--env", default="live", help="part of the key: live, test, ... (default live)")
    create.add_argument("--owner", metavar="USER", help="the person or team it belongs to")
    create.add_argument("--tag", action="append", default=[], metavar="NAME=VALUE", help="stands on every usage row")
    create.add_argument(
        "--endpoint", action="append", metavar="NAME", help=f"only these: {', '.join(fields.ENDPOINTS)}"
    )
    create.add_argument("--model", action="append", metavar="NAME", help="only these models")
    create.add_argument("--plan", metavar="NAME", help="a plan that narrows this key, besides its tenant's")
    create.add_argument("--network", action="append", metavar="CIDR", help="only from here, such as 10.0.0.0/8")
    create.add_argument("--right", action="append", metavar="NAME", help=f"may administer: {', '.join(fields.RIGHTS)}")
    create.add_argument("--expires-in", metavar="TIME", help="such as 90d, 12h or 30m")
    create.add_argument("--requests-per-minute", type=int, metavar="N", help="its own limit, below the tenant's")
    create.add_argument("--tokens-per-minute", type=int, metavar="N", help="its own limit, below the tenant's")
    create.add_argument("--concurrency", type=int, metavar="N", help="calls at one time")
    create.add_argument("--budget-usd", metavar="AMOUNT", help="such as 25 or 0.50, in a --budget-period")
    create.add_argument("--budget-tokens", type=int, metavar="N", help="in a --budget-period")
    create.add_argument("--budget-period", choices=PERIODS, help="day and month are those of UTC")


def parse(args: argparse.Namespace, policy: Policy) -> dict[str, Any]:
    """The fields of a KeyRow, but for those that a new key gets by itself. Raises Wrong."""
    fields.text(args.name, "--name")
    found: dict[str, Any] = {
        "owner": fields.text(args.owner, "--owner"),
        "plan": fields.plan(args.plan, policy, "--plan"),
        "tags": fields.tags(_pairs(args.tag)),
        "endpoints": fields.names(args.endpoint, "--endpoint", fields.ENDPOINTS),
        "models": fields.names(args.model, "--model"),
        "rights": fields.names(args.right, "--right", fields.RIGHTS),
        "networks": fields.networks(args.network, "--network"),
    }
    for name in fields.AMOUNTS:
        found[name] = fields.amount(getattr(args, name), f"--{name.replace('_', '-')}")
    found["budget_nanos"] = _nanos(args.budget_usd)
    found["budget_period"] = args.budget_period
    fields.budget(found, "--budget-period", "--budget-usd or --budget-tokens")
    return found


def _nanos(text: str | None) -> int | None:
    if text is None:
        return None
    try:
        nanos = Decimal(text) * _NANOS
        if nanos != nanos.to_integral_value() or not 1 <= nanos <= bounds.PRICE_DOLLARS_MAX * _NANOS:
            raise ValueError
    except (InvalidOperation, ValueError):
        what = f"must be above 0, at most {bounds.PRICE_DOLLARS_MAX}, with at most 9 digits after the point"
        raise Wrong(f"--budget-usd {text!r}: {what}") from None
    return int(nanos)


def _pairs(words: Sequence[str]) -> list[tuple[str, str]]:
    pairs = []
    for word in words:
        name, sign, value = word.partition("=")
        if not name or not sign:
            raise Wrong(f"--tag {word!r}: must be NAME=VALUE")
        pairs.append((name, value))
    return pairs


def seconds(text: str, option: str) -> int:
    """A length of time such as 90d, 12h or 30m, in seconds. Raises Wrong."""
    match = re.fullmatch(r"([1-9]\d{0,5})([mhd])", text)
    if match is None:
        raise Wrong(f"{option} {text!r}: must be a number and m, h or d, such as 90d")
    return int(match[1]) * _UNITS[match[2]]
