"""A whole Weir for tests: real processes in a temporary directory on free ports, started, driven, and looked at."""

from __future__ import annotations

import contextlib
import fcntl
import http.client
import json
import os
import secrets
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
START_SECONDS = 120  # generous: a loaded machine starts Python slowly
STOP_SECONDS = 120
PORTS = 12_000  # so many are handed out before the first comes again; fewer where there is no room for them
ANSWER_SECONDS_MAX = 60  # for a page of the host's own: a part that is frozen says nothing at all


def free_port() -> int:
    """A port that nobody listens on, below those that the kernel gives by itself: no connection takes it.

    One counter for every test process of this machine hands them out in turn: two that are drawn by chance are
    sometimes the same.
    """
    first, ports = ports_to_give(*map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()))
    with open(Path(tempfile.gettempdir()) / f"weir-test-ports-{os.getuid()}", "a+b") as counter:
        fcntl.flock(counter, fcntl.LOCK_EX)  # held until the file is closed
        counter.seek(0)
        last = int(counter.read() or secrets.randbelow(ports))
        for step in range(1, ports + 1):
            turn = (last + step) % ports
            with contextlib.suppress(OSError), socket.socket() as endpoint:
                endpoint.bind(("127.0.0.1", first + turn))
                counter.truncate(0)
                counter.write(str(turn).encode())
                return first + turn
    raise AssertionError(f"no free port between {first} and {first + ports}")


def ports_to_give(kernels_first: int, kernels_last: int) -> tuple[int, int]:
    """(the first port, how many there are) for tests: below the kernel's own, or above, or, where it has all, among."""
    below, above = kernels_first - 1025, 65_535 - kernels_last
    if max(below, above) < 1000:
        return 20_000, PORTS
    count = min(PORTS, max(below, above))
    return (kernels_first - count if below >= above else kernels_last + 1), count


