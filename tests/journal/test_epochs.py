"""Epochs on the disk: recovery, reading, damage, pruning."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import struct
from pathlib import Path

import msgspec
import pytest

from proxy import clock, journal, record
from proxy._fastpath import Arena
from proxy._journal import SEGMENT_HEAD_BYTES, SLOTS_HEAD_BYTES, Segment
from proxy.bounds import SLOT_BYTES
from proxy.call import EpochEnd, Sent, UsageEvent
from tests.journal.conftest import MakeEpoch, limits
from tests.journal.test_epoch import COUNTERS, one_round, opened
from tests.journal.test_record import OPENED

ALL = (1, 10_000, 1 << 30)


def dead_epoch(make_epoch: MakeEpoch, closed: int = 3, **changes: int) -> journal.Epoch:
    """One that died with `closed` calls closed, one only opened, and one sent and streaming."""
    epoch = make_epoch(**changes)
    limit = limits(epoch.arena)
    for number in range(closed):
        epoch.close(opened(epoch), b"E%03d" % number)
    for _ in range(2):
        assert limit.acquire(clock.now_ns(), 0) == 0
    opened(epoch, record.encode_opened(OPENED), limit.holds)
    streaming = opened(epoch, record.encode_opened(OPENED), limit.holds)
    streaming.sent(2, record.encode_sent(Sent("openai", "gpt-x")))
    streaming.progress(4, 400, 41, 0, 0, 0, 0, 0, 0, 55, 200, 11, 1)
    epoch.abandon()
    return epoch


def records_of(path: Path) -> list[bytes]:
    return journal.read_records(path, *ALL).records


def flip_bytes(path: Path, seq: int) -> None:
    """Damages the payload of record `seq`, found by its own text."""
    data = bytearray(path.read_bytes())
    at = data.index(b"E%03d" % (seq - 1))
    data[at] ^= 0xFF
    path.write_bytes(data)


def test_recovery_closes_what_was_open(make_epoch: MakeEpoch, directory: Path, keeper_arena: Arena) -> None:
    """A dead epoch ends with one crash row for each open call, its EpochEnd, nothing held, and a free column."""
    epoch = dead_epoch(make_epoch)
    assert keeper_arena.held_total() == 4
    (info,) = journal.live_and_dead(directory)
    assert (info.alive, info.recovered, info.column) == (False, False, 0)
    assert journal.recover(epoch.path, keeper_arena, record.rebuild) == 2
    events = [record.decode(payload) for payload in records_of(epoch.path)[3:]]
    waiting, streaming, end = sorted(events, key=lambda event: getattr(event, "call", 99))
    assert isinstance(waiting, UsageEvent)
    assert isinstance(streaming, UsageEvent)
    assert (waiting.call, waiting.termination, waiting.prompt_tokens, waiting.upstream) == (4, "crash", 0, "")
    assert (streaming.call, streaming.upstream, streaming.attempts, streaming.relayed_frames) == (5, "openai", 2, 4)
    assert (streaming.prompt_tokens, streaming.completion_tokens, streaming.source) == (12, 11, "estimated")
    assert end == EpochEnd(5)
    assert keeper_arena.held_total() == 0
    (info,) = journal.live_and_dead(directory)
    assert (info.recovered, info.last_seq, info.synced_seq) == (True, 6, 6)
    assert make_epoch().column == 0
    # Again, it has nothing to do.
    assert journal.recover(epoch.path, keeper_arena, record.rebuild) == 0
    assert len(records_of(epoch.path)) == 6


def test_a_living_epoch_is_left_alone(make_epoch: MakeEpoch, keeper_arena: Arena) -> None:
    """Whoever does not get the lock does nothing."""
    epoch = make_epoch()
    slot = opened(epoch)
    assert journal.recover(epoch.path, keeper_arena, record.rebuild) is None
    assert epoch.close(slot, b"E") == 1


def test_recovery_of_what_is_gone(directory: Path, make_epoch: MakeEpoch, keeper_arena: Arena) -> None:
    """An epoch that another keeper has recovered and pruned meanwhile is no error."""
    assert journal.recover(directory / ("0" * 32), keeper_arena, record.rebuild) == 0


@pytest.mark.parametrize("notes", [0, 1, 2])
def test_slots_of_the_version_before_are_recovered(make_epoch: MakeEpoch, keeper_arena: Arena, notes: int) -> None:
    """Slots whose counters were a word shorter are read by their own layout; their text is an estimate."""
    epoch = make_epoch()
    slot = opened(epoch, record.encode_opened(OPENED))
    slot.sent(2, record.encode_sent(Sent("openai", "gpt-x")))
    epoch.abandon()
    data = bytearray((epoch.path / "slots").read_bytes())
    struct.pack_into("<I", data, 8, 1)  # the format
    at = next(
        at
        for at in range(SLOTS_HEAD_BYTES, len(data), SLOT_BYTES)
        if struct.unpack_from("<QQ", data, at) == (2, slot.call)
    )
    old = (4, 400, 41, 0, 0, 0, 0, 0, 0, 55, 200)
    struct.pack_into("<Q", data, at + 16, notes)  # the flip word
    struct.pack_into(
        "<22Q", data, at + 40, *(old + (9,) * 11 if notes == 2 else (9,) * 11 + old if notes else (0,) * 22)
    )
    (epoch.path / "slots").write_bytes(data)
    found: list[journal.Found] = []

    def build(one: journal.Found) -> bytes:
        found.append(one)
        return record.rebuild(one)

    assert journal.recover(epoch.path, keeper_arena, build) == 1
    assert found[0].counters == ((*old, 11, 1) if notes else (*(0,) * 11, 0, 1))
    event = record.decode(records_of(epoch.path)[0])
    assert isinstance(event, UsageEvent)
    assert (event.completion_tokens, event.source, event.upstream) == (11 if notes else 0, "estimated", "openai")


def test_found_is_the_slot(make_epoch: MakeEpoch, keeper_arena: Arena) -> None:
    """The builder sees what the slot says: record, sent record, attempt, counters and state."""
    epoch = make_epoch()
    opened(epoch, b"only opened")
    slot = opened(epoch, b"")
    slot.sent(3, b"sent")
    slot.progress(*COUNTERS)
    epoch.abandon()
    found: list[journal.Found] = []

    def build(one: journal.Found) -> bytes:
        found.append(one)
        return b"E"

    assert journal.recover(epoch.path, keeper_arena, build) == 2
    assert sorted(found, key=lambda one: one.call) == [
        journal.Found(1, b"only opened", None, 0, (0,) * len(COUNTERS), 1),
        journal.Found(2, b"", b"sent", 3, COUNTERS, 2),
    ]


def test_a_slot_nobody_can_read_is_kept(
    make_epoch: MakeEpoch, keeper_arena: Arena, caplog: pytest.LogCaptureFixture
) -> None:
    """A call whose record does not decode becomes a wreck with all its bytes: not lost, and in nobody's way."""
    epoch = make_epoch()
    opened(epoch, b"\xc1 no msgpack")
    opened(epoch, record.encode_opened(OPENED))
    epoch.abandon()
    assert journal.recover(epoch.path, keeper_arena, record.rebuild) == 2
    payloads = records_of(epoch.path)
    assert sorted(payload[:1] for payload in payloads) == [b"E", b"W", b"Z"]
    (wreck,) = (payload for payload in payloads if payload[:1] == record.WRECK)
    assert msgspec.msgpack.decode(wreck[1:])[4] == b"\xc1 no msgpack"
    assert any("call 1" in entry.message for entry in caplog.records)


