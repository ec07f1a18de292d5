"""Readiness as a judgement over the words of the board."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from proxy import board, bounds, clock
from proxy._fastpath import Arena
from proxy.board import Board
from proxy.keeping.health import living, readiness
from proxy.keeping.page import room_ratio
from proxy.verbs.reload import behind

NOW_NS = 1_000_000_000_000


@pytest.fixture
def words(tmp_path: Path) -> Iterator[Board]:
    """A host that serves: one worker, a policy, a database."""
    arena = Arena(str(tmp_path / "arena"), clock.boot_id())
    made = Board(arena)
    made.start(3, pid=1, place=0, epoch=bytes(16), now_ns=NOW_NS)
    arena.set_column_word(3, board.STATE, board.SERVING)
    arena.set_word(board.POLICY_GENERATION, 1)
    arena.set_word(board.DATABASE_STATE, board.OK)
    yield made
    arena.close()


def test_ready(words: Board) -> None:
    """With a worker, a policy and a database, and no Redis asked for, the host is ready."""
    assert readiness(words, NOW_NS) == (200, "ready", ())
    words.arena.set_word(board.REDIS_STATE, board.OK)
    assert readiness(words, NOW_NS).word == "ready"


def test_who_holds_a_reload_up(words: Board) -> None:
    """Those that serve by an older policy and live; not those that only start, drain, or have given no heartbeat."""
    arena = words.arena
    arena.set_word(board.POLICY_GENERATION, 3)
    states = (board.SERVING, board.SERVING, board.STARTING, board.DRAINING_WORKER, board.SERVING)
    for column, state in enumerate(states, 10):
        words.start(column, pid=column, place=0, epoch=bytes(16), now_ns=NOW_NS)
        arena.set_column_word(column, board.STATE, state)
    words.clear(3)
    arena.set_column_word(11, board.COLUMN_POLICY_GENERATION, 3)
    arena.set_column_word(14, board.HEARTBEAT_NS, NOW_NS - int(2 * bounds.HEARTBEAT_SECONDS_MAX * 1e9))
    assert behind(words, NOW_NS) == [10]
    arena.set_column_word(10, board.COLUMN_POLICY_GENERATION, 4)  # published in the meantime
    assert behind(words, NOW_NS) == []


@pytest.mark.parametrize(
    ("journal", "most", "disk", "ratio"),
    [(0, 1000, 10**9, 1.0), (250, 1000, 10**9, 0.75), (250, 1000, 100, 0.1), (0, 1000, 0, 0.0), (1200, 1000, 99, 0.0)],
)
def test_room_ends_with_the_maximum_or_the_disk(journal: int, most: int, disk: int, ratio: float) -> None:
    """Whichever is nearer: a disk that is nearly full is said long before the journal has grown to its maximum."""
    assert room_ratio(journal, most, disk) == ratio


@pytest.mark.parametrize(("word", "named"), [(board.REDIS_STATE, "redis"), (board.DATABASE_STATE, "database")])
def test_degraded(words: Board, word: int, named: str) -> None:
    """Redis or the database away leaves the host in service, with the reason said."""
    words.arena.set_word(word, board.AWAY)
    status, status_word, reasons = readiness(words, NOW_NS)
    assert (status, status_word) == (200, "degraded")
    assert len(reasons) == 1
    assert named in reasons[0]


@pytest.mark.parametrize(
    ("word", "value", "reason"),
    [
        (board.DRAINING, 1, "draining"),
        (board.POLICY_GENERATION, 0, "no policy is in use"),
        (board.DATABASE_STATE, board.NOT_CONFIGURED, "the database has not been reached yet"),
    ],
)
def test_unavailable(words: Board, word: int, value: int, reason: str) -> None:
    """What a host cannot serve without makes it 503, whatever else is well."""
    words.arena.set_word(word, value)
    words.arena.set_word(board.REDIS_STATE, board.AWAY)
    assert readiness(words, NOW_NS) == (503, "unavailable", (reason,))


@pytest.mark.parametrize("state", [board.NO_STATE, board.STARTING, board.DRAINING_WORKER])
def test_only_a_serving_worker_counts(words: Board, state: int) -> None:
    """A worker that starts or drains does not make the host ready."""
    words.arena.set_column_word(3, board.STATE, state)
    assert readiness(words, NOW_NS) == (503, "unavailable", ("no worker serves",))


def test_a_worker_without_a_heartbeat_counts_for_nothing(words: Board) -> None:
    """A row that nobody has cleared after a kill does not make a dead host ready."""
    late_ns = NOW_NS + 2 * bounds.HEARTBEAT_SECONDS_MAX * 1_000_000_000
    assert [row.column for row in living(words, late_ns - 1)] == [3]
    assert living(words, late_ns) == []
    assert readiness(words, late_ns).reasons == ("no worker serves",)
