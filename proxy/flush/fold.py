"""Step 2 of a flush, pure: journal records in, rows to persist out. No input is dropped in silence.

A record becomes a row, the end of an epoch, a double of a row in the same batch, a conflict with one, or a
quarantined record with the reason. Rows come out sorted by key, so that two flushers take locks in the same order.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from datetime import date
from functools import lru_cache
from hashlib import blake2b
from operator import itemgetter
from typing import Any

from msgspec import Struct
from msgspec.structs import astuple, fields

from proxy.call import EpochEnd, UsageEvent
from proxy.record import decode

INTEGER_MAX = 2**63 - 1  # what a database's bigint holds
SUMMED_MAX = 10**15  # a million dollars or a quadrillion tokens in one call; nine thousand of these still fit a sum
DAY_US = 86_400_000_000
_DAYS_MAX = date.max.toordinal() - date(1970, 1, 1).toordinal()
_ORDINAL_1970 = date(1970, 1, 1).toordinal()

# A row is a tuple in this order: its identity, what tells a double from a conflict, its day, and the event's fields.
ROW_FIELDS: tuple[str, ...] = ("epoch", "call", "digest", "day", *UsageEvent.__struct_fields__[1:])
Row = tuple[Any, ...]
Key = tuple[bytes, int]  # (epoch, call)
DIGEST = ROW_FIELDS.index("digest")
_TAGS = UsageEvent.__struct_fields__.index("tags")
_STARTED = UsageEvent.__struct_fields__.index("started_us")

# What a roll-up is kept for, and what it sums.
GROUP_FIELDS = ("day", "tenant", "key_id", "model", "model_served", "upstream")
SUM_FIELDS = (
    "requests",
    "prompt_tokens",
    "cached_tokens",
    "completion_tokens",
    "reasoning_tokens",
    "audio_tokens",
    "cost_nanos",
    "unpriced",
    "estimated",
    "lower_bound",
)
_GROUP = itemgetter(*(ROW_FIELDS.index(name) for name in GROUP_FIELDS))
_SUMMED = itemgetter(*(ROW_FIELDS.index(name) for name in SUM_FIELDS[1:7]))
# An event's values by kind: one look at each kind tells that a row is fit, as nearly every row is.
_KINDS = {info.name: info.type for info in fields(UsageEvent)}
_NUMBERS = itemgetter(*(i for i, name in enumerate(_KINDS) if _KINDS[name] is int and name not in SUM_FIELDS))
_SUMS = itemgetter(*(i for i, name in enumerate(_KINDS) if _KINDS[name] is int and name in SUM_FIELDS))
_TEXTS = itemgetter(*(i for i, name in enumerate(_KINDS) if _KINDS[name] is str))
_PRICE_VERSION = ROW_FIELDS.index("price_version")
_SOURCE = ROW_FIELDS.index("source")
_LOWER_BOUND = ROW_FIELDS.index("lower_bound")


class Batch(Struct, frozen=True):
    """Records `first` to `last` (both counted, dense, from 1) of an epoch's segments, each a kind byte and msgpack.

    `origin` is the id of the data directory they come from, "" when unknown.
    """

    epoch: bytes
    first: int
    last: int
    records: Sequence[bytes]
    origin: str = ""


class Quarantined(Struct, frozen=True):
    """A record that cannot be read, whole, with the reason. `seq` is its position in the epoch's segments."""

    epoch: bytes
    seq: int
    payload: bytes
    reason: str


class Conflict(Struct, frozen=True):
    """A second record of a call that says something else than the first. The first stands."""

    epoch: bytes
    call: int
    old_digest: int
    new_digest: int
    payload: bytes


class Folded(Struct):
    """What a list of batches comes to."""

    rows: dict[Key, Row]
    payloads: dict[Key, tuple[int, bytes]]  # position and record, for a row that turns out not to fit
    ends: dict[bytes, int]  # epoch → calls it opened
    spans: dict[bytes, list[tuple[int, int]]]  # epoch → positions that will be persisted, first and last
    origins: dict[bytes, str]
    quarantined: list[Quarantined]
    conflicts: list[Conflict]
    doubles: int = 0


def digest_of(payload: bytes) -> int:
    """64 bits of BLAKE2b as a signed integer: equal records are equal here, as a database's bigint."""
    return int.from_bytes(blake2b(payload, digest_size=8).digest(), "little", signed=True)


@lru_cache(maxsize=64)
def _day(days: int) -> str:
    return date.fromordinal(_ORDINAL_1970 + days).isoformat()


def day_of(started_us: int) -> str:
    """The UTC day, YYYY-MM-DD, of a wall-clock time in microseconds. Raises ValueError outside 1970 to 9999."""
    days = started_us // DAY_US
    if not 0 <= days <= _DAYS_MAX:
        raise ValueError(f"started_us is {started_us}, outside the years 1970 to 9999")
    return _day(days)


