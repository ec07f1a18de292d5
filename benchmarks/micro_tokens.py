"""What the token counter costs by itself: `pytest benchmarks/micro_tokens.py --benchmark-enable`.

Each benchmark runs its call in a loop and reports the time of one call, the loop's own cost included; the best of the
rounds is compared with the target, because a busy machine can only add to it. With `--benchmark-disable` the calls run
once, so that they stay right. These texts are seen again and again and therefore cached; what fresh text costs beside
tiktoken and fastokens is told by `python -m benchmarks.tokens`.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pydoc_data import topics
from typing import Any

import pytest

from proxy import tokens
from proxy._fastpath import Encoding
from proxy.tokens import tables
from tests.tokens import oracle

FEEDS = 1000  # in one round
RUN_BYTES = 1_000_000

# What the design asks for: nanoseconds a feed, a frame with its count; milliseconds to open; MB/s of anything.
FEED_NS, FRAME_NS, OPEN_MS, LEAST_MB_PER_SECOND = 100, 500, 1, 15

ENGLISH = "\n".join(topics.topics.values())
BASE64 = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
draw = random.Random(7)


def timed(benchmark: Any, call: Callable[[], object], calls: int, target_ns: float | None = None) -> None:
    """Times rounds of `calls` calls and prints one call's cost, with its target where there is one."""

    def loop() -> None:
        for _ in range(calls):
            call()

    benchmark.pedantic(loop, rounds=30, warmup_rounds=2)
    report(benchmark, calls, target_ns)


def report(benchmark: Any, calls: int, target_ns: float | None) -> None:
    """Prints the best and the median call."""
    if benchmark.stats is None:  # disabled: it ran, and that is all
        return
    best_ns = benchmark.stats.stats.min / calls * 1e9
    median_ns = benchmark.stats.stats.median / calls * 1e9
    benchmark.extra_info.update(best_ns=round(best_ns, 1), median_ns=round(median_ns, 1), target_ns=target_ns)
    target = f"  target {target_ns:g} ns" if target_ns else ""
    print(f"\n{benchmark.name:<44} best {best_ns:9.1f} ns  median {median_ns:9.1f} ns{target}", end="")
    assert target_ns is None or best_ns <= target_ns


@pytest.mark.parametrize("size", [200, 4096])
def test_count(benchmark: Any, size: int) -> None:
    """English that was seen before: what the splitter and the cache cost."""
    counter, text = tokens.encoding("o200k_base"), ENGLISH[:size].encode()
    assert counter.count(text) == oracle.count("o200k_base", text.decode())
    benchmark.name = f"count of {size} characters of English"
    timed(benchmark, lambda: counter.count(text), 200)


@pytest.mark.parametrize("size", [200, 4096])
def test_count_of_tiktoken(benchmark: Any, size: int) -> None:
    """The rival on the same text, at its best."""
    official, text = oracle.encoding("o200k_base"), ENGLISH[:size]
    benchmark.name = f"tiktoken: {size} characters of English"
    timed(benchmark, lambda: official.encode_ordinary(text), 20)


@pytest.mark.parametrize(("counting", "target_ns"), [(False, FEED_NS), (True, FRAME_NS)])
def test_feed(benchmark: Any, counting: bool, target_ns: float) -> None:
    """A delta of five bytes in a long stream, and the running count after it."""
    counter, raw = tokens.encoding("o200k_base"), ENGLISH.encode()
    parts = [raw[at : at + 5] for at in range(0, FEEDS * 5, 5)]

    def stream() -> int:
        opened = counter.stream()
        feed, count = opened.feed, opened.count
        if counting:
            for part in parts:
                feed(part)
                count()
        else:
            for part in parts:
                feed(part)
        return count()

    assert stream() == counter.count(raw[: FEEDS * 5])
    benchmark.name = "feed and count" if counting else "feed"
    benchmark.pedantic(stream, rounds=50, warmup_rounds=2)
    report(benchmark, FEEDS, target_ns)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a", "a" * RUN_BYTES),
        ("spaces", " " * RUN_BYTES),
        ("line ends", "\n" * RUN_BYTES),
        ("digits", "7" * RUN_BYTES),
        ("emoji", "😀" * (RUN_BYTES // 4)),
        ("marks", "\u0301" * (RUN_BYTES // 2)),
        ("a to f", "".join(draw.choices("abcdef", k=RUN_BYTES))),
        (
            "base64",
            "".join(draw.choices(BASE64, k=RUN_BYTES)),
        ),
    ],
)
@pytest.mark.parametrize("encoding", tables.NAMES)
def test_adversarial(benchmark: Any, encoding: str, name: str, text: str) -> None:
    """A megabyte of what tokenizers are slow at."""
    counter, raw = tokens.encoding(encoding), text.encode()
    benchmark.name = f"{encoding}: 1 MB of {name}"
    benchmark.pedantic(lambda: counter.count(raw), rounds=5, warmup_rounds=1)
    report(benchmark, 1, RUN_BYTES / LEAST_MB_PER_SECOND * 1e3)


def test_open(benchmark: Any) -> None:
    """Mapping a table and making its caches, as a worker does once."""
    path = tables.path("o200k_base")
    timed(benchmark, lambda: Encoding(path), 5, OPEN_MS * 1e6)
