"""One process against an oracle in exact integers: admission, waiting, settling, and what the headers say."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy import clock
from proxy._fastpath import CONCURRENCY, RATE_REQUESTS, RATE_TOKENS, Arena, Limits, now_ns, wall_us
from tests.fastpath.conftest import OpenArena

START_NS = 10**15
MINUTE = 60 * 10**9


class Bucket:
    """GCRA in exact integers: `ahead` is how far the arrival time runs ahead, in 1/64 ns."""

    def __init__(self, limit: int, burst: int) -> None:
        self.each = -(-MINUTE * 64 // limit)
        self.most = (burst or limit) * self.each
        self.arrival = 0

    def ahead(self, now: int) -> int:
        return max(0, self.arrival - now * 64)

    def wait(self, now: int, amount: int) -> int:
        """Nanoseconds until `amount` could pass; 0 or less when it passes now."""
        return -(-(self.ahead(now) + amount * self.each - self.most) // 64)

    def charge(self, now: int, amount: int) -> None:
        self.arrival = now * 64 + self.ahead(now) + amount * self.each

    def give(self, amount: int) -> None:
        self.arrival -= amount * self.each

    def remaining(self, now: int) -> int:
        return max(0, (self.most - self.ahead(now)) // self.each)


def duration_ms(text: str) -> int:
    """Reads a duration as Go writes it, and nothing else."""
    if match := re.fullmatch(r"([1-9]\d{0,2})ms", text):
        return int(match[1])
    match = re.fullmatch(r"(?:([1-9]\d*)h)?(?:(\d{1,2})m)?(\d{1,2}(?:\.\d{0,2}[1-9])?)s", text)
    assert match, text
    assert match[2] or not match[1], text
    return int((int(match[1] or 0) * 3600 + int(match[2] or 0) * 60 + Fraction(match[3])) * 1000)


def parse(headers: bytes) -> dict[str, str]:
    assert headers.endswith(b"\r\n")
    return dict(line.split(": ") for line in headers.decode().removesuffix("\r\n").split("\r\n"))


limits = st.integers(1, 10_000)
bursts = st.integers(0, 10_000)
entries = st.lists(
    st.tuples(st.sampled_from([RATE_REQUESTS, RATE_TOKENS, CONCURRENCY]), limits, bursts), min_size=1, max_size=5
)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("pass"), st.integers(0, 2 * MINUTE)),
        st.tuples(st.just("acquire"), st.integers(0, 300)),
        st.tuples(st.just("settle"), st.integers(0, 600)),
        st.tuples(st.just("refund"), st.just(0)),
    ),
    max_size=60,
)


@pytest.fixture(scope="module")
def shared_arena() -> Iterator[Arena]:
    with tempfile.TemporaryDirectory() as directory:
        arena = Arena(Path(directory) / "arena", "boot-1", 2, rate_cells=1 << 13, count_cells=64)
        yield arena
        arena.close()


class Examples:
    """Numbers the examples of a property, so that each has cells of its own."""

    number = 0


@settings(max_examples=400, deadline=None)
@given(entries, steps)
def test_every_answer_agrees_with_the_oracle(
    shared_arena: Arena, rows: list[tuple[int, int, int]], todo: list[tuple[str, int]]
) -> None:
    """Admission, the refusing entry, the wait, refunds, debts and headers are right to the unit."""
    Examples.number += 1
    shared_arena.reclaim_idle(2**56, 0)
    names = [b"oracle/%d/%d" % (Examples.number, index) for index in range(len(rows))]
    limited = Limits(shared_arena, [(row[0], name, row[1], row[2]) for name, row in zip(names, rows, strict=True)])
    buckets = [Bucket(limit, burst) for kind, limit, burst in rows]
    now = START_NS
    open_calls: list[int] = []

    def charges(tokens: int) -> list[int]:
        return [tokens if kind == RATE_TOKENS else 1 for kind, _, _ in rows]

    for what, amount in todo:
        if what == "pass":
            now += amount
        elif what == "acquire":
            expected = wait = 0
            for index, ((kind, limit, _), bucket, charge) in enumerate(
                zip(rows, buckets, charges(amount), strict=True), 1
            ):
                if kind == CONCURRENCY and len(open_calls) >= limit:
                    expected = index
                elif kind != CONCURRENCY and (late := bucket.wait(now, charge)) > 0:
                    expected, wait = index, late
                if expected:
                    break
            assert limited.acquire(now, amount) == expected
            assert limited.wait_ns == wait
            if not expected:
                open_calls.append(amount)
                for bucket, charge in zip(buckets, charges(amount), strict=True):
                    bucket.charge(now, charge)
        elif what == "settle" and open_calls:
            limited.settle_tokens(now, open_calls[-1], amount)
            for (kind, _, _), bucket in zip(rows, buckets, strict=True):
                if kind == RATE_TOKENS and amount > open_calls[-1]:
                    bucket.charge(now, amount - open_calls[-1])
                elif kind == RATE_TOKENS:
                    bucket.give(open_calls[-1] - amount)
            open_calls[-1] = amount
        elif what == "refund" and open_calls:
            tokens = open_calls.pop()
            limited.refund(now, tokens)
            for bucket, charge in zip(buckets, charges(tokens), strict=True):
                bucket.give(charge)
        assert [shared_arena.used(cell) for cell in limited.holds] == [len(open_calls)] * len(limited.holds)
        check_headers(limited.headers(now), rows, buckets, now)
    for tokens in open_calls:
        limited.refund(now, tokens)
    assert shared_arena.held_total() == 0


def check_headers(headers: bytes, rows: list[tuple[int, int, int]], buckets: list[Bucket], now: int) -> None:
    wanted: dict[str, str] = {}
    said = parse(headers) if headers else {}
    for kind, name in ((RATE_REQUESTS, "requests"), (RATE_TOKENS, "tokens")):
        mine = [(bucket.remaining(now), index) for index, bucket in enumerate(buckets) if rows[index][0] == kind]
        if mine:
            least, index = min(mine)
            wanted[f"x-ratelimit-limit-{name}"] = str(rows[index][1])
            wanted[f"x-ratelimit-remaining-{name}"] = str(least)
            reset = said.pop(f"x-ratelimit-reset-{name}")
            assert duration_ms(reset) == -(-buckets[index].ahead(now) // 64_000_000)
    assert said == wanted


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 10**7), st.integers(1, 50), st.lists(st.integers(0, 10**9), min_size=1, max_size=80))
def test_no_window_admits_more_than_burst_and_rate(
    shared_arena: Arena, limit: int, burst: int, gaps: list[int]
) -> None:
    """In every window of every run the admitted requests are at most burst + rate * window, in exact fractions."""
    Examples.number += 1
    shared_arena.reclaim_idle(2**56, 0)
    limited = Limits(shared_arena, [(RATE_REQUESTS, b"window/%d" % Examples.number, limit, burst)])
    now, admitted = START_NS, []
    for gap in gaps:
        now += gap
        while limited.acquire(now, 0) == 0:
            admitted.append(now)
            assert len(admitted) < 10**6
            if len(admitted) % burst == 0:
                now += 1
    for first in range(0, len(admitted), max(1, len(admitted) // 20)):
        window = admitted[-1] - admitted[first]
        assert len(admitted) - first <= burst + Fraction(limit * window, MINUTE)


@pytest.mark.parametrize(
    ("ahead_ns", "text"),
    [
        (0, "0s"),
        (1, "1ms"),
        (12_000_000, "12ms"),
        (999_000_000, "999ms"),
        (999_000_001, "1s"),
        (1_000_000_000, "1s"),
        (8_640_000_000, "8.64s"),
        (1_001_000_000, "1.001s"),
        (1_500_000_000, "1.5s"),
        (59_999_000_001, "1m0s"),
        (360_000_000_000, "6m0s"),
        (3_723_000_000_000, "1h2m3s"),
        (3_600_000_000_000, "1h0m0s"),
        (36_610_250_000_000, "10h10m10.25s"),
    ],
)
def test_durations_are_written_as_go_writes_them(open_arena: OpenArena, ahead_ns: int, text: str) -> None:
    """OpenAI sends Go's durations; ours are rounded up to milliseconds."""
    limited = Limits(open_arena(), [(RATE_TOKENS, b"t", MINUTE, 10**12)])  # a token is a nanosecond
    limited.settle_tokens(START_NS, 0, ahead_ns)
    assert parse(limited.headers(START_NS))["x-ratelimit-reset-tokens"] == text


