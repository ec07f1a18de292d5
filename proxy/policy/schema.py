"""What an operator may write, file by file. The shape pass, docs/configuration.md and the JSON Schema all read this.

Each field's `Meta` gives bounds, meaning and example; `extra` gives what msgspec has no word for: `unit`, `secret`
(only a reference may stand there), `address` (a URL whose password may not stand there), `path` (a file's path), `rule`
(a pattern in words) and `default` (a default in words).
"""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, Literal

from msgspec import Meta, field

from proxy import bounds
from proxy.policy import process
from proxy.policy.issuing import Issuer
from proxy.policy.patterns import whole
from proxy.policy.process import Endpoint, Identity, Journal, Listen, Log, Metrics, OnRevoke, Retention, Written

ENCODINGS = ("o200k_base", "cl100k_base", "o200k_harmony")  # tokenizers that Weir has inside
EVERY = "*"  # as a model's name: any other name, passed on unchanged; in a list of rights: every model

TenantName = Annotated[
    str,
    Meta(
        pattern=whole(r"[a-z0-9][a-z0-9_-]*"),
        max_length=bounds.TENANT_NAME_BYTES_MAX,
        extra={"rule": "lower-case letters, digits, - and _, beginning with a letter or digit"},
    ),
]
UpstreamName = Annotated[
    str,
    Meta(
        pattern=whole(r"[a-z0-9][a-z0-9_.-]*"),
        max_length=bounds.UPSTREAM_NAME_BYTES_MAX,
        extra={"rule": "lower-case letters, digits, ., - and _, beginning with a letter or digit"},
    ),
]
ModelName = Annotated[
    str,
    Meta(
        pattern=whole(r"[!-~]+"),
        max_length=bounds.MODEL_BYTES_MAX,
        extra={"rule": "printable ASCII without spaces"},
    ),
]
Endpoints = Annotated[list[Endpoint], Meta(min_length=1)]
ModelNames = Annotated[list[ModelName], Meta(min_length=1)]
TokenizerName = Annotated[
    str,
    Meta(
        pattern=whole(rf"(auto|estimate|{'|'.join(ENCODINGS)}|file:.+)"),
        max_length=bounds.TOKENIZER_NAME_BYTES_MAX,
        extra={"rule": f"auto, estimate, {', '.join(ENCODINGS)} or file:/path/tokenizer.json"},
    ),
]
HeaderName = Annotated[
    str,
    Meta(
        pattern=whole(r"[A-Za-z0-9-]+"), max_length=bounds.TAG_HEADER_BYTES_MAX, extra={"rule": "letters, digits and -"}
    ),
]
Seconds = Annotated[float, Meta(ge=0.01, le=86_400, extra={"unit": "seconds"})]
Count = Annotated[int, Meta(ge=1, le=bounds.LIMIT_MAX)]
Dollars = Annotated[
    Decimal,
    Meta(extra={"unit": "dollars per million tokens"}),
]


# === weir.yaml ===


class Timeouts(Written, frozen=True):
    """How long each stage of one call to an upstream may take."""

    connect_seconds: Annotated[Seconds, Meta(description="To connect, TLS included.", examples=[5])] = 5.0
    first_byte_seconds: Annotated[
        Seconds, Meta(description="From the request to the first byte of the answer.", examples=[600])
    ] = 600.0
    idle_seconds: Annotated[Seconds, Meta(description="Between two reads of an answer.", examples=[120])] = 120.0
    total_seconds: Annotated[Seconds, Meta(description="The whole answer.", examples=[1800])] = 1800.0


