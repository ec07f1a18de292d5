"""The tokens of what was relayed stand in the slot before each write, exactly; what is not counted says so."""

from __future__ import annotations

import json
import random
import threading

import pytest

from proxy import _wire as wire
from proxy import bounds, tokens
from proxy._scan import AnswerCounter
from tests.scan.said_oracle import heard
from tests.scan.test_answer_counter import O200K, made_stream
from tests.tokens import oracle
from tests.wire import answers
from tests.wire.answers import DONE, USAGE_FRAME, delta
from tests.wire.rig import Answer, Transport, bench, chunked, new_slot
from tests.wire.test_relay import ENDING, HEAD, begin, piece

TOKENS, ESTIMATED = 11, 12  # in `Slot.counters`
JSON_HEAD = answers.OK + answers.JSON


def counter() -> AnswerCounter:
    return AnswerCounter(tokens.encoding(O200K))


def whole(text: str, **more: object) -> bytes:
    body = json.dumps({"choices": [{"message": {"content": text}}], **more}).encode()
    return JSON_HEAD + answers.length(body) + b"\r\n" + body


def frames_of(body: bytes) -> list[bytes]:
    return body.split(b"\n\n")[:-1]


@pytest.mark.parametrize("hide_usage", [False, True])
def test_the_slot_counts_what_the_client_has(hide_usage: bool) -> None:
    """At every write the slot says the tokens of all whole frames that the client has after it, by tiktoken."""
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    for _ in range(5):
        frames = made_stream(chance, 6)
        frames.insert(-1, USAGE_FRAME)
        raw = HEAD + chunked(frames)
        slot = new_slot()
        got: list[bytes] = []
        wrong: list[object] = []

        def write(data: bytes) -> None:
            got.append(data)  # noqa: B023
            want = heard(frames_of(Answer(b"".join(got)).body)).tokens(O200K)  # noqa: B023
            said = slot.counters()  # noqa: B023
            if (said[TOKENS], said[ESTIMATED]) != (want, 0):
                wrong.append((seed, len(got), said, want))  # noqa: B023

        with bench() as made:
            client = Transport()
            client.write = write  # type: ignore[method-assign]
            relay = begin(made, client, slot=slot, hide_usage=hide_usage, counter=counter())
            at = 0
            while at < len(raw):
                size = chance.choice((1, 40, 300, 3000))
                made.connection.data_received(raw[at : at + size])
                at += size
            assert relay.ending == wire.COMPLETE
            assert not wrong, wrong[:2]
            assert (relay.text_tokens, relay.text_estimated) == (heard(frames).tokens(O200K), False), seed
            assert relay.backlog == 0
            client.close_sockets()


