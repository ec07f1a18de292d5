"""What an operator may write about the issuers of tokens, under `issuers` in weir.yaml. See `schema`."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, field

from proxy import bounds
from proxy.policy.patterns import whole
from proxy.policy.process import Endpoint, Written

# Asymmetric ones alone: with a shared secret, whoever can check a token can make one.
Algorithm = Literal["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"]
ALGORITHMS: tuple[Algorithm, ...] = ("RS256", "PS256", "ES256", "EdDSA")  # where the operator names none
Type = Literal["at+jwt", "JWT", "absent"]
TYPES: tuple[Type, ...] = ("at+jwt", "JWT")

Name = Annotated[
    str,
    Meta(
        pattern=whole(r"[!-~]+"),
        max_length=bounds.CLAIM_NAME_BYTES_MAX,
        extra={"rule": "printable ASCII without spaces"},
    ),
]
GroupName = Annotated[str, Meta(max_length=bounds.CLAIM_NAME_BYTES_MAX)]
Domain = Annotated[
    str,
    Meta(
        pattern=whole(r"[a-z0-9-]+(\.[a-z0-9-]+)+"),
        max_length=253,
        extra={"rule": "a domain in lower case, such as example.com"},
    ),
]
Address = Annotated[str, Meta(max_length=bounds.ISSUER_BYTES_MAX)]
Names = Annotated[list[Name], Meta(min_length=1)]


class Claims(Written, frozen=True):
    """Which claim of a token says what. Dots lead into objects; a name with `://` in it is taken whole."""

    user: Annotated[
        Name,
        Meta(
            description="The user that stands in the rows. An `email` counts only when the issuer says it is verified.",
            examples=["preferred_username"],
        ),
    ] = "sub"
    tenant: Annotated[
        Name | None,
        Meta(
            description="Name of the token's tenant, or a list of them; required of every token once written.",
            examples=["org"],
            extra={"default": "none: `X-Tenant-ID` chooses among several"},
        ),
    ] = None
    groups: Annotated[
        Name, Meta(description="The user's groups: a list, or names with spaces between.", examples=["groups"])
    ] = "groups"
    roles: Annotated[Name, Meta(description="The user's roles, likewise.", examples=["realm_access.roles"])] = "roles"
    tags: Annotated[
        Names | None,
        Meta(
            description="Claims that are kept with each row as tags of that name.",
            examples=[["department"]],
            extra={"default": "none"},
        ),
    ] = None


class Access(Written, frozen=True):
    """What one group or role opens."""

    models: Annotated[
        Names | None,
        Meta(
            description='Models that it may use; `"*"` is every model.',
            examples=[["gpt-4o-mini"]],
            extra={"default": "all of the tenant's"},
        ),
    ] = None


class Issuer(Written, frozen=True):
    """An identity provider whose tokens open this gateway, for the tenants named here and no others."""

    issuer: Annotated[
        Address,
        Meta(
            description="Its `iss`, to the letter.",
            examples=["https://login.example.com/realms/acme"],
        ),
    ]
    tenants: Annotated[Names, Meta(description="Tenants that it may speak for.", examples=[["acme"]])]
    audiences: Annotated[
        Names, Meta(description="A token is taken when its `aud` is or holds one of these.", examples=[["weir"]])
    ]
    algorithms: Annotated[
        Annotated[list[Algorithm], Meta(min_length=1)] | None,
        Meta(description="Signatures that are taken.", examples=[["ES256"]], extra={"default": ", ".join(ALGORITHMS)}),
    ] = None
    types: Annotated[
        Annotated[list[Type], Meta(min_length=1)] | None,
        Meta(
            description="What `typ` in a token's header may be; `absent` takes tokens without one.",
            examples=[["at+jwt"]],
            extra={"default": ", ".join(TYPES)},
        ),
    ] = None
    keys: Annotated[
        Address | None,
        Meta(
            description="Its JWK set, where it cannot be discovered: an address, or `file:/path` where there is none.",
            examples=["file:/etc/weir/corp.jwks.json"],
            extra={"default": "from `/.well-known/openid-configuration`"},
        ),
    ] = None
    ca_bundle: Annotated[
        str | None,
        Meta(
            description="Certificates to trust when its keys are fetched, PEM.",
            examples=["/etc/weir/tls/ca.pem"],
            extra={"path": True, "default": "the system's"},
        ),
    ] = None
    http_loopback: Annotated[
        bool, Meta(description="Take `http` addresses on this machine's loopback; elsewhere never.", examples=[True])
    ] = False
    skew_seconds: Annotated[
        int,
        Meta(
            ge=0,
            le=bounds.TOKEN_SKEW_SECONDS_MAX,
            description="How far its clock may be from ours.",
            examples=[30],
            extra={"unit": "seconds"},
        ),
    ] = 30
    refresh_seconds: Annotated[
        int,
        Meta(
            ge=5,
            le=86_400,
            description="How often each worker fetches its keys.",
            examples=[300],
            extra={"unit": "seconds"},
        ),
    ] = 300
    stale_seconds: Annotated[
        int,
        Meta(
            ge=60,
            le=30 * 86_400,
            description="How long the last good keys serve while new ones cannot be had; then its tokens are a 503.",
            examples=[86_400],
            extra={"unit": "seconds"},
        ),
    ] = 86_400
    claims: Annotated[Claims, Meta(description="Which claim says what.")] = Claims()
    email_domains: Annotated[
        Annotated[list[Domain], Meta(min_length=1)] | None,
        Meta(
            description="Only users whose verified `email` is of one of these domains.",
            examples=[["example.com"]],
            extra={"default": "e-mail addresses say nothing"},
        ),
    ] = None
    endpoints: Annotated[
        Annotated[list[Endpoint], Meta(min_length=1)] | None,
        Meta(
            description="Endpoints that its tokens may use.",
            examples=[["chat.completions"]],
            extra={"default": "all of the tenant's"},
        ),
    ] = None
    groups: Annotated[
        dict[GroupName, Access],
        Meta(
            description="What each group opens. Once a group or role is named here, a token opens what its own open "
            "together, and nothing when it has none of them."
        ),
    ] = field(default_factory=dict)
    roles: Annotated[dict[GroupName, Access], Meta(description="What each role opens.")] = field(default_factory=dict)
