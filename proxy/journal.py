"""The journal's face: a worker's epoch, and what the keeper does with the epochs it finds.

One epoch is one directory, `<journal>/<32 hex digits>/{slots, 00000001.seg, ...}`. Its worker holds a flock on `slots`
for life; whoever gets that lock of an epoch without the word `recovered` recovers it. Creating goes through a temporary
name, so nobody ever sees half an epoch.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import logging
import os
import secrets
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from proxy import clock, record
from proxy._fastpath import Arena
from proxy._journal import RECORD_SPACE_MAX, SEGMENT_HEAD_BYTES, Malformed, Recovery, Segment, Slot, Slots, Writer, read
from proxy._journal import slots_bytes as slots_file_bytes
from proxy.bounds import COLUMNS
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
    "live_and_dead",
    "prune",
    "read_records",
    "recover",
]

log = logging.getLogger(__name__)

_NEW = ".new-"  # an epoch being made; only under the lock of places.lock
_GONE = ".gone-"  # an epoch being removed
_SEGMENT_NEW = ".new"
_SEGMENT_RETRY_SECONDS = 0.25  # between attempts to make a segment that the disk or `max_bytes` refuses
_MOVE_RETRY_SECONDS_MAX = 10  # between moves away from blocks that cannot be synced
_ZEROES = bytes(1 << 20)


class NoColumn(RuntimeError):
    """Every column is in use by a living epoch or one not yet recovered."""


class Damaged(Exception):
    """Records that were synced cannot be read. Go on at `resumes`."""

    def __init__(self, path: Path, first_seq: int, resumes: int) -> None:
        super().__init__(f"{path}: records {first_seq} to {resumes - 1} are damaged; {resumes} is the next to be had")
        self.path = path
        self.first_seq = first_seq
        self.resumes = resumes


@dataclass(frozen=True, slots=True)
class Batch:
    """Consecutive records: `last - first + 1` of them; `last` is `first - 1` when there is none."""

    first: int
    last: int
    records: list[bytes]


@dataclass(frozen=True, slots=True)
class EpochInfo:
    """One epoch as it lies on the disk. Seqs are 0 where there is no record; bytes are of its segments."""

    path: Path
    epoch: bytes
    column: int
    alive: bool
    recovered: bool
    first_seq: int
    last_seq: int
    synced_seq: int
    bytes: int
    oldest_us: int  # wall clock at which the oldest segment with records was begun; 0 without one


def _lock(fd: int, *, wait: bool) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    return True


@contextlib.contextmanager
def _places(directory: Path) -> Iterator[None]:
    """Serialises the claim of columns and the allocation of segments among the processes of one data directory."""
    fd = os.open(directory.parent / "places.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        _lock(fd, wait=True)
        yield
    finally:
        os.close(fd)


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _allocate(path: Path, size: int, *, fill: bool) -> int:
    """A new file with all its blocks, never sparse: a store into a mapped hole of a full disk is a SIGBUS."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.posix_fallocate(fd, 0, size)
        # Written zeroes spare each first store the conversion of an unwritten extent.
        for offset in range(0, size if fill else 0, len(_ZEROES)):
            os.pwrite(fd, memoryview(_ZEROES)[: size - offset], offset)
    except BaseException:
        os.close(fd)
        os.unlink(path)
        raise
    return fd


def _segment_path(path: Path, index: int) -> Path:
    return path / f"{index:08d}.seg"


def _make_segment(path: Path, epoch: bytes, index: int, size: int) -> Segment:
    """Complete before it has its name, so a reader never sees half a header."""
    final = _segment_path(path, index)
    temporary = final.with_suffix(_SEGMENT_NEW)
    segment = Segment(_allocate(temporary, size, fill=True), epoch, index)
    os.rename(temporary, final)
    return segment


def _segment_files(path: Path) -> list[Path]:
    return sorted(file for file in path.iterdir() if file.suffix == ".seg")


