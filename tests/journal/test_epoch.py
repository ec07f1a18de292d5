"""The living side: slots, room, rotation, sync, the failing disk, the clean end."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import gc
import logging
import os
import threading
from pathlib import Path

import pytest

from proxy import bounds, clock, journal, record
from proxy._fastpath import Arena
from proxy._journal import RECORD_SPACE_MAX, SEGMENT_HEAD_BYTES, Segment, crc32c
from tests.journal.conftest import MakeEpoch, limits

COUNTERS = (1, 2, 3, 4, 5, 6, 7, 8, 1, 10, 200, 12, 1)


def opened(epoch: journal.Epoch, payload: bytes = b"opened", holds: tuple[int, ...] = ()) -> journal.Slot:
    slot = epoch.open(payload, holds)
    assert slot is not None
    return slot


def one_round(epoch: journal.Epoch) -> None:
    """Returns when the sync thread has begun and ended a round after this moment."""
    rounds = threading.Semaphore(0)
    epoch.on_sync(rounds.release)
    for _ in range(2):
        epoch.request_sync()
        assert rounds.acquire(timeout=100)


@pytest.mark.parametrize("portable", [False, True])
def test_crc_is_castagnolis(portable: bool) -> None:
    """The check values of RFC 3720, B.4, by the instruction and by the tables."""
    assert crc32c(b"123456789", portable) == 0xE3069283
    assert crc32c(bytes(32), portable) == 0x8A9136AA
    assert crc32c(b"\xff" * 32, portable) == 0x62A8AB43
    assert crc32c(bytes(range(32)), portable) == 0x46DD794E
    for size in range(70):
        data = os.urandom(size)
        assert crc32c(data) == crc32c(data, True), data.hex()


def test_a_call_from_open_to_close(make_epoch: MakeEpoch) -> None:
    """Calls are dense from 1, counters come back as they were noted, and records are dense in the order of closing."""
    epoch = make_epoch()
    first, second = opened(epoch), opened(epoch)
    assert (first.call, second.call) == (1, 2)
    first.sent(1, b"there")
    first.progress(*COUNTERS)
    assert first.counters() == COUNTERS
    assert second.counters() == (0,) * len(COUNTERS)
    assert (epoch.close(second, b"E2"), epoch.close(first, b"E1")) == (1, 2)
    assert (epoch.writer.open_slots, epoch.writer.calls, epoch.writer.seq) == (0, 2, 2)


def test_a_closed_handle_writes_nowhere(make_epoch: MakeEpoch) -> None:
    """A late write through a closed call's handle does not reach the call that has the slot now."""
    epoch = make_epoch(slots=1)
    late = opened(epoch)
    epoch.close(late, b"E")
    other = opened(epoch)
    other.progress(*COUNTERS)
    late.progress(*[9] * len(COUNTERS))
    late.sent(3, b"nowhere")
    assert other.counters() == COUNTERS
    assert late.closed
    with pytest.raises(ValueError, match="closed"):
        late.counters()
    with pytest.raises(ValueError, match="closed already"):
        epoch.close(late, b"E")
    epoch.close(other, b"E")


def test_a_handle_may_outlive_its_epoch(make_epoch: MakeEpoch) -> None:
    """A handle keeps the mapping it points into: no crash when a stream ends after its epoch's object is gone."""
    epoch = make_epoch()
    slot = opened(epoch)
    epoch.abandon()
    del epoch
    gc.collect()
    slot.progress(*COUNTERS)
    assert slot.counters() == COUNTERS