class Upstream(Written, frozen=True):
    """One OpenAI-compatible server that calls go to."""

    url: Annotated[
        str,
        Meta(description="Base address; endpoints are appended to it.", examples=["https://api.openai.com/v1"]),
    ]
    key: Annotated[
        str | None,
        Meta(
            description="Its credential, sent as a bearer token. `${NAME:-}` sends none while NAME is unset.",
            examples=["${OPENAI_API_KEY}"],
            extra={"secret": True, "default": "none is sent"},
        ),
    ] = None
    ca_bundle: Annotated[
        str | None,
        Meta(
            description="Certificates to trust for this upstream alone, PEM.",
            examples=["/etc/weir/tls/ca.pem"],
            extra={"path": True, "default": "the system's"},
        ),
    ] = None
    tenant_header: Annotated[
        HeaderName | None,
        Meta(
            description="Request header in which it is told the tenant of each call.",
            examples=["X-Tenant"],
            extra={"default": "it is not told"},
        ),
    ] = None
    ask_usage: Annotated[
        bool,
        Meta(description="Ask for the usage frame of a stream; false for servers that refuse it.", examples=[True]),
    ] = True
    timeouts: Annotated[Timeouts, Meta(description="Bounds on one call.")] = Timeouts()
    max_connections: Annotated[
        int, Meta(ge=1, le=bounds.CONNECTIONS_MAX, description="Open connections, per worker.", examples=[512])
    ] = 512
    max_waiting: Annotated[
        int,
        Meta(
            ge=0,
            le=bounds.CONNECTIONS_MAX,
            description="Calls that may wait for a connection, per worker; one more is refused with 503.",
            examples=[256],
        ),
    ] = 256


class Target(Written, frozen=True):
    """One place where a model is served."""

    upstream: Annotated[str, Meta(description="Name of the upstream.", examples=["openai"])]
    model: Annotated[
        ModelName | None,
        Meta(
            description="The upstream's own name of the model.",
            examples=["gpt-4o-mini-2024-07-18"],
            extra={"default": "the public name"},
        ),
    ] = None
    weight: Annotated[
        int,
        Meta(ge=0, le=1_000_000, description="Share of the calls among equal priority; 0 takes none.", examples=[3]),
    ] = 1
    priority: Annotated[int, Meta(ge=0, le=1_000, description="The lowest number takes all calls.", examples=[0])] = 0


class Limits(Written, frozen=True):
    """Limits of one level. What is left out is not limited at this level."""

    requests_per_minute: Annotated[
        Count | None,
        Meta(
            description="Requests in any minute.",
            examples=[600],
            extra={"unit": "requests/minute", "default": "unlimited"},
        ),
    ] = None
    tokens_per_minute: Annotated[
        Count | None,
        Meta(
            description="Tokens in any minute, prompt and answer.",
            examples=[200_000],
            extra={"unit": "tokens/minute", "default": "unlimited"},
        ),
    ] = None
    concurrency: Annotated[
        Count | None,
        Meta(
            description="Calls in flight at one time.", examples=[20], extra={"unit": "calls", "default": "unlimited"}
        ),
    ] = None
    requests_burst: Annotated[
        Count | None,
        Meta(
            description="Requests that may come at once after a quiet time.",
            examples=[50],
            extra={"unit": "requests", "default": "requests_per_minute"},
        ),
    ] = None
    tokens_burst: Annotated[
        Count | None,
        Meta(
            description="Tokens that may be taken at once after a quiet time. A prompt that is larger can never pass.",
            examples=[100_000],
            extra={"unit": "tokens", "default": "tokens_per_minute"},
        ),
    ] = None


