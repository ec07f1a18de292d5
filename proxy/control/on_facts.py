"""The operations that tell: tenants, policy, usage and the audit log."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import asdict

from proxy.audit import anchor, files
from proxy.audit.chain import Entry, to_line
from proxy.audit.verify import Walk
from proxy.call import Principal
from proxy.clock import wall_us
from proxy.control import facts
from proxy.control.office import Answer, Ask, Handler, Office, page, where
from proxy.control.problems import invalid, not_found
from proxy.control.table import ELSEWHERE
from proxy.identity.keys import principal_of
from proxy.identity.roles import Actor, allowed, may
from proxy.policy.effective import Effective, effective, visible_models
from proxy.policy.snapshot import Policy
from proxy.store.store import Filters, Head
from proxy.store.usage import Sums

# === tenants and policy ===


def _line(actor: Actor, source: str) -> str:
    """A line of the policy; where its directory is on the host is the platform's to know."""
    return source if actor.tenant is None else source.rpartition("/")[2]


def _tenant(actor: Actor, policy: Policy, name: str) -> facts.Tenant:
    tenant = policy.tenants[name]
    plan = policy.plans[tenant.plan]
    listed = [rights.endpoints for rights in (plan.rights, tenant.rights) if rights.endpoints is not None]
    shared = [word for word in listed[0] if all(word in words for words in listed)] if listed else None
    return facts.Tenant(
        name=name,
        plan=tenant.plan,
        status=tenant.status,
        endpoints=shared,
        models=list(visible_models(policy, Principal(name, ""))),
        source=_line(actor, tenant.source),
    )


async def list_tenants(office: Office, ask: Ask) -> Answer:
    """Tenants in the caller's reach."""
    policy = office.policies.current()
    tenant, _ = where(ask.actor, "tenants.read", None)

    async def names(after: tuple[Any, ...] | None, limit: int) -> list[str]:
        return [name for name in sorted(policy.tenants) if tenant in (None, name) and (not after or name > after[0])][
            :limit
        ]

    found, following = await page(office, ask, (tenant,), names, lambda name: (name,))
    return Answer(facts.TenantPage([_tenant(ask.actor, policy, name) for name in found], following))


async def get_tenant(office: Office, ask: Ask) -> Answer:
    """One tenant."""
    policy, name = office.policies.current(), ask.names["tenant"]
    where(ask.actor, "tenants.read", None)
    if not allowed(ask.actor, "tenants.read", name) or name not in policy.tenants:
        raise not_found()
    return Answer(_tenant(ask.actor, policy, name))


async def get_policy(office: Office, ask: Ask) -> Answer:
    """What is in use."""
    may(ask.actor, "policy.read", ask.actor.tenant)
    policy = office.policies.current()
    return Answer(
        facts.Revision(version=policy.version, generation=office.policies.generation(), origin=office.policies.origin)
    )


async def list_revisions(office: Office, ask: Ask) -> Answer:
    """What the hosts published, for who may see the platform's facts."""
    may(ask.actor, "policy.read", None)
    found, following = await page(
        office, ask, (), office.store.revisions_page, lambda one: (one.published_us, one.host, one.number)
    )
    return Answer(facts.PolicyRevisionPage([facts.PolicyRevision(**asdict(one)) for one in found], following))


async def get_effective(office: Office, ask: Ask) -> Answer:
    """The verdict on a key, or on a tenant's keys that narrow nothing."""
    asked: facts.EffectiveAsked = ask.query
    policy = office.policies.current()
    if asked.key_id is not None and asked.tenant is not None:
        raise invalid("give a tenant or a key_id, not both", "$")
    where(ask.actor, "policy.read", None)
    revoked = False
    if asked.key_id is not None:
        row = await office.store.key_by_id(asked.key_id)
        seen = row is not None and allowed(ask.actor, "policy.read", row.tenant)
        if row is None or not seen or not allowed(ask.actor, "keys.read", row.tenant, row.owner):
            raise not_found()
        principal, revoked = principal_of(row), row.revoked_us is not None
    else:
        tenant = asked.tenant or ask.actor.tenant
        if tenant is None:
            raise invalid("say for which tenant or key_id", "$.tenant")
        if not allowed(ask.actor, "policy.read", tenant) or tenant not in policy.tenants:
            raise not_found()
        principal = Principal(tenant, "<each>")
    verdict = effective(policy, principal, asked.model, asked.endpoint, now_us=wall_us())
    if revoked:
        verdict = Effective("invalid_api_key", "", "the key is revoked", "")
    limits = [
        facts.EffectiveLimit(
            kind=one.kind, level=one.level, limit=one.limit, burst=one.burst, source=_line(ask.actor, one.source)
        )
        for one in verdict.limits
    ]
    return Answer(
        facts.EffectiveRight(
            allowed=verdict.allowed,
            refusal=verdict.refusal,
            reason=verdict.reason,
            source=_line(ask.actor, verdict.source),
            policy=policy.version,
            limits=limits,
        )
    )


