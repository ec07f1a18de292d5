"""Tenants, policy, usage and the audit log, as the admin API speaks of them. See `nouns`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from proxy.control.nouns import Asked, Cursor, Id, Instant, Limit, ModelName, PersonText
from proxy.control.persons import InTenant
from proxy.policy.patterns import whole
from proxy.policy.process import Endpoint
from proxy.policy.schema import TenantName
from proxy.store.usage import By as Group

# === tenants and policy ===


class Tenant(Struct, frozen=True, kw_only=True):
    """A tenant as the policy in force has it. `source` is the line of the file that says so."""

    name: str
    plan: str
    status: Literal["active", "suspended"]
    endpoints: list[str] | None
    models: list[str]
    source: str


class TenantPage(Struct, frozen=True):
    """Tenants by name."""

    items: list[Tenant]
    next: str | None


class Revision(Struct, frozen=True, kw_only=True):
    """The policy in use. `origin`: `snapshot` is what this host's workers serve by; `files` where none runs here."""

    version: str
    generation: int
    origin: Literal["snapshot", "files"]


class PolicyRevision(Struct, frozen=True, kw_only=True):
    """A policy that a host published. `host` is its data directory's id; `tenants` and so on are how many it has."""

    host: str
    number: int
    version: str
    published_us: int
    generation: int
    tenants: int
    plans: int
    models: int
    upstreams: int


class PolicyRevisionPage(Struct, frozen=True):
    """Revisions of every host, newest first."""

    items: list[PolicyRevision]
    next: str | None


class EffectiveAsked(Asked, frozen=True, kw_only=True):
    """For which key, or for any key of which tenant, at which model and endpoint."""

    model: ModelName
    endpoint: Endpoint = "chat.completions"
    tenant: TenantName | None = None
    key_id: Id | None = None


class EffectiveLimit(Struct, frozen=True, kw_only=True):
    """One limit in force and the line that sets it."""

    kind: str
    level: str
    limit: int
    burst: int
    source: str


class EffectiveRight(Struct, frozen=True, kw_only=True):
    """The verdict, by the function that decides for real."""

    allowed: bool
    refusal: str | None
    reason: str
    source: str
    policy: str
    limits: list[EffectiveLimit]


# === usage and audit ===


class UsageAsked(Asked, frozen=True, kw_only=True):
    """Which usage."""

    tenant: TenantName | None = None
    model: ModelName | None = None
    key_id: Id | None = None
    since_us: Instant | None = None
    until_us: Instant | None = None


class UsageReportAsked(UsageAsked, frozen=True, kw_only=True):
    """`by`: words joined by commas, of tenant, model, key, user, tag, day."""

    by: Annotated[
        str, Meta(pattern=whole(r"(tenant|model|key|user|tag|day)(,(tenant|model|key|user|tag|day)){0,5}"))
    ] = "tenant"


class UsageSums(Struct, frozen=True, kw_only=True):
    """One line of a report."""

    group: list[str]
    requests: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    reasoning_tokens: int
    audio_tokens: int
    cost_nanos: int
    unpriced: int
    estimated: int
    lower_bound: int


class UsageReport(Struct, frozen=True, kw_only=True):
    """Sums per group, dearest first; by day in order."""

    by: list[Group]
    source: Literal["rollups", "rows"]
    lines: list[UsageSums]
    total: UsageSums


class UsageRowsAsked(UsageAsked, frozen=True, kw_only=True):
    """Single calls, a page of them."""

    limit: Limit = 50
    cursor: Cursor | None = None


class UsageRows(Struct, frozen=True):
    """Single calls, newest first, as `weir usage --rows --json` has them."""

    items: list[dict[str, Any]]
    next: str | None


class AuditAsked(InTenant, frozen=True, kw_only=True):
    """`action`: a whole one such as keys.create, or its first word; `actor`: an id."""

    actor: PersonText | None = None
    action: Annotated[str, Meta(pattern=whole(r"[a-z.]{1,32}"))] | None = None


class AuditRow(Struct, frozen=True, kw_only=True):
    """One row of the log. `before` and `after` are JSON texts, whose hash is in the chain to the letter.

    Below the platform an `actor_tenant` that is not the reader's own is `~elsewhere`.
    """

    seq: int
    at_us: int
    actor_kind: str
    actor_id: str
    actor_role: str
    actor_tenant: str | None
    origin: str
    action: str
    tenant: str | None
    target: str
    before: str | None
    after: str | None
    outcome: Literal["ok", "refused"]
    reason: str
    previous: str
    hash: str


class AuditPage(Struct, frozen=True):
    """Rows, newest first."""

    items: list[AuditRow]
    next: str | None


class AuditFinding(Struct, frozen=True, kw_only=True):
    """Something that does not hold; `seq` 0 is no row of the log."""

    kind: str
    seq: int
    sentence: str


class AuditVerified(Struct, frozen=True, kw_only=True):
    """Whether the record is whole: `anchored` is the last row that a signed anchor bears witness for."""

    whole: bool
    rows: int
    last: int
    anchors: int
    anchored: int
    findings: list[AuditFinding]