def journal_bytes(directory: Path) -> int:
    """Bytes of all segments of all epochs under `directory`."""
    total = 0
    for epoch in _epoch_paths(directory):
        with contextlib.suppress(FileNotFoundError):
            for entry in os.scandir(epoch):
                if entry.name.endswith((".seg", _SEGMENT_NEW)):
                    with contextlib.suppress(FileNotFoundError):
                        total += entry.stat().st_size
    return total


def _epoch_paths(directory: Path) -> list[Path]:
    return sorted(path for path in directory.iterdir() if len(path.name) == 32 and not path.name.startswith("."))


def _free_column(directory: Path) -> int:
    taken = set()
    for path in _epoch_paths(directory):
        with contextlib.suppress(FileNotFoundError):
            fd = os.open(path / "slots", os.O_RDONLY | os.O_CLOEXEC)
            try:
                slots = Slots(fd, writable=False)
                if not slots.recovered:
                    taken.add(slots.column)
            finally:
                os.close(fd)
    for column in range(COLUMNS):
        if column not in taken:
            return column
    raise NoColumn(
        f"{directory}: all {COLUMNS} columns are held by epochs alive or unrecovered: is the keeper running?"
    )


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
        with _places(directory), contextlib.ExitStack() as undo:
            column = _free_column(directory)
            making = directory / (_NEW + epoch.hex())
            making.mkdir(mode=0o700)
            lock_fd = _allocate(making / "slots", slots_file_bytes(slots), fill=True)
            undo.callback(os.close, lock_fd)
            _lock(lock_fd, wait=False)
            Slots.format(lock_fd, epoch, column, slots, segment_bytes, clock.wall_us())
            segment = _make_segment(making, epoch, 1, segment_bytes)
            _sync_directory(making)
            path = directory / epoch.hex()
            os.rename(making, path)
            _sync_directory(directory)
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
            os.close(self._lock_fd)
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
            with _places(self.path.parent):
                if counted and journal_bytes(self.path.parent) + size > self._max_bytes:
                    raise OSError(errno.EDQUOT, f"the journal has reached its max_bytes of {self._max_bytes}")
                segment = _make_segment(self.path, self.epoch, self.writer.last_index + 1, size)
            os.fsync(segment.fd)
            _sync_directory(self.path)
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


# --- the keeper's side ---