# === usage ===


def _filters(ask: Ask) -> Filters:
    asked: facts.UsageAsked = ask.query
    tenant, owner = where(ask.actor, "usage.read", asked.tenant)
    return Filters(tenant, asked.model, asked.key_id, asked.since_us, asked.until_us, owner)


def _sums(line: Sums) -> facts.UsageSums:
    return msgspec.convert({**asdict(line), "group": list(line.group)}, facts.UsageSums)


async def get_usage(office: Office, ask: Ask) -> Answer:
    """A report, as `weir usage --json` gives it too."""
    by = ask.query.by.split(",")
    if len(set(by)) < len(by):
        raise invalid("a word stands twice", "$.by")
    report = await office.store.usage_by(by, _filters(ask))
    lines = [_sums(line) for line in report.lines]
    return Answer(facts.UsageReport(by=list(report.by), source=report.source, lines=lines, total=_sums(report.total)))


async def list_usage_rows(office: Office, ask: Ask) -> Answer:
    """Single calls."""
    filters = _filters(ask)
    sealed = (ask.operation.id, *asdict(filters).values())
    after = office.cursors.open(sealed, ask.query.cursor)
    rows, following = await office.store.usage_rows(filters, ask.query.limit, after[0] if after else None)
    return Answer(facts.UsageRows(rows, None if following is None else office.cursors.seal(sealed, (following,))))


# === audit ===


def _row(entry: Entry, reader: Actor) -> facts.AuditRow:
    row = msgspec.json.decode(to_line(entry), type=facts.AuditRow)
    if reader.tenant is not None and row.actor_tenant not in (None, reader.tenant):
        # Somebody of two tenants came over from the other: which one that is, and what they are there, is its own.
        row = msgspec.structs.replace(row, actor_tenant=ELSEWHERE, actor_role="")
    return row


async def list_audit(office: Office, ask: Ask) -> Answer:
    """The newest changes in the caller's reach."""
    asked: facts.AuditAsked = ask.query
    tenant, _ = where(ask.actor, "audit.read", asked.tenant)

    async def rows(after: tuple[Any, ...] | None, limit: int) -> list[Entry]:
        before = None if after is None else int(after[0])
        return await office.store.audit_rows(
            tenant=tenant, actor=asked.actor, action=asked.action, before=before, limit=limit
        )

    found, following = await page(office, ask, (tenant, asked.actor, asked.action), rows, lambda one: (one.seq,))
    return Answer(facts.AuditPage([_row(entry, ask.actor) for entry in found], following))


async def export_audit(office: Office, ask: Ask) -> Answer:
    """The whole chain, in the very bytes that `weir audit export` writes and `weir audit verify --file` reads."""
    may(ask.actor, "audit.read", None)

    async def lines() -> AsyncGenerator[bytes, None]:
        async with office.whole_log() as store:
            waiting: list[bytes] = []
            async for one in store.audit_all():
                if isinstance(one, Entry):
                    waiting.append(to_line(one) + b"\n")
                if len(waiting) >= 100:
                    yield b"".join(waiting)
                    waiting.clear()
            yield b"".join(waiting)

    return Answer(lines=lines())


async def verify_audit(office: Office, ask: Ask) -> Answer:
    """Walks the chain and compares it with this host's anchors."""
    may(ask.actor, "audit.read", None)
    async with office.whole_log() as store:
        # The anchors first: what is anchored after this look may be newer than the rows that are read. In a thread:
        # years of them take seconds to verify, and others ask meanwhile.
        anchors, wrong = await asyncio.to_thread(_anchors, office.settings.data_dir)
        walk, head = Walk(anchors), Head()
        for sentence in wrong:
            walk.find("anchor", 0, sentence)
        async for one in store.audit_all():
            if isinstance(one, Head):
                head = one
            else:
                walk.step(one)
    findings = walk.end((head.seq, head.hash))
    return Answer(
        facts.AuditVerified(
            whole=not findings,
            rows=walk.rows,
            last=walk.last_seq,
            anchors=len(anchors),
            anchored=walk.anchored_good,
            findings=[facts.AuditFinding(kind=one.kind, seq=one.seq, sentence=one.sentence) for one in findings],
        )
    )


def _anchors(data_dir: Path) -> tuple[list[anchor.Anchor], list[str]]:
    own = files.public_key(data_dir)
    publics = {} if own is None else {anchor.key_id(own): own}
    return anchor.read(files.read_lines(data_dir / files.ANCHORS), publics)


HANDLERS: dict[str, Handler] = {
    "list_tenants": list_tenants,
    "get_tenant": get_tenant,
    "get_policy": get_policy,
    "list_revisions": list_revisions,
    "get_effective": get_effective,
    "get_usage": get_usage,
    "list_usage_rows": list_usage_rows,
    "list_audit": list_audit,
    "export_audit": export_audit,
    "verify_audit": verify_audit,
}
