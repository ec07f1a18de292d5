"""What each function of `_fastpath` costs by itself: `pytest benchmarks/micro_fastpath.py --benchmark-enable`.

The key digest stands beside its rival, hashlib's keyed BLAKE2b. Each benchmark runs its call in a loop and reports the
time of one call, the loop's own cost included; the best of the rounds is compared with the target, because a busy
machine can only add to it. With `--benchmark-disable` the calls run once, so that they stay right.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from proxy import clock
from proxy._fastpath import (
    CONCURRENCY,
    RATE_REQUESTS,
    RATE_TOKENS,
    Arena,
    Cells,
    Limits,
    Tally,
    key_digest,
    key_well_formed,
    now_ns,
)

Measure = Callable[..., Any]
CALLS = 2000  # in one round
KEY = b"wk_live_" + b"a1B2" * 10 + b"xyz_000000"
PEPPER = bytes(range(32))
PLENTY = 10**9  # a limit that no benchmark reaches

# What the design asks for, in nanoseconds a call.
DIGEST_NS, ENTRY_NS, HEADERS_NS = 500, 200, 1000


@pytest.fixture(scope="module")
def arena() -> Iterator[Arena]:
    with tempfile.TemporaryDirectory() as directory:
        opened = Arena(Path(directory) / "arena", clock.boot_id(), 0)
        yield opened
        opened.close()


def per_call(benchmark: Any, call: Callable[[], object], target_ns: float | None = None) -> None:
    """Times `CALLS` calls a round and prints one call's cost, with its target where there is one."""

    def loop() -> None:
        for _ in range(CALLS):
            call()

    benchmark.pedantic(loop, rounds=50, warmup_rounds=2)
    if benchmark.stats is None:  # disabled: it ran, and that is all
        return
    best_ns = benchmark.stats.stats.min / CALLS * 1e9
    median_ns = benchmark.stats.stats.median / CALLS * 1e9
    benchmark.extra_info.update(best_ns=round(best_ns, 1), median_ns=round(median_ns, 1), target_ns=target_ns)
    target = f"  target {target_ns:g} ns" if target_ns else ""
    print(f"\n{benchmark.name:<44} best {best_ns:7.1f} ns  median {median_ns:7.1f} ns{target}", end="")
    assert target_ns is None or best_ns <= target_ns


def test_empty_call(benchmark: Any) -> None:
    """The cost of the loop and of a Python call, contained in every other figure."""
    per_call(benchmark, lambda: None)


def test_key_digest(benchmark: Any) -> None:
    """A key of 58 bytes under a pepper of 32."""
    assert key_digest(KEY, PEPPER) == hashlib.blake2b(KEY, key=PEPPER, digest_size=32).digest()
    per_call(benchmark, lambda: key_digest(KEY, PEPPER), DIGEST_NS)


def test_key_digest_of_hashlib(benchmark: Any) -> None:
    """The rival, at its best."""
    blake2b = hashlib.blake2b
    per_call(benchmark, lambda: blake2b(KEY, key=PEPPER, digest_size=32).digest())


def test_key_digest_of_hashlib_copied(benchmark: Any) -> None:
    """The rival with its state after the key kept, as ours is."""
    keyed = hashlib.blake2b(key=PEPPER, digest_size=32)

    def digest() -> bytes:
        state = keyed.copy()
        state.update(KEY)
        return state.digest()

    assert digest() == key_digest(KEY, PEPPER)
    per_call(benchmark, digest)


def test_key_well_formed(benchmark: Any) -> None:
    """Form and checksum of a key."""
    per_call(benchmark, lambda: key_well_formed(KEY))


def test_now_ns(benchmark: Any) -> None:
    """One clock reading a request."""
    per_call(benchmark, now_ns)


