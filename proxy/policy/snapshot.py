"""The compiled policy: one immutable value that every worker of a host judges by, swapped whole.

It holds no secret, only references to them. It is msgpack on disk, so that a worker loads it without reading YAML.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Literal, get_args

import msgspec
from msgspec import Struct, field

from proxy.call import Kind as Kind

SNAPSHOT_FORMAT = 2  # raised when the layout below changes; a reader refuses another one

KINDS: tuple[Kind, ...] = get_args(Kind)


class Rule(Struct, frozen=True, array_like=True):
    """One written limit of one level. `limit` or `burst` is None where that line was not written."""

    kind: Kind
    limit: int | None
    burst: int | None  # None for concurrency, always
    source: str  # "file:line" of the limit, or of the burst where only that was written
    burst_source: str


Rules = tuple[Rule, ...]
OnRevoke = Literal["cut", "finish"]


class Rights(Struct, frozen=True, array_like=True):
    """What one plan or one tenant file says. None: it says nothing, and the level above stands."""

    endpoints: tuple[str, ...] | None
    endpoints_source: str
    models: tuple[str, ...] | None
    models_source: str
    limits: Rules
    key_limits: Rules
    model_limits: dict[str, Rules]
    on_revoke: OnRevoke | None = None


class Plan(Struct, frozen=True, array_like=True):
    name: str
    source: str
    rights: Rights


class Tenant(Struct, frozen=True, array_like=True):
    name: str
    source: str
    plan: str
    plan_source: str
    status: Literal["active", "suspended"]
    status_source: str
    tag_header: str | None  # lower case
    rights: Rights


class Upstream(Struct, frozen=True, array_like=True):
    """`url` has no trailing slash; `key` is a secret reference or None; times are in seconds."""

    name: str
    source: str
    url: str
    key: str | None
    ca_bundle: str | None  # absolute path
    ask_usage: bool
    connect_seconds: float
    first_byte_seconds: float
    idle_seconds: float
    total_seconds: float
    max_connections: int
    max_waiting: int
    tenant_header: str | None = None  # lower case


class Price(Struct, frozen=True, array_like=True):
    """Integer nano-dollars per million tokens."""

    prompt: int
    cached: int
    completion: int
    version: str
    source: str


class Target(Struct, frozen=True, array_like=True):
    """`model` is the upstream's own name; None: the name that the client asked for, unchanged."""

    upstream: str
    model: str | None
    weight: int
    priority: int
    source: str


class Model(Struct, frozen=True, array_like=True):
    """`endpoints` None: every one. `price` None: unpriced. `tokenizer`: a name, or `file:` and an absolute path."""

    name: str
    source: str
    targets: tuple[Target, ...]
    endpoints: tuple[str, ...] | None
    endpoints_source: str
    answer_tokens_default: int
    price: Price | None
    limits: Rules  # what one tenant may use of it
    tokenizer: str = "auto"
    tokenizer_source: str = ""
    family: str | None = None  # None: by name


class Issuer(Struct, frozen=True, array_like=True):
    """One issuer of tokens. Of `groups` and `roles`, None as models is every model; both empty: nothing is narrowed."""

    name: str
    source: str
    issuer: str
    tenants: tuple[str, ...]
    audiences: tuple[str, ...]
    algorithms: tuple[str, ...]
    types: tuple[str, ...]
    keys: str | None  # an address or file:/path; None: discovered
    ca_bundle: str | None  # absolute path
    http_loopback: bool
    skew_seconds: int
    refresh_seconds: int
    stale_seconds: int
    user_claim: str
    tenant_claim: str | None
    groups_claim: str
    roles_claim: str
    tag_claims: tuple[str, ...]
    email_domains: tuple[str, ...]  # empty: e-mail addresses say nothing
    endpoints: tuple[str, ...] | None
    groups: dict[str, tuple[str, ...] | None]
    roles: dict[str, tuple[str, ...] | None]


class Identity(Struct, frozen=True, array_like=True):
    """What holds when keys end. See `process.Identity`."""

    freshness_seconds: float = 10.0
    on_stale: Literal["allow", "refuse"] = "allow"
    on_revoke: OnRevoke = "cut"


class Policy(Struct, frozen=True, forbid_unknown_fields=True):
    """`prices` holds those of names that only the catch-all model `*` serves."""

    format: int
    version: str  # digest of all the rest
    upstreams: dict[str, Upstream]
    models: dict[str, Model]
    plans: dict[str, Plan]
    tenants: dict[str, Tenant]
    prices: dict[str, Price]
    issuers: dict[str, Issuer] = field(default_factory=dict)
    identity: Identity = Identity()

    def on_revoke(self, tenant: str) -> OnRevoke:
        """What becomes of this tenant's running calls when their credential ends: what is written nearest to it."""
        found = self.tenants.get(tenant)
        if found is None:
            return self.identity.on_revoke
        return found.rights.on_revoke or self.plans[found.plan].rights.on_revoke or self.identity.on_revoke

    def encode(self) -> bytes:
        """The snapshot file's bytes."""
        return _encoder.encode(self)

    @staticmethod
    def decode(raw: bytes) -> Policy:
        """The inverse. Raises ValueError for another format or a damaged file."""
        try:
            policy = _decoder.decode(raw)
        except msgspec.DecodeError as error:
            raise ValueError(f"the policy snapshot cannot be read: {error}") from error
        if policy.format != SNAPSHOT_FORMAT:
            raise ValueError(f"the policy snapshot has format {policy.format}, this version reads {SNAPSHOT_FORMAT}")
        if policy.version != digest(policy):
            raise ValueError("the policy snapshot is damaged: its digest is not that of its content")
        return policy


def digest(policy: Policy) -> str:
    """The version of a policy's content: equal files give equal versions on every host.

    `version` itself does not count.
    """
    return blake2b(_encoder.encode(msgspec.structs.replace(policy, version="")), digest_size=8).hexdigest()


_encoder = msgspec.msgpack.Encoder(order="sorted")
_decoder = msgspec.msgpack.Decoder(Policy)
