"""From a call to its row: pure arithmetic and encoding, the same for a call that ended and one whose process died."""

from __future__ import annotations

import msgspec

from proxy import bounds
from proxy.bounds import MODEL_BYTES_MAX, REQUEST_ID_BYTES_MAX
from proxy.call import EpochEnd, Opened, Outcome, Progress, Sent, Source, UsageEvent

EVENT = b"E"  # a usage event
END = b"Z"  # an EpochEnd
WRECK = b"W"  # a call whose slot could not be read as `Opened`: kept as it was found, for the quarantine

_PRICE_UNIT = 10**6  # prices are nano-dollars per million tokens
_STATUS_ERROR = 400
_INTEGER_MAX = 2**63 - 1  # the databases' largest; an upstream may claim more

_encoder = msgspec.msgpack.Encoder()
_opened = msgspec.msgpack.Decoder(Opened)
_sent = msgspec.msgpack.Decoder(Sent)
_event = msgspec.msgpack.Decoder(UsageEvent)
_end = msgspec.msgpack.Decoder(EpochEnd)


class BadRecord(ValueError):
    """A payload that is no record of this format: for the quarantine, not for the table."""


class Found(msgspec.Struct, frozen=True):
    """A call as recovery finds it in its slot. `state` is the slot's word: 1 OPEN, 2 SENT, 3 CLOSING."""

    call: int
    opened: bytes
    sent: bytes | None
    attempt: int
    counters: tuple[int, ...]
    state: int


