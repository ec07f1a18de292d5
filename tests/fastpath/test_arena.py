"""The arena's file and its cells: made whole, made anew, found again in every state a killed process can leave."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from proxy._fastpath import CONCURRENCY, RATE_REQUESTS, RATE_TOKENS, Arena, ArenaFull, Limits, now_ns
from proxy.bounds import COLUMNS, COUNT_CELLS, RATE_CELLS
from tests.fastpath.conftest import OpenArena
from tests.fastpath.layout import DEAD, EMPTY, FREE, KEY, LAYOUT_OFFSET, LEAVING, RELEASING, File

NOW = now_ns() + 10**12  # after every touch
LATER = NOW + 10**15
ROOT = Path(__file__).parents[2]


def request_cell(arena: Arena, scope: bytes = b"t", limit: int = 5) -> Limits:
    return Limits(arena, [(RATE_REQUESTS, scope, limit, 0)])


# === the file ===


def test_a_new_arena_is_empty_allocated_and_private(tmp_path: Path) -> None:
    """Full size on disk at once, so that no later store can meet a full disk; nobody else may read it."""
    arena = Arena(str(tmp_path / "arena"), "boot-1")
    status = (tmp_path / "arena").stat()
    assert arena.usage() == (0, RATE_CELLS, 0, COUNT_CELLS)
    assert (arena.column, arena.path) == (-1, str(tmp_path / "arena"))
    assert status.st_mode & 0o777 == 0o600
    assert status.st_blocks * 512 >= status.st_size
    assert [entry.name for entry in tmp_path.iterdir()] == ["arena"]
    arena.close()
    arena.close()


def test_opening_again_keeps_everything(open_arena: OpenArena) -> None:
    """A restart within one boot goes on with the same cells and words."""
    first = open_arena()
    assert request_cell(first, limit=1).acquire(NOW, 0) == 0
    first.set_word(5, 77)
    first.close()
    second = open_arena()
    assert request_cell(second, limit=1).acquire(NOW, 0) == 1
    assert second.word(5) == 77


def spoil_boot(path: Path) -> str:
    return "boot-2"


def spoil_layout(path: Path) -> str:
    with path.open("r+b") as file:
        file.seek(LAYOUT_OFFSET)
        file.write(struct.pack("<Q", 999))
    return "boot-1"


def spoil_magic(path: Path) -> str:
    with path.open("r+b") as file:
        file.write(bytes(8))
    return "boot-1"


def spoil_size(path: Path) -> str:
    os.truncate(path, path.stat().st_size + 4096)
    return "boot-1"


def spoil_by_replacing(path: Path) -> str:
    path.unlink()
    path.write_bytes(b"short")
    return "boot-1"


def spoil_by_emptying(path: Path) -> str:
    path.unlink()
    path.touch()
    return "boot-1"


@pytest.mark.parametrize(
    "spoil", [spoil_boot, spoil_layout, spoil_magic, spoil_size, spoil_by_replacing, spoil_by_emptying]
)
def test_what_does_not_fit_is_started_afresh(open_arena: OpenArena, tmp_path: Path, spoil) -> None:  # type: ignore[no-untyped-def]
    """A new file takes the place, and a process that still maps the old one goes on with it unharmed."""
    old = open_arena()
    limited = request_cell(old, limit=1)
    assert limited.acquire(NOW, 0) == 0
    old.set_word(3, 33)
    new = open_arena(boot_id=spoil(tmp_path / "arena"))
    assert new.word(3) == 0
    assert request_cell(new, limit=1).acquire(NOW, 0) == 0
    assert (old.word(3), limited.acquire(NOW, 0)) == (33, 1)
    assert [entry.name for entry in tmp_path.iterdir()] == ["arena"]


def test_other_sizes_start_afresh(open_arena: OpenArena) -> None:
    """Tables of another size are another layout."""
    open_arena().set_word(1, 1)
    assert open_arena(rate_cells=128).word(1) == 0
    assert open_arena(rate_cells=128, count_cells=32).usage() == (0, 128, 0, 32)


def test_a_leftover_of_a_killed_creator_is_no_obstacle(open_arena: OpenArena, tmp_path: Path) -> None:
    """The temporary file of a process that died while it made an arena is written over."""
    (tmp_path / "arena.new").write_bytes(b"half")
    (tmp_path / "arena").touch()
    open_arena().set_word(0, 1)
    assert open_arena().word(0) == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["arena"]


def test_processes_that_start_together_agree_on_one_file(tmp_path: Path) -> None:
    """Eight processes find an arena of an earlier boot at once: one replaces it, and all map the same new one."""
    Arena(tmp_path / "arena", "boot-0").close()
    code = "import sys; from proxy._fastpath import Arena; sys.stdin.read(); Arena(sys.argv[1], 'boot-1').raise_word(9)"
    starters = [
        subprocess.Popen([sys.executable, "-c", code, tmp_path / "arena"], stdin=subprocess.PIPE, cwd=ROOT)
        for _ in range(8)
    ]
    for starter in starters:
        assert starter.stdin
        starter.stdin.close()
    assert [starter.wait(100) for starter in starters] == [0] * 8
    arena = Arena(tmp_path / "arena", "boot-1")
    assert arena.word(9) == 8
    arena.close()


def test_no_descriptor_stays_open(tmp_path: Path) -> None:
    """Only the mapping remains: a forked grandchild can hold no lock of ours."""
    before = sorted(os.listdir("/proc/self/fd"))
    arena = Arena(tmp_path / "arena", "boot-1")
    assert sorted(os.listdir("/proc/self/fd")) == before
    with pytest.raises(IsADirectoryError):
        Arena(tmp_path, "boot-1")
    with pytest.raises(FileNotFoundError):
        Arena(tmp_path / "nowhere" / "arena", "boot-1")
    assert sorted(os.listdir("/proc/self/fd")) == before
    arena.close()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"column": COLUMNS}, f"column {COLUMNS}: it is 0 to {COLUMNS - 1}"),
        ({"column": -2}, "column -2"),
        ({"boot_id": ""}, "boot id"),
        ({"boot_id": "x" * 64}, "boot id"),
        ({"boot_id": "é"}, "boot id"),
        ({"rate_cells": 3}, "3 cells: a power of two"),
        ({"count_cells": 0}, "0 cells: a power of two"),
    ],
)
def test_wrong_arguments_make_no_file(
    open_arena: OpenArena, tmp_path: Path, arguments: dict[str, int], sentence: str
) -> None:
    """What cannot be right is refused before anything is touched."""
    with pytest.raises(ValueError, match=sentence):
        open_arena(**arguments)
    assert list(tmp_path.iterdir()) == []


def test_words_keep_their_bounds(open_arena: OpenArena) -> None:
    """Words are unsigned 64-bit, seen by all at once, and an index out of range is an IndexError."""
    arena, other = open_arena(), open_arena(1)
    arena.set_word(63, 2**64 - 1)
    arena.set_column_word(COLUMNS - 1, 31, 2**63)
    assert (other.word(63), other.column_word(COLUMNS - 1, 31)) == (2**64 - 1, 2**63)
    assert [arena.raise_word(0), other.raise_word(0), arena.word(0)] == [1, 2, 2]
    with pytest.raises(OverflowError):
        arena.set_word(0, -1)
    for index in (-1, 64):
        with pytest.raises(IndexError):
            arena.word(index)
    for column, index in ((-1, 0), (COLUMNS, 0), (0, -1), (0, 32)):
        with pytest.raises(IndexError):
            arena.set_column_word(column, index, 1)
    with pytest.raises(IndexError):
        arena.used(64)
    with pytest.raises(IndexError):
        arena.overwrite_column(COLUMNS)
    arena.close()
    with pytest.raises(ValueError, match="closed"):
        arena.word(0)


# === cells ===


def test_a_full_arena_refuses_and_takes_nothing(open_arena: OpenArena) -> None:
    """A limit without a cell is ArenaFull, never a missing limit; what stood before in the same call is given back."""
    arena = open_arena(rate_cells=16, count_cells=4)
    for number in range(16):
        request_cell(arena, b"%d" % number)
    for number in range(4):
        Limits(arena, [(CONCURRENCY, b"%d" % number, 1, 0)])
    with pytest.raises(ArenaFull, match=r"no free rate cell within 64 places in .*arena: more limits are in use"):
        request_cell(arena, b"17")
    with pytest.raises(ArenaFull, match="no free count cell"):
        Limits(arena, [(CONCURRENCY, b"5", 1, 0)])
    assert arena.usage() == (16, 16, 4, 4)
    assert request_cell(arena, b"3").acquire(NOW, 0) == 0


def test_limits_outlive_the_reclaiming_of_their_cells(open_arena: OpenArena) -> None:
    """An old object finds its cells anew, and its limits go on."""
    arena = open_arena()
    limited = Limits(arena, [(RATE_REQUESTS, b"t", 2, 0), (CONCURRENCY, b"t", 1, 0), (RATE_TOKENS, b"t", 100, 0)])
    assert arena.reclaim_idle(LATER, 0) == 3
    assert arena.usage() == (0, 64, 0, 64)
    assert [limited.acquire(LATER, 60) for _ in range(2)] == [0, 2]
    assert arena.usage() == (2, 64, 1, 64)
    limited.refund(LATER, 60)
    assert arena.reclaim_idle(LATER, 0) == 3
    limited.settle_tokens(LATER, 10, 100)
    assert limited.acquire(LATER, 11) == 3
    assert limited.acquire(LATER, 10) == 0


def test_a_failed_return_of_a_cell_gives_the_others_back(open_arena: OpenArena) -> None:
    """When a reclaimed cell cannot be had again the call is refused whole."""
    arena = open_arena(rate_cells=16)
    limited = Limits(arena, [(RATE_REQUESTS, b"first", 2, 0), (RATE_REQUESTS, b"second", 2, 0)])
    arena.reclaim_idle(LATER, 0)
    for number in range(15):
        request_cell(arena, b"%d" % number)
    for _ in range(5):
        with pytest.raises(ArenaFull):
            limited.acquire(LATER, 0)
    assert arena.usage()[0] == 16
    first = request_cell(arena, b"first", 2)
    assert [first.acquire(LATER, 0) for _ in range(3)] == [0, 0, 1]
    limited.settle_tokens(LATER, 5, 50)


def test_reclaiming_spares_what_is_in_use(open_arena: OpenArena) -> None:
    """Freed are cells at rest for the whole idle time: full buckets, and columns of nobody."""
    arena, other = open_arena(0), open_arena(1)
    used = Limits(other, [(RATE_REQUESTS, b"used", 6, 0), (CONCURRENCY, b"used", 5, 0)])
    Limits(arena, [(RATE_REQUESTS, b"idle", 6, 0), (CONCURRENCY, b"idle", 5, 0)])
    assert used.acquire(NOW, 0) == 0
    assert arena.reclaim_idle(NOW + 10**9, 10**9) == 2
    assert (used.holds, arena.used(used.holds[0])) == (used.holds, 1)
    assert arena.reclaim_idle(LATER, 0) == 1, "the rate cell is full again"
    assert used.acquire(LATER, 0) == 0
    assert arena.used(used.holds[0]) == 2
    used.refund(LATER, 0)
    used.refund(LATER, 0)
    assert arena.reclaim_idle(LATER, 20 * 10**9) == 0
    assert arena.reclaim_idle(LATER + 20 * 10**9, 10 * 10**9) == 2
    for now, idle in ((NOW, -1), (-1, 0), (2**57, 0)):
        with pytest.raises(ValueError, match="idle_ns"):
            arena.reclaim_idle(now, idle)


def test_recovery_overwrites_a_column_and_only_that(open_arena: OpenArena) -> None:
    """Whatever a dead life left is set to what was settled, in every cell, and other lives keep their holds."""
    arena, dead = open_arena(0), open_arena(7)
    for number in range(5):
        entries = [(CONCURRENCY, b"%d" % number, 9, 0)]
        assert Limits(arena, entries).acquire(NOW, 0) == Limits(dead, entries).acquire(NOW, 0) == 0
    with File(Path(arena.path)) as file:
        for cell in file.cells(rate=False):
            at = file.at(cell.index, rate=False) + 64 + 8 * 7
            file.map[at : at + 8] = struct.pack("<q", 3)  # killed between announcing and deciding
    assert arena.held_total() == 10
    assert arena.overwrite_column(7) == 5
    assert arena.held_total() == 5
    assert arena.overwrite_column(7) == 0


def spread(file: File) -> tuple[int, int, int]:
    """Index, lo and hi of the one live cell."""
    (cell,) = file.cells()
    assert cell.live
    return cell.index, cell.lo, cell.hi


def test_a_killed_insertion_is_completed_by_the_next_seeker(open_arena: OpenArena) -> None:
    """lo without hi is what a process killed between two stores leaves."""
    arena = open_arena()
    request_cell(arena)
    with File(Path(arena.path)) as file:
        index, lo, hi = spread(file)
        file.write(index, hi=EMPTY)
        request_cell(arena)
        assert spread(file) == (index, lo, hi)
        file.write(index, hi=(5 << 2) | EMPTY)
        assert arena.reclaim_idle(LATER, 0) == 1, "and is reclaimed if nobody seeks it"
        assert file.cells() == []


def test_a_leaving_cell_is_taken_again_with_what_was_used(open_arena: OpenArena) -> None:
    """A keeper killed after its first store has taken nothing: the key's next seeker finds its bucket as it was."""
    arena = open_arena()
    limited = request_cell(arena, limit=1)
    assert limited.acquire(NOW, 0) == 0
    with File(Path(arena.path)) as file:
        index, lo, hi = spread(file)
        file.write(index, hi=(9 << 2) | LEAVING)
        assert limited.acquire(NOW, 0) == 1
        assert spread(file) == (index, lo, hi)
        file.write(index, hi=(10 << 2) | LEAVING)
        assert arena.reclaim_idle(NOW, 0) == 0, "not at rest: it stays for its seeker"
        assert request_cell(arena, limit=1).acquire(NOW, 0) == 1
        file.write(index, hi=(11 << 2) | LEAVING)
        assert arena.reclaim_idle(LATER, 0) == 1
        assert file.cells() == []


