"""The first schema: usage and its roll-ups, positions of epochs, what was set aside, keys."""

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.types import TypeEngine

revision = "0001"
down_revision = None

_json: TypeEngine[Any] = sa.JSON().with_variant(JSONB(), "postgresql")


def _text(name: str) -> sa.Column[str]:
    return sa.Column(name, sa.String, nullable=False)


def _count(name: str) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger, nullable=False)


def upgrade() -> None:
    op.create_table(
        "usage",
        sa.Column("epoch", sa.LargeBinary(16), nullable=False),
        _count("call"),
        _count("digest"),
        _text("day"),
        _text("tenant"),
        _text("key_id"),
        _text("user"),
        sa.Column("tags", _json, nullable=False),
        _text("request_id"),
        _text("endpoint"),
        _text("model"),
        _text("model_served"),
        _text("upstream"),
        _text("upstream_request_id"),
        _count("attempts"),
        sa.Column("stream", sa.Boolean, nullable=False),
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
        sa.PrimaryKeyConstraint("epoch", "call", name="usage_pkey"),
        sqlite_with_rowid=False,
    )
    op.create_index("usage_started", "usage", ["started_us"])
    op.create_index("usage_tenant_started", "usage", ["tenant", "started_us"])
    op.create_table(
        "usage_rollup",
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
        sa.PrimaryKeyConstraint(
            "day", "tenant", "key_id", "model", "model_served", "upstream", name="usage_rollup_pkey"
        ),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "epochs",
        sa.Column("epoch", sa.LargeBinary(16), nullable=False),
        _text("origin"),
        _count("persisted_seq"),
        sa.Column("persisted_beyond", _json, nullable=False),
        sa.Column("calls_total", sa.BigInteger),
        _count("rows"),
        _count("expired_rows"),
        sa.Column("expired_calls", _json, nullable=False),
        _count("first_seen_us"),
        _count("last_seen_us"),
        sa.PrimaryKeyConstraint("epoch", name="epochs_pkey"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "quarantine",
        sa.Column("epoch", sa.LargeBinary, nullable=False),
        _count("seq"),
        _count("digest"),
        sa.Column("payload", sa.LargeBinary, nullable=False),
        _text("reason"),
        _count("at_us"),
        sa.PrimaryKeyConstraint("epoch", "seq", "digest", name="quarantine_pkey"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "conflicts",
        sa.Column("epoch", sa.LargeBinary(16), nullable=False),
        _count("call"),
        _count("old_digest"),
        _count("new_digest"),
        sa.Column("payload", sa.LargeBinary, nullable=False),
        _count("at_us"),
        sa.PrimaryKeyConstraint("epoch", "call", "new_digest", name="conflicts_pkey"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "keys",
        _text("key_id"),
        sa.Column("digest", sa.LargeBinary(32), nullable=False),
        _text("tenant"),
        _text("name"),
        sa.Column("owner", sa.String),
        sa.Column("tags", _json, nullable=False),
        sa.Column("endpoints", _json),
        sa.Column("models", _json),
        _text("last4"),
        _count("created_us"),
        sa.Column("expires_us", sa.BigInteger),
        sa.Column("revoked_us", sa.BigInteger),
        sa.PrimaryKeyConstraint("key_id", name="keys_pkey"),
        sa.UniqueConstraint("digest", name="keys_digest"),
    )
    op.create_index("keys_tenant_name", "keys", ["tenant", "name"])
    op.create_table(
        "meta",
        _text("name"),
        _text("value"),
        sa.PrimaryKeyConstraint("name", name="meta_pkey"),
    )
