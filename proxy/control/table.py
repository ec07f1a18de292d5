"""Every operation of the admin API: routing, reading, the document and the tests are made of this table."""

from __future__ import annotations

import re
from typing import Literal

from msgspec import Struct

from proxy.control import facts, nouns, persons
from proxy.identity.roles import Action

PREFIX = "/admin/v1"
PLATFORM = "~platform"  # in a path, where a tenant's name would stand; no tenant can be called so
ELSEWHERE = "~elsewhere"  # in an audit row: another tenant than the reader's
_SEGMENT = re.compile(r"[A-Za-z0-9_.~-]{1,64}")


class Operation(Struct, frozen=True, kw_only=True):
    """One operation. `action` is what `identity.roles` judges; None: nothing is.

    open: needs no credential. etag: the answer has one. match: needs If-Match, and If-None-Match: * where there is
    nothing yet. once: takes an Idempotency-Key. lines: the answer is JSON lines, of `answer` each.
    """

    method: Literal["GET", "POST", "PUT", "PATCH", "DELETE"]
    path: str
    id: str
    summary: str
    action: Action | None
    query: type[nouns.Asked] | None = None
    body: type[nouns.Asked] | None = None
    answer: type[Struct] | None = None  # None: no content, but for the document itself
    status: int = 200
    open: bool = False
    etag: bool = False
    match: bool = False
    once: bool = False
    lines: bool = False

    @property
    def segments(self) -> tuple[str, ...]:
        """The path's parts; a name in braces stands for any."""
        return tuple(self.path.strip("/").split("/"))

    @property
    def names(self) -> tuple[str, ...]:
        """Those that stand for any."""
        return tuple(part[1:-1] for part in self.segments if part.startswith("{"))


