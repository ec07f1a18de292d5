"""Named places where a test may kill this process: how "nothing is lost, whenever it dies" is shown and not hoped.

`WEIR_FAILPOINTS="flush.after_commit=kill, flush.before_persist=kill@3"` sends SIGKILL to the own process when the named
place is reached for the first, or the n-th, time. Unset, as in every real run, `reach` is an empty function.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping

VARIABLE = "WEIR_FAILPOINTS"


def parse(text: str) -> dict[str, int]:
    """Name → how many times the place may be reached until it kills. Raises ValueError with what was wrong."""
    points: dict[str, int] = {}
    for part in text.split(","):
        if not part.strip():
            continue
        name, equals, action = (word.strip() for word in part.partition("="))
        verb, at, count = action.partition("@")
        if not name or not equals or verb != "kill" or (at and not (count.isdecimal() and int(count) > 0)):
            raise ValueError(f"{VARIABLE}: {part.strip()!r} is not of the form name=kill or name=kill@3")
        points[name] = int(count) if at else 1
    return points


def _nothing(name: str) -> None:
    """The failpoint of every real run."""


class _Armed:
    """Counts down to the kill, place by place."""

    def __init__(self, points: dict[str, int]) -> None:
        self.left = points

    def __call__(self, name: str) -> None:
        if name in self.left:
            self.left[name] -= 1
            if self.left[name] == 0:
                os.kill(os.getpid(), signal.SIGKILL)


def _armed(environment: Mapping[str, str]) -> _Armed | None:
    text = environment.get(VARIABLE, "")
    return _Armed(parse(text)) if text else None


# Decided once, when the module is read: callers write `failpoint.reach("flush.after_commit")`.
reach = _armed(os.environ) or _nothing
