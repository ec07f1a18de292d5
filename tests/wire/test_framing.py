"""Every framing an upstream may use, cut at every place: the payload and the facts are the same."""

from __future__ import annotations

import random
from collections.abc import Iterable
from email.utils import parsedate_to_datetime

import pytest

from proxy import _wire as wire
from proxy import bounds, clock
from tests.wire import answers
from tests.wire.answers import Recorded
from tests.wire.rig import Answer, Transport, bench, chunked, facts

SEED = 20260


def relayed(recorded: Recorded, pieces: Iterable[bytes], **options: bool) -> tuple[dict[str, object], Answer, int]:
    """What becomes of the answer in these pieces: the relay's facts, the client's view, the number of writes."""
    with bench() as made:
        client = Transport()
        relay = made.relay(client, **options)
        made.connection.start(relay, b"POST / HTTP/1.1\r\n\r\n")
        for piece in pieces:
            if relay.ending:
                break  # what follows comes to a closed socket
            made.connection.data_received(piece)
        if recorded.eof and not relay.ending:
            made.connection.eof_received()
        assert relay.ending, "the relay never ended"
        relay.release_end()
        reusable = relay.reusable
        assert made.reported == [reusable]
        assert made.upstream.aborted is not reusable
        client.close_sockets()
        return facts(relay), Answer(b"".join(client.written)), len(client.written)


def expect(recorded: Recorded, found: dict[str, object], answer: Answer) -> None:
    assert found["ending"] == recorded.ending, found
    assert found["reusable"] == recorded.reusable
    if recorded.payload is None:
        assert answer.raw == b""
        assert found["started"] is False
        assert found["bytes"] == found["frames"] == 0
        return
    assert answer.body == recorded.payload
    assert answer.whole is recorded.whole
    assert found["bytes"] == len(recorded.payload)
    if recorded.usage:
        assert found["usage"] == (11, 0, 3, 0, 0)
        assert found["model"] == "m-1"


@pytest.mark.parametrize("recorded", answers.ALL, ids=lambda recorded: recorded.name)
def test_whole(recorded: Recorded) -> None:
    """Each recorded answer in one read ends as it must, with its payload and its facts."""
    found, answer, _ = relayed(recorded, [recorded.raw] if recorded.raw else [])
    expect(recorded, found, answer)


@pytest.mark.parametrize("recorded", answers.ALL, ids=lambda recorded: recorded.name)
def test_byte_by_byte(recorded: Recorded) -> None:
    """The same answers, one byte a read; `reusable` differs where the bytes after the end were not yet there."""
    found, answer, _ = relayed(recorded, (bytes([byte]) for byte in recorded.raw))
    if "after the end" in recorded.name:
        recorded = recorded._replace(reusable=True)
    expect(recorded, found, answer)


@pytest.mark.parametrize("recorded", answers.ALL, ids=lambda recorded: recorded.name)
def test_every_cut_in_two(recorded: Recorded) -> None:
    """The same answers cut in two at every byte: payload and facts are those of the whole."""
    whole, _, _ = relayed(recorded, [recorded.raw] if recorded.raw else [])
    for at in range(1, len(recorded.raw)):
        found, answer, _ = relayed(recorded, [recorded.raw[:at], recorded.raw[at:]])
        expected = recorded
        if "after the end" in recorded.name and found["reusable"]:
            expected = recorded._replace(reusable=True)
            found["reusable"] = False
        assert found == whole, f"cut at {at}"
        expect(expected, {**found, "reusable": expected.reusable}, answer)


@pytest.mark.parametrize("http10", [False, True])
@pytest.mark.parametrize("hold_end", [False, True])
@pytest.mark.parametrize("hide_usage", [False, True])
def test_random_cuts_under_every_option(http10: bool, hold_end: bool, hide_usage: bool) -> None:
    """Random cuts under every option: the client's payload is the upstream's, but for the hidden frame."""
    rng = random.Random(SEED)
    for recorded in answers.GOOD:
        stream = b"text/event-stream" in recorded.raw
        payload = recorded.payload
        assert payload is not None
        if hide_usage and stream:
            payload = payload.replace(answers.USAGE_FRAME, b"")
        for _ in range(30):
            cuts = sorted(rng.randrange(len(recorded.raw)) for _ in range(rng.randrange(6)))
            pieces = [recorded.raw[a:b] for a, b in zip([0, *cuts], [*cuts, len(recorded.raw)], strict=True) if a < b]
            found, answer, _ = relayed(recorded, pieces, http10=http10, hold_end=hold_end, hide_usage=hide_usage)
            where = f"seed {SEED}, {recorded.name}, cuts {cuts}"
            assert answer.whole, where
            assert answer.body == payload, where
            assert found["bytes"] == len(payload), where
            if recorded.usage:
                assert found["usage"] == (11, 0, 3, 0, 0), where
            if stream:
                assert found["frames"] == payload.count(b"data:"), where
            if http10:
                assert answer.headers["connection"] == "close"
                assert "transfer-encoding" not in answer.headers


