"""Lives of the journal in small files, with damage to any byte of them between death and recovery.

Whatever a disk gives back, opening, recovering and reading end: with records, with `Damaged`, or with `Malformed`.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import shutil
import tempfile
import time
from pathlib import Path

from proxy import clock, journal, record
from proxy._fastpath import Arena
from proxy._journal import Malformed


def live(directory: Path, chance: random.Random) -> journal.Epoch:
    """A worker's life with every kind of step, ended as by a kill."""
    epoch = journal.Epoch.create(
        directory / "journal", str(directory / "arena"), clock.boot_id(),
        slots=12, segment_bytes=12288, max_bytes=1 << 18, sync_ms=1,
    )  # fmt: skip
    while epoch.writer.spare_count < 3:
        time.sleep(0.001)
    slots: list[journal.Slot] = []
    for _ in range(chance.randrange(200)):
        step = chance.random()
        if step < 0.4:
            slot = epoch.open(chance.randbytes(chance.randrange(641)), tuple(range(chance.randrange(7))))
            if slot is not None:
                slots.append(slot)
        elif slots and step < 0.6:
            chance.choice(slots).progress(*(chance.getrandbits(64) for _ in range(13)))
        elif slots and step < 0.7:
            chance.choice(slots).sent(chance.getrandbits(32), chance.randbytes(chance.randrange(97)))
        elif slots:
            slot = slots.pop(chance.randrange(len(slots)))
            epoch.close(slot, b"E" + chance.randbytes(chance.randrange(2048)))
            slot.progress(*[0] * 13)
    for slot in slots:
        slot.counters()
    epoch.abandon()
    return epoch


def damage(path: Path, chance: random.Random) -> None:
    """Overwrites a stretch, flips bytes, or cuts a file."""
    file = chance.choice(list(path.iterdir()))
    data = bytearray(file.read_bytes())
    kind = chance.random()
    if kind < 0.5:
        for _ in range(chance.randrange(1, 20)):
            data[chance.randrange(chance.choice((160, len(data))))] = chance.randrange(256)
    elif kind < 0.9:
        at = chance.randrange(len(data))
        size = min(chance.randrange(1, 4000), len(data) - at)
        data[at : at + size] = chance.choice((bytes(size), b"\xff" * size, chance.randbytes(size)))
    else:
        del data[chance.randrange(len(data)) :]
    file.write_bytes(data)


def read_all(path: Path) -> int:
    seq, found = 1, 0
    for _ in range(1000):
        try:
            batch = journal.read_records(path, seq, 20, 4096)
        except journal.Damaged as damaged:
            if damaged.resumes <= seq:
                raise AssertionError("reading does not go on") from damaged
            seq = damaged.resumes
            continue
        if not batch.records:
            return found
        found += len(batch.records)
        seq = batch.last + 1
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--seed", type=int, default=1)
    chosen = parser.parse_args()
    chance = random.Random(chosen.seed)
    end = clock.now_ns() + int(chosen.seconds * 1e9)
    lives = records = refused = 0
    while clock.now_ns() < end:
        directory = Path(tempfile.mkdtemp(prefix="weir-journal-"))
        try:
            epoch = live(directory, chance)
            for _ in range(chance.randrange(4)):
                damage(epoch.path, chance)
            arena = Arena(str(directory / "arena"), clock.boot_id())
            with contextlib.closing(arena):
                try:
                    journal.recover(epoch.path, arena, record.rebuild)
                except (Malformed, ValueError, OSError, IndexError):
                    refused += 1
            records += read_all(epoch.path)
            for info in journal.live_and_dead(directory / "journal"):
                journal.prune(info.path, chance.randrange(info.last_seq + 2))
        finally:
            shutil.rmtree(directory)
        lives += 1
    assert lives > 0
    assert records > 0
    print(f"{lives} lives, {records} records read, {refused} recoveries refused")


if __name__ == "__main__":
    main()
