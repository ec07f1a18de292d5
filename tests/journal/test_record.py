"""From a call to its row: tokens, cost, cuts, and the encoding."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy import bounds, record
from proxy.bounds import OPENED_BYTES_MAX, RECORD_BYTES_MAX
from proxy.call import EpochEnd, Opened, Outcome, Progress, Sent, Source, UsageEvent

OPENED = Opened(
    tenant="acme",
    key_id="k1",
    user="u",
    tags=(("team", "search"),),
    request_id="r-1",
    endpoint="chat.completions",
    model="fast",
    stream=True,
    prompt_tokens=12,
    prompt_source="estimated",
    started_us=1_700_000_000_000_000,
    price_prompt=150_000_000,
    price_cached=75_000_000,
    price_completion=600_000_000,
    price_version="2026-01",
)
SENT = Sent("openai", "gpt-x")


def row(opened: Opened = OPENED, sent: Sent | None = SENT, **seen: int) -> UsageEvent:
    outcome = Outcome("complete", 200, Progress(**{"status": 200, **seen}), attempts=1)
    return record.settle(7, opened, sent, outcome, 5, 900)


def test_providers_figures_stand() -> None:
    """Where the provider said what it counted, the row says just that."""
    event = row(
        prompt_tokens=10, cached_tokens=4, completion_tokens=3, usage_seen=1, text_bytes=999, reasoning_tokens=2
    )
    assert (event.prompt_tokens, event.cached_tokens, event.completion_tokens, event.reasoning_tokens) == (10, 4, 3, 2)
    assert event.source == "provider"
    # 6 fresh * 150 + 4 cached * 75 + 3 * 600 nano-dollars a token.
    assert event.cost_nanos == 6 * 150 + 4 * 75 + 3 * 600


@pytest.mark.parametrize(
    ("prompt_source", "text_estimated", "source"),
    [
        ("counted", 0, "counted"),
        ("counted", 1, "estimated"),
        ("estimated", 0, "estimated"),
        ("estimated", 1, "estimated"),
    ],
)
def test_weirs_own_figures_without_them(prompt_source: Source, text_estimated: int, source: Source) -> None:
    """Without usage the prompt is as at admission and the completion as relayed; one estimate makes both estimated."""
    opened = msgspec.structs.replace(OPENED, prompt_source=prompt_source)
    event = row(opened, text_bytes=400, text_tokens=93, text_estimated=text_estimated)
    assert (event.prompt_tokens, event.completion_tokens, event.source) == (12, 93, source)
    assert event.cost_nanos == 12 * 150 + 93 * 600


def test_never_sent_and_refused_upstream_cost_nothing() -> None:
    """A call that no upstream has read, or that one answered with an error, has no tokens."""
    for event in (row(sent=None), row(status=429), row(status=500)):
        assert (event.prompt_tokens, event.completion_tokens, event.cost_nanos) == (0, 0, 0)
        assert event.source == "estimated"


def test_what_a_model_thought_is_a_lower_bound() -> None:
    """A model that thinks unseen may have made more tokens than streamed; the provider's own figure holds them all."""
    opened = msgspec.structs.replace(OPENED, reasoning=True)
    assert row(opened, text_bytes=40).lower_bound
    for event in (row(text_bytes=40), row(opened, usage_seen=1), row(opened, sent=None), row(opened, status=500)):
        assert not event.lower_bound


def test_records_of_an_older_version_are_read() -> None:
    """A record, or a slot's opened record, that ends before the newest fields stands for their defaults."""
    event = row(text_bytes=40)
    old = msgspec.msgpack.encode(msgspec.structs.astuple(event)[:-1])
    assert record.decode(record.EVENT + old) == event
    opened = msgspec.msgpack.encode(msgspec.structs.astuple(OPENED)[:-1])
    found = record.Found(7, opened, record.encode_sent(SENT), 1, (0,) * len(Progress.__struct_fields__), 2)
    assert record.decode(record.rebuild(found)) == record.crashed(7, OPENED, SENT, 1, Progress())


