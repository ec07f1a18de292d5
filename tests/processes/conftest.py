"""A supervisor in a process of its own, over stub workers; whatever it started is gone when the test ends."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from proxy import board, clock
from proxy._fastpath import Arena
from proxy.board import Board, Row
from proxy.telemetry.metrics import Counters
from tests.world.gateway import free_port

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SECONDS_MAX = 120.0


def eventually(what: str, condition: Callable[[], Any], seconds: float = SECONDS_MAX) -> Any:
    """Waits for a true value and returns it; fails with what did not come about."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            pytest.fail(f"{what}: not within {seconds} s")
        time.sleep(0.01)


def alive(pid: int) -> bool:
    """Whether the process runs, zombies excluded."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def descendants(pid: int) -> list[int]:
    """Child processes, theirs included."""
    found = []
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            found += [int(child), *descendants(int(child))]
    return found


def facts_of(log: Path, message: str) -> list[dict[str, Any]]:
    """The log's lines with this message. One that is being written has no end yet, and is left for the next look."""
    whole = [line for line in log.read_text().splitlines(keepends=True) if line.endswith("}\n")]
    lines = [json.loads(line) for line in whole if line.startswith("{")]
    return [line for line in lines if line["message"] == message]


class Site:
    """A data directory, the supervisors started on it, and every process they were seen to have."""

    def __init__(self, tmp_path: Path) -> None:
        self.data_dir = tmp_path / "data"
        self.claims = tmp_path / "claims"
        self.claims.mkdir()
        self.data_dir.mkdir()
        self.log = tmp_path / "log"
        self.arena = Arena(str(self.data_dir / "arena"), clock.boot_id())
        self.board = Board(self.arena)
        self.counters = Counters(self.data_dir / "metrics")
        self.started: list[subprocess.Popen[bytes]] = []
        self.seen: set[int] = set()
        self.port = free_port()  # the kernel gives its own to whoever connects between one supervisor and the next

    def start(self, **changes: Any) -> subprocess.Popen[bytes]:
        """Starts a supervisor, all of them on the same port."""
        worker = [sys.executable, str(HERE / "stub_worker.py")]
        worker += ["--arena", str(self.data_dir / "arena"), "--claims", str(self.claims)]
        plan = {
            "data_dir": str(self.data_dir),
            "host": "127.0.0.1",
            "port": self.port,
            "workers": 2,
            "worker": worker,
            "keeper": None,
            "helpers": [],
            "drain_seconds": 5,
            "heartbeat_seconds_max": 10.0,  # tests of silence set their own: elsewhere a loaded machine kills nobody
            "starting_seconds_max": 20.0,
            "backoff_seconds_max": 0.5,
            **changes,
        }
        file = self.data_dir / f"plan{len(self.started)}.json"
        file.write_text(json.dumps(plan))
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, str(HERE / "stub_supervisor.py"), str(file)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
            )
        self.started.append(process)
        return process

    def serving(self, count: int = 2) -> list[Row]:
        """Waits until so many workers serve."""

        def look() -> list[Row]:
            if self.started[-1].poll() is not None:
                pytest.fail(f"the supervisor has ended:\n{self.log.read_text()}")
            rows = [row for row in self.board.rows() if row.state == board.SERVING and alive(row.pid)]
            return rows if len(rows) == count else []

        rows = eventually(f"{count} workers serve", look)
        self.note()
        self.port = int(self.facts("started")[-1]["port"])
        return list(rows)

    def note(self) -> None:
        """Remembers every process that lives now, so that none is forgotten at the end."""
        for process in self.started:
            self.seen |= set(descendants(process.pid))

    def facts(self, message: str) -> list[dict[str, Any]]:
        """Log lines of the supervisors with this message."""
        return facts_of(self.log, message)

    def ask(self, hold: bool = False) -> Any:
        """One connection: the answering worker's pid, or the open socket."""
        one = socket.create_connection(("127.0.0.1", self.port), timeout=SECONDS_MAX)
        try:
            one.sendall(b"hello\n")
            if hold:
                held, one = one, socket.socket()
                return held
            answer = b""
            while chunk := one.recv(64):
                answer += chunk
            return int(answer)
        finally:
            one.close()

    def end(self) -> None:
        """Kills by number what still lives."""
        self.note()
        for process in self.started:
            process.kill()
            process.wait()
        rows = {row.pid for row in self.board.rows()}
        for pid in self.seen | rows:
            with contextlib.suppress(ProcessLookupError):
                if alive(pid):
                    os.kill(pid, signal.SIGKILL)
        self.counters.close()
        self.arena.close()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    try:
        yield made
    finally:
        made.end()
