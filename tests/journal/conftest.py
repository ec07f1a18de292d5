"""Small epochs in a temporary data directory, with the real arena beside them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from proxy import clock, journal
from proxy._fastpath import CONCURRENCY, Arena, Limits

SMALL: dict[str, Any] = {"slots": 32, "segment_bytes": 16384, "max_bytes": 1 << 20, "sync_ms": 5}
MakeEpoch = Callable[..., journal.Epoch]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "journal"


@pytest.fixture
def make_epoch(directory: Path) -> Iterator[MakeEpoch]:
    """Makes epochs; those that a test does not end are abandoned after it, as by a kill."""
    made = []

    def make(**changes: Any) -> journal.Epoch:
        epoch = journal.Epoch.create(
            directory, str(directory.parent / "arena"), clock.boot_id(), **{**SMALL, **changes}
        )
        made.append(epoch)
        return epoch

    yield make
    for epoch in made:
        epoch.abandon()


@pytest.fixture
def keeper_arena(directory: Path) -> Iterator[Arena]:
    """The arena as the keeper has it: without a column."""
    arena = Arena(str(directory.parent / "arena"), clock.boot_id())
    with contextlib.closing(arena):
        yield arena


def limits(arena: Arena, at_most: int = 1000) -> Limits:
    return Limits(arena, [(CONCURRENCY, b"tenant/acme", at_most, 0), (CONCURRENCY, b"key/k1", at_most, 0)])
