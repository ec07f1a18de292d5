"""Whether a row's tokens are a lower bound, and how many of a roll-up's are."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    # What is there already was written by a version that could not tell: the provider's figures, or estimates.
    op.add_column("usage", sa.Column("lower_bound", sa.Boolean, nullable=False, server_default=sa.false()))
    op.add_column("usage_rollup", sa.Column("lower_bound", sa.BigInteger, nullable=False, server_default=sa.text("0")))
