"""Dead epochs recovered, finished records moved: to Redis, or straight into the database; pruned once it has them.

A record leaves this host's disk only when the database says that it has it. Everything here may be killed at any
point and run again: a record that is moved twice is one row, and positions are asked of the database, never remembered.
"""

from __future__ import annotations

import asyncio
import os
from collections import deque
from pathlib import Path
from typing import NamedTuple

from proxy import board, bounds, clock, failpoint
from proxy._fastpath import Arena
from proxy.board import Board
from proxy.epochs import Damaged, EpochInfo, live_and_dead, prune, read_records, recover
from proxy.flush.fold import Batch
from proxy.record import rebuild
from proxy.store.redis import RedisTransport, RedisUnavailable, StreamState, WrongType, pack
from proxy.store.store import BadData, Persisted, Store, StoreUnavailable
from proxy.telemetry.log import Log
from proxy.telemetry.metrics import Counters

_ASK_SECONDS = 0.5  # between two questions to a database that has nothing to be told
_SAMPLES_MAX = 1024  # of how far an epoch was synced when: for the age of the oldest record
_LOST = b"D"  # stands in the place of a record that the disk has lost; the flusher sets it aside with its position


class Shipped(NamedTuple):
    """One stream entry: which records, and the milliseconds of its id."""

    last: int
    id_ms: int


class State:
    """What the keeper knows of one epoch. `persisted` is the database's word, None until it has been asked."""

    def __init__(self, info: EpochInfo) -> None:
        self.info = info
        self.persisted: int | None = None
        self.shipped = 0
        self.entries: deque[Shipped] = deque()  # not known to be persisted
        self._samples: deque[tuple[int, int]] = deque()  # (wall clock µs, synced)

    def see(self, info: EpochInfo, now_us: int) -> None:
        """Takes a new look at the disk."""
        grown = info.synced_seq > (self._samples[-1][1] if self._samples else self.persisted or 0)
        if grown:
            begun = now_us if self._samples or self.info is not info else info.oldest_us or now_us
            if len(self._samples) >= _SAMPLES_MAX:
                self._samples.pop()  # the oldest one is what the age is about
            self._samples.append((begun, info.synced_seq))
        self.info = info

    def advance(self, persisted: int) -> int:
        """Takes the database's position; returns by how much it rose."""
        risen = persisted - (self.persisted or 0)
        self.persisted = persisted
        self.shipped = max(self.shipped, persisted)
        while self.entries and self.entries[0].last <= persisted:
            self.entries.popleft()
        while self._samples and self._samples[0][1] <= persisted:
            self._samples.popleft()
        return max(risen, 0)

    @property
    def waiting(self) -> int:
        """Synced records that the database does not have yet, as far as is known."""
        return max(self.info.synced_seq - (self.persisted or 0), 0)

    def age_us(self, now_us: int) -> int:
        """How long the oldest of them has waited."""
        return max(now_us - self._samples[0][0], 0) if self._samples else 0

    def lost(self, stream: StreamState, mark: int) -> bool:
        """Whether something shipped is neither in the stream nor in the database.

        `mark` is what had been shipped before the stream was looked at; the position was asked after that.
        """
        first = self.entries[0] if self.entries else None
        if first is None or first.last > mark:
            return False
        return not stream.exists or stream.drained or first.id_ms < stream.oldest_ms


