"""The keeper as a process, over real journals: recovery, moving, pruning, reload, health, and its own death."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import text

from proxy import board, clock
from proxy import keeper as keeper_module
from proxy._fastpath import Arena
from proxy.board import Board
from proxy.epochs import live_and_dead
from proxy.failpoint import VARIABLE
from proxy.identity.actor import operator
from proxy.store.keys import KeyRow
from proxy.store.store import Store, migrate
from proxy.telemetry.families import FAMILIES
from tests.processes.conftest import HERE, ROOT, alive, eventually, facts_of
from tests.servers import RedisServer
from tests.world.gateway import free_port

WEIR = """
listen: {{host: 127.0.0.1, port: 0}}
metrics: {{host: 127.0.0.1, port: {port}}}
data_dir: data
{redis}
upstreams: {{default: {{url: "http://127.0.0.1:1/v1"}}}}
models: {{demo: {{upstream: default, unpriced: true}}}}
"""
POINTS = (
    "keeper.before_rename",
    "keeper.before_generation",
    "recover.before",
    "recover.after",
    "keeper.before_persist",
    "keeper.after_persist",
    "keeper.before_prune",
    "keeper.after_prune",
)
PLANS = "plans: {team: {}}\n"
TENANT = "name: demo\nplan: team\n"


class House:
    """A configuration and data directory with a migrated database; every process started here is gone at the end."""

    def __init__(self, path: Path, template: Path) -> None:
        self.config = path / "config"
        self.data = path / "data"
        self.log = path / "log"
        self.port = free_port()
        (self.config / "tenants").mkdir(parents=True)
        self.data.mkdir()
        self.configure()
        shutil.copy(template, self.data / "weir.db")
        self.arena = Arena(str(self.data / "arena"), clock.boot_id())
        self.url = f"sqlite:///{self.data / 'weir.db'}"
        self.processes: list[subprocess.Popen[Any]] = []

    def configure(self, redis: str = "") -> None:
        line = f"redis: {redis}" if redis else ""
        (self.config / "weir.yaml").write_text(WEIR.format(port=self.port, redis=line))
        (self.config / "plans.yaml").write_text(PLANS)
        (self.config / "tenants" / "demo.yaml").write_text(TENANT)

    def start(self, verb: str, *more: str, failpoints: str = "", fds: tuple[int, ...] = ()) -> subprocess.Popen[Any]:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), VARIABLE: failpoints}
        command = [sys.executable, "-m", "proxy", verb, "--config", str(self.config), *more]
        return self._start(command, environment, None, fds)

    def _start(
        self, command: list[str], environment: dict[str, str], out: Any = None, fds: tuple[int, ...] = ()
    ) -> subprocess.Popen[Any]:
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out or log, stderr=log, env=environment, pass_fds=fds
            )
        self.processes.append(process)
        return process

    def keeper(self, failpoints: str = "") -> subprocess.Popen[Any]:
        """Starts a keeper and waits until it keeps (or is dead, with a failpoint)."""
        process = self.start("keeper", failpoints=failpoints)

        def ready() -> bool:
            return process.poll() is not None or self.arena.word(board.KEEPER_PID) == process.pid

        eventually("the keeper keeps or ends", ready)
        assert failpoints or process.poll() is None, self.log.read_text()
        return process

    def worker(self, calls: int, left: int) -> tuple[subprocess.Popen[Any], bytes]:
        """A worker with `calls` calls, `left` of them in flight; returns it and its epoch."""
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, str(HERE / "journal_worker.py"), str(self.data), str(calls), str(left)]
        process = self._start(command, environment, subprocess.PIPE)
        line = process.stdout.readline()
        assert line, self.log.read_text()
        return process, bytes.fromhex(json.loads(line)["epoch"])

    def sql(self, statement: str) -> list[tuple[Any, ...]]:
        async def ask() -> list[tuple[Any, ...]]:
            store = Store.open(self.url, readonly=True)
            try:
                async with store.reading() as connection:
                    return [tuple(row) for row in await connection.execute(text(statement))]
            finally:
                await store.close()

        return asyncio.run(ask())

    def rows(self) -> dict[tuple[bytes, int], str]:
        """(epoch, call) → termination; the primary key forbids doubles, so every row is here."""
        return {
            (bytes(epoch), call): how for epoch, call, how in self.sql("SELECT epoch, call, termination FROM usage")
        }

    def get(self, path: str) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def metric(self, name: str, **labels: str) -> float:
        for family in text_string_to_metric_families(self.get("/metrics")[1]):
            for sample in family.samples:
                if sample.name == name and sample.labels == labels:
                    return float(sample.value)
        return 0.0

    def facts(self, message: str) -> list[dict[str, Any]]:
        return facts_of(self.log, message)

    def end(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()
        self.arena.close()


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated SQLite file, to be copied."""
    path = tmp_path_factory.mktemp("migrated") / "weir.db"
    asyncio.run(migrate(f"sqlite:///{path}"))
    return path