def test_a_builder_that_is_interrupted_loses_nothing(make_epoch: MakeEpoch, keeper_arena: Arena) -> None:
    """An interrupt in the middle of a recovery comes through; the next run does the rest, once."""
    epoch = dead_epoch(make_epoch)
    calls: list[int] = []

    def build(found: journal.Found) -> bytes:
        calls.append(found.call)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return record.rebuild(found)

    with pytest.raises(KeyboardInterrupt):
        journal.recover(epoch.path, keeper_arena, build)
    assert journal.recover(epoch.path, keeper_arena, build) == 1
    assert len(calls) == 3
    assert len(set(records_of(epoch.path))) == 6


def test_a_torn_tail_is_cut(make_epoch: MakeEpoch, keeper_arena: Arena) -> None:
    """Half a record at the end is no damage: it is cut, and what recovery adds stands in its place."""
    epoch = dead_epoch(make_epoch)
    segment = epoch.path / "00000001.seg"
    data = bytearray(segment.read_bytes())
    end = data.index(b"E002") + 8
    data[end : end + 200] = os.urandom(200)
    segment.write_bytes(data)
    assert journal.recover(epoch.path, keeper_arena, record.rebuild) == 2
    payloads = records_of(epoch.path)
    assert len(payloads) == 6
    assert payloads[:3] == [b"E000", b"E001", b"E002"]