def test_a_dead_cell_is_nobodys_until_the_next_keeper(open_arena: OpenArena) -> None:
    """A keeper killed between its decision and the release: the key lives elsewhere, and the cell comes back."""
    arena = open_arena()
    limited = request_cell(arena, limit=1)
    with File(Path(arena.path)) as file:
        index, lo, hi = spread(file)
        file.write(index, hi=(9 << 2) | DEAD)
        assert limited.acquire(NOW, 0) == 0
        assert [(cell.lo, cell.hi) for cell in file.cells() if cell.live] == [(lo, hi)]
        assert request_cell(arena, limit=1).acquire(NOW, 0) == 1
        assert arena.reclaim_idle(NOW, 0) == 1
        assert file.cell(index).lo < KEY
        assert file.cell(index).lo & 3 == FREE
        assert file.doubles() == []
        assert request_cell(arena, limit=1).acquire(NOW, 0) == 1, "still found behind the hole"


def test_a_half_released_cell_is_finished_by_whoever_meets_it(open_arena: OpenArena) -> None:
    """A keeper killed within a release holds nobody up."""
    arena = open_arena()
    for meet in (lambda: request_cell(arena), lambda: arena.reclaim_idle(0, 0)):
        request_cell(arena)
        with File(Path(arena.path)) as file:
            index, _, _ = spread(file)
            free_before = file.cell((index + 1) % 64).lo
            file.write(index, lo=(9 << 2) | RELEASING, hi=(9 << 2) | DEAD)
            meet()
            assert file.cell(index).lo & 3 == FREE or file.cell(index).lo >= KEY
            assert file.cell((index + 1) % 64).lo > free_before, "cells behind a hole are renewed"
            assert file.doubles() == []
        arena.reclaim_idle(LATER, 0)