@pytest.fixture
def house(tmp_path: Path, template: Path) -> Iterator[House]:
    made = House(tmp_path, template)
    try:
        yield made
    finally:
        made.end()


def _expected(epoch: bytes, calls: int, left: int) -> dict[tuple[bytes, int], str]:
    return {(epoch, call): "crash" if call <= left else "complete" for call in range(1, calls + 1)}


def _settled(house: House, expected: dict[tuple[bytes, int], str]) -> None:
    """Every call has its row, the journal is empty, nothing was set aside, nothing is held."""
    eventually("every call has its row", lambda: house.rows() == expected)
    eventually("the journal is pruned", lambda: not list((house.data / "journal").iterdir()))
    assert house.sql("SELECT count(*) FROM quarantine") == [(0,)]
    assert house.sql("SELECT count(*) FROM conflicts") == [(0,)]
    assert house.sql("SELECT count(*) FROM epochs WHERE calls_total IS NULL") == [(0,)]
    assert house.arena.held_total() == 0


def test_a_killed_worker_becomes_rows(house: House) -> None:
    """SIGKILL to a worker with calls in flight: each call has one row, crashed ones with what was relayed, at once."""
    house.keeper()
    worker, epoch = house.worker(200, 5)
    eventually("the finished ones are there", lambda: len(house.rows()) == 195)
    assert all(info.alive for info in live_and_dead(house.data / "journal"))
    worker.kill()
    before = time.monotonic()
    eventually("the crashed ones are there", lambda: house.rows() == _expected(epoch, 200, 5))
    print(f"recovered and persisted within {time.monotonic() - before:.2f} s")
    _settled(house, _expected(epoch, 200, 5))
    crashed = house.sql(
        "SELECT prompt_tokens, completion_tokens, relayed_frames, relayed_bytes, source, upstream"
        " FROM usage WHERE termination = 'crash'"
    )
    assert crashed == [(7, 10, 2, 200, "counted", "default")] * 5
    assert Board(house.arena).rows() == []
    assert house.metric("weir_recoveries_total") == 1
    assert house.metric("weir_recovered_calls_total") == 5


def test_a_drained_worker_needs_no_recovery(house: House) -> None:
    """A worker that ends in order leaves a finished epoch; the keeper only moves and removes it."""
    house.keeper()
    worker, epoch = house.worker(50, 3)
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(120) == 0
    _settled(house, _expected(epoch, 50, 0))
    assert house.metric("weir_recoveries_total") == 0


def test_the_keeper_dies_between_any_two_steps(house: House) -> None:
    """Killed at each named place in turn, with a newly dead worker each time, keepers lose and double nothing."""
    expected: dict[tuple[bytes, int], str] = {}
    for point in POINTS:
        worker, epoch = house.worker(120, 4)
        expected |= _expected(epoch, 120, 4)
        worker.kill()
        worker.wait()
        assert house.keeper(f"{point}=kill").wait(120) == -signal.SIGKILL, point
    house.keeper()
    _settled(house, expected)


def test_keepers_killed_while_they_start(house: House) -> None:
    """Six keepers are killed at different moments of their start while workers come and die: one row a call."""
    expected: dict[tuple[bytes, int], str] = {}
    for number in range(6):
        keeper = house.start("keeper")
        worker, epoch = house.worker(100 + number, number)
        expected |= _expected(epoch, 100 + number, number)
        worker.kill()
        worker.wait()
        time.sleep(0.05 * number)
        keeper.kill()
        keeper.wait()
    house.keeper()
    _settled(house, expected)


def test_one_keeper_a_data_directory(house: House) -> None:
    """A second keeper is refused with a sentence that names the first."""
    first = house.keeper()
    assert house.start("keeper").wait(120) == 1
    assert f"Another keeper (process {first.pid}) works on {house.data}" in house.log.read_text()
    assert first.poll() is None


