"""A connection step by step, without a network: how long it waits, how it pauses and ends, and what is left of it."""

from __future__ import annotations

import asyncio
import gc

import pytest

from proxy import bounds
from proxy._fastpath import now_ns
from proxy._front import Client, Request
from tests.front.fakes import GET, ODD, Bench, Relay, post

AHEAD = bounds.CLIENT_AHEAD_BYTES_MAX
HEADERS, IDLE, LINGER = bounds.HEADERS_SECONDS_MAX, bounds.CONNECTION_IDLE_SECONDS_MAX, bounds.LINGER_SECONDS_MAX

# --- time, in the front's ticks ---


def test_a_head_has_its_time(bench: Bench) -> None:
    """Silence, or half a head: the connection is cut when HEADERS_SECONDS_MAX have passed, not before."""
    bench.at(HEADERS)
    bench.feed(GET[:20])  # bytes do not lengthen it
    assert not bench.transport.is_closing()
    bench.at(HEADERS + 1)
    assert bench.transport.aborted


def test_the_next_head_has_its_own_time(bench: Bench) -> None:
    """After an answer the next head's time begins with its first byte."""
    bench.front.tick = 5
    bench.feed(GET)
    bench.request.ended()
    bench.at(60)
    bench.feed(GET[:20])
    bench.at(60 + HEADERS)
    bench.feed(GET[20:21])
    assert not bench.transport.is_closing()
    bench.at(60 + HEADERS + 1)
    assert bench.transport.aborted


def test_an_idle_connection_has_its_time(bench: Bench) -> None:
    """Between requests a connection is kept for CONNECTION_IDLE_SECONDS_MAX, counted from its last answer."""
    bench.feed(GET)
    bench.at(500)
    assert not bench.transport.is_closing()  # its request is being answered
    bench.request.ended()
    bench.at(500 + IDLE)
    assert not bench.transport.is_closing()
    bench.at(500 + IDLE + 1)
    assert bench.transport.closed


def test_lingering_has_its_time(bench: Bench) -> None:
    """The rest of a refused body is waited for during LINGER_SECONDS_MAX, counted from the refusal."""
    bench.feed(post(b"half", 1 << 40))
    bench.at(300)
    bench.request.answer(b"refused", close=True)
    bench.request.ended()
    bench.at(300 + LINGER)
    bench.feed(b"b" * 100_000)
    assert not bench.transport.is_closing()
    bench.at(300 + LINGER + 1)
    assert bench.transport.closed
    assert not bench.transport.aborted  # what is written goes out first


def test_a_connection_handed_over_takes_its_waiting_with_it(bench: Bench) -> None:
    """The other front learns since when the head is owed."""
    bench.front.tick = 3
    bench.feed(GET)
    bench.request.ended()
    bench.front.tick = 7
    bench.feed(b"GET /v1")
    bench.front.tick = 12
    bench.feed(b"?x")
    assert (bench.front.others[0].since, bytes(bench.front.others[0].received)) == (7, b"GET /v1?x")


def test_draining_ends_what_is_idle(bench: Bench) -> None:
    """Only a connection that carries nothing is closed, and only when that has lasted for the grace."""
    bench.feed(GET)
    bench.front.draining = True
    bench.client.end_idle(1 << 62)
    assert not bench.transport.is_closing()
    before = now_ns()
    bench.request.ended()
    bench.client.end_idle(before)
    assert not bench.transport.is_closing()
    bench.feed(GET[:5])
    bench.client.end_idle(1 << 62)
    assert not bench.transport.is_closing()  # half a request is on its way
    bench.feed(GET[5:])
    assert bench.request.close
    bench.request.ended()
    assert bench.transport.closed


def test_draining_closes_a_connection_that_was_always_idle(bench: Bench) -> None:
    """One that never sent anything is as idle as one after its answer."""
    bench.client.end_idle(1)
    assert bench.transport.closed


def test_draining_leaves_a_refusal_its_time(bench: Bench) -> None:
    """A connection that reads off the rest of a refused body is not idle: closing it would take the refusal back."""
    bench.front.draining = True
    bench.feed(post(b"half", 100))
    bench.request.answer(b"refused", close=True)
    bench.request.ended()
    bench.client.end_idle(1 << 62)
    assert not bench.transport.is_closing()
    bench.feed(b"r" * 96)
    assert bench.transport.closed


# --- the client goes, or is slow ---


