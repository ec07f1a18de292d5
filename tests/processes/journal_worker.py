"""A worker that only keeps its journal: opens calls, finishes some, says so, and waits to be killed.

    python journal_worker.py DATA_DIR CALLS OPEN

It opens CALLS calls, leaves OPEN of them in flight with some progress, and prints one JSON line once the finished ones
are on the disk. On SIGTERM it finishes the rest and ends its epoch in order.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path

from proxy import board, clock
from proxy._journal import Slot
from proxy.board import Board
from proxy.call import Opened, Outcome, Progress, Sent
from proxy.journal import Epoch
from proxy.record import encode, encode_opened, encode_sent, settle

SENT = Sent("default", "demo")


def opened(call: int) -> Opened:
    return Opened(
        tenant="demo",
        key_id="key_test",
        user="",
        tags=(),
        request_id=f"req_{call}",
        endpoint="chat.completions",
        model="demo",
        stream=True,
        prompt_tokens=7,
        prompt_source="counted",
        started_us=clock.wall_us(),
        price_prompt=0,
        price_cached=0,
        price_completion=0,
        price_version="",
    )


def finish(epoch: Epoch, slot: Slot, begun: Opened) -> None:
    seen = Progress(frames=3, bytes=300, prompt_tokens=7, completion_tokens=11, usage_seen=1, first_us=5, status=200)
    epoch.close(slot, encode(settle(slot.call, begun, SENT, Outcome("complete", 200, seen, attempts=1), 1, 20)))


async def main() -> None:
    data_dir, calls, left = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    epoch = Epoch.create(
        data_dir / "journal",
        str(data_dir / "arena"),
        clock.boot_id(),
        slots=64,
        segment_bytes=65536,
        max_bytes=1 << 30,
        sync_ms=5,
    )
    Board(epoch.arena).start(epoch.column, pid=os.getpid(), place=0, epoch=epoch.epoch, now_ns=clock.now_ns())
    epoch.arena.set_column_word(epoch.column, board.STATE, board.SERVING)
    ending = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ending.set)
    open_slots: list[tuple[Slot, Opened]] = []
    for number in range(1, calls + 1):
        begun = opened(number)
        while (slot := epoch.open(encode_opened(begun), ())) is None:
            await asyncio.sleep(0.001)  # a segment is being made
        if number <= left:
            slot.sent(1, encode_sent(SENT))
            slot.progress(2, 200, 40, 0, 0, 0, 0, 0, 0, 9, 200, text_tokens=10)
            open_slots.append((slot, begun))
        else:
            finish(epoch, slot, begun)
    await epoch.wait_synced(epoch.writer.seq)
    print(json.dumps({"epoch": epoch.epoch.hex(), "column": epoch.column}), flush=True)
    while not ending.is_set():
        epoch.arena.set_column_word(epoch.column, board.HEARTBEAT_NS, clock.now_ns())
        epoch.arena.set_column_word(
            epoch.column, board.COLUMN_POLICY_GENERATION, epoch.arena.word(board.POLICY_GENERATION)
        )
        await asyncio.sleep(0.02)
    for slot, begun in open_slots:
        finish(epoch, slot, begun)
    Board(epoch.arena).clear(epoch.column)
    epoch.finish()


asyncio.run(main())
