"""Cut and mutated requests to a `Client`, whose requests end, pause, abort and are cancelled at any moment.

Every head must be judged as the oracle judges it. Nothing may be raised, and no byte may be lost or read twice: what
was sent is in the requests that were begun, in their order, or with the other front, or thrown away with what was
refused.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import time
from collections.abc import Callable

from proxy import bounds
from proxy._front import Request, usual
from proxy.errors import Refusal
from tests.front.corpus import BEGINNINGS, ODD_LINES, PARTS, USUAL
from tests.front.fakes import Bench, Relay
from tests.front.head_oracle import judge

ORDINARY = [data for data in USUAL.values() if usual(data) and len(data) < 9000]
ODD = [*PARTS.values(), *BEGINNINGS.values()]
AHEAD = bounds.CLIENT_AHEAD_BYTES_MAX


def mutated(chance: random.Random, data: bytes) -> bytes:
    """The same with a few bytes changed."""
    made = bytearray(data)
    for _ in range(chance.choice([0, 1, 1, 2, 8])):
        at = chance.randrange(len(made) + 1)
        match chance.randrange(5):
            case 0:
                made[at:at] = chance.randbytes(chance.randrange(4))
            case 1:
                del made[at : at + chance.randrange(20)]
            case 2 if at < len(made):
                made[at] = chance.randrange(256)
            case 3:
                made[at:at] = b"\r\n" + chance.choice(ODD_LINES) + b"\r\n"
            case _:
                made[at:at] = made[at : at + chance.randrange(9000)]
    return bytes(made)


def one_head(chance: random.Random) -> None:
    """A head, made odd, and its beginnings."""
    data = mutated(chance, chance.choice(ORDINARY))
    cuts = [len(data)] + [chance.randrange(len(data) + 1) for _ in range(5)]
    for cut in cuts:
        assert usual(data[:cut]) == judge(data[:cut]), data[:cut]


class Life:
    """One connection, and a plain reading of what it must do with what it is fed."""

    def __init__(self, chance: random.Random, loop: asyncio.AbstractEventLoop) -> None:
        self.chance = chance
        self.loop = loop
        self.bench = Bench(loop)
        self.fed = bytearray()
        self.ended = 0  # requests
        self.lost = self.refused = False
        self.waiting: list[asyncio.Task[bytes]] = []
        self.relays: list[Relay] = []

    @property
    def over(self) -> bool:
        """Nothing more may be fed."""
        return self.lost or self.bench.transport.is_closing() or not self.bench.transport.reading

    @property
    def current(self) -> Request | None:
        return self.bench.request if len(self.bench.front.requests) > self.ended else None

    def feed(self, data: bytes) -> None:
        self.fed += data
        self.bench.feed(data)

    def end(self) -> None:
        """The request under way is answered, well or not."""
        request = self.current
        if request is None:
            return
        close = request.body_now() is None or self.chance.random() < 0.05
        self.refused |= request.body_now() is None
        if self.chance.random() < 0.9 or close:
            request.answer(b"answer", close=close)
        self.ended += 1
        request.ended()

    def ask(self) -> None:
        """Somebody waits for the body."""
        request = self.current
        if request is not None and not self.waiting:
            self.waiting.append(self.loop.create_task(request.body(self.chance.choice([10, 1 << 30]), 60.0)))

    def pause(self) -> None:
        if self.current is not None and not self.lost:
            self.relays.append(Relay())
            if self.chance.random() < 0.7:
                self.bench.client.pause_writing()
            self.current.paused(self.relays[-1])  # type: ignore[arg-type]

    def leave(self) -> None:
        if not self.lost and self.bench.transport.protocol is self.bench.client:
            self.lost = True
            self.bench.client.connection_lost(self.chance.choice([None, OSError("reset")]))

    def step(self) -> None:
        client, chance = self.bench.client, self.chance
        ours = not self.lost and self.bench.transport.protocol is client
        acts: list[Callable[[], object]] = [self.end, self.end, self.end, self.ask, self.pause, self.turn]
        if ours:
            acts += [
                client.resume_writing,
                lambda: self.bench.at(self.bench.front.tick + chance.choice([1, 1, 5, 100])),
                lambda: client.end_idle(chance.choice([0, 1, 1 << 62])),
            ]
        if self.current is not None:
            acts += [self.current.forget_body] if self.current.body_now() is not None else []
            acts += [lambda: self.current and self.current.peer]
        if chance.random() < 0.01:
            acts = [self.leave, client.end, client.eof_received, lambda: self.current and self.current.abort()]
        if chance.random() < 0.01:
            self.bench.front.draining = True
        chance.choice(acts)()

    def turn(self) -> None:
        self.loop.run_until_complete(asyncio.sleep(0))

    def check(self) -> None:
        """No byte of what was fed is anywhere else than it should be."""
        front = self.bench.front
        at = 0
        bodies = []
        for request in front.requests:
            told = judge(bytes(self.fed[at:]))
            assert told, self.fed[at : at + 200]
            size, length, post, _ = told
            assert request.method == ("POST" if post else "GET")
            bodies.append(bytes(self.fed[at + size : at + size + length]))
            at += size + length
        for request, body in zip(front.requests, bodies, strict=True):
            assert request.body_now() in (None, b"", body)
        if front.others:
            assert front.others[0].received == self.fed[at:]
        elif not (self.refused or self.over or self.current):
            assert judge(bytes(self.fed[at:])) is None  # half a head, or nothing

    def close(self) -> None:
        self.leave()
        for task in self.waiting:
            task.cancel()
        for _ in range(3):
            self.turn()
        for task in self.waiting:
            if not task.cancelled() and (error := task.exception()) is not None:
                assert isinstance(error, Refusal)
        if self.current is not None:
            self.end()


def one_life(chance: random.Random, loop: asyncio.AbstractEventLoop) -> tuple[int, int]:
    """A connection with a few requests, fed in pieces, until it is closed: (requests begun, handed over or not)."""
    life = Life(chance, loop)
    pieces = [chance.choice(ORDINARY) for _ in range(chance.randrange(1, 6))]
    if chance.random() < 0.3:
        body = chance.randbytes(chance.choice([AHEAD - 1, AHEAD, AHEAD + 1, AHEAD * 3]))
        pieces.insert(0, b"POST /x HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
    if chance.random() < 0.5:
        pieces.append(chance.choice(ODD))
    if chance.random() < 0.2:
        pieces = [mutated(chance, piece) for piece in pieces]
    whole = chance.random() < 0.5  # each request by itself, answered before the next
    step = chance.choice([1, 3, 100, 5000, 1 << 20])
    for piece in pieces:
        at = 0
        size = step if len(piece) < 9000 else max(step, 3000)
        while at < len(piece) and not life.over:
            life.feed(piece[at : at + size])
            at += size
            if chance.random() < (0.02 if whole else 0.2):
                life.step()
        while whole and life.current is not None and not life.over:
            life.end()
        life.check()
    life.close()
    return len(life.bench.front.requests), len(life.bench.front.others)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--seed", type=int, default=1)
    chosen = parser.parse_args()
    loop = asyncio.new_event_loop()
    end = time.monotonic() + chosen.seconds
    lives = requests = handed = 0
    while time.monotonic() < end:
        chance = random.Random(f"{chosen.seed}/{lives}")
        try:
            one_head(chance)
            begun, others = one_life(chance, loop)
        except BaseException:
            print(f"fuzz_front: seed {chosen.seed}, life {lives}")
            raise
        lives += 1
        requests += begun
        handed += others
    loop.close()
    print(f"fuzz_front: {lives} connections, {requests} requests, {handed} handed over, seed {chosen.seed}")


if __name__ == "__main__":
    main()
