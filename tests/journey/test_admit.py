"""Step 4: limits are exact across workers, taken whole or not at all, and given back whatever dies."""

from __future__ import annotations

import asyncio
import os
import signal
import uuid
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from proxy._fastpath import CONCURRENCY, RATE_REQUESTS, Arena, ArenaFull, Limits, now_ns
from proxy.bounds import COUNT_CELLS
from proxy.clock import boot_id
from tests.journey.calling import Answer, Client, chat, keys_verb, once
from tests.journey.conftest import RATED, House
from tests.world.gateway import Gateway, wait_for
from tests.world.process import UpstreamProcess

CLIENTS = 64
ADMITTED = 100  # of a burst, for the calls of a rush to be among those that it admits
ENOUGH = 20  # answers, for a crowd to have shown something
MINUTE = 60 * 10**9


def new_key(house: House, tenant: str) -> tuple[str, str]:
    """(the key, its public id) of a new key of the tenant."""
    made = keys_verb(house.weir, "create", "--tenant", tenant)
    return made["key"], made["key_id"]


def held_back(admitted: int, refused: int) -> bool:
    """Whether the limit has been felt: more was let through than stood in the bucket, and much was refused."""
    return admitted > ADMITTED and refused > CLIENTS


async def rush(weir: Gateway, key: str, model: str, seconds: float, name: str) -> tuple[int, int]:
    """(admitted, refused): 64 clients call as fast as they can, and on a slow machine until they are held back."""
    counts = [0, 0]
    until = now_ns() + int(seconds * 1e9)
    at_last = until + MINUTE

    def on() -> bool:
        return now_ns() < until or (not held_back(*counts) and now_ns() < at_last)

    async def one(number: int) -> None:
        async with Client(weir, key) as client:
            while on():
                answer = await client.call(chat({"tokens": 1}, model), x_request_id=f"{name}-{number}")
                assert answer.status == 200 or answer.code == "rate_limit_exceeded", answer
                counts[answer.status != 200] += 1

    await asyncio.gather(*(one(number) for number in range(CLIENTS)))
    return counts[0], counts[1]


@pytest.mark.parametrize("level", ["tenant", "key", "model"])
def test_a_saturated_limit_admits_burst_and_rate(trio: House, level: str) -> None:
    """64 clients over 3 workers are admitted burst + rate · T times, one more or less, on each level.

    T lies between two instants of the arena's own clock. At the first the test takes most of the burst itself, by the
    cell that the workers use: from then on the bucket is not full, so no time is lost to it. At the last it takes what
    is left. Between them everything that the bucket ever had was taken by somebody, so the sum must come out.
    """
    weir = trio.weir
    key, key_id = new_key(trio, {"tenant": "rated", "key": "rated-keys", "model": "acme"}[level])
    scope = {"tenant": "tenant/rated", "key": f"key/{key_id}", "model": "model/acme/rated"}[level]
    limit, burst = RATED["requests_per_minute"], RATED["requests_burst"]
    arena = Arena(str(weir.data / "arena"), boot_id(), -1)
    try:
        cell = Limits(arena, [(RATE_REQUESTS, scope.encode(), limit, burst)])
        first = now_ns()
        taken = sum(cell.acquire(first, 0) == 0 for _ in range(burst - ADMITTED))
        assert taken == burst - ADMITTED
        name = f"rush-{level}"
        admitted, refused = asyncio.run(rush(weir, key, "rated" if level == "model" else "m1", 1.5, name))
        last = now_ns()
        rest = 0
        while cell.acquire(last, 0) == 0:
            rest += 1
    finally:
        arena.close()
    expected = burst + limit * (last - first) / MINUTE
    assert abs(taken + admitted + rest - expected) <= 1, (taken, admitted, rest, expected)
    assert held_back(admitted, refused)

    def rows() -> set[str]:
        mine = [row["epoch"] for row in weir.rows() if row["request_id"].startswith(name)]
        return set(mine) if len(mine) == admitted else set()

    assert len(wait_for("a row for each that was admitted", rows)) == 3  # every worker had its share