def test_a_hole_hides_no_cell_behind_it(open_arena: OpenArena) -> None:
    """With half of a crowded table freed at random places every other key is still found where it was."""
    arena = open_arena(rate_cells=64)
    names = [b"%d" % number for number in range(60)]
    kept = {name: request_cell(arena, name, limit=1) for name in names[::2]}
    for name in names:
        request_cell(arena, name)
    assert [limited.acquire(NOW, 0) for limited in kept.values()] == [0] * 30
    assert arena.reclaim_idle(NOW, 0) == 30
    assert [request_cell(arena, name, limit=1).acquire(NOW, 0) for name in kept] == [1] * 30
    with File(Path(arena.path)) as file:
        assert len(file.cells()) == 30
        assert file.doubles() == []


def test_a_table_without_a_free_cell_stays_whole(open_arena: OpenArena) -> None:
    """Cells that a damaged file marks as going, all of them, end as free cells and not in a loop."""
    arena = open_arena(rate_cells=16)
    request_cell(arena)
    with File(Path(arena.path)) as file:
        for index in range(16):
            file.write(index, lo=((index + 1) << 2) | RELEASING, hi=((index + 1) << 2) | DEAD)
        assert request_cell(arena).acquire(NOW, 0) == 0
        assert len([cell for cell in file.cells() if cell.live]) == 1
