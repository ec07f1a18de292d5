"""Builds every object of a worker and hands it on; alone knows everything."""

from __future__ import annotations

import asyncio
import gc
import logging
import socket
import sys
from pathlib import Path

from aiohttp import http_parser

from proxy import board
from proxy._fastpath import BadTable
from proxy.clock import boot_id, now_ns
from proxy.front import Front
from proxy.house import House
from proxy.identity import pepper
from proxy.identity.gate import Gate
from proxy.identity.issuers import IssuerMetrics, Issuers
from proxy.identity.keys import Keys
from proxy.identity.shelf import Shelf
from proxy.identity.tokens import Tokens
from proxy.journal import Epoch
from proxy.journey import serve
from proxy.policy.snapshot import Policy, Upstream
from proxy.settings import Settings
from proxy.store.store import Store, StoreUnavailable
from proxy.telemetry.calls import CallMetrics
from proxy.telemetry.log import Lines
from proxy.telemetry.metrics import Counters
from proxy.tokens import ENCODINGS, encoding
from proxy.upstreams.pool import Pool
from proxy.upstreams.target import Target
from proxy.worker import Worker

log = logging.getLogger("weir.worker")


SWITCH_SECONDS = 0.0005  # the loop waits so long for a thread that counts; by default it would be ten times that
GC_ALLOCATIONS = 20_000  # net new containers between two looks at the youngest: about 2 MB of them


class CannotStart(Exception):
    """This worker cannot do its work here; the text says why and what would help."""


async def work(settings: Settings, place: int, listener: socket.socket, lifeline: int) -> None:
    """The whole life of a worker. Raises CannotStart before it serves, nothing after."""
    if http_parser.HttpRequestParser is http_parser.HttpRequestParserPy:
        # Most request smuggling faults of aiohttp's were in its Python parser.
        raise CannotStart("aiohttp's C parser is not loaded; unset AIOHTTP_NO_EXTENSIONS or install aiohttp's wheel")
    try:
        for name in ENCODINGS:
            encoding(name)  # now, and not in the first call that needs it
    except BadTable as error:
        raise CannotStart(str(error)) from None
    loop = asyncio.get_running_loop()
    journal = settings.journal
    epoch = Epoch.create(
        settings.data_dir / "journal",
        str(settings.data_dir / "arena"),
        boot_id(),
        slots=journal.slots,
        segment_bytes=journal.segment_bytes,
        max_bytes=journal.max_bytes,
        sync_ms=journal.sync_ms,
    )
    generation = epoch.arena.word(board.POLICY_GENERATION)  # before the file: a newer file is read again, never missed
    policy = read_policy(settings.data_dir)
    store = Store.open(settings.database, readonly=True)
    try:
        await store.check_schema()
    except StoreUnavailable as error:
        # It serves all the same: else the connections to its place would wait for a database that others know is away.
        log.warning("%s; whose key is not known here is told 503 until it is back", error)
    counters = Counters(settings.data_dir / "metrics", epoch.column)
    lines = Lines(settings.log_requests, epoch=epoch.epoch, counters=counters)
    epoch.on_sync(lines.flush)
    keys = Keys(epoch.arena, pepper.of(settings.data_dir, settings.pepper), store.keys_by_digests)
    issuers = Issuers(IssuerMetrics(counters), shelf=Shelf(settings.data_dir))
    tokens = Tokens(epoch.arena, issuers, store.disabled_among)
    house = House(
        loop,
        policy,
        keys,
        epoch,
        make_pool,
        CallMetrics(counters),
        lines,
        strict=journal.durability == "strict",
        tokens=tokens,
        gate=Gate.of(settings.listen, keys, tokens),
    )

    front = Front(loop, serve, house)
    worker = Worker(house, front, settings, listener, lifeline, place, lambda: read_policy(settings.data_dir))
    worker.announce(generation)
    # What is built now lives as long as the process: the collector need not look at it again.
    gc.collect()
    gc.freeze()
    # A call leaves few cycles behind, and none that holds a socket: look for them less often than by default.
    gc.set_threshold(GC_ALLOCATIONS, 20, 50)
    sys.setswitchinterval(SWITCH_SECONDS)
    started_ns = now_ns()
    try:
        await worker.run()
    finally:
        await issuers.close()
        # While the column is still ours: the next life in it may begin the moment the epoch is finished.
        board.Board(epoch.arena).clear(epoch.column)
        epoch.finish()
        lines.close()
        counters.close()
        await store.close()
        log.info("drained after %.1f s", (now_ns() - started_ns) / 1e9)


def read_policy(data_dir: Path) -> Policy:
    """The snapshot that the keeper last put in place. Raises CannotStart when there is none."""
    try:
        return Policy.decode((data_dir / "policy.snapshot").read_bytes())
    except FileNotFoundError:
        raise CannotStart(f"{data_dir}/policy.snapshot is missing: the keeper writes it; is it running?") from None


def make_pool(upstream: Upstream, target: Target) -> Pool:
    """The connections to one upstream."""
    return Pool(
        target,
        max_connections=upstream.max_connections,
        max_waiting=upstream.max_waiting,
        connect_ms=int(upstream.connect_seconds * 1000),
        ca_bundle=None if upstream.ca_bundle is None else Path(upstream.ca_bundle),
    )
