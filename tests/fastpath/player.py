"""One process of the multi-process tests: `python -m tests.fastpath.player ROLE PARAMETERS`, with JSON in and out.

Each role waits until GO is raised on the board, plays until STOP is raised or its work is done, and prints what it did.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Callable
from typing import Any

from proxy._fastpath import CONCURRENCY, RATE_REQUESTS, Arena, Limits, now_ns

GO, STOP, READY, ROUND = 60, 61, 62, 63  # host words that the board does not name
ANSWER = 31  # a column word that the board does not name
BOOT = "boot-1"
LAST_NS = 60 * 10**9  # a process that is hardly let run goes on for so long, until it has had what it is there for


def open_arena(at: dict[str, Any], column: int) -> Arena:
    return Arena(at["path"], BOOT, column, rate_cells=at["rate_cells"], count_cells=at["count_cells"])


def wait_for(arena: Arena, word: int, value: int = 1) -> None:
    """Looks for a while without rest, so that all players start at once, then now and then."""
    looks = 0
    while arena.word(word) < value and not arena.word(STOP):
        looks += 1
        if looks > 20_000:
            time.sleep(0.001)


def saturate(arena: Arena, at: dict[str, Any]) -> dict[str, Any]:
    """Many clients on one tight tenant limit, each behind a wide one of its own, one request after another."""
    clients = [
        Limits(
            arena,
            [
                (RATE_REQUESTS, b"key/%d" % number, 100, at["wide"]),
                (RATE_REQUESTS, b"tenant", at["limit"], at["burst"]),
            ],
        )
        for number in at["clients"]
    ]
    admitted, refused = [0] * len(clients), 0
    arena.raise_word(READY)
    wait_for(arena, GO)
    now = now_ns()
    end = now + at["run_ns"]
    at_last = end + LAST_NS
    while now < end or (not refused and now < at_last):
        for index, client in enumerate(clients):
            now = now_ns()
            if client.acquire(now, 0) == 0:
                admitted[index] += 1
            else:
                refused += 1
    return {"admitted": admitted, "refused": refused}


def hold(arena: Arena, at: dict[str, Any]) -> dict[str, Any]:
    """Takes and gives back one concurrency limit; says from when to when it surely held."""
    limited = Limits(arena, [(CONCURRENCY, b"tenant", at["limit"], 0)])
    held: list[tuple[int, int]] = []
    arena.raise_word(READY)
    wait_for(arena, GO)
    end = now_ns() + at["run_ns"]
    at_last = end + LAST_NS
    while ((now := now_ns()) < end and len(held) < 20_000) or (not held and now < at_last):
        taken = sum(limited.acquire(now, 0) == 0 for _ in range(at["tries"]))
        since = now_ns()
        until = now_ns()
        for _ in range(taken):
            limited.refund(until, 0)
            held.append((since, until))
    return {"held": held}


def fill(arena: Arena, at: dict[str, Any]) -> dict[str, Any]:
    """Each round: takes until refused, says how many it has, gives back when the round is over."""
    limited = Limits(arena, [(CONCURRENCY, b"tenant", at["limit"], 0)])
    arena.raise_word(READY)
    for number in range(1, at["rounds"] + 1):
        wait_for(arena, ROUND, 2 * number - 1)
        taken = 0
        while taken <= at["limit"] and limited.acquire(now_ns(), 0) == 0:
            taken += 1
        arena.set_column_word(arena.column, ANSWER, taken)
        arena.raise_word(READY)
        wait_for(arena, ROUND, 2 * number)
        for _ in range(taken):
            limited.refund(0, 0)
        arena.raise_word(READY)
    return {}


def churn(arena: Arena, at: dict[str, Any]) -> dict[str, Any]:
    """Holds one place for ever and takes and gives back others, until it is killed."""
    chance = random.Random(at["seed"])
    cells = [Limits(arena, [(CONCURRENCY, b"%d" % number, 50, 0)]) for number in range(4)]
    cells[0].acquire(now_ns(), 0)
    mine: list[Limits] = []
    arena.raise_word(READY)
    while True:
        if len(mine) < 20 and chance.random() < 0.5:
            limited = chance.choice(cells)
            if limited.acquire(now_ns(), 0) == 0:
                mine.append(limited)
        elif mine:
            mine.pop(chance.randrange(len(mine))).refund(0, 0)


def seek(arena: Arena, at: dict[str, Any]) -> dict[str, Any]:
    """Finds cells of random limits in a crowded arena and uses them; counts what one tight limit admits."""
    chance = random.Random(at["seed"])
    tight = Limits(arena, [(RATE_REQUESTS, b"tight", at["limit"], 1)])
    admitted = 0
    arena.raise_word(READY)
    wait_for(arena, GO)
    first = last = now_ns()
    while not arena.word(STOP):
        scope = b"%d" % chance.randrange(at["scopes"])
        last = now_ns()
        entries = [(RATE_REQUESTS, scope, 60 * 10**6, 10), (CONCURRENCY, scope, 5, 0)]
        limited = Limits(arena, entries)
        if limited.acquire(last, 0) == 0:
            limited.refund(last, 0)
        for _ in range(20):
            last = now_ns()
            admitted += tight.acquire(last, 0) == 0
        arena.set_column_word(arena.column, ANSWER, admitted)
    return {"first": first, "last": last, "admitted": admitted}


ROLES: dict[str, Callable[[Arena, dict[str, Any]], dict[str, Any]]] = {
    "saturate": saturate,
    "hold": hold,
    "fill": fill,
    "churn": churn,
    "seek": seek,
}

if __name__ == "__main__":
    parameters = json.loads(sys.argv[2])
    result = ROLES[sys.argv[1]](open_arena(parameters, parameters["column"]), parameters)
    print(json.dumps(result))