class Model(Written, frozen=True):
    """One model as clients name it: either `upstream` (one place) or `targets` (several)."""

    upstream: Annotated[
        str | None,
        Meta(
            description="Short form: the one upstream that serves it.",
            examples=["openai"],
            extra={"default": "see targets"},
        ),
    ] = None
    model: Annotated[
        ModelName | None,
        Meta(
            description="With `upstream`: the upstream's own name of it.",
            examples=["gpt-4o-mini-2024-07-18"],
            extra={"default": "the public name"},
        ),
    ] = None
    targets: Annotated[
        Annotated[list[Target], Meta(min_length=1)] | None,
        Meta(description="Long form: every place that serves it.", extra={"default": "see upstream"}),
    ] = None
    endpoints: Annotated[
        Endpoints | None,
        Meta(
            description="Where it can be used.",
            examples=[["chat.completions"]],
            extra={"default": "every endpoint"},
        ),
    ] = None
    answer_tokens_default: Annotated[
        int,
        Meta(
            ge=1,
            le=10_000_000,
            description="Reserved for the answer when the call sets no maximum.",
            examples=[1024],
            extra={"unit": "tokens"},
        ),
    ] = 1024
    tokenizer: Annotated[
        TokenizerName,
        Meta(
            description=(
                "What counts its tokens where the provider does not. `auto` goes by the upstream's name of the model, "
                "then by the public one; `file:` names a HuggingFace tokenizer.json; `estimate` learns bytes per token."
            ),
            examples=["o200k_base"],
        ),
    ] = "auto"
    family: Annotated[
        str | None,
        Meta(
            description="The family of models whose arithmetic of messages, tools and images it has, for an alias.",
            examples=["gpt-4o"],
            extra={"default": "by the model's name"},
        ),
    ] = None
    unpriced: Annotated[
        bool,
        Meta(description="Serve it without a price: its rows have no cost and can be rated later.", examples=[True]),
    ] = False
    limits: Annotated[
        Limits, Meta(description="What one tenant may use of this model. Plans and tenants can narrow it.")
    ] = Limits()


class WeirFile(Written, frozen=True):
    """`weir.yaml`: the process, the upstreams, the models."""

    upstreams: Annotated[dict[UpstreamName, Upstream], Meta(description="Servers that calls go to, by name.")]
    models: Annotated[
        dict[ModelName, Model],
        Meta(
            description='Models by the name that clients use. `"*"` takes every other name and passes it on unchanged.'
        ),
    ]
    listen: Annotated[Listen, Meta(description="Where clients connect.")] = Listen()
    metrics: Annotated[Metrics, Meta(description="Where the host's metrics and health are served.")] = Metrics()
    control: Annotated[process.Control, Meta(description="Where the admin API is served.")] = process.Control()
    data_dir: Annotated[
        str,
        Meta(
            description="Journal, limits, default database and secret.key of this host. A local disk.",
            examples=["/var/lib/weir"],
            extra={"path": True},
        ),
    ] = ".data"
    database: Annotated[
        str | None,
        Meta(
            description="Where keys and usage are kept: `sqlite:///path` or `postgresql://`.",
            examples=["postgresql://weir:${WEIR_DB_PASSWORD}@db.internal/weir"],
            extra={"address": ["sqlite", "postgresql"], "default": "weir.db in data_dir"},
        ),
    ] = None
    redis: Annotated[
        str | None,
        Meta(
            description="Transport of usage between hosts.",
            examples=["redis://redis.internal:6379/0"],
            extra={"address": ["redis", "rediss", "unix"], "default": "none: the keeper writes to the database itself"},
        ),
    ] = None
    workers: Annotated[
        int, Meta(ge=1, le=bounds.WORKERS_MAX, description="Worker processes, one core each.", examples=[4])
    ] = 1
    drain_seconds: Annotated[
        float,
        Meta(
            ge=0,
            le=3600,
            description="How long streams may go on after SIGTERM.",
            examples=[30],
            extra={"unit": "seconds"},
        ),
    ] = float(bounds.DRAIN_SECONDS_DEFAULT)
    journal: Annotated[Journal, Meta(description="The journal in data_dir.")] = Journal()
    retention: Annotated[Retention, Meta(description="How long rows are kept.")] = Retention()
    log: Annotated[Log, Meta(description="What is logged.")] = Log()
    identity: Annotated[Identity, Meta(description="Keys and tokens that have ended.")] = Identity()
    issuers: Annotated[
        dict[UpstreamName, Issuer],
        Meta(description="Identity providers whose tokens (JWT) are taken in place of API keys, by a name of yours."),
    ] = field(default_factory=dict)
    pepper: Annotated[
        str | None,
        Meta(
            description="Key of the API keys' digests, 64 hexadecimal digits. Hosts with one database share it.",
            examples=["${WEIR_PEPPER}"],
            extra={"secret": True, "default": "secret.key in data_dir, made on first use"},
        ),
    ] = None