def test_unpriced_is_said() -> None:
    """A model without a price has cost 0 and the empty version, whatever else stands in the prices."""
    event = row(msgspec.structs.replace(OPENED, price_version=""), usage_seen=1, prompt_tokens=1000)
    assert (event.cost_nanos, event.price_version) == (0, "")


@pytest.mark.parametrize(("price", "nanos"), [(499_999, 0), (500_000, 1), (1_499_999, 1), (1_500_000, 2)])
def test_cost_is_rounded_half_up_once(price: int, nanos: int) -> None:
    """Half a nano-dollar goes up, and the parts are summed before they are rounded."""
    opened = msgspec.structs.replace(OPENED, price_prompt=price, price_cached=0, price_completion=0)
    assert record.cost(opened, 1, 0, 0) == nanos
    halves = msgspec.structs.replace(OPENED, price_prompt=500_000, price_cached=0, price_completion=500_000)
    assert record.cost(halves, 1, 0, 1) == 1


@given(
    st.integers(0, 10**7), st.integers(0, 10**7), st.integers(0, 10**7), st.integers(0, 10**12), st.integers(0, 10**12)
)
def test_cost_matches_fractions(prompt: int, cached: int, completion: int, fresh_price: int, price: int) -> None:
    """Integer arithmetic agrees with exact fractions, and is never negative, even for odd figures of a provider."""
    from fractions import Fraction

    opened = msgspec.structs.replace(OPENED, price_prompt=fresh_price, price_cached=price, price_completion=price)
    exact = Fraction(max(prompt - cached, 0) * fresh_price + (cached + completion) * price, 10**6)
    cost = record.cost(opened, prompt, cached, completion)
    assert cost >= 0
    assert -Fraction(1, 2) < cost - exact <= Fraction(1, 2)


def test_crash_is_what_was_relayed() -> None:
    """A row made by recovery carries what the slot said, and says that it crashed."""
    seen = Progress(frames=9, bytes=900, text_bytes=41, first_us=333, status=200, text_tokens=11)
    event = record.crashed(7, OPENED, SENT, 2, seen)
    assert (event.termination, event.attempts, event.status, event.upstream) == ("crash", 2, 200, "openai")
    assert (event.relayed_frames, event.relayed_bytes, event.completion_tokens) == (9, 900, 11)
    assert (event.first_us, event.total_us, event.queue_us) == (333, 333, 0)


def test_every_field_has_its_place() -> None:
    """Each fact of the call stands under its own name in the row: all values differ."""
    seen = Progress(21, 22, 23, 24, 5, 26, 7, 8, 1, 29, 201)
    outcome = Outcome("client_gone", 499, seen, "served", "up-req", 3)
    event = record.settle(77, OPENED, SENT, outcome, 31, 32)
    assert msgspec.structs.asdict(event) == {
        "call": 77,
        "tenant": "acme",
        "key_id": "k1",
        "user": "u",
        "tags": (("team", "search"),),
        "request_id": "r-1",
        "endpoint": "chat.completions",
        "model": "fast",
        "model_served": "served",
        "upstream": "openai",
        "upstream_request_id": "up-req",
        "attempts": 3,
        "stream": True,
        "status": 499,
        "termination": "client_gone",
        "prompt_tokens": 24,
        "cached_tokens": 5,
        "completion_tokens": 26,
        "reasoning_tokens": 7,
        "audio_tokens": 8,
        "source": "provider",
        "relayed_frames": 21,
        "relayed_bytes": 22,
        "cost_nanos": 19 * 150 + 5 * 75 + 26 * 600,
        "price_version": "2026-01",
        "started_us": 1_700_000_000_000_000,
        "queue_us": 31,
        "first_us": 29,
        "total_us": 32,
        "lower_bound": False,
    }


def test_round_trips() -> None:
    """What is encoded is decoded to the same, events and ends alike."""
    event = row(frames=3)
    assert record.decode(record.encode(event)) == event
    assert record.decode(record.encode_end(41)) == EpochEnd(41)


