"""The clients of the exactly-once driver: mixed traffic through real sockets, in a process of its own.

    python -m tests.chaos.client --port N --key KEY --seed N --concurrency N --name c0 --out PATH

It goes on until SIGTERM, and ends when the requests in hand are over. Each request has an X-Request-ID of its own and
is never repeated. What its client received is one JSON line in the file: {"id":…,"ended":…,"status":…,"frames":…,
"bytes":…,"completion_tokens":…}, the fields of `ledger.Seen`.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import random
import signal
from typing import Any, Literal, NamedTuple

from tests.world.ledger import Seen

ANSWER_SECONDS_MAX = 20.0
_ENDPOINTS = {"chat": "/v1/chat/completions", "completions": "/v1/completions", "embeddings": "/v1/embeddings"}


class Plan(NamedTuple):
    """One request of the traffic, all of it drawn from the seed."""

    endpoint: str
    stream: bool
    usage_asked: bool
    script: dict[str, Any]
    hang_up: int | None  # after so many frames; 0 before the answer; None never


def draw(random_: random.Random) -> Plan:
    """The next request: two thirds streams, one in six hangs up, one in ten meets a failing upstream."""
    endpoint = random_.choices(("chat", "completions", "embeddings"), (8, 1.5, 0.5))[0]
    stream = endpoint != "embeddings" and random_.random() < 0.67
    tokens = random_.randint(1, 30)
    script: dict[str, Any] = {"tokens": tokens}
    if stream:
        script["delay_ms"] = random_.choice((0, 0, 1, 3, 10, 40))
        script["split"] = random_.choice(((), (), (), (37,), (5, 400)))
    else:
        script["first_ms"] = random_.choice((0, 0, 2, 20, 100))
    fate = random_.random()
    if fate < 0.03:
        script["reset_at"] = random_.randint(-1, tokens)
    elif fate < 0.06:
        script["close_at"] = random_.randint(-1, tokens)
    elif fate < 0.08:
        script["status"] = random_.choice((400, 429, 500, 503))
    elif fate < 0.10:
        script["usage"] = "none"
    hang_up = random_.randint(0, tokens) if random_.random() < 0.17 else None
    return Plan(endpoint, stream, random_.random() < 0.5, script, hang_up)


def request_bytes(plan: Plan, request_id: str, key: str) -> bytes:
    """The whole HTTP request."""
    text = "@" + json.dumps(plan.script) + " one two three"
    body: dict[str, Any] = {"model": "mock-model"}
    if plan.endpoint == "chat":
        body["messages"] = [{"role": "user", "content": text}]
    else:
        body["prompt" if plan.endpoint == "completions" else "input"] = text
    if plan.stream:
        body["stream"] = True
        if plan.usage_asked:
            body["stream_options"] = {"include_usage": True}
    data = json.dumps(body).encode()
    head = (
        f"POST {_ENDPOINTS[plan.endpoint]} HTTP/1.1\r\nHost: weir\r\nAuthorization: Bearer {key}\r\n"
        f"Content-Type: application/json\r\nX-Request-ID: {request_id}\r\nContent-Length: {len(data)}\r\n\r\n"
    )
    return head.encode() + data


class Reading:
    """What has been received of one answer so far."""

    def __init__(self, stream: bool) -> None:
        self.stream = stream
        self.status = 0
        self.bytes = 0
        self.frames = 0
        self.whole = False
        self.tokens = -1
        self._rest = b""

    def feed(self, data: bytes) -> None:
        """Payload bytes, in order."""
        self.bytes += len(data)
        self._rest += data
        if not self.stream:
            return
        *frames, self._rest = self._rest.split(b"\n\n")
        for frame in frames:
            self.frames += 1
            if b'"usage":{' in frame:
                self.tokens = json.loads(frame.removeprefix(b"data: "))["usage"]["completion_tokens"]

    def end(self) -> None:
        """The framing says that this was all."""
        self.whole = True
        if not self.stream:
            self.frames = 1
            if self.status == 200:
                usage = json.loads(self._rest).get("usage") or {}
                self.tokens = usage.get("completion_tokens", -1)

    def seen(self) -> Seen:
        """The verdict."""
        ended: Literal["complete", "cut", "refused", "no_answer"] = "no_answer"
        if self.status:
            ended = "refused" if self.status != 200 else "complete" if self.whole else "cut"
        return Seen(ended, self.status, self.frames, self.bytes, self.tokens)


class HungUp(Exception):
    """The plan says that this client goes now."""


class Client:
    """One client with one connection, which it keeps as long as it can."""

    def __init__(self, port: int, key: str) -> None:
        self.port = port
        self.key = key
        self.reader: asyncio.StreamReader
        self.writer: asyncio.StreamWriter | None = None

    async def connect(self) -> bool:
        """Connects, unless it is connected. False when nobody listens: then no request was made."""
        if self.writer is None:
            try:
                self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)
            except OSError:
                return False
        return True

    def drop(self) -> None:
        """Ends the connection at once."""
        if self.writer is not None:
            self.writer.transport.abort()
            self.writer = None

    async def call(self, plan: Plan, request_id: str) -> Seen:
        """One request, whatever becomes of it."""
        assert self.writer is not None
        reading = Reading(plan.stream)
        keep = False
        try:
            async with asyncio.timeout(ANSWER_SECONDS_MAX):
                self.writer.write(request_bytes(plan, request_id, self.key))
                await self.writer.drain()
                if plan.hang_up == 0:
                    await asyncio.sleep(random.random() * 0.02)
                    raise HungUp
                keep = await self._read(reading, plan.hang_up)
        except (OSError, EOFError, TimeoutError, HungUp):
            keep = False
        if not keep:
            self.drop()
        return reading.seen()

    async def _read(self, reading: Reading, hang_up: int | None) -> bool:
        """Reads the answer; True when the connection can be used again."""
        head = await self.reader.readuntil(b"\r\n\r\n")
        lines = head.decode("latin-1").lower().split("\r\n")
        fields = dict(line.split(": ", 1) for line in lines[1:] if ": " in line)
        reading.status = int(lines[0].split(" ")[1])
        reading.stream = fields.get("content-type", "").startswith("text/event-stream")
        if fields.get("transfer-encoding") == "chunked":
            while size := int((await self.reader.readuntil(b"\r\n")).split(b";")[0], 16):
                reading.feed(await self.reader.readexactly(size))
                await self.reader.readexactly(2)
                if hang_up is not None and reading.stream and reading.frames >= hang_up:
                    raise HungUp
            await self.reader.readuntil(b"\r\n")
        elif "content-length" in fields:
            reading.feed(await self.reader.readexactly(int(fields["content-length"])))
        else:
            raise EOFError(f"an answer without framing: {head!r}")
        reading.end()
        return fields.get("connection") != "close"


async def run(options: argparse.Namespace) -> None:
    """Requests without end, `concurrency` at a time."""
    random_ = random.Random(options.seed)
    out = os.open(options.out, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    numbers = itertools.count()
    ending = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ending.set)

    async def one() -> None:
        client = Client(options.port, options.key)
        for number in numbers:
            while not ending.is_set() and not await client.connect():
                await asyncio.sleep(0.05)
            if ending.is_set():
                break
            request_id = f"{options.name}-{number}"
            seen = await client.call(draw(random_), request_id)
            os.write(out, json.dumps({"id": request_id, **seen._asdict()}).encode() + b"\n")
        client.drop()

    await asyncio.gather(*(one() for _ in range(options.concurrency)))
    os.close(out)


def main() -> None:
    """The process."""
    parser = argparse.ArgumentParser(description="Mixed traffic against a Weir that is being killed.")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--key", required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--concurrency", type=int, default=48)
    parser.add_argument("--name", default="c0")
    parser.add_argument("--out", required=True)
    asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