def test_sizes_are_checked_before_anything_changes(make_epoch: MakeEpoch) -> None:
    """What does not fit is refused with its bound, and the call can still be closed."""
    epoch = make_epoch()
    with pytest.raises(ValueError, match=str(bounds.OPENED_BYTES_MAX)):
        epoch.open(bytes(bounds.OPENED_BYTES_MAX + 1), ())
    with pytest.raises(ValueError, match="holds"):
        epoch.open(b"", (0,) * (bounds.HOLDS_PER_SLOT + 1))
    slot = opened(epoch, bytes(bounds.OPENED_BYTES_MAX))
    with pytest.raises(ValueError, match=str(bounds.SENT_BYTES_MAX)):
        slot.sent(1, bytes(bounds.SENT_BYTES_MAX + 1))
    with pytest.raises(ValueError, match=str(bounds.RECORD_BYTES_MAX)):
        epoch.close(slot, bytes(bounds.RECORD_BYTES_MAX + 1))
    with pytest.raises(ValueError, match="1 calls are open"):
        epoch.finish()
    assert epoch.close(slot, bytes(bounds.RECORD_BYTES_MAX)) == 1
    assert epoch.writer.calls == 1
    stranger = make_epoch()
    slot = opened(epoch)
    with pytest.raises(ValueError, match="another epoch"):
        stranger.close(slot, b"E")
    epoch.close(slot, b"E")


def test_close_drops_the_holds(make_epoch: MakeEpoch) -> None:
    """What admission took in the life's column falls at the close, by exactly one a hold."""
    epoch = make_epoch()
    limit = limits(epoch.arena)
    slots = []
    for _ in range(3):
        assert limit.acquire(clock.now_ns(), 0) == 0
        slots.append(opened(epoch, holds=limit.holds))
    for left, slot in zip((2, 1, 0), slots, strict=True):
        epoch.close(slot, b"E")
        assert [epoch.arena.used(cell) for cell in limit.holds] == [left, left]


def test_open_refuses_without_a_free_slot(make_epoch: MakeEpoch) -> None:
    """The slots are the bound on calls in flight; one that ends makes room for one."""
    epoch = make_epoch(slots=3)
    slots = [opened(epoch) for _ in range(3)]
    assert epoch.open(b"", ()) is None
    epoch.close(slots[0], b"E")
    assert epoch.open(b"", ()) is not None


def test_open_refuses_so_that_close_never_fails(make_epoch: MakeEpoch) -> None:
    """At `max_bytes` calls are refused while every open one still has room for the longest record, and for the end."""
    epoch = make_epoch(max_bytes=16384, slots=64)
    largest = bytes(bounds.RECORD_BYTES_MAX)
    closed = 0
    while slots := [slot for _ in range(3) if (slot := epoch.open(b"", ())) is not None]:
        for slot in slots:
            epoch.close(slot, largest)
        closed += len(slots)
    per_segment = (16384 - SEGMENT_HEAD_BYTES) // RECORD_SPACE_MAX
    assert closed == per_segment - 1
    epoch.finish()
    assert journal.read_records(epoch.path, 1, 100, 1 << 20).last == per_segment


def test_segments_rotate(make_epoch: MakeEpoch) -> None:
    """Spares are made ahead, records go on in them, and reading runs over all."""
    epoch = make_epoch(max_bytes=1 << 21)
    payloads = []
    for number in range(300):
        slot = epoch.open(b"", ())
        if slot is None:
            one_round(epoch)
            slot = opened(epoch)
        payloads.append(b"E" + number.to_bytes(4, "big") * (number % 100 + 1))
        epoch.close(slot, payloads[-1])
    one_round(epoch)
    assert len(list(epoch.path.glob("*.seg"))) > 5
    read: list[bytes] = []
    while batch := journal.read_records(epoch.path, len(read) + 1, 37, 1 << 20).records:
        read += batch
    assert read == payloads


