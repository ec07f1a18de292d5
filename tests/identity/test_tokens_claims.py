"""Claims become a user, a tenant, tags and models as the policy says, and never more than that."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from proxy import bounds
from proxy.call import Principal
from proxy.errors import KINDS, Refusal
from proxy.identity.claims import subject_id
from tests.identity.forge import ISSUER, desk, issuer, token


def principal_of(directory: Path, said: dict[str, Any], tenant: str | None = None, **policy: Any) -> Principal:
    """The principal of a token with these claims under this policy. Raises Refusal."""

    async def story() -> Principal:
        async with desk(directory, issuer(**policy)) as made:
            return (await made.identify(token("ed", "EdDSA", **said), tenant)).principal

    return asyncio.run(story())


def code_of(directory: Path, said: dict[str, Any], tenant: str | None = None, **policy: Any) -> str:
    with pytest.raises(Refusal) as caught:
        principal_of(directory, said, tenant, **policy)
    return caught.value.code


# === tenants ===


def test_the_header_chooses_among_the_issuers_tenants(tmp_path: Path) -> None:
    """Without a claim the client says which of the issuer's tenants it means, and cannot name another."""
    several = {"tenants": ("acme", "beta")}
    assert principal_of(tmp_path, {}, "beta", **several).tenant == "beta"
    assert principal_of(tmp_path, {}, "acme", **several).tenant == "acme"
    assert code_of(tmp_path, {}, None, **several) == "tenant_required"
    assert code_of(tmp_path, {}, "gamma", **several) == "tenant_mismatch"
    assert code_of(tmp_path, {}, "ACME", **several) == "tenant_mismatch"
    assert code_of(tmp_path, {}, "", **several) == "tenant_mismatch"
    assert KINDS["tenant_required"].status == KINDS["tenant_mismatch"].status == 403


def test_the_claim_decides_where_there_is_one(tmp_path: Path) -> None:
    """With a claim the header may agree with it, and can choose only among what the claim names."""
    policy = {"tenants": ("acme", "beta", "gamma"), "tenant_claim": "org.id"}
    assert principal_of(tmp_path, {"org": {"id": "beta"}}, **policy).tenant == "beta"
    assert principal_of(tmp_path, {"org": {"id": "beta"}}, "beta", **policy).tenant == "beta"
    assert code_of(tmp_path, {"org": {"id": "beta"}}, "acme", **policy) == "tenant_mismatch"
    both = {"org": {"id": ["gamma", "beta", "elsewhere"]}}
    assert code_of(tmp_path, both, **policy) == "tenant_required"
    assert principal_of(tmp_path, both, "gamma", **policy).tenant == "gamma"
    assert code_of(tmp_path, both, "acme", **policy) == "tenant_mismatch"
    assert code_of(tmp_path, both, "elsewhere", **policy) == "tenant_mismatch"
    # A claim that is missing is not a claim of everything.
    for said in ({}, {"org": {}}, {"org": "beta"}, {"org": {"id": ""}}, {"org": {"id": []}}, {"org": {"id": [1]}}):
        assert code_of(tmp_path, said, "beta", **policy) in ("token_claim", "tenant_mismatch")


def test_a_user_of_two_tenants_is_two_subjects(tmp_path: Path) -> None:
    """One token used in two tenants has an id and so limits of its own in each."""

    async def story() -> None:
        async with desk(tmp_path, issuer(tenants=("acme", "beta"))) as made:
            said = token()
            ids = {(await made.identify(said, tenant)).principal.key_id for tenant in ("acme", "beta")}
            assert ids == {subject_id(tenant, ISSUER, "u-1") for tenant in ("acme", "beta")}
            assert len(ids) == 2
            assert await made.identify(said, "acme") is await made.identify(said, "acme")

    asyncio.run(story())


# === users ===


def test_the_user_of_the_rows(tmp_path: Path) -> None:
    """The user is the claim that the policy names, the subject without it, and cut to its bound."""
    assert principal_of(tmp_path, {"name": "Ann"}, user_claim="name").user == "Ann"
    assert principal_of(tmp_path, {}, user_claim="name").user == "u-1"
    assert principal_of(tmp_path, {"name": 7}, user_claim="name").user == "u-1"
    assert principal_of(tmp_path, {"a": {"b": "deep"}}, user_claim="a.b").user == "deep"
    assert principal_of(
        tmp_path, {"https://x.example/a.b": "taken whole"}, user_claim="https://x.example/a.b"
    ).user == ("taken whole")
    long = principal_of(tmp_path, {"name": "ü" * 500}, user_claim="name").user
    assert long is not None
    assert len(long.encode()) <= bounds.USER_BYTES_MAX
    # A lone surrogate is no text for a database.
    assert principal_of(tmp_path, {"name": "x\ud800"}, user_claim="name").user == "x?"


@pytest.mark.parametrize("verified", [None, False, "true", 1, "yes", [True]])
def test_an_address_that_nobody_verified_is_nobodys(tmp_path: Path, verified: object) -> None:
    """An e-mail address counts when the issuer says it is verified, in the one way there is to say it."""
    said = {"email": "boss@example.com", "email_verified": verified}
    assert principal_of(tmp_path, said, user_claim="email").user == "u-1"
    assert code_of(tmp_path, said, email_domains=("example.com",)) == "email_not_allowed"
    good = {**said, "email_verified": True}
    assert principal_of(tmp_path, good, user_claim="email").user == "boss@example.com"
    assert principal_of(tmp_path, good, email_domains=("example.com",)).user == "u-1"


