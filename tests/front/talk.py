"""Conversations with a listening side inside this very event loop, and everything that one can hear of them."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple, cast

from proxy import record
from proxy.call import UsageEvent
from proxy.journal import read_records
from tests.front.corpus import MODEL, Steps, written
from tests.journey.inside import Inside
from tests.world.upstream import Received

AT_ONCE = 60  # conversations, each on its own connection; the house has slots for 64 calls
QUIET_TURNS = 40  # of the loop, in which nothing has come for anybody: all that takes part runs in this loop
PATIENT_TURNS = 600, 6000  # the same when nothing may hang on how soon the kernel hands on what was sent
PROBE = b"GET /healthz HTTP/1.1\r\nhost: probe\r\n\r\n"
MADE = re.compile(rb"\breq_[0-9a-f]{16,}|\bup-\d+|(?<=date: )[^\r]+")  # what is another at each time
ROW = (
    "tenant", "key_id", "user", "endpoint", "upstream", "attempts", "stream", "status",
    "termination", "prompt_tokens", "cached_tokens", "completion_tokens", "source", "relayed_frames", "relayed_bytes",
)  # fmt: skip


class Heard(NamedTuple):
    """One conversation, as its client, the upstream and the books have it."""

    answers: tuple[Any, ...]  # (lines of the head, payload, whether it is whole)
    open: bool  # the connection still stands when nothing moves any more
    probed: tuple[Any, ...]  # what came when a plain request followed, where it stands
    asked: tuple[Any, ...]  # what the upstream was asked
    rows: tuple[Any, ...]


class End(asyncio.Protocol):
    """A client's end, which only listens."""

    def __init__(self, moved: Callable[[], None]) -> None:
        self.moved = moved
        self.received = bytearray()
        self.lost = False
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self.received += data
        self.moved()

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        self.moved()


class Talk:
    """Many conversations at once with whoever listens on a port of this house."""

    def __init__(self, weir: Inside, port: int, quiet_turns: int = QUIET_TURNS) -> None:
        self.weir = weir
        self.port = port
        self.quiet_turns = quiet_turns
        self.moves = 0
        self.seen = weir.epoch.writer.calls  # so many records of the journal are others'

    def _moved(self) -> None:
        self.moves += 1

    async def settle(self) -> None:
        """Until nothing moves any more."""
        quiet = 0
        while quiet < self.quiet_turns:
            before = self.moves, len(self.weir.upstream.ledger.events), self.weir.epoch.writer.calls
            await asyncio.sleep(0.001 if quiet % 10 == 9 else 0)
            after = self.moves, len(self.weir.upstream.ledger.events), self.weir.epoch.writer.calls
            quiet = quiet + 1 if before == after else 0

    async def hold(self, conversations: Sequence[Steps], cuts: Sequence[Sequence[int]] = ()) -> list[Heard]:
        """Holds each conversation. cuts: for each of them, where its one step is cut in pieces that are read apart."""
        heard: list[Heard] = []
        for first in range(0, len(conversations), AT_ONCE):
            some = range(first, min(first + AT_ONCE, len(conversations)))
            models = [f"m{number:04d}" for number in some]
            steps = [
                written(conversations[number], self.weir.key, model) for number, model in zip(some, models, strict=True)
            ]
            if cuts:
                steps = [pieces(one, cuts[number]) for number, one in zip(some, steps, strict=True)]
            heard += await self._batch(steps, models, apart=bool(cuts))
        return heard

    async def rows(self) -> list[UsageEvent]:
        """The rows that are new since this was asked last, in the order in which their calls were opened."""
        weir = self.weir
        async with asyncio.timeout(120):
            while weir.epoch.writer.open_slots:
                await asyncio.sleep(0.001)
            await weir.epoch.wait_synced(weir.epoch.writer.calls)
        payloads = read_records(weir.epoch.path, self.seen + 1, 10_000, 1 << 24).records
        self.seen += len(payloads)
        events = [record.decode(payload) for payload in payloads]
        return sorted((event for event in events if isinstance(event, UsageEvent)), key=lambda event: event.call)

    async def _batch(self, conversations: list[Steps], models: list[str], *, apart: bool) -> list[Heard]:
        loop = asyncio.get_running_loop()
        requests = len(self.weir.upstream.requests)
        ends = [
            (await loop.create_connection(lambda: End(self._moved), "127.0.0.1", self.port))[1] for _ in conversations
        ]
        try:
            for turn in range(max(map(len, conversations))):
                for end, steps in zip(ends, conversations, strict=True):
                    if turn < len(steps) and not end.lost:
                        end.transport.write(steps[turn])
                if apart:
                    for _ in range(4):  # enough for the other side to read what this side has sent
                        await asyncio.sleep(0)
                else:
                    await self.settle()
            await self.settle()
            before = [bytes(end.received) for end in ends]
            stands = [not end.lost for end in ends]
            for end in ends:
                if not end.lost:
                    end.transport.write(PROBE)
            await self.settle()
            probed = [bytes(end.received)[len(said) :] for end, said in zip(ends, before, strict=True)]
        finally:
            for end in ends:
                end.transport.abort()
        await self.settle()
        asked = self.weir.upstream.requests[requests:]
        rows = await self.rows()
        return [
            Heard(
                answers_of(said.replace(model.encode(), MODEL)),
                stood,
                answers_of(after),
                tuple(plain(one, model) for one in asked if model.encode() in one.body),
                tuple(tuple(getattr(row, name) for name in ROW) for row in rows if row.model == model),
            )
            for said, stood, after, model in zip(before, stands, probed, models, strict=True)
        ]


def pieces(steps: Steps, cuts: Sequence[int]) -> Steps:
    """The one step, cut at these places."""
    (data,) = steps
    places = [0, *cuts, len(data)]
    return [data[start:end] for start, end in pairwise(places)]


def plain(asked: Received, model: str) -> tuple[Any, ...]:
    """What the upstream was asked, without what is another each time."""
    headers = [(name, MADE.sub(b"*", value.encode("latin-1"))) for name, value in asked.headers]
    return asked.method, asked.path, tuple(headers), asked.body.replace(model.encode(), MODEL)


def answers_of(data: bytes) -> tuple[Any, ...]:
    """The answers that stand in these bytes, one behind the other, each with whether its framing says it is whole."""
    found: list[Any] = []
    while data:
        head, end, data = MADE.sub(b"*", data).partition(b"\r\n\r\n")
        lines = head.split(b"\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines[1:])}
        payload = b""
        whole = bool(end)
        if headers.get(b"transfer-encoding") == b"chunked":
            whole = False
            while not whole and data:
                size, _, data = data.partition(b"\r\n")
                payload += data[: int(size, 16)]
                data = data[int(size, 16) + 2 :]
                whole = not int(size, 16)
        elif b"content-length" in headers and not data.startswith(b"HTTP/1.1 "):  # a HEAD's answer has no content
            size_bytes = int(headers[b"content-length"])
            payload, data = data[:size_bytes], data[size_bytes:]
            whole = len(payload) == size_bytes
        elif not lines[0].startswith(b"HTTP/1.1 1"):
            payload, data = data, b""
        found.append((lines[0], tuple(sorted(lines[1:])), payload, whole))
    return tuple(found)
