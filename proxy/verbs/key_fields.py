"""What an operator may say of a key on the command line, and what each word must look like."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation
from ipaddress import ip_network
from typing import Any, get_args

from proxy import bounds
from proxy.identity.roles import SERVICE_RIGHTS
from proxy.policy.process import Endpoint
from proxy.policy.snapshot import Policy
from proxy.store.keys import PERIODS

ENDPOINTS: tuple[str, ...] = get_args(Endpoint)
_UNITS = {"m": 60, "h": 3600, "d": 86400}
_NANOS = 1_000_000_000  # in a dollar
_TEXTS = ("name", "owner")


class Wrong(Exception):
    """What the operator asked for cannot be done; the text says what would be right."""


def add_arguments(create: argparse.ArgumentParser) -> None:
    """The arguments of `weir keys create` that describe the key."""
    create.add_argument("--name", default="", help="a word for people")
    create.add_argument("--env", default="live", help="part of the key: live, test, ... (default live)")
    create.add_argument("--owner", metavar="USER", help="the person or team it belongs to")
    create.add_argument("--tag", action="append", default=[], metavar="NAME=VALUE", help="stands on every usage row")
    create.add_argument("--endpoint", action="append", metavar="NAME", help=f"only these: {', '.join(ENDPOINTS)}")
    create.add_argument("--model", action="append", metavar="NAME", help="only these models")
    create.add_argument("--plan", metavar="NAME", help="a plan that narrows this key, besides its tenant's")
    create.add_argument("--network", action="append", metavar="CIDR", help="only from here, such as 10.0.0.0/8")
    create.add_argument(
        "--right", action="append", metavar="NAME", help=f"may administer: {', '.join(sorted(SERVICE_RIGHTS))}"
    )
    create.add_argument("--expires-in", metavar="TIME", help="such as 90d, 12h or 30m")
    create.add_argument("--requests-per-minute", type=int, metavar="N", help="its own limit, below the tenant's")
    create.add_argument("--tokens-per-minute", type=int, metavar="N", help="its own limit, below the tenant's")
    create.add_argument("--concurrency", type=int, metavar="N", help="calls at one time")
    create.add_argument("--budget-usd", metavar="AMOUNT", help="such as 25 or 0.50, in a --budget-period")
    create.add_argument("--budget-tokens", type=int, metavar="N", help="in a --budget-period")
    create.add_argument("--budget-period", choices=PERIODS, help="day and month are those of UTC")


def parse(args: argparse.Namespace, policy: Policy) -> dict[str, Any]:
    """The fields of a KeyRow, but for those that a new key gets by itself. Raises Wrong."""
    for name in _TEXTS:
        size = len((getattr(args, name) or "").encode())
        if size > bounds.KEY_TEXT_BYTES_MAX:
            raise Wrong(f"--{name}: {size} bytes; at most {bounds.KEY_TEXT_BYTES_MAX}")
    if args.plan is not None and args.plan not in policy.plans:
        raise Wrong(f"--plan {args.plan!r}: not in plans.yaml; there are: {', '.join(sorted(policy.plans))}")
    fields: dict[str, Any] = {
        "owner": args.owner,
        "plan": args.plan,
        "tags": _tags(args.tag),
        "endpoints": _names(args.endpoint, "--endpoint", ENDPOINTS),
        "models": _names(args.model, "--model"),
        "rights": _names(args.right, "--right", sorted(SERVICE_RIGHTS)),
        "networks": _networks(args.network),
    }
    for name in ("requests_per_minute", "tokens_per_minute", "concurrency", "budget_tokens"):
        fields[name] = _amount(getattr(args, name), f"--{name.replace('_', '-')}")
    fields["budget_nanos"] = _nanos(args.budget_usd)
    budget = fields["budget_nanos"] is not None or fields["budget_tokens"] is not None
    if budget != (args.budget_period is not None):
        raise Wrong(
            f"a budget and its period go together: give --budget-period {', '.join(PERIODS)}"
            if budget
            else "--budget-period: of what budget? give --budget-usd or --budget-tokens"
        )
    fields["budget_period"] = args.budget_period
    return fields


def _names(words: Sequence[str] | None, option: str, known: Sequence[str] | None = None) -> tuple[str, ...] | None:
    if words is None:
        return None
    if len(words) > bounds.KEY_NAMES_MAX:
        raise Wrong(f"{len(words)} times {option}: at most {bounds.KEY_NAMES_MAX}")
    for word in words:
        if known is not None and word not in known:
            raise Wrong(f"{option} {word!r}: must be one of {', '.join(known)}")
        if not word or len(word.encode()) > bounds.MODEL_BYTES_MAX:
            raise Wrong(f"{option} {word[:100]!r}: must have 1 to {bounds.MODEL_BYTES_MAX} bytes")
    return tuple(dict.fromkeys(words))


def _networks(words: Sequence[str] | None) -> tuple[str, ...] | None:
    if words is None:
        return None
    if len(words) > bounds.KEY_NETWORKS_MAX:
        raise Wrong(f"{len(words)} times --network: at most {bounds.KEY_NETWORKS_MAX}")
    found = []
    for word in words:
        try:
            found.append(str(ip_network(word)))
        except ValueError as error:
            raise Wrong(f"--network {word!r}: must be an address or a block such as 10.0.0.0/8 ({error})") from None
    return tuple(found)


def _amount(value: int | None, option: str) -> int | None:
    if value is not None and not 1 <= value <= bounds.LIMIT_MAX:
        raise Wrong(f"{option} {value}: must be 1 to {bounds.LIMIT_MAX}")
    return value


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


def _tags(words: Sequence[str]) -> tuple[tuple[str, str], ...]:
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


def seconds(text: str, option: str) -> int:
    """A length of time such as 90d, 12h or 30m, in seconds. Raises Wrong."""
    match = re.fullmatch(r"([1-9]\d{0,5})([mhd])", text)
    if match is None:
        raise Wrong(f"{option} {text!r}: must be a number and m, h or d, such as 90d")
    return int(match[1]) * _UNITS[match[2]]
