"""The nouns of one call, as they pass from step to step and at last into the journal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from msgspec import Struct

if TYPE_CHECKING:
    from asyncio import Task

    from proxy._fastpath import Limits
    from proxy._journal import Slot
    from proxy._scan import Head, Peek
    from proxy._wire import Relay
    from proxy.dialects.openai_chat import Endpoint
    from proxy.errors import Refusal
    from proxy.exchange import Exchange
    from proxy.identity.keys import Known
    from proxy.policy.effective import Effective
    from proxy.policy.snapshot import Price, Target, Upstream
    from proxy.tokens.tokenizer import Tokenizer
    from proxy.upstreams.pool import Pool

Termination = Literal["complete", "client_gone", "upstream_error", "budget_cut", "revoked", "timeout", "crash"]
Source = Literal["provider", "counted", "estimated"]
Kind = Literal["requests_per_minute", "tokens_per_minute", "concurrency"]  # of limit

CLIENT_GONE_STATUS = 499  # nginx's word for a client that left before its answer

# Each call makes one of each noun with `gc=False`: nothing in them can lead back to them, so none is the collector's.


class Principal(Struct, frozen=True):
    """Who is calling, as `identify` found it. `tags` come from the key."""

    tenant: str
    key_id: str
    owner: str | None = None
    tags: tuple[tuple[str, str], ...] = ()
    endpoints: tuple[str, ...] | None = None  # None: whatever tenant and plan allow
    models: tuple[str, ...] | None = None
    expires_us: int | None = None  # wall clock
    user: str | None = None  # whom the credential itself proves; in the row it stands before the body's own word
    plan: str | None = None  # a plan that narrows it, besides its tenant's
    own_limits: tuple[tuple[Kind, int], ...] = ()
    networks: tuple[str, ...] | None = None  # CIDR blocks; None: from anywhere


class Opened(Struct, array_like=True, frozen=True, gc=False):
    """What `admit` writes into the slot, before anything is sent: enough to write the row if this process dies.

    Prices are integer nano-dollars per million tokens, taken from the snapshot of this request; `price_version` is ""
    when the model has no price. Strings are cut to the bounds of `bounds.py` before they get here.
    """

    tenant: str
    key_id: str
    user: str
    tags: tuple[tuple[str, str], ...]
    request_id: str
    endpoint: str
    model: str  # as the client asked
    stream: bool
    prompt_tokens: int  # estimated or counted at admission
    prompt_source: Source
    started_us: int  # wall clock
    price_prompt: int
    price_cached: int
    price_completion: int
    price_version: str
    reasoning: bool = False  # the model thinks in tokens that it never sends


class Sent(Struct, array_like=True, frozen=True):
    """Where the call went: written into the slot before the first byte goes upstream."""

    upstream: str
    model: str  # the upstream's own name of it


class Progress(Struct, frozen=True, gc=False):
    """What the slot's double buffer says: raised before each write to the client."""

    frames: int = 0
    bytes: int = 0
    text_bytes: int = 0  # bytes of generated text relayed so far: the base of an estimate
    prompt_tokens: int = 0  # the provider's own figures, once seen
    cached_tokens: int = 0
    completion_tokens: int = 0
    reasoning_tokens: int = 0
    audio_tokens: int = 0
    usage_seen: int = 0  # 1 once the provider's figures stand here
    first_us: int = 0  # microseconds from arrival to the first byte of the answer's body
    status: int = 0  # upstream's status, 0 before its head
    text_tokens: int = 0  # of the text relayed so far, counted by the model's tokenizer
    text_estimated: int = 0  # 1 when some of them are not counted but estimated from bytes


class Outcome(Struct, gc=False):
    """How the answer ended. `stream` returns one and raises nothing for what the network did."""

    termination: Termination
    status: int  # what the client was answered
    seen: Progress
    model_served: str = ""  # as the upstream's answer names it
    upstream_request_id: str = ""
    attempts: int = 0


