"""What an operator may write about the process, in weir.yaml: listeners, journal, retention, log. See `schema`."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from proxy import bounds

Endpoint = Literal["chat.completions", "completions", "embeddings"]
Port = Annotated[int, Meta(ge=0, le=65535)]


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


class Metrics(Written, frozen=True):
    """Where /metrics, /healthz and /readyz of the host are served."""

    host: Annotated[str, Meta(description="Address to listen on.", examples=["127.0.0.1"])] = "127.0.0.1"
    port: Annotated[Port, Meta(description="Port; 0 takes a free one.", examples=[9091])] = 9091


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
