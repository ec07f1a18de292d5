"""Which policies the hosts have published."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.create_table(
        "policy_revisions",
        sa.Column("host", sa.String, nullable=False),
        sa.Column("number", sa.BigInteger, nullable=False),
        sa.Column("version", sa.String, nullable=False),
        sa.Column("published_us", sa.BigInteger, nullable=False),
        sa.Column("generation", sa.BigInteger, nullable=False),
        sa.Column("tenants", sa.BigInteger, nullable=False),
        sa.Column("plans", sa.BigInteger, nullable=False),
        sa.Column("models", sa.BigInteger, nullable=False),
        sa.Column("upstreams", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("host", "number", name="policy_revisions_pkey"),
    )
    op.create_index("policy_revisions_published", "policy_revisions", ["published_us", "host", "number"])
