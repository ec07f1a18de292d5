"""The board names words that do not collide, and shows a worker's life."""

from __future__ import annotations

import pytest

from proxy import board
from proxy.board import Board
from proxy.bounds import COLUMNS
from tests.fastpath.conftest import OpenArena

HOST = [
    "POLICY_GENERATION",
    "KEYS_GENERATION",
    "KEEPER_HEARTBEAT_NS",
    "KEEPER_PID",
    "REDIS_STATE",
    "DATABASE_STATE",
    "JOURNAL_BYTES",
    "JOURNAL_OLDEST_US",
    "RELOADS_OK",
    "RELOADS_FAILED",
    "DRAINING",
    "KEYS_CREATED",
    "SUPERVISOR_HEARTBEAT_NS",
    "KEYS_FRESH_NS",
    "KEYS_FRESH_NS_MAX",
    "KEYS_ON_STALE",
]
COLUMN = [
    "COLUMN_POLICY_GENERATION",
    "COLUMN_KEYS_GENERATION",
    "PID",
    "PLACE",
    "STATE",
    "HEARTBEAT_NS",
    "OPEN_SLOTS",
    "LOOP_LAG_US",
    "EPOCH_HI",
    "EPOCH_LO",
    "CONNECTIONS",
    "STREAMS",
]


@pytest.mark.parametrize(("names", "room"), [(HOST, 64), (COLUMN, 32)])
def test_no_two_names_share_a_word(names: list[str], room: int) -> None:
    """Each name has a word of its own, within the arena's room."""
    indices = [getattr(board, name) for name in names]
    assert len(set(indices)) == len(indices)
    assert all(0 <= index < room for index in indices)


def test_every_name_is_in_one_of_the_lists() -> None:
    """A new word must be added here, where collisions are found."""
    values = {"NO_STATE", "STARTING", "SERVING", "DRAINING_WORKER", "NOT_CONFIGURED", "OK", "AWAY", "COLUMNS"}
    values |= {"ALLOW", "REFUSE"}
    assert {name for name in vars(board) if name.isupper()} == {*HOST, *COLUMN, *values}


def test_a_life_is_shown_from_start_to_clear(open_arena: OpenArena) -> None:
    """A row shows every word of its life and none of an earlier one, in any process."""
    mine, theirs = Board(open_arena(4)), Board(open_arena(-1))
    assert theirs.rows() == []
    mine.arena.set_column_word(4, board.STREAMS, 99)
    mine.start(4, pid=123, place=2, epoch=bytes(range(240, 256)), now_ns=55)
    (row,) = theirs.rows()
    assert row == theirs.row(4)
    assert row == board.Row(4, 123, 2, board.STARTING, 55, 0, 0, 0, 0, bytes(range(240, 256)), 0, 0)
    mine.arena.set_column_word(4, board.CONNECTIONS, 7)
    assert theirs.row(4).connections == 7
    theirs.clear(4)
    assert mine.rows() == []
    assert [mine.arena.column_word(4, index) for index in range(32)] == [0] * 32
    with pytest.raises(ValueError, match="16 are right"):
        mine.start(4, pid=1, place=1, epoch=b"short", now_ns=1)
    with pytest.raises(IndexError):
        mine.row(COLUMNS)