def wait_for(what: str, happened: Callable[[], Any], seconds: float = START_SECONDS) -> Any:
    """Waits until `happened()` is true and returns what it said. AssertionError when it takes longer."""
    deadline = time.monotonic() + seconds
    while True:
        said = happened()
        if said:
            return said
        assert time.monotonic() < deadline, f"{what}: not within {seconds} s"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def processes_with(argument: str) -> dict[int, list[str]]:
    """Every living process that has this argument on its command line: pid → its arguments."""
    found = {}
    for name in os.listdir("/proc"):
        if not name.isdecimal():
            continue
        with contextlib.suppress(OSError), open(f"/proc/{name}/cmdline", "rb") as file:
            arguments = file.read().decode(errors="replace").split("\0")[:-1]
            if argument in arguments and alive(int(name)):
                found[int(name)] = arguments
    return found


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `over` laid on it, mapping by mapping."""
    both = dict(base)
    for key, value in over.items():
        known = both.get(key)
        both[key] = merged(known, value) if isinstance(known, Mapping) and isinstance(value, Mapping) else value
    return both


class Gateway:
    """`with Gateway(tmp_path, upstream_url) as weir`: ready to be called when the block begins, stopped when it ends.

    settings: laid over the `weir.yaml` below. env: more environment, for failpoints. root: where the product is
    imported from (mutants use a copy). flushers: how many `weir flush` run beside it; needed with redis.
    """

    def __init__(
        self,
        directory: Path,
        upstream_url: str,
        *,
        workers: int = 1,
        redis: str | None = None,
        database: str | None = None,
        settings: Mapping[str, Any] | None = None,
        tenant: Mapping[str, Any] | None = None,
        env: Mapping[str, str] | None = None,
        root: Path = ROOT,
        flushers: int = 0,
    ) -> None:
        self.config = directory / "config"
        self.data = directory / "data"
        self.database = database
        self.redis = redis
        self.flushers = flushers
        self.port = free_port()
        self.metrics_port = free_port()
        self.key = ""
        self.root = root
        self.env = dict(env or {})
        self.parts: dict[str, subprocess.Popen[bytes]] = {}
        self.errors = directory / "stderr.txt"
        self.output = directory / "stdout.txt"
        timeouts = {"connect_seconds": 20, "first_byte_seconds": 60, "idle_seconds": 60, "total_seconds": 300}
        written: dict[str, Any] = {
            # The tests are one address to it, and many of them fail on purpose.
            "listen": {"host": "127.0.0.1", "port": self.port, "failures_per_minute": 1_000_000},
            "metrics": {"host": "127.0.0.1", "port": self.metrics_port},
            "control": {"host": "127.0.0.1", "port": 0},
            "data_dir": str(self.data),
            "workers": workers,
            "drain_seconds": 5,
            "journal": {"segment_bytes": 1024 * 1024, "max_bytes": 256 * 1024 * 1024, "slots": 2048},
            "upstreams": {"mock": {"url": upstream_url, "key": "file:" + str(self.config / "upstream.key")}},
            "models": {"*": {"upstream": "mock", "unpriced": True}},
        }
        upstream: dict[str, Any] = {"timeouts": timeouts}
        written = merged(written, {"upstreams": {"mock": upstream}})
        if redis:
            written["redis"] = redis
        if database:
            written["database"] = database
        (self.config / "tenants").mkdir(parents=True, exist_ok=True)
        (self.config / "upstream.key").write_text("sk-upstream-secret\n")
        (self.config / "upstream.key").chmod(0o600)
        self.write("weir.yaml", merged(written, settings or {}))
        self.write("plans.yaml", {"plans": {"all": {}}})
        self.write("tenants/acme.yaml", {"name": "acme", "plan": "all", **(tenant or {})})

    @property
    def url(self) -> str:
        """The base URL for a client."""
        return f"http://127.0.0.1:{self.port}/v1"

    def write(self, name: str, content: Mapping[str, Any]) -> None:
        """Writes one policy file. JSON is YAML."""
        (self.config / name).write_text(json.dumps(content, indent=1) + "\n")

    # === starting and stopping ===

    def __enter__(self) -> Gateway:
        try:
            self.start()
            if not self.key:
                self.key = self.create_key()
        except BaseException:
            self.kill_all()
            print(self.stderr(), file=sys.stderr)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self.stop()
        finally:
            self.kill_all()
            if kind is not None:
                print(self.stderr(), file=sys.stderr)

    def start(self) -> None:
        """Brings the database to the newest schema, starts what does not run, and waits until Weir is ready."""
        if not self.parts:
            self.migrate()
        self.start_part("proxy")
        wait_for("the proxy's /readyz", lambda: self.part_runs("proxy") and self.ready())
        for number in range(self.flushers):
            self.start_part("flush", number)

    def part_runs(self, name: str) -> bool:
        """True; AssertionError with its errors when it has ended."""
        code = self.parts[name].poll()
        assert code is None, f"weir {name} ended with {code}:\n{self.stderr()}"
        return True

    def start_part(self, verb: str, number: int = 0) -> None:
        """Starts `weir proxy` or the n-th `weir flush`, unless it runs."""
        name = verb if verb == "proxy" else f"{verb}-{number}"
        if name in self.parts and self.parts[name].poll() is None:
            return
        with open(self.errors, "ab") as errors, open(self.output, "ab") as output:
            # A flusher that was killed keeps what it had read; the usual half minute until another takes over is long.
            more = ["--claim-idle-seconds", "2"] if verb == "flush" else []
            self.parts[name] = subprocess.Popen(
                [sys.executable, "-m", "proxy", verb, "--config", str(self.config), *more],
                cwd=self.root,
                env={**os.environ, "PYTHONPATH": str(self.root), **self.env},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=errors,
            )

    def stop(self, seconds: float = STOP_SECONDS) -> None:
        """SIGTERM to every part; AssertionError when one does not end with 0."""
        for part in self.parts.values():
            if part.poll() is None:
                part.send_signal(signal.SIGTERM)
        for name, part in self.parts.items():
            code = part.wait(seconds)
            assert code == 0, f"weir {name} ended with {code}:\n{self.stderr()}"
        self.parts.clear()
        wait_for("every process to end", lambda: not self.processes())

    def kill_all(self) -> None:
        """Leaves no process behind, in whatever state they are."""
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for part in self.parts.values():
            part.wait(120)
        self.parts.clear()

    def migrate(self) -> None:
        """What `weir run` does first: the parts alone refuse an older schema."""
        code = "import asyncio, sys; from proxy.store.migrate import migrate; asyncio.run(migrate(sys.argv[1]))"
        url = self.database or f"sqlite:///{self.data / 'weir.db'}"
        done = subprocess.run(
            [sys.executable, "-c", code, url], cwd=self.root, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr

    # === asking it ===

    def weir(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Runs one command of the product on this configuration."""
        done = subprocess.run(
            [sys.executable, "-m", "proxy", *arguments, "--config", str(self.config)],
            cwd=self.root,
            env={**os.environ, "PYTHONPATH": str(self.root)},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert not check or done.returncode == 0, (
            f"weir {' '.join(arguments)}: {done.returncode}\n{done.stdout}{done.stderr}"
        )
        return done

    def create_key(self, *more: str) -> str:
        """A new API key of the tenant `acme`."""
        made = self.weir("keys", "create", "--tenant", "acme", "--name", "test", "--json", *more)
        return str(json.loads(made.stdout)["key"])

    def get(self, path: str, port: int | None = None) -> tuple[int, bytes]:
        """(status, body) of a GET on the metrics port, or (0, b"") when nobody answers."""
        connection = http.client.HTTPConnection("127.0.0.1", port or self.metrics_port, timeout=ANSWER_SECONDS_MAX)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read()
        except (OSError, http.client.HTTPException):
            return 0, b""
        finally:
            connection.close()

    def ready(self) -> bool:
        """Whether host and workers say that they serve."""
        return self.get("/readyz")[0] == 200 and self.get("/readyz", self.port)[0] == 200

    def stderr(self, bytes_max: int = 8000) -> str:
        """The end of what all parts wrote to standard error."""
        return self.errors.read_bytes()[-bytes_max:].decode(errors="replace") if self.errors.exists() else ""

    def rows(self) -> list[dict[str, Any]]:
        """Every usage row, read by plain SQL: none of the product's own reading code is trusted here."""
        return read_rows(self.database or f"sqlite:///{self.data / 'weir.db'}")

    def processes(self, *verbs: str) -> dict[int, str]:
        """Living processes of this Weir: pid → verb (proxy, worker, keeper, flush), or only those of some verbs."""
        found = {}
        for pid, arguments in processes_with(str(self.config)).items():
            verb = arguments[arguments.index("proxy") + 1] if "proxy" in arguments else ""
            if verb and (not verbs or verb in verbs):
                found[pid] = verb
        return found

    # === judging it ===

    def assert_at_rest(self, seconds: float = START_SECONDS) -> None:
        """Nothing open, nothing held, no client connection left; then stops it, and the books must verify."""
        wait_for("clients' connections to be closed", lambda: not self.connections(), seconds)
        held = wait_for("every hold to be returned", lambda: self.held() == (0, 0) and "none", seconds)
        assert held == "none"
        self.stop()
        assert self.held() == (0, 0)
        self.verify()

    def verify(self) -> None:
        """`weir usage verify` must find nothing."""
        done = self.weir("usage", "verify", check=False)
        assert done.returncode == 0, f"weir usage verify: {done.returncode}\n{done.stdout}{done.stderr}{self.stderr()}"

    def held(self) -> tuple[int, int]:
        """(sum of all holds in shared memory, open slots of all workers)."""
        from proxy import board, clock
        from proxy._fastpath import Arena
        from proxy.bounds import COLUMNS

        arena = Arena(str(self.data / "arena"), clock.boot_id(), -1)
        try:
            serving = [
                column for column in range(COLUMNS) if (pid := arena.column_word(column, board.PID)) and alive(pid)
            ]
            return arena.held_total(), sum(arena.column_word(column, board.OPEN_SLOTS) for column in serving)
        finally:
            arena.close()

    def connections(self) -> int:
        """Open connections on the listening port, by the kernel's own table."""
        count = 0
        with open("/proc/net/tcp", encoding="ascii") as file:
            for line in list(file)[1:]:
                local, _, state = line.split()[1:4]
                count += int(local.rpartition(":")[2], 16) == self.port and state in ("01", "08")
        return count

    def open_files(self, verb: str) -> dict[int, int]:
        """How many files other than sockets each process of a verb has open: pid → count."""
        counts = {}
        for pid in self.processes(verb):
            links = []
            with contextlib.suppress(OSError):
                for name in os.listdir(f"/proc/{pid}/fd"):
                    with contextlib.suppress(OSError):
                        links.append(os.readlink(f"/proc/{pid}/fd/{name}"))
            counts[pid] = sum(not link.startswith("socket:") for link in links)
        return counts


def read_rows(url: str) -> list[dict[str, Any]]:
    """All rows of the usage table; `epoch` as hex."""
    if url.startswith("sqlite:///"):
        path = Path(url.removeprefix("sqlite:///"))
        if not path.exists():
            return []
        connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=20)
        connection.row_factory = sqlite3.Row
        try:
            found: Sequence[Any] = connection.execute("SELECT * FROM usage").fetchall()
        finally:
            connection.close()
    else:
        import asyncio

        import asyncpg

        async def fetch() -> Sequence[Any]:
            database = await asyncpg.connect(url)
            try:
                return list(await database.fetch('SELECT * FROM "usage"'))
            finally:
                await database.close()

        found = asyncio.run(fetch())
    return [{**dict(row), "epoch": bytes(row["epoch"]).hex()} for row in found]