def test_header_lines_are_whole(open_arena: OpenArena) -> None:
    """The bytes that go to the client, once in full."""
    limited = Limits(
        open_arena(),
        [
            (RATE_REQUESTS, b"t", 60, 0),
            (RATE_TOKENS, b"t", 40_000, 0),
            (RATE_REQUESTS, b"k", 6, 0),
            (CONCURRENCY, b"t", 5, 0),
        ],
    )
    assert limited.acquire(START_NS, 1000) == 0
    assert limited.headers(START_NS) == (
        b"x-ratelimit-limit-requests: 6\r\n"
        b"x-ratelimit-remaining-requests: 5\r\n"
        b"x-ratelimit-reset-requests: 10s\r\n"
        b"x-ratelimit-limit-tokens: 40000\r\n"
        b"x-ratelimit-remaining-tokens: 39000\r\n"
        b"x-ratelimit-reset-tokens: 1.5s\r\n"
    )
    assert Limits(open_arena(), [(CONCURRENCY, b"t", 5, 0)]).headers(START_NS) == b""


def test_the_widest_numbers_fit(open_arena: OpenArena) -> None:
    """The largest limits and the deepest debt are written whole."""
    limited = Limits(open_arena(), [(RATE_REQUESTS, b"t", 2**40, 2**40), (RATE_TOKENS, b"t", 2**40, 2**40)])
    limited.settle_tokens(START_NS, 0, 2**62)
    said = parse(limited.headers(START_NS))
    assert said["x-ratelimit-limit-requests"] == said["x-ratelimit-remaining-requests"] == str(2**40)
    assert said["x-ratelimit-remaining-tokens"] == "0"
    assert duration_ms(said["x-ratelimit-reset-tokens"]) == -(-(2**58) // 64_000_000)


def test_a_late_clock_sees_less_room_never_more(open_arena: OpenArena) -> None:
    """An arrival time behind another caller's neither admits too much nor turns the bucket back."""
    limited = Limits(open_arena(), [(RATE_REQUESTS, b"t", 60, 2)])
    assert [limited.acquire(START_NS, 0) for _ in range(3)] == [0, 0, 1]
    assert limited.acquire(START_NS - 5 * 10**9, 0) == 1
    assert limited.wait_ns == 6 * 10**9
    assert limited.acquire(START_NS + 10**9, 0) == 0
    assert limited.acquire(START_NS + 10**9, 0) == 1


def test_more_tokens_than_the_burst_never_pass(open_arena: OpenArena) -> None:
    """The caller clamps to `token_burst`, the smallest of all token entries."""
    limited = Limits(
        open_arena(), [(RATE_TOKENS, b"t", 100, 50), (RATE_TOKENS, b"k", 100, 40), (RATE_REQUESTS, b"t", 9, 0)]
    )
    assert limited.token_burst() == 40
    assert limited.acquire(START_NS, 41) == 2
    assert limited.acquire(START_NS, 40) == 0
    assert Limits(open_arena(), [(RATE_REQUESTS, b"t", 9, 0)]).token_burst() == 2**62


def test_a_huge_debt_ends(open_arena: OpenArena) -> None:
    """One wild figure shuts nobody out for longer than the longest refill, and overflows nothing."""
    limited = Limits(open_arena(), [(RATE_TOKENS, b"t", 1, 1)])
    for _ in range(5):
        limited.settle_tokens(START_NS, 0, 2**63 - 1)
    assert limited.acquire(START_NS, 1) == 1
    assert 0 < limited.wait_ns <= 53 * 86400 * 10**9
    assert limited.acquire(START_NS + limited.wait_ns, 1) == 0


def test_the_same_scope_is_the_same_cell_in_every_process(open_arena: OpenArena) -> None:
    """A cell belongs to kind and scope, whatever the limit: a reload keeps what was used."""
    first = Limits(open_arena(0), [(RATE_REQUESTS, b"t", 3, 0), (CONCURRENCY, b"t", 2, 0)])
    second = Limits(open_arena(1), [(RATE_REQUESTS, b"t", 4, 0), (CONCURRENCY, b"t", 3, 0)])
    assert first.holds == second.holds
    assert [first.acquire(START_NS, 0) for _ in range(3)] == [0, 0, 2]
    assert [second.acquire(START_NS, 0) for _ in range(2)] == [0, 1]
    assert second.acquire(START_NS + MINUTE, 0) == 2


@pytest.mark.parametrize(
    ("entry", "sentence"),
    [
        ((RATE_REQUESTS, b"t", 0, 0), "limit 0: 1 to 1099511627776"),
        ((RATE_REQUESTS, b"t", -1, 5), "limit -1: 1 to"),
        ((RATE_TOKENS, b"t", 2**40 + 1, 5), "limit 1099511627777: 1 to"),
        ((RATE_TOKENS, b"t", 5, 2**40 + 1), "burst 1099511627777: 1 to"),
        ((CONCURRENCY, b"t", 5, -2), "burst -2: 1 to"),
        ((RATE_TOKENS, b"t", 1, 10**6), "a burst of 1000000 at 1 a minute takes more than 52 days to refill"),
        ((3, b"t", 1, 1), "limit kind 3"),
    ],
)
def test_bounds_are_kept_by_a_sentence(
    open_arena: OpenArena, entry: tuple[int, bytes, int, int], sentence: str
) -> None:
    """A limit out of bounds is a ValueError that says what is right, and makes no cell."""
    arena = open_arena()
    with pytest.raises(ValueError, match=sentence):
        Limits(arena, [entry])
    assert arena.usage() == (0, 64, 0, 64)


def test_wrong_calls_are_refused_whole(open_arena: OpenArena) -> None:
    """Negative amounts, a process without a column and a closed arena are errors that take nothing."""
    reader = open_arena(-1)
    limited = Limits(reader, [(RATE_REQUESTS, b"t", 5, 0), (CONCURRENCY, b"t", 5, 0)])
    with pytest.raises(ValueError, match="without a column"):
        limited.acquire(START_NS, 0)
    assert parse(limited.headers(START_NS))["x-ratelimit-remaining-requests"] == "5"
    for now, tokens in ((-1, 0), (0, -1)):
        with pytest.raises(ValueError, match="neither is ever negative"):
            limited.acquire(now, tokens)
        with pytest.raises(ValueError, match="neither is ever negative"):
            limited.settle_tokens(now, 0, tokens)
    with pytest.raises(ValueError, match="four and a half years"):
        limited.acquire(2**57, 0)
    with pytest.raises(TypeError):
        Limits(reader, [(RATE_REQUESTS, None, 5, 0)])  # type: ignore[list-item]
    reader.close()
    for call in (limited.acquire, limited.refund):
        with pytest.raises(ValueError, match="closed"):
            call(START_NS, 0)
    with pytest.raises(ValueError, match="closed"):
        limited.headers(START_NS)
    with pytest.raises(ValueError, match="closed"):
        Limits(reader, [])


def test_no_entries_limit_nothing(open_arena: OpenArena) -> None:
    """A call under no limit is admitted, and nothing is said about limits."""
    limited = Limits(open_arena(), [])
    assert (limited.acquire(START_NS, 5), limited.headers(START_NS), limited.holds) == (0, b"", ())


def test_the_clock_is_the_house_clock() -> None:
    """The hot path reads the very clocks that the rest reads."""
    before, between, after = clock.now_ns(), now_ns(), clock.now_ns()
    assert before <= between <= after
    assert abs(wall_us() - clock.wall_us()) < 60_000_000  # somebody may set it in this very moment