OPERATIONS: tuple[Operation, ...] = (
    Operation(method="GET", path="/openapi.json", id="get_document", summary="This document", action=None, open=True),
    Operation(method="GET", path="/me", id="get_me", summary="Who the caller is", action=None, answer=persons.Me),
    # --- tenants ---
    Operation(
        method="GET",
        path="/tenants",
        id="list_tenants",
        summary="The tenants of the policy in force",
        action="tenants.read",
        query=nouns.Paged,
        answer=facts.TenantPage,
    ),
    Operation(
        method="GET",
        path="/tenants/{tenant}",
        id="get_tenant",
        summary="One tenant and what it may use",
        action="tenants.read",
        answer=facts.Tenant,
    ),
    # --- keys ---
    Operation(
        method="GET",
        path="/keys",
        id="list_keys",
        summary="API keys, without their secrets",
        action="keys.read",
        query=nouns.KeyList,
        answer=nouns.KeyPage,
    ),
    Operation(
        method="POST",
        path="/keys",
        id="create_key",
        summary="Make a key; its secret is in this one answer",
        action="keys.create",
        body=nouns.KeyNew,
        answer=nouns.KeyMade,
        status=201,
        etag=True,
        once=True,
    ),
    Operation(
        method="GET",
        path="/keys/{key_id}",
        id="get_key",
        summary="One key",
        action="keys.read",
        answer=nouns.Key,
        etag=True,
    ),
    Operation(
        method="PATCH",
        path="/keys/{key_id}",
        id="change_key",
        summary="Change a key's name, tags or limits",
        action="keys.create",
        body=nouns.KeyChange,
        answer=nouns.Key,
        etag=True,
        match=True,
    ),
    Operation(
        method="POST",
        path="/keys/{key_id}/rotate",
        id="rotate_key",
        summary="Make a key's successor; its secret is in this one answer",
        action="keys.rotate",
        body=nouns.KeyRotation,
        answer=nouns.KeyMade,
        status=201,
        etag=True,
        once=True,
    ),
    Operation(
        method="POST",
        path="/keys/{key_id}/revoke",
        id="revoke_key",
        summary="End a key",
        action="keys.revoke",
        body=nouns.Revocation,
        answer=nouns.KeysRevoked,
        once=True,
    ),
    Operation(
        method="POST",
        path="/keys/revoke",
        id="revoke_keys",
        summary="End every key of a tenant or an owner",
        action="keys.revoke",
        body=nouns.KeysRevocation,
        answer=nouns.KeysRevoked,
        once=True,
    ),
    # --- users ---
    Operation(
        method="GET",
        path="/users",
        id="list_users",
        summary="People",
        action="users.read",
        query=persons.InTenant,
        answer=persons.UserPage,
    ),
    Operation(
        method="POST",
        path="/users",
        id="create_user",
        summary="Add a person, who has no role yet",
        action="users.create",
        body=persons.UserNew,
        answer=persons.User,
        status=201,
        once=True,
    ),
    Operation(
        method="GET",
        path="/users/{user_id}",
        id="get_user",
        summary="One person",
        action="users.read",
        answer=persons.User,
    ),
    Operation(
        method="POST",
        path="/users/{user_id}/disable",
        id="disable_user",
        summary="End a person's sessions, tokens and keys, everywhere",
        action="users.write",
        status=204,
        once=True,
    ),
    # --- memberships ---
    Operation(
        method="GET",
        path="/memberships",
        id="list_memberships",
        summary="Who is what where",
        action="users.read",
        query=persons.MembershipList,
        answer=persons.MembershipPage,
    ),
    Operation(
        method="GET",
        path="/memberships/{user_id}/{place}",
        id="get_membership",
        summary="What a person is in a tenant, or at ~platform",
        action="users.read",
        answer=persons.Membership,
        etag=True,
    ),
    Operation(
        method="PUT",
        path="/memberships/{user_id}/{place}",
        id="put_membership",
        summary="Give a person a role in a tenant, or at ~platform",
        action="roles.grant",
        body=persons.RoleGiven,
        answer=persons.Membership,
        etag=True,
        match=True,
    ),
    Operation(
        method="DELETE",
        path="/memberships/{user_id}/{place}",
        id="delete_membership",
        summary="Take a person's role, and end their sessions and keys there",
        action="roles.revoke",
        status=204,
        match=True,
    ),
    # --- sessions ---
    Operation(
        method="GET",
        path="/sessions",
        id="list_sessions",
        summary="Sessions in force",
        action="sessions.read",
        query=persons.SessionList,
        answer=persons.SessionPage,
    ),
    Operation(
        method="POST",
        path="/sessions",
        id="create_session",
        summary="Sign in with a token of an identity provider",
        action=None,
        body=persons.SignIn,
        answer=persons.SessionMade,
        status=201,
        open=True,
    ),
    Operation(
        method="POST",
        path="/sessions/switch",
        id="switch_session",
        summary="A session in another tenant of the same person; the old one stays",
        action=None,
        body=persons.Switch,
        answer=persons.SessionMade,
        status=201,
    ),
    Operation(
        method="DELETE",
        path="/sessions/{session_id}",
        id="delete_session",
        summary="End a session",
        action="sessions.revoke",
        status=204,
    ),
    # --- invites ---
    Operation(
        method="GET",
        path="/invites",
        id="list_invites",
        summary="Invites that can be taken up",
        action="users.read",
        query=persons.InTenant,
        answer=persons.InvitePage,
    ),
    Operation(
        method="POST",
        path="/invites",
        id="create_invite",
        summary="Keep a role ready; the token is in this one answer",
        action="invites.create",
        body=persons.InviteNew,
        answer=persons.InviteMade,
        status=201,
        once=True,
    ),
    Operation(
        method="DELETE",
        path="/invites/{invite_id}",
        id="delete_invite",
        summary="Withdraw an invite",
        action="invites.revoke",
        status=204,
    ),
    Operation(
        method="POST",
        path="/invites/redeem",
        id="redeem_invite",
        summary="Become what an invite says, and get a session",
        action=None,
        body=persons.Redemption,
        answer=persons.SessionMade,
        status=201,
        open=True,
    ),
    # --- policy ---
    Operation(
        method="GET",
        path="/policy",
        id="get_policy",
        summary="The policy in use: version and generation",
        action="policy.read",
        answer=facts.Revision,
    ),
    Operation(
        method="GET",
        path="/policy/revisions",
        id="list_revisions",
        summary="The policies that each host published; for the platform",
        action="policy.read",
        query=nouns.Paged,
        answer=facts.PolicyRevisionPage,
    ),
    Operation(
        method="GET",
        path="/policy/effective",
        id="get_effective",
        summary="What a key or a tenant may do, and which line decides",
        action="policy.read",
        query=facts.EffectiveAsked,
        answer=facts.EffectiveRight,
    ),
    # --- usage ---
    Operation(
        method="GET",
        path="/usage",
        id="get_usage",
        summary="Sums per group",
        action="usage.read",
        query=facts.UsageReportAsked,
        answer=facts.UsageReport,
    ),
    Operation(
        method="GET",
        path="/usage/rows",
        id="list_usage_rows",
        summary="Single calls",
        action="usage.read",
        query=facts.UsageRowsAsked,
        answer=facts.UsageRows,
    ),
    # --- audit ---
    Operation(
        method="GET",
        path="/audit",
        id="list_audit",
        summary="Who changed what, and attempts that were refused",
        action="audit.read",
        query=facts.AuditAsked,
        answer=facts.AuditPage,
    ),
    Operation(
        method="GET",
        path="/audit/export",
        id="export_audit",
        summary="The log as JSON lines, oldest first; the platform gets the whole chain",
        action="audit.read",
        answer=facts.AuditRow,
        lines=True,
    ),
    Operation(
        method="GET",
        path="/audit/verify",
        id="verify_audit",
        summary="Whether rows were changed, removed, moved or added; for the platform",
        action="audit.read",
        answer=facts.AuditVerified,
    ),
)


def find(method: str, path: str) -> tuple[Operation, dict[str, str]] | tuple[None, tuple[str, ...]]:
    """The operation of a raw path (without its query) and what stands in its braces.

    Else None, and the methods that the path has: none for a path that is nobody's. Nothing is decoded or normalised:
    what is judged is what is carried out.
    """
    if not path.startswith(PREFIX + "/"):
        return None, ()
    parts = path.removeprefix(PREFIX + "/").split("/")
    if not all(_SEGMENT.fullmatch(part) for part in parts):
        return None, ()
    fitting = [operation for operation in OPERATIONS if _fits(operation.segments, parts)]
    # A path that is spelt out goes before one with a name in braces.
    fitting.sort(key=lambda operation: len(operation.names))
    for operation in fitting:
        if operation.method == method:
            found = zip(operation.segments, parts, strict=True)
            return operation, {name[1:-1]: part for name, part in found if name.startswith("{")}
    return None, tuple(sorted({operation.method for operation in fitting}))


def _fits(segments: tuple[str, ...], parts: list[str]) -> bool:
    return len(segments) == len(parts) and all(
        segment.startswith("{") or segment == part for segment, part in zip(segments, parts, strict=True)
    )
