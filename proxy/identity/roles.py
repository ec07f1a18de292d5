"""Who may do what: one table, and the one judgement that every writer asks before it changes anything. Pure.

An actor holds one role in one place: a tenant, or the platform (`tenant` None). Whoever belongs to several tenants
acts in one of them at a time. Two rules hold for every row of the table, and the tests walk through all of it: what is
granted is never more than its grantor holds, and nobody below the platform reaches the platform or another tenant.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_network
from typing import Literal, get_args

from msgspec import Struct

Role = Literal["platform_admin", "platform_viewer", "tenant_admin", "tenant_member", "billing_viewer"]
# How an actor is known. An operator has the data directory's files in hand; a provider is an identity provider whose
# claims are mapped; an invite is what a newcomer shows, and may do nothing by itself.
Kind = Literal["operator", "user", "key", "provider", "invite"]
Action = Literal[
    "tenants.read",
    "tenants.write",
    "keys.read",
    "keys.create",
    "keys.rotate",
    "keys.revoke",
    "users.read",
    "users.create",
    "users.write",
    "roles.grant",
    "roles.revoke",
    "invites.create",
    "invites.revoke",
    "sessions.read",
    "sessions.create",
    "sessions.revoke",
    "policy.read",
    "policy.write",
    "usage.read",
    "billing.read",
    "billing.write",
    "audit.read",
]
# How far a right reaches: the platform and every tenant; the actor's own tenant; its own things in its own tenant.
Reach = Literal["all", "tenant", "own"]

ROLES: tuple[Role, ...] = get_args(Role)
ACTIONS: tuple[Action, ...] = get_args(Action)
PLATFORM_ROLES: frozenset[Role] = frozenset({"platform_admin", "platform_viewer"})
TENANT_ROLES: frozenset[Role] = frozenset(ROLES) - PLATFORM_ROLES

_READS = frozenset(action for action in ACTIONS if action.endswith(".read"))
_IN_TENANT: frozenset[Action] = _READS | {
    "keys.create",
    "keys.rotate",
    "keys.revoke",
    "users.create",
    "roles.grant",
    "roles.revoke",
    "invites.create",
    "invites.revoke",
    "sessions.revoke",
}
_OWN: frozenset[Action] = frozenset(
    {"keys.read", "keys.create", "keys.rotate", "keys.revoke", "sessions.read", "sessions.revoke", "usage.read"}
)

RIGHTS: dict[Role, dict[Action, Reach]] = {
    "platform_admin": dict.fromkeys(ACTIONS, "all"),
    "platform_viewer": dict.fromkeys(sorted(_READS), "all"),
    "tenant_admin": dict.fromkeys(sorted(_IN_TENANT), "tenant"),
    "tenant_member": {"tenants.read": "tenant", "policy.read": "tenant", **dict.fromkeys(sorted(_OWN), "own")},
    "billing_viewer": {"tenants.read": "tenant", "usage.read": "tenant", "billing.read": "tenant"},
}
# A provider logs people in and maps their claims, and does nothing else.
_PROVIDER: frozenset[Action] = frozenset(
    {"users.create", "roles.grant", "roles.revoke", "sessions.create", "sessions.revoke"}
)
# What a service key may hold at most, in its own tenant: nothing about people, for it has no face.
SERVICE_RIGHTS: frozenset[Action] = frozenset(
    {
        "tenants.read",
        "keys.read",
        "keys.create",
        "keys.rotate",
        "keys.revoke",
        "policy.read",
        "usage.read",
        "billing.read",
        "audit.read",
    }
)


class Forbidden(Exception):
    """The actor may not; the message says who, what, where, and which role could."""


class ForbiddenTold(Forbidden):
    """One whose message speaks of the actor, and of what it asked for itself, alone: it may be told so."""


class Scope(Struct, frozen=True):
    """What a key is narrowed to. None: whatever tenant and plan allow; `networks` are CIDR blocks.

    `limits` are the key's own, by name: a budget's has its period in it, so that only like is compared with like.
    """

    endpoints: tuple[str, ...] | None = None
    models: tuple[str, ...] | None = None
    networks: tuple[str, ...] | None = None
    expires_us: int | None = None  # wall clock
    plan: str | None = None
    limits: tuple[tuple[str, int], ...] = ()


class Actor(Struct, frozen=True):
    """Who acts. `role` is None for all but operators and users; `rights` and `scope` are a service key's own.

    `tenant` None is the platform. Raises ValueError where role and place do not fit: such an actor cannot be.
    """

    kind: Kind
    id: str
    role: Role | None
    tenant: str | None
    rights: tuple[Action, ...] = ()
    scope: Scope = Scope()

    def __post_init__(self) -> None:
        if self.kind in ("operator", "user"):
            if self.role is None:
                raise ValueError(f"{self.kind} {self.id}: acts by a role, and has none")
            check_place(self.role, self.tenant)
        elif self.role is not None:
            raise ValueError(f"{self.kind} {self.id}: acts by its rights and holds no role")
        if self.kind == "operator" and self.role != "platform_admin":
            raise ValueError("an operator is who holds the data directory's files: platform_admin")
        if self.kind == "key" and self.tenant is None:
            raise ValueError(f"key {self.id}: a key belongs to a tenant")
        if self.rights and self.kind != "key":
            raise ValueError(f"{self.kind} {self.id}: rights of its own are a key's")

    def __str__(self) -> str:
        word = "service key" if self.kind == "key" else self.role or self.kind
        return f"{word} {self.id} of {_place(self.tenant)}"


def _place(tenant: str | None) -> str:
    return "the platform" if tenant is None else f"tenant {tenant!r}"


def check_place(role: Role, tenant: str | None) -> None:
    """Raises ValueError for a platform role in a tenant, a tenant's role on the platform, and an unknown role."""
    if role not in ROLES:
        raise ValueError(f"role {role!r}: must be one of {', '.join(ROLES)}")
    if (role in PLATFORM_ROLES) != (tenant is None):
        where = "is held on the platform, not in a tenant" if role in PLATFORM_ROLES else "is held in a tenant"
        raise ValueError(f"role {role} {where}; asked for {_place(tenant)}")


