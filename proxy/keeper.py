"""The keeper: one a data directory, under a lock. It recovers, moves and prunes the journal, publishes the policy,
watches the key table, and answers for the host on its own port. It may be killed at any instant and started again.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

from proxy import board, bounds, clock, locks
from proxy._fastpath import Arena
from proxy.board import Board
from proxy.keeping.anchors import Anchors
from proxy.keeping.epochs import Epochs
from proxy.keeping.keys import KeyWatch
from proxy.keeping.page import Port
from proxy.keeping.publish import Publisher
from proxy.keeping.revisions import Recorder
from proxy.settings import Settings, masked
from proxy.store.redis import RedisTransport, directory_id
from proxy.store.store import BadData, SchemaMismatch, Store, StoreUnavailable
from proxy.telemetry.log import Log
from proxy.telemetry.metrics import KEEPER_COLUMN, Counters

_LOOK_SECONDS = 0.2  # between two looks at the journal: a dead worker is recovered within a second
_MOVE_SECONDS = 0.1  # between two rounds of shipping when there was nothing to ship
_CHECK_SECONDS = 0.5  # between two questions to Redis and the database about what arrived
_JUDGE_SECONDS = 0.2  # between two looks at how old the last word on the keys is
_ANCHOR_SECONDS = 1.0  # between two looks at the audit log's head
_REVISION_SECONDS = 1.0  # between two tries to record which policy is in use
_RETENTION_SECONDS = 600.0
_ENDING_KEYS_SECONDS = 60.0  # between two counts of the keys that end soon
_RECLAIM_SECONDS = 60.0
_IDLE_CELL_SECONDS = 600.0  # a limit cell untouched for so long, and at rest, is given back
_LAST_SHIP_SECONDS = 10.0  # at the end: longer than a few transactions, shorter than a supervisor's patience
_ORPHAN_SHIP_SECONDS = 3.0  # the same when the supervisor is gone: another keeper may be waiting for the lock
_CLOSE_SECONDS = 2.0  # for connections to be closed in good order; a frozen database must not hold the lock
_CANCEL_SECONDS = 0.5  # a cancelled duty has so long for its clean-up
_CANCEL_TRIES = 3
_ENDING_SECONDS = 20.0  # the whole ending: above the sum of the others, below a successor's wait for the lock
_ORPHAN_ENDING_SECONDS = 10.0  # the same when the supervisor is gone
_FROZEN_SECONDS = bounds.HEARTBEAT_SECONDS_MAX + _CLOSE_SECONDS  # no living keeper is silent for so long
_LOCK_WAIT_SECONDS = 25.0  # a supervised keeper waits so long for its predecessor's last ship, or for its end
_LOOSE_SECONDS = _CANCEL_TRIES * _CANCEL_SECONDS * 3 + _CLOSE_SECONDS  # duties, last ship, whatever is left; closing
assert _LOOSE_SECONDS + _LAST_SHIP_SECONDS < _ENDING_SECONDS < _LOCK_WAIT_SECONDS
assert _LOOSE_SECONDS + _ORPHAN_SHIP_SECONDS < _ORPHAN_ENDING_SECONDS
_EXPIRE_ROWS = 5000  # in one transaction of retention
_DAY_US = 86_400_000_000


class CannotKeep(Exception):
    """The keeper cannot do its work here; the message says why and what to do."""


class Keeper:
    """`supervised` waits a little for a predecessor that is ending; else a second keeper is refused at once."""

    def __init__(self, settings: Settings, log: Log, *, lifeline: int = -1) -> None:
        self._settings = settings
        self._log = log
        self._lifeline = lifeline
        data_dir = Path(settings.data_dir)
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        (data_dir / "journal").mkdir(mode=0o700, exist_ok=True)
        self._lock = _hold(data_dir, wait=lifeline >= 0)
        self._arena = Arena(os.fspath(data_dir / "arena"), clock.boot_id())
        self._counters = Counters(data_dir / "metrics", KEEPER_COLUMN)
        self._store = Store.open(settings.database)
        self._transport = None if settings.redis is None else RedisTransport(settings.redis)
        self._arena.set_word(board.DATABASE_STATE, board.NOT_CONFIGURED)
        self._arena.set_word(board.REDIS_STATE, board.NOT_CONFIGURED if self._transport is None else board.AWAY)
        self._recorder = Recorder(directory_id(data_dir), self._store)
        self._publisher = Publisher(
            Path(settings.config_dir), data_dir, self._arena, self._counters, log, self._recorder.note
        )
        self._epochs = Epochs(
            data_dir / "journal",
            directory_id(data_dir),
            self._arena,
            self._store,
            self._transport,
            self._counters,
            log,
        )
        self._anchors = Anchors(data_dir, self._store, self._counters, log)
        self._key_store = Store.open(settings.database, readonly=True)
        self._keys = KeyWatch(self._key_store, self._transport, self._arena, log)
        self._port = Port(Board(self._arena), self._counters, self._epochs, self._keys, settings.journal.max_bytes)
        self._met = False  # the database has been seen to have the schema of this version
        self._ending = asyncio.Event()
        self._reload_asked = asyncio.Event()
        self._failed: BaseException | None = None
        self._orphaned = False

    async def run(self) -> None:
        """Keeps until told to end. Raises CannotKeep when it cannot begin."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._ending.set)
        loop.add_signal_handler(signal.SIGHUP, self._reload_asked.set)
        if self._lifeline >= 0:
            loop.add_reader(self._lifeline, self._lost)
        tasks: list[asyncio.Task[None]] = []
        beating: list[asyncio.Task[None]] = []
        try:
            await self._begin()
            beating = [asyncio.create_task(self._forever(work, seconds)) for work, seconds in self._vital()]
            tasks = [asyncio.create_task(self._forever(work, seconds)) for work, seconds in self._duties()]
            tasks.append(asyncio.create_task(self._reloads()))
            await self._ending.wait()
            _end_at_last(_ORPHAN_ENDING_SECONDS if self._orphaned else _ENDING_SECONDS)
            if self._failed is not None:
                raise self._failed
            await _cancel(tasks)
            await self._last_ship()
        finally:
            await _cancel([*tasks, *beating])
            await self._close()

    async def _begin(self) -> None:
        self._arena.set_word(board.KEEPER_HEARTBEAT_NS, clock.now_ns())
        try:
            await self._check_schema()
            self._arena.set_word(board.DATABASE_STATE, board.OK)
        except (StoreUnavailable, BadData) as error:
            # The journal keeps everything meanwhile, and whoever is known goes on being served.
            self._log.warning(
                "the database is not there yet", database=masked(self._settings.database), reason=str(error)
            )
        if not await asyncio.to_thread(self._publisher.begin):
            raise CannotKeep("The configuration has problems and there is no earlier policy: run `weir check`.")
        metrics = self._settings.metrics
        try:
            port = await self._port.open(metrics.host, metrics.port)
        except OSError as error:
            raise CannotKeep(
                f"metrics: {metrics.host}:{metrics.port} cannot be listened on ({error.strerror or error}); "
                "stop what uses it or choose another port."
            ) from error
        await self._epochs.look()
        if self._arena.word(board.DATABASE_STATE) == board.OK:
            # The first look distrusts every key that workers know: before anybody is told that this keeper is ready.
            await self._keys.look()
        self._arena.set_word(board.KEEPER_HEARTBEAT_NS, clock.now_ns())
        self._arena.set_word(board.KEEPER_PID, os.getpid())
        self._log.info("keeping", metrics_port=port)

    async def _check_schema(self) -> None:
        """Raises CannotKeep for a schema that is not this version's, StoreUnavailable and BadData."""
        try:
            await self._store.check_schema()
        except SchemaMismatch as error:
            raise CannotKeep(str(error)) from error
        self._met = True

    async def _meet(self) -> None:
        """A duty: a database that was away at the start is looked at once it is there."""
        if not self._met:
            with contextlib.suppress(StoreUnavailable, BadData):
                await self._check_schema()
                self._log.info("the database is there")

    def _vital(self) -> list[tuple[Callable[[], Awaitable[object]], float]]:
        """Duties that go on while the others end: workers may serve for long after."""
        vital: list[tuple[Callable[[], Awaitable[object]], float]] = [
            (self._beat, bounds.HEARTBEAT_SECONDS),
            (self._keys.watch, 0.0),
            (self._keys.judge, _JUDGE_SECONDS),
        ]
        if self._transport is not None:
            vital.append((self._keys.listen, bounds.KEYS_CHANNEL_SECONDS))
        return vital

    def _duties(self) -> list[tuple[Callable[[], Awaitable[object]], float]]:
        duties: list[tuple[Callable[[], Awaitable[object]], float]] = [
            (self._meet, _CHECK_SECONDS),
            (self._epochs.look, _LOOK_SECONDS),
            (self._move, _MOVE_SECONDS),
            (self._anchors.look, _ANCHOR_SECONDS),
            (self._recorder.look, _REVISION_SECONDS),
            (self._expire, _RETENTION_SECONDS),
            (lambda: self._keys.count_ending(self._store), _ENDING_KEYS_SECONDS),
            (self._reclaim, _RECLAIM_SECONDS),
        ]
        if self._transport is not None:
            duties.append((self._epochs.check_stream, _CHECK_SECONDS))
        return duties

    async def _forever(self, work: Callable[[], Awaitable[object]], seconds: float) -> None:
        """A duty that fails in a way nobody foresaw ends the keeper: a new one starts from what is on the disk."""
        try:
            while True:
                await work()
                await asyncio.sleep(seconds)
        except Exception as error:
            self._failed = error
            self._ending.set()

    def _lost(self) -> None:
        asyncio.get_running_loop().remove_reader(self._lifeline)
        self._orphaned = True
        self._ending.set()

    # --- duties ---

    async def _beat(self) -> None:
        self._arena.set_word(board.KEEPER_HEARTBEAT_NS, clock.now_ns())
        self._arena.set_word(board.KEEPER_PID, os.getpid())

    async def _move(self) -> None:
        while await self._epochs.move():
            pass

    async def _expire(self) -> None:
        before_us = clock.wall_us() - self._settings.retention_days * _DAY_US
        with contextlib.suppress(StoreUnavailable, BadData):
            while removed := await self._store.expire(before_us, _EXPIRE_ROWS):
                self._counters.add(self._counters.series("weir_expired_rows_total"), removed)

    async def _reclaim(self) -> None:
        freed = self._arena.reclaim_idle(clock.now_ns(), int(_IDLE_CELL_SECONDS * 1e9))
        if freed:
            self._counters.add(self._counters.series("weir_reclaimed_cells_total"), freed)

    async def _reloads(self) -> None:
        while True:
            await self._reload_asked.wait()
            self._reload_asked.clear()
            try:
                await asyncio.to_thread(self._publisher.reload)
            except Exception as error:
                self._failed = error
                self._ending.set()
                return

    # --- end ---

    async def _last_ship(self) -> None:
        """What the workers left is recovered and moved, as far as it goes in the time."""
        self._log.info("last ship")
        shipping = asyncio.create_task(self._ship_all())
        await asyncio.wait([shipping], timeout=_ORPHAN_SHIP_SECONDS if self._orphaned else _LAST_SHIP_SECONDS)
        await _cancel([shipping])
        if shipping.done() and not shipping.cancelled():
            shipping.result()

    async def _ship_all(self) -> None:
        await self._epochs.look()
        while await self._epochs.move():
            pass
        await self._epochs.look()
        await self._epochs.ask_positions()
        await self._anchors.look(now=True)
        await self._recorder.look()

    async def _close(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CLOSE_SECONDS):
                await self._port.close()
                if self._transport is not None:
                    await self._transport.close()
                await self._store.close()
                await self._key_store.close()
        self._counters.close()
        self._arena.close()
        os.close(self._lock)