def row_of(epoch: bytes, event: UsageEvent, digest: int) -> Row:
    """An event as a row, in the order of ROW_FIELDS. Raises ValueError for a value that no row can hold."""
    values = astuple(event)
    numbers, sums = _NUMBERS(values), _SUMS(values)
    if min(numbers) < 0 or min(sums) < 0 or max(numbers) > INTEGER_MAX or max(sums) > SUMMED_MAX:
        _refuse(event)
    day = day_of(values[_STARTED])
    tags = json.dumps(dict(values[_TAGS]), ensure_ascii=False) if values[_TAGS] else "{}"
    if "\0" in "".join(_TEXTS(values)) or "\\u0000" in tags:
        values = tuple(_clean(value) if type(value) is str else value for value in values)
        tags = json.dumps({_clean(name): _clean(value) for name, value in values[_TAGS]}, ensure_ascii=False)
    return (epoch, event.call, digest, day, *values[1:_TAGS], tags, *values[_TAGS + 1 :])


def _refuse(event: UsageEvent) -> None:
    for name, value in zip(UsageEvent.__struct_fields__, astuple(event), strict=True):
        limit = SUMMED_MAX if name in SUM_FIELDS else INTEGER_MAX
        if type(value) is int and not 0 <= value <= limit:
            raise ValueError(f"{name} is {value}, outside 0 to {limit}")


def _clean(text: str) -> str:
    """NUL is legal in a JSON string, hence in a client's `user`, but PostgreSQL's text cannot hold it."""
    return text.replace("\0", "\ufffd")


def fold(batches: Iterable[Batch]) -> Folded:
    """Reads every record and removes doubles inside the batches. Never raises for what a record holds."""
    folded = Folded({}, {}, {}, {}, {}, [], [])
    for batch in batches:
        if len(batch.epoch) != 16 or batch.first < 1 or batch.last - batch.first + 1 != len(batch.records):
            # Positions cannot be trusted, so none is marked as persisted: the journal still has these records and
            # its keeper sends them again. What came is kept for the person who looks into it.
            reason = f"a batch of {len(batch.records)} records says it holds {batch.first} to {batch.last}"
            folded.quarantined.append(Quarantined(batch.epoch, batch.first, b"".join(batch.records), reason))
            continue
        folded.spans.setdefault(batch.epoch, []).append((batch.first, batch.last))
        if batch.origin:
            folded.origins[batch.epoch] = batch.origin
        for seq, payload in enumerate(batch.records, batch.first):
            _fold_one(folded, batch.epoch, seq, bytes(payload))
    folded.rows = dict(sorted(folded.rows.items()))
    return folded


def _fold_one(folded: Folded, epoch: bytes, seq: int, payload: bytes) -> None:
    try:
        record = decode(payload)  # raises BadRecord, a ValueError
        if isinstance(record, EpochEnd):
            _fold_end(folded, epoch, record.calls)
            return
        if record.call < 1:
            raise ValueError(f"call is {record.call}; calls are numbered from 1")
        key = (epoch, record.call)
        digest = digest_of(payload)
        row = row_of(epoch, record, digest)
    except (ValueError, RecursionError) as error:
        folded.quarantined.append(Quarantined(epoch, seq, payload, str(error)))
        return
    old = folded.rows.get(key)
    if old is None:
        folded.rows[key] = row
        folded.payloads[key] = (seq, payload)
    elif old[DIGEST] == digest:
        folded.doubles += 1
    else:
        old_digest = old[DIGEST]
        assert isinstance(old_digest, int)
        folded.conflicts.append(Conflict(epoch, record.call, old_digest, digest, payload))


def _fold_end(folded: Folded, epoch: bytes, calls: int) -> None:
    if not 0 <= calls <= INTEGER_MAX:
        raise ValueError(f"the end of the epoch counts {calls} calls")
    known = folded.ends.setdefault(epoch, calls)
    if known != calls:
        raise ValueError(f"a second end of the epoch counts {calls} calls, the first {known}")


def roll_up(rows: Iterable[Row]) -> dict[Row, list[int]]:
    """Group (in the order of GROUP_FIELDS) → sums (in the order of SUM_FIELDS), sorted by group."""
    sums: dict[Row, list[int]] = {}
    for row in rows:
        group = _GROUP(row)
        total = sums.get(group)
        if total is None:
            total = sums[group] = [0] * len(SUM_FIELDS)
        total[0] += 1
        for position, value in enumerate(_SUMMED(row), 1):
            total[position] += value
        total[7] += row[_PRICE_VERSION] == ""
        total[8] += row[_SOURCE] == "estimated"
        total[9] += row[_LOWER_BOUND]
    return {group: sums[group] for group in sorted(sums, key=repr)}


def merge(spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Spans, both ends counted, as the shortest sorted list that covers the same numbers."""
    merged: list[tuple[int, int]] = []
    for first, last in sorted(spans):
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(merged[-1][1], last))
        else:
            merged.append((first, last))
    return merged


def advance(persisted: int, beyond: Iterable[tuple[int, int]]) -> tuple[int, list[tuple[int, int]]]:
    """The longest dense prefix of 1 to `persisted` and the spans beyond it, and the spans that still wait for a gap."""
    spans = merge([*([(1, persisted)] if persisted else []), *beyond])
    if spans and spans[0][0] == 1:
        return spans[0][1], spans[1:]
    return 0, spans


def holds(spans: Iterable[tuple[int, int]], number: int) -> bool:
    """Whether one of the spans covers the number."""
    return any(first <= number <= last for first, last in spans)
