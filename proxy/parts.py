"""A part of the house as the supervisor sees it: a command, the process that runs it now, and how often it failed."""

from __future__ import annotations

import asyncio
import ctypes
import os
import resource
import signal
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from msgspec import Struct

from proxy import bounds, clock, locks

_PR_SET_PDEATHSIG = 1  # prctl(2)
_BACKOFF_SECONDS = 0.1  # after the second failure in a row; doubles from there
_SETTLED_SECONDS = 1.0  # a part that was ready for so long has not failed to start


class Helper(Struct, frozen=True):
    """A part beside worker and keeper. `first` ones start before the keeper and end last."""

    name: str
    command: tuple[str, ...]
    first: bool = False
    fds: tuple[int, ...] = ()  # open files that it inherits
    lifeline: bool = True  # takes --lifeline-fd; else it is ended by the kernel with the supervisor


class Plan(Struct, frozen=True):
    """What to run. `worker` and `keeper` are commands to which the descriptors are appended as options; `fds` are open
    files that they inherit besides.
    """

    data_dir: Path
    host: str
    port: int
    workers: int
    worker: tuple[str, ...]
    keeper: tuple[str, ...] | None
    helpers: tuple[Helper, ...] = ()
    fds: tuple[int, ...] = ()
    drain_seconds: float = bounds.DRAIN_SECONDS_DEFAULT
    env: dict[str, str] | None = None
    heartbeat_seconds_max: float = bounds.HEARTBEAT_SECONDS_MAX
    starting_seconds_max: float = bounds.STARTING_SECONDS_MAX
    backoff_seconds_max: float = bounds.RESTART_BACKOFF_SECONDS_MAX
    grace_seconds: float = 5.0  # beyond its own time a draining process is killed
    hangup_stops: bool = False  # SIGHUP is a closed terminal, not a wish to reload


class Refused(Exception):
    """The supervisor cannot start where it stands; the message says why."""


def claim(data_dir: Path) -> int:
    """Makes the data directory and takes the one supervisor's lock on it: a descriptor, to be held for life.

    Raises Refused.
    """
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        return locks.hold(data_dir / "supervisor.lock")
    except locks.Held as held:
        raise Refused(_another(held.pid, data_dir)) from None
    except (FileExistsError, NotADirectoryError):
        raise Refused(f"data_dir: {data_dir} is not a directory; name another place") from None
    except OSError as error:
        raise Refused(f"data_dir: {data_dir} cannot be written to: {error.strerror}") from None


def refuse_second(data_dir: Path) -> None:
    """Raises Refused when a supervisor runs there. For who binds a port before `claim`: two on one data directory have
    their ports in common, and "in use" would not say why.
    """
    pid = locks.holder(data_dir / "supervisor.lock")
    if pid is not None:
        raise Refused(_another(pid, data_dir))


def _another(pid: int, data_dir: Path) -> str:
    return (
        f"Another supervisor (process {pid}) runs on {data_dir}. Stop it first, or give this one a data_dir of its own."
    )


class Child:
    """One process. `exited` completes with its return code, negative for a signal."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        fds: Sequence[int] = (),
        env: Mapping[str, str] | None = None,
        dies_with_parent: bool = False,
    ) -> None:
        loop = asyncio.get_running_loop()
        self.name = name
        self.started_ns = clock.now_ns()
        self.ready_ns = 0
        self.retired = False  # asked to end: its exit is no failure
        self.retired_ns = 0
        self.cause = "exit"  # why it ended, once it has
        self.exited: asyncio.Future[int] = loop.create_future()
        # A group of its own: Ctrl-C in a terminal reaches the supervisor alone, which then ends the others in order.
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            pass_fds=fds,
            env=env,
            process_group=0,
            preexec_fn=_die_with_parent if dies_with_parent else None,
        )
        self.pid = self._process.pid
        self._pidfd = os.pidfd_open(self.pid)
        loop.add_reader(self._pidfd, self._reap)

    @property
    def alive(self) -> bool:
        return not self.exited.done()

    def signal(self, number: int) -> None:
        """Sends a signal; a process that has ended takes none."""
        if self.alive:
            self._process.send_signal(number)

    def retire(self) -> None:
        """Asks it to end in order (SIGTERM). A second time hurries it."""
        if not self.retired:
            self.retired = True
            self.retired_ns = clock.now_ns()
        self.signal(signal.SIGTERM)

    def kill(self, cause: str) -> None:
        """Ends it at once."""
        if self.alive:
            self.cause = cause
            self.signal(signal.SIGKILL)

    async def wait(self, seconds: float | None) -> bool:
        """Waits for its end; False when it still lives after `seconds`."""
        await asyncio.wait((self.exited,), timeout=seconds)
        return self.exited.done()

    def _reap(self) -> None:
        code = self._process.poll()
        if code is None:
            return
        asyncio.get_running_loop().remove_reader(self._pidfd)
        os.close(self._pidfd)
        if not self.exited.done():
            self.exited.set_result(code)


class Part:
    """Something that must run as long as the supervisor does: `spawn` starts a process of it."""

    def __init__(
        self, name: str, spawn: Callable[[], Child], is_ready: Callable[[Child], bool], *, backoff_seconds_max: float
    ) -> None:
        self.name = name
        self.spawn = spawn
        self.is_ready = is_ready
        self.current: Child | None = None
        self.failures = 0  # in a row
        self.lock = asyncio.Lock()  # one start at a time: after a death, or as a replacement
        self._backoff_seconds_max = backoff_seconds_max

    def ended(self, child: Child) -> float:
        """Notes a death; returns how many seconds to wait before the next start: none for one that ran well."""
        ran_well = child.ready_ns and clock.now_ns() - child.ready_ns > _SETTLED_SECONDS * 1e9
        self.failures = 0 if ran_well else self.failures + 1
        if self.failures <= 1:
            return 0.0
        return min(_BACKOFF_SECONDS * 2.0 ** (self.failures - 2), self._backoff_seconds_max)

    async def start(self, seconds_max: float) -> bool:
        """Starts a process and makes it the current one. False when it died or was not ready in time (then killed)."""
        self.current = child = self.spawn()
        return await self.wait_ready(child, seconds_max)

    async def wait_ready(self, child: Child, seconds_max: float) -> bool:
        """Waits until the process says it is ready; kills it when it takes too long."""
        deadline_ns = child.started_ns + int(seconds_max * 1e9)
        while child.alive:
            if self.is_ready(child):
                child.ready_ns = clock.now_ns()
                return True
            if clock.now_ns() > deadline_ns:
                child.kill("start")
                await child.wait(None)
                return False
            await child.wait(bounds.READY_POLL_SECONDS)
        return False


def _die_with_parent() -> None:
    """In the child: SIGTERM when the supervisor dies, for parts that watch no lifeline."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


def died(code: int) -> str:
    """How a process ended, in words."""
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"


def has_open(pid: int, paths: Iterable[Path]) -> bool:
    """Whether the process has one of these files open: what tells it from a stranger with the same number."""
    wanted = {str(path.resolve()) for path in paths}
    try:
        return any(os.readlink(entry) in wanted for entry in Path(f"/proc/{pid}/fd").iterdir())
    except OSError:
        return False


def raise_file_limit() -> None:
    """Every process inherits the most files it may open: two sockets a stream."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * bounds.CONNECTIONS_MAX + 1024
    best = wanted if hard == resource.RLIM_INFINITY else min(hard, wanted)
    if soft < best:
        resource.setrlimit(resource.RLIMIT_NOFILE, (best, hard))
