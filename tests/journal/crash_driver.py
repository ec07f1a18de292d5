"""Lives and deaths of whole epochs: real processes, real files, `Epoch` and `recover` as the product calls them.

    python -m tests.journal.crash_driver DIRECTORY LIVES SEED

A child lives on the journal while it says in a shared oracle what it does; it is killed at a random moment, then so are
some of its recoverers. Prints one JSON object: facts, and faults (empty when all is well).
"""

from __future__ import annotations

import json
import mmap
import os
import random
import signal
import sys
import time
from collections import Counter
from pathlib import Path

from proxy import clock, journal, record
from proxy._fastpath import CONCURRENCY, Arena, Limits
from proxy.call import EpochEnd, Opened, Outcome, Progress, Sent, UsageEvent

CALLS_MAX = 20_000
READY, BEGUN, OPENED, NOTED, CLOSING, CLOSED, ROW = 0, 0, 1, 2, 3, 4, 5  # words of a call's row; READY is in row 0
WORKERS = 2
OPENED_RECORD = Opened(
    "acme", "k1", "", (), "", "chat.completions", "m", True, 5, "estimated", 1, 1_000_000, 1, 1_000_000, "v1"
)
SENT_RECORD = Sent("up", "m")


def live(directory: Path, oracle: memoryview, seed: int) -> None:
    """A worker's life: opens, notes and closes calls until it is killed."""
    chance = random.Random(seed)
    epoch = journal.Epoch.create(
        directory / "journal", str(directory / "arena"), clock.boot_id(),
        slots=24, segment_bytes=16384, max_bytes=1 << 26, sync_ms=2,
    )  # fmt: skip
    limits = Limits(epoch.arena, [(CONCURRENCY, b"tenant/acme", 1000, 0), (CONCURRENCY, b"key/k1", 1000, 0)])
    opened = record.encode_opened(OPENED_RECORD)
    slots: list[journal.Slot] = []
    oracle[READY] = 1
    while True:
        kind = chance.random()
        if kind < 0.2 and len(slots) < 20:
            call = epoch.writer.calls + 1
            if call >= CALLS_MAX:
                signal.pause()
            assert limits.acquire(clock.now_ns(), 0) == 0
            oracle[call * ROW + BEGUN] = 1
            slot = epoch.open(opened, limits.holds)
            if slot is None:
                oracle[call * ROW + BEGUN] = 0
                limits.refund(clock.now_ns(), 0)
                epoch.request_sync()
                time.sleep(0.001)
                continue
            oracle[call * ROW + OPENED] = 1
            slot.sent(1, record.encode_sent(SENT_RECORD))
            slots.append(slot)
        elif kind < 0.8 and slots:
            slot = chance.choice(slots)
            frames = oracle[slot.call * ROW + NOTED] + 1
            oracle[slot.call * ROW + NOTED] = frames
            slot.progress(frames, frames * 10, frames * 8, 0, 0, 0, 0, 0, 0, 1, 200, frames, 0)
        elif slots:
            slot = slots.pop(chance.randrange(len(slots)))
            oracle[slot.call * ROW + CLOSING] = 1
            outcome = Outcome("complete", 200, Progress(*slot.counters()), attempts=1)
            event = record.settle(slot.call, OPENED_RECORD, SENT_RECORD, outcome, 1, 2)
            epoch.close(slot, record.encode(event))
            oracle[slot.call * ROW + CLOSED] = 1


def fork(work: object, *arguments: object) -> int:
    pid = os.fork()
    if pid == 0:
        try:
            assert callable(work)
            work(*arguments)
        except BaseException:
            import traceback

            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return pid


def recover(directory: Path, path: Path) -> None:
    arena = Arena(str(directory / "arena"), clock.boot_id())
    journal.recover(path, arena, record.rebuild)
    arena.close()


