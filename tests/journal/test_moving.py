"""What the keeper reads for the move, while the same records are persisted and pruned beside it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from proxy import board, journal
from proxy._fastpath import Arena
from proxy.flush.fold import Batch
from proxy.keeping import epochs as module
from proxy.keeping.epochs import Epochs
from proxy.store.redis import unpack
from proxy.store.store import Persisted, StoreUnavailable
from proxy.telemetry.log import Log
from proxy.telemetry.metrics import KEEPER_COLUMN, Counters
from tests.journal.conftest import MakeEpoch
from tests.journal.test_epoch import one_round, opened


class Database:
    """Says how far it has each epoch."""

    def __init__(self) -> None:
        self.position = 0

    async def persisted(self, asked: Sequence[bytes]) -> dict[bytes, int]:
        return dict.fromkeys(asked, self.position)


class Full(Database):
    """Answers, and takes nothing until `full` is False."""

    def __init__(self) -> None:
        super().__init__()
        self.full = True

    async def persist(self, batches: Sequence[Batch]) -> Persisted:
        if self.full:
            raise StoreUnavailable("database or disk is full")
        self.position = max(batch.last for batch in batches)
        return Persisted()


class Stream:
    """Keeps what is shipped: (first, last, records)."""

    def __init__(self) -> None:
        self.entries: list[tuple[int, int, list[bytes]]] = []

    async def ship(self, origin: str, epoch: bytes, first: int, last: int, packed: bytes) -> int:
        self.entries.append((first, last, unpack(packed)))
        return 1000


class Moving:
    """A keeper's `Epochs` over one living epoch of 60 synced records in several segments."""

    def __init__(self, epoch: journal.Epoch, directory: Path, arena: Arena, counters: Counters) -> None:
        for number in range(60):
            epoch.close(opened(epoch), b"E%03d" % number + b"x" * 600)
            if number % 20 == 0:
                one_round(epoch)
        one_round(epoch)
        self.path = epoch.path
        self.counters = counters
        self.arena = arena
        self.database, self.stream, self.full = Database(), Stream(), Full()
        parts: tuple[Any, Any] = (self.database, self.stream)
        self.epochs = Epochs(directory, "origin", arena, *parts, counters, Log("keeper"))
        straight: tuple[Any, Any] = (self.full, None)
        self.straight = Epochs(directory, "origin", arena, *straight, counters, Log("keeper"))

    @property
    def state(self) -> module.State:
        (state,) = self.epochs.states.values()
        return state

    def damage(self) -> int:
        return self.counters.total("weir_journal_damage_total")


@pytest.fixture
def moving(make_epoch: MakeEpoch, directory: Path, keeper_arena: Arena) -> Iterator[Moving]:
    counters = Counters(directory.parent / "metrics", KEEPER_COLUMN)
    with contextlib.closing(counters):
        yield Moving(make_epoch(), directory, keeper_arena, counters)


def before_reading(monkeypatch: pytest.MonkeyPatch, happens: Callable[[], None]) -> None:
    """Lets something happen once, after the keeper has decided what to read and before it opens the first file."""
    read, due = module.read_records, [happens]

    def reading(*arguments: Any) -> Any:
        while due:
            due.pop()()
        return read(*arguments)

    monkeypatch.setattr(module, "read_records", reading)


def test_what_is_pruned_while_it_is_read_is_not_damage(moving: Moving, monkeypatch: pytest.MonkeyPatch) -> None:
    """The question beside it found the records in the database and pruned them: nothing is lost, the rest is moved."""

    def found_and_pruned() -> None:
        moving.state.advance(50)
        assert journal.prune(moving.path, 50) > 0
        with pytest.raises(journal.Damaged):
            journal.read_records(moving.path, 1, 1, 1 << 20)

    async def work() -> None:
        await moving.epochs.look()
        assert await moving.epochs.ask_positions()
        before_reading(monkeypatch, found_and_pruned)
        await moving.epochs.move()
        await moving.epochs.look()
        await moving.epochs.move()

    asyncio.run(work())
    assert moving.damage() == 0
    assert [(first, last) for first, last, _ in moving.stream.entries] == [(51, 60)]
    (_, _, records) = moving.stream.entries[0]
    assert [record[:4] for record in records] == [b"E%03d" % number for number in range(50, 60)]


def test_what_the_database_has_forgotten_is_an_alarm(moving: Moving) -> None:
    """The same files are gone, but the database does not have their records: they are lost, and that is said."""

    async def work() -> None:
        await moving.epochs.look()
        assert journal.prune(moving.path, 50) > 0
        await moving.epochs.look()
        assert await moving.epochs.ask_positions()
        await moving.epochs.move()

    asyncio.run(work())
    assert moving.damage() == 1
    first, last, records = moving.stream.entries[0]
    assert first == 1
    assert len(records) == last
    assert all(b"was pruned, and the database has forgotten it" in record for record in records)
    assert moving.stream.entries[-1][1] == 60


def test_a_database_that_only_answers_is_away(moving: Moving, capfd: pytest.CaptureFixture[str]) -> None:
    """A full disk: it can be asked and takes nothing. It is away until it takes something, and that is said once."""
    states: list[int] = []
    moving.arena.set_word(board.DATABASE_STATE, board.OK)

    async def work() -> None:
        await moving.straight.look()
        for _ in range(5):
            await moving.straight.move()
            states.append(moving.arena.word(board.DATABASE_STATE))
        moving.full.full = False
        await moving.straight.move()
        states.append(moving.arena.word(board.DATABASE_STATE))

    asyncio.run(work())
    assert states == [board.AWAY] * 5 + [board.OK]
    said = capfd.readouterr().err
    assert (said.count("the database is away"), said.count("the database is back")) == (1, 1)