async def _cancel(tasks: list[asyncio.Task[None]]) -> None:
    """Cancels, and again those that a library's clean-up kept alive; what still runs after that is left behind."""
    pending = {task for task in tasks if not task.done()}
    for _ in range(_CANCEL_TRIES):
        if not pending:
            return
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=_CANCEL_SECONDS)


def _end_at_last(seconds: float) -> None:
    """Ends the process when its ending hangs: it may die at any instant, but it must not hold the lock for ever.

    A library's clean-up may refuse to be cancelled: SQLAlchemy's waits for a frozen server to answer its rollback.
    """
    watchdog = threading.Timer(seconds, os._exit, (1,))
    watchdog.daemon = True
    watchdog.start()


def _hold(data_dir: Path, *, wait: bool) -> int:
    deadline_ns = clock.now_ns() + int(_LOCK_WAIT_SECONDS * 1e9 if wait else 0)
    while True:
        try:
            return locks.hold(data_dir / "keeper.lock")
        except locks.Held as held:
            if clock.now_ns() >= deadline_ns:
                raise CannotKeep(
                    f"Another keeper (process {held.pid}) works on {data_dir}; one is enough. "
                    "Stop it first, or use a data_dir of its own."
                ) from None
            _end_if_frozen(data_dir, held.pid)
        clock.pause(0.05)


def _end_if_frozen(data_dir: Path, pid: int) -> None:
    """Kills a predecessor without a heartbeat: its supervisor is gone, and nobody else would ever end it."""
    arena = Arena(os.fspath(data_dir / "arena"), clock.boot_id())
    try:
        age_ns = clock.now_ns() - arena.word(board.KEEPER_HEARTBEAT_NS)
        known = arena.word(board.KEEPER_PID) == pid
    finally:
        arena.close()
    if known and age_ns > _FROZEN_SECONDS * 1e9:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
