"""One process a data directory: a lock file held for life, with the holder's process id in it."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from proxy import clock

_TRIES = 10  # `holder` takes a shared lock for an instant; a starter must not be refused by that
_TRY_SECONDS = 0.02


class Held(Exception):
    """Somebody else holds the lock. `pid` is 0 while it is not written yet."""

    def __init__(self, path: Path, pid: int) -> None:
        super().__init__(f"{path} is held by process {pid}")
        self.path = path
        self.pid = pid


def hold(path: Path) -> int:
    """Takes the lock for this process's life and writes its id. Returns the descriptor. Raises Held at once."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        for left in reversed(range(_TRIES)):
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not left:
                    raise Held(path, _read_pid(fd)) from None
                clock.pause(_TRY_SECONDS)
        os.ftruncate(fd, 0)
        os.pwrite(fd, b"%d\n" % os.getpid(), 0)
    except BaseException:
        os.close(fd)
        raise
    return fd


def holder(path: Path) -> int | None:
    """The process id of the living holder, or None. The lock decides: a dead holder's number says nothing."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return _read_pid(fd) or None
        return None
    finally:
        os.close(fd)


def _read_pid(fd: int) -> int:
    text = os.pread(fd, 32, 0).strip()
    return int(text) if text.isdigit() else 0