def most_at_once(house: House, name: str) -> int:
    """How many calls of this name the upstream had at one instant, by the order of its own ledger.

    It writes a call's end in the same step of its loop as the answer's last byte, so the order is the true one. Calls
    that a killed worker left are not counted: the upstream learns of their end later than it happened.
    """
    events = house.upstream.events()
    ends = {event["n"]: event for event in events if event["event"] == "end"}
    mine = {
        event["n"]
        for event in events
        if event["event"] == "request"
        and event["id"].startswith(name)
        and ends.get(event["n"], {}).get("how") != "client_gone"
    }
    alive = most = 0
    for event in events:
        if event["n"] in mine:
            alive += 1 if event["event"] == "request" else -1
            most = max(most, alive)
    return most


async def crowd(house: House, key: str, name: str, seconds: float, kills: int) -> list[str]:
    """64 clients stream; meanwhile so many workers are killed. Codes and "ok" and "cut" of all that came back.

    They go on for so many seconds, and on a slow machine until a good number came through.
    """
    said: list[str] = []
    until = now_ns() + int(seconds * 1e9)
    at_last = until + 60_000_000_000

    def on() -> bool:
        return now_ns() < until or (said.count("ok") <= ENOUGH and now_ns() < at_last)

    async def one(number: int) -> None:
        turn = 0
        while on():
            try:
                async with Client(house.weir, key) as client:
                    while on():
                        turn += 1
                        body = chat({"tokens": 4, "delay_ms": 10}, stream=True)
                        answer = await client.call(body, x_request_id=f"{name}-{number}-{turn}")
                        said.append(answer.code or ("ok" if answer.whole else "cut"))
                        if answer.status != 200:
                            await asyncio.sleep(0.02)
            except (OSError, EOFError):
                said.append("cut")  # its worker was killed
                await asyncio.sleep(0.02)

    async def kill() -> None:
        for number in range(kills):
            await asyncio.sleep(seconds / (kills + 2))
            os.kill(sorted(house.weir.processes("worker"))[number % 2], signal.SIGKILL)

    await asyncio.gather(kill(), *(one(number) for number in range(CLIENTS)))
    return said


@pytest.mark.parametrize("kills", [0, 2])
def test_concurrency_is_never_passed(trio: House, kills: int) -> None:
    """64 clients over 3 workers: the upstream never has more calls at once than allowed, and at rest none is held."""
    key, _ = new_key(trio, "few")
    name = f"crowd-{kills}"
    said = asyncio.run(crowd(trio, key, name, 1.5 + kills, kills))
    assert set(said) <= {"ok", "concurrency_exceeded", *(["cut"] if kills else [])}
    assert said.count("ok") > ENOUGH
    assert "concurrency_exceeded" in said
    assert bool(kills) == ("cut" in said)
    trio.upstream.wait_idle()
    assert 2 <= most_at_once(trio, name) <= 7
    wait_for("nothing to be held", lambda: trio.weir.held() == (0, 0))
    assert wait_for("three workers", lambda: len(trio.weir.processes("worker")) == 3 and trio.weir.ready())


