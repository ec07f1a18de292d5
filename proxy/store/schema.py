"""The tables, as the newest migration leaves them. A test compares the two.

Money is integer nano-dollars, durations are microseconds, `*_us` without another word is wall-clock time in
microseconds since 1970 UTC, and a day is the UTC day as YYYY-MM-DD.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Index,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    String,
    Table,
    Text,
    UniqueConstraint,
    false,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.types import TypeEngine

REVISION = "0005"  # the newest migration; revisions are numbered, so that older and newer can be told apart

metadata = MetaData()
_json: TypeEngine[Any] = JSON().with_variant(JSONB(), "postgresql")
_json_or_null: TypeEngine[Any] = JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")


def _text(name: str) -> Column[str]:
    return Column(name, String, nullable=False)


def _count(name: str) -> Column[int]:
    return Column(name, BigInteger, nullable=False)


usage = Table(
    "usage",
    metadata,
    Column("epoch", LargeBinary(16), nullable=False),
    _count("call"),
    _count("digest"),
    _text("day"),
    _text("tenant"),
    _text("key_id"),
    _text("user"),
    Column("tags", _json, nullable=False),
    _text("request_id"),
    _text("endpoint"),
    _text("model"),
    _text("model_served"),
    _text("upstream"),
    _text("upstream_request_id"),
    _count("attempts"),
    Column("stream", Boolean, nullable=False),
    _count("status"),
    _text("termination"),
    _count("prompt_tokens"),
    _count("cached_tokens"),
    _count("completion_tokens"),
    _count("reasoning_tokens"),
    _count("audio_tokens"),
    _text("source"),
    _count("relayed_frames"),
    _count("relayed_bytes"),
    _count("cost_nanos"),
    _text("price_version"),
    _count("started_us"),
    _count("queue_us"),
    _count("first_us"),
    _count("total_us"),
    Column("lower_bound", Boolean, nullable=False, server_default=false()),
    PrimaryKeyConstraint("epoch", "call", name="usage_pkey"),
    Index("usage_started", "started_us"),
    Index("usage_tenant_started", "tenant", "started_us"),
    sqlite_with_rowid=False,
)

usage_rollup = Table(
    "usage_rollup",
    metadata,
    _text("day"),
    _text("tenant"),
    _text("key_id"),
    _text("model"),
    _text("model_served"),
    _text("upstream"),
    _count("requests"),
    _count("prompt_tokens"),
    _count("cached_tokens"),
    _count("completion_tokens"),
    _count("reasoning_tokens"),
    _count("audio_tokens"),
    _count("cost_nanos"),
    _count("unpriced"),
    _count("estimated"),
    Column("lower_bound", BigInteger, nullable=False, server_default=text("0")),  # requests of that kind
    PrimaryKeyConstraint("day", "tenant", "key_id", "model", "model_served", "upstream", name="usage_rollup_pkey"),
    sqlite_with_rowid=False,
)

epochs = Table(
    "epochs",
    metadata,
    Column("epoch", LargeBinary(16), nullable=False),
    _text("origin"),  # id of the data directory, "" when unknown
    _count("persisted_seq"),  # every record up to here is in this database
    Column("persisted_beyond", _json, nullable=False),  # [[first, last], ...] that arrived before their turn
    Column("calls_total", BigInteger),  # null until the end of the epoch has arrived
    _count("rows"),  # ever inserted
    _count("expired_rows"),  # of these, removed by retention
    Column("expired_calls", _json, nullable=False),  # which: [[first, last], ...]
    _count("first_seen_us"),
    _count("last_seen_us"),
    PrimaryKeyConstraint("epoch", name="epochs_pkey"),
    sqlite_with_rowid=False,
)

quarantine = Table(
    "quarantine",
    metadata,
    Column("epoch", LargeBinary, nullable=False),
    _count("seq"),
    _count("digest"),
    Column("payload", LargeBinary, nullable=False),
    _text("reason"),
    _count("at_us"),
    PrimaryKeyConstraint("epoch", "seq", "digest", name="quarantine_pkey"),  # the same fault again is not news
    sqlite_with_rowid=False,
)

conflicts = Table(
    "conflicts",
    metadata,
    Column("epoch", LargeBinary(16), nullable=False),
    _count("call"),
    _count("old_digest"),
    _count("new_digest"),
    Column("payload", LargeBinary, nullable=False),
    _count("at_us"),
    PrimaryKeyConstraint("epoch", "call", "new_digest", name="conflicts_pkey"),
    sqlite_with_rowid=False,
)

keys = Table(
    "keys",
    metadata,
    _text("key_id"),
    Column("digest", LargeBinary(32), nullable=False),
    _text("tenant"),
    _text("name"),
    Column("owner", String),
    Column("tags", _json, nullable=False),
    Column("endpoints", _json_or_null),
    Column("models", _json_or_null),
    _text("last4"),
    _count("created_us"),
    Column("expires_us", BigInteger),
    Column("revoked_us", BigInteger),
    Column("revoked_reason", String),
    Column("created_by", String),  # null: made before anybody wrote it down
    Column("plan", String),
    Column("rights", _json_or_null),  # what it may administer
    Column("requests_per_minute", BigInteger),
    Column("tokens_per_minute", BigInteger),
    Column("concurrency", BigInteger),
    Column("budget_nanos", BigInteger),
    Column("budget_tokens", BigInteger),
    Column("budget_period", String),
    Column("networks", _json_or_null),
    Column("predecessor", String),
    Column("successor", String),
    Column("retires_us", BigInteger),  # the end of the overlap with its successor
    Column("last_used_us", BigInteger),  # as the usage rows say, no finer than KEY_USED_SECONDS
    PrimaryKeyConstraint("key_id", name="keys_pkey"),
    UniqueConstraint("digest", name="keys_digest"),
    Index("keys_tenant_name", "tenant", "name"),
    Index("keys_owner", "owner"),
)

# In these three tables the tenant "" is the platform: a role's place is part of a primary key, which holds no null.
_PLACE = "(role IN ('platform_admin', 'platform_viewer')) = (tenant = '')"

users = Table(
    "users",
    metadata,
    _text("user_id"),
    _text("name"),
    Column("email", String),  # for people to read; nobody is known by it
    Column("issuer", String),  # with `subject`: whom an identity provider means
    Column("subject", String),
    _count("created_us"),
    Column("disabled_us", BigInteger),
    PrimaryKeyConstraint("user_id", name="users_pkey"),
    UniqueConstraint("issuer", "subject", name="users_identity"),
)

memberships = Table(
    "memberships",
    metadata,
    _text("user_id"),
    _text("tenant"),
    _text("role"),
    _text("granted_by"),  # kind and id of the actor
    _count("granted_us"),
    PrimaryKeyConstraint("user_id", "tenant", name="memberships_pkey"),
    Index("memberships_tenant", "tenant"),
    CheckConstraint(_PLACE, name="memberships_place"),
)

sessions = Table(
    "sessions",
    metadata,
    _text("session_id"),
    Column("digest", LargeBinary(32), nullable=False),
    _text("user_id"),
    _text("tenant"),
    _text("origin"),
    _count("created_us"),
    _count("expires_us"),
    Column("revoked_us", BigInteger),
    PrimaryKeyConstraint("session_id", name="sessions_pkey"),
    UniqueConstraint("digest", name="sessions_digest"),
    Index("sessions_user", "user_id"),
)

invites = Table(
    "invites",
    metadata,
    _text("invite_id"),
    Column("digest", LargeBinary(32), nullable=False),
    _text("tenant"),
    _text("role"),
    _text("created_by"),  # an operator, or the user_id whose rights are judged again when it is taken up
    Column("first_only", Boolean, nullable=False),  # void once there is a platform_admin
    _count("created_us"),
    _count("expires_us"),
    Column("used_us", BigInteger),
    Column("used_by", String),
    Column("revoked_us", BigInteger),
    PrimaryKeyConstraint("invite_id", name="invites_pkey"),
    UniqueConstraint("digest", name="invites_digest"),
    CheckConstraint(_PLACE, name="invites_place"),
)

# Rows are only ever added: triggers refuse every other change, and any place but the next.
audit = Table(
    "audit",
    metadata,
    Column("seq", BigInteger, nullable=False, autoincrement=False),
    _count("at_us"),
    _text("actor_kind"),
    _text("actor_id"),
    _text("actor_role"),
    Column("actor_tenant", String),
    _text("origin"),
    _text("action"),
    Column("tenant", String),  # null: the platform
    _text("target"),
    Column("before", Text),  # text, not JSON: the hash is over these very characters
    Column("after", Text),
    _text("outcome"),
    _text("reason"),
    Column("previous", LargeBinary(32), nullable=False),
    Column("hash", LargeBinary(32), nullable=False),
    PrimaryKeyConstraint("seq", name="audit_pkey"),
    Index("audit_tenant", "tenant", "seq"),
    sqlite_with_rowid=False,
)

# One row. Whoever changes anything locks it first, so that changes and their records are in one order.
audit_head = Table(
    "audit_head",
    metadata,
    Column("one", BigInteger, nullable=False, autoincrement=False),
    _count("seq"),
    Column("hash", LargeBinary(32), nullable=False),
    _count("keys_made_seq"),  # the last row about a new key, and
    _count("keys_seq"),  # about another change of keys: what other hosts watch
    PrimaryKeyConstraint("one", name="audit_head_pkey"),
    CheckConstraint("one = 1", name="audit_head_one"),
)

# Answers to requests that may be sent again, without their secrets (`proxy.store.once`).
idempotency = Table(
    "idempotency",
    metadata,
    _text("caller"),  # kind, id and place of the actor
    _text("operation"),
    _text("key"),  # as the client chose it
    Column("request", LargeBinary(32), nullable=False),  # digest of what was asked
    Column("answer", LargeBinary, nullable=False),
    _count("at_us"),
    PrimaryKeyConstraint("caller", "operation", "key", name="idempotency_pkey"),
    Index("idempotency_at", "at_us"),
)

# What each host published, when it was another version than the one before (`proxy.store.revisions`).
policy_revisions = Table(
    "policy_revisions",
    metadata,
    _text("host"),  # id of the data directory
    Column("number", BigInteger, nullable=False, autoincrement=False),  # of this host's, from 1
    _text("version"),
    _count("published_us"),
    _count("generation"),
    _count("tenants"),
    _count("plans"),
    _count("models"),
    _count("upstreams"),
    PrimaryKeyConstraint("host", "number", name="policy_revisions_pkey"),
    Index("policy_revisions_published", "published_us", "host", "number"),
)

meta = Table(
    "meta",
    metadata,
    _text("name"),
    _text("value"),
    PrimaryKeyConstraint("name", name="meta_pkey"),
)