def reach(actor: Actor, action: Action) -> Reach | None:
    """How far this actor's right to the action reaches; None when it has none."""
    if actor.kind == "key":
        return "tenant" if action in actor.rights and action in SERVICE_RIGHTS else None
    if actor.kind == "provider":
        return ("all" if actor.tenant is None else "tenant") if action in _PROVIDER else None
    return None if actor.role is None else RIGHTS[actor.role].get(action)


def allowed(actor: Actor, action: Action, tenant: str | None, owner: str | None = None) -> bool:
    """Whether the actor may do this in `tenant` (None: on the platform) to a thing of `owner` (None: nobody's)."""
    found = reach(actor, action)
    if found == "all":
        return True
    # A role below the platform never meets `tenant` None here: its own tenant is a name.
    if found is None or tenant is None or actor.tenant != tenant:
        return False
    return found == "tenant" or (owner is not None and owner == actor.id)


def may(actor: Actor, action: Action, tenant: str | None, owner: str | None = None) -> None:
    """Raises Forbidden unless the actor may do this there."""
    if not allowed(actor, action, tenant, owner):
        raise Forbidden(f"{actor} may not {action} in {_place(tenant)}: {needed(action, tenant)} is needed")


def needed(action: Action, tenant: str | None) -> str:
    """Which roles could do it, in words."""
    far = [role for role in ROLES if RIGHTS[role].get(action) == "all"]
    near = [role for role in ROLES if RIGHTS[role].get(action) == "tenant"]
    words = [f"{' or '.join(far)} of the platform"] if far else []
    if near and tenant is not None:
        words.insert(0, f"{' or '.join(near)} of {_place(tenant)}")
    return ", or ".join(words)


def may_grant(actor: Actor, role: Role, tenant: str | None) -> None:
    """Raises Forbidden unless the actor may give, or take, this role there. ValueError: role and place do not fit."""
    check_place(role, tenant)
    may(actor, "roles.grant", tenant)
    # Said once more, and apart from the table: a mistake there must not be enough to make a platform role.
    if role in PLATFORM_ROLES and not (actor.tenant is None and actor.kind in ("operator", "user", "provider")):
        raise Forbidden(f"{actor} may not grant {role}: only the platform's own people and provider can")


def may_switch(actor: Actor, user_id: str, tenant: str | None) -> None:
    """Raises Forbidden unless a session of this person may lead to one of theirs in another tenant.

    Never to the platform: a session that was taken in a tenant must not be a way up.
    """
    if actor.kind != "user" or actor.id != user_id or tenant is None:
        raise Forbidden(f"{actor} may not change to {_place(tenant)} as {user_id}: only a person, and into a tenant")


def may_issue(
    actor: Actor,
    tenant: str,
    owner: str | None,
    scope: Scope,
    rights: Iterable[Action] = (),
    *,
    action: Action = "keys.create",
) -> None:
    """Raises Forbidden unless the actor may issue this key: a new one, or by rotation.

    A key never holds a right that its issuer lacks for the whole tenant, nor, issued by another key, reaches further
    than that. Rotation hands out a new secret for the same rights, so it is judged like a new key.
    """
    may(actor, action, tenant, owner)
    for right in rights:
        if right not in SERVICE_RIGHTS:
            raise ForbiddenTold(f"{right} cannot be a key's right; a key may hold: {', '.join(sorted(SERVICE_RIGHTS))}")
        if reach(actor, right) not in ("all", "tenant"):
            raise ForbiddenTold(f"{actor} may not give {right} to a key: it does not hold that for {_place(tenant)}")
    if actor.kind == "key":
        wider = _wider(actor.scope, scope)
        if wider:
            raise ForbiddenTold(f"{actor} may not issue a key with wider {wider} than its own")


def _wider(outer: Scope, inner: Scope) -> str | None:
    """The first respect in which `inner` reaches further than `outer`, or None."""
    if not _within(outer.endpoints, inner.endpoints):
        return "endpoints"
    if not _within(outer.models, inner.models):
        return "models"
    if not networks_within(outer.networks, inner.networks):
        return "networks"
    if outer.expires_us is not None and (inner.expires_us is None or inner.expires_us > outer.expires_us):
        return "lifetime"
    if outer.plan not in (None, inner.plan):
        return "plan"  # of two plans nobody knows here which is the wider one
    own = dict(inner.limits)
    return next((name for name, most in outer.limits if own.get(name, most + 1) > most), None)


def _within(outer: tuple[str, ...] | None, inner: tuple[str, ...] | None) -> bool:
    return outer is None or (inner is not None and set(inner) <= set(outer))


def networks_within(outer: tuple[str, ...] | None, inner: tuple[str, ...] | None) -> bool:
    """Whether every block of `inner` lies inside one of `outer`. Raises ValueError for what is no CIDR block."""
    if outer is None:
        return True
    if inner is None:
        return False
    wide = [ip_network(block) for block in outer]
    return all(
        any(one.version == block.version and block.subnet_of(one) for one in wide)  # type: ignore[arg-type]
        for block in map(ip_network, inner)
    )
