"""Per-request judgement in C: key digest, limit cells, the board. Bytes and integers cross; nothing here does I/O
except mapping the arena's file.
"""

from collections.abc import Iterable
from os import PathLike

from proxy.bounds import COUNT_CELLS, RATE_CELLS

def now_ns() -> int:
    """CLOCK_BOOTTIME in nanoseconds: the same clock as `clock.now_ns`, for the hot path."""

def wall_us() -> int:
    """Microseconds since 1970 UTC: the same clock as `clock.wall_us`, for the hot path."""

def key_digest(secret: bytes, pepper: bytes) -> bytes:
    """Keyed BLAKE2b-256 (RFC 7693) of an API key: 32 bytes. `pepper` is 16 to 64 bytes, else ValueError."""

def key_well_formed(secret: bytes) -> bool:
    """Whether `wk_<env>_<43 base62>_<6 base62>` holds and its CRC-32 checksum is right; no look-up, no allocation.

    env is 2 to 16 of [a-z0-9]. The checksum is zlib's CRC-32 of everything before the last underscore, as six base62
    digits (0-9A-Za-z), the highest first, with leading zeros.
    """

RATE_REQUESTS: int  # entry kinds of `Limits`
RATE_TOKENS: int
CONCURRENCY: int

class Limits:
    """The limits one (tenant, key, model) is under: cells found once per policy snapshot, judged in one call.

    entries: (kind, scope, limit, burst): scope is bytes such as b"tenant/acme"; rates are per minute; burst 0 means
    `limit`. Raises ArenaFull when a cell cannot be had, ValueError for a limit or burst out of [1, 2**40] and for a
    burst that takes more than 52 days to refill. Rates are kept in 1/64 ns per request or token, rounded up: never
    faster than written, slower by at most 1 in 10,000 up to 380 million a minute.

    May live as long as one likes: a cell that the keeper has reclaimed meanwhile is found anew where it is needed.
    """

    def __init__(self, arena: Arena, entries: Iterable[tuple[int, bytes, int, int]]) -> None: ...
    @property
    def holds(self) -> tuple[int, ...]:
        """Cell numbers of the concurrency entries, for the journal's slot.

        Read it after `acquire`, which may move them; the same tuple as before unless a cell has moved.
        """
    def token_burst(self) -> int:
        """The smallest burst among token entries, or 2**62 without one."""
    def acquire(self, now_ns: int, tokens: int) -> int:
        """Takes one request, `tokens` tokens and one concurrency from every entry, or nothing from any.

        0 when admitted, else the 1-based index of the refusing entry; `wait_ns` then says how long until it could pass
        (0 for concurrency). More tokens than an entry's burst never pass: clamp to `token_burst()` first. A `now_ns`
        older than another caller's is harmless: it sees less room, never more. Raises ArenaFull when a reclaimed cell
        cannot be had again; nothing is taken then. ValueError without a column when there is a concurrency entry.
        """
    @property
    def wait_ns(self) -> int: ...
    def settle_tokens(self, now_ns: int, reserved: int, used: int) -> None:
        """Returns what was reserved and not used to every token entry, or charges the difference.

        `reserved` is what `acquire` was given. A charge may run the bucket into debt, by 52 days at most. Never fails
        for want of a cell: a call can always be finished.
        """
    def refund(self, now_ns: int, tokens: int) -> None:
        """Undoes an `acquire` that returned 0, concurrency included: only for a call never opened in the journal.

        `tokens` is what `acquire` was given.
        """
    def headers(self, now_ns: int) -> bytes:
        """OpenAI's x-ratelimit-* response header lines for the tightest request and token entries, b"" without any.

        limit, remaining and reset of each, lower-case names, every line ending in CRLF. The tightest has the least
        remaining. Reset is when the bucket is full again, written as Go writes durations: 12ms, 8.64s, 6m0s, 1h2m3s.
        """

class ArenaFull(Exception):
    """No cell can be had for a limit: refuse the call, since a limit must never be missing."""

