"""Made usage, and what must stand in the database after it: an oracle of plain Python, independent of the product."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar

from sqlalchemy import text

from proxy.call import UsageEvent
from proxy.flush.fold import Batch
from proxy.record import encode
from proxy.store.redis import RedisUnavailable
from proxy.store.store import Store, StoreUnavailable

T = TypeVar("T")
START_US = 1_790_000_000_000_000  # 2026-09-21 14:13:20 UTC
GROUP = ("tenant", "key_id", "model", "model_served", "upstream")
TOKENS = ("prompt_tokens", "cached_tokens", "completion_tokens", "reasoning_tokens", "audio_tokens")


def run(work: Coroutine[Any, Any, T]) -> T:
    """asyncio.run with a bound, so that a hang is a failure with a traceback."""

    async def bounded() -> T:
        async with asyncio.timeout(400):
            return await work

    return asyncio.run(bounded())


async def eventually(attempt: Callable[[], Awaitable[object]], what: str, seconds: float = 120) -> None:
    """Waits until `attempt` neither raises "away" nor returns False. Raises TimeoutError naming `what`."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            if await attempt() is not False:
                return
            reason = "not yet"
        except (RedisUnavailable, StoreUnavailable) as error:
            reason = str(error)
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {seconds} s: {reason}")
        await asyncio.sleep(0.01)


def event(call: int, **fields: Any) -> UsageEvent:
    """One event; `fields` replace the ordinary ones."""
    values: dict[str, Any] = {
        "call": call,
        "tenant": "acme",
        "key_id": "key_1",
        "user": "u1",
        "tags": (("team", "search"),),
        "request_id": f"req-{call}",
        "endpoint": "chat.completions",
        "model": "small",
        "model_served": "small-2026",
        "upstream": "north",
        "upstream_request_id": f"up-{call}",
        "attempts": 1,
        "stream": True,
        "status": 200,
        "termination": "complete",
        "prompt_tokens": 10,
        "cached_tokens": 2,
        "completion_tokens": 5,
        "reasoning_tokens": 1,
        "audio_tokens": 0,
        "source": "provider",
        "relayed_frames": 7,
        "relayed_bytes": 900,
        "cost_nanos": 1234,
        "price_version": "2026-09",
        "started_us": START_US,
        "queue_us": 11,
        "first_us": 22,
        "total_us": 33,
        "lower_bound": False,
    }
    return UsageEvent(**values | fields)


def mixed(seed: int, number: int, first: int = 1) -> list[UsageEvent]:
    """`number` events of calls `first` and on, over tenants, keys, models, days, priced and not."""
    rng = random.Random(seed)
    events = []
    for call in range(first, first + number):
        priced = rng.random() < 0.8
        tenant = rng.choice(["acme", "globex", "initech"])
        events.append(
            event(
                call,
                tenant=tenant,
                key_id=f"{tenant}_{rng.randrange(3)}",
                user=rng.choice(["", "anna", "bo\u0142ek", 'q"uote']),
                tags=tuple((name, rng.choice("xyz")) for name in ("team", "app")[: rng.randrange(3)]),
                model=rng.choice(["small", "large"]),
                upstream=rng.choice(["north", "south", ""]),
                stream=rng.random() < 0.5,
                termination=rng.choice(["complete", "client_gone", "upstream_error", "crash"]),
                prompt_tokens=rng.randrange(5000),
                cached_tokens=rng.randrange(100),
                completion_tokens=rng.randrange(2000),
                source=(source := rng.choice(["provider", "counted", "estimated"])),
                lower_bound=source != "provider" and rng.random() < 0.5,
                cost_nanos=rng.randrange(10**9) if priced else 0,
                price_version="2026-09" if priced else "",
                started_us=START_US + rng.randrange(5 * 86_400_000_000),
            )
        )
    return events


def batches(epoch: bytes, events: Sequence[UsageEvent], size: int, origin: str = "") -> list[Batch]:
    """The events as a keeper ships them, at positions 1 and on."""
    found = []
    for start in range(0, len(events), size):
        part = events[start : start + size]
        found.append(Batch(epoch, start + 1, start + len(part), [encode(one) for one in part], origin))
    return found


def day(started_us: int) -> str:
    """The UTC day, by the standard library's own calendar."""
    return datetime.fromtimestamp(started_us / 1e6, UTC).strftime("%Y-%m-%d")


def rollups_of(events: Iterable[UsageEvent]) -> dict[tuple[str, ...], Counter[str]]:
    """(day, tenant, key, model, served, upstream) → sums."""
    sums: dict[tuple[str, ...], Counter[str]] = defaultdict(Counter)
    for one in events:
        total = sums[(day(one.started_us), *(getattr(one, name) for name in GROUP))]
        total["requests"] += 1
        for name in TOKENS:
            total[name] += getattr(one, name)
        total["cost_nanos"] += one.cost_nanos
        total["unpriced"] += one.price_version == ""
        total["estimated"] += one.source == "estimated"
        total["lower_bound"] += one.lower_bound
    return sums


async def differences(store: Store, expected: dict[bytes, list[UsageEvent]]) -> list[str]:
    """What in the database is not as `expected` (epoch → its events) says; empty when rows and roll-ups are exact."""
    async with store.reading() as connection:
        rows = [dict(row) for row in (await connection.execute(text("SELECT * FROM usage"))).mappings()]
        rollups = [dict(row) for row in (await connection.execute(text("SELECT * FROM usage_rollup"))).mappings()]
    found = []
    times = Counter((bytes(row["epoch"]), row["call"]) for row in rows)
    wanted = {(epoch, one.call): one for epoch, events in expected.items() for one in events}
    found += [f"missing {epoch.hex()} {call}" for epoch, call in wanted.keys() - times.keys()]
    found += [f"nobody's {epoch.hex()} {call}" for epoch, call in times.keys() - wanted.keys()]
    found += [f"{count} rows for call {call}" for (_, call), count in times.items() if count > 1]
    for row in rows:
        one = wanted.get((bytes(row["epoch"]), row["call"]))
        if one is None:
            continue
        for name in UsageEvent.__struct_fields__:
            if name not in ("tags", "call") and row[name] != getattr(one, name):
                found.append(f"call {one.call}: {name} is {row[name]!r}, not {getattr(one, name)!r}")
    sums = rollups_of(wanted.values())
    kept = {(row["day"], *(row[name] for name in GROUP)): row for row in rollups}
    found += [f"roll-up {group} for nothing" for group in kept.keys() - sums.keys()]
    for group, total in sums.items():
        for name in ("requests", *TOKENS, "cost_nanos", "unpriced", "estimated"):
            value = kept[group][name] if group in kept else None
            if value != total[name]:
                found.append(f"roll-up {group}: {name} is {value}, not {total[name]}")
    return found