def _open_segments(path: Path, *, writable: bool) -> list[Segment]:
    """All segments in order. A file that is gone meanwhile was pruned, and is left out."""
    segments = []
    for file in _segment_files(path):
        with contextlib.suppress(FileNotFoundError):
            fd = os.open(file, (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC)
            segments.append(Segment(fd, writable=writable))
    return segments


def _sweep(directory: Path) -> None:
    """Removes what a killed creator or pruner left. The lock keeps it off epochs that are just being made."""
    leftovers = [path for path in directory.iterdir() if path.name.startswith((_NEW, _GONE))]
    if leftovers:
        with _places(directory):
            for path in leftovers:
                shutil.rmtree(path, ignore_errors=True)


def live_and_dead(directory: Path) -> list[EpochInfo]:
    """Every epoch under `directory`, in no order that means anything. Also sweeps what killed processes left."""
    if not directory.is_dir():
        return []
    _sweep(directory)
    found = []
    for path in _epoch_paths(directory):
        with contextlib.suppress(FileNotFoundError):
            found.append(_inspect(path))
    return found


def _inspect(path: Path) -> EpochInfo:
    fd = os.open(path / "slots", os.O_RDONLY | os.O_CLOEXEC)
    try:
        slots = Slots(fd, writable=False)
        # The lock first: `recovered` read while the owner may live would be out of date once it is free.
        alive = not _lock(fd, wait=False)
        segments = _open_segments(path, writable=False)
        used = [segment for segment in segments if segment.first_seq and segment.last_seq]
        return EpochInfo(
            path=path,
            epoch=slots.epoch,
            column=slots.column,
            alive=alive,
            recovered=slots.recovered,
            first_seq=used[0].first_seq if used else 0,
            last_seq=used[-1].last_seq if used else 0,
            synced_seq=max((segment.synced for segment in used), default=0),
            bytes=sum(os.fstat(segment.fd).st_size for segment in segments),
            oldest_us=used[0].started_us if used else 0,
        )
    finally:
        os.close(fd)


def recover(path: Path, arena: Arena, build: Callable[[Found], bytes]) -> int | None:
    """Finishes a dead epoch; returns the records of calls it added, or None when the epoch's owner lives.

    `build` makes the record of a call in flight (`record.rebuild`). A call that it refuses with BadRecord or any other
    Exception is kept as a wreck, which the flusher puts into quarantine: nothing is lost and nothing is held up.
    May be killed at any point and run again. OSError when the disk refuses; the epoch then stays unrecovered.
    """
    try:
        fd = os.open(path / "slots", os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return 0  # recovered by somebody else, and pruned
    try:
        if not _lock(fd, wait=False):
            return None
        recovery = Recovery(fd)
        if recovery.recovered:
            return 0
        return _recover(path, arena, build, recovery)
    finally:
        os.close(fd)


def _recover(path: Path, arena: Arena, build: Callable[[Found], bytes], recovery: Recovery) -> int:
    def build_or_keep(
        call: int, opened: bytes, sent: bytes | None, attempt: int, counters: tuple[int, ...], state: int
    ) -> bytes:
        found = Found(call, opened, sent, attempt, counters, state)
        try:
            return build(found)
        except MemoryError:
            raise
        except Exception as error:
            log.error("%s: the slot of call %d cannot be read and is kept as it is: %s", path, call, error)
            return record.encode_wreck(found)

    for leftover in path.glob(f"*{_SEGMENT_NEW}"):
        leftover.unlink()
    segments = _open_segments(path, writable=True)
    while not recovery.run(segments, build_or_keep):
        index = segments[-1].index + 1 if segments else 1
        segments.append(_make_segment(path, recovery.epoch, index, recovery.segment_bytes))
    if recovery.gaps:
        log.error("%s: records are damaged in %d places; the others are recovered", path, recovery.gaps)
    arena.overwrite_column(recovery.column)
    if not recovery.ended:
        recovery.end(record.encode_end(recovery.calls))
    for segment in segments:
        if segment.bad == 1:
            segment.touch()
        os.fdatasync(segment.fd)
        segment.mark_synced(recovery.seq)
    _sync_directory(path)
    recovery.mark_recovered()
    return recovery.added


def read_records(path: Path, first_seq: int, max_records: int, max_bytes: int) -> Batch:
    """Consecutive records from `first_seq` on, at most so many and so many payload bytes (one record always).

    Only what is on the disk, each checked by its CRC. Payloads are kind byte and msgpack (`record.decode`). Damaged
    when `first_seq` itself cannot be read: go on at its `resumes`.
    """
    segments = _open_segments(path, writable=False)
    until = max((segment.synced for segment in segments), default=0)
    if first_seq > until:
        return Batch(first_seq, first_seq - 1, [])
    # Segments that end before the first record wanted need no walk.
    while len(segments) > 1 and 0 < segments[1].first_seq <= first_seq:
        segments.pop(0)
    records, resumes = read(segments, bytes.fromhex(path.name), first_seq, until, max_records, max_bytes)
    if not records and resumes:
        raise Damaged(path, first_seq, resumes)
    return Batch(first_seq, first_seq + len(records) - 1, records)


def prune(path: Path, persisted_seq: int) -> int:
    """Removes what the database has: whole segments up to `persisted_seq`; returns the bytes freed.

    The segment with the last record stays while the epoch is not recovered, since recovery looks there for the call
    that was being closed. Once it is recovered and all is persisted, the directory goes.
    """
    try:
        info = _inspect(path)
    except FileNotFoundError:
        return 0
    if info.recovered and not info.alive and persisted_seq >= info.last_seq:
        gone = path.with_name(_GONE + path.name)
        os.rename(path, gone)
        shutil.rmtree(gone)
        return info.bytes
    files = _segment_files(path)
    freed = 0
    segments = _open_segments(path, writable=False)
    for file, segment, following in zip(files, segments, segments[1:], strict=False):
        if not following.last_seq or following.first_seq - 1 > persisted_seq:
            break
        freed += os.fstat(segment.fd).st_size
        file.unlink()
    return freed
