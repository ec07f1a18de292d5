"""Who may do what: the whole table against another way of writing it, and what no sequence of grants can reach."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from proxy.identity.roles import (
    ACTIONS,
    PLATFORM_ROLES,
    RIGHTS,
    ROLES,
    SERVICE_RIGHTS,
    TENANT_ROLES,
    Action,
    Actor,
    Forbidden,
    Role,
    Scope,
    allowed,
    may,
    may_grant,
    may_issue,
    networks_within,
)

PLACES = ("acme", "globex", None)
EVERYTHING = Scope()

# The table again, as a person would say it: per action, who may do it in their own tenant (t), to their own things
# (o), and everywhere (a). Columns: platform_admin, platform_viewer, tenant_admin, tenant_member, billing_viewer,
# a tenant's provider, the platform's provider, and a service key that was given every right there is.
SAID = """
tenants.read     a a t t t - - t
tenants.write    a - - - - - - -
keys.read        a a t o - - - t
keys.create      a - t o - - - t
keys.rotate      a - t o - - - t
keys.revoke      a - t o - - - t
users.read       a a t - - - - -
users.create     a - t - - t a -
users.write      a - - - - - - -
roles.grant      a - t - - t a -
roles.revoke     a - t - - t a -
invites.create   a - t - - - - -
invites.revoke   a - t - - - - -
sessions.read    a a t o - - - -
sessions.create  a - - - - t a -
sessions.revoke  a - t o - t a -
policy.read      a a t t - - - t
policy.write     a - - - - - - -
usage.read       a a t o t - - t
billing.read     a a t - t - - t
billing.write    a - - - - - - -
audit.read       a a t - - - - t
"""


def person(role: Role, tenant: str | None = "acme") -> Actor:
    """A user of this role; one of the platform's belongs to no tenant."""
    return Actor("user", "usr_1", role, None if role in PLATFORM_ROLES else tenant)


def key(*rights: Action, tenant: str = "acme", scope: Scope = EVERYTHING) -> Actor:
    """A service key."""
    return Actor("key", "key_1", None, tenant, rights, scope)


COLUMNS = [
    *(person(role) for role in ROLES),
    Actor("provider", "https://idp.acme", None, "acme"),
    Actor("provider", "https://idp.weir", None, None),
    key(*ACTIONS),  # more than any writer would give it: what it does not get is refused by the judgement itself
]


def said() -> Iterator[tuple[Action, Actor, str]]:
    """Every cell of the table above."""
    for line in SAID.strip().splitlines():
        action, *cells = line.split()
        assert len(cells) == len(COLUMNS)
        for actor, cell in zip(COLUMNS, cells, strict=True):
            yield action, actor, cell  # type: ignore[misc]


def test_the_table_is_the_one_that_was_said() -> None:
    """Every actor, every action, in the own tenant, in another and on the platform, to one's own things and others'."""
    seen = set()
    for action, actor, cell in said():
        seen.add(action)
        for tenant, owner in itertools.product(PLACES, (None, actor.id, "somebody")):
            own = actor.tenant is not None and tenant == actor.tenant
            expected = cell == "a" or (own and (cell == "t" or (cell == "o" and owner == actor.id)))
            assert allowed(actor, action, tenant, owner) is expected, (str(actor), action, tenant, owner)
    assert seen == set(ACTIONS)


def test_a_refusal_says_who_may() -> None:
    """The sentence names the actor, the action, the place, and the role that is needed."""
    with pytest.raises(Forbidden) as caught:
        may(person("tenant_member"), "keys.revoke", "acme", "somebody")
    assert str(caught.value) == (
        "tenant_member usr_1 of tenant 'acme' may not keys.revoke in tenant 'acme': "
        "tenant_admin of tenant 'acme', or platform_admin of the platform is needed"
    )
    with pytest.raises(Forbidden, match="in the platform: platform_admin of the platform is needed"):
        may(person("tenant_admin"), "policy.write", None)
    may(Actor("operator", "root:0", "platform_admin", None), "policy.write", None)


