"""Step 2, pure: what goes in comes out as rows, doubles, conflicts, or set aside with a reason; nothing vanishes."""

from __future__ import annotations

import itertools
from datetime import date

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.call import UsageEvent
from proxy.flush.fold import (
    GROUP_FIELDS,
    INTEGER_MAX,
    ROW_FIELDS,
    SUM_FIELDS,
    SUMMED_MAX,
    Batch,
    advance,
    day_of,
    digest_of,
    fold,
    holds,
    merge,
    roll_up,
)
from proxy.record import encode, encode_end
from tests.store.records import event, mixed, rollups_of

EPOCH = bytes(range(16))
OTHER = bytes(reversed(range(16)))
SPANS = st.lists(st.tuples(st.integers(1, 60), st.integers(0, 9)).map(lambda pair: (pair[0], pair[0] + pair[1])))


def covered(spans: list[tuple[int, int]]) -> set[int]:
    """The numbers of spans, one by one."""
    return {number for first, last in spans for number in range(first, last + 1)}


@given(SPANS)
def test_merge_covers_the_same_in_the_fewest_spans(spans: list[tuple[int, int]]) -> None:
    """Against sets: same numbers, sorted, and a gap between any two."""
    merged = merge(spans)
    assert covered(merged) == covered(spans)
    assert all(earlier[1] + 1 < later[0] for earlier, later in itertools.pairwise(merged))


@given(st.integers(0, 40), SPANS)
def test_advance_finds_the_longest_dense_prefix(persisted: int, spans: list[tuple[int, int]]) -> None:
    """Against sets: nothing is lost, and the position is the last number before the first gap."""
    position, beyond = advance(persisted, spans)
    numbers = set(range(1, persisted + 1)) | covered(spans)
    assert set(range(1, position + 1)) | covered(beyond) == numbers
    assert position + 1 not in numbers
    assert all(holds(beyond, number) == (number in numbers) for number in range(position + 1, 80))


@given(st.lists(st.binary(max_size=80), max_size=10), st.lists(st.integers(1, 5), max_size=10))
def test_every_record_is_accounted_for(junk: list[bytes], calls: list[int]) -> None:
    """Whatever bytes come: row, double, conflict, end or quarantine, and no exception."""
    good = [encode(event(call)) for call in calls]
    records = [part for pair in zip(good, junk, strict=False) for part in pair] or [b"E"]
    folded = fold([Batch(EPOCH, 1, len(records), records)])
    ends = sum(record[:1] == b"Z" for record in records)
    accounted = len(folded.rows) + folded.doubles + len(folded.conflicts) + len(folded.quarantined)
    assert len(records) - ends <= accounted <= len(records)
    assert folded.spans == {EPOCH: [(1, len(records))]}


def test_doubles_inside_a_batch_fall_away() -> None:
    """The same record twice is one row and one double; another epoch's same call is another row."""
    record = encode(event(1))
    folded = fold([Batch(OTHER, 1, 2, [record, record], "here"), Batch(EPOCH, 4, 4, [record])])
    assert list(folded.rows) == [(EPOCH, 1), (OTHER, 1)]  # sorted, whatever order they came in
    assert (folded.doubles, folded.conflicts, folded.quarantined) == (1, [], [])
    assert folded.origins == {OTHER: "here"}
    assert folded.spans == {OTHER: [(1, 2)], EPOCH: [(4, 4)]}


def test_a_row_holds_the_event_in_the_named_order() -> None:
    """ROW_FIELDS names what stands where: a wrong order would put tokens into another column."""
    one = event(3, tags=(("b", "2"), ("a", "1")))
    payload = encode(one)
    row = dict(zip(ROW_FIELDS, fold([Batch(EPOCH, 1, 1, [payload])]).rows[(EPOCH, 3)], strict=True))
    assert (row.pop("epoch"), row.pop("call"), row.pop("day")) == (EPOCH, 3, "2026-09-21")
    assert row.pop("digest") == digest_of(payload)
    assert row.pop("tags") == '{"b": "2", "a": "1"}'
    assert row == {name: getattr(one, name) for name in UsageEvent.__struct_fields__ if name not in ("call", "tags")}


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt_tokens": -1},
        {"prompt_tokens": SUMMED_MAX + 1},
        {"cost_nanos": SUMMED_MAX + 1},
        {"total_us": INTEGER_MAX + 1},
        {"started_us": 253_402_300_800_000_000},
        {"call": 0},
    ],
)
def test_a_value_that_no_row_can_hold_is_set_aside(fields: dict[str, int]) -> None:
    """One absurd number must not stop the batch, nor, summed up, a roll-up."""
    folded = fold([Batch(EPOCH, 5, 6, [encode(msgspec.structs.replace(event(1), **fields)), encode(event(2))])])
    assert list(folded.rows) == [(EPOCH, 2)]
    assert [(one.seq, bool(one.reason)) for one in folded.quarantined] == [(5, True)]


def test_the_largest_values_are_held() -> None:
    """The bounds themselves are legal."""
    one = event(INTEGER_MAX, prompt_tokens=SUMMED_MAX, total_us=INTEGER_MAX, started_us=0)
    assert list(fold([Batch(EPOCH, 1, 1, [encode(one)])]).rows) == [(EPOCH, INTEGER_MAX)]


@pytest.mark.parametrize(
    "batch",
    [
        Batch(EPOCH, 1, 2, [b"x"]),
        Batch(EPOCH, 0, 0, [b"x"]),
        Batch(EPOCH, 3, 1, []),
        Batch(b"", 1, 1, [b"x"]),
    ],
)
def test_positions_that_do_not_fit_mark_nothing_as_persisted(batch: Batch) -> None:
    """The journal's keeper must send those records again."""
    folded = fold([batch])
    assert (folded.rows, folded.spans, len(folded.quarantined)) == ({}, {}, 1)


def test_the_end_of_an_epoch() -> None:
    """It is no row; a second one with another count is set aside."""
    folded = fold([Batch(EPOCH, 1, 3, [encode_end(9), encode_end(9), encode_end(8)])])
    assert folded.ends == {EPOCH: 9}
    assert [one.seq for one in folded.quarantined] == [3]


@given(st.integers(0, date.max.toordinal() - date(1970, 1, 1).toordinal()), st.integers(0, 86_399_999_999))
def test_days_are_utc_days(days: int, rest: int) -> None:
    """Against the standard library's calendar, from the first to the last microsecond of a day."""
    expected = date.fromordinal(date(1970, 1, 1).toordinal() + days).isoformat()
    assert day_of(days * 86_400_000_000 + rest) == expected


@pytest.mark.parametrize("seed", range(3))
def test_roll_ups_are_the_sums_of_a_plain_loop(seed: int) -> None:
    """Every group and figure, against the tests' own sums."""
    events = mixed(seed, 200)
    folded = fold([Batch(EPOCH, 1, 200, [encode(one) for one in events])])
    sums = {group: dict(zip(SUM_FIELDS, total, strict=True)) for group, total in roll_up(folded.rows.values()).items()}
    assert GROUP_FIELDS[0] == "day"
    assert sums == {group: {name: total[name] for name in SUM_FIELDS} for group, total in rollups_of(events).items()}
