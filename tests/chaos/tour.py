"""A tour of the failpoints: under steady traffic each named place is armed in turn, and must really kill its part."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

from tests.chaos.driver import Chaos
from tests.world.gateway import ROOT

_REACH = re.compile(r"failpoint\.reach\(\"([a-z_.]+)\"\)")
FIRE_SECONDS_MAX = 120.0  # generous: on a loaded machine every part takes seconds to start


def failpoints(root: Path = ROOT) -> list[str]:
    """Every named place of the sources that calls pass. Changes of keys and people have tests of their own."""
    found = {name for path in (root / "proxy").rglob("*.py") for name in _REACH.findall(path.read_text())}
    return sorted(name for name in found if not name.startswith(("audit.", "keys.")))


class Tour(Chaos):
    """Arms one failpoint after the other: supervisor and flushers are killed and started anew with it.

    A worker is killed each time too, so that there is something to recover and to prune.
    """

    def __init__(self, directory: Path, points: list[str], **options: Any) -> None:
        super().__init__(directory, cards={}, concurrency=24, **options)
        self.points = points
        self.silent: list[str] = []  # armed, and never reached

    def _fight(self, clients: list[subprocess.Popen[bytes]]) -> None:
        for point in self.points:
            if not self._fires(point):
                self.silent.append(point)
        self._dismiss(clients)

    def _fires(self, point: str) -> bool:
        """Whether some part says that it dies at the point, once this is armed."""
        before = set(self.weir.processes())
        self.arm(f"{point}=kill")
        told = f"failpoint {point} in process ".encode()
        killed: set[int] = set()
        next_kill = 0.0
        deadline = time.monotonic() + FIRE_SECONDS_MAX
        while time.monotonic() < deadline:
            # The dying part writes it itself, so a life that is too short to be seen counts too.
            if told in self.weir.errors.read_bytes():
                self.blows[f"at {point}"] += 1
                return True
            self._restart_parts()
            workers = set(self.weir.processes("worker")) - before - killed
            # More than one, in time: the first may be recovered by the keeper of before, in its last seconds.
            if workers and time.monotonic() > next_kill and self.weir.ready():
                next_kill = time.monotonic() + 6
                killed.add(min(workers))
                with contextlib.suppress(ProcessLookupError):  # a worker that is faster than we died at the place
                    os.kill(min(workers), signal.SIGKILL)
                    self.blows["kill worker"] += 1
            time.sleep(0.02)
        return False
