"""Keys in full; people, their roles, sessions and invites; the audit log, which can only grow."""

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.types import TypeEngine

revision = "0003"
down_revision = "0002"

_json: TypeEngine[Any] = sa.JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")
_PLACE = "(role IN ('platform_admin', 'platform_viewer')) = (tenant = '')"
_REFUSAL = "the audit log only grows: a row is added after the last one, and none is changed or removed"


def _text(name: str, *, null: bool = False) -> sa.Column[str]:
    return sa.Column(name, sa.String, nullable=null)


def _count(name: str, *, null: bool = False) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger, nullable=null)


def upgrade() -> None:
    _keys()
    _people()
    _audit()
    if op.get_bind().dialect.name == "sqlite":
        _guard_sqlite()
    else:
        _guard_postgresql()
        _wall()


def _keys() -> None:
    names = ("revoked_reason", "created_by", "plan", "budget_period", "predecessor", "successor")
    numbers = ("requests_per_minute", "tokens_per_minute", "concurrency", "budget_nanos", "budget_tokens")
    for name in names:
        op.add_column("keys", _text(name, null=True))
    for name in (*numbers, "retires_us", "last_used_us"):
        op.add_column("keys", _count(name, null=True))
    for name in ("rights", "networks"):
        op.add_column("keys", sa.Column(name, _json))
    op.create_index("keys_owner", "keys", ["owner"])


def _people() -> None:
    op.create_table(
        "users",
        _text("user_id"),
        _text("name"),
        _text("email", null=True),
        _text("issuer", null=True),
        _text("subject", null=True),
        _count("created_us"),
        _count("disabled_us", null=True),
        sa.PrimaryKeyConstraint("user_id", name="users_pkey"),
        sa.UniqueConstraint("issuer", "subject", name="users_identity"),
    )
    op.create_table(
        "memberships",
        _text("user_id"),
        _text("tenant"),
        _text("role"),
        _text("granted_by"),
        _count("granted_us"),
        sa.PrimaryKeyConstraint("user_id", "tenant", name="memberships_pkey"),
        sa.CheckConstraint(_PLACE, name="memberships_place"),
    )
    op.create_index("memberships_tenant", "memberships", ["tenant"])
    op.create_table(
        "sessions",
        _text("session_id"),
        sa.Column("digest", sa.LargeBinary(32), nullable=False),
        _text("user_id"),
        _text("tenant"),
        _text("origin"),
        _count("created_us"),
        _count("expires_us"),
        _count("revoked_us", null=True),
        sa.PrimaryKeyConstraint("session_id", name="sessions_pkey"),
        sa.UniqueConstraint("digest", name="sessions_digest"),
    )
    op.create_index("sessions_user", "sessions", ["user_id"])
    op.create_table(
        "invites",
        _text("invite_id"),
        sa.Column("digest", sa.LargeBinary(32), nullable=False),
        _text("tenant"),
        _text("role"),
        _text("created_by"),
        sa.Column("first_only", sa.Boolean, nullable=False),
        _count("created_us"),
        _count("expires_us"),
        _count("used_us", null=True),
        _text("used_by", null=True),
        _count("revoked_us", null=True),
        sa.PrimaryKeyConstraint("invite_id", name="invites_pkey"),
        sa.UniqueConstraint("digest", name="invites_digest"),
        sa.CheckConstraint(_PLACE, name="invites_place"),
    )


def _audit() -> None:
    op.create_table(
        "audit",
        sa.Column("seq", sa.BigInteger, nullable=False, autoincrement=False),
        _count("at_us"),
        _text("actor_kind"),
        _text("actor_id"),
        _text("actor_role"),
        _text("actor_tenant", null=True),
        _text("origin"),
        _text("action"),
        _text("tenant", null=True),
        _text("target"),
        sa.Column("before", sa.Text),
        sa.Column("after", sa.Text),
        _text("outcome"),
        _text("reason"),
        sa.Column("previous", sa.LargeBinary(32), nullable=False),
        sa.Column("hash", sa.LargeBinary(32), nullable=False),
        sa.PrimaryKeyConstraint("seq", name="audit_pkey"),
        sqlite_with_rowid=False,
    )
    op.create_index("audit_tenant", "audit", ["tenant", "seq"])
    op.create_table(
        "audit_head",
        sa.Column("one", sa.BigInteger, nullable=False, autoincrement=False),
        _count("seq"),
        sa.Column("hash", sa.LargeBinary(32), nullable=False),
        _count("keys_made_seq"),
        _count("keys_seq"),
        sa.PrimaryKeyConstraint("one", name="audit_head_pkey"),
        sa.CheckConstraint("one = 1", name="audit_head_one"),
    )


def _guard_sqlite() -> None:
    for verb in ("UPDATE", "DELETE"):
        op.execute(
            f"CREATE TRIGGER audit_no_{verb.lower()} BEFORE {verb} ON audit "
            f"BEGIN SELECT RAISE(ABORT, '{_REFUSAL}'); END"
        )
    # INSERT OR REPLACE removes the old row without the trigger for removals: so the place itself is judged.
    op.execute(
        "CREATE TRIGGER audit_in_order BEFORE INSERT ON audit "
        "WHEN NEW.seq <> (SELECT coalesce(max(seq), 0) + 1 FROM audit) "
        f"BEGIN SELECT RAISE(ABORT, '{_REFUSAL}'); END"
    )


def _guard_postgresql() -> None:
    op.execute(
        "CREATE FUNCTION weir_audit_guard() RETURNS trigger LANGUAGE plpgsql AS $$ "
        f"BEGIN RAISE EXCEPTION '{_REFUSAL}'; END $$"
    )
    op.execute(
        "CREATE TRIGGER audit_only_grows BEFORE UPDATE OR DELETE OR TRUNCATE ON audit "
        "FOR EACH STATEMENT EXECUTE FUNCTION weir_audit_guard()"
    )


def _wall() -> None:
    """A role that sees one tenant's rows and changes none: what reads for one tenant takes it (Database.reading).

    The owner of the tables, whose the workers and the flusher are, is not held by the policies, nor is pg_dump.
    """
    # Roles are the cluster's, not the database's: another Weir may have made it, or it was made beforehand for a user
    # who may make none. Without it the reading goes on unwalled.
    op.execute(
        """
        DO $$ BEGIN
            IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'weir_tenant') THEN
                CREATE ROLE weir_tenant NOLOGIN;
            END IF;
            IF NOT pg_has_role('weir_tenant', 'MEMBER') THEN
                GRANT weir_tenant TO CURRENT_USER;
            END IF;
        EXCEPTION WHEN insufficient_privilege OR duplicate_object OR unique_violation THEN
            RAISE NOTICE 'there is no role weir_tenant for this user: see docs/operating.md';
        END $$
        """
    )
    mine = "tenant = current_setting('weir.tenant', true)"
    tables = dict.fromkeys(("usage", "usage_rollup", "keys", "memberships", "sessions", "invites", "audit"), mine)
    tables["users"] = f"user_id IN (SELECT memberships.user_id FROM memberships WHERE {mine})"
    for table, condition in tables.items():
        op.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
        # For everybody but the owner, so that the role may come later.
        op.execute(f"CREATE POLICY {table}_of_one_tenant ON {table} FOR SELECT USING ({condition})")
    names = ", ".join(tables)
    op.execute(
        f"""
        DO $$ BEGIN
            IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'weir_tenant') THEN
                EXECUTE format('GRANT USAGE ON SCHEMA %I TO weir_tenant', current_schema());
                GRANT SELECT ON {names} TO weir_tenant;
            END IF;
        END $$
        """
    )
