"""A scripted OpenAI-compatible upstream with its own ledger, as a process of its own or inside a test's event loop.

    python -m tests.world.upstream --port 0 --ledger PATH     prints {"port": N} when it listens

What it says to a request stands in the request (`script.py`). What it did stands in the ledger: a file written with
O_APPEND, one JSON line an event, so that killing it loses nothing:

    {"event":"request","n":1,"id":"<x-request-id>","path":…,"model":…,"stream":…,"usage_asked":…,"body_bytes":…}
    {"event":"end","n":1,"how":"complete|client_gone|reset|closed","frames":…,"bytes":…,"content":…,
     "prompt_tokens":…,"completion_tokens":…,"usage_sent":…,"status":…}

Requests are told apart by a dense number, which goes out as `x-request-id: up-<n>`. `frames` and `bytes` count payload
that was handed to the kernel or was about to be: an upper bound of what anyone behind can have received.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import signal
import socket
import ssl
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, cast

from tests.world import script as scripts
from tests.world.ledger import Ledger
from tests.world.script import Facts, Piece, Script

REASONS = {200: "OK", 400: "Bad Request", 401: "Unauthorized", 404: "Not Found", 429: "Too Many Requests"}


class Received(NamedTuple):
    """A request as it came in."""

    n: int
    method: str
    path: str
    headers: list[tuple[str, str]]  # names as they were spelt
    body: bytes
    facts: Facts
    connection: int  # the n-th connection accepted

    def header(self, name: str) -> str | None:
        """The first header of this name, in any case."""
        return next((value for key, value in self.headers if key.lower() == name.lower()), None)


class Lost(Exception):
    """The script or the peer ended the answer early; args: (how,)."""


class Connection(asyncio.Protocol):
    """One client: requests one after the other, each answered by a task."""

    def __init__(self, upstream: Upstream) -> None:
        self.upstream = upstream
        self.buffer = bytearray()
        self.gone = asyncio.Event()
        self.writable = asyncio.Event()
        self.writable.set()
        self.task: asyncio.Task[None] | None = None
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass
        self.upstream.accepted += 1
        self.number = self.upstream.accepted
        self.upstream.connections.add(self)

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        if self.task is None:
            self._next()

    def eof_received(self) -> bool:
        self.gone.set()
        return False

    def connection_lost(self, error: Exception | None) -> None:
        self.gone.set()
        self.writable.set()
        self.upstream.connections.discard(self)

    def pause_writing(self) -> None:
        self.writable.clear()

    def resume_writing(self) -> None:
        self.writable.set()

    def _next(self) -> None:
        """Starts the answer to the next whole request in the buffer, if there is one."""
        end = self.buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        lines = bytes(self.buffer[:end]).decode("latin-1").split("\r\n")
        method, path, _ = lines[0].split(" ", 2)
        headers = [(name, value.strip()) for name, _, value in (line.partition(":") for line in lines[1:])]
        length = next((int(value) for name, value in headers if name.lower() == "content-length"), 0)
        if len(self.buffer) < end + 4 + length:
            return
        body = bytes(self.buffer[end + 4 : end + 4 + length])
        del self.buffer[: end + 4 + length]
        try:
            facts = scripts.read_facts(path, body)
        except scripts.BadScript as error:
            refusal = Script(status=400, body={"error": {"message": str(error), "type": "bad_script"}})
            facts = Facts("chat", "", False, False, 0, refusal)
        received = self.upstream.receive(method, path, headers, body, facts, self.number)
        self.task = asyncio.get_running_loop().create_task(Answer(self, received).run())
        self.task.add_done_callback(self._answered)

    def _answered(self, task: asyncio.Task[None]) -> None:
        self.task = None
        if not task.cancelled():
            task.result()
            if not self.gone.is_set():
                self._next()


class Answer:
    """One answer, as its script wants it."""

    def __init__(self, connection: Connection, received: Received) -> None:
        self.connection = connection
        self.received = received
        self.facts = received.facts
        self.script = received.facts.script
        self.frames = self.bytes = self.content = 0
        self.usage_sent = False
        self.status = self.script.status
        self.position = -1

    async def run(self) -> None:
        """Sends it and writes its end into the ledger, in whatever way it ends."""
        how = "client_gone"
        try:
            await self._say()
            how = "complete"
        except Lost as lost:
            how = lost.args[0]
        finally:
            stands = self.status == 200 and self.facts.endpoint not in ("", "models")
            self.connection.upstream.ledger.write(
                {
                    "event": "end",
                    "n": self.received.n,
                    "how": how,
                    "frames": self.frames,
                    "bytes": self.bytes,
                    "content": self.content,
                    "prompt_tokens": self.facts.prompt_tokens if stands else 0,
                    "completion_tokens": self.content if stands else 0,
                    "usage_sent": self.usage_sent,
                    "status": self.status,
                }
            )

    async def _say(self) -> None:
        script = self.script
        if script.first_ms:
            await self._pause(script.first_ms)
        if script.fail_first is not None:
            name, times, status = script.fail_first
            if self.connection.upstream.count(name) <= times:
                self.status = status
        await self._faults()
        streamed = self.facts.stream and self.status == 200 and self.facts.endpoint in ("chat", "completions")
        framing = script.framing or ("chunked" if streamed else "length")
        pieces = list(self._pieces(streamed)) if framing == "length" else self._pieces(streamed)
        self._write(self._head(streamed, framing, pieces if isinstance(pieces, list) else []))
        self.position = 0
        if script.body_ms:
            await self._pause(script.body_ms)
        for piece in pieces:
            if script.delay_ms and streamed:
                await self._pause(script.delay_ms)
            await self._faults()
            self.frames += piece.frames
            self.bytes += len(piece.data)
            self.content += piece.tokens
            if not streamed and not (script.reset_at is None and script.close_at is None):
                # A whole answer has no frames to cut between: half of it goes out.
                self._write(piece.data[: len(piece.data) // 2])
                await self._faults(last=True)
            await self._payload(piece.data, framing == "chunked")
            self.usage_sent = self.usage_sent or piece.usage
            self.position += piece.frames
        await self._faults(last=True)
        if framing == "chunked":
            trailers = "".join(f"{name}: {value}\r\n" for name, value in (script.trailers or {}).items())
            self._write(b"0\r\n" + trailers.encode() + b"\r\n")
        await self._drained()
        if framing in ("close", "http10") or script.close_after or script.short:
            self.connection.transport.close()
            if script.short:
                raise Lost("closed")
        elif script.idle_close_ms:
            asyncio.get_running_loop().call_later(script.idle_close_ms / 1000, self.connection.transport.close)

    def _pieces(self, streamed: bool) -> Iterator[Piece]:
        if streamed:
            yield from scripts.stream_pieces(self.facts)
            return
        if self.status != 200:
            yield Piece(scripts.coded(scripts.failure(self.status, self.script), self.script.encoding))
            return
        body = scripts.coded(scripts.whole_answer(self.facts), self.script.encoding)
        yield Piece(body, 1, self.script.tokens if self.facts.endpoint != "embeddings" else 0, self._says_truth())

    def _says_truth(self) -> bool:
        return scripts.is_true(self.facts) and not self.script.payload_b64

    def _head(self, streamed: bool, framing: str, pieces: list[Piece]) -> bytes:
        script = self.script
        fields = {
            "date": "Sun, 22 Nov 2026 00:00:00 GMT",
            "server": "scripted",
            "content-type": "text/event-stream; charset=utf-8" if streamed else "application/json",
            "x-request-id": f"up-{self.received.n}",
            "openai-organization": "org-upstream-secret",
        }
        if framing == "chunked":
            fields["transfer-encoding"] = "chunked"
        elif framing == "length":
            fields["content-length"] = str(sum(len(piece.data) for piece in pieces) + script.short)
        elif framing == "close":
            fields["connection"] = "close"
        if script.encoding:
            fields["content-encoding"] = script.encoding
        if script.header_bytes:
            fields["x-huge"] = "h" * script.header_bytes
        more = []
        for name, value in script.headers:
            if name.lower() in fields:
                fields[name.lower()] = value
            else:
                more.append((name, value))
        early = "".join(f"HTTP/1.1 {status} Early\r\nlink: </x>; rel=preload\r\n\r\n" for status in script.early)
        version = "1.0" if framing == "http10" else "1.1"
        start = f"HTTP/{version} {self.status} {REASONS.get(self.status, 'Scripted')}\r\n"
        lines = "".join(f"{name}: {value}\r\n" for name, value in [*fields.items(), *more])
        return (early + start + lines + "\r\n").encode("latin-1")

    async def _payload(self, data: bytes, chunked: bool) -> None:
        script = self.script
        sizes = (1,) if script.drip else script.split
        if not sizes:
            self._write(b"%x\r\n%b\r\n" % (len(data), data) if chunked else data)
            await self._drained()
            return
        at = turn = 0
        while at < len(data):
            part = data[at : at + sizes[turn % len(sizes)]]
            self._write(b"%x\r\n%b\r\n" % (len(part), part) if chunked else part)
            await self._drained()
            await self._pause(script.split_ms)
            at += len(part)
            turn += 1

    async def _faults(self, last: bool = False) -> None:
        """The script's own ending, when its position is reached (or the answer is over)."""
        script = self.script

        def due(at: int | None) -> bool:
            return at is not None and (at <= self.position or last)

        if due(script.reset_at):
            await self._drained()
            endpoint = self.connection.transport.get_extra_info("socket")
            endpoint.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.transport.abort()
            raise Lost("reset")
        if due(script.close_at):
            self.connection.transport.close()
            raise Lost("closed")
        if due(script.stall_at):
            await self.connection.gone.wait()
            raise Lost("client_gone")

    def _write(self, data: bytes) -> None:
        if self.connection.gone.is_set() or self.connection.transport.is_closing():
            raise Lost("client_gone")
        self.connection.transport.write(data)

    async def _drained(self) -> None:
        if not self.connection.writable.is_set():
            await self.connection.writable.wait()
        if self.connection.gone.is_set():
            raise Lost("client_gone")

    async def _pause(self, ms: float) -> None:
        """Sleeps, and notices a client that goes meanwhile."""
        if ms < 50:  # a plain sleep is far cheaper than a wait with a deadline
            await asyncio.sleep(ms / 1000)
        else:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.connection.gone.wait(), ms / 1000)
        if self.connection.gone.is_set():
            raise Lost("client_gone")


