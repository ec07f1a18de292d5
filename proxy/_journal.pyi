"""Slots and segments in C: what is in flight and what is done. See DESIGN section 6 and `journal.py`, its face.

A slot's life: FREE, OPEN (record and holds first, the word last), SENT, CLOSING (final record in the header's one
closing area first), then append, settle, FREE. Recovery runs the same functions.
"""

from proxy._fastpath import Arena

class Slot:
    """One call in flight. Lives in the mapped slots file; this object is only its handle."""

    call: int  # dense per epoch, from 1: half of the call's identity
    def sent(self, attempt: int, sent: bytes) -> None:
        """Before the first byte goes upstream: the msgpack of `call.Sent`, at most SENT_BYTES_MAX."""
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
    ) -> None:
        """Whole or not at all (double buffer and flip word), before the client write. `_wire` calls the C form."""
    def counters(self) -> tuple[int, ...]:
        """The fields of `call.Progress`, in its order, as the slot says them."""

class Writer:
    """The living side of one epoch: slots plus the segment being written. Not thread-safe but for `sync`."""

    def __init__(self, slots_fd: int, segment_fd: int, arena: Arena) -> None: ...
    def open(self, record: bytes, holds: tuple[int, ...]) -> Slot | None:
        """Takes a free slot and opens a call; `holds` are cell numbers whose column this life has raised by 1.

        None when no slot is free or the room left could not hold the record of every open slot (refuse: 503).
        """
    def close(self, slot: Slot, record: bytes) -> int:
        """Finishes a call, synchronously: CLOSING, append, settle (columns fall), FREE. Returns the record's seq."""
    open_slots: int
    calls: int  # opened so far
    seq: int  # last appended record