def test_every_grant_by_every_actor() -> None:
    """Platform roles come from the platform's own; a tenant's roles from there too, or from its admin or provider."""
    operator = Actor("operator", "root:0", "platform_admin", None)
    for actor in (*COLUMNS, operator):
        for role, tenant in itertools.product(ROLES, PLACES):
            if (role in PLATFORM_ROLES) != (tenant is None):
                with pytest.raises(ValueError, match=role):
                    may_grant(actor, role, tenant)
                continue
            platform = actor.tenant is None and (actor.role == "platform_admin" or actor.kind == "provider")
            own = tenant == "acme" and actor.tenant == "acme"
            if platform or (own and (actor.role == "tenant_admin" or actor.kind == "provider")):
                may_grant(actor, role, tenant)
            else:
                with pytest.raises(Forbidden):
                    may_grant(actor, role, tenant)


@pytest.mark.parametrize(
    ("kind", "role", "tenant"),
    [
        *(("user", role, "acme") for role in sorted(PLATFORM_ROLES)),
        *(("user", role, None) for role in sorted(TENANT_ROLES)),
        ("operator", "tenant_admin", "acme"),
        ("operator", "platform_viewer", None),
        ("user", None, "acme"),
        ("key", None, None),
        ("key", "tenant_admin", "acme"),
        ("provider", "platform_admin", None),
        ("invite", "platform_admin", None),
        ("user", "root", None),
    ],
)
def test_an_actor_that_cannot_be_is_not_made(kind: str, role: Role | None, tenant: str | None) -> None:
    """A role outside its place, or a kind with what is not its own, is refused before it is asked anything."""
    with pytest.raises(ValueError):
        Actor(kind, "x", role, tenant)  # type: ignore[arg-type]


def test_an_invite_by_itself_may_nothing() -> None:
    """Who brings a token and is nobody yet."""
    bearer = Actor("invite", "usr_9", None, "acme")
    for action, tenant in itertools.product(ACTIONS, PLACES):
        assert not allowed(bearer, action, tenant, "usr_9")


def test_no_read_only_role_writes() -> None:
    """Viewers have no action but reads."""
    for role in ("platform_viewer", "billing_viewer"):
        assert all(action.endswith(".read") for action in RIGHTS[role])


def test_a_key_gets_no_right_that_its_issuer_lacks() -> None:
    """Every right, by every issuer, in both tenants; a member's right to its own things is not one to give away."""
    for actor, right, tenant in itertools.product(COLUMNS, ACTIONS, ("acme", "globex")):
        holds = allowed(actor, right, tenant) and allowed(actor, "keys.create", tenant)
        if holds and right in SERVICE_RIGHTS:
            may_issue(actor, tenant, None, Scope(), (right,))
        else:
            with pytest.raises(Forbidden):
                may_issue(actor, tenant, None, Scope(), (right,))
    member = person("tenant_member")
    may_issue(member, "acme", "usr_1", Scope())
    with pytest.raises(Forbidden, match="does not hold that"):
        may_issue(member, "acme", "usr_1", Scope(), ("keys.read",))
    # Rotation hands out a secret with the same rights: it is no way around.
    with pytest.raises(Forbidden, match="does not hold that"):
        may_issue(member, "acme", "usr_1", Scope(), ("keys.read",), action="keys.rotate")


NARROW = Scope(
    ("chat.completions",),
    ("small",),
    ("10.0.0.0/8", "2001:db8::/32"),
    1000,
    "small",
    (("requests_per_minute", 10), ("budget_tokens (day)", 5)),
)


@pytest.mark.parametrize(
    ("scope", "wider"),
    [
        (NARROW, None),
        (replace(NARROW, endpoints=(), models=(), networks=(), expires_us=999), None),
        (replace(NARROW, networks=("10.1.2.3/32", "2001:db8:1::/48"), expires_us=5), None),
        (Scope(None, NARROW.models, NARROW.networks, 1000), "endpoints"),
        (Scope(("embeddings",), NARROW.models, NARROW.networks, 1000), "endpoints"),
        (Scope(NARROW.endpoints, None, NARROW.networks, 1000), "models"),
        (Scope(NARROW.endpoints, ("small", "large"), NARROW.networks, 1000), "models"),
        (Scope(NARROW.endpoints, NARROW.models, None, 1000), "networks"),
        (Scope(NARROW.endpoints, NARROW.models, ("10.0.0.0/7",), 1000), "networks"),
        (Scope(NARROW.endpoints, NARROW.models, ("::/0",), 1000), "networks"),
        (Scope(NARROW.endpoints, NARROW.models, NARROW.networks, None), "lifetime"),
        (Scope(NARROW.endpoints, NARROW.models, NARROW.networks, 1001), "lifetime"),
        (replace(NARROW, plan=None), "plan"),
        (replace(NARROW, plan="large"), "plan"),
        (replace(NARROW, limits=()), "requests_per_minute"),
        (replace(NARROW, limits=(("requests_per_minute", 11), ("budget_tokens (day)", 5))), "requests_per_minute"),
        (replace(NARROW, limits=(("requests_per_minute", 10), ("budget_tokens (month)", 5))), "budget_tokens"),
        (replace(NARROW, limits=(("requests_per_minute", 1), ("budget_tokens (day)", 5), ("concurrency", 9))), None),
    ],
)
def test_a_key_issues_no_key_wider_than_itself(scope: Scope, wider: str | None) -> None:
    """In each respect in which a key can be narrowed; a person is bound by the tenant and plan alone."""
    issuer = key("keys.create", scope=NARROW)
    if wider is None:
        may_issue(issuer, "acme", None, scope)
    else:
        with pytest.raises(Forbidden, match=f"wider {wider}"):
            may_issue(issuer, "acme", None, scope)
    may_issue(person("tenant_admin"), "acme", None, scope)