def test_damage_in_the_middle_is_an_alarm(
    make_epoch: MakeEpoch, keeper_arena: Arena, caplog: pytest.LogCaptureFixture
) -> None:
    """A record that has rotted is reported, with the place to go on; those around it are recovered and read."""
    epoch = dead_epoch(make_epoch, closed=10)
    flip_bytes(epoch.path / "00000001.seg", 4)
    assert journal.recover(epoch.path, keeper_arena, record.rebuild) == 2
    assert any("damaged" in entry.message for entry in caplog.records if entry.levelno == logging.ERROR)
    batch = journal.read_records(epoch.path, *ALL)
    assert (batch.first, batch.last, batch.records) == (1, 3, [b"E000", b"E001", b"E002"])
    with pytest.raises(journal.Damaged) as damaged:
        journal.read_records(epoch.path, 4, 100, 1 << 20)
    assert damaged.value.resumes == 5
    batch = journal.read_records(epoch.path, 5, 100, 1 << 20)
    assert (batch.first, batch.last, batch.records[0]) == (5, 13, b"E004")


@pytest.mark.parametrize("size", [24, 4000, 16384])
def test_damage_of_any_size_is_passed(make_epoch: MakeEpoch, keeper_arena: Arena, size: int) -> None:
    """A zeroed stretch of a segment, even all of it, costs what it covered and no more."""
    epoch = make_epoch()
    for number in range(60):
        epoch.close(opened(epoch), b"E%03d" % number + b"x" * 600)
        if number % 20 == 0:
            one_round(epoch)
    epoch.abandon()
    segment = epoch.path / "00000002.seg"
    data = bytearray(segment.read_bytes())
    at = 1000 if size < len(data) else 0
    data[at : at + size] = bytes(size)
    segment.write_bytes(data)
    journal.recover(epoch.path, keeper_arena, record.rebuild)
    read: dict[bytes, int] = {}
    lost = 0
    seq = 1
    while seq <= 61:
        try:
            batch = journal.read_records(epoch.path, seq, 7, 1 << 20)
        except journal.Damaged as damaged:
            lost += damaged.resumes - seq
            seq = damaged.resumes
            continue
        for number, payload in enumerate(batch.records, seq):
            read[payload[:4]] = number
        seq = batch.last + 1
    assert all(read[name] == int(name[1:]) + 1 for name in read if name[:1] == b"E")
    assert len(read) + lost == 61
    assert 0 < lost <= size // 600 + 2


def test_a_lost_header_is_mended(make_epoch: MakeEpoch, keeper_arena: Arena) -> None:
    """A segment whose header is gone still gives up its records: they carry their own proof."""
    epoch = dead_epoch(make_epoch)
    segment = epoch.path / "00000001.seg"
    data = bytearray(segment.read_bytes())
    data[:SEGMENT_HEAD_BYTES] = bytes(SEGMENT_HEAD_BYTES)
    segment.write_bytes(data)
    assert journal.read_records(epoch.path, *ALL).records == []
    assert journal.recover(epoch.path, keeper_arena, record.rebuild) == 2
    assert len(records_of(epoch.path)) == 6


