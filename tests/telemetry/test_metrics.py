"""Counters in the mapped file: sums that never fall, bounded series, many processes."""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import random
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from proxy import bounds
from proxy._fastpath import Cells, Tally
from proxy.telemetry.families import BUCKETS_US, FAMILIES, HISTOGRAM_CELLS, OTHER, OVERFLOW
from proxy.telemetry.metrics import KEEPER_COLUMN, OVERFLOW_INDEX, Counters

SEED = int(os.environ.get("WEIR_TEST_SEED", "0")) or random.randrange(1, 2**32)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "metrics"


@pytest.fixture
def opened(path: Path) -> Iterator[list[Counters]]:
    made: list[Counters] = []
    yield made
    for one in made:
        one.close()


def _open(opened: list[Counters], path: Path, column: int) -> Counters:
    opened.append(Counters(path, column))
    return opened[-1]


def test_sums_over_columns_and_lives(path: Path, opened: list[Counters]) -> None:
    """A new life in a column goes on from the old one's counts, and the sum spans all columns."""
    first = Counters(path, 2)
    index = first.series("weir_refusals_total", "bad_json")
    first.add(index, 5)
    first.close()
    second = _open(opened, path, 2)
    second.cells[second.series("weir_refusals_total", "bad_json")] += 1
    other = _open(opened, path, 3)
    other.add(other.series("weir_refusals_total", "bad_json"), 10)
    keeper = _open(opened, path, KEEPER_COLUMN)
    assert keeper.total("weir_refusals_total", "bad_json") == 16
    assert keeper.value(2, index) == 6
    assert keeper.value(3, index) == 10


def test_histogram_buckets_at_their_edges(path: Path, opened: list[Counters]) -> None:
    """A value on a bound belongs to that bound's bucket, one above it to the next, and the sum is exact."""
    counters = _open(opened, path, 0)
    index = counters.series("weir_request_seconds", "up", "m")
    values = [0, *BUCKETS_US, *(bound + 1 for bound in BUCKETS_US)]
    for value in values:
        counters.observe(index, value)
    counts = [counters.cells[index + cell] for cell in range(HISTOGRAM_CELLS)]
    assert counts[0] == 2
    assert counts[1 : len(BUCKETS_US)] == [2] * (len(BUCKETS_US) - 1)
    assert counts[len(BUCKETS_US)] == 1
    assert counts[-1] == sum(values)
    # The next series begins behind the histogram's cells.
    assert counters.series("weir_tenant_requests_total", "acme") == index + HISTOGRAM_CELLS


def test_all_at_once_is_what_one_by_one_is(path: Path, opened: list[Counters]) -> None:
    """Adding to many series in one call leaves the same cells as adding to each, series that are not there included."""
    print(f"WEIR_TEST_SEED={SEED}")
    chance = random.Random(SEED)
    at_once, one_by_one = _open(opened, path, 0), _open(opened, path, 1)
    counters = [at_once.series("weir_requests_total", "chat", str(number), "complete") for number in range(10)]
    histograms = [at_once.series("weir_request_seconds", "up", f"m{number}") for number in range(3)]
    edges = [edge + by for edge in BUCKETS_US for by in (-1, 0, 1)]
    for _ in range(500):
        counted = chance.choices([*counters, OVERFLOW_INDEX, -1], k=chance.randrange(17))
        timed = chance.choices([*histograms, OVERFLOW_INDEX, -1], k=chance.randrange(5))
        amounts = [chance.choice((0, 1, chance.randrange(1 << 40))) for _ in counted]
        times = [chance.choice((-1, 0, chance.choice(edges), chance.randrange(1 << 40))) for _ in timed]
        at_once.add_all(Tally(tuple(counted), tuple(timed)), *amounts, *times)
        for index, amount in zip(counted, amounts, strict=True):
            if index >= 0:
                one_by_one.add(index, amount)
        for index, time_us in zip(timed, times, strict=True):
            if index >= 0 and time_us >= 0:
                one_by_one.observe(index, time_us)
    assert at_once.cells.tolist() == one_by_one.cells.tolist()
    assert sum(at_once.cells) > 0


def test_all_at_once_never_writes_beside_its_cells() -> None:
    """Places outside the column are let go, sums wrap, and wrong amounts or a closed column are refused."""
    words = memoryview(bytearray(10 * 8)).cast("Q")
    cells = Cells(words[1:9], (10, 20))
    words[1] = 2**64 - 1
    cells.add(Tally((0, 8, 1 << 60, -1), (4, 5, 8, -5)), 2, 3, 3, 3, 20, 1, 1, 1)
    assert words.tolist() == [0, 1, 0, 0, 0, 0, 1, 0, 20, 0]
    with pytest.raises(ValueError, match="3 amounts for 1 counters and 1 histograms"):
        cells.add(Tally((0,), (1,)), 1, 2, 3)
    with pytest.raises(OverflowError):
        cells.add(Tally((0,), ()), 2**63)
    with pytest.raises(ValueError, match="at most 16 counters"):
        Tally((1,) * 17, ())
    cells.close()
    with pytest.raises(ValueError, match="closed"):
        cells.add(Tally((0,), ()), 1)
    assert words.tolist() == [0, 1, 0, 0, 0, 0, 1, 0, 20, 0]