def test_networks_are_compared_as_networks() -> None:
    """Not as texts; what is no network is an error and not a match."""
    assert networks_within(None, None)
    assert networks_within(("0.0.0.0/0",), ("10.0.0.0/8",))
    assert not networks_within(("10.0.0.0/8",), ("0.0.0.0/0",))
    assert not networks_within(("0.0.0.0/0",), ("::1/128",))
    assert not networks_within((), ("10.0.0.1/32",))
    with pytest.raises(ValueError):
        networks_within(("10.0.0.0/8",), ("office",))


def _children(actor: Actor) -> Iterator[Actor]:
    """Every actor that this one is permitted to make, by any grant or key there is."""
    for role, tenant in itertools.product(ROLES, PLACES):
        try:
            may_grant(actor, role, tenant)
        except (Forbidden, ValueError):
            continue
        yield Actor("user", "usr_2", role, tenant)
    for right, tenant in itertools.product(ACTIONS, ("acme", "globex")):
        for owner in (None, actor.id):
            try:
                may_issue(actor, tenant, owner, Scope(), (right,))
            except Forbidden:
                continue
            yield key(right, tenant=tenant)


def test_nobody_below_the_platform_ever_reaches_it() -> None:
    """All that any actors of one tenant can make, and what those can, until nothing new comes: all of that tenant."""
    starts = [actor for actor in COLUMNS if actor.tenant == "acme"]
    assert len(starts) == 5
    known, fresh = set(starts), list(starts)
    while fresh:
        made = {child for actor in fresh for child in _children(actor)} - known
        known |= made
        fresh = list(made)
    assert len(known) > len(starts)
    assert {actor.tenant for actor in known} == {"acme"}
    assert not {actor.role for actor in known} & PLATFORM_ROLES


@given(st.data())
def test_no_sequence_of_permitted_grants_climbs(data: st.DataObject) -> None:
    """Drawn sequences of grants and keys by drawn actors of two tenants: each stays in its own, below the platform."""
    household = {place: list(_below(place)) for place in ("acme", "globex")}
    for _ in range(data.draw(st.integers(1, 30))):
        home = data.draw(st.sampled_from(("acme", "globex")))
        actor = data.draw(st.sampled_from(household[home]))
        target = data.draw(st.sampled_from(PLACES))
        try:
            if data.draw(st.booleans()):
                role = data.draw(st.sampled_from(ROLES))
                may_grant(actor, role, target)
                made = Actor("user", f"usr_{data.draw(st.integers(2, 5))}", role, target)
            else:
                rights = tuple(data.draw(st.lists(st.sampled_from(ACTIONS), max_size=3)))
                owner = data.draw(st.sampled_from((None, actor.id, "usr_3")))
                may_issue(actor, target or "acme", owner, Scope(), rights)
                made = key(*rights, tenant=target or "acme")
        except (Forbidden, ValueError):
            continue
        assert made.tenant == home
        assert made.role not in PLATFORM_ROLES
        household[home].append(made)


def _below(tenant: str) -> Iterator[Actor]:
    for role in sorted(TENANT_ROLES):
        yield person(role, tenant)
    yield Actor("provider", f"https://idp.{tenant}", None, tenant)
    yield key(*sorted(SERVICE_RIGHTS), tenant=tenant)