class UsageEvent(Struct, array_like=True, frozen=True, gc=False):
    """The finished record of a call: one row. `(epoch, call)` is its identity; the epoch is the segment's.

    Times: `started_us` wall clock, others durations in microseconds; `first_us` is 0 when no body byte arrived.
    Money: integer nano-dollars; `price_version` "" means unpriced (`cost_nanos` is then 0 and says nothing).
    """

    call: int
    tenant: str
    key_id: str
    user: str
    tags: tuple[tuple[str, str], ...]
    request_id: str
    endpoint: str
    model: str
    model_served: str
    upstream: str
    upstream_request_id: str
    attempts: int
    stream: bool
    status: int
    termination: Termination
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    reasoning_tokens: int
    audio_tokens: int
    source: Source
    relayed_frames: int
    relayed_bytes: int
    cost_nanos: int
    price_version: str
    started_us: int
    queue_us: int
    first_us: int
    total_us: int
    lower_bound: bool = False  # there may have been more tokens than could be counted


class EpochEnd(Struct, array_like=True, frozen=True):
    """The last record of an epoch: how many calls it opened, so that a missing row is a query."""

    calls: int


class Grant:
    """What one key may do with one model at one endpoint under one policy, worked out once and kept with the key.

    On first use `limits` is bound to the arena's cells, `routes` to the worker's pools, `tokenizer` to the model's, and
    what every call's record needs of tenant and model is looked up.
    """

    __slots__ = (
        "answer_tokens_default",
        "effective",
        "limits",
        "price",
        "routes",
        "tag_header",
        "token_burst",
        "tokenizer",
    )

    def __init__(self, effective: Effective) -> None:
        self.effective = effective
        self.limits: Limits | None = None
        self.token_burst = 0
        self.answer_tokens_default = 0
        self.price: Price
        self.routes: tuple[Route, ...] = ()
        self.tag_header: str | None = None  # by which this tenant's callers set a tag of their own
        self.tokenizer: Tokenizer


class Route:
    """One place a call can go: a pool of connections and the bytes that say where."""

    __slots__ = (
        "ask_usage",
        "facts",
        "first_byte_ms",
        "idle_ms",
        "lines",
        "model_literal",
        "pool",
        "priority",
        "sent",
        "total_ms",
        "weight",
    )

    def __init__(self, facts: Sent, sent: bytes, pool: Pool, upstream: Upstream, target: Target) -> None:
        self.facts = facts
        self.sent = sent  # msgpack of `facts`, for the journal's slot
        self.pool = pool
        self.ask_usage = upstream.ask_usage
        self.first_byte_ms = int(upstream.first_byte_seconds * 1000)
        self.idle_ms = int(upstream.idle_seconds * 1000)
        self.total_ms = int(upstream.total_seconds * 1000)
        self.weight = target.weight
        self.priority = target.priority
        # A JSON string to stand in place of the client's model; None: its own stays.
        self.model_literal: bytes | None = None
        self.lines = b""  # header lines besides those of the client that are forwarded


class Call:
    """One request on its way through the eight steps. Each step fills in what it found out."""

    __slots__ = (
        "arrived_ns",
        "body",
        "connecting",
        "ended",
        "endpoint",
        "exchange",
        "facts",
        "grant",
        "head",
        "headers",
        "known",
        "opened",
        "outcome",
        "prompt_source",
        "prompt_tokens",
        "relay",
        "request_id",
        "reserved_tokens",
        "route",
        "sent_ns",
        "seq",
        "slot",
    )

    def __init__(self, exchange: Exchange, endpoint: Endpoint, head: Head, request_id: str) -> None:
        self.exchange = exchange
        self.endpoint = endpoint
        self.head = head
        self.request_id = request_id
        self.arrived_ns = exchange.arrived_ns
        # identify
        self.known: Known
        # accept, the body
        self.body = b""
        self.facts: Peek
        # authorise
        self.grant: Grant
        # admit
        self.prompt_tokens = 0
        self.prompt_source: Source = "estimated"
        self.slot: Slot
        self.opened: Opened
        self.reserved_tokens = 0
        self.headers = b""  # response header lines of Weir's own
        # route
        self.route: Route | None = None
        # stream, meter
        self.relay: Relay | None = None
        self.sent_ns = 0  # 0: nothing went upstream
        self.outcome: Outcome | None = None
        self.connecting: Task[None] | None = None  # its task, while it waits for a connection
        self.ended: Refusal | None = None  # why Weir itself ended it
        self.seq = 0  # of the finished record in the journal
