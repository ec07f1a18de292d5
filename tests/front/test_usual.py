"""Which heads are ordinary, against an oracle: made, mutated, cut at every byte, with anything behind them."""

from __future__ import annotations

import os
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy._front import usual
from proxy.bounds import REQUEST_LINE_BYTES_MAX
from tests.front.head_oracle import judge

SEED = int(os.environ.get("WEIR_TEST_SEED") or 20_261)
GET = b"GET /v1/models HTTP/1.1\r\nhost: weir\r\n\r\n"
POST = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:8080\r\nAccept-Encoding: gzip, deflate\r\n"
    b"Connection: keep-alive\r\nAccept: application/json\r\nContent-Type: application/json\r\n"
    b"User-Agent: OpenAI/Python 1.54.0\r\nX-Stainless-OS: Linux\r\nx_odd:\t tab \t\r\nempty:\r\n"
    b"Authorization: Bearer wk_live_abc\r\nContent-Length: 1017\r\n\r\n"
)
LAST = b"POST /v1/a_b.c:d HTTP/1.1\r\nHost:\r\ncontent-length: 0\r\nCONNECTION: Close\r\n\r\n"
ORDINARY = {"get": GET, "post": POST, "last": LAST, "bare": b"GET / HTTP/1.1\r\nhost:\r\n\r\n"}

# What is ordinary by itself, and what is not, one change away from an ordinary head.
LINES = {
    b"host: other": False,
    b"Host:": False,
    b"hosts: 1": True,
    b"content-length: 5": True,
    b"content-length:5": True,
    b"Content-Length: \t 5 \t": True,
    b"content-length: 000000000000005": True,
    b"content-length: 999999999999999": True,
    b"content-length: 1000000000000000": False,
    b"content-length: 0000000000000005": False,
    b"content-length: +5": False,
    b"content-length: -5": False,
    b"content-length: 5,5": False,
    b"content-length: 5 5": False,
    b"content-length: 0x5": False,
    b"content-length: 5.0": False,
    b"content-length:": False,
    b"content-length:  ": False,
    b"content-length: 5\r\ncontent-length: 5": False,
    b"content-length: 5\r\nContent-Length: 6": False,
    b"content_length: 6": True,
    b"contents-length: x": True,
    b"content-length : 5": False,
    b"connection: close": True,
    b"connection: Keep-Alive": True,
    b"connection: close, keep-alive": False,
    b"connection: close,": False,
    b"connection: te": False,
    b"connection: upgrade": False,
    b"connection:": False,
    b"connection: close\r\nconnection: close": False,
    b"connection: keep-alive\r\nconnection: close": False,
    b"connections: any": True,
    b"proxy-connection: close": False,
    b"transfer-encoding: chunked": False,
    b"Transfer-Encoding: identity": False,
    b"transfer-encoding:": False,
    b"transfer_encoding: chunked": True,
    b"expect: 100-continue": False,
    b"EXPECT: nothing": False,
    b"upgrade: h2c": False,
    b"Upgrade: websocket": False,
    b"upgrade-insecure-requests: 1": True,
    b"x: \x7f": False,
    b"x: \x80": False,
    b"x: \x00": False,
    b"x: a\rb": False,
    b"x: a\nb": False,
    b"x: a\n b": False,
    b"x: a\r\n b": False,
    b"x: a\x0bb": False,
    b"x: a\tb": True,
    b"x: ~!@#$%^&*()[]{}<>?/\\|'\"`=+,.;:": True,
    b"x x: 1": False,
    b"x\t: 1": False,
    b" x: 1": False,
    b": 1": False,
    b"x": False,
    b"x.y: 1": False,
    b"x(y): 1": False,
    b"x\xe9: 1": False,
}
REQUEST_LINES = {
    b"GET / HTTP/1.1": True,
    b"POST //a//b HTTP/1.1": True,
    b"GET /../.. HTTP/1.1": True,
    b"GET /Az09-._:/ HTTP/1.1": True,
    b"GET /a?b HTTP/1.1": False,
    b"GET /a%20 HTTP/1.1": False,
    b"GET /a#b HTTP/1.1": False,
    b"GET /a;b HTTP/1.1": False,
    b"GET /a@b HTTP/1.1": False,
    b"GET /a,b HTTP/1.1": False,
    b"GET /~ HTTP/1.1": False,
    b"GET /[ HTTP/1.1": False,
    b"GET /` HTTP/1.1": False,
    b"GET /{ HTTP/1.1": False,
    b"GET /\xe9 HTTP/1.1": False,
    b"GET /\x00 HTTP/1.1": False,
    b"GET  / HTTP/1.1": False,
    b"GET /  HTTP/1.1": False,
    b"GET\t/ HTTP/1.1": False,
    b" GET / HTTP/1.1": False,
    b"\r\nGET / HTTP/1.1": False,
    b"GET / HTTP/1.1 ": False,
    b"GET / HTTP/1.0": False,
    b"GET / HTTP/1.2": False,
    b"GET / HTTP/2.0": False,
    b"GET / http/1.1": False,
    b"GET /": False,
    b"GET http://weir/ HTTP/1.1": False,
    b"GET * HTTP/1.1": False,
    b"get / HTTP/1.1": False,
    b"GETS / HTTP/1.1": False,
    b"PUT / HTTP/1.1": False,
    b"POSTS / HTTP/1.1": False,
    b"PATCH / HTTP/1.1": False,
    b"PRI * HTTP/2.0": False,
    b"\x16\x03\x01\x02\x00": False,
}


