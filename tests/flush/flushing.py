"""A flusher to test with, in this process or in one of its own, and a keeper's two duties: ship, and ship again."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import proxy
from proxy.flush.fold import Batch
from proxy.flush.loop import Flusher
from proxy.store.redis import RedisTransport, pack, stream_name
from proxy.store.store import Store
from proxy.telemetry.log import Log
from tests.store.records import batches, eventually, mixed

ROOT = Path(proxy.__file__).parent.parent
ORIGIN = "0123456789abcdef"
EPOCH = bytes(range(16))
OTHER = bytes(reversed(range(16)))
STREAM = stream_name(ORIGIN)
EVENTS = {EPOCH: mixed(1, 600), OTHER: mixed(2, 300)}
PARTS = [part for epoch, events in EVENTS.items() for part in batches(epoch, events, 25, ORIGIN)]


class Lines:
    """A log that can be read: the JSON lines that a flusher has written."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        self.log = Log("flusher", fd=self._fd)

    def close(self) -> None:
        """Closes the file; `messages` goes on working."""
        os.close(self._fd)

    def about(self, topic: str) -> list[str]:
        """Levels of the lines about a topic, in order."""
        return [line["level"] for line in self._lines() if line.get("topic") == topic]

    def errors(self) -> list[str]:
        """Messages of level error, in order."""
        return [line["message"] for line in self._lines() if line["level"] == "error"]

    def _lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self._path.read_text(encoding="utf-8").splitlines()]


async def ship(transport: RedisTransport, parts: Sequence[Batch], origin: str = ORIGIN) -> None:
    """As a keeper ships. Raises RedisUnavailable."""
    for part in parts:
        await transport.ship(origin, part.epoch, part.first, part.last, pack(part.records))


async def complete(transport: RedisTransport, store: Store, parts: Sequence[Batch], seconds: float = 120) -> None:
    """What a keeper does until the database has everything: when the stream is gone or drained, send what it lacks."""
    ends = {epoch: max(part.last for part in parts if part.epoch == epoch) for epoch in {part.epoch for part in parts}}

    async def look() -> bool:
        state = await transport.state(ORIGIN)
        positions = await store.persisted(list(ends))  # after the stream: what it had acknowledged is in them
        if all(positions[epoch] >= end for epoch, end in ends.items()):
            return True
        if not state.exists or state.drained:
            await ship(transport, [part for part in parts if part.last > positions[part.epoch]])
        return False

    await eventually(look, "everything is in the database", seconds)


@asynccontextmanager
async def flushing(
    url: str, redis_url: str, lines: Lines, *, claim_idle_seconds: float = 0.3
) -> AsyncIterator[tuple[Flusher, Store, RedisTransport]]:
    """A flusher that runs as a task, with a store and a transport of the test's own."""
    own_store, store = Store.open(url), Store.open(url)
    own_transport, transport = RedisTransport(redis_url), RedisTransport(redis_url)
    flusher = Flusher(own_store, own_transport, lines.log, claim_idle_seconds=claim_idle_seconds)
    stop = asyncio.Event()
    task = asyncio.create_task(flusher.run(stop))
    try:
        yield flusher, store, transport
    finally:
        stop.set()
        await task
        for closing in (own_store, store, own_transport, transport):
            await closing.close()


class FlushProcess:
    """`weir flush` in a process of its own. `root` holds the package `proxy` that it runs."""

    def __init__(self, url: str, redis_url: str, *, failpoints: str = "", root: Path = ROOT) -> None:
        environment = dict(os.environ, PYTHONPATH=str(root), WEIR_FAILPOINTS=failpoints)
        words = ["flush", "--database", url, "--redis", redis_url, "--claim-idle-seconds", "0.3", "--migrate"]
        self._process = subprocess.Popen(
            [sys.executable, "-W", "error", "-m", "proxy", *words],
            cwd=root,
            env=environment,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        self.pid = self._process.pid

    def frozen(self) -> bool:
        """Whether it is stopped by a signal."""
        return Path(f"/proc/{self.pid}/stat").read_text(encoding="ascii").rsplit(")", 1)[1].split()[0] == "T"

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal."""
        self._process.send_signal(number)

    def wait(self) -> tuple[int, str]:
        """Exit code and standard error."""
        _, errors = self._process.communicate(timeout=120)
        return self._process.returncode, errors.decode()

    def __enter__(self) -> FlushProcess:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.communicate()
        elif self._process.stderr is not None:
            self._process.stderr.close()


def drained(transport: RedisTransport, entries: int | None = 0) -> Callable[[], Awaitable[bool]]:
    """Whether everything is acknowledged, and trimmed down to `entries` (None: trimmed or not)."""

    async def look() -> bool:
        state = await transport.state(ORIGIN)
        return state.drained and entries in (None, state.entries)

    return look


def said(lines: Lines, topic: str, *levels: str) -> Callable[[], Awaitable[bool]]:
    """Whether the last line about a topic has one of the levels (none given: whether there is one)."""

    async def look() -> bool:
        about = lines.about(topic)
        return bool(about) and (not levels or about[-1] in levels)

    return look