class Arena:
    """The host's limits in one mapped file: rate cells, count cells with a column per worker life, and the board.

    Opening creates it, or starts it afresh when layout version, sizes or boot id do not match (under a lock: all
    processes agree). Afresh is a new file renamed in place: a process that still has the old one keeps it. `column` is
    -1 for a process that holds nothing (keeper, supervisor, CLI). No descriptor stays open. The cell counts are powers
    of two. Words are unsigned 64-bit. Every method raises ValueError once closed, IndexError for an index out of range.

    Times are in nanoseconds since boot and good for four years of uptime.
    """

    def __init__(
        self,
        path: str | PathLike[str],
        boot_id: str,
        column: int = -1,
        *,
        rate_cells: int = RATE_CELLS,
        count_cells: int = COUNT_CELLS,
    ) -> None: ...
    @property
    def column(self) -> int: ...
    @property
    def path(self) -> str: ...
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
        """Sum over all count cells and columns of what is held and not settled: 0 at rest."""
    def overwrite_column(self, column: int) -> int:
        """Recovery: used := settled in every count cell of a dead life's column. Returns the cells that changed."""
    def reclaim_idle(self, now_ns: int, idle_ns: int) -> int:
        """Keeper only: frees rate cells that are full again and count cells at 0, both untouched for `idle_ns`.

        Returns how many. Safe against every other process at every instant, and against its own death; only one caller
        at a time on a host, which the keeper's lock sees to.
        """
    def usage(self) -> tuple[int, int, int, int]:
        """(rate cells used, rate cells, count cells used, count cells)."""
    def close(self) -> None: ...

class BadTable(Exception):
    """A file is no token table that this build can use; the message is one sentence."""

class Encoding:
    """Counts tokens exactly, by a table that `proxy.tokens.build` made. One per process and vocabulary is enough.

    The table is mapped read-only and shared by all processes; about 0.4 MB of caches are this object's own. Text is
    bytes of UTF-8; special tokens are not looked for. Bytes that are no UTF-8 are counted, by a rule of their own.
    """

    def __init__(self, path: str | PathLike[str]) -> None:
        """Maps the table; its magic, version and sizes are checked, not its sum. Raises BadTable."""
    @property
    def name(self) -> str:
        """What the table calls its encoding: "o200k_base"."""
    @property
    def path(self) -> str: ...
    def count(self, text: bytes) -> int:
        """The tokens of a text. Above `bounds.TEXT_BYTES_INLINE` it is counted without the GIL: from any thread, with
        other caches. Raises MemoryError.
        """
    def stream(self) -> TextStream:
        """Counts a text that comes in parts."""

class TextStream:
    """The exact number of tokens of what was fed so far, wherever the text is cut; characters may be cut too.

    Needs the GIL. A complete piece is counted as soon as something follows it; a piece that may still grow is counted
    by `count` each time. Of one with more than 256 bytes only the end is: mostly some microseconds, at worst a tenth of
    a millisecond, so that a count after every feed stays linear. (A piece whose windows cannot be joined, see _merge.h,
    is counted whole each time.) After MemoryError the count has lost some text.
    """

    def __init__(self, encoding: Encoding) -> None: ...
    def feed(self, text: bytes) -> None: ...
    def feed_json(self, raw: bytes) -> None:
        """The inside of one whole JSON string, escapes and all.

        A high surrogate at its end is joined with a low one at the next call's start; one alone counts as U+FFFD.
        """
    def count(self) -> int:
        """The tokens of all that was fed, as if the text ended here."""
    @property
    def pending(self) -> int:
        """Bytes that may still become other tokens."""

class Tally:
    """Where one kind of event is counted: the first cells of up to 16 counters and up to 4 histograms, found once.

    A place below 0 stands for a series that this kind does not have: its amount is let go.
    """

    def __init__(self, counters: tuple[int, ...], histograms: tuple[int, ...]) -> None: ...

class Cells:
    """One column of the metrics file, for adding to several series at once.

    cells: a writable buffer of unsigned 64-bit words, which stays exported until `close`. bounds: of the histograms'
    buckets, ascending; one more bucket and the sum follow those that have a bound.
    """

    def __init__(self, cells: memoryview, bounds: tuple[int, ...]) -> None: ...
    def add(self, tally: Tally, *amounts: int) -> None:
        """Adds each amount to its place, those of the counters first. Sums wrap at 2**64.

        A histogram counts an amount in its bucket, and does not count one below 0; at place 0 it is one counter of
        events. Raises ValueError for another number of amounts than of places and once closed, OverflowError for an
        amount of 2**63 or more.
        """
    def close(self) -> None: ...