@pytest.mark.parametrize("line", LINES, ids=repr)
def test_a_header_line(line: bytes) -> None:
    """Each rule by hand: one line more makes an ordinary head stay so or not, wherever it stands."""
    for head in (b"POST / HTTP/1.1\r\nhost: weir\r\n%b\r\n\r\n", b"POST / HTTP/1.1\r\n%b\r\nhost: weir\r\n\r\n"):
        assert bool(usual(head % line)) is LINES[line]
        assert usual(head % line) == judge(head % line)


@pytest.mark.parametrize("line", REQUEST_LINES, ids=repr)
def test_a_request_line(line: bytes) -> None:
    """Each rule of the first line by hand."""
    data = line + b"\r\nhost: weir\r\n\r\n"
    assert bool(usual(data)) is REQUEST_LINES[line]
    assert usual(data) == judge(data)


def test_what_it_says() -> None:
    """Size of the head, length of the body, method and the wish to close, as they stand there."""
    assert usual(GET) == (len(GET), 0, False, False)
    assert usual(POST + b"x" * 2000) == (len(POST), 1017, True, False)
    assert usual(LAST) == (len(LAST), 0, True, True)
    assert usual(b"") is None
    # A GET has no body.
    assert usual(b"GET / HTTP/1.1\r\nhost:\r\ncontent-length: 0\r\n\r\n") == (44, 0, False, False)
    assert usual(b"GET / HTTP/1.1\r\nhost:\r\ncontent-length: 1\r\n\r\n") is False
    assert usual(b"GET / HTTP/1.1\r\n\r\n") is False  # without a Host it is to be refused: RFC 9112, 3.2


@pytest.mark.parametrize("name", ORDINARY)
def test_cut_at_every_byte(name: str) -> None:
    """Each strict beginning of an ordinary head could become one; the whole of it stays one, whatever follows."""
    head = ORDINARY[name]
    whole = usual(head)
    assert whole
    for size in range(len(head)):
        assert usual(head[:size]) is None, head[:size]
    chance = random.Random(SEED)
    tails = [b"\r\n", b"\n", b" folded", b"\x00", b"\xff", GET, POST, chance.randbytes(20_000)]
    tails += [bytes([byte]) for byte in range(256)]
    for tail in tails:
        assert usual(head + tail) == whole, tail