class Upstream:
    """The scripted upstream inside a test: `async with Upstream() as upstream`, then point Weir at `upstream.url`.

    `requests` keeps every request as it came; `ledger.events` is the ledger when no path is given.
    """

    def __init__(self, ledger: Path | None = None, *, port: int = 0, tls: ssl.SSLContext | None = None) -> None:
        self.ledger = Ledger(ledger)
        self.requests: list[Received] = []
        self.connections: set[Connection] = set()
        self.accepted = 0
        self.keep_requests = ledger is None
        self.port = port
        self._tls = tls
        self._counts: dict[str, int] = {}
        self._server: asyncio.Server

    @property
    def url(self) -> str:
        """The base URL that an upstream's entry in the policy names."""
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}/v1"

    async def __aenter__(self) -> Upstream:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: Connection(self), "127.0.0.1", self.port, ssl=self._tls, backlog=1024
        )
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        tasks = [connection.task for connection in self.connections if connection.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for connection in list(self.connections):
            connection.transport.abort()
        while self.connections:
            await asyncio.sleep(0.001)
        await self._server.wait_closed()
        self.ledger.close()

    def receive(
        self, method: str, path: str, headers: list[tuple[str, str]], body: bytes, facts: Facts, connection: int
    ) -> Received:
        """Numbers a request and writes it into the ledger."""
        self.ledger.n += 1
        received = Received(self.ledger.n, method, path, headers, body, facts, connection)
        if self.keep_requests:
            self.requests.append(received)
        self.ledger.write(
            {
                "event": "request",
                "n": received.n,
                "id": received.header("x-request-id") or "",
                "path": path,
                "model": facts.model,
                "stream": facts.stream,
                "usage_asked": facts.usage_asked,
                "body_bytes": len(body),
                **({"headers": headers, "body": body.decode("utf-8", "replace")} if facts.script.keep else {}),
            }
        )
        return received

    def count(self, name: str) -> int:
        """How often this name was counted, this time included."""
        self._counts[name] = self._counts.get(name, 0) + 1
        return self._counts[name]

    def ends(self) -> list[dict[str, Any]]:
        """The end events of the in-memory ledger."""
        return [event for event in self.ledger.events if event["event"] == "end"]


async def _serve(port: int, ledger: Path, until_eof: bool) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    if until_eof:
        loop.add_reader(0, stop.set)
    async with Upstream(ledger, port=port) as upstream:
        print(json.dumps({"port": upstream.port}), flush=True)
        await stop.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description="A scripted OpenAI-compatible upstream with its own ledger.")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--ledger", type=Path, required=True)
    parser.add_argument("--until-eof", action="store_true", help="end when standard input is closed")
    options = parser.parse_args()
    asyncio.run(_serve(options.port, options.ledger, options.until_eof))


if __name__ == "__main__":
    main()