def check(info: journal.EpochInfo, oracle: memoryview, faults: Counter[str], facts: Counter[str]) -> None:
    """Each call that was opened has one row that says what the oracle says."""
    rows: Counter[int] = Counter()
    seq, ends = 1, []
    while batch := journal.read_records(info.path, seq, 500, 1 << 20).records:
        seq += len(batch)
        for payload in batch:
            event = record.decode(payload)
            if isinstance(event, EpochEnd):
                ends.append(event.calls)
                continue
            assert isinstance(event, UsageEvent)
            rows[event.call] += 1
            facts[event.termination] += 1
            noted, closing, closed = (oracle[event.call * ROW + word] for word in (NOTED, CLOSING, CLOSED))
            faults["ghost"] += not oracle[event.call * ROW + BEGUN]
            crash = event.termination == "crash"
            faults["crash of a closed call"] += crash and bool(closed)
            faults["end of an open call"] += not crash and not closing
            faults["frames"] += event.relayed_frames not in ((noted - 1, noted) if crash else (noted,))
            faults["torn"] += event.relayed_bytes != event.relayed_frames * 10
            faults["tokens"] += event.relayed_frames > 0 and event.completion_tokens != event.relayed_frames
    faults["missing"] += sum(1 for call in range(1, CALLS_MAX) if oracle[call * ROW + OPENED] and not rows[call])
    faults["double"] += sum(count - 1 for count in rows.values())
    faults["end"] += ends != [len(rows)]
    facts["records"] += seq - 1


def main(directory: Path, lives: int, seed: int) -> None:
    chance = random.Random(seed)
    facts: Counter[str] = Counter()
    faults: Counter[str] = Counter()
    oracles = [memoryview(mmap.mmap(-1, CALLS_MAX * ROW * 8)).cast("Q") for _ in range(WORKERS)]
    observer = Arena(str(directory / "arena"), clock.boot_id())
    for _ in range(lives):
        pids = []
        for oracle in oracles:
            oracle[: len(oracle)] = memoryview(bytes(len(oracle) * 8)).cast("Q")
            before = {info.path for info in journal.live_and_dead(directory / "journal")}
            pids.append(fork(live, directory, oracle, chance.getrandbits(32)))
            deadline = clock.now_ns() + 30 * 10**9
            while not oracle[READY] and clock.now_ns() < deadline:
                time.sleep(0.0005)
            assert oracle[READY], "a worker did not come to life"
            facts["lives"] += 1
            assert len(before) == len(pids) - 1
        infos = sorted(journal.live_and_dead(directory / "journal"), key=lambda info: info.column)
        assert [info.column for info in infos] == list(range(WORKERS))
        for pid, info, oracle in zip(pids, infos, oracles, strict=True):
            faults["recovered alive"] += journal.recover(info.path, observer, record.rebuild) is not None
            time.sleep(chance.random() * chance.choice((0.002, 0.02, 0.06)))
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            facts["in flight or held at death"] += observer.held_total() > 0
            for attempt in range(100):
                recoverers = [fork(recover, directory, info.path) for _ in range(2)]
                if attempt < 3:
                    time.sleep(chance.random() * 0.006)
                    os.kill(recoverers[0], signal.SIGKILL)
                for recoverer in recoverers:
                    status = os.waitpid(recoverer, 0)[1]
                    facts["recoverers killed"] += os.WIFSIGNALED(status)
                    faults["recoverer failed"] += os.WIFEXITED(status) and os.WEXITSTATUS(status) != 0
                (now,) = (one for one in journal.live_and_dead(directory / "journal") if one.path == info.path)
                if now.recovered:
                    break
            check(info, oracle, faults, facts)
        faults["held at rest"] += observer.held_total()
        for info in journal.live_and_dead(directory / "journal"):
            journal.prune(info.path, info.last_seq)
        faults["left on disk"] += len(list((directory / "journal").iterdir()))
    print(json.dumps({"facts": facts, "faults": {name: count for name, count in faults.items() if count}}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
