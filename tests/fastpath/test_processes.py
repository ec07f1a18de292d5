"""Many processes on one arena: limits are exact, concurrency is never passed, and a kill leaves nothing behind."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from proxy._fastpath import CONCURRENCY, RATE_REQUESTS, Arena, Limits, now_ns
from tests.fastpath.layout import File
from tests.fastpath.player import ANSWER, GO, READY, ROUND, STOP, open_arena

ROOT = Path(__file__).parents[2]
SEED = int(os.environ.get("WEIR_TEST_SEED", "0")) or random.randrange(1, 2**32)
MINUTE = 60 * 10**9


class Stage:
    """The players of one test and the arena they share."""

    def __init__(self, path: Path, rate_cells: int = 256, count_cells: int = 64) -> None:
        self.at = {"path": str(path), "rate_cells": rate_cells, "count_cells": count_cells}
        self.arena = open_arena(self.at, -1)
        self.players: dict[int, subprocess.Popen[str]] = {}

    def start(self, role: str, column: int, **parameters: Any) -> None:
        ready = self.arena.word(READY)
        self.players[column] = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "tests.fastpath.player",
                role,
                json.dumps({**self.at, "column": column, **parameters}),
            ],
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        self.wait(READY, ready + 1)

    def wait(self, word: int, value: int) -> None:
        """Waits until the players have raised a word so far; a player that died meanwhile is an error."""
        while self.arena.word(word) < value:
            for player in self.players.values():
                assert player.poll() in (None, 0), f"a player died (seed {SEED})"
            time.sleep(0.0005)

    def results(self) -> list[dict[str, Any]]:
        """What the players say when they are done."""
        outputs = [player.communicate(timeout=200)[0] for player in self.players.values()]
        assert all(player.returncode == 0 for player in self.players.values())
        self.players.clear()
        return [json.loads(output) for output in outputs]

    def kill(self, column: int) -> None:
        """SIGKILL, and the end of the process."""
        player = self.players.pop(column)
        player.kill()
        player.communicate()
        assert player.returncode == -signal.SIGKILL

    def close(self) -> None:
        for player in self.players.values():
            player.kill()
            player.communicate()
        self.arena.close()


@contextmanager
def staged(path: Path, **sizes: int) -> Iterator[Stage]:
    stage = Stage(path / "arena", **sizes)
    try:
        yield stage
    finally:
        stage.close()


@pytest.mark.parametrize(("limit", "burst"), [(6_000, 1_000), (600_000, 100_000), (6_000_000, 1_000_000)])
def test_64_clients_of_3_processes_get_exactly_burst_and_rate(tmp_path: Path, limit: int, burst: int) -> None:
    """A saturated run of T seconds admits burst + rate * T, one more or less, however the processes interleave.

    The run begins and ends at one instant for all: what is in the bucket then is taken at that instant's time. It is
    full again after ten seconds in which nobody is let run. Each
    client's own wide limit is charged first and given back on each refusal: it ends with what was admitted.
    """
    wide = 5_000_000
    with staged(tmp_path) as stage:
        for column in range(3):
            clients = list(range(64))[column::3]
            stage.start("saturate", column, clients=clients, limit=limit, burst=burst, wide=wide, run_ns=12 * 10**8)
        tenant = Limits(stage.arena, [(RATE_REQUESTS, b"tenant", limit, burst)])

        def take_all(at_ns: int) -> int:
            taken = 0
            while tenant.acquire(at_ns, 0) == 0:
                taken += 1
            return taken

        first = now_ns()
        assert take_all(first) == burst
        stage.arena.set_word(GO, 1)
        results = stage.results()
        last = now_ns()
        rest = take_all(last)
        admitted = sum(sum(result["admitted"]) for result in results)
        expected = limit * (last - first) / MINUTE
        assert abs(admitted + rest - expected) <= 1, (admitted, rest, expected)
        assert admitted > 0
        assert min(result["refused"] for result in results) > 0
        for column, result in enumerate(results):
            for number, mine in zip(list(range(64))[column::3], result["admitted"], strict=True):
                key = Limits(stage.arena, [(RATE_REQUESTS, b"key/%d" % number, 100, wide)])
                said = key.headers(last).split(b"\r\n")[1]
                refilled = 100 * (last - first) // MINUTE + 1
                assert 0 <= int(said.split()[1]) - (wide - mine) <= refilled


@pytest.mark.parametrize("limit", [1, 2, 7])
def test_concurrency_is_never_passed(tmp_path: Path, limit: int) -> None:
    """Four processes at the limit all the time: at no instant are more holds alive than allowed, and all get some."""
    with staged(tmp_path) as stage:
        for column in range(4):
            stage.start("hold", column, limit=limit, tries=3, run_ns=5 * 10**8)
        stage.arena.set_word(GO, 1)
        results = stage.results()
        # What a player measured lies within the true hold, so true holds overlap wherever these do.
        edges = sorted(
            edge for result in results for since, until in result["held"] for edge in ((since, 1), (until, -1))
        )
        alive = most = 0
        for _, step in edges:
            alive += step
            most = max(most, alive)
        assert 1 <= most <= limit
        assert all(result["held"] for result in results)
        assert stage.arena.held_total() == 0


@pytest.mark.parametrize("limit", [1, 3, 64])
def test_processes_that_rush_take_exactly_the_limit(tmp_path: Path, limit: int) -> None:
    """In every round the four together get all there is and not one more, at the boundary too."""
    rounds = 30
    with staged(tmp_path) as stage:
        for column in range(4):
            stage.start("fill", column, limit=limit, rounds=rounds)
        for number in range(1, rounds + 1):
            ready = stage.arena.word(READY)
            stage.arena.set_word(ROUND, 2 * number - 1)
            stage.wait(READY, ready + 4)
            shares = [stage.arena.column_word(column, ANSWER) for column in range(4)]
            assert sum(shares) == limit, (number, shares)
            stage.arena.set_word(ROUND, 2 * number)
            stage.wait(READY, ready + 8)
        stage.results()
        assert stage.arena.held_total() == 0


def test_a_killed_life_leaves_nothing_once_its_column_is_overwritten(tmp_path: Path) -> None:
    """SIGKILL at random instants: overwriting the dead life's column makes the sums what the living hold."""
    chance = random.Random(SEED)
    with staged(tmp_path) as stage:
        for column in range(3):
            stage.start("churn", column, seed=chance.random())
        for number in range(12):
            time.sleep(chance.random() * 0.05)
            column = chance.randrange(3)
            stage.kill(column)
            assert stage.arena.overwrite_column(column) >= 1, f"it held one place for ever (seed {SEED}, kill {number})"
            assert stage.arena.overwrite_column(column) == 0
            stage.start("churn", column, seed=chance.random())
        for column in list(stage.players):
            stage.kill(column)
        assert stage.arena.held_total() >= 3
        for column in range(3):
            stage.arena.overwrite_column(column)
        assert stage.arena.held_total() == 0, f"seed {SEED}"