@pytest.mark.parametrize(
    ("name", "entries"),
    [
        ("requests", [(RATE_REQUESTS, b"t", PLENTY, 0)]),
        ("tokens", [(RATE_TOKENS, b"t", PLENTY, 0)]),
        ("concurrency", [(CONCURRENCY, b"t", 10**6, 0)]),
        (
            "tenant, key and model",
            [
                (kind, scope, limit, 0)
                for scope in (b"tenant/a", b"key/a", b"model/a")
                for kind, limit in ((RATE_REQUESTS, PLENTY), (RATE_TOKENS, PLENTY), (CONCURRENCY, 10**6))
            ],
        ),
    ],
)
def test_limit_check(benchmark: Any, arena: Arena, name: str, entries: list[tuple[int, bytes, int, int]]) -> None:
    """Admission and its undoing, so that every round finds the same cells; the target counts each of the two."""
    limited = Limits(arena, entries)
    now = now_ns()

    def take_and_give() -> None:
        assert limited.acquire(now, 1) == 0
        limited.refund(now, 1)

    benchmark.name = f"acquire + refund: {name} ({len(entries)})"
    per_call(benchmark, take_and_give, 2 * ENTRY_NS * len(entries))
    assert arena.held_total() == 0


def test_refusal(benchmark: Any, arena: Arena) -> None:
    """A refused call must be cheaper than an admitted one."""
    limited = Limits(arena, [(RATE_REQUESTS, b"refusal", 1, 1)])
    now = now_ns()
    assert limited.acquire(now, 0) == 0
    per_call(benchmark, lambda: limited.acquire(now, 0), ENTRY_NS)
    assert limited.acquire(now, 0) == 1


def test_settle_tokens(benchmark: Any, arena: Arena) -> None:
    """The truth at the end of a call, for three token entries."""
    limited = Limits(arena, [(RATE_TOKENS, scope, PLENTY, 0) for scope in (b"settle/1", b"settle/2", b"settle/3")])
    now = now_ns()
    per_call(benchmark, lambda: limited.settle_tokens(now, 100, 90), ENTRY_NS * 3)


def test_headers(benchmark: Any, arena: Arena) -> None:
    """Six header lines of the tightest of six entries."""
    entries = [(kind, scope, 60_000, 0) for scope in (b"h/1", b"h/2", b"h/3") for kind in (RATE_REQUESTS, RATE_TOKENS)]
    limited = Limits(arena, entries)
    now = now_ns()
    assert limited.acquire(now, 1234) == 0
    assert limited.headers(now).count(b"\r\n") == 6
    per_call(benchmark, lambda: limited.headers(now), HEADERS_NS)


def test_find_known_limits(benchmark: Any, arena: Arena) -> None:
    """Making a `Limits` of nine entries whose cells exist: once per key and policy snapshot."""
    entries = [
        (kind, b"f/%d" % level, 100, 0) for level in range(3) for kind in (RATE_REQUESTS, RATE_TOKENS, CONCURRENCY)
    ]
    per_call(benchmark, lambda: Limits(arena, entries))


def test_board_word(benchmark: Any, arena: Arena) -> None:
    """One generation word, as read once a request."""
    per_call(benchmark, lambda: arena.word(0))


def test_all_counters_at_once(benchmark: Any) -> None:
    """The twelve counters and two histograms of one call."""
    words = memoryview(bytearray(100 * 8)).cast("Q")
    cells = Cells(words, tuple(range(1000, 15_000, 1000)))
    tally = Tally(tuple(range(1, 13)), (20, 40))
    per_call(benchmark, lambda: cells.add(tally, 1, 1, 1, 600, 1, 190, 0, 10, 0, 0, 34_500, 0, 2000, 1500))
    assert words[12] == 0 < words[1]


def test_all_counters_one_by_one(benchmark: Any) -> None:
    """The rival: the same counters, without the histograms, in Python."""
    words = memoryview(bytearray(100 * 8)).cast("Q")

    def add() -> None:
        for place, amount in enumerate((1, 1, 1, 600, 1, 190, 0, 10, 0, 0, 34_500, 0), 1):
            words[place] += amount

    per_call(benchmark, add)
    assert words[12] == 0 < words[1]
