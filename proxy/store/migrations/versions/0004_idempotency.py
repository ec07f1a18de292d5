"""Answers to requests of the admin API that may be sent again."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.create_table(
        "idempotency",
        sa.Column("caller", sa.String, nullable=False),
        sa.Column("operation", sa.String, nullable=False),
        sa.Column("key", sa.String, nullable=False),
        sa.Column("request", sa.LargeBinary(32), nullable=False),
        sa.Column("answer", sa.LargeBinary, nullable=False),
        sa.Column("at_us", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("caller", "operation", "key", name="idempotency_pkey"),
    )
    op.create_index("idempotency_at", "idempotency", ["at_us"])