def test_a_whole_answer_is_counted_before_its_last_write() -> None:
    """A JSON answer without usage is read and counted when it is whole; one with usage has been counted already."""
    text = "A weir stands in a stream, and measures it."
    want = oracle.count(O200K, text)
    for usage, said in ((None, (want, 0)), (answers.USAGE, (-(-len(text) // 4), 1))):
        slot = new_slot()
        seen: list[tuple[int, ...]] = []
        with bench() as made:
            client = Transport()
            client.write = lambda data: seen.append(slot.counters())  # type: ignore[method-assign] # noqa: B023
            relay = begin(made, client, slot=slot, counter=counter())
            raw = whole(text, usage=usage)
            made.connection.data_received(raw[:-9])
            assert relay.text_estimated  # nobody has read the part that the client has
            made.connection.data_received(raw[-9:])
            client.close_sockets()
        assert [(counters[TOKENS], counters[ESTIMATED]) for counters in seen] == [(0, 1), said]


@pytest.mark.parametrize("milli", [1, 999, 4000, 4001, 10**6])
def test_without_a_counter_bytes_are_taken(milli: int) -> None:
    """Where the encoding is not known, text counts by its bytes, rounded up, and is called an estimate."""
    slot = new_slot()
    with bench() as made:
        client = Transport()
        relay = begin(made, client, slot=slot, bytes_per_token_milli=milli)
        for number in range(1, 9):
            made.connection.data_received((HEAD if number == 1 else b"") + piece(delta("stånds ")))
            want = -(-number * len("stånds ".encode()) * 1000 // milli)
            assert (relay.text_tokens, relay.text_estimated, relay.backlog) == (want, True, 0)
            assert slot.counters()[TOKENS:] == (want, 1)
        relay.cancel()
        relay.finish_count()  # nothing waits
        client.close_sockets()
        with pytest.raises(ValueError, match="thousandths"):
            begin(made, client, bytes_per_token_milli=0)


@pytest.mark.parametrize("ending", ["complete", "lost", "client gone", "cancelled", "one answer"])
def test_what_waits_is_finished_in_a_thread(ending: str) -> None:
    """More text than may be counted at once waits, however the answer ends; a thread counts it when it has ended."""
    text = "The weir's crest, 1.5 m above the bed: «Überfall» 测量。 " * 3000
    slot = new_slot()
    with bench() as made:
        client = Transport()
        relay = begin(made, client, slot=slot, counter=counter())
        if ending == "one answer":
            made.connection.data_received(whole(text))
        else:
            made.connection.data_received(HEAD + piece(delta(text)))
            with pytest.raises(ValueError, match="being relayed"):
                relay.finish_count()
            match ending:
                case "complete":
                    made.connection.data_received(chunked([DONE]))
                case "lost":
                    made.connection.eof_received()
                case "client gone":
                    client.abort()
                    made.connection.data_received(piece(delta("")))
                case "cancelled":
                    relay.cancel()
        assert relay.ending != wire.RUNNING
        size = len(text.encode())
        before = slot.counters()
        assert before[ESTIMATED] == 1
        assert 0 < size - relay.backlog <= 4 * bounds.TEXT_BYTES_INLINE
        assert relay.text_estimated
        thread = threading.Thread(target=relay.finish_count)
        thread.start()
        thread.join(120)
        assert (relay.text_tokens, relay.text_estimated) == (oracle.count(O200K, text), False)
        assert relay.backlog == 0
        assert slot.counters() == before  # the call may be closed by then: whoever finishes it says what it found
        client.close_sockets()


def test_an_answer_cut_short_is_counted_so_far() -> None:
    """A cut, at once or at the end of a frame, leaves the exact count of the upstream's own frames."""
    frames = [delta("A weir "), delta("stands in a stream, and measures it.")]
    for sent in (piece(frames[0]) + piece(frames[1]), piece(frames[0]) + piece(frames[1][:-20])):
        slot = new_slot()
        with bench() as made:
            client = Transport()
            relay = begin(made, client, slot=slot, counter=counter())
            made.connection.data_received(HEAD + sent)
            relay.cut(ENDING)
            if relay.ending == wire.RUNNING:
                made.connection.data_received(piece(frames[1][-20:] + frames[0]))
            assert relay.ending == wire.CUT
            assert slot.counters()[TOKENS:] == (heard(frames).tokens(O200K), 0)
            assert (relay.text_tokens, relay.text_estimated) == slot.counters()[TOKENS:]
            client.close_sockets()


def test_an_answer_that_nobody_could_read() -> None:
    """A body that is no JSON, or too long to be kept, is relayed; that its text is unknown is said."""
    huge = b"x" * (bounds.ANSWER_BYTES_PARSED_MAX + 1)
    for body in (b"<html>", b'{"choices":', huge):
        with bench() as made:
            client = Transport()
            relay = begin(made, client, counter=counter())
            made.connection.data_received(JSON_HEAD + answers.length(body) + b"\r\n" + body)
            assert relay.ending == wire.COMPLETE
            assert (relay.text_tokens, relay.text_estimated, relay.backlog) == (0, True, 0)
            client.close_sockets()


def test_an_error_has_no_text() -> None:
    """An answer that is not relayed says nothing, and there is nothing to estimate."""
    slot = new_slot()
    with bench() as made:
        client = Transport()
        relay = begin(made, client, slot=slot, counter=counter())
        made.connection.data_received(
            answers.said(b"500 No", answers.JSON, answers.length(answers.ERROR)) + answers.ERROR
        )
        assert relay.ending == wire.ANSWERED
        assert (relay.text_tokens, relay.text_estimated) == (0, False)
        assert slot.counters()[TOKENS:] == (0, 0)
        client.close_sockets()
