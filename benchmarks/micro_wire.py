"""What `_wire` costs by itself, without sockets: `pytest benchmarks/micro_wire.py --benchmark-enable`.

The transports are as cheap as a call can be, so the figures are those of parser, scanner, counters and framing: what
one read of an upstream, or one whole answer, costs a worker before the kernel. The journal's slot is real.
"""

from __future__ import annotations

import asyncio
import json
import resource
import socket
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from proxy import _wire as wire
from proxy import tokens
from proxy._scan import AnswerCounter
from proxy._wire import Connection, Outbox, Relay
from proxy.upstreams.target import Target
from tests.wire.rig import new_slot

CHUNKS = 1000  # in one round
STREAMS = 1000  # open at the same time
FRAME = (
    b'data: {"id":"chatcmpl-9","object":"chat.completion.chunk","created":1700000000,"model":"gpt-4o-mini",'
    b'"choices":[{"index":0,"delta":{"content":" weir"},"finish_reason":null}],"usage":null}\n\n'
)
CHUNK = b"%x\r\n%b\r\n" % (len(FRAME), FRAME)
STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
ANSWER = json.dumps(
    {
        "id": "chatcmpl-9",
        "model": "gpt-4o-mini",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "w" * 400}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 11, "completion_tokens": 100, "total_tokens": 111},
    }
).encode()
# As many header fields as a well-known provider sends.
JSON_HEAD = b"".join(
    (
        b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n",
        b"".join(b"x-some-header-%d: some value of it\r\n" % number for number in range(12)),
        b"x-request-id: req_0123456789abcdef\r\ncontent-length: %d\r\n\r\n" % len(ANSWER),
    )
)


class Cheap:
    """An upstream's transport whose calls do next to nothing."""

    def __init__(self, near: socket.socket) -> None:
        self.near = near
        self.write: Callable[[bytes], None] = deque[bytes](maxlen=0).append
        self.is_closing: Callable[[], bool] = bool
        self.get_write_buffer_size: Callable[[], int] = int

    def get_extra_info(self, name: str) -> socket.socket:
        return self.near

    def abort(self) -> None:
        """Nothing to close."""


class Setting:
    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.near, self.far = socket.socketpair()
        self.write = deque[bytes](maxlen=0).append
        self.slot = new_slot()
        self.outbox = Outbox(lambda flush, context: flush())

    def connection(self) -> Connection:
        connection = Connection(lambda connection, reusable: None)
        connection.connection_made(Cheap(self.near))  # type: ignore[arg-type]
        return connection

    def relay(self, *, hide_usage: bool = False, counts: bool = False) -> Relay:
        counter = AnswerCounter(tokens.encoding("o200k_base")) if counts else None
        return Relay(
            self.write,
            int,
            print,
            self.loop.create_future(),
            self.outbox,
            self.slot,
            0,
            b"x-request-id: 0123456789abcdef\r\n",
            http10=False,
            close=False,
            hide_usage=hide_usage,
            hold_end=False,
            first_byte_ms=60_000,
            idle_ms=60_000,
            total_ms=60_000,
            counter=counter,
        )


@pytest.fixture
def setting() -> Iterator[Setting]:
    made = Setting()
    yield made
    made.near.close()
    made.far.close()
    made.loop.close()


def report(benchmark: Any, what: str, calls: int) -> None:
    if benchmark.stats is None:  # disabled: it ran once, so that it stays right
        return
    best_ns = benchmark.stats.stats.min / calls * 1e9
    median_ns = benchmark.stats.stats.median / calls * 1e9
    benchmark.extra_info.update(best_ns=round(best_ns, 1), median_ns=round(median_ns, 1))
    print(f"\n{what}: best {best_ns:.0f} ns, median {median_ns:.0f} ns")


@pytest.mark.parametrize("counts", [False, True], ids=["bytes", "tokens"])
@pytest.mark.parametrize("hide_usage", [False, True], ids=["forward", "hide"])
def test_streamed_chunk(benchmark: Any, setting: Setting, hide_usage: bool, counts: bool) -> None:
    """One read with one frame: llhttp, scan, tokens, counters, our chunk around it, one write."""
    connection, relay = setting.connection(), setting.relay(hide_usage=hide_usage, counts=counts)
    connection.start(relay, b"x")
    connection.data_received(STREAM_HEAD)

    def reads() -> None:
        feed = connection.data_received
        for _ in range(CHUNKS):
            feed(CHUNK)

    benchmark.pedantic(reads, rounds=100, warmup_rounds=2)
    assert relay.ending == wire.RUNNING
    assert relay.frames >= CHUNKS
    report(benchmark, "one streamed chunk", CHUNKS)
    connection.abort()


def test_burst(benchmark: Any, setting: Setting) -> None:
    """Sixteen upstream chunks that came in one read: one scan each, one write."""
    connection, relay = setting.connection(), setting.relay()
    connection.start(relay, b"x")
    connection.data_received(STREAM_HEAD)
    burst = CHUNK * 16

    def reads() -> None:
        feed = connection.data_received
        for _ in range(CHUNKS // 16):
            feed(burst)

    benchmark.pedantic(reads, rounds=100, warmup_rounds=2)
    assert relay.ending == wire.RUNNING
    report(benchmark, "one chunk of a burst", CHUNKS // 16 * 16)
    connection.abort()


@pytest.mark.parametrize("body", [JSON_HEAD + ANSWER, STREAM_HEAD + CHUNK * 3 + b"0\r\n\r\n"], ids=["json", "stream"])
def test_whole_answer(benchmark: Any, setting: Setting, body: bytes) -> None:
    """Everything of one short answer: the relay, the request, the head, the body, the counters, the end."""
    connection = setting.connection()
    target = Target("https://api.example.com/v1", "sk-0123456789abcdef")
    asked = b'{"model": "m", "messages": []}' * 30

    def answers() -> None:
        for _ in range(CHUNKS // 10):
            relay = setting.relay()
            request = target.request("/chat/completions", b"content-type: application/json\r\n", b"0123456789", asked)
            connection.start(relay, request)
            connection.data_received(body)
            assert relay.ending == wire.COMPLETE

    benchmark.pedantic(answers, rounds=100, warmup_rounds=2)
    report(benchmark, "one whole answer", CHUNKS // 10)
    connection.abort()


def test_check_before_reuse(benchmark: Any, setting: Setting) -> None:
    """The look at an idle connection's socket, a system call, that finds one closed by the upstream."""
    connection = setting.connection()

    def looks() -> None:
        for _ in range(CHUNKS):
            connection.alive()

    benchmark.pedantic(looks, rounds=50, warmup_rounds=2)
    assert connection.alive()
    report(benchmark, "alive()", CHUNKS)
    connection.abort()


@pytest.mark.parametrize("counts", [False, True], ids=["bytes", "tokens"])
def test_memory_of_open_streams(setting: Setting, counts: bool) -> None:
    """A thousand open streams: relay, connection, parser, scanner and token counter, without sockets."""
    tokens.encoding("o200k_base").count(b" weir")  # its table and its caches are shared by all
    before = resident_bytes()
    held = []
    for _ in range(STREAMS):
        connection, relay = setting.connection(), setting.relay(hide_usage=True, counts=counts)
        connection.start(relay, b"x")
        connection.data_received(STREAM_HEAD + CHUNK)
        held.append((connection, relay))
    grown = resident_bytes() - before
    print(f"\n{STREAMS} open streams: {grown / 1e6:.1f} MB")
    for connection, _ in held:
        connection.abort()
    assert grown < 4_000_000


def resident_bytes() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * resource.getpagesize()