@pytest.mark.parametrize(
    "address",
    [None, "", "example.com", "@example.com", "a@b@example.com", "a@example.com.evil.example", "a@sub.example.com",
     "a@examplе.com", "a@example.com\n", ["a@example.com"], "a@evil.example"],
)  # fmt: skip
def test_a_domain_is_the_whole_domain(tmp_path: Path, address: object) -> None:
    """Only an address of exactly an allowed domain passes; letters may be of either case."""
    policy = {"email_domains": ("example.com", "example.org")}
    said = {"email": address, "email_verified": True}
    assert code_of(tmp_path, said, **policy) == "email_not_allowed"
    assert principal_of(tmp_path, {**said, "email": "A@Example.ORG"}, **policy).tenant == "acme"


def test_without_a_rule_an_address_says_nothing(tmp_path: Path) -> None:
    """Without domains in the policy, a token without any address is as good as one with."""
    assert principal_of(tmp_path, {}) == principal_of(tmp_path, {"email": "a@evil.example", "email_verified": False})


def test_tags(tmp_path: Path) -> None:
    """The claims that the policy names become tags, within the room that a row has for them."""
    said = {"team": "red", "level": 3, "boss": True, "list": ["a"], "deep": {"er": "x"}}
    policy = {"tag_claims": ("team", "level", "boss", "list", "deep.er", "absent")}
    assert principal_of(tmp_path, said, **policy).tags == (("team", "red"), ("level", "3"), ("deep.er", "x"))
    wide = dict.fromkeys("abc", "ü" * 100)
    tags = principal_of(tmp_path, wide, tag_claims=("a", "b", "c")).tags
    assert [name for name, _ in tags] == ["a"]
    assert sum(len(name) + len(value.encode()) for name, value in tags) <= bounds.TAGS_BYTES_MAX


# === groups and roles ===

OPENED = {
    "groups": {"analysts": ("small",), "writers": ("large", "small"), "admins": None},
    "roles": {"reader": ("embed",)},
}


@pytest.mark.parametrize(
    ("said", "models"),
    [
        ({}, ()),
        ({"groups": []}, ()),
        ({"groups": ["unknown"]}, ()),
        ({"groups": ["analysts"]}, ("small",)),
        ({"groups": "analysts writers"}, ("large", "small")),
        ({"groups": ["analysts"], "roles": ["reader"]}, ("embed", "small")),
        ({"groups": ["unknown", "admins"]}, None),
        ({"groups": ["Analysts"]}, ()),
        ({"groups": ["analysts", 7]}, ()),
        ({"groups": {"analysts": True}}, ()),
        ({"groups": "analysts,writers"}, ()),
        ({"roles": ["analysts"]}, ()),
        ({"groups": ["reader"]}, ()),
    ],
)
def test_groups_open_models(tmp_path: Path, said: dict[str, Any], models: tuple[str, ...] | None) -> None:
    """A token opens what its groups and roles open together, and nothing with none of them."""
    assert principal_of(tmp_path, said, **OPENED).models == models


def test_without_a_mapping_nothing_is_narrowed(tmp_path: Path) -> None:
    """A policy that names no group leaves plan and tenant to decide; endpoints are the issuer's."""
    assert principal_of(tmp_path, {"groups": ["any"]}).models is None
    assert principal_of(tmp_path, {}).endpoints is None
    assert principal_of(tmp_path, {}, endpoints=("embeddings",)).endpoints == ("embeddings",)


def test_claims_by_path(tmp_path: Path) -> None:
    """Groups and roles are found where the policy says, in objects too."""
    said = {"realm_access": {"roles": ["reader"]}, "https://example.com/groups": ["analysts"]}
    where = {"groups_claim": "https://example.com/groups", "roles_claim": "realm_access.roles"}
    assert principal_of(tmp_path, said, **where, **OPENED).models == ("embed", "small")


@pytest.mark.parametrize(
    ("said", "models"),
    [
        (
            {"_claim_names": {"groups": "src1"}, "_claim_sources": {"src1": {"endpoint": "https://x.example"}}},
            ("embed",),
        ),
        ({"_claim_names": {"groups": "src1"}, "groups": ["writers"]}, ("embed",)),
        ({"_claim_names": {"roles": "src1"}, "groups": ["writers"]}, ()),
        ({"hasgroups": True, "groups": ["writers"]}, ("embed",)),
        ({"hasgroups": "true", "groups": ["writers"]}, ("embed",)),
        ({"_claim_names": [], "groups": ["writers"]}, ("embed",)),
    ],
)
def test_groups_that_did_not_fit_are_none(tmp_path: Path, said: dict[str, Any], models: tuple[str, ...]) -> None:
    """Where the issuer left groups out, those that came count as little, and it is counted and logged once a minute."""

    async def story() -> None:
        async with desk(tmp_path, issuer(**OPENED)) as made:
            first = token("ed", "EdDSA", **{"roles": ["reader"], **said})
            assert (await made.identify(first)).principal.models == models
            await made.identify(first)
            assert made.told.overages == ["corp"]

    asyncio.run(story())


def test_left_out_groups_are_logged_now_and_then(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Many such tokens make one line a minute, which names the issuer and nothing of the tokens."""

    async def story() -> None:
        async with desk(tmp_path) as made:
            for number in range(5):
                await made.identify(token("ed", "EdDSA", sub=f"secret-{number}", hasgroups=True))
            assert made.told.overages == ["corp"] * 5

    asyncio.run(story())
    lines = [line for line in caplog.messages if "groups" in line]
    assert len(lines) == 1
    assert "corp" in lines[0]
    assert "secret" not in lines[0]