def test_a_frozen_keeper_gives_way_to_a_supervised_one(house: House) -> None:
    """A keeper that is stopped and silent would hold the lock for ever: a supervised one ends it and takes over."""
    first = house.keeper()
    first.send_signal(signal.SIGSTOP)
    lifeline, end = os.pipe()
    try:
        house.arena.set_word(board.KEEPER_HEARTBEAT_NS, clock.now_ns() - 60 * 1_000_000_000)
        second = house.start("keeper", "--lifeline-fd", str(lifeline), fds=(lifeline,))
        assert first.wait(120) == -signal.SIGKILL
        eventually("the second keeps", lambda: house.arena.word(board.KEEPER_PID) == second.pid)
    finally:
        os.close(lifeline)
        os.close(end)
    assert second.wait(120) == 0  # the lifeline is closed


def test_the_last_ship(house: House) -> None:
    """SIGTERM right after a worker ended: what it left is in the database when the keeper is gone, exit code 0."""
    keeper = house.keeper()
    keeper.send_signal(signal.SIGSTOP)
    worker, epoch = house.worker(300, 2)
    worker.kill()
    worker.wait()
    keeper.send_signal(signal.SIGTERM)
    keeper.send_signal(signal.SIGCONT)
    assert keeper.wait(120) == 0
    _settled(house, _expected(epoch, 300, 2))


def test_reload_is_whole_or_not_at_all(house: House) -> None:
    """A bad file: every problem is logged, the failure counted, snapshot and generation stay; mended, it is taken."""
    keeper = house.keeper()
    generation = house.arena.word(board.POLICY_GENERATION)
    snapshot = (house.data / "policy.snapshot").read_bytes()
    (house.config / "tenants" / "demo.yaml").write_text("name: demo\nplan: taem\nstatsu: active\n")
    keeper.send_signal(signal.SIGHUP)
    eventually("it is refused", lambda: house.metric("weir_reloads_total", result="failed") == 1)
    problems = " ".join(fact["problem"] for fact in house.facts("policy problem"))
    assert "taem" in problems
    assert "statsu" in problems
    assert house.arena.word(board.POLICY_GENERATION) == generation
    assert (house.data / "policy.snapshot").read_bytes() == snapshot
    assert house.arena.word(board.RELOADS_FAILED) == 1
    (house.config / "tenants" / "demo.yaml").write_text("name: demo\nplan: team\nstatus: suspended\n")
    keeper.send_signal(signal.SIGHUP)
    eventually("it is taken", lambda: house.arena.word(board.POLICY_GENERATION) == generation + 1)
    assert (house.data / "policy.snapshot").read_bytes() != snapshot
    assert (house.data / "policy.snapshot").stat().st_mode & 0o777 == 0o600


def test_a_keeper_starts_over_a_broken_configuration(house: House) -> None:
    """With an earlier snapshot it goes on with that; without one it refuses and says what to run."""
    first = house.keeper()
    generation = house.arena.word(board.POLICY_GENERATION)
    first.kill()
    first.wait()
    (house.config / "plans.yaml").write_text("plans: [\n")
    second = house.keeper()
    assert house.arena.word(board.POLICY_GENERATION) == generation
    second.kill()
    second.wait()
    (house.data / "policy.snapshot").unlink()
    assert house.start("keeper").wait(120) == 1
    assert "run `weir check`" in house.log.read_text()


def test_weir_reload(house: House) -> None:
    """The command returns 0 once the serving worker reports the generation, 1 with every problem of a bad file."""
    assert house.start("reload").wait(120) == 1
    assert "no keeper runs" in house.log.read_text()
    house.keeper()
    worker, _ = house.worker(1, 0)
    assert house.start("reload").wait(120) == 0
    generation = house.arena.word(board.POLICY_GENERATION)
    assert [row.policy_generation for row in Board(house.arena).rows()] == [generation]
    (house.config / "plans.yaml").write_text("plans: {team: {limits: {concurrency: none}}}\n")
    assert house.start("reload").wait(120) == 1
    assert "plans.yaml:1" in house.log.read_text()
    assert house.arena.word(board.POLICY_GENERATION) == generation
    worker.kill()


def test_metrics_page_of_a_live_host(house: House) -> None:
    """The page parses, every family on it is declared, and the worker's row is there."""
    house.keeper()
    worker, epoch = house.worker(10, 1)
    eventually("the rows are there", lambda: len(house.rows()) == 9)
    eventually("the keeper has counted them", lambda: house.metric("weir_persisted_records_total") >= 9)
    status, page = house.get("/metrics")
    assert status == 200
    families = {family.name: family for family in text_string_to_metric_families(page)}
    declared = {name.removesuffix("_total") for name in FAMILIES}
    assert set(families) <= declared
    assert {"weir_journal_bytes", "weir_journal_room_ratio", "weir_worker_state", "weir_arena_cells"} <= set(families)
    assert house.metric("weir_worker_state", column="0", place="0") == board.SERVING
    assert house.metric("weir_journal_epochs", state="alive") == 1
    assert house.metric("weir_epoch_bytes", epoch=epoch.hex()) > 0
    assert 0 < house.metric("weir_journal_room_ratio") <= 1
    assert house.metric("weir_database_up") == 1
    assert "weir_redis_up" not in families
    assert house.get("/healthz")[0] == 200
    assert house.get("/nothing")[0] == 404
    worker.kill()


