"""What the admin API is told and what it answers, as Structs: reading is strict by them, the document is made of them.

`*_us` is wall-clock time in microseconds since 1970, `*_nanos` are nano-dollars. None, where nothing else is said:
whatever plan and tenant allow. What a request may say is in its Struct; every other field is the server's own.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import UNSET, Meta, Struct, UnsetType, field

from proxy import bounds
from proxy.policy.patterns import whole
from proxy.policy.process import Endpoint
from proxy.policy.schema import TenantName
from proxy.store.keys import Period

# No control characters: not every database can hold them, and no reader's cursor is moved by them.
_PRINTABLE = whole(r"[^\x00-\x1f\x7f-\x9f]*")
Id = Annotated[str, Meta(pattern=whole(r"[A-Za-z0-9_-]{1,64}"), examples=["key_0aBc"])]
Text = Annotated[str, Meta(pattern=_PRINTABLE, max_length=bounds.KEY_TEXT_BYTES_MAX)]
Word = Annotated[str, Meta(pattern=_PRINTABLE, min_length=1, max_length=bounds.KEY_TEXT_BYTES_MAX)]
PersonText = Annotated[str, Meta(pattern=_PRINTABLE, max_length=bounds.PEOPLE_TEXT_BYTES_MAX)]
PersonName = Annotated[str, Meta(pattern=_PRINTABLE, min_length=1, max_length=bounds.PEOPLE_TEXT_BYTES_MAX)]
Email = Annotated[
    str,
    Meta(
        pattern=_PRINTABLE, min_length=3, max_length=bounds.PEOPLE_TEXT_BYTES_MAX, description="name@host, for people."
    ),
]
Reason = Annotated[str, Meta(pattern=_PRINTABLE, max_length=200, description="For the record.")]
ModelName = Annotated[str, Meta(pattern=whole(r"[!-~]+"), max_length=bounds.MODEL_BYTES_MAX)]
TagWord = Annotated[str, Meta(pattern=_PRINTABLE, max_length=bounds.TAGS_BYTES_MAX)]
Amount = Annotated[int, Meta(ge=1, le=bounds.LIMIT_MAX)]
Nanos = Annotated[int, Meta(ge=1, le=bounds.PRICE_DOLLARS_MAX * 1_000_000_000)]
Instant = Annotated[int, Meta(ge=0, le=1 << 52)]
Token = Annotated[str, Meta(pattern=whole(r"[!-~]+"), max_length=bounds.TOKEN_BYTES_MAX)]
Tags = Annotated[dict[TagWord, TagWord], Meta(max_length=bounds.TAGS_MAX)]
Limit = Annotated[int, Meta(ge=1, le=bounds.PAGE_ROWS_MAX, description="Rows of the page.")]
Cursor = Annotated[
    str, Meta(pattern=whole(r"[A-Za-z0-9_-]*"), max_length=1024, description="`next` of the page before, unchanged.")
]
Right = Literal[
    "tenants.read",
    "keys.read",
    "keys.create",
    "keys.rotate",
    "keys.revoke",
    "policy.read",
    "usage.read",
    "billing.read",
    "audit.read",
]


class Asked(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The base of what a client may say."""


class Paged(Asked, frozen=True, kw_only=True):
    """One page of a list."""

    limit: Limit = 50
    cursor: Cursor | None = None


class ErrorBody(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What went wrong. `path` is the JSON path of the field at fault."""

    code: str
    message: str
    path: str | None = None


class Error(Struct, frozen=True):
    """Every answer that is not a success."""

    error: ErrorBody


# === keys ===


class Key(Struct, frozen=True, kw_only=True):
    """An API key without its secret."""

    key_id: str
    tenant: str
    name: str
    owner: str | None
    tags: dict[str, str]
    endpoints: list[str] | None
    models: list[str] | None
    networks: list[str] | None
    rights: list[str] | None
    plan: str | None
    requests_per_minute: int | None
    tokens_per_minute: int | None
    concurrency: int | None
    budget_nanos: int | None
    budget_tokens: int | None
    budget_period: Period | None
    last4: str
    created_us: int
    created_by: str | None
    expires_us: int | None
    retires_us: int | None
    revoked_us: int | None
    revoked_reason: str | None
    predecessor: str | None
    successor: str | None
    last_used_us: int | None
    state: Literal["active", "retiring", "expired", "revoked"]


class KeyMade(Key, frozen=True, kw_only=True):
    """A new key. `key` is its secret, shown in the first answer and never again: a repeated one has null."""

    key: str | None


class KeyPage(Struct, frozen=True):
    """Keys, oldest first."""

    items: list[Key]
    next: str | None


class KeyList(Paged, frozen=True, kw_only=True):
    """Which keys."""

    tenant: TenantName | None = None
    owner: Word | None = None


class KeyNew(Asked, frozen=True, kw_only=True):
    """A key to be made. Without `tenant` it is the caller's own."""

    tenant: TenantName | None = None
    name: Text = ""
    env: Annotated[str, Meta(pattern=whole(r"[a-z0-9]{2,16}"), description="Part of the key.")] = "live"
    owner: Word | None = None
    tags: Tags = field(default_factory=dict)
    endpoints: Annotated[list[Endpoint], Meta(max_length=bounds.KEY_NAMES_MAX)] | None = None
    models: Annotated[list[ModelName], Meta(max_length=bounds.KEY_NAMES_MAX)] | None = None
    networks: Annotated[list[Annotated[str, Meta(max_length=64)]], Meta(max_length=bounds.KEY_NETWORKS_MAX)] | None = (
        None
    )
    rights: Annotated[list[Right], Meta(max_length=16, description="What it may administer.")] | None = None
    plan: Word | None = None
    expires_in_seconds: Annotated[int, Meta(ge=1, le=315_360_000)] | None = None
    requests_per_minute: Amount | None = None
    tokens_per_minute: Amount | None = None
    concurrency: Amount | None = None
    budget_nanos: Nanos | None = None
    budget_tokens: Amount | None = None
    budget_period: Period | None = None


class KeyChange(Asked, frozen=True, kw_only=True):
    """What may be changed of a key; what is left out stays. Null lifts a limit."""

    name: Text | UnsetType = UNSET
    tags: Tags | UnsetType = UNSET
    requests_per_minute: Amount | UnsetType | None = UNSET
    tokens_per_minute: Amount | UnsetType | None = UNSET
    concurrency: Amount | UnsetType | None = UNSET
    budget_nanos: Nanos | UnsetType | None = UNSET
    budget_tokens: Amount | UnsetType | None = UNSET
    budget_period: Period | UnsetType | None = UNSET


class KeyRotation(Asked, frozen=True, kw_only=True):
    """How a key's successor is made. Both work for the overlap."""

    env: Annotated[str, Meta(pattern=whole(r"[a-z0-9]{2,16}"))] = "live"
    overlap_seconds: Annotated[int, Meta(ge=0, le=31_536_000)] = 86_400


class Revocation(Asked, frozen=True, kw_only=True):
    """Why."""

    reason: Reason = ""


class KeysRevocation(Revocation, frozen=True, kw_only=True):
    """Which keys: all of a tenant, of an owner there, or, for the platform, of an owner everywhere."""

    tenant: TenantName | None = None
    owner: Word | None = None


class KeysRevoked(Struct, frozen=True):
    """The keys that were ended."""

    key_ids: list[str]
    revoked: int