def test_hanging_up_cancels_the_request(bench: Bench) -> None:
    """A lost connection cancels what it carries; whatever the request does then, it does to nobody."""
    bench.feed(post(b"half", 100))
    (work,) = bench.front.works
    bench.client.connection_lost(ConnectionResetError())
    assert work.cancelled
    assert bench.front.doors == set()
    request = bench.request
    request.answer(b"late", close=False)
    request.abort()
    relay = Relay()
    request.paused(relay)  # type: ignore[arg-type]
    request.ended()
    assert request.peer == ""
    assert bench.transport.written == b""


def test_a_half_closed_connection_ends(bench: Bench) -> None:
    """Who says that nothing more will come is gone: the transport may close."""
    bench.feed(GET)
    assert not bench.client.eof_received()


def test_a_slow_reader_pauses_and_resumes(bench: Bench) -> None:
    """A relay that paused goes on when the transport has room, once for each time."""
    bench.feed(GET)
    relay = Relay()
    for turn in range(1, 4):
        bench.client.pause_writing()
        bench.request.paused(relay)  # type: ignore[arg-type]
        assert relay.resumed == turn - 1
        bench.client.resume_writing()
        assert relay.resumed == turn
    bench.client.pause_writing()
    bench.client.resume_writing()
    assert relay.resumed == 3


def test_a_pause_that_came_too_late(bench: Bench) -> None:
    """When the transport has room again already, the relay goes on with the loop's next turn."""
    bench.feed(GET)
    relay = Relay()
    bench.request.paused(relay)  # type: ignore[arg-type]
    assert relay.resumed == 0
    bench.loop.run_until_complete(asyncio.sleep(0))
    assert relay.resumed == 1


def test_a_stalled_relay_is_forgotten_with_its_request(bench: Bench) -> None:
    """Room in the transport is of no interest to a request that has ended."""
    bench.feed(GET)
    relay = Relay()
    bench.client.pause_writing()
    bench.request.paused(relay)  # type: ignore[arg-type]
    bench.request.ended()
    bench.client.resume_writing()
    assert relay.resumed == 0


def test_handed_over_while_paused(bench: Bench) -> None:
    """The other front is told that the transport is full, and reads even where reading had stopped."""
    bench.feed(GET)
    bench.client.pause_writing()
    bench.feed(b"a" * (AHEAD + 1))
    bench.request.ended()
    (other,) = bench.front.others
    assert other.paused
    assert bench.transport.reading


def test_the_front_ends_a_connection(bench: Bench) -> None:
    """`end` cancels the request and closes the transport, which sends what was written."""
    bench.feed(GET)
    bench.client.end()
    assert bench.front.works[0].cancelled
    assert bench.transport.closed
    assert not bench.transport.aborted
    bench.request.ended()


def test_aborting_a_request_aborts_its_connection(bench: Bench) -> None:
    """An answer that cannot be ended well must not look whole."""
    bench.feed(GET)
    bench.request.abort()
    assert bench.transport.aborted
    bench.request.answer(b"nothing", close=False)
    assert bench.transport.written == b""


# --- what is left of it ---


class Held(Relay):
    """A relay as the product's: it knows the request for which it relays."""

    def __init__(self, request: Request) -> None:
        super().__init__()
        self.request = request


def kept() -> int:
    """Connections and requests that are still in memory."""
    return sum(type(one) in (Client, Request) for one in gc.get_objects())


@pytest.mark.parametrize(
    "way", ["idle", "answered", "in a request", "in a body", "half a head", "handed over", "ahead", "stalled"]
)
def test_nothing_keeps_a_finished_connection(way: str) -> None:
    """When a connection has ended, in whatever state, it is gone with its last reference: no cycle holds it."""
    gc.collect()
    gc.disable()
    try:
        before = kept()
        bench = Bench()
        if way != "idle":
            bench.feed(post(b"half", 100) if way == "in a body" else GET[:9] if way == "half a head" else GET)
        if way == "stalled":
            bench.client.pause_writing()
            bench.request.paused(Held(bench.request))  # type: ignore[arg-type]
        if way == "answered":
            bench.request.ended()
        if way in ("handed over", "ahead"):
            if way == "ahead":
                bench.feed(GET)
            bench.request.ended()
            if way == "handed over":
                bench.feed(ODD)
        assert kept() > before or way == "handed over"
        if bench.client in bench.front.doors:
            bench.client.connection_lost(None)
        if way == "stalled":
            bench.request.paused(Held(bench.request))  # type: ignore[arg-type]
        bench.transport.protocol = None
        bench.front.requests.clear()
        bench.front.others.clear()
        bench.loop.close()
        del bench
        assert kept() == before
    finally:
        gc.enable()
