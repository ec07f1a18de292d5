"""Cut, mutated and made-up answers to a `Connection`, whose owner cancels, cuts, resumes and fails at any moment.

Nothing may be raised, every relay must end once, and what a client got must be sound and as the counters say.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import socket
import time
from collections.abc import Callable
from functools import partial

import httptools

from proxy import _wire as wire
from proxy import tokens
from proxy._scan import AnswerCounter
from proxy._wire import Connection, Relay

HEADS = [
    b"HTTP/1.1 200 OK\r\n", b"HTTP/1.0 200 OK\r\n", b"HTTP/1.1 500 No\r\n", b"HTTP/1.1 204 No\r\n",
    b"HTTP/1.1 100 C\r\n\r\n", b"content-type: text/event-stream\r\n", b"content-type: application/json\r\n",
    b"content-length: 30\r\n", b"content-length: 0\r\n", b"content-length: 99999999999999999999\r\n",
    b"transfer-encoding: chunked\r\n", b"content-encoding: gzip\r\n", b"connection: close\r\n",
    b"x-request-id: \xff\xfe\r\n", b"retry-after: 1\r\n", b"\r\n",
]  # fmt: skip
BODIES = [
    b"5\r\nhello\r\n", b"0\r\n\r\n", b"1e\r\n", b"\n\n", b"\r\n\r\n", b"\r", b'{"usage":{}}', b"data: [DONE]\n\n",
    b'data: {"usage":{"prompt_tokens":1,"completion_tokens":2},"choices":[]}\n\n',
    b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n',
    b'data: {"choices":[{"delta":{"content":"' + b"a\\ud83d" * 40 + b'"}}]}\n\n',
]  # fmt: skip
LINES = HEADS + BODIES
ENCODING = tokens.encoding("o200k_base")
CUT = b"data: cut here\n\n"
FRAMES = [line for line in LINES if line.startswith(b"data:")]


class Transport:
    """Keeps what is written; may fail on any write once told to."""

    def __init__(self, chance: random.Random, near: socket.socket) -> None:
        self.chance = chance
        self.near = near
        self.written: list[bytes] = []
        self.closed = False
        self.on_write: Callable[[], None] | None = None

    def get_extra_info(self, name: str) -> socket.socket:
        return self.near

    def write(self, data: bytes) -> None:
        if self.closed:
            raise RuntimeError("closed")
        self.written.append(data)
        if self.on_write is not None:
            self.on_write()

    def get_write_buffer_size(self) -> int:
        return self.chance.choice([0, 0, 0, 1 << 20])

    def is_closing(self) -> bool:
        return self.closed

    def abort(self) -> None:
        self.closed = True

    def pause_reading(self) -> None:
        """Nothing reads by itself here."""

    def resume_reading(self) -> None:
        """See `pause_reading`."""


def sound_answer(chance: random.Random) -> bytes:
    """An answer with right framing, of a random kind."""
    frames = [chance.choice(FRAMES) * chance.choice([1, 1, 1, 50, 2000]) for _ in range(chance.randrange(8))]
    kind = chance.choice([b"text/event-stream", b"application/json", b"text/plain"])
    head = b"HTTP/1.1 %d X\r\ncontent-type: %b\r\n" % (chance.choice([200, 200, 200, 201, 429]), kind)
    if chance.random() < 0.6:
        body = b"".join(b"%x\r\n%b\r\n" % (len(frame), frame) for frame in frames) + b"0\r\n\r\n"
        return head + b"transfer-encoding: chunked\r\n\r\n" + body
    body = b"".join(frames)
    return head + (b"content-length: %d\r\n\r\n" % len(body) if chance.random() < 0.7 else b"\r\n") + body


def mutated(chance: random.Random, answer: bytes) -> bytes:
    data = bytearray(answer)
    for _ in range(chance.choice([0, 0, 1, 2, 8])):
        at = chance.randrange(len(data) + 1)
        match chance.randrange(4):
            case 0:
                data[at:at] = chance.randbytes(chance.randrange(4))
            case 1:
                del data[at : at + chance.randrange(20)]
            case 2 if at < len(data):
                data[at] = chance.randrange(256)
            case _:
                data[at:at] = chance.choice(LINES)
    return bytes(data)


def one_life(chance: random.Random, loop: asyncio.AbstractEventLoop, near: socket.socket) -> None:
    """A connection with a few answers, until it is closed."""
    upstream = Transport(chance, near)
    reports: list[bool] = []
    connection = Connection(lambda connection, reusable: reports.append(reusable))
    connection.connection_made(upstream)  # type: ignore[arg-type]
    relays: list[tuple[Relay, asyncio.Future[None], Transport, bool]] = []
    sweeper = wire.Sweeper(loop)
    turns: list[Callable[[], None]] = []  # that have not ended
    outbox = wire.Outbox(lambda flush, context: flush() if chance.random() < 0.5 else turns.append(flush))
    for _ in range(chance.randrange(1, 5)):
        client = Transport(chance, near)
        done: asyncio.Future[None] = loop.create_future()
        http10 = chance.random() < 0.2
        relay = Relay(
            client.write, client.get_write_buffer_size, on_pause(chance), done, outbox, None, 0, b"x-request-id: 1\r\n",
            http10=http10, close=chance.random() < 0.2, hide_usage=chance.random() < 0.5,
            hold_end=chance.random() < 0.3, first_byte_ms=10**6, idle_ms=10**6, total_ms=10**6,
            counter=AnswerCounter(ENCODING) if chance.random() < 0.7 else None,
            bytes_per_token_milli=chance.choice([1, 4000, 10**9]),
        )  # fmt: skip
        relays.append((relay, done, client, http10))
        sweeper.add(relay)
        acts: list[Callable[[], None]] = [
            relay.resume,
            relay.cancel,
            relay.release_end,
            partial(relay.cut, CUT),
            connection.abort,
            client.abort,
            outbox.flush,
            partial(end_turn, turns),
        ]
        if chance.random() < 0.2:
            client.on_write = partial(sometimes, chance, acts)
        try:
            connection.start(relay, b"POST / HTTP/1.1\r\n\r\n")
        except ConnectionError:
            relay.cancel()
            break
        if chance.random() < 0.15:
            answer = b"".join(chance.choice(LINES) for _ in range(chance.randrange(30)))
        else:
            answer = mutated(chance, sound_answer(chance))
        feed(chance, connection, upstream, answer, acts)
        if chance.random() < 0.1:
            connection.data_received(chance.randbytes(chance.randrange(1, 50)))
        if relay.ending == wire.RUNNING and chance.random() < 0.7:
            connection.eof_received()
        if chance.random() < 0.5:
            end_turn(turns)
        relay.release_end()
        read_facts(relay)
    connection.abort()
    connection.connection_lost(chance.choice([None, OSError("reset")]))
    end_turn(turns)
    for relay, done, client, http10 in relays:
        assert relay.ending != wire.RUNNING
        assert done.done()
        check_client(relay, client, http10)
        relay.finish_count()
        assert relay.backlog == 0
        read_facts(relay)
    assert reports.count(False) == 1
    assert reports[-1] is False
    assert sweeper.running() == 0
    sweeper.close()


def end_turn(turns: list[Callable[[], None]]) -> None:
    while turns:
        turns.pop()()


def sometimes(chance: random.Random, acts: list[Callable[[], None]]) -> None:
    if chance.random() < 0.2:
        chance.choice(acts)()


class Body:
    """What a client makes of the bytes it got."""

    def __init__(self, raw: bytes) -> None:
        self.size = 0
        self.whole = False
        parser = httptools.HttpResponseParser(self)
        if raw:
            parser.feed_data(raw)

    def on_body(self, body: bytes) -> None:
        self.size += len(body) - body.count(CUT) * len(CUT)

    def on_message_complete(self) -> None:
        self.whole = True


def check_client(relay: Relay, client: Transport, http10: bool) -> None:
    """What was written is sound HTTP, holds what the counters say, and ends well only where the answer did."""
    body = Body(b"".join(client.written))
    if relay.ending in (wire.COMPLETE, wire.CUT) and not client.closed:
        assert body.size == relay.bytes
        assert body.whole or http10 or relay.ending == wire.CUT
    assert body.size <= relay.bytes
    if not http10 and client.on_write is None:  # who cancels from within the last write cancels a whole answer
        assert not body.whole or relay.ending in (wire.COMPLETE, wire.CUT)


def on_pause(chance: random.Random) -> Callable[[Relay], None]:
    def paused(relay: Relay) -> None:
        match chance.randrange(6):
            case 0:
                relay.cancel()
            case 1:
                raise ValueError("an owner's fault")
            case 2:
                relay.resume()

    return paused


def feed(
    chance: random.Random,
    connection: Connection,
    upstream: Transport,
    answer: bytes,
    acts: list[Callable[[], None]],
) -> None:
    step = chance.choice([1, 3, 40, 1000, 1 << 20])
    at = 0
    while at < len(answer) and not upstream.closed:
        size = chance.randrange(1, step + 1)
        connection.data_received(answer[at : at + size])
        at += size
        if chance.random() < 0.02:
            chance.choice(acts)()


def read_facts(relay: Relay) -> None:
    """Every fact can be read at any time, and they agree."""
    assert 0 <= relay.ending <= wire.CUT
    assert relay.frames >= 0
    assert relay.bytes >= 0
    assert relay.text_bytes >= 0
    assert relay.text_tokens >= 0
    assert 0 <= relay.backlog <= relay.text_bytes + 100 * 1024 or not relay.is_stream
    assert relay.text_estimated or relay.backlog == 0
    assert len(relay.error_body) <= 64 * 1024
    assert isinstance(relay.model, str)
    assert relay.usage is None or min(relay.usage) >= 0
    assert relay.detail or relay.ending in (wire.RUNNING, wire.COMPLETE, wire.ANSWERED, wire.CLIENT_GONE, wire.CUT)
    str((relay.status, relay.first_us, relay.is_stream, relay.error_type, relay.upstream_request_id, relay.reusable))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--seed", type=int, default=1)
    chosen = parser.parse_args()
    loop = asyncio.new_event_loop()
    near, far = socket.socketpair()
    end = time.monotonic() + chosen.seconds
    lives = 0
    while time.monotonic() < end:
        chance = random.Random(f"{chosen.seed}/{lives}")
        try:
            one_life(chance, loop, near)
        except BaseException:
            print(f"fuzz_wire: seed {chosen.seed}, life {lives}")
            raise
        lives += 1
        if lives % 200 == 0:  # the cancelled timers go
            loop.run_until_complete(asyncio.sleep(0))
    near.close()
    far.close()
    loop.close()
    print(f"fuzz_wire: {lives} connections, seed {chosen.seed}")


if __name__ == "__main__":
    main()
