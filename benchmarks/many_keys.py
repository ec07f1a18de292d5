"""`python -m benchmarks.many_keys`: what a worker pays for a key out of a million, in time and in memory.

The table is SQLite in a temporary directory, filled directly; it is asked through the product's own store and queue.
Cold: the worker does not know the key and asks the database, alone and among two hundred at once. Warm: it does. All
times are of this process; the page cache is as warm as filling the table left it, which is how a database that is in
use is. Memory is the growth of the resident set: once as many keys are known as a worker keeps, then as many again.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import secrets
import sqlite3
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from proxy import bounds, clock
from proxy._fastpath import Arena, key_digest, now_ns
from proxy.errors import Refusal
from proxy.identity.actor import operator
from proxy.identity.keys import Keys, new_key_id, new_secret
from proxy.store.keys import KeyRow
from proxy.store.store import Store, migrate

COLD_US_MAX = 2000
WARM_US_MAX = 1.0
COLD_CALLS = 2000
WARM_KEYS = 1000
WARM_ROUNDS = 50
AT_ONCE = 200
PEPPER = bytes(32)
TENANTS = 1000
KNOWN = 2 * bounds.KEYS_CACHED_MAX + COLD_CALLS  # keys whose secrets are at hand


def resident() -> int:
    """Bytes of this process in memory."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status has no VmRSS")


def row(secret: str, tenant: str) -> KeyRow:
    """A key as most are: a name, an owner, two tags, a limit of its own."""
    tags = (("team", "search"), ("env", "production"))
    digest = key_digest(secret.encode(), PEPPER)
    return KeyRow(new_key_id(), digest, tenant, "batch job", "ann", tags, None, None, secret[-4:], 1, plan=None)


async def fill(url: str, path: Path, count: int, known: Sequence[str]) -> None:
    """So many keys: one by the product, the others in its image; those of `known` spread among them."""
    await migrate(url)
    store = Store.open(url)
    try:
        await store.insert_key(row(known[0], "t0"), operator())
    finally:
        await store.close()
    with sqlite3.connect(path) as connection:
        cursor = connection.execute("SELECT * FROM keys")
        names = [column[0] for column in cursor.description]
        image = list(cursor.fetchone())
        at = {name: number for number, name in enumerate(names)}

        def rows() -> Iterator[list[object]]:
            every = max(1, (count - 1) // len(known))
            waiting = iter(known[1:])
            for number in range(count - 1):
                secret = next(waiting, None) if number % every == 0 else None
                one = list(image)
                one[at["key_id"]] = new_key_id()
                one[at["digest"]] = secrets.token_bytes(32) if secret is None else key_digest(secret.encode(), PEPPER)
                one[at["tenant"]] = f"t{number % TENANTS}"
                yield one
            for secret in waiting:
                one = list(image)
                one[at["key_id"]], one[at["digest"]] = new_key_id(), key_digest(secret.encode(), PEPPER)
                yield one

        marks = ", ".join("?" * len(names))
        connection.executemany(f"INSERT INTO keys ({', '.join(names)}) VALUES ({marks})", rows())
    connection.close()


async def cold(keys: Keys, known: Sequence[bytes]) -> list[float]:
    """Microseconds of each look-up of a key that the worker does not know, one after the other."""
    times = []
    for secret in known:
        before = now_ns()
        await keys.look_up(secret)
        times.append((now_ns() - before) / 1000)
    return times


def warm(keys: Keys, known: Sequence[bytes]) -> list[float]:
    """Microseconds of one known key, once for each round over all of them."""
    times = []
    for _ in range(WARM_ROUNDS):
        before = now_ns()
        for secret in known:
            keys.known(secret)
        times.append((now_ns() - before) / 1000 / len(known))
    return times


async def crowd(keys: Keys, known: Sequence[bytes]) -> float:
    """Microseconds a key, when they come AT_ONCE at a time."""
    before = now_ns()
    for start in range(0, len(known), AT_ONCE):
        await asyncio.gather(*(keys.look_up(secret) for secret in known[start : start + AT_ONCE]))
    return (now_ns() - before) / 1000 / len(known)


async def strangers(keys: Keys, count: int) -> float:
    """Microseconds a key of well-formed ones that nobody made."""
    made = [new_secret("live").encode() for _ in range(count)]
    before = now_ns()
    for start in range(0, count, AT_ONCE):
        answers = await asyncio.gather(*map(keys.look_up, made[start : start + AT_ONCE]), return_exceptions=True)
        assert all(isinstance(answer, Refusal) and answer.code == "invalid_api_key" for answer in answers)
    return (now_ns() - before) / 1000 / count


async def measure(count: int) -> bool:
    """Prints every figure; True when both targets are met."""
    kept = bounds.KEYS_CACHED_MAX
    known = [new_secret("live") for _ in range(KNOWN)]
    with tempfile.TemporaryDirectory(prefix="weir-keys-") as directory:
        path = Path(directory) / "weir.db"
        url = f"sqlite:///{path}"
        began = now_ns()
        await fill(url, path, count, known)
        print(f"{count:,} keys in SQLite, {path.stat().st_size / 1e6:,.0f} MB, in {(now_ns() - began) / 1e9:.0f} s")
        store = Store.open(url, readonly=True)
        arena = Arena(str(Path(directory) / "arena"), clock.boot_id())
        try:
            keys = Keys(arena, PEPPER, store.keys_by_digests)
            given = [secret.encode() for secret in known]
            random.shuffle(given)
            first, rest = given[:COLD_CALLS], given[COLD_CALLS:]
            await keys.look_up(first[0])  # the first question opens the connection and compiles the statement
            times = sorted(await cold(keys, first[1:]))
            middle, high = statistics.median(times), times[len(times) * 99 // 100]
            print(f"cold, one at a time     median {middle:7.0f} us   p99 {high:7.0f} us   target {COLD_US_MAX} us")
            spread = sorted(warm(keys, first[:WARM_KEYS]))
            print(
                f"warm                    best {spread[0]:9.3f} us   median {statistics.median(spread):.3f} us"
                f"   target {WARM_US_MAX:g} us"
            )
            before = resident()
            each = await crowd(keys, rest[: kept - len(first)])
            full = resident()
            print(f"cold, {AT_ONCE} at once       {each:14.0f} us each")
            print(f"memory, {kept:,} known  {(full - before) / 1e6:10.1f} MB, {(full - before) / kept:.0f} bytes each")
            await crowd(keys, rest[kept - len(first) :])
            print(f"memory, as many again   {(resident() - full) / 1e6:10.1f} MB more; {keys!r}")
            again = resident()
            each = await strangers(keys, 5 * bounds.KEYS_UNKNOWN_CACHED_MAX)
            print(f"unknown, {AT_ONCE} at once    {each:14.0f} us each")
            print(f"memory, after those     {(resident() - again) / 1e6:10.1f} MB more; {keys!r}")
        finally:
            arena.close()
            await store.close()
    return middle <= COLD_US_MAX and spread[0] <= WARM_US_MAX


def main() -> None:
    """Exits 1 when a target is missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.many_keys", description=__doc__)
    parser.add_argument("--keys", type=int, default=1_000_000, help="in the table (default 1,000,000)")
    count = parser.parse_args().keys
    if count < KNOWN:
        parser.error(f"--keys {count}: at least {KNOWN} are needed to fill what a worker keeps, twice")
    raise SystemExit(0 if asyncio.run(measure(count)) else 1)


if __name__ == "__main__":
    main()
