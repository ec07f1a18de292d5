"""Slots and segments in C: what is in flight and what is done. See DESIGN section 6 and `journal.py`, its face.

A slot's life: FREE, OPEN (record and holds first, the word last), SENT, CLOSING (final record in the header's one
closing area first), then append, settle, FREE. Recovery runs the same functions.
"""

from collections.abc import Callable

from proxy._fastpath import Arena

SLOTS_HEAD_BYTES: int
SEGMENT_HEAD_BYTES: int
RECORD_SPACE_MAX: int  # bytes of a segment that the largest record takes

class Malformed(ValueError):
    """A file of the journal that is not what its name says, or of a format this version does not know.

    Slots files of the format before are known to `Recovery`: what was in flight when the version changed is not lost.
    """

def crc32c(data: bytes, portable: bool = False) -> int:
    """CRC-32C (RFC 3720) of `data`; `portable` takes the tables even where the CPU has the instruction."""

def slots_bytes(slots: int) -> int:
    """Size of a slots file."""

class Segment:
    """One segment file, mapped. Owns `fd`.

    With `epoch` an empty, zeroed file becomes segment `index`. With `mend` too, an existing file whose header is lost
    gets a new one, made from the records that can be read. Raises Malformed, OSError.
    """

    fd: int
    def __init__(
        self, fd: int, epoch: bytes | None = None, index: int = 0, *, writable: bool = True, mend: bool = False
    ) -> None: ...
    @property
    def index(self) -> int:
        """As given, or else what the header says."""
    @property
    def epoch(self) -> bytes: ...
    @property
    def first_seq(self) -> int:
        """0 while it waits as a spare."""
    @property
    def last_seq(self) -> int: ...
    @property
    def synced(self) -> int:
        """Records up to here are on the disk."""
    @property
    def started_us(self) -> int:
        """Wall clock of its first use."""
    @property
    def bad(self) -> int:
        """1: its fdatasync failed; 2: what was unsynced stands in a later segment."""
    def mark_synced(self, seq: int) -> None: ...
    def mark_failed(self) -> None: ...
    def touch(self) -> None:
        """Makes every page dirty, so that the next fdatasync writes what a failed one has dropped."""
    def close(self) -> None: ...

class Slot:
    """One call in flight. Lives in the mapped slots file; this object is only its handle."""

    call: int  # dense per epoch, from 1: half of the call's identity
    @property
    def closed(self) -> bool: ...
    def sent(self, attempt: int, sent: bytes) -> None:
        """Before the first byte goes upstream: the msgpack of `call.Sent`, at most SENT_BYTES_MAX.

        Silent once the call is closed, as `progress` is.
        """
    def progress(
        self,
        frames: int,
        bytes_: int,
        text_bytes: int,
        prompt_tokens: int,
        cached_tokens: int,
        completion_tokens: int,
        reasoning_tokens: int,
        audio_tokens: int,
        usage_seen: int,
        first_us: int,
        status: int,
        text_tokens: int = 0,
        text_estimated: int = 0,
    ) -> None:
        """Whole or not at all (double buffer and flip word), before the client write. `_wire` calls the C form."""
    def counters(self) -> tuple[int, ...]:
        """The fields of `call.Progress`, in its order, as the slot says them. ValueError once the call is closed."""

class Slots:
    """The slots file of one epoch, mapped. The descriptor stays the caller's, with the lock on it."""

    def __init__(self, fd: int, *, writable: bool = True) -> None: ...
    @staticmethod
    def format(fd: int, epoch: bytes, column: int, slots: int, segment_bytes: int, created_us: int) -> None:
        """Writes the header of a zeroed file of `slots_bytes(slots)` bytes."""
    @property
    def epoch(self) -> bytes: ...
    @property
    def column(self) -> int: ...
    @property
    def calls(self) -> int:
        """Opened so far."""
    @property
    def recovered(self) -> bool: ...
    @property
    def segment_bytes(self) -> int: ...
    def mark_recovered(self) -> None:
        """The last word of a life: nothing is in flight, everything is on the disk, the column is free."""

class Writer(Slots):
    """The living side of one epoch: slots plus the segment being written.

    One thread opens and closes calls. The sync thread shares it under the GIL, which no method gives up halfway.
    """

    synced_seq: int
    failing: bool  # fdatasync fails: `open` refuses
    @property
    def open_slots(self) -> int: ...
    def __init__(self, slots_fd: int, segment: Segment, arena: Arena | None) -> None: ...
    def open(self, record: bytes, holds: tuple[int, ...]) -> Slot | None:
        """Takes a free slot and opens a call; `holds` are cell numbers whose column this life has raised by 1.

        None when no slot is free, the room left could not hold the record of every open slot, or the disk fails
        (refuse: 503). ValueError for a record above OPENED_BYTES_MAX or more than HOLDS_PER_SLOT holds.
        """
    def close(self, slot: Slot, record: bytes) -> int:
        """Finishes a call, synchronously: CLOSING, append, settle (columns fall), FREE. Returns the record's seq.

        ValueError, with nothing changed, for a closed slot or a record above RECORD_BYTES_MAX.
        """
    def end(self, payload: bytes) -> int:
        """Appends the EpochEnd: only when no call is open (ValueError)."""
    @property
    def seq(self) -> int:
        """Of the last record appended."""
    @property
    def slots(self) -> int: ...
    @property
    def records_left(self) -> int:
        """Records of the largest size that what is allocated can still hold."""
    @property
    def spare_count(self) -> int: ...
    @property
    def last_index(self) -> int:
        """Index of the newest segment, spares included."""
    def add_spare(self, segment: Segment) -> None: ...
    def to_sync(self) -> tuple[int, list[Segment]]:
        """(seq, segments): once these are on the disk, so is every record up to seq."""
    def mark_synced(self, seq: int, segments: list[Segment]) -> None: ...
    def close_files(self) -> None:
        """Closes the segments' descriptors: the life is over."""
    def spares_to_move(self) -> int:
        """Spares that `move_on` needs, so that afterwards every open call still has its room."""
    def move_on(self) -> int:
        """After a failed fdatasync: writes what is unsynced again, from memory, into fresh segments.

        The copies keep their seq. Returns the number of records moved.
        """

class Recovery(Slots):
    """The recoverer's side of a dead epoch. The caller holds the lock on the slots file."""

    @property
    def added(self) -> int: ...
    @property
    def gaps(self) -> int:
        """Places where records were lost to damage."""
    @property
    def ended(self) -> bool:
        """An EpochEnd stands in the segments."""
    @property
    def seq(self) -> int: ...
    def run(
        self,
        segments: list[Segment],
        build: Callable[[int, bytes, bytes | None, int, tuple[int, ...], int], bytes],
    ) -> bool:
        """Closes every call that is not closed; `build(call, opened, sent, attempt, counters, state)`.

        False: one more empty segment is needed; add it and run again. What `build` raises comes through, and the call
        it was about stays open: run again.
        """
    def end(self, payload: bytes) -> None:
        """Appends the EpochEnd; `run` has made room."""

def span(segments: list[Segment], epoch: bytes, whole: bool = True) -> tuple[int, int]:
    """(first, last) seq that can be read in these segments, (0, 0) without any; not `whole`: last is first."""

def read(
    segments: list[Segment], epoch: bytes, first: int, until: int, max_records: int, max_bytes: int
) -> tuple[list[bytes], int]:
    """(payloads, resumes): consecutive records from `first` on, up to `until`.

    `resumes` is 0, or the seq of the next readable record when what follows the payloads is damaged.
    """
