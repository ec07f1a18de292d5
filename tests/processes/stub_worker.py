"""A worker without business: it takes a column, says on the board how it is, and answers "pid" to each connection.

    python stub_worker.py --arena PATH --claims DIR [--behaviour NAME] --place N --listen-fd FD --lifeline-fd FD

Behaviours, for the tests of the supervisor: `serve`; `die` (exits 3 at once); `mute` (never gets ready); `hang`
(serves, then blocks its loop for ever once DIR/hang exists); `slow` (holds each connection open until DIR/release
exists); `late` (is not on the board until DIR/release exists). A second SIGTERM ends it at once, as with the real one.
"""

from __future__ import annotations

import argparse
import asyncio
import fcntl
import os
import signal
import socket
import sys
import time
from pathlib import Path

from proxy import board, bounds, clock
from proxy._fastpath import Arena
from proxy.board import Board
from proxy.telemetry.metrics import Counters


def claim(claims: Path) -> int:
    """The lowest column whose lock is free: what the journal does for a real worker."""
    for column in range(bounds.COLUMNS):
        fd = os.open(claims / str(column), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return column
        except BlockingIOError:
            os.close(fd)
    raise SystemExit("no column is free")


class Stub:
    """One life."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.column = claim(args.claims)
        self.arena = Arena(str(args.arena), clock.boot_id(), self.column)
        self.counters = Counters(args.arena.with_name("metrics"), self.column)
        self.served = self.counters.series("weir_tenant_requests_total", "stub")
        self.ending = asyncio.Event()
        self.hurry = asyncio.Event()
        self.open: set[asyncio.Task[None]] = set()

    def say(self, word: int, value: int) -> None:
        self.arena.set_column_word(self.column, word, value)

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        epoch = os.urandom(16)
        # Open for life, as a real worker's: it is what tells a worker from a stranger with the same process id.
        slots = self.args.arena.parent / "journal" / epoch.hex() / "slots"
        slots.parent.mkdir(parents=True)
        self.slots = slots.open("wb")
        Board(self.arena).start(self.column, pid=os.getpid(), place=self.args.place, epoch=epoch, now_ns=clock.now_ns())
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.end)
        os.set_blocking(self.args.lifeline_fd, False)
        loop.add_reader(self.args.lifeline_fd, self.lost)
        beat = asyncio.create_task(self.beat())
        if self.args.behaviour == "mute":
            await asyncio.Event().wait()
        listener = socket.socket(fileno=self.args.listen_fd)
        listener.setblocking(False)
        server = await asyncio.start_server(self.serve, sock=listener, backlog=4096)
        self.say(board.STATE, board.SERVING)
        await self.ending.wait()
        self.say(board.STATE, board.DRAINING_WORKER)
        # asyncio drops a connection that is accepted but not yet attached when its server closes: stop accepting,
        # let those in between arrive, and only then close.
        loop.remove_reader(listener.fileno())
        await asyncio.sleep(bounds.HANDOVER_SECONDS)
        for _ in range(20):  # turns of the loop: a process that is not let run sleeps through all of that time in one
            await asyncio.sleep(0)
        server.close()
        hurrying = asyncio.create_task(self.hurry.wait())
        while self.open and not self.hurry.is_set():
            await asyncio.wait((hurrying, *self.open), return_when=asyncio.FIRST_COMPLETED)
        for task in (hurrying, beat, *self.open):
            task.cancel()
        Board(self.arena).clear(self.column)

    def end(self) -> None:
        if self.ending.is_set():
            self.hurry.set()
        self.ending.set()

    def lost(self) -> None:
        asyncio.get_running_loop().remove_reader(self.args.lifeline_fd)
        self.ending.set()

    async def beat(self) -> None:
        while True:
            self.say(board.HEARTBEAT_NS, clock.now_ns())
            if self.args.behaviour == "hang" and (self.args.claims / "hang").exists():
                time.sleep(3600)
            await asyncio.sleep(0.05)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.open.add(task)
        task.add_done_callback(self.open.discard)
        try:
            await reader.readline()
            while self.args.behaviour == "slow" and not (self.args.claims / "release").exists():
                await asyncio.sleep(0.01)
            self.counters.add(self.served)
            writer.write(b"%d\n" % os.getpid())
            await writer.drain()
        finally:
            writer.close()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--arena", type=Path, required=True)
    parser.add_argument("--claims", type=Path, required=True)
    parser.add_argument("--behaviour", default="serve")
    parser.add_argument("--place", type=int, required=True)
    parser.add_argument("--listen-fd", type=int, required=True)
    parser.add_argument("--lifeline-fd", type=int, required=True)
    args = parser.parse_args()
    file = args.claims / "behaviour"  # a test may change it for the lives to come
    if file.exists():
        args.behaviour = file.read_text()
    if args.behaviour == "die":
        sys.exit(3)
    while args.behaviour == "late" and not (args.claims / "release").exists():
        time.sleep(0.01)

    async def life() -> None:
        await Stub(args).run()

    asyncio.run(life())


if __name__ == "__main__":
    main()
