"""`weir flush` killed at each named point, frozen and thawed: exact afterwards. Mutants of it: each one caught."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import pytest

from proxy.store.redis import RedisTransport
from proxy.store.store import Store, migrate
from tests.flush.flushing import ORIGIN, ROOT, FlushProcess, ship
from tests.servers import RedisServer, wait_until
from tests.store.records import batches, differences, eventually, mixed, run

EPOCH = bytes(range(16))
OTHER = bytes(reversed(range(16)))
EVENTS = {EPOCH: mixed(21, 600), OTHER: mixed(22, 300)}
PARTS = [part for epoch, events in EVENTS.items() for part in batches(epoch, events, 25, ORIGIN)]  # 36 entries, 4 turns
POINTS = [
    ("flush.before_persist", "postgres"),
    ("flush.in_transaction", "sqlite"),
    ("flush.in_transaction", "postgres"),
    ("flush.after_commit", "sqlite"),
    ("flush.after_commit", "postgres"),
    ("flush.after_ack", "postgres"),  # from here on the database is done with it: one kind is enough
    ("flush.after_trim", "sqlite"),
]


async def judge(url: str, redis_url: str) -> list[str]:
    """Waits until the stream is drained; what is then wrong in the database and in Redis."""
    store, transport = Store.open(url), RedisTransport(redis_url)
    try:

        async def drained() -> bool:
            return (await transport.state(ORIGIN)).drained

        await eventually(drained, "the stream is drained")
        found = await differences(store, EVENTS)
        found += [finding.sentence for finding in (await store.verify()).findings]
        found += [f"position {position}" for position in (await store.persisted([EPOCH])).values() if position != 600]
        return found
    finally:
        await store.close()
        await transport.close()


async def fill(redis_url: str) -> None:
    """Ships everything before any flusher runs."""
    transport = RedisTransport(redis_url)
    await ship(transport, PARTS)
    await transport.close()


def killed_at(point: str, url: str, redis_url: str, root: Path = ROOT) -> list[str]:
    """One flusher dies at the point, a second one finishes; what is wrong then."""
    run(fill(redis_url))
    with FlushProcess(url, redis_url, failpoints=f"{point}=kill@2", root=root) as first:
        code, errors = first.wait()
        assert code == -signal.SIGKILL, errors
    with FlushProcess(url, redis_url, root=root) as second:
        try:
            return run(judge(url, redis_url))
        finally:
            second.signal(signal.SIGTERM)
            code, errors = second.wait()
            assert code == 0, errors


@pytest.mark.parametrize(("point", "kind"), POINTS)
def test_killed_at_each_point(request: pytest.FixtureRequest, redis_server: RedisServer, point: str, kind: str) -> None:
    """SIGKILL in the second turn: another flusher takes over, every record is one row and roll-ups are exact."""
    assert killed_at(point, request.getfixturevalue(f"{kind}_url"), redis_server.url) == []
    # Nothing lies about in the stream either: the last flusher has trimmed what the first one left.
    assert redis_server.command("XLEN", f"weir:usage:{ORIGIN}") == b":0\r\n"


def test_frozen_until_another_has_done_its_work(url: str, redis_server: RedisServer) -> None:
    """Stopped with entries in hand, past the claim time; thawed, it persists them again and changes nothing."""
    run(fill(redis_server.url))
    with FlushProcess(url, redis_server.url, failpoints="flush.before_persist=stop@2") as frozen:
        wait_until(frozen.frozen, "the first flusher stops at its failpoint")
        with FlushProcess(url, redis_server.url) as second:
            assert run(judge(url, redis_server.url)) == []
            frozen.signal(signal.SIGCONT)
            frozen.signal(signal.SIGTERM)
            code, errors = frozen.wait()
            assert code == 0, errors
            assert '"doubles":250' in errors
            second.signal(signal.SIGTERM)
            assert second.wait()[0] == 0
    assert run(judge(url, redis_server.url)) == []


# Name → (file, what it says, what the mutant says) for each change, the point where it is killed, what gives it away.
Change = tuple[str, str, str]
MUTANTS: dict[str, tuple[list[Change], str, str]] = {
    "acknowledges before the commit": (
        [
            (
                "flush/loop.py",
                "            persisted = await",
                "            self.source.done(entries)\n"
                "            await self.source.acknowledge()\n"
                "            persisted = await",
            )
        ],
        "flush.in_transaction",
        "missing",
    ),
    "has no primary key": (
        [
            (
                "store/migrations/versions/0001_first_schema.py",
                '        sa.PrimaryKeyConstraint("epoch", "call", name="usage_pkey"),\n'
                "        sqlite_with_rowid=False,\n",
                "",
            ),
            (
                "store/dialect.py",
                "SELECT call, digest FROM usage WHERE",
                "SELECT call, digest FROM usage WHERE false AND",
            ),
            ("store/dialect.py", "ON CONFLICT (epoch, call) DO NOTHING ", ""),
        ],
        "flush.after_commit",
        "2 rows for call",
    ),
    "sums every row and not the new ones": (
        [("store/persist.py", "roll_up(rows.values())", "roll_up(folded.rows.values())")],
        "flush.after_commit",
        "roll-up",
    ),
    "sums in another transaction": (
        [
            (
                "store/persist.py",
                'failpoint.reach("flush.in_transaction")',
                'await connection.exec_driver_sql("COMMIT")\n'
                '        failpoint.reach("flush.in_transaction")\n'
                '        await connection.exec_driver_sql("BEGIN IMMEDIATE")',
            )
        ],
        "flush.in_transaction",
        "roll-up",
    ),
    "trims what is not acknowledged": (
        [("store/redis.py", '_text(pending["min"]) if pending["pending"] else _next', "_next")],
        "flush.before_persist",
        "missing",
    ),
    "joins the stream at its end": (
        [("store/redis.py", 'id="0"', 'id="$"')],
        "",
        "missing",
    ),
}


def mutated(directory: Path, changes: list[Change]) -> Path:
    """A copy of the package with the changes made; each must fit exactly one place."""
    shutil.copytree(ROOT / "proxy", directory / "proxy")
    for name, old, new in changes:
        path = directory / "proxy" / name
        source = path.read_text(encoding="utf-8")
        assert source.count(old) == 1, f"{name} does not say {old!r} once: the mutant needs a new place"
        path.write_text(source.replace(old, new), encoding="utf-8")
    return directory


@pytest.mark.parametrize("name", MUTANTS)
def test_each_mutant_is_caught(tmp_path: Path, redis_server: RedisServer, name: str) -> None:
    """The same kill and the same judge as above must find fault with a flusher that breaks one promise."""
    changes, point, sign = MUTANTS[name]
    root = mutated(tmp_path / "mutant", changes)
    url = f"sqlite:///{tmp_path}/mutant.db"
    if point:
        found = killed_at(point, url, redis_server.url, root)
    else:
        run(migrate(url))
        run(fill(redis_server.url))
        with FlushProcess(url, redis_server.url, root=root) as only:
            found = run(judge(url, redis_server.url))
            only.signal(signal.SIGTERM)
            assert only.wait()[0] == 0
    assert any(sign in one for one in found), found[:5]


def test_it_says_why_it_cannot_start(tmp_path: Path, redis_server: RedisServer) -> None:
    """Without a schema and without --migrate, and with a URL of no known kind: one sentence and exit code 1."""
    from proxy.cli import main

    words = ["flush", "--redis", redis_server.url, "--database"]
    assert main([*words, f"sqlite:///{tmp_path}/absent.db"]) == 1
    assert main([*words, "mysql://x"]) == 1