def test_readiness_follows_the_workers(house: House) -> None:
    """503 without a serving worker, 200 with one, 503 while draining."""
    house.keeper()
    status, body = house.get("/readyz")
    assert (status, json.loads(body)["reasons"]) == (503, ["no worker serves"])
    worker, _ = house.worker(1, 0)
    eventually("it is ready", lambda: house.get("/readyz")[0] == 200)
    assert json.loads(house.get("/readyz")[1]) == {"status": "ready", "reasons": []}
    house.arena.set_word(board.DRAINING, 1)
    assert json.loads(house.get("/readyz")[1])["reasons"] == ["draining"]
    house.arena.set_word(board.DRAINING, 0)
    worker.kill()
    eventually("its row is cleared", lambda: house.get("/readyz")[0] == 503)


def test_damage_in_the_middle_is_an_alarm_and_holds_up_nothing(house: House) -> None:
    """A flipped byte inside synced records: the others become rows, the damaged one is set aside, the alarm counts."""
    worker, epoch = house.worker(60, 0)
    worker.kill()
    worker.wait()
    (segment,) = sorted((house.data / "journal" / epoch.hex()).glob("*.seg"))[:1]
    content = bytearray(segment.read_bytes())
    at = content.index(b"req_30")
    content[at] ^= 0xFF
    segment.write_bytes(bytes(content))
    house.keeper()
    expected = {key: how for key, how in _expected(epoch, 60, 0).items() if key[1] != 30}
    eventually("the others are rows", lambda: house.rows() == expected)
    eventually("the journal is pruned", lambda: not list((house.data / "journal").iterdir()))
    assert house.metric("weir_journal_damage_total") == 1
    assert house.sql("SELECT count(*) FROM quarantine") == [(1,)]


def test_keys_made_elsewhere_raise_the_generation(house: House) -> None:
    """A key that another host adds makes this host's workers ask again for unknown ones, an end for all of them."""

    def words() -> tuple[int, int]:
        return house.arena.word(board.KEYS_CREATED), house.arena.word(board.KEYS_GENERATION)

    house.keeper()
    assert words() == (1, 1), "the first look is over before the keeper says that it keeps"
    row = KeyRow("key_1", b"x" * 32, "demo", "", None, (), None, None, "abcd", 1)

    async def change(revoke: bool) -> None:
        store = Store.open(house.url)
        await (store.revoke_key("key_1", 2, operator()) if revoke else store.insert_key(row, operator()))
        await store.close()

    asyncio.run(change(False))
    eventually("the new key is noticed", lambda: words() == (2, 1))
    asyncio.run(change(True))
    eventually("its end is noticed", lambda: words() == (2, 2))

    async def remove() -> None:
        store = Store.open(house.url)
        await store.writing(lambda connection: connection.execute(text("UPDATE audit_head SET keys_made_seq = 0")))
        await store.close()

    asyncio.run(remove())
    eventually("an older copy of the table is distrusted", lambda: words() == (3, 3))


def test_the_audit_log_is_anchored(house: House) -> None:
    """While it keeps, and once more when it ends: rows that came a moment before are signed for too."""
    keeper = house.keeper()
    rows = [KeyRow(f"key_{n}", bytes([n]) * 32, "demo", "", None, (), None, None, "abcd", 1) for n in range(3)]

    async def change(row: KeyRow) -> None:
        store = Store.open(house.url)
        await store.insert_key(row, operator())
        await store.close()

    def anchored() -> list[int]:
        path = house.data / "audit.anchors.jsonl"
        return [json.loads(line)["seq"] for line in path.read_text().splitlines()] if path.exists() else []

    asyncio.run(change(rows[0]))
    eventually("the first row is anchored", lambda: anchored() == [1])
    for row in rows[1:]:
        asyncio.run(change(row))
    keeper.send_signal(signal.SIGTERM)
    assert keeper.wait(120) == 0
    assert anchored()[0] == 1
    assert anchored()[-1] == 3
    assert house.sql("SELECT count(*) FROM audit") == [(3,)]


