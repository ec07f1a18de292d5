"""A connection step by step, without a network: what it reads, keeps, begins, and hands on."""

from __future__ import annotations

import asyncio

import pytest

from proxy import bounds
from proxy._fastpath import now_ns
from proxy.errors import Refusal
from tests.front.fakes import GET, ODD, Bench, post

AHEAD = bounds.CLIENT_AHEAD_BYTES_MAX


def test_what_a_request_knows(bench: Bench) -> None:
    """Line and headers are as they stood on the wire, an empty value included; the time is that of its last byte."""
    before = now_ns()
    bench.feed(GET)
    request = bench.request
    assert before <= request.arrived_ns <= now_ns()
    assert (request.method, request.raw_path, request.http10, request.close) == ("GET", "/v1/models", False, False)
    names = [name for name, _ in request.raw_headers]
    assert names == [b"Host", b"x-empty", b"X-Last"]
    assert [value.strip() for _, value in request.raw_headers] == [b"weir", b"", b"a b"]
    assert (request.started, request.lines, request.body_now(), request.peer) == (False, b"", b"", "192.0.2.7")
    assert request.buffered() == 0


def test_one_after_the_other(bench: Bench) -> None:
    """A thousand requests on one connection, each with its own body, each begun when the one before has ended."""
    for number in range(1000):
        body = b"%d" % number * (number % 7)
        bench.feed(post(body))
        assert len(bench.front.requests) == number + 1
        assert bench.request.body_now() == body
        bench.request.answer(b"%d," % number, close=False)
        bench.request.ended()
    assert bench.transport.written == b"".join(b"%d," % number for number in range(1000))
    assert not bench.transport.closed
    assert bench.front.others == []


@pytest.mark.parametrize("step", [1, 2, 7, 1000])
def test_a_body_in_pieces(bench: Bench, step: int) -> None:
    """Cut anywhere, the body is whole with its last byte and not before, and so is the next request's."""
    body = bytes(range(256)) * 3
    for _ in range(2):
        data = post(body)
        for at in range(0, len(data), step):
            if at and len(bench.front.requests) and bench.request.method and at > len(data) - len(body):
                assert bench.request.body_now() is None
            bench.feed(data[at : at + step])
        assert bench.request.body_now() == body
        bench.request.ended()
    assert len(bench.front.requests) == 2
    assert bench.front.others == []


def test_a_body_is_waited_for(bench: Bench) -> None:
    """`body` returns the whole body when its last byte comes; meanwhile the connection is read, however long it is."""
    body = b"b" * (AHEAD * 5)
    bench.feed(post(b"", len(body)))
    request = bench.request

    async def story() -> bytes:
        waiting = asyncio.create_task(request.body(len(body), 60))
        for at in range(0, len(body), 1 << 14):
            await asyncio.sleep(0)
            assert not waiting.done()
            bench.feed(body[at : at + (1 << 14)])
            assert bench.transport.reading
        return await waiting

    assert bench.loop.run_until_complete(story()) == body
    assert request.body_now() == body
    assert bench.loop.run_until_complete(request.body(len(body), 60)) == body
    request.forget_body()
    assert (request.body_now(), request.raw_headers) == (b"", ())


def test_a_body_that_nobody_asks_for_waits_in_the_kernel(bench: Bench) -> None:
    """Up to CLIENT_AHEAD_BYTES_MAX are taken unasked; with one byte more reading stops until somebody asks."""
    bench.feed(post(b"", AHEAD * 2))
    bench.feed(b"b" * AHEAD)
    assert bench.transport.reading
    bench.feed(b"b")
    assert not bench.transport.reading
    request = bench.request

    async def story() -> bytes:
        waiting = asyncio.create_task(request.body(AHEAD * 2, 60))
        await asyncio.sleep(0)
        assert bench.transport.reading
        bench.feed(b"b" * (AHEAD - 1))
        return await waiting

    assert bench.loop.run_until_complete(story()) == b"b" * (AHEAD * 2)


def test_a_body_that_does_not_come(bench: Bench) -> None:
    """It is a body_timeout after its time; the rest that comes later is read off, and the connection ends."""
    bench.feed(post(b"half", 8))
    request = bench.request
    with pytest.raises(Refusal) as caught:
        bench.loop.run_until_complete(request.body(100, 0.001))
    assert (caught.value.code, caught.value.detail) == ("body_timeout", "0.001")
    assert request.body_now() is None
    request.answer(b"refused", close=True)
    request.ended()
    assert not bench.transport.closed
    bench.feed(b"rest")
    assert bench.transport.closed
    assert bench.transport.written == b"refused"


@pytest.mark.parametrize("size", [3, 4])
def test_a_body_above_the_caller_s_bound(bench: Bench, size: int) -> None:
    """`body` takes exactly as many bytes as its caller allows."""
    bench.feed(post(b"abcd"))
    if size == 4:
        assert bench.loop.run_until_complete(bench.request.body(size, 60)) == b"abcd"
        return
    with pytest.raises(Refusal) as caught:
        bench.loop.run_until_complete(bench.request.body(size, 60))
    assert (caught.value.code, caught.value.detail) == ("body_too_large", "3")