class Epochs:
    """All epochs of one data directory. `transport` is None without Redis; `origin` is the directory's id."""

    def __init__(
        self,
        directory: Path,
        origin: str,
        arena: Arena,
        store: Store,
        transport: RedisTransport | None,
        counters: Counters,
        log: Log,
    ) -> None:
        self.states: dict[bytes, State] = {}
        self.stream: StreamState | None = None
        self.disk_free_bytes = 0  # what the journal's file system has left, at the last look
        self._directory = directory
        self._origin = origin
        self._arena = arena
        self._store = store
        self._transport = transport
        self._counters = counters
        self._log = log
        self._asked_ns = 0
        self._takes_nothing = False  # the database answers and stores nothing: its disk is full, or it is read-only
        self._damage_seen: set[tuple[bytes, int]] = set()

    # --- look and recover ---

    async def look(self) -> None:
        """Reads the journal's directories, recovers dead epochs, and says on the board how large the journal is."""
        infos = await asyncio.to_thread(live_and_dead, self._directory)
        dead = [info for info in infos if not info.alive and not info.recovered]
        for info in dead:
            await self._recover(info)
        if dead:
            # Once more: recovery has added records, and what it did must be seen before it is moved.
            infos = await asyncio.to_thread(live_and_dead, self._directory)
        self.disk_free_bytes = await asyncio.to_thread(_free_bytes, self._directory)
        now_us = clock.wall_us()
        present = {info.epoch for info in infos}
        for epoch in [epoch for epoch in self.states if epoch not in present]:
            del self.states[epoch]
        for info in infos:
            self.states.setdefault(info.epoch, State(info)).see(info, now_us)
        self._arena.set_word(board.JOURNAL_BYTES, sum(info.bytes for info in infos))
        self._arena.set_word(board.JOURNAL_OLDEST_US, self.oldest_us())

    def oldest_us(self) -> int:
        """Age of the oldest record that the database does not have, in microseconds."""
        now_us = clock.wall_us()
        return max((state.age_us(now_us) for state in self.states.values()), default=0)

    async def _recover(self, info: EpochInfo) -> None:
        # Before recovery, while the column is still this dead life's: afterwards it may belong to a new one.
        Board(self._arena).clear(info.column)
        failpoint.reach("recover.before")
        try:
            added = await asyncio.to_thread(recover, info.path, self._arena, rebuild)
        except OSError as error:
            self._log.error("a dead worker's journal cannot be recovered yet", epoch=info.path.name, reason=str(error))
            return
        failpoint.reach("recover.after")
        if added is None:
            return
        self._counters.add(self._counters.series("weir_recoveries_total"))
        self._counters.add(self._counters.series("weir_recovered_calls_total"), added)
        self._log.warning("recovered the journal of a dead worker", epoch=info.path.name, calls_closed=added)

    # --- move ---

    async def move(self) -> bool:
        """Ships or persists what has been synced. True when there is more than one round may take."""
        if self._transport is not None:
            return await self._ship(self._transport)
        return await self._persist()

    async def _persist(self) -> bool:
        """Without Redis: the flusher's steps 2 and 3, with the same promises."""
        quiet = all(state.persisted is not None and not state.waiting for state in self.states.values())
        if quiet and clock.now_ns() - self._asked_ns < _ASK_SECONDS * 1e9:
            return False
        if not await self.ask_positions():
            return False
        batches: list[Batch] = []
        room = bounds.FLUSH_RECORDS_MAX
        for state in tuple(self.states.values()):
            position = state.persisted or 0
            while room > 0 and position < state.info.synced_seq:
                batch = await self._read(state, position + 1, room)
                if not batch.records:
                    break
                batches.append(batch)
                position = batch.last
                room -= len(batch.records)
        if not batches:
            return False
        failpoint.reach("keeper.before_persist")
        try:
            result = await self._store.persist(batches)
        except (StoreUnavailable, BadData) as error:
            self._takes_nothing = True
            self._database_failed("persist", error)
            return False
        failpoint.reach("keeper.after_persist")
        self._takes_nothing = False
        self._count(result)
        await self.ask_positions()
        return room <= 0

    async def _ship(self, transport: RedisTransport) -> bool:
        """With Redis: everything past the shipped position, in order, many records to an entry."""
        shipped = False
        for state in tuple(self.states.values()):
            if state.persisted is None and not state.shipped:
                # The database could not be asked yet. What is no longer on the disk, it has.
                state.shipped = max(state.info.first_seq - 1, 0)
            while state.shipped < state.info.synced_seq:
                batch = await self._read(state, state.shipped + 1, bounds.SHIP_RECORDS_MAX)
                if not batch.records:
                    break
                failpoint.reach("keeper.before_ship")
                try:
                    id_ms = await transport.ship(
                        self._origin, state.info.epoch, batch.first, batch.last, pack(batch.records)
                    )
                except (RedisUnavailable, WrongType) as error:
                    self._redis_failed("ship", error)
                    return False
                failpoint.reach("keeper.after_ship")
                state.shipped = batch.last
                state.entries.append(Shipped(batch.last, id_ms))
                shipped = True
                self._counters.add(self._counters.series("weir_shipped_records_total"), len(batch.records))
        if shipped:
            self._say_redis(board.OK)
        return False

    async def check_stream(self) -> None:
        """With Redis: looks whether everything shipped is still on its way, and starts over where it is not."""
        if self._transport is None:
            return
        marks = {epoch: state.shipped for epoch, state in self.states.items()}
        try:
            stream = await self._transport.state(self._origin)
        except (RedisUnavailable, WrongType) as error:
            self._redis_failed("state", error)
            await self.ask_positions()  # what was flushed before can still be pruned
            return
        self.stream = stream
        self._say_redis(board.OK)
        # The positions are asked after the stream: what it had acknowledged by then is in them.
        if not await self.ask_positions():
            return
        for epoch, state in self.states.items():
            persisted = state.persisted or 0
            if state.lost(stream, marks.get(epoch, 0)):
                self._counters.add(self._counters.series("weir_resends_total"))
                self._log.warning(
                    "the Redis stream lost records; they are sent again",
                    epoch=state.info.path.name,
                    first=persisted + 1,
                    last=state.shipped,
                )
                state.entries.clear()
                state.shipped = persisted

    async def ask_positions(self) -> bool:
        """Asks the database how far it has each epoch, and prunes. False when it cannot be asked."""
        asked = tuple(self.states)
        self._asked_ns = clock.now_ns()
        try:
            positions = await self._store.persisted(asked) if asked else {}
            if not asked:
                await self._store.ping()
        except (StoreUnavailable, BadData) as error:
            self._database_failed("positions", error)
            return False
        self._database_answered()
        risen = 0
        for epoch, position in positions.items():
            state = self.states.get(epoch)
            if state is None:
                continue
            first_time = state.persisted is None
            rise = state.advance(position)
            risen += 0 if first_time else rise
            await self._prune(state, rise > 0)
        if risen:
            self._counters.add(self._counters.series("weir_persisted_records_total"), risen)
        return True

    async def _prune(self, state: State, risen: bool) -> None:
        finished = state.info.recovered and not state.info.alive and (state.persisted or 0) >= state.info.last_seq
        if not risen and not finished:
            return
        failpoint.reach("keeper.before_prune")
        try:
            await asyncio.to_thread(prune, state.info.path, state.persisted or 0)
        except OSError as error:
            self._log.error("the journal cannot be pruned", epoch=state.info.path.name, reason=str(error))
            return
        failpoint.reach("keeper.after_prune")
        if finished:
            self.states.pop(state.info.epoch, None)

    async def _read(self, state: State, first: int, room: int) -> Batch:
        """Records from `first` on. Markers stand for damaged ones, so that the rest does not wait for ever."""
        info = state.info
        limit = min(room, bounds.SHIP_RECORDS_MAX)
        try:
            found = await asyncio.to_thread(read_records, info.path, first, limit, bounds.SHIP_BYTES_MAX)
        except Damaged as damaged:
            if first <= (state.persisted or 0):
                # While we read, the database was found to have these, and they were pruned: nothing is lost.
                return Batch(info.epoch, first, first - 1, [], self._origin)
            pruned = damaged.resumes <= info.first_seq
            what = "was pruned, and the database has forgotten it" if pruned else "was damaged on disk"
            if (info.epoch, damaged.resumes) not in self._damage_seen:
                self._damage_seen.add((info.epoch, damaged.resumes))
                self._counters.add(self._counters.series("weir_journal_damage_total"))
                cause = "is the database an older copy?" if pruned else str(damaged)
                self._log.error("records are lost; their positions go to the quarantine", cause=cause)
            last = min(damaged.resumes - 1, first + limit - 1)
            lost = [_LOST + f"record {seq} {what}".encode() for seq in range(first, last + 1)]
            return Batch(info.epoch, first, last, lost, self._origin)
        except FileNotFoundError:
            return Batch(info.epoch, first, first - 1, [], self._origin)  # pruned by a keeper that died after it
        return Batch(info.epoch, found.first, found.last, found.records, self._origin)

    # --- what went wrong ---

    def _count(self, result: Persisted) -> None:
        for name, amount in (
            ("weir_double_records_total", result.doubles),
            ("weir_record_conflicts_total", result.conflicts),
            ("weir_quarantined_records_total", result.quarantined),
        ):
            if amount:
                self._counters.add(self._counters.series(name), amount)
        if result.conflicts or result.quarantined:
            self._log.error(
                "records were set aside; run weir usage verify",
                conflicts=result.conflicts,
                quarantined=result.quarantined,
            )

    def _redis_failed(self, step: str, error: Exception) -> None:
        self._counters.add(self._counters.series("weir_ship_failures_total", step))
        if self._arena.word(board.REDIS_STATE) != board.AWAY:
            self._log.warning("Redis is away; the journal keeps everything", step=step, reason=str(error))
        self._arena.set_word(board.REDIS_STATE, board.AWAY)

    def _database_failed(self, step: str, error: Exception) -> None:
        self._counters.add(self._counters.series("weir_ship_failures_total", step))
        # Never reached yet is another thing than away: /readyz tells them apart.
        if self._arena.word(board.DATABASE_STATE) == board.OK:
            self._log.warning("the database is away; the journal keeps everything", step=step, reason=str(error))
            self._arena.set_word(board.DATABASE_STATE, board.AWAY)

    def _say_redis(self, value: int) -> None:
        if self._arena.word(board.REDIS_STATE) == board.AWAY:
            self._log.info("Redis is back")
        self._arena.set_word(board.REDIS_STATE, value)

    def _database_answered(self) -> None:
        """It can be read. While it takes nothing it is as good as away; saying both in turn would fill the log."""
        if self._takes_nothing:
            return
        if self._arena.word(board.DATABASE_STATE) == board.AWAY:
            self._log.info("the database is back")
        self._arena.set_word(board.DATABASE_STATE, board.OK)


def _free_bytes(directory: Path) -> int:
    """What an unprivileged process can still write there; the first worker makes the directory."""
    found = os.statvfs(directory if directory.exists() else directory.parent)
    return found.f_bavail * found.f_frsize
