"""`weir explain`: which rule of which file and line decides, by the function that decides for real."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Iterator
from decimal import Decimal

from proxy import settings
from proxy._fastpath import key_digest, key_well_formed
from proxy.call import Principal
from proxy.clock import wall_us
from proxy.errors import KINDS
from proxy.identity import pepper
from proxy.identity.keys import principal_of
from proxy.policy.compile import compile_policy
from proxy.policy.effective import Effective, effective, find_model
from proxy.policy.problems import PolicyErrors
from proxy.policy.secrets import SecretMissing
from proxy.policy.snapshot import Model, Policy, Price
from proxy.settings import Settings
from proxy.store.store import BadData, KeyRow, SchemaMismatch, Store, StoreUnavailable
from proxy.tokens.tokenizer import choose
from proxy.verbs import config_argument

ALLOWED, REFUSED, CANNOT = 0, 1, 2  # exit codes
DEFAULT_ENDPOINT = "chat.completions"


class Wrong(Exception):
    """What was asked cannot be answered; the text says what would be right."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `weir explain`."""
    who = parser.add_mutually_exclusive_group(required=True)
    who.add_argument("--key", help="a key, its id, or - to read a key from standard input")
    who.add_argument("--tenant", help="a tenant: what its keys may do when they narrow nothing")
    parser.add_argument("--model", required=True, help="the model as a client names it")
    parser.add_argument("--endpoint", help=f"default: where the model is served, else {DEFAULT_ENDPOINT}")
    config_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Prints the verdict and what it rests on. 0 allowed, 1 refused, 2 when it cannot be told."""
    try:
        policy = compile_policy(args.config)
        principal, revoked = _who(args, settings.load(args.config))
    except (Wrong, PolicyErrors, SecretMissing, SchemaMismatch, StoreUnavailable, BadData, ValueError) as error:
        print(f"weir explain: {error}", file=sys.stderr)
        return CANNOT
    endpoint = args.endpoint or _endpoint(policy, args.model)
    verdict = effective(policy, principal, args.model, endpoint, now_us=wall_us())
    if revoked:
        verdict = Effective("invalid_api_key", "", "the key is revoked", "")
    print("\n".join(explained(policy, principal, args.model, endpoint, verdict)))
    return ALLOWED if verdict.allowed else REFUSED


def explained(policy: Policy, principal: Principal, model: str, endpoint: str, verdict: Effective) -> Iterator[str]:
    """The verdict in lines: what was asked, what decides, and every rule in force with its file and line."""
    yield f"policy    {policy.version}"
    yield f"key       {principal.key_id} of tenant {principal.tenant}"
    if verdict.tenant is not None and verdict.plan is not None:
        yield f"tenant    {verdict.tenant.name}, {verdict.tenant.status}  ({verdict.tenant.source})"
        yield f"plan      {verdict.plan.name}  ({verdict.plan.source}, chosen at {verdict.tenant.plan_source})"
    yield f"endpoint  {endpoint}"
    if verdict.model is None:
        yield f"model     {model}"
    else:
        name = "" if model in policy.models else ' through "*"'
        yield f"model     {model}{name}  ({verdict.model.source})"
    where = f"  ({verdict.source})" if verdict.source else ""
    if verdict.refusal is not None:
        status = KINDS[verdict.refusal].status
        yield f"verdict   refused, {status} {verdict.refusal}: {verdict.reason}{where}"
        return
    yield f"verdict   allowed: {verdict.reason}"
    for limit in verdict.limits:
        burst = f", burst {limit.burst}" if limit.burst else ""
        burst += f" ({limit.burst_source})" if limit.burst_source else ""
        yield f"limit     {limit.scope}: {limit.kind} {limit.limit}  ({limit.source}){burst}"
    if not verdict.limits:
        yield "limit     none"
    assert verdict.model is not None
    for target in verdict.model.targets:
        share = f"weight {target.weight}, priority {target.priority}"
        yield f"target    {target.upstream} as {target.model or model}, {share}  ({target.source})"
    yield f"price     {_price(verdict.model.price)}"
    yield f"tokens    {_tokens(verdict.model)}"


def _tokens(model: Model) -> str:
    """How its tokens are counted where the provider does not, and what says so."""
    choice = choose(model)
    how = {"estimate": "estimated from bytes", "file": f"counted by {choice.path}"}.get(choice.kind, choice.kind)
    family = f", family {choice.family}" if choice.family else ""
    thinks = ", may think in tokens that it never sends" if choice.reasoning else ""
    return f"{how}{family}{thinks}: {choice.reason}"


def _price(price: Price | None) -> str:
    if price is None:
        return "none: its rows have no cost"
    names = (("prompt", price.prompt), ("cached", price.cached), ("completion", price.completion))
    parts = ", ".join(f"{name} {Decimal(nanos).scaleb(-9).normalize():f}" for name, nanos in names)
    return f"{parts} dollars per million tokens, version {price.version}  ({price.source})"


def _endpoint(policy: Policy, model: str) -> str:
    found = find_model(policy, model)
    served = found.endpoints if found is not None else None
    return DEFAULT_ENDPOINT if served is None or DEFAULT_ENDPOINT in served else served[0]


def _who(args: argparse.Namespace, process: Settings) -> tuple[Principal, bool]:
    """The caller that is asked about, and whether its key is revoked."""
    if args.tenant is not None:
        return Principal(tenant=args.tenant, key_id="<each>"), False
    word = sys.stdin.readline().strip() if args.key == "-" else args.key
    row = asyncio.run(_row(process, word))
    if row is None:
        raise Wrong("no such key; `weir keys list` names them by id")
    return principal_of(row), row.revoked_us is not None


async def _row(process: Settings, word: str) -> KeyRow | None:
    """The key's row, by secret or by id. Makes nothing: a data directory without a key stays without."""
    store = Store.open(process.database, readonly=True)
    try:
        if not word.startswith("wk_"):
            return next((row for row in await store.list_keys() if row.key_id == word), None)
        if not key_well_formed(word.encode()):
            raise Wrong("the key has a typing error: its checksum is wrong")
        if process.pepper is None and not (process.data_dir / "secret.key").exists():
            raise Wrong(f"{process.data_dir / 'secret.key'} is missing: no key was made here yet")
        return await store.key_by_digest(key_digest(word.encode(), pepper.of(process.data_dir, process.pepper)))
    finally:
        await store.close()
