"""Bad credentials are counted by address: their sender is told to wait, and nobody with a good one notices."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from proxy import board, bounds
from proxy._fastpath import Arena
from proxy.clock import boot_id, now_ns
from proxy.errors import KINDS, Refusal
from proxy.identify import identify, look_up
from proxy.identity import failures, tokens
from proxy.identity.addresses import address_of
from proxy.identity.failures import Failures
from proxy.identity.gate import Gate
from proxy.identity.keys import Keys, new_secret
from proxy.identity.tokens import check_signature
from tests.identity.conftest import FAILURES
from tests.identity.forge import Desk, desk, token
from tests.journey.calling import Answer, chat, once
from tests.journey.conftest import House

_addresses = itertools.count(1)


def fresh_address() -> str:
    """An address of this test's own, so that no other test's failures count here."""
    return f"198.51.{next(_addresses)}.7"


def tries(world: House, credential: str, count: int, address: str) -> list[Answer]:
    """So many calls with this credential from there, each on a connection and so on a worker of its own."""

    async def story() -> list[Answer]:
        return [await once(world.weir, chat({"tokens": 1}), credential, x_forwarded_for=address) for _ in range(count)]

    return asyncio.run(story())


BAD = {
    "no key": lambda: "nonsense",
    "an unknown key": lambda: new_secret("live"),
    "a token signed by another": lambda: token("rsa-2", header={"kid": "rsa"}).decode(),
    "a token of a stranger": lambda: token(iss="https://elsewhere.example.com").decode(),
}


@pytest.mark.parametrize("kind", BAD)
def test_too_many_bad_credentials(world: House, kind: str) -> None:
    """The first of a minute are told that they are bad, the next, on whichever worker, to wait; a good key passes."""
    address = fresh_address()
    answers = tries(world, BAD[kind](), FAILURES + 3, address)
    statuses = [answer.status for answer in answers]
    assert statuses == [401] * FAILURES + [429] * 3
    refused = answers[-1]
    assert refused.code == "too_many_failures"
    assert 0 < int(refused.headers["retry-after-ms"]) <= 60_000 // FAILURES + 1
    assert int(refused.headers["retry-after"]) >= 1
    assert refused.headers["x-should-retry"] == "false", "the same credential will not get better"
    assert "x-tenant-id" not in refused.headers
    assert [answer.status for answer in tries(world, world.weir.key, 3, address)] == [200] * 3
    good = token(sub="u-77").decode()
    asked = tries_as(world, good, address)
    assert asked.status == 200
    assert [answer.status for answer in tries(world, BAD[kind](), 1, fresh_address())] == [401]


def tries_as(world: House, credential: str, address: str) -> Answer:
    """One call of a token's, in the tenant acme."""
    headers = {"x_forwarded_for": address, "x_tenant_id": "acme"}
    return asyncio.run(once(world.weir, chat({"tokens": 1}), credential, **headers))


def test_what_is_somebodys_is_not_counted(world: House) -> None:
    """A missing key, another tenant's name and an ended token are refused as ever: they guess nothing."""
    address = fresh_address()
    ended = token(exp=1_000_000_000).decode()
    for _ in range(FAILURES + 2):
        assert tries_as(world, ended, address).code == "token_expired"
    for _ in range(FAILURES + 2):
        answer = asyncio.run(once(world.weir, chat(), x_forwarded_for=address, x_tenant_id="other"))
        assert answer.code == "tenant_mismatch"
        answer = asyncio.run(once(world.weir, chat(), authorization="", x_forwarded_for=address))
        assert answer.code == "missing_key"
    assert tries(world, "nonsense", 1, address)[0].status == 401


def test_a_site_of_ipv6_is_one_address(world: House) -> None:
    """Whoever has an IPv6 /64 has every address of it: they count together."""
    site = f"2001:db8:77:{next(_addresses):x}"
    answers = [tries(world, "nonsense", 1, f"{site}::{number:x}")[0].status for number in range(1, FAILURES + 2)]
    assert answers == [401] * FAILURES + [429]


def test_codes_that_count_are_refusals_of_credentials() -> None:
    """Every code that counts is a 401 that the errors know."""
    assert {KINDS[code].status for code in failures.COUNTED} == {401}


def test_two_processes_count_together(tmp_path: Path) -> None:
    """What one worker counted another knows: the cells are the host's."""
    one, other = (Arena(str(tmp_path / "arena"), boot_id(), column) for column in (0, 1))
    first, second = Failures(one, 4), Failures(other, 4)
    address = address_of("192.0.2.1")
    now = now_ns()
    waits = [each.note(address, now) for each in (first, second, first, second, first, second)]
    assert waits[:4] == [0] * 4
    assert all(0 < wait <= 15_000 for wait in waits[4:])
    assert second.note(address_of("192.0.2.2"), now) == 0
    assert second.note(address, now + 15_000_000_000) == 0, "a quarter of a minute later one more passes"
    one.close()
    other.close()