def test_one_write_for_each_read() -> None:
    """A read with many upstream chunks becomes one client chunk, and the head leaves with the first body byte."""
    raw = answers.OK + answers.SSE + answers.CHUNKED + b"\r\n"
    recorded = Recorded("", raw, wire.COMPLETE, None)
    body = chunked(answers.STREAM)
    _, answer, writes = relayed(recorded, [raw, body])
    assert writes == 1
    assert answer.written_chunks() == 1
    parts = chunked(answers.STREAM[:2])[:-5], chunked(answers.STREAM[2:])[:-5], b"0\r\n\r\n"
    _, answer, writes = relayed(recorded, [raw, *parts])
    assert writes == 3
    assert answer.written_chunks() == 2


def test_client_head() -> None:
    """The client sees the content type, Weir's own lines, a date and a framing: nothing else of the upstream's head."""
    leaks = b"openai-organization: o\r\nset-cookie: a=b\r\nx-ratelimit-limit-requests: 5\r\nserver: up\r\n"
    leaks += b"x-request-id: u1\r\n"
    raw = answers.OK + leaks + answers.SSE + answers.CHUNKED + b"\r\n" + chunked(answers.STREAM)
    found, answer, _ = relayed(Recorded("", raw, wire.COMPLETE, None), [raw])
    assert set(answer.headers) == {
        "content-type", "cache-control", "x-accel-buffering", "x-request-id", "date", "transfer-encoding"
    }  # fmt: skip
    assert answer.headers["x-request-id"] == "abc"
    date = parsedate_to_datetime(answer.headers["date"])
    assert answer.headers["date"].endswith(" GMT")
    assert abs(date.timestamp() - clock.wall_us() / 1e6) < 60  # the right date, not a duration
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert found["upstream_request_id"] == b"u1"
    raw = answers.OK + answers.JSON + answers.length(answers.BODY) + b"\r\n" + answers.BODY
    _, answer, _ = relayed(Recorded("", raw, wire.COMPLETE, None), [raw], close=True)
    assert set(answer.headers) == {"content-type", "x-request-id", "date", "content-length", "connection"}


def test_refused_answer_keeps_what_the_owner_needs() -> None:
    """Of an error the owner learns status, body, type and the three retry headers."""
    recorded = answers.REFUSED[0]
    with bench() as made:
        client = Transport()
        relay = made.relay(client)
        made.connection.start(relay, b"x")
        made.connection.data_received(recorded.raw)
        assert (relay.status, relay.error_body, relay.error_type) == (429, answers.ERROR, b"application/json")
        assert (relay.retry_after, relay.retry_after_ms, relay.should_retry) == (b"7", b"6500", b"true")
        client.close_sockets()


@pytest.mark.parametrize("size", [bounds.ERROR_BODY_BYTES_MAX, bounds.ERROR_BODY_BYTES_MAX + 1])
def test_error_body_is_bounded(size: int) -> None:
    """An error's body is kept up to its bound; a longer one is cut and its connection is not used again."""
    raw = b"HTTP/1.1 500 No\r\ncontent-length: %d\r\n\r\n" % size + b"x" * size
    for pieces in ([raw], [raw[:1000], raw[1000:70], raw[1000:]]):
        with bench() as made:
            client = Transport()
            relay = made.relay(client)
            made.connection.start(relay, b"x")
            for piece in pieces:
                if piece and not relay.ending:
                    made.connection.data_received(piece)
            assert relay.ending == wire.ANSWERED
            assert len(relay.error_body) == bounds.ERROR_BODY_BYTES_MAX
            assert relay.reusable is (size == bounds.ERROR_BODY_BYTES_MAX)
            client.close_sockets()


