"""Two hosts that share one PostgreSQL and one Redis: two data directories, two supervisors, three workers."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

from proxy import board, settings
from proxy._fastpath import Arena
from proxy.clock import boot_id, now_ns, wall_us
from proxy.identity.actor import operator
from proxy.identity.announce import announce
from proxy.store.store import Store
from proxy.verbs.keys import new_row
from tests.servers import PostgresServer, RedisServer
from tests.world import ledger
from tests.world.gateway import Gateway, wait_for
from tests.world.process import UpstreamProcess

FRESH_SECONDS = 2


class Hosts(NamedTuple):
    """The first host has two workers and the flusher, the second one worker."""

    first: Gateway
    second: Gateway
    upstream: UpstreamProcess
    redis: RedisServer
    postgres: PostgresServer

    @property
    def both(self) -> tuple[Gateway, Gateway]:
        return self.first, self.second

    def assert_settled(self, clients: dict[str, ledger.Seen]) -> None:
        """Nothing is open or held on either host, and the books of upstream, rows and clients agree. Ends both."""
        for weir in self.both:
            wait_for("every hold to be returned", lambda weir=weir: weir.held() == (0, 0))
        self.upstream.wait_idle()
        asked = {event["id"] for event in self.upstream.events() if event["event"] == "request"}
        wait_for("every row", lambda: asked <= {row["request_id"] for row in self.first.rows()})
        assert ledger.check(self.upstream.events(), self.first.rows(), clients) == []
        for weir in reversed(self.both):
            weir.stop()
        for weir in self.both:
            assert weir.held() == (0, 0)
            weir.verify()


@contextlib.contextmanager
def two_hosts(directory: Path) -> Iterator[Hosts]:
    """Both ready when the block begins, gone when it ends."""
    pepper = directory / "pepper"
    pepper.write_text("5a" * 32 + "\n")
    pepper.chmod(0o600)
    with contextlib.ExitStack() as stack:
        upstream = stack.enter_context(UpstreamProcess(directory / "ledger.jsonl"))
        redis = stack.enter_context(RedisServer())
        postgres = stack.enter_context(PostgresServer())
        database = postgres.url(postgres.create_database())
        hosts = []
        for name, workers, flushers in (("first", 2, 1), ("second", 1, 0)):
            (directory / name).mkdir()
            hosts.append(
                Gateway(
                    directory / name,
                    upstream.url,
                    workers=workers,
                    redis=redis.url,
                    database=database,
                    flushers=flushers,
                    settings={"pepper": f"file:{pepper}", "identity": {"freshness_seconds": FRESH_SECONDS}},
                )
            )
        first = stack.enter_context(hosts[0])
        hosts[1].key = first.key
        yield Hosts(first, stack.enter_context(hosts[1]), upstream, redis, postgres)


class Key(NamedTuple):
    """A key that a test has made: its public name and its secret."""

    key_id: str
    secret: str


class Keys:
    """What the control plane of the first host does with keys, without its seconds of starting Python."""

    def __init__(self, weir: Gateway, store: Store) -> None:
        self._process = settings.load(weir.config)
        self.store = store

    async def make(self) -> Key:
        """A new key of acme, committed; nobody knows it yet, so nobody needs to be told."""
        secret, row = new_row(self._process, "acme", "test")
        await self.store.insert_key(row, operator())
        return Key(row.key_id, secret)

    async def revoke(self, key: Key, *, told: bool) -> None:
        """Ends it. Without `told` every message about it is lost, the word on the first host too."""
        await self.store.revoke_key(key.key_id, wall_us(), operator())
        if told:
            await announce(self._process.data_dir, self._process.redis, board.KEYS_GENERATION)


@asynccontextmanager
async def keys_of(weir: Gateway) -> AsyncIterator[Keys]:
    """The keys of both hosts."""
    store = Store.open(settings.load(weir.config).database)
    try:
        yield Keys(weir, store)
    finally:
        await store.close()


class Strain:
    """How late this machine is: the worst delays of parts that have nothing to do but be in time.

    `seconds` is that of: this process's loop, the workers' loops, the keepers' heartbeats, a trivial query, and of all
    processes the longest sum of waiting for a core.
    """

    def __init__(self, hosts: Hosts, store: Store) -> None:
        self._arenas = [Arena(str(weir.data / "arena"), boot_id(), -1) for weir in hosts.both]
        self._store = store
        self.seconds = {"test": 0.0, "worker": 0.0, "keeper": 0.0, "query": 0.0, "queued": 0.0}
        pids = [os.getpid(), hosts.redis.pid, *hosts.postgres.pids()]
        pids += [pid for weir in hosts.both for pid in weir.processes()]
        self._queued = {pid: _queued_seconds(pid) for pid in pids}

    def _worst(self, what: str, seconds: float) -> None:
        self.seconds[what] = max(self.seconds[what], seconds)

    async def _loops(self) -> None:
        while True:
            before = time.monotonic()
            await asyncio.sleep(0.02)
            self._worst("test", time.monotonic() - before - 0.02)
            for arena in self._arenas:
                self._worst("worker", max((row.loop_lag_us for row in board.Board(arena).rows()), default=0) / 1e6)
                age_ns = now_ns() - arena.word(board.KEEPER_HEARTBEAT_NS)
                self._worst("keeper", age_ns / 1e9 - 0.5)

    async def _queries(self) -> None:
        while True:
            before = time.monotonic()
            await self._store.keys_mark()
            self._worst("query", time.monotonic() - before)
            await asyncio.sleep(0.05)

    @property
    def starved(self) -> bool:
        """Whether the machine was so late that no bound of less than a second says anything."""
        return max(self.seconds.values()) > 0.1 or sum(self.seconds.values()) > 0.2

    @asynccontextmanager
    async def felt(self) -> AsyncIterator[None]:
        """Measures while the block runs."""
        tasks = [asyncio.create_task(self._loops()), asyncio.create_task(self._queries())]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for pid, before in self._queued.items():
                self._worst("queued", _queued_seconds(pid) - before)
            for arena in self._arenas:
                arena.close()


def _queued_seconds(pid: int) -> float:
    """How long a process has been ready to run and was not let (proc(5), schedstat); 0 where nobody says so."""
    try:
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9
    except (OSError, IndexError, ValueError):
        return 0.0