def test_headers_say_what_is_left(trio: House) -> None:
    """x-ratelimit-* count down as OpenAI's do; the refusal says when to come back, in both forms, to the second."""
    key, _ = new_key(trio, "five")

    async def six() -> list[Answer]:
        async with Client(trio.weir, key) as client:
            return [await client.call(chat({"tokens": 1}, max_tokens=5)) for _ in range(6)]

    answers = asyncio.run(six())
    assert [answer.status for answer in answers] == [200] * 5 + [429]
    said = [(a.headers["x-ratelimit-limit-requests"], a.headers["x-ratelimit-remaining-requests"]) for a in answers]
    assert said == [("1", str(left)) for left in (4, 3, 2, 1, 0, 0)]
    assert {a.headers["x-ratelimit-limit-tokens"] for a in answers} == {"100000"}
    assert all(int(a.headers["x-ratelimit-remaining-tokens"]) > 99_900 for a in answers)
    assert answers[0].headers["x-ratelimit-reset-requests"] == "1m0s"
    refused = answers[5]
    wait_ms = int(refused.headers["retry-after-ms"])
    assert 1 <= wait_ms <= 60_000
    assert int(refused.headers["retry-after"]) == -(-wait_ms // 1000)
    assert (refused.code, refused.headers["x-should-retry"]) == ("rate_limit_exceeded", "true")
    assert refused.headers["x-weir-error"] == "client"


def test_a_prompt_above_the_burst_is_final(trio: House) -> None:
    """What can never pass is a 429 that tells the SDK not to try again; it takes nothing and reaches nobody."""
    key, _ = new_key(trio, "tokens")
    request_id = uuid.uuid4().hex
    answer = asyncio.run(once(trio.weir, chat(prompt="word " * 1000), key, x_request_id=request_id))
    assert (answer.status, answer.code) == (429, "request_too_large")
    assert answer.headers["x-should-retry"] == "false"
    assert "retry-after" not in answer.headers
    small = asyncio.run(once(trio.weir, chat({"tokens": 1}, max_tokens=1), key))
    assert int(small.headers["x-ratelimit-remaining-tokens"]) > 950
    assert not trio.asked(request_id)
    assert not trio.rows(request_id)


def test_tokens_are_reserved_and_then_settled(trio: House) -> None:
    """While a call may still use its tokens they are gone for others; when it ends, what it did not use is there."""
    key, _ = new_key(trio, "tokens")
    big = chat({"tokens": 3}, max_tokens=900)

    async def story() -> None:
        async with Client(trio.weir, key) as client:
            await client.send(chat({"tokens": 3, "delay_ms": 2000}, max_tokens=900, stream=True))
            status, headers = await client.head()
            assert (status, int(headers["x-ratelimit-remaining-tokens"]) < 150) == (200, True)
            refused = await once(trio.weir, big, key)
            assert (refused.status, refused.code) == (429, "token_limit_exceeded")
            assert 1 <= int(refused.headers["retry-after-ms"]) <= 60_000
            async for _ in client.parts(headers):
                pass
        passed = await once(trio.weir, big, key)
        assert passed.status == 200

    asyncio.run(story())


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """One worker that can have sixteen calls in flight."""
    directory: Path = tmp_path_factory.mktemp("small")
    with UpstreamProcess(directory / "ledger.jsonl") as upstream:
        settings = {
            "journal": {"slots": 16},
            "models": {
                "counted": {"upstream": "mock", "unpriced": True, "limits": {"requests_per_minute": 20}},
                "new": {"upstream": "mock", "unpriced": True, "limits": {"concurrency": 5}},
            },
        }
        with Gateway(directory, upstream.url, settings=settings) as weir:
            yield House(weir, upstream)
            weir.assert_at_rest()


def test_without_a_slot_nothing_is_admitted(small: House) -> None:
    """Sixteen calls fill the journal: the next is a 503 that may be retried, and costs no part of its limits."""

    async def story() -> None:
        async with AsyncExitStack() as stack:
            clients = [await stack.enter_async_context(Client(small.weir)) for _ in range(16)]
            for client in clients:
                await client.send(chat({"endless": True, "delay_ms": 200}, "counted", stream=True))
            heads = [await client.head() for client in clients]
            assert {status for status, _ in heads} == {200}
            left = min(int(headers["x-ratelimit-remaining-requests"]) for _, headers in heads)
            for _ in range(3):
                refused = await once(small.weir, chat(model="counted"))
                assert (refused.status, refused.code) == (503, "journal_full")
                assert (refused.headers["retry-after"], refused.headers["x-should-retry"]) == ("1", "true")
                assert refused.headers["x-weir-error"] == "gateway"
        # All sixteen have hung up.
        await asyncio.to_thread(wait_for, "nothing to be held", lambda: small.weir.held() == (0, 0))
        after = await once(small.weir, chat(model="counted"))
        assert after.status == 200
        assert int(after.headers["x-ratelimit-remaining-requests"]) >= left - 1

    asyncio.run(story())


def test_a_limit_without_a_cell_is_a_refusal(small: House) -> None:
    """When shared memory has no cell for a limit, the call is a 503; a limit is never missing. With one it passes."""
    arena = Arena(str(small.weir.data / "arena"), boot_id(), -1)
    try:
        full = number = 0
        while full < 5 * COUNT_CELLS and number < 20 * COUNT_CELLS:
            number += 1
            try:
                Limits(arena, [(CONCURRENCY, b"other/%d" % number, 1, 0)])
            except ArenaFull:
                full += 1
        assert arena.usage()[2] == COUNT_CELLS
        refused = asyncio.run(once(small.weir, chat(model="new")))
        assert (refused.status, refused.code) == (503, "limits_full")
        assert (refused.headers["retry-after"], refused.headers["x-should-retry"]) == ("1", "true")
        assert asyncio.run(once(small.weir, chat(model="counted"))).status == 200
        assert arena.reclaim_idle(now_ns() + MINUTE, 0) > 0
        assert asyncio.run(once(small.weir, chat(model="new"))).status == 200
    finally:
        arena.close()