@pytest.mark.parametrize(
    "endless",
    [
        answers.OK + b"x-a: " + b"a" * 200 + b"\r\n",
        b"HTTP/1.1 103 Early\r\n" + b"x-a: b\r\n",
        answers.OK + answers.CHUNKED + b"\r\n5;",
        answers.OK + answers.CHUNKED + b"\r\n5\r\nhello\r\n0\r\nx-t: 1\r\n",
    ],
    ids=["head", "interim head", "chunk extension", "trailers"],
)
def test_endless_framing_is_bounded(endless: bytes) -> None:
    """A head, a chunk extension or trailers without an end stop at the bound, in small reads and in large ones."""
    more = b"x-b: " + b"b" * 95 + b"\r\n" if endless.endswith(b"\r\n") else b"e" * 100
    for many in (1, 300):
        with bench() as made:
            client = Transport()
            relay = made.relay(client)
            made.connection.start(relay, b"x")
            made.connection.data_received(endless)
            sent = 0
            while not relay.ending:
                made.connection.data_received(more * many)
                sent += len(more) * many
                assert sent <= bounds.UPSTREAM_HEAD_BYTES_MAX + len(more) * many
            assert relay.ending == wire.PROTOCOL
            client.close_sockets()


def test_large_head_in_one_read() -> None:
    """A complete head above the bound is refused even when it came in a single read."""
    raw = answers.OK + (b"x-b: " + b"b" * 95 + b"\r\n") * 700 + b"content-length: 0\r\n\r\n"
    found, answer, _ = relayed(Recorded("", raw, wire.PROTOCOL, None), [raw])
    assert found["ending"] == wire.PROTOCOL
    assert "head" in str(found["detail"])
    assert answer.raw == b""


def test_many_answers_on_one_connection() -> None:
    """One connection and its one parser carry answer after answer, of every framing that keeps it open."""
    kept = [recorded for recorded in [*answers.GOOD, *answers.REFUSED] if recorded.reusable]
    rng = random.Random(SEED)
    with bench() as made:
        for turn in range(200):
            recorded = rng.choice(kept)
            client = Transport()
            relay = made.relay(client)
            made.connection.start(relay, b"x")
            at = rng.randrange(len(recorded.raw))
            for piece in (recorded.raw[:at], recorded.raw[at:]):
                if piece:
                    made.connection.data_received(piece)
            assert relay.ending == recorded.ending, f"seed {SEED}, turn {turn}, {recorded.name}"
            assert Answer(b"".join(client.written)).body == (recorded.payload or b"")
            assert made.connection.answers == turn + 1
            client.close_sockets()
        assert made.reported == [True] * 200


def test_answer_that_nobody_asked_for() -> None:
    """Data on an idle connection ends it: it must never be taken for the next request's answer."""
    with bench() as made:
        made.connection.data_received(answers.GOOD[0].raw)
        assert made.upstream.aborted
        assert made.reported == [False]
        client = Transport()
        with pytest.raises(ConnectionError):
            made.connection.start(made.relay(client), b"x")
        client.close_sockets()


def test_answer_before_the_request_was_read() -> None:
    """An upstream that answers while the request still stands unsent is not used again."""
    with bench() as made:
        client = Transport()
        relay = made.relay(client)
        made.connection.start(relay, b"x")
        made.upstream.unread = 5
        made.connection.data_received(answers.GOOD[0].raw)
        assert relay.ending == wire.COMPLETE
        assert not relay.reusable
        client.close_sockets()


def test_failure_of_an_owner_callback_is_contained() -> None:
    """Whatever goes wrong inside ends the relay; nothing is raised into the event loop."""
    with bench() as made:
        client = Transport()
        client.get_write_buffer_size = lambda: bounds.CLIENT_BUFFER_BYTES_MAX + 1  # type: ignore[method-assign]

        def fail(relay: wire.Relay) -> None:
            raise ZeroDivisionError("on purpose")

        relay = made.relay(client, on_pause=fail)
        made.connection.start(relay, b"x")
        big = b"x" * (bounds.CLIENT_BUFFER_BYTES_MAX + 1)
        made.connection.data_received(answers.OK + b"content-length: %d\r\n\r\n" % (2 * len(big)) + big)
        assert relay.ending == wire.PROTOCOL
        assert "ZeroDivisionError" in relay.detail
        assert made.upstream.aborted
        client.close_sockets()