# === plans.yaml ===


class Rights(Written, frozen=True):
    """What plans and tenants have in common."""

    endpoints: Annotated[
        Endpoints | None,
        Meta(
            description="Endpoints that may be used.",
            examples=[["chat.completions", "embeddings"]],
            extra={"default": "all of the level above"},
        ),
    ] = None
    models: Annotated[
        ModelNames | None,
        Meta(
            description='Models that may be used; `"*"` is every model.',
            examples=[["gpt-4o-mini"]],
            extra={"default": "all of the level above"},
        ),
    ] = None
    limits: Annotated[Limits, Meta(description="Limits of a tenant: all its keys together.")] = Limits()
    key_limits: Annotated[Limits, Meta(description="Limits of each of its keys.")] = Limits()
    model_limits: Annotated[
        dict[ModelName, Limits],
        Meta(description='Limits of a tenant on one model; `"*"` is every name without an entry of its own, together.'),
    ] = field(default_factory=dict)
    on_revoke: Annotated[
        OnRevoke | None,
        Meta(
            description="Calls that run when their key ends: `cut` ends them too, `finish` lets them go on.",
            examples=["finish"],
            extra={"default": "the plan's for a tenant, else that of identity in weir.yaml"},
        ),
    ] = None


class Plan(Rights, frozen=True):
    """What a tenant on this plan may use."""


class PlansFile(Written, frozen=True):
    """`plans.yaml`."""

    plans: Annotated[dict[TenantName, Plan], Meta(description="Plans by name.")]


# === prices.yaml ===


class Price(Written, frozen=True):
    """The price of one model, exact to the nano-dollar per million tokens."""

    prompt: Annotated[Dollars, Meta(description="Prompt tokens.", examples=["0.15"])]
    completion: Annotated[Dollars, Meta(description="Completion tokens, reasoning included.", examples=["0.60"])]
    cached: Annotated[
        Dollars | None,
        Meta(
            description="Prompt tokens that the upstream had cached.", examples=["0.075"], extra={"default": "prompt"}
        ),
    ] = None


class PricesFile(Written, frozen=True):
    """`prices.yaml`; may be absent when every model is unpriced."""

    version: Annotated[
        str,
        Meta(
            min_length=1,
            max_length=bounds.PRICE_VERSION_BYTES_MAX,
            pattern=whole(r"[!-~]*"),
            description="Name of this price list; stands in every usage row.",
            examples=["2025-06"],
            extra={"rule": "printable ASCII without spaces"},
        ),
    ]
    models: Annotated[
        dict[ModelName, Price],
        Meta(description='Prices by public name; `"*"` is the price of names without one.'),
    ] = field(default_factory=dict)


# === tenants/<tenant>.yaml ===


class TenantFile(Rights, frozen=True, kw_only=True):
    """`tenants/<tenant>.yaml`: one tenant. It can narrow its plan, never widen it."""

    name: Annotated[TenantName, Meta(description="Its name: that of the file.", examples=["acme"])]
    plan: Annotated[str, Meta(description="Name of its plan.", examples=["team"])]
    status: Annotated[
        Literal["active", "suspended"],
        Meta(description="`suspended` refuses every call and keeps everything else.", examples=["active"]),
    ] = "active"
    tag_header: Annotated[
        HeaderName | None,
        Meta(
            description="Request header whose value is kept with each row as a tag of that name.",
            examples=["X-Team"],
            extra={"default": "none"},
        ),
    ] = None