def test_spares_are_allocated_and_counted(make_epoch: MakeEpoch, directory: Path) -> None:
    """The sync thread makes as many spares as all slots might need, never sparse, and never above `max_bytes`."""
    epoch = make_epoch(slots=64)
    one_round(epoch)
    per_segment = (16384 - SEGMENT_HEAD_BYTES) // RECORD_SPACE_MAX
    assert epoch.writer.spare_count == -(-66 // per_segment)
    for file in [*epoch.path.glob("*.seg"), epoch.path / "slots"]:
        assert file.stat().st_blocks * 512 >= file.stat().st_size, file
    tight = make_epoch(slots=64, max_bytes=journal.journal_bytes(directory) + 3 * 16384)
    one_round(tight)
    assert tight.writer.spare_count == 2


def test_a_refused_segment_is_said_once(make_epoch: MakeEpoch, caplog: pytest.LogCaptureFixture) -> None:
    """A journal at its `max_bytes` logs that once, not at every sync."""
    epoch = make_epoch(max_bytes=16384)
    epoch._segment_retry_ns = 0
    one_round(epoch)
    epoch._segment_retry_ns = 0
    one_round(epoch)
    assert [entry.message.count("max_bytes") for entry in caplog.records] == [1]


def test_sync_moves_the_mark(make_epoch: MakeEpoch) -> None:
    """What is closed becomes synced without being asked for, and an idle journal syncs nothing."""
    synced: list[int] = []

    def fdatasync(fd: int) -> None:
        synced.append(fd)
        os.fdatasync(fd)

    epoch = make_epoch(fdatasync=fdatasync)
    one_round(epoch)
    assert not synced
    seq = epoch.close(opened(epoch), b"E")
    one_round(epoch)
    assert epoch.synced_seq == seq
    assert len(synced) == 1
    one_round(epoch)
    assert len(synced) == 1


def test_strict_waits_for_the_disk(make_epoch: MakeEpoch) -> None:
    """`wait_synced` returns after the fdatasync that covers its record, and not before."""
    gate = threading.Event()
    entered = threading.Event()

    def fdatasync(fd: int) -> None:
        entered.set()
        assert gate.wait(100)
        os.fdatasync(fd)

    async def scenario() -> None:
        epoch = make_epoch(sync_ms=60_000, fdatasync=fdatasync)
        seq = epoch.close(opened(epoch), b"E")
        waiting = asyncio.create_task(epoch.wait_synced(seq))
        await asyncio.to_thread(entered.wait, 100)
        assert not waiting.done()
        assert epoch.synced_seq == 0
        gate.set()
        await asyncio.wait_for(waiting, 100)
        assert epoch.synced_seq == seq
        await epoch.wait_synced(seq)
        # A caller that gave up does not break the thread.
        seq = epoch.close(opened(epoch), b"E")
        gate.clear()
        gone = asyncio.create_task(epoch.wait_synced(seq))
        await asyncio.sleep(0)
        gone.cancel()
        gate.set()
        await epoch.wait_synced(seq)

    asyncio.run(scenario())


def test_a_failing_disk_moves_the_records(make_epoch: MakeEpoch, caplog: pytest.LogCaptureFixture) -> None:
    """After EIO nothing is admitted, the same fd is not trusted again, and every record ends synced elsewhere."""
    broken: set[int] = set()
    trusted_after_failure: list[int] = []

    def fdatasync(fd: int) -> None:
        inode = os.fstat(fd).st_ino
        if failing.is_set():
            broken.add(inode)
            raise OSError(errno.EIO, "the disk is broken")
        if inode in broken:
            trusted_after_failure.append(inode)
        os.fdatasync(fd)

    failing = threading.Event()
    epoch = make_epoch(fdatasync=fdatasync, sync_ms=60_000)
    one_round(epoch)
    early = [epoch.close(opened(epoch), b"E%d" % number) for number in range(5)]
    one_round(epoch)
    assert epoch.synced_seq == early[-1]
    still_open = opened(epoch)
    failing.set()
    for number in range(5, 12):
        epoch.close(opened(epoch), b"E%d" % number + bytes(1500))
    one_round(epoch)
    assert epoch.sync_failures >= 1
    assert epoch.open(b"", ()) is None
    assert epoch.synced_seq == early[-1]
    # A call that was open then can still end.
    assert epoch.close(still_open, b"E12") == 13
    failing.clear()
    epoch._move_retry_ns = 0
    one_round(epoch)
    one_round(epoch)
    assert epoch.synced_seq == 13
    assert not trusted_after_failure
    assert epoch.open(b"", ()) is not None
    batch = journal.read_records(epoch.path, 1, 100, 1 << 20)
    assert [payload.rstrip(b"\0") for payload in batch.records] == [b"E%d" % number for number in range(13)]
    assert any("moved" in entry.message for entry in caplog.records if entry.levelno == logging.ERROR)


def test_a_callback_that_fails_does_not_end_the_thread(make_epoch: MakeEpoch, caplog: pytest.LogCaptureFixture) -> None:
    """The sync thread survives what its guests raise, and says so."""
    epoch = make_epoch()
    failures = []

    def fail() -> None:
        if not failures:
            failures.append(1)
            raise RuntimeError("guest")

    epoch.on_sync(fail)
    epoch.request_sync()
    seq = epoch.close(opened(epoch), b"E")
    one_round(epoch)
    assert epoch.synced_seq == seq
    assert any("goes on" in entry.message for entry in caplog.records)


def test_a_clean_end(make_epoch: MakeEpoch, directory: Path, keeper_arena: Arena) -> None:
    """`finish` leaves an EpochEnd, everything synced, the word recovered, a free lock and an empty column."""
    epoch = make_epoch()
    epoch.close(opened(epoch), b"E")
    limit = limits(epoch.arena)
    assert limit.acquire(clock.now_ns(), 0) == 0
    assert keeper_arena.held_total() == 2
    epoch.finish()
    (info,) = journal.live_and_dead(directory)
    assert (info.alive, info.recovered, info.first_seq, info.last_seq, info.synced_seq) == (False, True, 1, 2, 2)
    payloads = journal.read_records(epoch.path, 1, 10, 1 << 20).records
    end = record.decode(payloads[-1])
    assert end == record.EpochEnd(1)
    assert keeper_arena.held_total() == 0


def test_columns_are_claimed(make_epoch: MakeEpoch, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each life has the lowest column that no living or unrecovered one has; without one, creating says why."""
    monkeypatch.setattr("proxy.epochs.COLUMNS", 3)
    first, second, third = make_epoch(), make_epoch(), make_epoch()
    assert [epoch.column for epoch in (first, second, third)] == [0, 1, 2]
    with pytest.raises(journal.NoColumn, match="keeper"):
        make_epoch()
    second.abandon()  # dead, not recovered: its column may still hold
    with pytest.raises(journal.NoColumn):
        make_epoch()
    third.finish()
    assert make_epoch().column == 2


def test_creating_that_fails_leaves_no_descriptor(
    make_epoch: MakeEpoch, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk at creation is an error that leaks nothing; what it left is swept by the next scan."""

    allocate = os.posix_fallocate

    def full(fd: int, offset: int, size: int) -> None:
        if size == 16384:
            raise OSError(errno.ENOSPC, "no space left")
        allocate(fd, offset, size)

    before = len(os.listdir("/proc/self/fd"))
    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", full)
        with pytest.raises(OSError, match="no space"):
            make_epoch()
    assert len(os.listdir("/proc/self/fd")) == before
    assert [path.name[:5] for path in directory.iterdir()] == [".new-"]
    assert journal.live_and_dead(directory) == []
    assert list(directory.iterdir()) == []


@pytest.mark.parametrize("changes", [{"slots": 0}, {"segment_bytes": 10000}, {"segment_bytes": 4096}])
def test_impossible_sizes_are_refused(make_epoch: MakeEpoch, changes: dict[str, int]) -> None:
    """Sizes that could not work are refused before anything is made."""
    with pytest.raises(ValueError, match="needed"):
        make_epoch(**changes)


def test_the_lock_and_the_descriptors(make_epoch: MakeEpoch) -> None:
    """The epoch is locked for life and no descriptor of it is inherited; ending closes them all."""
    gc.collect()  # what other tests left must not be closed in between
    before = len(os.listdir("/proc/self/fd"))
    epoch = make_epoch()
    one_round(epoch)
    opened_here = [
        int(fd)
        for fd in os.listdir("/proc/self/fd")
        if os.path.realpath(f"/proc/self/fd/{fd}").startswith(str(epoch.path))
    ]
    assert len(opened_here) >= 2
    assert all(fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC for fd in opened_here)
    with open(epoch.path / "slots", "rb") as other:
        with pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    epoch.finish()
    with open(epoch.path / "slots", "rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_foreign_file_is_no_segment(tmp_path: Path) -> None:
    """A file that only has the name, or another format, is refused with what it says."""
    path = tmp_path / "00000001.seg"
    path.write_bytes(b"x" * 16384)
    with pytest.raises(journal.Malformed, match="format"):
        Segment(os.open(path, os.O_RDWR))
    path.write_bytes(b"short")
    with pytest.raises(journal.Malformed, match="5 bytes"):
        Segment(os.open(path, os.O_RDWR))
