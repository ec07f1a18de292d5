"""What each step of the journey costs by itself: its own functions, called in batches over recorded requests.

A step of a few microseconds drowns in the noise of a whole gateway; timed alone it can be told. Everything is real:
the arena, the journal with its sync thread, the policy, the keys. Only the sockets are missing, so `stream` is what
remains.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from proxy._fastpath import now_ns
from proxy.accept import accept, read_body
from proxy.admit import admit, count
from proxy.authorise import authorise
from proxy.call import Call, Outcome, Progress
from proxy.clock import boot_id
from proxy.house import House
from proxy.identify import identify
from proxy.identity.keys import Keys
from proxy.journal import Epoch
from proxy.meter import meter
from proxy.policy.compile import compile_policy
from proxy.route import choose
from proxy.settings import load
from proxy.store.store import KeyRow
from proxy.telemetry.calls import CallMetrics
from proxy.telemetry.log import Lines
from proxy.telemetry.metrics import Counters
from proxy.verbs.keys import new_row
from proxy.wiring import make_pool
from tests.world.gateway import Gateway

BATCH = 50  # calls in one timed batch: the clock's own cost disappears in it
WIDE = {"requests_per_minute": 1_000_000_000, "tokens_per_minute": 1_000_000_000_000, "concurrency": 100_000}


class Recorded:
    """One recorded request, as a front would hand it over."""

    def __init__(self, secret: str, body: bytes) -> None:
        self.method = "POST"
        self.raw_path = "/v1/chat/completions"
        self.raw_headers = (
            (b"Host", b"127.0.0.1:8080"),
            (b"Authorization", b"Bearer " + secret.encode()),
            (b"Content-Type", b"application/json"),
            (b"Accept", b"application/json"),
            (b"User-Agent", b"OpenAI/Python 3.54.0"),
            (b"Content-Length", str(len(body)).encode()),
        )
        self.http10 = False
        self.close = False
        self.arrived_ns = now_ns()
        self.started = False
        self._body = body

    def body_now(self) -> bytes:
        """It came with its head."""
        return self._body


@contextmanager
def house(directory: Path) -> Iterator[tuple[House, str]]:
    """A worker's house without a front, and a key that it knows. Call inside a running loop."""
    written = Gateway(
        directory,
        "http://127.0.0.1:9/v1",
        settings={"journal": {"segment_bytes": 16 * 1024 * 1024}, "models": {"*": {"unpriced": False}}},
        tenant={"limits": WIDE, "key_limits": WIDE},
    )
    written.write("prices.yaml", {"version": "bench", "models": {"*": {"prompt": "0.15", "completion": "0.60"}}})
    process = load(written.config)
    process.data_dir.mkdir(parents=True)
    epoch = Epoch.create(
        process.data_dir / "journal",
        str(process.data_dir / "arena"),
        boot_id(),
        slots=process.journal.slots,
        segment_bytes=process.journal.segment_bytes,
        max_bytes=process.journal.max_bytes,
        sync_ms=process.journal.sync_ms,
    )
    secret, row = new_row(process, "acme", "bench")

    async def look_up_all(digests: Sequence[bytes]) -> list[KeyRow]:
        return [row] if row.digest in digests else []

    nowhere = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    lines = Lines("json", epoch=epoch.epoch, fd=nowhere)
    epoch.on_sync(lines.flush)
    counters = Counters(process.data_dir / "metrics", epoch.column)
    from proxy.identity import pepper

    made = House(
        asyncio.get_running_loop(),
        compile_policy(written.config),
        Keys(epoch.arena, pepper.ensure(process.data_dir), look_up_all),
        epoch,
        make_pool,
        CallMetrics(counters),
        lines,
        strict=False,
    )
    try:
        yield made, secret
    finally:
        made.close()
        epoch.finish()
        lines.flush()
        counters.close()
        os.close(nowhere)


async def _measure(batches: int) -> dict[str, float]:
    text = "The quick brown fox jumps over the lazy dog. " * 18
    body = json.dumps(
        {"model": "gpt-4o", "messages": [{"role": "user", "content": text}], "temperature": 0.7, "max_tokens": 100}
    ).encode()
    times: dict[str, list[float]] = {
        name: [] for name in ("accept", "identify", "authorise", "count", "admit", "route", "meter")
    }
    with tempfile.TemporaryDirectory(prefix="weir-steps-") as directory, house(Path(directory)) as (made, secret):
        recorded = Recorded(secret, body)
        await made.keys.look_up(secret.encode())
        seen = Progress(1, 600, 400, 190, 0, 10, 0, 0, 1, 1000, 200)

        def answered(call: Call) -> None:
            """What `stream` leaves behind of a whole answer; not timed."""
            assert call.route is not None
            call.slot.sent(1, call.route.sent)
            call.sent_ns = now_ns()
            call.outcome = Outcome("complete", 200, seen, "bench", "req_0123456789abcdef", 1)

        async def accepted() -> list[Call]:
            calls = []
            for _ in range(BATCH):
                call = accept(recorded, made.next_request_id)  # type: ignore[arg-type]
                await read_body(call)
                calls.append(call)
            return calls

        def each(name: str, step: Callable[[Call], Any], calls: list[Call]) -> None:
            began = time.perf_counter_ns()
            for call in calls:
                step(call)
            times[name].append((time.perf_counter_ns() - began) / BATCH / 1000)

        def route(call: Call) -> None:
            call.route = choose(call.grant.routes, call.slot.call)

        gc.collect()
        gc.freeze()
        for number in range(batches):
            recorded.arrived_ns = now_ns()
            began = time.perf_counter_ns()
            calls = await accepted()
            times["accept"].append((time.perf_counter_ns() - began) / BATCH / 1000)
            each("identify", lambda call: identify(call, made.gate), calls)
            each("authorise", lambda call: authorise(call, made.policy), calls)
            each("count", lambda call: count(call, made), calls)
            each("admit", lambda call: admit(call, made), calls)
            each("route", route, calls)
            for call in calls:
                answered(call)
            each("meter", lambda call: meter(call, made), calls)
            if number % 20 == 19:
                await asyncio.sleep(0.06)  # the journal's thread syncs and makes the next segment, as it would
    return {name: statistics.median(values) for name, values in times.items()}


def measure(batches: int) -> dict[str, float]:
    """Microseconds a call spends in each step: the median of so many batches."""
    return asyncio.run(_measure(batches))


if __name__ == "__main__":
    for name, us in measure(500).items():
        print(f"{name:12}{us:8.2f} us")
