"""The operations on API keys."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import UNSET
from msgspec.structs import asdict

from proxy.clock import wall_us
from proxy.control import nouns
from proxy.control.office import Answer, Ask, Handler, Office, page, where
from proxy.control.problems import invalid, not_found
from proxy.identity import fields
from proxy.identity.desk import state_of
from proxy.identity.roles import allowed, reach
from proxy.store.keys import KeyRow, described, etag_of


def shown(row: KeyRow) -> dict[str, Any]:
    """A key as `weir keys list --json` has it too."""
    return {**described(row), "last_used_us": row.last_used_us, "state": state_of(row, wall_us())}


def _key(row: KeyRow) -> nouns.Key:
    return msgspec.convert(shown(row), nouns.Key)


def _made(row: KeyRow, secret: str | None) -> nouns.KeyMade:
    return msgspec.convert({**shown(row), "key": secret}, nouns.KeyMade)


async def list_keys(office: Office, ask: Ask) -> Answer:
    """Keys in the caller's reach."""
    asked: nouns.KeyList = ask.query
    tenant, own = where(ask.actor, "keys.read", asked.tenant)
    if own is not None and asked.owner not in (None, own):
        return Answer(nouns.KeyPage([], None))  # somebody else's are none
    owner = own or asked.owner
    rows, following = await page(
        office,
        ask,
        (tenant, owner),
        lambda after, limit: office.store.keys_page(tenant, owner, after, limit),
        lambda row: (row.created_us, row.key_id),
    )
    return Answer(nouns.KeyPage([_key(row) for row in rows], following))


async def get_key(office: Office, ask: Ask) -> Answer:
    """One key."""
    row = await _visible(office, ask)
    return Answer(_key(row), etag_of(row))


async def _visible(office: Office, ask: Ask) -> KeyRow:
    where(ask.actor, "keys.read", None)
    row = await office.store.key_by_id(ask.names["key_id"])
    if row is None or not allowed(ask.actor, "keys.read", row.tenant, row.owner):
        raise not_found()
    return row


async def create_key(office: Office, ask: Ask) -> Answer:
    """A new key."""
    body: nouns.KeyNew = ask.body
    tenant = body.tenant or ask.actor.tenant
    if tenant is None:
        raise invalid("say which tenant: the platform's people have none of their own", "$.tenant")
    owner = body.owner
    if owner is None and reach(ask.actor, "keys.create") == "own":
        owner = ask.actor.id
    if allowed(ask.actor, "keys.create", tenant, owner):
        # Whoever may not is told so by the writer, and not what there is.
        policy = office.policies.current()
        if tenant not in policy.tenants:
            raise invalid("there is no such tenant in the policy", "$.tenant")
        if body.plan is not None and body.plan not in policy.plans:
            raise invalid("there is no such plan in the policy", "$.plan")
    values: dict[str, Any] = {name: getattr(body, name) for name in fields.AMOUNTS}
    values |= {
        "owner": fields.text(owner, "$.owner"),
        "plan": body.plan,
        "tags": fields.tags(list(body.tags.items())),
        "endpoints": fields.names(body.endpoints, "$.endpoints"),
        "models": fields.names(body.models, "$.models"),
        "rights": fields.names(body.rights, "$.rights", fields.RIGHTS),
        "networks": fields.networks(body.networks, "$.networks"),
        "budget_nanos": body.budget_nanos,
        "budget_period": body.budget_period,
    }
    fields.budget(values, "$.budget_period", "$.budget_nanos or $.budget_tokens")
    secret, row = office.desk.new_row(
        tenant, fields.text(body.name, "$.name") or "", env=body.env, seconds=body.expires_in_seconds, **values
    )
    ask.keep(lambda made: _made(made, None))
    made = await office.desk.create_key(row, ask.by)
    return Answer(_made(made, secret), etag_of(made))


async def change_key(office: Office, ask: Ask) -> Answer:
    """Another name, other tags, other limits."""
    changes = {name: value for name, value in asdict(ask.body).items() if value is not UNSET}
    if "name" in changes:
        fields.text(changes["name"], "$.name")
    if "tags" in changes:
        changes["tags"] = fields.tags(list(changes["tags"].items()))
    row = await office.desk.change_key(ask.names["key_id"], changes, ask.match, ask.by)
    return Answer(_key(row), etag_of(row))


async def rotate_key(office: Office, ask: Ask) -> Answer:
    """A successor."""
    body: nouns.KeyRotation = ask.body
    ask.keep(lambda made: _made(made, None))
    secret, row = await office.desk.rotate_key(ask.names["key_id"], body.env, body.overlap_seconds, ask.by)
    return Answer(_made(row, secret), etag_of(row))


async def revoke_key(office: Office, ask: Ask) -> Answer:
    """The end of one."""
    revoked = nouns.KeysRevoked([ask.names["key_id"]], 1)
    ask.keep(lambda _: revoked)
    await office.desk.revoke_key(ask.names["key_id"], ask.by, ask.body.reason)
    return Answer(revoked)


async def revoke_keys(office: Office, ask: Ask) -> Answer:
    """The end of many."""
    body: nouns.KeysRevocation = ask.body
    tenant = body.tenant or ask.actor.tenant
    owner = body.owner
    if owner is None and reach(ask.actor, "keys.revoke") == "own":
        owner = ask.actor.id
    if tenant is None and owner is None:
        raise invalid("say which keys: of a tenant, or of an owner", "$.tenant")
    ended: dict[str, None] = {}

    def kept(part: list[str]) -> nouns.KeysRevoked:
        ended.update(dict.fromkeys(part))
        return nouns.KeysRevoked(list(ended), len(ended))

    ask.keep(kept)
    done = await office.desk.revoke_keys(ask.by, tenant=tenant, owner=owner, reason=body.reason)
    return Answer(nouns.KeysRevoked(done, len(done)))


HANDLERS: dict[str, Handler] = {
    "list_keys": list_keys,
    "create_key": create_key,
    "get_key": get_key,
    "change_key": change_key,
    "rotate_key": rotate_key,
    "revoke_key": revoke_key,
    "revoke_keys": revoke_keys,
}
