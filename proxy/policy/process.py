"""What an operator may write about the process, in weir.yaml: listeners, journal, retention, log. See `schema`."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct, field

from proxy import bounds
from proxy.policy.patterns import whole

Endpoint = Literal["chat.completions", "completions", "embeddings"]
Port = Annotated[int, Meta(ge=0, le=65535)]
Cidr = Annotated[str, Meta(max_length=49)]
TenantDomain = Annotated[
    str,
    Meta(
        pattern=whole(r"[a-z0-9-]+(\.[a-z0-9-]+)*"),
        max_length=200,
        extra={"rule": "a domain in lower case, such as weir.example.com"},
    ),
]


class Written(Struct, frozen=True, forbid_unknown_fields=True):
    """The base of everything an operator writes."""


class Tls(Written, frozen=True):
    """TLS on the listener."""

    certificate: Annotated[
        str,
        Meta(description="Certificate chain, PEM.", examples=["/etc/weir/tls/cert.pem"], extra={"path": True}),
    ]
    key: Annotated[
        str,
        Meta(
            description="Its private key, PEM, without a password.",
            examples=["/etc/weir/tls/key.pem"],
            extra={"path": True},
        ),
    ]


class Listen(Written, frozen=True):
    """Where clients connect."""

    host: Annotated[str, Meta(description="Address to listen on.", examples=["0.0.0.0"])] = "127.0.0.1"
    port: Annotated[Port, Meta(description="Port; 0 takes a free one.", examples=[8080])] = 8080
    tls: Annotated[Tls | None, Meta(description="Serve https; without it http.", extra={"default": "none"})] = None
    trusted_proxies: Annotated[
        list[Cidr],
        Meta(
            max_length=bounds.TRUSTED_PROXIES_MAX,
            description="Addresses of reverse proxies. From them alone X-Forwarded-For says where a client is.",
            examples=[["10.0.0.0/24"]],
        ),
    ] = field(default_factory=list)
    tenant_domain: Annotated[
        TenantDomain | None,
        Meta(
            description="Clients may name their tenant by a subdomain of it: `acme.weir.example.com`.",
            examples=["weir.example.com"],
            extra={"default": "hosts say nothing"},
        ),
    ] = None
    failures_per_minute: Annotated[
        int,
        Meta(
            ge=1,
            le=bounds.LIMIT_MAX,
            description="Bad credentials from one address that are told so; more are a 429. Good ones always pass.",
            examples=[120],
        ),
    ] = bounds.FAILURES_PER_MINUTE_DEFAULT


class Metrics(Written, frozen=True):
    """Where /metrics, /healthz and /readyz of the host are served."""

    host: Annotated[str, Meta(description="Address to listen on.", examples=["127.0.0.1"])] = "127.0.0.1"
    port: Annotated[Port, Meta(description="Port; 0 takes a free one.", examples=[9091])] = 9091


OnRevoke = Literal["cut", "finish"]


class Identity(Written, frozen=True):
    """What holds for keys, and for the tokens of issuers, when they end."""

    freshness_seconds: Annotated[
        float,
        Meta(
            ge=1,
            le=86_400,
            description="How old the last look at which keys have ended may be. A host looks three times a second.",
            examples=[10],
            extra={"unit": "seconds"},
        ),
    ] = 10.0
    on_stale: Annotated[
        Literal["allow", "refuse"],
        Meta(
            description="When it is older: `allow` serves those who are known here, `refuse` answers everybody 503.",
            examples=["allow"],
        ),
    ] = "allow"
    on_revoke: Annotated[
        OnRevoke,
        Meta(
            description="Calls that run when their key ends: `cut` ends them too, `finish` lets them go on.",
            examples=["cut"],
        ),
    ] = "cut"


class Control(Written, frozen=True):
    """Where the admin API is served."""

    host: Annotated[str, Meta(description="Address to listen on.", examples=["127.0.0.1"])] = "127.0.0.1"
    port: Annotated[Port, Meta(description="Port; 0 takes a free one.", examples=[9092])] = 9092
    tls: Annotated[Tls | None, Meta(description="Serve https; without it http.", extra={"default": "none"})] = None
    hosts: Annotated[
        list[
            Annotated[
                str, Meta(pattern=whole(r"[a-z0-9.-]+"), max_length=253, extra={"rule": "a host name in lower case"})
            ]
        ],
        Meta(
            description="Names under which it is called, besides localhost and addresses.",
            examples=[["weir.internal"]],
        ),
    ] = field(default_factory=list)
    audience: Annotated[
        Annotated[str, Meta(min_length=1, max_length=200)] | None,
        Meta(
            description="What `aud` must hold in a token of an issuer that signs somebody in.",
            examples=["weir-admin"],
            extra={"default": "none: nobody signs in by a token"},
        ),
    ] = None


class Journal(Written, frozen=True):
    """The record on disk of what is in flight and what is done."""

    sync_ms: Annotated[
        int,
        Meta(
            ge=1,
            le=10_000,
            description="Finished calls are synced to disk as a group this often. A power cut loses at most these.",
            examples=[50],
            extra={"unit": "milliseconds"},
        ),
    ] = 50
    max_bytes: Annotated[
        int,
        Meta(
            ge=16 * 1024 * 1024,
            le=1 << 50,
            description="How far the journal may grow while the database is away. Beyond it: 503.",
            examples=[1_073_741_824],
            extra={"unit": "bytes"},
        ),
    ] = 1024 * 1024 * 1024
    durability: Annotated[
        Literal["group", "strict"],
        Meta(description="`strict` holds the end of each answer until its record is on disk.", examples=["group"]),
    ] = "group"
    slots: Annotated[
        int,
        Meta(
            ge=16,
            le=65_536,
            description="Calls in flight in one worker; one more is refused with 503.",
            examples=[8192],
        ),
    ] = bounds.SLOTS_PER_WORKER
    segment_bytes: Annotated[
        int,
        Meta(
            ge=64 * 1024,
            le=1 << 30,
            multiple_of=4096,
            description="Size of one segment file, allocated whole.",
            examples=[16_777_216],
            extra={"unit": "bytes"},
        ),
    ] = bounds.SEGMENT_BYTES


class Retention(Written, frozen=True):
    """How long rows are kept."""

    usage_days: Annotated[
        int,
        Meta(
            ge=1, le=36_500, description="Age at which usage rows are deleted.", examples=[400], extra={"unit": "days"}
        ),
    ] = 400


class Log(Written, frozen=True):
    """What is written to standard output."""

    requests: Annotated[
        Literal["json", "summary", "off"],
        Meta(description="One line per request: as JSON, for people, or none.", examples=["json"]),
    ] = "json"
