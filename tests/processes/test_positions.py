"""What the keeper concludes from what was shipped, what the stream holds, and what the database has."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from proxy.epochs import EpochInfo
from proxy.keeping.epochs import Shipped, State
from proxy.store.redis import StreamState

EPOCH = bytes(16)
STREAM = StreamState(exists=True, entries=3, pending=0, drained=False, oldest_ms=1000)


def _info(synced: int, oldest_us: int = 0) -> EpochInfo:
    return EpochInfo(
        path=Path(EPOCH.hex()),
        epoch=EPOCH,
        column=0,
        alive=True,
        recovered=False,
        first_seq=1,
        last_seq=synced,
        synced_seq=synced,
        bytes=4096,
        oldest_us=oldest_us,
    )


def _state() -> State:
    """10 and 20 records shipped in entries of the times 1000 and 2000; the database has none."""
    state = State(_info(20))
    state.advance(0)
    state.shipped = 20
    state.entries.extend((Shipped(10, 1000), Shipped(20, 2000)))
    return state


@pytest.mark.parametrize(
    ("persisted", "stream", "lost"),
    [
        (0, STREAM, False),  # both entries are in the stream
        (0, msgspec.structs.replace(STREAM, oldest_ms=1001), True),  # the first has left it and is not in the database
        (10, msgspec.structs.replace(STREAM, oldest_ms=2000), False),  # the first has left it after it was persisted
        (10, msgspec.structs.replace(STREAM, oldest_ms=2001), True),
        (20, msgspec.structs.replace(STREAM, oldest_ms=9999), False),
        (0, msgspec.structs.replace(STREAM, drained=True), True),  # all acknowledged, yet not all there
        (20, msgspec.structs.replace(STREAM, drained=True), False),
        (10, StreamState(exists=False, entries=0, pending=0, drained=False, oldest_ms=0), True),
        (20, StreamState(exists=False, entries=0, pending=0, drained=False, oldest_ms=0), False),
    ],
)
def test_what_is_lost(persisted: int, stream: StreamState, lost: bool) -> None:
    """Lost is what is neither in the stream any more nor in the database."""
    state = _state()
    state.advance(persisted)
    assert state.lost(stream, mark=20) is lost


def test_an_entry_shipped_after_the_look_is_not_lost() -> None:
    """A drained stream says nothing about what was shipped while it was being looked at."""
    state = _state()
    state.advance(10)
    drained = msgspec.structs.replace(STREAM, drained=True)
    assert not state.lost(drained, mark=10)
    assert state.lost(drained, mark=20)


def test_age_of_the_oldest_record() -> None:
    """The age counts from when the oldest unpersisted record was first seen on disk, not from its segment's start."""
    state = State(_info(0))
    state.advance(0)
    state.see(_info(0), 100)
    assert state.age_us(1000) == 0
    state.see(_info(5), 200)
    state.see(_info(9), 300)
    assert state.age_us(1000) == 800
    state.advance(5)
    assert (state.age_us(1000), state.waiting) == (700, 4)
    state.advance(9)
    assert (state.age_us(1000), state.waiting) == (0, 0)


def test_age_after_a_restart_counts_from_the_segment() -> None:
    """A new keeper finds records of unknown age: it takes the oldest they can be, and never hides a backlog."""
    info = _info(50, oldest_us=400)
    state = State(info)
    state.see(info, 1000)
    assert state.age_us(1000) == 600


def test_samples_are_bounded() -> None:
    """An epoch that grows for ever unpersisted costs bounded memory, and its age stays right."""
    state = State(_info(0))
    state.advance(0)
    for number in range(1, 5000):
        state.see(_info(number), number)
    assert state.age_us(5000) == 4999
    assert len(state._samples) <= 1024
    state.advance(4998)
    assert state.age_us(5000) <= 1