@pytest.mark.parametrize(
    ("family", "label", "bound"),
    [("weir_tenant_requests_total", "tenant", 200), ("weir_unpriced_calls_total", "model", 200)],
)
def test_label_values_beyond_the_bound_are_other(
    path: Path, opened: list[Counters], family: str, label: str, bound: int
) -> None:
    """The 201st tenant or model is counted as `other`, and nothing is lost."""
    assert bound == {"tenant": bounds.TENANT_LABELS_MAX, "model": bounds.MODEL_LABELS_MAX}[label]
    counters = _open(opened, path, 0)
    for number in range(bound + 50):
        counters.add(counters.series(family, f"{label}-{number}"))
    named = [series for series in counters.each() if series.name == family]
    assert len(named) == bound + 1
    assert counters.total(family, OTHER) == 50
    assert sum(counters.total(family, *series.labels) for series in named) == bound + 50
    # A label known from before keeps its own series, in this process and in the next.
    again = _open(opened, path, 1)
    assert again.series(family, f"{label}-0") == named[0].first


def test_a_full_table_counts_as_other(path: Path, opened: list[Counters]) -> None:
    """When every series is taken, each family still has its `other`, and no two series share a cell."""
    counters = _open(opened, path, 0)
    for number in range(bounds.SERIES_MAX + 100):
        counters.add(counters.series("weir_requests_total", "chat", str(number), "complete"))
    every = list(counters.each())
    assert len(every) <= bounds.SERIES_MAX
    assert sum(counters.total(one.name, *one.labels) for one in every) == bounds.SERIES_MAX + 100
    assert counters.total("weir_requests_total", OTHER, OTHER, OTHER) > 0
    for name, family in FAMILIES.items():
        assert counters.series(name, *(["new"] * len(family.labels))) != OVERFLOW_INDEX or name == OVERFLOW
    taken: set[int] = set()
    for one in counters.each():
        cells = set(range(one.first, one.first + one.width))
        assert not cells & taken
        taken |= cells
    assert max(taken) < bounds.METRIC_CELLS_MAX


def test_a_held_table_stalls_nobody(path: Path, opened: list[Counters]) -> None:
    """While another process is stopped at the table, a new series counts as overflow, and later gets its own."""
    counters = _open(opened, path, 0)
    known = counters.series("weir_refusals_total", "bad_json")
    stopped = os.open(path, os.O_RDWR)
    fcntl.flock(stopped, fcntl.LOCK_EX)
    try:
        assert counters.series("weir_refusals_total", "bad_json") == known
        index = counters.series("weir_request_seconds", "u", "m")
        assert index == OVERFLOW_INDEX
        counters.observe(index, 10**9)
        assert counters.total(OVERFLOW) == 1
        assert counters.sum(known) == 0
    finally:
        os.close(stopped)
    assert counters.series("weir_request_seconds", "u", "m") != OVERFLOW_INDEX


def test_undeclared_or_misused_families_are_refused(path: Path, opened: list[Counters]) -> None:
    """A typing error in a metric's name or labels fails where it is made."""
    counters = _open(opened, path, 0)
    with pytest.raises(KeyError):
        counters.series("weir_request_total")
    with pytest.raises(ValueError, match="endpoint, status, termination"):
        counters.series("weir_requests_total", "chat")


def test_labels_are_cut_and_cleaned(path: Path, opened: list[Counters]) -> None:
    """Separators, control characters and length of a label cannot damage the table."""
    counters = _open(opened, path, 0)
    for hostile in ("a\x1fb", "a\nb", "x" * 5000, "é" * 5000, "", "\ud800"):
        counters.add(counters.series("weir_refusals_total", hostile))
    reader = _open(opened, path, 1)
    labels = [one.labels[0] for one in reader.each() if one.name == "weir_refusals_total"]
    assert "a?b" in labels
    assert all(len(label.encode()) <= bounds.MODEL_BYTES_MAX for label in labels)


@pytest.mark.parametrize("damage", ["short", "magic", "table", "width"])
def test_a_file_of_another_layout_starts_afresh(path: Path, opened: list[Counters], damage: str) -> None:
    """A file that is not ours is replaced, and those who had it mapped are not disturbed."""
    old = _open(opened, path, 0)
    index = old.series("weir_request_seconds", "u", "m")
    old.observe(index, 1)
    with open(path, "r+b") as file:
        if damage == "magic":
            file.write(b"x" * 8)
        elif damage == "table":
            file.seek(32)
            file.write(struct.pack("=Q", 7))
        elif damage == "width":  # the family had another kind in that version
            file.seek(4096 + 8 + len(OVERFLOW) + 2)
            file.write(struct.pack("=H", 1))
    if damage == "short":
        copy = path.read_bytes()[:100]
        path.unlink()
        path.write_bytes(copy)
    fresh = _open(opened, path, 0)
    assert fresh.total("weir_request_seconds", "u", "m") == 0
    old.observe(index, 1)
    assert old.cells[index] == 2


def _count(path: Path, column: int, times: int) -> None:
    counters = Counters(path, column)
    for number in range(times):
        counters.add(counters.series("weir_requests_total", "chat", str(number % 50), f"c{column}"))
        counters.add(counters.series("weir_requests_total", "chat", str(number % 50), "shared"))
    counters.close()


def test_many_processes_register_at_once(path: Path, opened: list[Counters]) -> None:
    """Six processes that meet the same new series at the same time agree on its place, and every count is there."""
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_count, args=(path, column, 500)) for column in range(6)]
    try:
        for process in processes:
            process.start()
        for process in processes:
            process.join(120)
            assert process.exitcode == 0
    finally:
        for process in processes:
            if process.is_alive():
                process.kill()
            process.join()
            process.close()
    counters = _open(opened, path, KEEPER_COLUMN)
    every = list(counters.each())
    assert len({(one.name, one.labels) for one in every}) == len(every)
    counted = sum(counters.sum(one.first) for one in every)
    assert counted == 6 * 500 * 2
