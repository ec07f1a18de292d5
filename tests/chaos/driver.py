"""The exactly-once driver: mixed traffic through a whole Weir while its parts are killed and frozen, then the books.

    python -m tests.chaos.driver [--requests N] [--seed N] [--variant sqlite|redis|forgetful] [--workers N]

It ends with a report: what was done to the parts, how calls ended, and every finding of `ledger.check`. The seed
decides the traffic and the order and times of the blows; what the machine makes of them is its own.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal, NamedTuple

from proxy.failpoint import VARIABLE
from tests.servers import PostgresServer, RedisServer
from tests.world.gateway import ROOT, Gateway, alive
from tests.world.ledger import Seen, check
from tests.world.process import UpstreamProcess

Variant = Literal["sqlite", "redis", "forgetful"]  # SQLite alone; Redis (AOF) + PostgreSQL; Redis without persistence
# Blows are drawn like cards: each falls as often as it stands here, in any order, before the deck is shuffled again.
CARDS = {"kill worker": 6, "freeze worker": 2, "kill keeper": 2, "freeze keeper": 1, "kill proxy": 1}
STORE_CARDS = {"kill redis": 2, "freeze redis": 1, "kill flush": 2, "freeze flush": 1}
STORE_CARDS |= {"kill postgres": 1, "stop postgres": 1, "freeze postgres": 1}
PATIENCE_SECONDS = 4.0  # at most so much longer than its pause does a blow wait for traffic
LEDGER_BYTES_BETWEEN_BLOWS = 12_000  # about 30 requests that reached the upstream
AWAITED_SECONDS_MAX = 240.0  # so long goes a run on in which something must happen first
LINGER_SECONDS = 6.0  # and so long after it, for what follows from it: entries of a dead flusher are claimed in two
QUIET_SECONDS_MAX = 90.0  # from the last blow until every call must have its row


class Report(NamedTuple):
    """What a run found out."""

    seed: int
    requests: int
    asked_upstream: int
    rows: int
    seconds: float
    blows: Counter[str]
    endings: Counter[str]
    findings: list[str]

    def __str__(self) -> str:
        lines = [
            f"seed {self.seed}: {self.requests} requests, {self.asked_upstream} reached the upstream, "
            f"{self.rows} rows, {self.seconds:.0f} s",
            "blows: " + ", ".join(f"{name} {count}" for name, count in sorted(self.blows.items())),
            "calls ended: " + ", ".join(f"{name} {count}" for name, count in sorted(self.endings.items())),
            f"findings: {len(self.findings)}",
            *self.findings[:40],
        ]
        return "\n".join(lines)


class Chaos:
    """One run. `cards` says which blows fall, and how often in each deck; `failpoints` arms the flushers.

    `awaited` is a word on standard error without which the run would show nothing: until it stands there no store
    is hit and the run does not end, however slow the machine is. `follows` is one that is waited for when the traffic
    is over and nothing is healed yet.
    """

    def __init__(
        self,
        directory: Path,
        *,
        variant: Variant = "sqlite",
        requests: int = 5000,
        seed: int = 1,
        workers: int = 2,
        clients: int = 1,
        concurrency: int = 48,
        pause: tuple[float, float] = (0.1, 0.7),
        cards: Mapping[str, int] | None = None,
        root: Path = ROOT,
        failpoints: str = "",
        awaited: str = "",
        follows: str = "",
        segment_bytes: int = 256 * 1024,
        quiet_seconds: float = QUIET_SECONDS_MAX,
        seconds_max: float = 1e9,
    ) -> None:
        self.directory = directory
        self.variant = variant
        self.requests = requests
        self.seed = seed
        self.workers = workers
        self.clients = clients
        self.concurrency = concurrency
        self.pause = pause
        self.random = random.Random(seed)
        self.blows: Counter[str] = Counter()
        self.findings: list[str] = []
        self.root = root
        self.segment_bytes = segment_bytes
        self.quiet_seconds = quiet_seconds
        self.seconds_max = seconds_max
        self.failpoints = failpoints
        self.awaited = awaited.encode()
        self.heard_at = -LINGER_SECONDS
        self.follows = follows.encode()
        self.redis: RedisServer | None = None
        self.postgres: PostgresServer | None = None
        self.weir: Gateway
        self.later: list[tuple[float, Callable[[], None]]] = []  # thaws and restarts that are due
        self.cards = dict(cards if cards is not None else CARDS | (STORE_CARDS if variant != "sqlite" else {}))
        self.deck: list[str] = []
        self._read_to: dict[Path, int] = {}
        self._lines: Counter[Path] = Counter()

    # === the run ===

    def run(self) -> Report:
        """Traffic and blows, quiet, the check. Findings are returned, not raised."""
        began = time.monotonic()
        ledger = self.directory / "ledger"
        with contextlib.ExitStack() as stack:
            upstream = stack.enter_context(UpstreamProcess(ledger))
            redis_url = database_url = None
            if self.variant != "sqlite":
                self.redis = stack.enter_context(RedisServer("none" if self.variant == "forgetful" else "aof"))
                self.postgres = stack.enter_context(PostgresServer())
                redis_url = self.redis.url
                database_url = self.postgres.url(self.postgres.create_database())
            self.weir = Gateway(
                self.directory,
                upstream.url,
                workers=self.workers,
                redis=redis_url,
                database=database_url,
                flushers=2 if redis_url else 0,
                root=self.root,
                settings={"journal": {"segment_bytes": self.segment_bytes}},
            )
            with self.weir:
                if self.failpoints:
                    self.arm(self.failpoints, "flush")
                clients = [self._client(number) for number in range(self.clients)]
                try:
                    self._fight(clients)
                    self._see_what_follows()
                finally:
                    for client in clients:
                        client.kill()
                        client.wait()
                self._heal()
                self._judge_resends()
                self.findings += [
                    f"a client ended with {client.returncode}" for client in clients if client.returncode not in (0, -9)
                ]
                upstream.wait_idle(120)
                rows = self._settle(upstream)
                endings = Counter(str(row["termination"]) for row in rows)
                endings["crash in mid-stream"] = sum(
                    row["termination"] == "crash" and bool(row["relayed_frames"]) for row in rows
                )
                asked = sum(event["event"] == "request" for event in upstream.events())
                try:
                    self.weir.assert_at_rest(120)
                except AssertionError as error:
                    self.findings.append(f"not at rest: {error}")
        seconds = time.monotonic() - began
        return Report(self.seed, self._over(), asked, len(rows), seconds, self.blows, endings, self.findings)

    def _fight(self, clients: list[subprocess.Popen[bytes]]) -> None:
        """Blows until so many requests are over or the time is up, and each kind of blow has fallen.

        A request that finds nobody to answer is soon over and shows little: half of them must reach the upstream.
        """
        until = time.monotonic() + self.seconds_max
        at_last = time.monotonic() + AWAITED_SECONDS_MAX
        while all(client.poll() is None for client in clients):
            self._step()
            enough = self._over() >= self.requests and self._asked() >= self.requests * 0.5
            over = enough or time.monotonic() > until
            told = self._heard() and time.monotonic() > self.heard_at + LINGER_SECONDS
            if over and told and set(self.cards) <= set(self.blows):
                break
            if time.monotonic() > max(until, at_last):
                break
        self._dismiss(clients)

    def _heard(self) -> bool:
        """Whether what was awaited has been said."""
        if self.awaited and self.awaited in self.weir.errors.read_bytes():
            self.awaited, self.heard_at = b"", time.monotonic()
        return not self.awaited

    def _see_what_follows(self) -> None:
        """Gives the parts time to find out what has been done to them."""
        until = time.monotonic() + AWAITED_SECONDS_MAX
        while self.follows not in self.weir.errors.read_bytes() and time.monotonic() < until:
            self._restart_parts()
            time.sleep(0.05)

    @staticmethod
    def _dismiss(clients: list[subprocess.Popen[bytes]]) -> None:
        """Lets the clients finish what they have in hand."""
        for client in clients:
            client.terminate()
        for client in clients:
            client.wait(120)

    def _over(self) -> int:
        """How many requests are over, by the clients' own account."""
        return sum(self._count(self.directory / f"client-{number}", b"\n") for number in range(self.clients))

    def _asked(self) -> int:
        """How many requests reached the upstream, by its ledger."""
        return self._count(self.directory / "ledger", b'"event":"request"')

    def _count(self, path: Path, word: bytes) -> int:
        """How often the word stands in whole lines of the file so far; each line is read once."""
        if path.exists():
            with open(path, "rb") as file:
                file.seek(self._read_to.get(path, 0))
                new = file.read()
            new = new[: new.rfind(b"\n") + 1]
            self._read_to[path] = self._read_to.get(path, 0) + len(new)
            self._lines[path] += new.count(word)
        return self._lines[path]

    def _ledger_bytes(self) -> int:
        path = self.directory / "ledger"
        return path.stat().st_size if path.exists() else 0

    def _client(self, number: int) -> subprocess.Popen[bytes]:
        values = {
            "port": self.weir.port,
            "key": self.weir.key,
            "seed": self.seed * 1000 + number,
            "concurrency": self.concurrency,
            "name": f"c{number}",
            "out": self.directory / f"client-{number}",
        }
        arguments = [word for name, value in values.items() for word in (f"--{name}", str(value))]
        return subprocess.Popen([sys.executable, "-m", "tests.chaos.client", *arguments], cwd=ROOT)

    def _judge_resends(self) -> None:
        """A Redis that lost nothing never has to be sent anything twice: else something was acknowledged too early."""
        if self.redis is None or self.blows["kill redis"]:
            return
        _, page = self.weir.get("/metrics")
        for line in page.decode().splitlines():
            if line.startswith("weir_resends_total") and float(line.split()[-1]):
                self.findings.append(f"sent again, although Redis had lost nothing: {line}")

    def seen(self) -> dict[str, Seen]:
        """What all clients received, by request id."""
        found = {}
        for path in self.directory.glob("client-*"):
            for line in path.read_text().splitlines():
                said = json.loads(line)
                request_id = said.pop("id")
                found[request_id] = Seen(**said)
        return found

    def _settle(self, upstream: UpstreamProcess) -> list[dict[str, object]]:
        """Waits until the property holds, or for `quiet_seconds`, and keeps what is still found then."""
        deadline = time.monotonic() + self.quiet_seconds
        while True:
            rows = self.weir.rows()
            findings = check(upstream.events(), rows, self.seen())
            # What is lost may still come; what is doubled or wrong stays so.
            if not any(finding.startswith("lost") for finding in findings) or time.monotonic() > deadline:
                self.findings += findings
                return rows
            time.sleep(1)

    # === blows ===

    def _step(self) -> None:
        """One blow, then a pause in which whatever is due is thawed or started again."""
        if not self.deck:
            self.deck = [name for name, count in self.cards.items() for _ in range(count)]
            self.random.shuffle(self.deck)
        name = self.deck.pop() if self.deck else ""
        how, _, part = name.partition(" ")
        if part in ("redis", "postgres"):
            if self._heard():
                self._blow_server(how, part, name)
        elif part:
            self._blow_part(how, part, name)
        until = time.monotonic() + self.random.uniform(*self.pause)
        # On a slow machine the parts need longer to stand up again: blows must fall on traffic, not on ruins.
        latest, asked = until + PATIENCE_SECONDS, self._ledger_bytes() + LEDGER_BYTES_BETWEEN_BLOWS
        while time.monotonic() < until or (self._ledger_bytes() < asked and time.monotonic() < latest):
            now = time.monotonic()
            due = [work for at, work in self.later if at <= now]
            self.later = [entry for entry in self.later if entry[0] > now]
            for work in due:
                work()
            self._restart_parts()
            time.sleep(0.05)

    def _blow_part(self, how: str, part: str, name: str) -> None:
        pids = sorted(self.weir.processes(part))
        if not pids:
            return
        pid = self.random.choice(pids)
        seconds = self.random.choice((0.05, 0.3, 1.0, 2.0, 7.0))
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL if how == "kill" else signal.SIGSTOP)
            self.blows[name] += 1
        if how == "freeze":
            self.later.append((time.monotonic() + seconds, lambda: self._thaw(pid)))

    def arm(self, failpoints: str, *verbs: str) -> None:
        """Kills supervisor and flushers, or only parts of these verbs, and starts them with these failpoints."""
        if failpoints:
            self.weir.env[VARIABLE] = failpoints
        for name, process in list(self.weir.parts.items()):
            verb, _, number = name.partition("-")
            if not verbs or verb in verbs:
                process.kill()
                process.wait()
                self.weir.start_part(verb, int(number or 0))

    @staticmethod
    def _thaw(pid: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            if alive(pid):
                os.kill(pid, signal.SIGCONT)

    def _blow_server(self, how: str, part: str, name: str) -> None:
        server = self.redis if part == "redis" else self.postgres
        if server is None or server.process is None or any(work.__name__ == part for _, work in self.later):
            return
        self.blows[name] += 1

        def again() -> None:
            if server.process is None:
                server.start()
            else:
                server.thaw()

        again.__name__ = part  # one blow at a time falls on each server
        {"kill": server.kill, "stop": server.stop, "freeze": server.freeze}[how]()
        self.later.append((time.monotonic() + self.random.choice((0.1, 0.5, 1.5, 3.0)), again))

    def _restart_parts(self) -> None:
        """Starts again what an operator's init system would: the supervisor and the flushers."""
        for name, process in list(self.weir.parts.items()):
            code = process.poll()
            if code is None:
                continue
            if code not in (-signal.SIGKILL, 1):
                self.findings.append(f"weir {name} ended by itself with {code}: {self.weir.stderr(600)}")
            self.blows[f"(restart {name.partition('-')[0]})"] += 1
            verb, _, number = name.partition("-")
            self.weir.start_part(verb, int(number or 0))

    def _heal(self) -> None:
        """No more blows: everything runs again, and without failpoints."""
        if self.weir.env:
            self.weir.env.clear()
            self.arm("")
        for _, work in self.later:
            work()
        self.later.clear()
        for pid in self.weir.processes():
            self._thaw(pid)
        deadline = time.monotonic() + 120
        while not self.weir.ready():
            self._restart_parts()
            if time.monotonic() > deadline:
                self.findings.append(f"not ready within 120 s of the last blow: {self.weir.stderr()}")
                return
            time.sleep(0.1)
        self._restart_parts()


def main() -> int:
    """One run from the command line; 1 when it finds something."""
    parser = argparse.ArgumentParser(description="Kills and freezes a whole Weir under traffic and checks its books.")
    parser.add_argument("--requests", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--variant", choices=("sqlite", "redis", "forgetful"), default="sqlite")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--clients", type=int, default=1)
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="weir-chaos-") as directory:
        report = Chaos(
            Path(directory),
            variant=options.variant,
            requests=options.requests,
            seed=options.seed,
            workers=options.workers,
            clients=options.clients,
        ).run()
    print(report)
    return 1 if report.findings else 0


if __name__ == "__main__":
    raise SystemExit(main())
