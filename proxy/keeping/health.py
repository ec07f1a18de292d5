"""Whether this host can serve: the words of the board, read and judged."""

from __future__ import annotations

from typing import NamedTuple

from proxy import board, bounds
from proxy.board import Board, Row

# The supervisor kills a worker at half of this; a row that is older belongs to one that nobody has cleared yet.
_STALE_NS = 2 * bounds.HEARTBEAT_SECONDS_MAX * 1_000_000_000


class Readiness(NamedTuple):
    """What /readyz answers. `word` is ready, degraded or unavailable."""

    status: int
    word: str
    reasons: tuple[str, ...]


def living(words: Board, now_ns: int) -> list[Row]:
    """Every worker life with a heartbeat."""
    return [row for row in words.rows() if now_ns - row.heartbeat_ns < _STALE_NS]


def readiness(words: Board, now_ns: int) -> Readiness:
    """Ready when at least one worker serves; degraded while something outside is away that calls can do without."""
    word = words.arena.word
    missing = []
    if word(board.DRAINING):
        missing.append("draining")
    if word(board.POLICY_GENERATION) == 0:
        missing.append("no policy is in use")
    if not any(row.state == board.SERVING for row in living(words, now_ns)):
        missing.append("no worker serves")
    database = word(board.DATABASE_STATE)
    if database not in (board.OK, board.AWAY):
        missing.append("the database has not been reached yet")
    stale = board.keys_stale(words.arena, now_ns)
    refused = stale and word(board.KEYS_ON_STALE) == board.REFUSE
    if refused:
        missing.append("nobody knows which keys have been revoked of late, and calls are refused meanwhile")
    if missing:
        return Readiness(503, "unavailable", tuple(missing))
    away = []
    if word(board.REDIS_STATE) == board.AWAY:
        away.append("redis is away: usage waits in the journal")
    if database == board.AWAY:
        away.append("the database is away: usage waits in the journal, keys not seen before are refused")
    if stale:
        away.append("nobody knows which keys have been revoked of late; calls are served by what is known here")
    return Readiness(200, "degraded" if away else "ready", tuple(away))
