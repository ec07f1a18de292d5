"""What a relay does besides framing: counters before writes, hiding, holding, cutting, pausing."""

from __future__ import annotations

import random
from contextlib import suppress

import httptools
import pytest

from proxy import _wire as wire
from proxy import bounds
from tests.wire import answers
from tests.wire.answers import DONE, FRAMES, STREAM, USAGE_FRAME
from tests.wire.rig import Answer, Bench, Transport, at_once, bench, chunked, make_relay, new_slot

SEED = 77
HEAD = answers.OK + answers.SSE + answers.CHUNKED + b"\r\n"
ENDING = b'data: {"error": {"message": "the budget is used up"}}\n\ndata: [DONE]\n\n'


def piece(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


class Sent:
    """The payload in what the upstream has sent so far."""

    def __init__(self) -> None:
        self.payload = b""
        self.parser = httptools.HttpResponseParser(self)

    def on_body(self, body: bytes) -> None:
        self.payload += body


def begin(made: Bench, client: Transport, **options: object) -> wire.Relay:
    relay = made.relay(client, **options)
    made.connection.start(relay, b"x")
    return relay


@pytest.mark.parametrize("hide_usage", [False, True])
@pytest.mark.parametrize("recorded", answers.GOOD, ids=lambda recorded: recorded.name)
def test_counters_lie_between_client_and_upstream(recorded: answers.Recorded, hide_usage: bool) -> None:
    """At every write the slot already counts what the client gets, and never more than the upstream has sent."""
    rng = random.Random(SEED)
    wrong: list[str] = []
    for _ in range(12):
        slot = new_slot()
        fed = Sent()
        got = b""
        writes = 0

        def write(data: bytes) -> None:
            nonlocal got, writes
            got += data
            writes += 1
            frames, relayed, *_ = slot.counters()  # noqa: B023
            body = Answer(got).body
            sent = fed.payload  # noqa: B023
            # Every frame of these streams ends in one blank line; a whole JSON answer is one frame.
            least, most = (body.count(b"\n\n"), sent.count(b"\n\n")) if b"data:" in sent else (0, 1)
            if not least <= frames <= most or not len(body) <= relayed <= len(sent):
                wrong.append(f"seed {SEED}: {least} <= {frames} <= {most}, {len(body)} <= {relayed} <= {len(sent)}")

        with bench() as made:
            client = Transport()
            client.write = write  # type: ignore[method-assign]
            relay = begin(made, client, slot=slot, hide_usage=hide_usage)
            cuts = sorted(rng.randrange(len(recorded.raw)) for _ in range(5))
            for a, b in zip([0, *cuts], [*cuts, len(recorded.raw)], strict=True):
                if a < b and not relay.ending:
                    with suppress(httptools.HttpParserError):  # what stands after the end
                        fed.parser.feed_data(recorded.raw[a:b])
                    made.connection.data_received(recorded.raw[a:b])
            if recorded.eof:
                made.connection.eof_received()
            assert relay.ending == wire.COMPLETE, relay.detail
            assert writes
            usage = relay.usage or (0, 0, 0, 0, 0)
            seen = int(relay.usage is not None)
            assert slot.counters() == (
                relay.frames, relay.bytes, relay.text_bytes, *usage, seen, relay.first_us, relay.status,
                relay.text_tokens, int(relay.text_estimated),
            )  # fmt: skip
            assert (relay.first_us > 0) is (relay.bytes > 0)
            client.close_sockets()
    assert not wrong


def test_usage_is_counted_before_the_last_write() -> None:
    """Of an answer in two pieces, usage stands in the slot when the last one is written."""
    slot = new_slot()
    seen: list[tuple[int, ...]] = []
    with bench() as made:
        client = Transport()
        client.write = lambda data: seen.append(slot.counters())  # type: ignore[method-assign]
        begin(made, client, slot=slot)
        raw = answers.OK + answers.JSON + answers.length(answers.BODY) + b"\r\n" + answers.BODY
        made.connection.data_received(raw[:-5])
        made.connection.data_received(raw[-5:])
        client.close_sockets()
    assert [(counters[0], counters[3:6], counters[8]) for counters in seen] == [(0, (0, 0, 0), 0), (1, (11, 0, 3), 1)]


def test_hidden_frame_reaches_nobody() -> None:
    """The frame with usage is counted as usage, and neither as a frame nor as bytes; every other byte arrives."""
    with bench() as made:
        client = Transport()
        relay = begin(made, client, hide_usage=True)
        made.connection.data_received(HEAD + piece(FRAMES[0]) + piece(FRAMES[1] + USAGE_FRAME[:20]))
        assert Answer(b"".join(client.written)).body == FRAMES[0] + FRAMES[1]
        made.connection.data_received(piece(USAGE_FRAME[20:]) + chunked([DONE]))
        answer = Answer(b"".join(client.written))
        assert answer.whole
        assert answer.body == FRAMES[0] + FRAMES[1] + DONE
        assert (relay.frames, relay.bytes) == (3, len(answer.body))
        assert relay.usage == (11, 0, 3, 0, 0)
        client.close_sockets()


def test_unterminated_last_frame_is_passed_on_when_hiding() -> None:
    """What is held when the stream ends is the client's: it leaves with the last write."""
    with bench() as made:
        client = Transport()
        relay = begin(made, client, hide_usage=True)
        made.connection.data_received(HEAD + piece(FRAMES[0]) + piece(FRAMES[1][:-2]))
        assert Answer(b"".join(client.written)).body == FRAMES[0]
        made.connection.data_received(b"0\r\n\r\n")
        answer = Answer(b"".join(client.written))
        assert answer.whole
        assert answer.body == FRAMES[0] + FRAMES[1][:-2]
        assert relay.bytes == len(answer.body)
        client.close_sockets()


def test_held_end_of_a_whole_answer() -> None:
    """With hold_end an answer that is complete leaves only when it is released, and the connection is free before."""
    with bench() as made:
        client = Transport()
        relay = begin(made, client, hold_end=True)
        made.connection.data_received(answers.GOOD[0].raw)
        assert (relay.ending, relay.started, client.written) == (wire.COMPLETE, False, [])
        assert made.reported == [True]
        relay.cancel()
        relay.release_end()
        assert relay.started
        assert Answer(b"".join(client.written)).body == answers.BODY
        relay.release_end()
        assert len(client.written) == 1
        client.close_sockets()


def test_held_end_of_a_stream_begins_at_done() -> None:
    """With hold_end a client gets neither [DONE] nor the last chunk before the release, and all else at once."""
    with bench() as made:
        client = Transport()
        relay = begin(made, client, hold_end=True)
        made.connection.data_received(HEAD + piece(FRAMES[0]))
        assert Answer(b"".join(client.written)).body == FRAMES[0]
        made.connection.data_received(piece(DONE))
        made.connection.data_received(piece(b": late comment\n\n"))
        made.connection.data_received(b"0\r\n\r\n")
        assert relay.ending == wire.COMPLETE
        assert Answer(b"".join(client.written)).body == FRAMES[0]
        relay.release_end()
        answer = Answer(b"".join(client.written))
        assert answer.whole
        assert answer.body == FRAMES[0] + DONE + b": late comment\n\n"
        client.close_sockets()


def test_held_end_is_bounded() -> None:
    """What follows [DONE] is held up to the client's buffer bound, then it leaves."""
    with bench() as made:
        client = Transport()
        begin(made, client, hold_end=True)
        made.connection.data_received(HEAD + piece(DONE))
        assert client.written == []
        late = b": " + b"x" * 60_000 + b"\n\n"
        for _ in range(3):
            made.connection.data_received(piece(late))
        assert len(b"".join(client.written)) > bounds.CLIENT_BUFFER_BYTES_MAX
        client.close_sockets()


def test_cut_between_frames() -> None:
    """A cut writes the given ending and the last chunk; the upstream's connection is aborted."""
    with bench() as made:
        client = Transport()
        relay = begin(made, client)
        made.connection.data_received(HEAD + piece(FRAMES[0]))
        relay.cut(ENDING)
        answer = Answer(b"".join(client.written))
        assert answer.whole
        assert answer.body == FRAMES[0] + ENDING
        assert (relay.ending, relay.cut_clean) == (wire.CUT, True)
        assert (relay.frames, relay.bytes) == (1, len(FRAMES[0]))
        assert made.upstream.aborted
        client.close_sockets()


@pytest.mark.parametrize("at", [1, 10, len(FRAMES[1]) - 2, len(FRAMES[1]) - 1])
@pytest.mark.parametrize("line_end", [b"\n", b"\r\n", b"\r"])
def test_cut_inside_a_frame_waits_for_its_end(at: int, line_end: bytes) -> None:
    """A cut in the middle of a frame lets the frame's rest pass, and nothing after it."""
    first, second, third = (frame.replace(b"\n", line_end) for frame in FRAMES)
    with bench() as made:
        client = Transport()
        relay = begin(made, client)
        made.connection.data_received(HEAD + piece(first + second[:at]))
        relay.cut(ENDING)
        assert relay.ending == wire.RUNNING
        made.connection.data_received(piece(second[at : at + 1]))
        made.connection.data_received(piece(second[at + 1 :] + third))
        answer = Answer(b"".join(client.written))
        assert answer.whole
        # After a lone CR a following LF would still belong to the line: neither reading changes the frames.
        assert answer.body == first + second + ENDING
        assert (relay.ending, relay.cut_clean) == (wire.CUT, True)
        assert relay.bytes == len(first + second)
        client.close_sockets()


def test_cut_for_a_client_that_left() -> None:
    """A cut whose ending cannot be written says that the client is gone."""
    with bench() as made:
        client = Transport()
        relay = begin(made, client)
        made.connection.data_received(HEAD + piece(FRAMES[0]))
        client.abort()
        relay.cut(ENDING)
        assert (relay.ending, relay.cut_clean) == (wire.CLIENT_GONE, False)
        client.close_sockets()


def test_cut_that_meets_a_held_end() -> None:
    """A cut in the middle of the frame before [DONE] comes too late when the end is already held."""
    with bench() as made:
        client = Transport()
        relay = begin(made, client, hold_end=True)
        made.connection.data_received(HEAD + piece(FRAMES[0] + DONE[:5]))
        relay.cut(ENDING)
        made.connection.data_received(piece(DONE[5:-1]))
        made.connection.data_received(piece(b"\n") + b"0\r\n\r\n")
        relay.release_end()
        answer = Answer(b"".join(client.written))
        assert answer.whole
        assert answer.body in (FRAMES[0] + DONE, FRAMES[0] + DONE + ENDING)
        client.close_sockets()


def test_cut_where_no_ending_fits() -> None:
    """Before the first byte, or where a length was promised, a cut writes nothing: the owner answers or aborts."""
    with bench() as made:
        client = Transport()
        relay = begin(made, client)
        relay.cut(ENDING)
        assert (relay.ending, relay.started, client.written) == (wire.CUT, False, [])
        client.close_sockets()
    with bench() as made:
        client = Transport()
        relay = begin(made, client)
        made.connection.data_received(
            answers.OK + answers.JSON + answers.length(answers.BODY) + b"\r\n" + answers.BODY[:9]
        )
        relay.cut(ENDING)
        assert (relay.ending, relay.cut_clean) == (wire.CUT, False)
        assert not Answer(b"".join(client.written)).whole
        client.close_sockets()


def test_cancel() -> None:
    """A cancelled relay writes nothing more, aborts its connection and resolves its future, once."""
    with bench() as made:
        client = Transport()
        relay = begin(made, client)
        made.connection.data_received(HEAD + piece(FRAMES[0]))
        relay.cancel()
        assert (relay.ending, relay.reusable) == (wire.CANCELLED, False)
        assert made.upstream.aborted
        assert made.reported == [False]
        written = list(client.written)
        made.connection.data_received(piece(FRAMES[1]))
        relay.cancel()
        relay.cut(ENDING)
        relay.resume()
        relay.release_end()
        assert client.written == written
        assert made.reported == [False]
        client.close_sockets()


def test_cancel_before_the_start() -> None:
    """A relay that was cancelled before it began is never sent; the connection stays as it was."""
    with bench() as made:
        client = Transport()
        done = made.loop.create_future()
        relay = wire.Relay(
            client.write, client.get_write_buffer_size, print, done, at_once(), None, 0, b"", http10=False, close=False,
            hide_usage=False, hold_end=False, first_byte_ms=1, idle_ms=1, total_ms=1,
        )  # fmt: skip
        relay.cancel()
        assert done.done()
        with pytest.raises(ConnectionError):
            made.connection.start(relay, b"x")
        assert made.upstream.written == []
        assert made.connection.alive()
        client.close_sockets()


def test_client_gone() -> None:
    """A write that raises ends the relay and the upstream's answer with it."""
    with bench() as made:
        client = Transport()
        relay = begin(made, client)
        made.connection.data_received(HEAD + piece(FRAMES[0]))
        client.abort()
        made.connection.data_received(piece(FRAMES[1]))
        assert relay.ending == wire.CLIENT_GONE
        assert made.upstream.aborted
        assert relay.bytes == len(FRAMES[0] + FRAMES[1])
        client.close_sockets()


def test_slow_client_pauses_the_upstream() -> None:
    """Above the bound the upstream is paused and the owner told, once for each pause; `resume` reads on."""
    told: list[wire.Relay] = []
    with bench() as made:
        client = Transport()
        relay = begin(made, client, on_pause=told.append)
        made.connection.data_received(HEAD)
        block = b": " + b"x" * 32_000 + b"\n\n"
        for turn in range(20):
            client.unread = turn * len(block)
            made.connection.data_received(piece(block))
            if made.upstream.paused:
                break
        assert client.unread > bounds.CLIENT_BUFFER_BYTES_MAX - len(block)
        assert client.unread <= bounds.CLIENT_BUFFER_BYTES_MAX + len(block)
        assert told == [relay]
        made.connection.data_received(piece(block))  # a read that was already under way
        assert told == [relay]
        client.unread = 0
        relay.resume()
        assert not made.upstream.paused
        made.connection.data_received(piece(block))
        assert not made.upstream.paused
        assert made.upstream.pauses == 1
        client.close_sockets()


def test_write_that_ends_the_relay_from_within() -> None:
    """A client's transport may call back and cancel while it is written to: the relay ends once, without a fault."""
    with bench() as made:
        client = Transport()
        relay = made.relay(client)
        client.write = lambda data: relay.cancel()  # type: ignore[method-assign]
        relay = made.relay(client)
        made.connection.start(relay, b"x")
        made.connection.data_received(HEAD + chunked(STREAM))
        assert relay.ending == wire.CANCELLED
        assert made.reported == [False]
        client.close_sockets()


@pytest.mark.parametrize("http10", [False, True])
def test_cut_from_within_the_last_write(http10: bool) -> None:
    """A cut that comes while the end is being written is too late: nothing follows the end."""
    with bench() as made:
        client = Transport()

        def write(data: bytes) -> None:
            client.written.append(data)
            relay.cut(ENDING)

        relay = make_relay(write, int, made.loop.create_future(), http10=http10)
        made.connection.start(relay, b"x")
        made.connection.data_received(HEAD + chunked(STREAM))
        assert relay.ending == wire.COMPLETE
        assert Answer(b"".join(client.written)).body == b"".join(STREAM)
        client.close_sockets()


def test_upstream_error_in_a_stream_is_seen() -> None:
    """A frame with a top-level error is passed on and marked."""
    with bench() as made:
        client = Transport()
        relay = begin(made, client)
        made.connection.data_received(HEAD + chunked([FRAMES[0], answers.frame(error={"message": "x"})]))
        assert relay.ending == wire.COMPLETE
        assert relay.upstream_error
        client.close_sockets()