def test_payloads_cannot_pose_as_records(make_epoch: MakeEpoch, keeper_arena: Arena) -> None:
    """A client's bytes that look like a record of another epoch are not taken for one when their own record rots."""
    source = make_epoch()
    for number in range(3):
        source.close(opened(source), b"Eforged%d" % number)
    source.abandon()
    forged = (source.path / "00000001.seg").read_bytes()[SEGMENT_HEAD_BYTES : SEGMENT_HEAD_BYTES + 120]
    assert forged.count(b"Eforged") == 3
    epoch = make_epoch()
    epoch.close(opened(epoch), b"E000" + bytes(4) + forged)
    epoch.close(opened(epoch), b"E001")
    epoch.abandon()
    flip_bytes(epoch.path / "00000001.seg", 1)
    journal.recover(epoch.path, keeper_arena, record.rebuild)
    with pytest.raises(journal.Damaged) as damaged:
        journal.read_records(epoch.path, *ALL)
    assert damaged.value.resumes == 2
    assert journal.read_records(epoch.path, 2, 10, 1 << 20).records[0] == b"E001"


def test_only_synced_records_are_read(make_epoch: MakeEpoch) -> None:
    """What is closed but not on the disk is not shipped."""
    epoch = make_epoch(sync_ms=60_000)
    one_round(epoch)
    epoch.close(opened(epoch), b"E000")
    one_round(epoch)
    epoch.close(opened(epoch), b"E001")
    batch = journal.read_records(epoch.path, *ALL)
    assert (batch.first, batch.last, batch.records) == (1, 1, [b"E000"])
    batch = journal.read_records(epoch.path, 2, 10, 1 << 20)
    assert (batch.first, batch.last, batch.records) == (2, 1, [])


def test_batches_are_bounded(make_epoch: MakeEpoch) -> None:
    """A batch ends at its number of records or bytes; one record is always given, however large."""
    epoch = make_epoch()
    for number in range(10):
        epoch.close(opened(epoch), b"E%03d" % number + bytes(96))
    one_round(epoch)
    assert len(journal.read_records(epoch.path, 1, 4, 1 << 20).records) == 4
    assert len(journal.read_records(epoch.path, 1, 100, 250).records) == 2
    assert journal.read_records(epoch.path, 5, 100, 1).records == [b"E004" + bytes(96)]
    assert journal.read_records(epoch.path, 9, 100, 1 << 20).last == 10


def test_pruning_keeps_what_is_needed(make_epoch: MakeEpoch, directory: Path, keeper_arena: Arena) -> None:
    """Whole persisted segments go, the last with records stays while the epoch lives, and at last the directory."""
    epoch = make_epoch()
    for number in range(60):
        epoch.close(opened(epoch), b"E%03d" % number + b"x" * 600)
        if number % 20 == 0:
            one_round(epoch)
    one_round(epoch)
    before = journal.journal_bytes(directory)
    assert journal.prune(epoch.path, 10) == 0
    freed = journal.prune(epoch.path, 60)
    assert freed == 2 * 16384
    assert journal.journal_bytes(directory) == before - freed
    (info,) = journal.live_and_dead(directory)
    assert 1 < info.first_seq <= 60 == info.last_seq
    # What was pruned cannot be read; what follows can.
    with pytest.raises(journal.Damaged) as damaged:
        journal.read_records(epoch.path, *ALL)
    assert damaged.value.resumes == info.first_seq
    assert journal.read_records(epoch.path, info.first_seq, 100, 1 << 20).last == 60
    opened(epoch)
    epoch.abandon()
    assert journal.prune(epoch.path, 60) == 0
    journal.recover(epoch.path, keeper_arena, lambda found: b"E")
    assert journal.prune(epoch.path, 61) == 0
    assert journal.prune(epoch.path, 62) > 0
    assert list(directory.iterdir()) == []
    assert journal.prune(epoch.path, 62) == 0


