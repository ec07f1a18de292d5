"""The journal's face: a worker's epoch, and, from `epochs.py`, what the keeper does with the epochs it finds."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import secrets
import threading
from collections.abc import Callable
from pathlib import Path

from proxy import clock, record
from proxy._fastpath import Arena
from proxy._journal import RECORD_SPACE_MAX, SEGMENT_HEAD_BYTES, Malformed, Segment, Slot, Slots, Writer, slots_bytes
from proxy.epochs import (
    NEW,
    Batch,
    Damaged,
    EpochInfo,
    NoColumn,
    allocate,
    free_column,
    journal_bytes,
    live_and_dead,
    lock,
    make_segment,
    places,
    prune,
    read_records,
    recover,
    sync_directory,
    unlock,
)
from proxy.record import Found

__all__ = [
    "Batch",
    "Damaged",
    "Epoch",
    "EpochInfo",
    "Found",
    "Malformed",
    "NoColumn",
    "Slot",
    "journal_bytes",
    "live_and_dead",
    "prune",
    "read_records",
    "recover",
]

log = logging.getLogger(__name__)

_SEGMENT_RETRY_SECONDS = 0.25  # between attempts to make a segment that the disk or `max_bytes` refuses
_MOVE_RETRY_SECONDS_MAX = 10  # between moves away from blocks that cannot be synced


class Epoch:
    """The living side, in a worker: slots, segments, and the thread that syncs them."""

    def __init__(
        self,
        path: Path,
        arena: Arena,
        writer: Writer,
        lock_fd: int,
        max_bytes: int,
        sync_ms: int,
        fdatasync: Callable[[int], None],
    ) -> None:
        self.path = path
        self.arena = arena
        self.writer = writer
        self.epoch = writer.epoch
        self.column = writer.column
        self.open = writer.open
        self.close = writer.close
        self.sync_failures = 0  # alarms: a disk that refuses to write
        self._lock_fd = lock_fd
        self._max_bytes = max_bytes
        self._sync_seconds = sync_ms / 1000
        self._fdatasync = fdatasync
        # Enough for every slot's record, should all of them end while no more can be made.
        per_segment = (writer.segment_bytes - SEGMENT_HEAD_BYTES) // RECORD_SPACE_MAX
        self._spares_wanted = -(-(writer.slots + 2) // per_segment)
        self._segment_refused = ""
        self._segment_retry_ns = 0
        self._must_move = False
        self._move_retry_ns = 0
        self._move_pause_seconds = _SEGMENT_RETRY_SECONDS
        self._callbacks: list[Callable[[], None]] = []
        self._waiting: list[tuple[int, asyncio.AbstractEventLoop, asyncio.Future[None]]] = []
        self._waiting_lock = threading.Lock()
        self._wake = threading.Event()
        self._stop = False
        self._thread = threading.Thread(target=self._run, name="journal-sync", daemon=True)
        self._thread.start()

    @classmethod
    def create(
        cls,
        directory: Path,
        arena_path: str,
        boot_id: str,
        *,
        slots: int,
        segment_bytes: int,
        max_bytes: int,
        sync_ms: int,
        fdatasync: Callable[[int], None] = os.fdatasync,
    ) -> Epoch:
        """Claims the lowest free column and makes the epoch's directory under `directory` (`<data_dir>/journal`).

        The first segment is made even above `max_bytes`, so that a worker can start and refuse. Raises NoColumn, and
        OSError when the disk has no room. `fdatasync` is there for tests of a failing disk.
        """
        per_segment = (segment_bytes - SEGMENT_HEAD_BYTES) // RECORD_SPACE_MAX
        if slots < 1 or segment_bytes % 4096 or per_segment < 4:
            raise ValueError(
                f"{slots} slots with segments of {segment_bytes} bytes: at least 1 slot and segments of a "
                "multiple of 4096 bytes that hold 4 records are needed"
            )
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        epoch = secrets.token_bytes(16)
        with places(directory), contextlib.ExitStack() as undo:
            column = free_column(directory)
            making = directory / (NEW + epoch.hex())
            making.mkdir(mode=0o700)
            lock_fd = allocate(making / "slots", slots_bytes(slots), fill=False)
            undo.callback(unlock, lock_fd)
            lock(lock_fd)
            Slots.format(lock_fd, epoch, column, slots, segment_bytes, clock.wall_us())
            # Only the header has content, and it must outlive a power cut if any record does.
            os.fdatasync(lock_fd)
            segment = make_segment(making, epoch, 1, segment_bytes)
            sync_directory(making)
            path = directory / epoch.hex()
            os.rename(making, path)
            sync_directory(directory)
            arena = Arena(arena_path, boot_id, column)
            # A life that died between its claim and its first slot may have left something in the column.
            arena.overwrite_column(column)
            undo.pop_all()
        return cls(path, arena, Writer(lock_fd, segment, arena), lock_fd, max_bytes, sync_ms, fdatasync)

    @property
    def synced_seq(self) -> int:
        """Records up to here are on the disk."""
        return self.writer.synced_seq

    def on_sync(self, callback: Callable[[], None]) -> None:
        """`callback` runs in the sync thread after each of its rounds, synced or not."""
        self._callbacks.append(callback)

    def request_sync(self) -> None:
        """Syncs now rather than at the end of the interval."""
        self._wake.set()

    async def wait_synced(self, seq: int) -> None:
        """Returns once record `seq` is on the disk."""
        if self.writer.synced_seq >= seq:
            return
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        with self._waiting_lock:
            self._waiting.append((seq, loop, future))
        self._wake.set()
        await future

    def finish(self) -> None:
        """The clean stop: EpochEnd, sync, `recovered`, and the lock is free. ValueError while a call is open.

        When the disk refuses, the epoch stays unrecovered and the keeper finishes it. Raises that OSError.
        """
        self.writer.end(record.encode_end(self.writer.calls))
        self._stop = True
        self._wake.set()
        self._thread.join()
        try:
            if self._must_move:
                raise OSError(errno.EIO, f"{self.path}: the disk refused the last records; recovery will write them")
            seq, segments = self.writer.to_sync()
            if self.writer.synced_seq < seq:
                self._sync(seq, segments)
            self._resolve()
            self.arena.overwrite_column(self.column)
            self.writer.mark_recovered()
        finally:
            self._release()

    def abandon(self) -> None:
        """Stops the thread and drops the lock without an end: the epoch is then dead, as after a kill."""
        self._stop = True
        self._wake.set()
        self._thread.join()
        self._release()

    def _release(self) -> None:
        if self._lock_fd >= 0:
            self.writer.close_files()
            unlock(self._lock_fd)
            self._lock_fd = -1
        self.arena.close()

    # --- the sync thread ---

    def _run(self) -> None:
        while not self._stop:
            self._wake.wait(self._sync_seconds)
            self._wake.clear()
            try:
                self._round()
            except Exception:
                # The thread must live: without it nothing is shipped and strict calls hang.
                log.exception("the journal's sync thread failed; it goes on")

    def _round(self) -> None:
        writer = self.writer
        seq, segments = writer.to_sync()
        if self._must_move:
            self._move()
        elif writer.synced_seq < seq or writer.failing:
            try:
                self._sync(seq, segments)
            except OSError as error:
                self.sync_failures += 1
                if not writer.failing:
                    log.error("fdatasync of the journal failed (%s); calls are refused until it works", error)
                # A second fdatasync would lie: the kernel calls the pages clean that it could not write.
                self._must_move = writer.failing = True
                self._move()
        self._resolve()
        while writer.spare_count < self._spares_wanted and self._add_spare(counted=True):
            pass
        for callback in self._callbacks:
            callback()

    def _sync(self, seq: int, segments: list[Segment]) -> None:
        for segment in segments:
            try:
                self._fdatasync(segment.fd)
            except OSError:
                segment.mark_failed()
                raise
        self.writer.mark_synced(seq, segments)
        self.writer.failing = False
        self._move_pause_seconds = _SEGMENT_RETRY_SECONDS

    def _move(self) -> None:
        """Writes what is unsynced into other blocks. Pauses twice as long each time, lest a dead disk be filled."""
        if clock.now_ns() < self._move_retry_ns:
            return
        while self.writer.spare_count < self.writer.spares_to_move():
            if not self._add_spare(counted=False):
                return
        self._move_retry_ns = clock.now_ns() + int(self._move_pause_seconds * 1e9)
        self._move_pause_seconds = min(self._move_pause_seconds * 2, _MOVE_RETRY_SECONDS_MAX)
        moved = self.writer.move_on()
        self._must_move = False
        log.error("%s: moved %d unsynced records into a fresh segment", self.path, moved)

    def _add_spare(self, *, counted: bool) -> bool:
        """One more segment ahead of the writer; False when disk or `max_bytes` refuses, which is said once."""
        if clock.now_ns() < self._segment_retry_ns:
            return False
        size = self.writer.segment_bytes
        try:
            with places(self.path.parent):
                if counted and journal_bytes(self.path.parent) + size > self._max_bytes:
                    raise OSError(errno.EDQUOT, f"the journal has reached its max_bytes of {self._max_bytes}")
                segment = make_segment(self.path, self.epoch, self.writer.last_index + 1, size)
            os.fsync(segment.fd)
            sync_directory(self.path)
        except OSError as error:
            if self._segment_refused != str(error):
                log.error("cannot make a journal segment: %s; calls are refused once the rest is full", error)
            self._segment_refused = str(error)
            self._segment_retry_ns = clock.now_ns() + int(_SEGMENT_RETRY_SECONDS * 1e9)
            return False
        self._segment_refused = ""
        self.writer.add_spare(segment)
        return True

    def _resolve(self) -> None:
        """Wakes whoever waits for a record that is now on the disk."""
        if not self._waiting:
            return
        synced = self.writer.synced_seq
        with self._waiting_lock:
            ready = [entry for entry in self._waiting if entry[0] <= synced]
            self._waiting = [entry for entry in self._waiting if entry[0] > synced]
        for _, loop, future in ready:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
                loop.call_soon_threadsafe(_wake_up, future)


def _wake_up(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
