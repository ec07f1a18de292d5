"""The keeper's anchors: when they are made, what they are not made for, and what becomes of their file."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import text

from proxy import bounds, clock
from proxy.audit import anchor, files
from proxy.audit.anchor import Anchor
from proxy.failpoint import VARIABLE
from proxy.keeping.anchors import DAMAGE, Anchors
from proxy.store.store import Store
from proxy.telemetry.log import Log
from proxy.telemetry.metrics import KEEPER_COLUMN, Counters
from tests.audit.test_log import tampered
from tests.audit.writer import by, row
from tests.store.records import run

ROOT = Path(__file__).resolve().parents[2]


class Duty:
    """One keeper's anchors over a store, with a clock that stands until it is moved."""

    def __init__(self, data: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.data = data
        self.url = url
        self.seconds = 0
        self.made = 0
        self.log = data / "log"
        self._fd = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self.counters = Counters(data / "metrics", KEEPER_COLUMN)
        start_ns = clock.now_ns()
        monkeypatch.setattr("proxy.clock.now_ns", lambda: start_ns + self.seconds * 1_000_000_000)
        self.store = Store.open(url)
        self.anchors = self.begin()

    def begin(self) -> Anchors:
        """A keeper that starts anew on what is there."""
        self.anchors = Anchors(self.data, self.store, self.counters, Log("keeper", fd=self._fd))
        return self.anchors

    async def change(self, count: int) -> None:
        """So many rows more in the log."""
        for _ in range(count):
            self.made += 1
            await self.store.insert_key(row("anna", self.made), by("anna"))

    def read(self) -> list[Anchor]:
        """The anchors as they stand, each of them good."""
        public = files.public_key(self.data)
        assert public is not None
        found, wrong = anchor.read(files.read_lines(self.data / files.ANCHORS), {anchor.key_id(public): public})
        assert wrong == []
        return found

    def alarms(self) -> int:
        """How often damage was counted."""
        return self.counters.total(DAMAGE)

    def close(self) -> None:
        """Gives everything back."""
        self.counters.close()
        os.close(self._fd)


@pytest.fixture
def duty(sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Duty]:
    """A data directory beside a fresh database."""
    made = Duty(tmp_path, sqlite_url, monkeypatch)
    yield made
    made.close()


def test_anchors_are_made_in_time(duty: Duty) -> None:
    """The first at once, the next when so many rows are new or the oldest of them waits a minute, none without any."""

    async def work() -> None:
        await duty.anchors.look()
        assert duty.read() == []
        await duty.change(1)
        await duty.anchors.look()
        await duty.anchors.look()
        assert [one.seq for one in duty.read()] == [1]
        await duty.change(bounds.ANCHOR_ROWS - 1)
        await duty.anchors.look()
        assert [one.seq for one in duty.read()] == [1]
        await duty.change(1)
        await duty.anchors.look()
        assert [one.seq for one in duty.read()] == [1, bounds.ANCHOR_ROWS + 1]
        await duty.change(1)
        duty.seconds += bounds.ANCHOR_SECONDS - 1
        await duty.anchors.look()
        assert len(duty.read()) == 2
        duty.seconds += 1
        await duty.anchors.look()
        assert [one.seq for one in duty.read()][2:] == [bounds.ANCHOR_ROWS + 2]
        await duty.change(1)
        await duty.anchors.look(now=True)
        assert [one.seq for one in duty.read()][3:] == [bounds.ANCHOR_ROWS + 3]
        # A quiet hour makes none; the first change after it has waited for nobody and is anchored at once.
        duty.seconds += 3600
        await duty.anchors.look()
        assert len(duty.read()) == 4
        await duty.change(1)
        await duty.anchors.look()
        assert len(duty.read()) == 5
        assert duty.alarms() == 0
        head = await duty.store.audit_head()
        assert duty.read()[-1].hash == head.hash.hex()
        await duty.store.close()

    run(work())


def test_the_files_are_their_owners_alone(duty: Duty) -> None:
    """Key and anchors are 0600; a key that others may read is not used."""

    async def work() -> None:
        await duty.change(1)
        await duty.anchors.look()
        for name in (files.KEY, files.ANCHORS):
            assert stat.S_IMODE((duty.data / name).stat().st_mode) == 0o600, name
        (duty.data / files.KEY).chmod(0o640)
        await duty.change(1)
        await duty.begin().look()
        assert len(files.read_lines(duty.data / files.ANCHORS)) == 1
        assert "chmod 600" in duty.log.read_text()
        await duty.store.close()

    run(work())


@pytest.mark.parametrize(
    "blow",
    [
        "DELETE FROM audit WHERE seq = 6",
        "UPDATE audit SET target = 'mine' WHERE seq = 6",
        "UPDATE audit SET previous = hash WHERE seq = 4",
        "DELETE FROM audit WHERE seq > 3",
    ],
)
def test_what_does_not_follow_is_not_signed_for(duty: Duty, blow: str) -> None:
    """Rows damaged after the last anchor: one alarm, however often it looks, and the anchors stand where they stood."""

    async def work() -> None:
        await duty.change(3)
        await duty.anchors.look()
        await duty.change(4)
        await tampered(duty.store, blow)
        for _ in range(3):
            duty.seconds += bounds.ANCHOR_SECONDS
            await duty.anchors.look()
        assert [one.seq for one in duty.read()] == [3]
        assert duty.alarms() == 1
        assert "weir audit verify" in duty.log.read_text()
        await duty.store.close()

    run(work())


def test_a_log_that_is_shorter_than_its_anchors_is_an_alarm(duty: Duty) -> None:
    """The database was set back to an older copy, or the tail and the head were cut: no minute passes in silence."""

    async def work() -> None:
        await duty.change(5)
        await duty.anchors.look()
        statement = "UPDATE audit_head SET seq = 3, hash = (SELECT hash FROM audit WHERE seq = 3)"
        await tampered(duty.store, "DELETE FROM audit WHERE seq > 3", statement)
        await duty.anchors.look()
        assert duty.alarms() == 1
        # Other rows in the place of those that were anchored: as many as before, and they do not pass for them.
        await duty.change(2)
        await duty.anchors.look()
        await duty.change(200)
        await duty.anchors.look()
        assert [one.seq for one in duty.read()] == [5]
        assert duty.alarms() >= 2
        await duty.store.close()

    run(work())


def test_a_new_keeper_goes_on_where_the_last_one_stood(duty: Duty) -> None:
    """The file is one chain of lines over keepers' lives; a line that was cut off is removed; none is signed twice."""

    async def work() -> None:
        await duty.change(2)
        await duty.anchors.look()
        path = duty.data / files.ANCHORS
        with path.open("ab") as file:
            file.write(b'{"at_us":17')
        await duty.begin().look()
        assert path.read_bytes().endswith(b"}\n")
        await duty.change(2)
        await duty.begin().look()
        await duty.change(2)
        await duty.begin().look()
        assert [one.seq for one in duty.read()] == [2, 4, 6]
        assert duty.alarms() == 0
        await duty.store.close()

    run(work())


def test_a_last_anchor_of_another_key_is_not_built_upon(duty: Duty) -> None:
    """The key was lost and made anew, or the line is forged: an alarm, and the log is read from its first row."""

    async def work() -> None:
        await duty.change(2)
        await duty.anchors.look()
        (duty.data / files.KEY).unlink()
        await duty.change(1)
        await duty.begin().look()
        assert duty.alarms() == 1
        lines = files.read_lines(duty.data / files.ANCHORS)
        public = files.public_key(duty.data)
        assert public is not None
        found, wrong = anchor.read(lines, {anchor.key_id(public): public})
        assert [one.seq for one in found] == [3]
        assert len(wrong) == 1
        await duty.store.close()

    run(work())


def test_a_long_gap_is_caught_up_in_pages(duty: Duty, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was written while there was no keeper: each page is read, checked and signed for."""
    monkeypatch.setattr("proxy.bounds.AUDIT_PAGE_ROWS", 4)

    async def work() -> None:
        await duty.change(10)
        await duty.anchors.look()
        assert [one.seq for one in duty.read()] == [4, 8, 10]
        await duty.store.close()

    run(work())


def test_an_absent_database_and_a_full_disk_are_borne(
    duty: Duty, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither ends the keeper; the anchor is made when both are back, and half a line does not stay."""

    async def work() -> None:
        away = Anchors(tmp_path, Store.open(f"sqlite:///{tmp_path}/nowhere.db"), duty.counters, Log("keeper"))
        await away.look()
        await duty.change(1)
        real = os.write

        def full(fd: int, data: bytes) -> int:
            if data.startswith(b'{"at_us":'):
                real(fd, data[:7])
                raise OSError(28, "No space left on device")
            return real(fd, data)

        with monkeypatch.context() as patch:
            patch.setattr(os, "write", full)
            await duty.anchors.look(now=True)
        assert (duty.data / files.ANCHORS).read_bytes() == b""
        await duty.anchors.look(now=True)
        assert [one.seq for one in duty.read()] == [1]
        assert "No space left" in duty.log.read_text()
        await duty.store.close()

    run(work())


def test_a_keeper_killed_while_it_anchors(duty: Duty) -> None:
    """Killed between writing and syncing a line: the next one goes on, and every line is good."""
    code = (
        "import asyncio, sys; from pathlib import Path; from proxy.keeping.anchors import Anchors;"
        "from proxy.store.store import Store; from proxy.telemetry.log import Log;"
        "from proxy.telemetry.metrics import Counters;"
        "data = Path(sys.argv[1]);"
        "anchors = Anchors(data, Store.open(sys.argv[2]), Counters(data / 'metrics'), Log('keeper'));"
        "asyncio.run(anchors.look(now=True))"
    )

    async def change(count: int) -> None:
        await duty.change(count)
        await duty.store.close()

    for seen in (1, 2, 3):
        run(change(1))
        command = [sys.executable, "-c", code, str(duty.data), duty.url]
        done = subprocess.run(command, cwd=ROOT, env={**os.environ, VARIABLE: "audit.before_sync=kill"}, timeout=120)
        assert done.returncode == -signal.SIGKILL
        assert [one.seq for one in duty.read()] == list(range(1, seen + 1))


def test_both_databases_have_the_same_duty(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Head, pages and hashes read alike from SQLite and PostgreSQL."""
    duty = Duty(tmp_path, url, monkeypatch)

    async def work() -> None:
        await duty.change(3)
        await duty.anchors.look()
        async with duty.store.reading() as connection:
            stored = (await connection.execute(text("SELECT hash FROM audit WHERE seq = 3"))).scalar()
        assert stored is not None
        assert [(one.seq, one.hash) for one in duty.read()] == [(3, bytes(stored).hex())]
        await duty.store.close()

    run(work())
    duty.close()
