"""The scripted upstream as a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.world.ledger import read_ledger

ROOT = Path(__file__).resolve().parents[2]


class UpstreamProcess:
    """The scripted upstream as a process of its own: `with UpstreamProcess(path) as upstream`."""

    def __init__(self, ledger: Path) -> None:
        self.ledger = ledger
        self.port = 0
        self.process: subprocess.Popen[bytes]

    def __enter__(self) -> UpstreamProcess:
        command = [sys.executable, "-m", "tests.world.upstream", "--port", str(self.port), "--ledger", str(self.ledger)]
        self.process = subprocess.Popen(
            [*command, "--until-eof"], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "the scripted upstream did not start"
        self.port = json.loads(line)["port"]
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait(120)

    @property
    def url(self) -> str:
        """The base URL that an upstream's entry in the policy names."""
        return f"http://127.0.0.1:{self.port}/v1"

    def events(self) -> list[dict[str, Any]]:
        """The ledger so far."""
        return read_ledger(self.ledger)

    def wait_idle(self, seconds: float = 120) -> None:
        """Waits until every request of the ledger has its end."""
        deadline = time.monotonic() + seconds
        while True:
            events = self.events()
            ends = {event["n"] for event in events if event["event"] == "end"}
            open_ = [event["n"] for event in events if event["event"] == "request" and event["n"] not in ends]
            if not open_:
                return
            assert time.monotonic() < deadline, f"the upstream still answers {open_[:10]}"
            time.sleep(0.05)
