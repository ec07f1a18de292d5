"""People, what they are where, sessions and invites, as the admin API speaks of them. See `nouns`."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from proxy import bounds
from proxy.control.nouns import Asked, Email, Id, Paged, PersonName, PersonText, Token
from proxy.identity.roles import Role
from proxy.policy.schema import TenantName


class User(Struct, frozen=True, kw_only=True):
    """A person. `issuer` and `subject` say whom an identity provider means by it."""

    user_id: str
    name: str
    created_us: int
    email: str | None
    issuer: str | None
    subject: str | None
    disabled_us: int | None


class UserPage(Struct, frozen=True):
    """People, oldest first."""

    items: list[User]
    next: str | None


class InTenant(Paged, frozen=True, kw_only=True):
    """Of which tenant; without it the caller's own, and of the platform's people every one."""

    tenant: TenantName | None = None


class UserNew(Asked, frozen=True, kw_only=True):
    """A person to be added, who is to belong to `tenant`. Their role there is given apart."""

    name: PersonName
    email: Email | None = None
    issuer: PersonText | None = None
    subject: PersonText | None = None
    tenant: TenantName | None = None


class Membership(Struct, frozen=True, kw_only=True):
    """What a person is in one place; `tenant` null is the platform."""

    user_id: str
    tenant: str | None
    role: Role
    granted_by: str
    granted_us: int


class MembershipPage(Struct, frozen=True):
    """Who is what where, by place."""

    items: list[Membership]
    next: str | None


class MembershipList(InTenant, frozen=True, kw_only=True):
    """Of whom."""

    user_id: Id | None = None


class RoleGiven(Asked, frozen=True, kw_only=True):
    """What the person shall be there."""

    role: Role


class Session(Struct, frozen=True, kw_only=True):
    """A person signed in to one place."""

    session_id: str
    user_id: str
    tenant: str | None
    origin: str
    created_us: int
    expires_us: int


class SessionPage(Struct, frozen=True):
    """Sessions in force, oldest first."""

    items: list[Session]
    next: str | None


class SessionList(InTenant, frozen=True, kw_only=True):
    """Whose."""

    user_id: Id | None = None


class SignIn(Asked, frozen=True, kw_only=True):
    """A token of an identity provider, and the tenant to sign in to where it speaks for several."""

    id_token: Token
    tenant: TenantName | None = None


class Switch(Asked, frozen=True, kw_only=True):
    """The tenant to act in."""

    tenant: TenantName


class SessionMade(Struct, frozen=True, kw_only=True):
    """A new session. `token` is what to send as a bearer token; it is shown this once."""

    session_id: str
    user_id: str
    tenant: str | None
    role: Role
    expires_us: int
    token: str


class Invite(Struct, frozen=True, kw_only=True):
    """A role that waits for whoever brings the token."""

    invite_id: str
    tenant: str | None
    role: Role
    created_us: int
    expires_us: int
    created_by: str


class InviteMade(Invite, frozen=True, kw_only=True):
    """A new invite. `token` is shown in the first answer and never again: a repeated one has null."""

    token: str | None


class InvitePage(Struct, frozen=True):
    """Invites that can be taken up, oldest first."""

    items: list[Invite]
    next: str | None


class InviteNew(Asked, frozen=True, kw_only=True):
    """An invite to be made: to a tenant (without it the caller's own), or to the platform."""

    role: Role
    tenant: TenantName | None = None
    expires_in_seconds: Annotated[int, Meta(ge=60, le=bounds.INVITE_SECONDS_MAX)] = 86_400


class Redemption(Asked, frozen=True, kw_only=True):
    """The token of an invite, and who brings it."""

    token: Token
    name: PersonName
    email: Email | None = None


class Me(Struct, frozen=True, kw_only=True):
    """Who the caller is, where, and what they may do there."""

    kind: Literal["user", "key"]
    id: str
    tenant: str | None
    role: Role | None
    actions: dict[str, Literal["all", "tenant", "own"]]
    session_id: str | None
