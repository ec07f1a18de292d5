"""The board: names of the arena's words, and a reader of its rows. One process writes each word, all may read it.

Host words are written by the keeper, except the supervisor's own and the generations, which whoever changed the thing
raises. A column's words are written by the worker whose life holds the column. Times are `clock.now_ns`, in
nanoseconds.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from proxy._fastpath import Arena
from proxy.bounds import COLUMNS

# === host words: Arena.word(index) ===
POLICY_GENERATION: Final = 0  # raised after a new policy snapshot has been renamed in place
KEYS_GENERATION: Final = 1  # raised after a change has been committed that may have ended or narrowed keys
KEEPER_HEARTBEAT_NS: Final = 2
KEEPER_PID: Final = 3
REDIS_STATE: Final = 4
DATABASE_STATE: Final = 5
JOURNAL_BYTES: Final = 6  # of all epochs on this host
JOURNAL_OLDEST_US: Final = 7  # age of the oldest record that the database does not have; 0 without one
RELOADS_OK: Final = 8
RELOADS_FAILED: Final = 9
DRAINING: Final = 10  # 1 once the whole host is going down
KEYS_CREATED: Final = 11  # raised after a new key has been committed: what was unknown may be known now
SUPERVISOR_HEARTBEAT_NS: Final = 12  # the supervisor's own; it stays when that is killed, and is 0 after an orderly end
KEYS_FRESH_NS: Final = 13  # when the look at the key table began whose outcome the words above have; 0: there was none
KEYS_FRESH_NS_MAX: Final = 14  # how old that may be, by the policy in use
KEYS_ON_STALE: Final = 15  # what happens when it is older

# === column words: Arena.column_word(column, index) ===
COLUMN_POLICY_GENERATION: Final = 0  # the POLICY_GENERATION this worker serves from
COLUMN_KEYS_GENERATION: Final = 1  # the KEYS_GENERATION up to which it has asked again about the keys it knows
PID: Final = 2
PLACE: Final = 3  # the supervisor's number of the worker
STATE: Final = 4
HEARTBEAT_NS: Final = 5
OPEN_SLOTS: Final = 6
LOOP_LAG_US: Final = 7  # the event loop's worst delay since the last heartbeat
EPOCH_HI: Final = 8  # the first eight bytes of the epoch, big-endian
EPOCH_LO: Final = 9
CONNECTIONS: Final = 10
STREAMS: Final = 11

# === values of STATE ===
NO_STATE: Final = 0  # nobody, or a life that has ended
STARTING: Final = 1
SERVING: Final = 2
DRAINING_WORKER: Final = 3

# === values of REDIS_STATE and DATABASE_STATE ===
NOT_CONFIGURED: Final = 0  # or not known yet
OK: Final = 1
AWAY: Final = 2

# === values of KEYS_ON_STALE ===
ALLOW: Final = 0
REFUSE: Final = 1


def keys_stale(arena: Arena, now_ns: int) -> bool:
    """Whether nobody knows of late which keys have ended: the last look at them is older than the policy allows."""
    return now_ns - arena.word(KEYS_FRESH_NS) > arena.word(KEYS_FRESH_NS_MAX) > 0


class Row(NamedTuple):
    """One worker life as its column says it. `epoch` is 16 bytes."""

    column: int
    pid: int
    place: int
    state: int
    heartbeat_ns: int
    policy_generation: int
    keys_generation: int
    open_slots: int
    loop_lag_us: int
    epoch: bytes
    connections: int
    streams: int


class Board:
    """Readable names for the words of one arena."""

    def __init__(self, arena: Arena) -> None:
        self.arena = arena

    def rows(self) -> list[Row]:
        """Every column whose worker says it lives. One that was killed says so too, until `clear`."""
        rows = (self.row(column) for column in range(COLUMNS))
        return [row for row in rows if row.state != NO_STATE]

    def row(self, column: int) -> Row:
        """What one column says, living or not. IndexError above the last column."""
        words = [self.arena.column_word(column, index) for index in range(STREAMS + 1)]
        return Row(
            column=column,
            pid=words[PID],
            place=words[PLACE],
            state=words[STATE],
            heartbeat_ns=words[HEARTBEAT_NS],
            policy_generation=words[COLUMN_POLICY_GENERATION],
            keys_generation=words[COLUMN_KEYS_GENERATION],
            open_slots=words[OPEN_SLOTS],
            loop_lag_us=words[LOOP_LAG_US],
            epoch=words[EPOCH_HI].to_bytes(8, "big") + words[EPOCH_LO].to_bytes(8, "big"),
            connections=words[CONNECTIONS],
            streams=words[STREAMS],
        )

    def start(self, column: int, *, pid: int, place: int, epoch: bytes, now_ns: int) -> None:
        """A worker takes its row: every word of an earlier life is wiped first. `epoch` is 16 bytes."""
        if len(epoch) != 16:
            raise ValueError(f"an epoch of {len(epoch)} bytes; 16 are right")
        self.clear(column)
        set_word = self.arena.set_column_word
        set_word(column, PID, pid)
        set_word(column, PLACE, place)
        set_word(column, EPOCH_HI, int.from_bytes(epoch[:8], "big"))
        set_word(column, EPOCH_LO, int.from_bytes(epoch[8:], "big"))
        set_word(column, HEARTBEAT_NS, now_ns)
        # Last, so that a reader who sees a state sees the words of this life.
        set_word(column, STATE, STARTING)

    def clear(self, column: int) -> None:
        """The life in this column is over: its own worker says so at the end, or recovery after a kill."""
        for index in (STATE, *(index for index in range(STREAMS + 1) if index != STATE)):
            self.arena.set_column_word(column, index, 0)