@pytest.mark.parametrize("at", ["name", "value", "path"])
def test_the_size_bound_is_exact(at: str) -> None:
    """A head of REQUEST_LINE_BYTES_MAX bytes is ordinary, one of a byte more is not, and is not waited for in vain."""

    def made(size: int) -> bytes:
        head = {
            "name": b"GET / HTTP/1.1\r\nhost:\r\nx%b: 1\r\n\r\n",
            "value": b"GET / HTTP/1.1\r\nhost: %b\r\n\r\n",
            "path": b"GET /%b HTTP/1.1\r\nhost:\r\n\r\n",
        }[at]
        return head % (b"p" * (size - len(head) + 2))

    longest = made(REQUEST_LINE_BYTES_MAX)
    assert len(longest) == REQUEST_LINE_BYTES_MAX
    for tail in (b"", b"x", b"x" * 10_000):
        assert usual(longest + tail) == (REQUEST_LINE_BYTES_MAX, 0, False, False)
    assert usual(longest[:-1]) is None
    above = made(REQUEST_LINE_BYTES_MAX + 1)
    assert usual(above) is False
    assert usual(above[:-1]) is False  # as long as the bound, and not whole
    assert usual(above[:-2]) is None


ITEM = st.one_of(
    st.sampled_from([*LINES]),
    st.builds(
        lambda name, gap, value: name + b":" + gap + value,
        st.sampled_from(
            [b"content-length", b"connection", b"Host", b"Expect", b"x", b"Transfer-Encoding", b"", b"a b"]
        ),
        st.sampled_from([b"", b" ", b"\t"]),
        st.one_of(st.sampled_from([b"0", b"7", b"close", b"keep-alive", b""]), st.binary(max_size=6)),
    ),
)
HEAD = st.builds(
    lambda first, lines, end: first + b"\r\nhost: weir\r\n" + b"".join(line + b"\r\n" for line in lines) + end,
    st.one_of(st.sampled_from([*REQUEST_LINES]), st.just(b"POST /v1/x HTTP/1.1")),
    st.lists(ITEM, max_size=5),
    st.sampled_from([b"\r\n", b"\r\n", b"\n", b"", b"\r", b"\r\nGET / HTTP/1.1\r\n\r\n"]),
)


@given(HEAD)
def test_made_heads(data: bytes) -> None:
    """Heads made of odd lines are judged as the oracle judges them, whole and at every cut."""
    for size in range(len(data) + 1):
        assert usual(data[:size]) == judge(data[:size]), data[:size]


@given(st.binary(max_size=60))
def test_any_bytes(data: bytes) -> None:
    """Noise, alone and inside a head that is otherwise ordinary."""
    assert usual(data) == judge(data)
    host = b"HTTP/1.1\r\nhost:\r\n"
    for head in (b"GET /%%b %b\r\n" % host, b"GET / %bx%%b: 1\r\n\r\n" % host, b"GET / %bx: %%b\r\n\r\n" % host):
        assert usual(head % data) == judge(head % data)


def test_mutated_heads() -> None:
    """Thousands of ordinary heads with a few bytes changed, inserted, cut out or doubled."""
    for turn in range(20_000):
        chance = random.Random(f"{SEED}/{turn}")
        data = bytearray(chance.choice([*ORDINARY.values()]))
        for _ in range(chance.choice([1, 1, 1, 2, 5])):
            at = chance.randrange(len(data) + 1)
            match chance.randrange(5):
                case 0:
                    data[at:at] = chance.randbytes(1)
                case 1:
                    del data[at : at + chance.randrange(1, 4)]
                case 2 if at < len(data):
                    data[at] = chance.choice(b"\r\n\t :,-_0159aZ\x00\x7f\xff")
                case 3:
                    data[at:at] = b"\r\n" + chance.choice([*LINES]) + b"\r\n"
                case _:
                    data[at:at] = data[at : at + chance.randrange(40)]
        assert usual(bytes(data)) == judge(bytes(data)), f"seed {SEED}, turn {turn}: {bytes(data)!r}"


def test_only_bytes_are_judged() -> None:
    """Anything else is the caller's mistake."""
    for wrong in (None, "GET / HTTP/1.1\r\n\r\n", bytearray(GET)):
        with pytest.raises(TypeError):
            usual(wrong)  # type: ignore[arg-type]