def test_a_flood_from_everywhere_takes_a_bounded_share_of_the_cells(tmp_path: Path) -> None:
    """A million addresses cannot crowd out the tenants' limits."""
    arena = Arena(str(tmp_path / "arena"), boot_id(), -1)
    counted = Failures(arena, 4)
    now = now_ns()
    for number in range(20_000):
        counted.note((4, number * 7919), now)
    used, cells, _, _ = arena.usage()
    assert 0 < used <= bounds.FAILURE_CELLS <= cells // 8
    arena.close()


def test_a_full_arena_gives_the_plain_answer(tmp_path: Path) -> None:
    """Without a cell to count in, a bad credential is refused as it is; nobody is let in and nothing fails."""
    arena = Arena(str(tmp_path / "arena"), boot_id(), -1, rate_cells=2, count_cells=2)
    counted = Failures(arena, 1)
    now = now_ns()
    waits = [counted.note((4, number), now) for number in range(50)]
    assert waits.count(0) >= 2
    arena.close()


@asynccontextmanager
async def gate_of(directory: Path, per_minute: int) -> AsyncIterator[tuple[Callable[..., Any], Desk, list[bytes]]]:
    """(what becomes of a credential that arrives at a time, the tokens' desk, the keys that were asked for)."""
    async with desk(directory) as made:
        asked: list[bytes] = []

        async def look_up_all(digests: Any) -> list[Any]:
            asked.extend(digests)
            return []

        keys = Keys(made.arena, bytes(32), look_up_all)
        gate = Gate(keys, made.tokens, Failures(made.arena, per_minute))

        async def code(credential: bytes, at_ns: int | None = None) -> str:
            now = now_ns() if at_ns is None else at_ns
            exchange = SimpleNamespace(peer="192.0.2.1", raw_headers=(), arrived_ns=now, lines=b"")
            head = SimpleNamespace(authorization=credential, tenant=None, host=None)
            call: Any = SimpleNamespace(head=head, exchange=exchange, arrived_ns=now)
            try:
                if not identify(call, gate):
                    await look_up(call, gate)
            except Refusal as refusal:
                return refusal.code
            return str(call.known.principal.tenant)

        yield code, made, asked


def test_a_good_token_passes_where_bad_ones_are_counted(tmp_path: Path) -> None:
    """Also before anybody has verified it: to know that it is good it is looked at, however many were bad."""

    async def story() -> None:
        async with gate_of(tmp_path, 2) as (code, _, _):
            forged = token("rsa-2", header={"kid": "rsa"})
            assert [await code(forged) for _ in range(3)] == ["token_signature", "token_signature", "too_many_failures"]
            assert await code(token()) == "acme"
            assert await code(new_secret("live").encode()) == "too_many_failures"

    asyncio.run(story())


def test_a_flood_of_forged_tokens_costs_little(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Above the limit only so many a second are looked at, tokens and keys; a known token passes among them."""
    checked = 0

    def check(*args: Any) -> None:
        nonlocal checked
        checked += 1
        check_signature(*args)

    monkeypatch.setattr(tokens, "check_signature", check)

    async def story() -> None:
        async with gate_of(tmp_path, 2) as (code, made, asked):
            now = now_ns()
            good, late = token(), token(sub="late")
            assert await code(good, now) == "acme"
            forged = [token("rsa-2", header={"kid": "rsa"}, jti=str(number)) for number in range(40)]
            unknown = [new_secret("live").encode() for _ in range(100)]
            answers = [await code(each, now) for each in (*forged, *unknown)]
            assert answers[:2] == ["token_signature"] * 2
            seen = 2 + bounds.STRANGERS_PER_SECOND  # the first above the limit is looked at before that is known
            assert answers[2 : seen + 1] == ["too_many_failures"] * (seen - 1)
            assert set(answers[seen + 1 :]) == {"credential_not_checked"}
            assert (checked, len(asked)) == (1 + 40, seen + 1 - 40)
            assert await code(late, now) == "credential_not_checked"
            # Known ones pass, also when they must be looked up again.
            assert await code(good, now) == "acme"
            made.arena.raise_word(board.KEYS_GENERATION)
            assert await code(good, now) == "acme"
            # A second later there are turns again, and who waited has one.
            assert await code(late, now + 1_000_000_000) == "acme"

    asyncio.run(story())


def test_one_site_above_the_limit_holds_up_no_other(tmp_path: Path) -> None:
    """Where nobody fails, every unknown credential is looked at at once; and it ends with the failures."""
    arena = Arena(str(tmp_path / "arena"), boot_id(), 0)
    counted = Failures(arena, 60)
    loud, quiet = address_of("192.0.2.1"), address_of("192.0.2.2")
    now = now_ns()
    waits = [counted.note(loud, now) for _ in range(61)]
    assert [wait > 0 for wait in waits] == [False] * 60 + [True]
    holds = [counted.hold(loud, now) for _ in range(bounds.STRANGERS_PER_SECOND + 1)]
    assert holds[:-1] == [0] * bounds.STRANGERS_PER_SECOND
    assert 0 < holds[-1] <= 1000 // bounds.STRANGERS_PER_SECOND
    assert [counted.hold(quiet, now) for _ in range(200)] == [0] * 200
    assert counted.hold(loud, now + waits[-1] * 1_000_000) == 0
    arena.close()