def test_a_scan_beside_a_pruner_disturbs_nobody(
    make_epoch: MakeEpoch, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that comes to life sweeps what the keeper is just removing: no error, and the directory is gone."""
    epoch = make_epoch()
    epoch.close(opened(epoch), b"E")
    epoch.finish()
    rename = os.rename

    def overtaken(old: Path, new: Path) -> None:
        rename(old, new)
        assert journal.live_and_dead(directory) == []
        assert not new.exists()

    monkeypatch.setattr(os, "rename", overtaken)
    assert journal.prune(epoch.path, 2) > 0
    assert list(directory.iterdir()) == []


def test_the_scan_sweeps_what_killed_processes_left(make_epoch: MakeEpoch, directory: Path) -> None:
    """Half-made and half-removed epochs go; a file that is no epoch does not disturb."""
    epoch = make_epoch()
    one_round(epoch)  # it has its spares: a scan leaves everything alone while somebody allocates
    for name in (".new-" + "ab" * 16, ".gone-" + "cd" * 16):
        (directory / name).mkdir()
        (directory / name / "slots").write_bytes(b"")
    (directory / "README").write_text("not ours")
    assert [info.path for info in journal.live_and_dead(directory)] == [epoch.path]
    assert sorted(path.name for path in directory.iterdir()) == sorted(["README", epoch.path.name])


def test_an_epoch_being_made_is_not_swept(make_epoch: MakeEpoch, directory: Path) -> None:
    """While somebody creates, under the lock, the scan leaves the directory he is making alone, and does not wait."""
    make_epoch().abandon()
    making = directory / (".new-" + "ab" * 16)
    making.mkdir()
    with open(directory.parent / "places.lock", "r+b") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert len(journal.live_and_dead(directory)) == 1
        assert making.exists()
    journal.live_and_dead(directory)
    assert not making.exists()


def test_an_unreadable_epoch_is_left_and_said(
    make_epoch: MakeEpoch, directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A slots file of another format stops neither the scan nor the next worker, and is not touched."""
    epoch = make_epoch()
    epoch.abandon()
    data = bytearray((epoch.path / "slots").read_bytes())
    data[8] = 99
    (epoch.path / "slots").write_bytes(data)
    assert journal.live_and_dead(directory) == []
    assert any("format 99" in entry.message for entry in caplog.records)
    make_epoch()
    assert (epoch.path / "slots").read_bytes() == data


def test_no_journal_yet(tmp_path: Path) -> None:
    """A data directory without a journal has no epochs."""
    assert journal.live_and_dead(tmp_path / "journal") == []


def test_recovery_makes_room_when_there_is_none(make_epoch: MakeEpoch, keeper_arena: Arena) -> None:
    """Even when its last segments are lost, recovery writes every open call: it makes a segment of its own."""
    epoch = make_epoch()
    one_round(epoch)
    for _ in range(30):
        opened(epoch, record.encode_opened(OPENED))
    one_round(epoch)
    epoch.abandon()
    for file in epoch.path.glob("*.seg"):
        file.unlink()
    assert journal.recover(epoch.path, keeper_arena, lambda found: b"E" + bytes(2000)) == 30
    assert journal.read_records(epoch.path, *ALL).last == 31


def test_a_disk_that_refuses_recovery(
    make_epoch: MakeEpoch, directory: Path, keeper_arena: Arena, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the recoverer's fdatasync fails the epoch stays unrecovered, and a later run ends it without doubles."""
    epoch = dead_epoch(make_epoch)

    def refuse(fd: int) -> None:
        raise OSError(errno.EIO, "broken")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", refuse)
        with pytest.raises(OSError, match="broken"):
            journal.recover(epoch.path, keeper_arena, record.rebuild)
    (info,) = journal.live_and_dead(directory)
    assert not info.recovered
    assert journal.recover(epoch.path, keeper_arena, record.rebuild) == 0
    assert len(set(records_of(epoch.path))) == 6


def test_what_a_failed_sync_left_is_written_again(
    make_epoch: MakeEpoch, keeper_arena: Arena, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that died between its failed fdatasync and the move: recovery makes the pages dirty before it syncs."""
    refused: list[int] = []

    def fdatasync(fd: int) -> None:
        refused.append(fd)
        raise OSError(errno.EIO, "broken")

    epoch = make_epoch(fdatasync=fdatasync, sync_ms=60_000, max_bytes=16384)
    monkeypatch.setattr("proxy.journal.make_segment", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
    epoch.close(opened(epoch), b"E000")
    one_round(epoch)
    assert len(refused) == 1  # never asked again on the same pages
    with pytest.raises(OSError, match="recovery"):
        epoch.finish()
    touched: list[int] = []

    class Watched(Segment):
        def touch(self) -> None:
            touched.append(self.index)
            super().touch()

    monkeypatch.setattr("proxy.epochs.Segment", Watched)
    assert journal.recover(epoch.path, keeper_arena, record.rebuild) == 0
    assert touched == [1]
    assert records_of(epoch.path)[0] == b"E000"