@pytest.mark.parametrize(
    "payload", [b"", b"E", b"E\xc1", b"Z\x91\xa1x", b"X\x90", b"E\x91\x01", record.encode(row())[:-1]]
)
def test_other_payloads_are_refused(payload: bytes) -> None:
    """A payload that this version did not write is a BadRecord, never a wrong row."""
    with pytest.raises(record.BadRecord):
        record.decode(payload)


def test_rebuild_from_a_slot() -> None:
    """Recovery's record is made of the slot's bytes alone; bytes that do not decode are refused and kept as a wreck."""
    counters = (1, 2, 8, 0, 0, 0, 0, 0, 0, 10, 200, 2, 1)
    found = record.Found(3, record.encode_opened(OPENED), record.encode_sent(SENT), 1, counters, 2)
    event = record.decode(record.rebuild(found))
    assert isinstance(event, UsageEvent)
    assert (event.call, event.tenant, event.termination, event.completion_tokens) == (3, "acme", "crash", 2)
    broken = msgspec.structs.replace(found, opened=b"\xc1" * 640)
    with pytest.raises(record.BadRecord):
        record.rebuild(broken)
    wreck = record.encode_wreck(broken)
    assert wreck[:1] == record.WRECK
    assert msgspec.msgpack.decode(wreck[1:])[4] == broken.opened


@given(st.text(max_size=200), st.integers(0, 128))
def test_cut_keeps_characters_whole(text: str, bytes_max: int) -> None:
    """A cut text is a prefix but for what cannot be stored, fits, and encodes."""
    short = record.cut(text, bytes_max)
    assert text.replace("\0", "?").startswith(short)
    assert len(short.encode()) <= bytes_max


def test_cut_takes_what_no_database_takes() -> None:
    """Lone surrogates and NULs, legal in an upstream's JSON, do not reach the record."""
    assert record.cut("a\ud800b\0c", 10) == "a?b?c"


def test_absurd_figures_do_not_fail_a_close() -> None:
    """An upstream that claims 2**64 - 1 tokens makes a row with the largest integer a database has."""
    event = row(usage_seen=1, prompt_tokens=2**64 - 1, completion_tokens=2**64 - 1, audio_tokens=2**64 - 1)
    assert event.prompt_tokens == event.cost_nanos == event.audio_tokens == 2**63 - 1
    assert record.decode(record.encode(event)) == event


def test_every_field_at_its_bound_fits_its_slot() -> None:
    """Cut to the bounds, the widest call there can be is opened, whatever its characters; a byte more would be seen."""
    widest = record.widest()
    for letter in ("x", "é", "€", "𝄞"):
        texts = {
            name: record.cut(letter * 200, len(value))
            for name, value in msgspec.structs.asdict(widest).items()
            if isinstance(value, str) and name != "prompt_source"
        }
        size = len(record.encode_opened(msgspec.structs.replace(widest, **texts)))
        assert size <= len(record.encode_opened(widest)) <= OPENED_BYTES_MAX, letter
    lengths = [len(name) + len(value) for name, value in widest.tags]
    assert len(lengths) == bounds.TAGS_MAX + 1
    assert sum(lengths[:-1]) == bounds.TAGS_BYTES_MAX


def test_the_longest_row_fits() -> None:
    """The largest opened record, with every later field at its bound, still makes a record that a close accepts."""
    size = OPENED_BYTES_MAX - len(record.encode_opened(msgspec.structs.replace(OPENED, user="")))
    opened = msgspec.structs.replace(OPENED, user="u" * (size - 4))
    assert OPENED_BYTES_MAX - 8 <= len(record.encode_opened(opened)) <= OPENED_BYTES_MAX
    big = 2**63 - 1
    seen = Progress(*([big] * 5), big, big, big, 1, big, 599)
    outcome = Outcome("upstream_error", 599, seen, "m" * 5000, "é" * 5000, 2**31)
    event = record.settle(big, opened, Sent("u" * 90, "m"), outcome, big, big)
    assert len(record.encode(event)) <= RECORD_BYTES_MAX