def cost(opened: Opened, prompt: int, cached: int, completion: int) -> int:
    """Integer nano-dollars, rounded half up once. 0 when unpriced; `price_version` then is "" and says so."""
    if not opened.price_version:
        return 0
    fresh = prompt - cached if prompt > cached else 0
    parts = fresh * opened.price_prompt + completion * opened.price_completion
    if cached:
        parts += cached * opened.price_cached
    nanos = (parts + _PRICE_UNIT // 2) // _PRICE_UNIT
    return nanos if nanos < _INTEGER_MAX else _INTEGER_MAX


def settle(call: int, opened: Opened, sent: Sent | None, outcome: Outcome, queue_us: int, total_us: int) -> UsageEvent:
    """The row of a finished call.

    Tokens are the provider's where it gave them. Otherwise they are Weir's own: the prompt's as at admission, the
    completion's of the text relayed; `counted` when neither is an estimate. A call that was never sent, or that the
    upstream answered with an error, has none. Durations in microseconds. Never fails for what an upstream said: too
    large a figure is cut to 2**63 - 1.
    """
    seen = outcome.seen
    # One comparison for five figures: none of them is negative.
    claimed = seen.prompt_tokens | seen.cached_tokens | seen.completion_tokens | seen.reasoning_tokens
    if claimed | seen.audio_tokens > _INTEGER_MAX:
        seen = Progress(*(min(count, _INTEGER_MAX) for count in msgspec.structs.astuple(seen)))
    if seen.usage_seen:
        prompt, cached, completion = seen.prompt_tokens, seen.cached_tokens, seen.completion_tokens
    elif sent is None or seen.status >= _STATUS_ERROR:
        prompt = cached = completion = 0
    else:
        prompt, cached, completion = opened.prompt_tokens, 0, seen.text_tokens
    source: Source = "provider"
    if not seen.usage_seen:
        source = "counted" if opened.prompt_source == "counted" and not seen.text_estimated else "estimated"
    # By position, in the order of the struct: names would double the cost of this call.
    return UsageEvent(
        call,
        opened.tenant,
        opened.key_id,
        opened.user,
        opened.tags,
        opened.request_id,
        opened.endpoint,
        opened.model,
        cut(outcome.model_served, MODEL_BYTES_MAX),  # model_served
        sent.upstream if sent else "",  # upstream
        cut(outcome.upstream_request_id, REQUEST_ID_BYTES_MAX),  # upstream_request_id
        outcome.attempts,
        opened.stream,
        outcome.status,
        outcome.termination,
        prompt,  # prompt_tokens
        cached,  # cached_tokens
        completion,  # completion_tokens
        seen.reasoning_tokens,
        seen.audio_tokens,
        source,
        seen.frames,  # relayed_frames
        seen.bytes,  # relayed_bytes
        cost(opened, prompt, cached, completion),  # cost_nanos
        opened.price_version,
        opened.started_us,
        queue_us,
        seen.first_us,
        total_us,
        opened.reasoning and not seen.usage_seen and sent is not None and seen.status < _STATUS_ERROR,  # lower_bound
    )


def crashed(call: int, opened: Opened, sent: Sent | None, attempts: int, seen: Progress) -> UsageEvent:
    """The row of a call whose process died: what was relayed, and nothing that was not measured.

    The status is the upstream's. The total time is at least that of the first byte, and no more is known of it.
    """
    outcome = Outcome("crash", seen.status, seen, attempts=attempts)
    return settle(call, opened, sent, outcome, 0, seen.first_us)


def cut(text: str, bytes_max: int) -> str:
    """`text`, shortened to at most `bytes_max` bytes of UTF-8, never inside a character.

    An upstream may say anything: lone surrogates and NULs, which no database takes, become question marks.
    """
    if text.isascii() and len(text) <= bytes_max and "\0" not in text:
        return text
    encoded = text.replace("\0", "?").encode("utf-8", "replace")
    return encoded[:bytes_max].decode("utf-8", "ignore")


def encode(event: UsageEvent) -> bytes:
    """Kind byte and msgpack: the payload of a segment's record."""
    return EVENT + _encoder.encode(event)


def encode_end(calls: int) -> bytes:
    """The last record of an epoch."""
    return END + _encoder.encode(EpochEnd(calls))


def decode(payload: bytes) -> UsageEvent | EpochEnd:
    """Raises BadRecord for whatever `encode` and `encode_end` did not write."""
    kind, body = payload[:1], memoryview(payload)[1:]
    try:
        if kind == EVENT:
            return _event.decode(body)
        if kind == END:
            return _end.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadRecord(f"a record of kind {kind!r} that does not decode: {error}") from error
    raise BadRecord(f"a record of kind {kind!r}: known are {EVENT!r} (usage) and {END!r} (end of an epoch)")


def encode_opened(opened: Opened) -> bytes:
    """What `admit` puts into the slot."""
    return _encoder.encode(opened)


def encode_sent(sent: Sent) -> bytes:
    """What `route` puts into the slot before the first byte goes upstream."""
    return _encoder.encode(sent)


def rebuild(found: Found) -> bytes:
    """The payload for a call that recovery found in flight. Raises BadRecord when its slot is unreadable."""
    try:
        opened = _opened.decode(found.opened)
        sent = _sent.decode(found.sent) if found.sent is not None else None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadRecord(f"call {found.call}: its slot does not decode: {error}") from error
    return encode(crashed(found.call, opened, sent, found.attempt, Progress(*found.counters)))


def encode_wreck(found: Found) -> bytes:
    """What is left of a call that `rebuild` cannot read, byte for byte: nothing is lost and nothing is guessed."""
    return WRECK + _encoder.encode((found.call, found.attempt, found.counters, found.state, found.opened, found.sent))


def widest() -> Opened:
    """The opened record that takes the most bytes of all that the bounds let through."""
    # A text of 32 bytes needs a byte more of msgpack than a shorter one: as many of them as there can be.
    texts = ["t" * 32] * (bounds.TAGS_BYTES_MAX // 32) + ["t" * (bounds.TAGS_BYTES_MAX % 32)]
    texts += [""] * (2 * bounds.TAGS_MAX - len(texts))
    tags = [*zip(texts[::2], texts[1::2], strict=True), ("h" * bounds.TAG_HEADER_BYTES_MAX, "v" * bounds.TAG_BYTES_MAX)]
    return Opened(
        tenant="t" * bounds.TENANT_NAME_BYTES_MAX,
        key_id="k" * bounds.KEY_ID_BYTES_MAX,
        user="u" * bounds.USER_BYTES_MAX,
        tags=tuple(tags),
        request_id="r" * bounds.REQUEST_ID_BYTES_KEPT,
        endpoint="e" * bounds.ENDPOINT_BYTES_MAX,
        model="m" * MODEL_BYTES_MAX,
        stream=True,
        prompt_tokens=_INTEGER_MAX,
        prompt_source="estimated",
        started_us=_INTEGER_MAX,
        price_prompt=_INTEGER_MAX,
        price_cached=_INTEGER_MAX,
        price_completion=_INTEGER_MAX,
        price_version="p" * bounds.PRICE_VERSION_BYTES_MAX,
        reasoning=True,
    )


# Whoever adds a field to `Opened` learns here, and not from a call that cannot be opened, that its slot is too small.
assert len(encode_opened(widest())) <= bounds.OPENED_BYTES_MAX
