"""Epochs on the disk: their layout, and what the keeper does with them: find, recover, read, prune.

One epoch is one directory, `<journal>/<32 hex digits>/{slots, 00000001.seg, ...}`. Its worker holds a flock on `slots`
for life; whoever gets that lock of an epoch without the word `recovered` recovers it. Creating goes through a temporary
name, so nobody ever sees half an epoch. `journal.py` has the living side and re-exports this one.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from proxy import record
from proxy._fastpath import Arena
from proxy._journal import Malformed, Recovery, Segment, Slots, read, span
from proxy.bounds import COLUMNS
from proxy.record import Found

log = logging.getLogger(__name__)

NEW = ".new-"  # an epoch being made; only under the lock of places.lock
_GONE = ".gone-"  # an epoch being removed
_SEGMENT_NEW = ".new"
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


def lock(fd: int, *, wait: bool = False, shared: bool = False) -> bool:
    """A flock, held until the descriptor is closed; False when another process has it."""
    try:
        fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    return True


def unlock(fd: int) -> None:
    """Drops the lock and closes the descriptor. Closing alone would not do: a mapping keeps the open file, and with it
    the lock."""
    fcntl.flock(fd, fcntl.LOCK_UN)
    os.close(fd)


@contextlib.contextmanager
def places(directory: Path, *, wait: bool = True) -> Iterator[bool]:
    """Serialises the claim of columns and the allocation of segments among the processes of one data directory.

    Without `wait` it yields False when another process is at it.
    """
    fd = os.open(directory.parent / "places.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        yield lock(fd, wait=wait)
    finally:
        os.close(fd)


def sync_directory(path: Path) -> None:
    """Makes the names in `path` outlive a power cut."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def allocate(path: Path, size: int, *, fill: bool) -> int:
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


def make_segment(path: Path, epoch: bytes, index: int, size: int) -> Segment:
    """Complete before it has its name, so a reader never sees half a header."""
    final = _segment_path(path, index)
    temporary = final.with_suffix(_SEGMENT_NEW)
    segment = Segment(allocate(temporary, size, fill=True), epoch, index)
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


def free_column(directory: Path) -> int:
    """The lowest column that no living or unrecovered epoch uses. Raises NoColumn; under `places`."""
    taken = set()
    for path in _epoch_paths(directory):
        with contextlib.suppress(FileNotFoundError, Malformed):
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


def _open_segments(path: Path) -> list[Segment]:
    """All segments in order, for reading. Left out is what was pruned meanwhile, and what has no header: nothing in it
    can have been synced, or recovery will mend it."""
    segments = []
    for file in _segment_files(path):
        with contextlib.suppress(FileNotFoundError, Malformed):
            fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
            segments.append(Segment(fd, index=int(file.stem), writable=False))
    return segments


def _mend_segments(path: Path, epoch: bytes) -> list[Segment]:
    """All segments in order, for recovery: a header that a power cut or damage took is made anew."""
    for leftover in path.glob(f"*{_SEGMENT_NEW}"):
        leftover.unlink()
    return [
        Segment(os.open(file, os.O_RDWR | os.O_CLOEXEC), epoch, int(file.stem), mend=True)
        for file in _segment_files(path)
    ]


def _sweep(directory: Path) -> None:
    """Removes what a killed creator or pruner left. The lock keeps it off epochs that are just being made."""
    leftovers = [path for path in directory.iterdir() if path.name.startswith((NEW, _GONE))]
    if not leftovers:
        return
    with places(directory, wait=False) as ours:
        for path in leftovers if ours else ():
            shutil.rmtree(path, ignore_errors=True)


def live_and_dead(directory: Path) -> list[EpochInfo]:
    """Every epoch under `directory`, in no order that means anything. Also sweeps what killed processes left."""
    if not directory.is_dir():
        return []
    _sweep(directory)
    found = []
    for path in _epoch_paths(directory):
        try:
            found.append(_inspect(path))
        except FileNotFoundError:
            pass  # pruned meanwhile
        except Malformed as error:
            log.error("%s: cannot be read and is left alone: %s", path, error)
    return found


def _inspect(path: Path) -> EpochInfo:
    fd = os.open(path / "slots", os.O_RDONLY | os.O_CLOEXEC)
    try:
        slots = Slots(fd, writable=False)
        # The lock first: `recovered` read while the owner may live would be out of date once it is free.
        alive = not lock(fd, shared=True)
        segments = _open_segments(path)
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
        unlock(fd)


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
        if not lock(fd):
            return None
        recovery = Recovery(fd)
        if recovery.recovered:
            return 0
        return _recover(path, arena, build, recovery)
    finally:
        unlock(fd)


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

    segments = _mend_segments(path, recovery.epoch)
    while not recovery.run(segments, build_or_keep):
        index = segments[-1].index + 1 if segments else 1
        segments.append(make_segment(path, recovery.epoch, index, recovery.segment_bytes))
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
    sync_directory(path)
    recovery.mark_recovered()
    return recovery.added


def _first_of(segments: list[Segment], epoch: bytes) -> int:
    """Seq of the first record in `segments`, 0 without one. A spare says so in its header and is not searched."""
    return span(segments, epoch, whole=False)[0] if segments[0].first_seq else 0


def read_records(path: Path, first_seq: int, max_records: int, max_bytes: int) -> Batch:
    """Consecutive records from `first_seq` on, at most so many and so many payload bytes (one record always).

    Only what is on the disk, each checked by its CRC. Payloads are kind byte and msgpack (`record.decode`). Damaged
    when `first_seq` itself cannot be read: go on at its `resumes`.
    """
    segments = _open_segments(path)
    until = max((segment.synced for segment in segments), default=0)
    if first_seq > until:
        return Batch(first_seq, first_seq - 1, [])
    epoch = bytes.fromhex(path.name)
    # Segments that end before the first record wanted need no walk.
    while len(segments) > 1 and 0 < _first_of(segments[1:], epoch) <= first_seq:
        segments.pop(0)
    records, resumes = read(segments, epoch, first_seq, until, max_records, max_bytes)
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
    segments = _open_segments(path)
    ended = info.recovered and not info.alive and persisted_seq >= info.last_seq
    # Headers are hints; what is thrown away is decided by the records themselves.
    if ended and persisted_seq >= span(segments, info.epoch)[1]:
        gone = path.with_name(_GONE + path.name)
        os.rename(path, gone)
        # Whoever scans in this moment sweeps it too, and what none of us can remove the next scan finds again.
        shutil.rmtree(gone, ignore_errors=True)
        return info.bytes
    freed = 0
    for number, segment in enumerate(segments[:-1]):
        following = _first_of(segments[number + 1 :], info.epoch)
        if not following or following - 1 > persisted_seq:
            break
        freed += os.fstat(segment.fd).st_size
        _segment_path(path, segment.index).unlink()
    return freed
