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
    Column,
    Index,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    String,
    Table,
    UniqueConstraint,
    false,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.types import TypeEngine

REVISION = "0002"  # the newest migration; revisions are numbered, so that older and newer can be told apart

metadata = MetaData()
_json: TypeEngine[Any] = JSON().with_variant(JSONB(), "postgresql")


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
    Column("endpoints", JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")),
    Column("models", JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")),
    _text("last4"),
    _count("created_us"),
    Column("expires_us", BigInteger),
    Column("revoked_us", BigInteger),
    PrimaryKeyConstraint("key_id", name="keys_pkey"),
    UniqueConstraint("digest", name="keys_digest"),
    Index("keys_tenant_name", "tenant", "name"),
)

meta = Table(
    "meta",
    metadata,
    _text("name"),
    _text("value"),
    PrimaryKeyConstraint("name", name="meta_pkey"),
)
