"""Named places where a test may kill or freeze this process: so that "whenever it dies" is shown and not hoped.

`WEIR_FAILPOINTS="flush.after_commit=kill, flush.before_persist=stop@3"` sends SIGKILL, or SIGSTOP, to the own process
when the named place is reached for the first, or the n-th, time, after a line on standard error that says so. Unset,
as in every real run, `reach` does nothing.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping

VARIABLE = "WEIR_FAILPOINTS"


_SIGNALS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}


def parse(text: str) -> dict[str, tuple[signal.Signals, int]]:
    """Name → which signal, and at the how manieth time. Raises ValueError with what was wrong."""
    points: dict[str, tuple[signal.Signals, int]] = {}
    for part in text.split(","):
        if not part.strip():
            continue
        name, equals, action = (word.strip() for word in part.partition("="))
        verb, at, count = action.partition("@")
        if not name or not equals or verb not in _SIGNALS or (at and not (count.isdecimal() and int(count) > 0)):
            raise ValueError(f"{VARIABLE}: {part.strip()!r} is not of the form name=kill, name=stop or name=kill@3")
        points[name] = (_SIGNALS[verb], int(count) if at else 1)
    return points


def mark(name: str) -> bytes:
    """The line on standard error by which a process says that it dies, or stops, at this place."""
    return f"failpoint {name} in process {os.getpid()}\n".encode()


def _nothing(name: str) -> None:
    """The failpoint of every real run."""


class _Armed:
    """Counts down to the signal, place by place."""

    def __init__(self, points: dict[str, tuple[signal.Signals, int]]) -> None:
        self.points = points
        self.reached = dict.fromkeys(points, 0)

    def __call__(self, name: str) -> None:
        if name in self.points:
            self.reached[name] += 1
            number, count = self.points[name]
            if self.reached[name] == count:
                # Past every buffer: nobody has to guess afterwards why this process died.
                os.write(2, mark(name))
                os.kill(os.getpid(), number)


def _armed(environment: Mapping[str, str]) -> _Armed | None:
    text = environment.get(VARIABLE, "")
    return _Armed(parse(text)) if text else None


# Decided once, when the module is read: callers write `failpoint.reach("flush.after_commit")`.
reach = _armed(os.environ) or _nothing