# --- with Redis ---


def test_through_redis_to_rows(house: House, redis_server: RedisServer) -> None:
    """Keeper to stream to flusher to rows; keepers die around the shipping, and every call is one row."""
    house.configure(redis_server.url)
    house.start("flush")
    worker, epoch = house.worker(900, 5)
    for point in ("keeper.before_ship", "keeper.after_ship"):
        assert house.keeper(f"{point}=kill").wait(120) == -signal.SIGKILL
    house.keeper()
    worker.kill()
    _settled(house, _expected(epoch, 900, 5))
    eventually("the keeper knows", lambda: house.metric("weir_epoch_unpersisted_records", epoch=epoch.hex()) == 0)


def test_what_redis_forgot_is_sent_again(house: House, redis_server: RedisServer) -> None:
    """The stream vanishes before the flusher reads it, and again with entries behind: everything is sent again."""
    house.configure(redis_server.url)
    keeper = house.keeper()
    first, epoch_1 = house.worker(100, 2)
    eventually("it is shipped", lambda: house.metric("weir_shipped_records_total") >= 98)
    keeper.send_signal(signal.SIGSTOP)
    redis_server.command("FLUSHALL")
    second, epoch_2 = house.worker(50, 1)
    keeper.send_signal(signal.SIGCONT)
    house.start("flush")
    first.kill()
    second.kill()
    _settled(house, _expected(epoch_1, 100, 2) | _expected(epoch_2, 50, 1))
    assert house.metric("weir_resends_total") >= 1


def test_degraded_while_redis_is_away(house: House) -> None:
    """Redis frozen: /readyz is 200 and says degraded, the journal keeps; thawed: ready again, and every call a row."""
    with RedisServer() as redis:
        house.configure(redis.url)
        house.keeper()
        house.start("flush")
        worker, epoch = house.worker(40, 0)
        eventually("ready", lambda: json.loads(house.get("/readyz")[1])["status"] == "ready")
        redis.freeze()
        try:
            eventually("degraded", lambda: json.loads(house.get("/readyz")[1])["status"] == "degraded")
            status, body = house.get("/readyz")
            assert status == 200
            assert "redis is away" in body
            assert house.metric("weir_redis_up") == 0
        finally:
            redis.thaw()
        eventually("ready again", lambda: json.loads(house.get("/readyz")[1])["status"] == "ready")
        worker.kill()
        _settled(house, _expected(epoch, 40, 0))
        assert not alive(worker.pid)


def test_the_policies_in_use_are_recorded(house: House) -> None:
    """Each other version is a row; a reload without a change and another keeper on the same policy are none."""

    def recorded() -> list[tuple[Any, ...]]:
        return house.sql("SELECT host, number, tenants, plans, models, upstreams FROM policy_revisions ORDER BY number")

    keeper = house.keeper()
    host = (house.data / "id").read_text().strip()
    eventually("the first policy is recorded", lambda: recorded() == [(host, 1, 1, 1, 1, 1)])
    keeper.kill()
    keeper.wait()
    keeper = house.keeper()
    keeper.send_signal(signal.SIGHUP)
    eventually("published again", lambda: len(house.facts("policy published")) == 3)
    (house.config / "tenants" / "other.yaml").write_text("name: other\nplan: team\n")
    keeper.send_signal(signal.SIGHUP)
    eventually("the change is recorded", lambda: recorded()[1:] == [(host, 2, 2, 1, 1, 1)])
    newest = house.facts("policy published")[-1]
    assert house.sql("SELECT version, generation FROM policy_revisions WHERE number = 2") == [
        (newest["version"], newest["generation"])
    ]


def test_an_ending_that_hangs_ends_all_the_same() -> None:
    """Some clean-up cannot be cancelled: the process then goes without it, and with it the lock."""
    code = "import time\nfrom proxy.keeper import _end_at_last\n_end_at_last(0.1)\ntime.sleep(600)"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    assert subprocess.run([sys.executable, "-c", code], env=environment, timeout=120).returncode == 1


async def _twice_cancelled() -> None:
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.sleep(60)
    await asyncio.sleep(60)


def test_a_duty_that_swallows_its_cancellation_does_not_hold_up_the_end() -> None:
    """A library's clean-up may eat one cancellation; the duty is cancelled again, and the ending goes on."""

    async def end() -> bool:
        task = asyncio.create_task(_twice_cancelled())
        await asyncio.sleep(0)
        await keeper_module._cancel([task])
        return task.done()

    assert asyncio.run(end())
