"""Per-request judgement in C: key digest, text estimate, limit cells. Bytes and integers cross; nothing here does I/O
except mapping the arena's file.
"""

from collections.abc import Sequence

def now_ns() -> int:
    """CLOCK_BOOTTIME in nanoseconds: the same clock as `clock.now_ns`, for the hot path."""

def key_digest(secret: bytes, pepper: bytes) -> bytes:
    """Keyed BLAKE2b-256 (RFC 7693) of an API key: 32 bytes. `pepper` is 16 to 64 bytes."""

def key_well_formed(secret: bytes) -> bool:
    """Whether `wk_<env>_<43 base62>_<6 base62>` holds and its CRC-32 checksum is right; no look-up, no allocation."""

RATE_REQUESTS: int  # entry kinds of `Limits`
RATE_TOKENS: int
CONCURRENCY: int

class Limits:
    """The limits one (tenant, key, model) is under: cells found once per policy snapshot, judged in one call.

    entries: (kind, scope, limit, burst): scope is bytes such as b"tenant/acme"; rates are per minute; burst 0 means
    `limit`. Raises ArenaFull when a cell cannot be had, ValueError for a limit or burst out of [1, 2**40].
    """

    def __init__(self, arena: Arena, entries: Sequence[tuple[int, bytes, int, int]]) -> None: ...
    @property
    def holds(self) -> tuple[int, ...]:
        """Cell numbers of the concurrency entries, for the journal's slot."""
    def token_burst(self) -> int:
        """The smallest burst among token entries, or 2**62 without one."""
    def acquire(self, now_ns: int, tokens: int) -> int:
        """Takes one request, `tokens` tokens and one concurrency from every entry, or nothing from any.

        0 when admitted, else the 1-based index of the refusing entry; `wait_ns` then says how long until it could pass
        (0 for concurrency).
        """
    @property
    def wait_ns(self) -> int: ...
    def settle_tokens(self, now_ns: int, reserved: int, used: int) -> None:
        """Returns what was reserved and not used to every token entry, or charges the difference."""
    def refund(self, now_ns: int, tokens: int) -> None:
        """Undoes `acquire` in full, concurrency included: only for a call that was never opened in the journal."""
    def headers(self, now_ns: int) -> bytes:
        """OpenAI's x-ratelimit-* response header lines for the tightest request and token entries, b"" without any."""

class ArenaFull(Exception): ...

class Arena:
    """The host's limits in one mapped file: rate cells, count cells with a column per worker life, and the board.

    Opening creates it, or starts it afresh when layout version or boot id do not match (under a lock: all processes
    agree). `column` is -1 for a process that holds nothing (keeper, supervisor, CLI).
    """

    def __init__(self, path: str, boot_id: str, column: int = -1) -> None: ...
    column: int
    def word(self, index: int) -> int:
        """A word of the board's page, 0 <= index < 64: generations and host-wide facts (names in `proxy/board.py`)."""
    def set_word(self, index: int, value: int) -> None: ...
    def raise_word(self, index: int) -> int:
        """Adds one, atomically; returns the new value."""
    def column_word(self, column: int, index: int) -> int:
        """A word of a column's row, 0 <= index < 32: written by its worker, read by all."""
    def set_column_word(self, column: int, index: int, value: int) -> None: ...
    def used(self, cell: int) -> int:
        """Sum over all columns of a count cell: what is held now."""
    def held_total(self) -> int:
        """Sum over all count cells and columns: 0 at rest."""
    def overwrite_column(self, column: int) -> int:
        """Recovery: used := settled in every count cell of a dead life's column. Returns the cells that changed."""
    def reclaim_idle(self, now_ns: int, idle_ns: int) -> int:
        """Keeper only: frees rate cells that are full again and count cells at 0, both untouched for `idle_ns`."""
    def usage(self) -> tuple[int, int, int, int]:
        """(rate cells used, rate cells, count cells used, count cells)."""
    def close(self) -> None: ...