@pytest.mark.parametrize("data", [ODD, b"\r\n" + GET, b"\x16\x03\x01", GET + GET, post(b"x") + b"y"])
def test_what_is_not_ordinary_is_handed_over(bench: Bench, data: bytes) -> None:
    """Every byte of it goes to the other front, with the connection, and whatever comes behind it too."""
    bench.feed(data)
    (other,) = bench.front.others
    assert other.received == data
    assert bench.transport.protocol is other
    assert bench.front.doors == {other}
    assert bench.front.requests == []
    assert not other.paused
    bench.feed(GET)
    assert other.received == data + GET


@pytest.mark.parametrize("first", range(1, len(ODD)))
def test_a_head_in_pieces_that_turns_out_odd(first: int) -> None:
    """Bytes that were kept because they could still become an ordinary head are handed over before what follows."""
    bench = Bench()
    bench.feed(ODD[:first])
    bench.feed(ODD[first:])
    assert bench.front.others[0].received == ODD
    bench.close()


def test_a_request_sent_ahead(bench: Bench) -> None:
    """It waits for the answer before it, unread; then it is the connection's next request."""
    bench.feed(GET)
    bench.feed(GET[:10])
    bench.feed(GET[10:])
    assert len(bench.front.requests) == 1
    bench.request.answer(b"one", close=False)
    bench.request.ended()
    assert len(bench.front.requests) == 2
    bench.request.answer(b"two", close=False)
    assert bench.transport.written == b"onetwo"
    assert bench.front.others == []


@pytest.mark.parametrize("ahead", [ODD, GET + GET])
def test_what_is_not_ordinary_is_sent_ahead(bench: Bench, ahead: bytes) -> None:
    """It waits for the answer before it, unread; then it and the connection are the other front's."""
    bench.feed(GET)
    bench.front.tick = 50
    bench.feed(ahead)
    assert bench.front.others == []
    bench.request.ended()
    (other,) = bench.front.others
    assert (bytes(other.received), other.since) == (ahead, 50)
    assert len(bench.front.requests) == 1


def test_a_request_ahead_of_its_body_s_end(bench: Bench) -> None:
    """What comes with the body's last bytes and does not belong to it begins the next request."""
    bench.feed(post(b"", 4))
    bench.feed(b"body" + GET[:3])
    assert bench.request.body_now() == b"body"
    bench.feed(GET[3:5])
    bench.request.ended()
    assert len(bench.front.requests) == 1
    bench.feed(GET[5:])
    assert len(bench.front.requests) == 2
    assert bench.front.others == []


def test_too_much_sent_ahead_waits_in_the_kernel(bench: Bench) -> None:
    """Up to CLIENT_AHEAD_BYTES_MAX are kept; with one more reading stops, and goes on for the other front."""
    bench.feed(GET)
    bench.feed(b"a" * AHEAD)
    assert bench.transport.reading
    bench.feed(b"a")
    assert not bench.transport.reading
    bench.request.ended()
    assert bench.transport.reading
    assert len(bench.front.others[0].received) == AHEAD + 1


def test_the_wait_of_one_that_sent_ahead_begins_with_its_turn(bench: Bench) -> None:
    """However long the answer before it took, there is the whole time for the rest of the next head."""
    bench.feed(GET)
    bench.feed(GET[:20])
    bench.at(1000)
    bench.request.ended()
    bench.at(1000 + bounds.HEADERS_SECONDS_MAX)
    assert not bench.transport.is_closing()
    bench.at(1001 + bounds.HEADERS_SECONDS_MAX)
    assert bench.transport.is_closing()


@pytest.mark.parametrize("close", ["asked", "told", "draining"])
def test_the_last_answer(bench: Bench, close: str) -> None:
    """The connection ends with the answer when the client asks for it, when the answer says so, and in a drain."""
    bench.front.draining = close == "draining"
    bench.feed(post(b"x", None, b"connection: close") if close == "asked" else post(b"x"))
    assert bench.request.close is (close != "told")
    bench.feed(GET)  # nobody will answer it
    bench.request.answer(b"last", close=close == "told")
    assert bench.request.close
    assert bench.request.started
    assert not bench.transport.closed
    bench.request.ended()
    assert bench.transport.closed
    assert bench.transport.written == b"last"
    assert bench.front.others == []


def test_ending_twice_does_nothing(bench: Bench) -> None:
    """A request that has ended says nothing about the one after it."""
    bench.feed(GET)
    first = bench.request
    first.ended()
    bench.feed(GET)
    first.ended()
    bench.feed(GET)  # ahead: the second is still under way
    assert len(bench.front.requests) == 2
    assert bench.front.others == []


@pytest.mark.parametrize("rest", [1, 1000, AHEAD * 3])
def test_a_refusal_before_the_body_is_there(bench: Bench, rest: int) -> None:
    """The rest of the body is read and thrown away, however long, so that the refusal reaches its client."""
    bench.feed(post(b"half", 4 + rest))
    bench.request.answer(b"refused", close=True)
    bench.request.ended()
    for at in range(0, rest, 5000):
        assert not bench.transport.closed
        assert bench.transport.reading
        bench.feed(b"r" * min(5000, rest - at))
    assert bench.transport.closed
    assert bench.front.requests == [bench.request]
    assert bench.front.others == []


def test_a_refusal_after_reading_had_stopped(bench: Bench) -> None:
    """Reading goes on for the rest of the body."""
    bench.feed(post(b"b" * (AHEAD + 1), AHEAD * 4))
    bench.feed(b"b")
    assert not bench.transport.reading
    bench.request.answer(b"refused", close=True)
    bench.request.ended()
    assert bench.transport.reading