def test_a_dead_announcer_stops_nobody_for_ever(tmp_path: Path) -> None:
    """A life killed between announcing and deciding makes others refuse at the limit, not wait, until recovery."""
    with staged(tmp_path) as stage:
        living = open_arena(stage.at, 3)
        limited = Limits(living, [(CONCURRENCY, b"tenant", 2, 0)])
        with File(tmp_path / "arena") as file:
            at = file.at(limited.holds[0], rate=False) + 64
            file.map[at : at + 8] = (1 << 1 | 1).to_bytes(8, "little")
        assert [limited.acquire(now_ns(), 0) for _ in range(2)] == [0, 1]
        assert stage.arena.overwrite_column(0) == 1
        assert limited.acquire(now_ns(), 0) == 0
        living.close()


def test_cells_stay_single_under_kills_and_reclaiming(tmp_path: Path) -> None:
    """Seekers of many limits in a crowded arena, killed at random, against a keeper that reclaims all the time.

    No limit ever has two live cells, and one tight limit admits no more than its rate although its cell is reclaimed
    whenever it rests.
    """
    chance = random.Random(SEED)
    limit = 120_000
    with staged(tmp_path, rate_cells=64, count_cells=64) as stage:
        freed = admitted = 0
        first = now_ns()
        for enough in range(200, 1400, 200):  # reclaimed in all by then, or the players were hardly let run
            stage.arena.set_word(GO, 0)
            stage.arena.set_word(STOP, 0)
            for column in range(3):
                stage.start("seek", column, seed=chance.random(), scopes=40, limit=limit)
            stage.arena.set_word(GO, 1)
            end = now_ns() + chance.randrange(2 * 10**8, 4 * 10**8)
            at_last = end + MINUTE
            while (now := now_ns()) < end or (freed <= enough and now < at_last):
                freed += stage.arena.reclaim_idle(now, 0)
            for column in list(stage.players)[: chance.randrange(3)]:
                stage.kill(column)
                # A killed seeker may have been charged once more than it could say: that only lowers the count.
                admitted += stage.arena.column_word(column, ANSWER)
                stage.arena.overwrite_column(column)
            stage.arena.set_word(STOP, 1)
            admitted += sum(result["admitted"] for result in stage.results())
            with File(tmp_path / "arena") as file:
                assert file.doubles() == [], f"seed {SEED}"
                assert file.doubles(rate=False) == [], f"seed {SEED}"
            for column in range(3):
                stage.arena.set_column_word(column, ANSWER, 0)
        span_ns = now_ns() - first
        assert admitted <= 1 + limit * span_ns / MINUTE, f"seed {SEED}"
        assert freed > 1000
        assert stage.arena.held_total() == 0
        stage.arena.reclaim_idle(now_ns() + MINUTE, 0)
        assert stage.arena.usage() == (0, 64, 0, 64)
        check_reuse(stage.arena)


def check_reuse(arena: Arena) -> None:
    """All cells that came back can be had again."""
    for number in range(64):
        Limits(arena, [(RATE_REQUESTS, b"again/%d" % number, 1, 0), (CONCURRENCY, b"again/%d" % number, 1, 0)])
    assert arena.usage() == (64, 64, 64, 64)
