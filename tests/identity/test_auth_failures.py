"""Bad credentials are counted by address: their sender is told to wait, and nobody with a good one notices."""

from __future__ import annotations

import asyncio
import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from proxy import bounds
from proxy._fastpath import Arena
from proxy.clock import boot_id, now_ns
from proxy.errors import KINDS, Refusal
from proxy.identify import identify, look_up
from proxy.identity import failures
from proxy.identity.addresses import address_of
from proxy.identity.failures import Failures
from proxy.identity.gate import Gate
from proxy.identity.keys import Keys, new_secret
from tests.identity.conftest import FAILURES
from tests.identity.forge import desk, token
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


def test_a_good_token_passes_where_bad_ones_are_counted(tmp_path: Path) -> None:
    """Also before anybody has verified it: to know that it is good it is looked at, however many were bad."""

    async def story() -> None:
        async with desk(tmp_path) as made:

            async def look_up_all(_: Any) -> list[Any]:
                return []

            keys = Keys(made.arena, bytes(32), look_up_all)
            gate = Gate(keys, made.tokens, Failures(made.arena, 2))

            async def code(credential: bytes) -> str:
                exchange = SimpleNamespace(peer="192.0.2.1", raw_headers=(), arrived_ns=now_ns(), lines=b"")
                head = SimpleNamespace(authorization=credential, tenant=None, host=None)
                call: Any = SimpleNamespace(head=head, exchange=exchange, arrived_ns=exchange.arrived_ns)
                try:
                    if not identify(call, gate):
                        await look_up(call, gate)
                except Refusal as refusal:
                    return refusal.code
                return str(call.known.principal.tenant)

            forged = token("rsa-2", header={"kid": "rsa"})
            assert [await code(forged) for _ in range(3)] == ["token_signature", "token_signature", "too_many_failures"]
            assert await code(token()) == "acme"
            assert await code(new_secret("live").encode()) == "too_many_failures"

    asyncio.run(story())
