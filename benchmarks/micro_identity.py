"""What a token costs: `pytest benchmarks/micro_identity.py --benchmark-enable`.

A token that this worker has verified is known again by its digest; the target is the time of step 2 for it, beside
that for a key. A new one is verified, which costs its signature. As in `micro_fastpath`, the best of the rounds counts.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from msgspec.structs import replace

from benchmarks.micro_fastpath import per_call
from proxy import clock
from proxy._fastpath import Arena
from proxy._scan import read_head
from proxy.clock import now_ns, wall_us
from proxy.identify import identify
from proxy.identity.claims import person, read
from proxy.identity.gate import Gate
from proxy.identity.issuers import Issuers
from proxy.identity.jwks import usable
from proxy.identity.keys import Keys, new_secret
from proxy.identity.tokens import Tokens, check_signature
from proxy.store.keys import KeyRow
from tests.identity.forge import ISSUER, Told, issuer, jwk, key_set, token

KNOWN_US = 10  # what the design asks for: step 2 for a token that is known
KEY_US = 3  # and for a key
# A payload as a provider of a company sends it: a token of about 1,200 bytes.
FULL = {"name": "Ann Example", "email": "ann@example.com", "scope": "openid profile", "groups": ["g" * 36] * 10}


@pytest.fixture(scope="module")
def arena() -> Iterator[Arena]:
    with tempfile.TemporaryDirectory() as directory:
        opened = Arena(str(Path(directory) / "arena"), clock.boot_id(), 0)
        yield opened
        opened.close()


def known_tokens(arena: Arena, count: int) -> tuple[Tokens, list[bytes]]:
    """A worker's tokens with so many that it knows, for one subject each."""
    made = [
        token(**{**FULL, "sub": f"user-{number}", "exp": wall_us() // 1_000_000 + 86_400}) for number in range(count)
    ]

    async def fetch(_: Any) -> dict[str, Any]:
        return key_set(jwk("rsa"))

    async def disabled_among(_: object) -> set[tuple[str, str]]:
        return set()

    async def verify() -> Tokens:
        issuers = Issuers(Told(), fetch)
        tokens = Tokens(arena, issuers, disabled_among)
        tokens.adopt({"corp": issuer()})
        for each in made:
            await tokens.look_up(each, None)
        keys = issuers.of(ISSUER)
        assert keys is not None
        assert keys._keeping is not None
        keys._keeping.cancel()  # the loop ends here, the keys stay
        return tokens

    return asyncio.run(verify()), made


def step(calls: list[Any], keys: Keys, tokens: Tokens) -> Callable[[], object]:
    """Step 2 for the next of the calls, over and over."""
    position = 0
    gate = Gate(keys, tokens)

    def run() -> None:
        nonlocal position
        position = (position + 1) % len(calls)
        assert identify(calls[position], gate)

    return run


def call_of(credential: bytes) -> Any:
    """As much of a call as step 2 reads."""
    head = read_head(((b"Host", b"weir"), (b"Authorization", b"Bearer " + credential)))
    return SimpleNamespace(head=head, arrived_ns=now_ns(), exchange=SimpleNamespace())


def no_keys(arena: Arena, row: KeyRow | None = None) -> Keys:
    async def look_up_all(digests: Sequence[bytes]) -> list[KeyRow]:
        return [] if row is None else [replace(row, digest=digest) for digest in digests]

    return Keys(arena, bytes(32), look_up_all)


def test_known_token(benchmark: Any, arena: Arena) -> None:
    """Step 2 for one of a hundred tokens that the worker knows."""
    tokens, made = known_tokens(arena, 100)
    assert 900 <= len(made[0]) <= 1500
    benchmark.name = f"identify: a known token of {len(made[0])} bytes"
    per_call(benchmark, step([call_of(each) for each in made], no_keys(arena), tokens), KNOWN_US * 1000)


def test_known_key(benchmark: Any, arena: Arena) -> None:
    """The same for an API key, with tokens taken beside it."""
    secret = new_secret("live").encode()
    row = KeyRow("key_1", bytes(32), "acme", "bench", None, (), None, None, "0000", 0)
    keys = no_keys(arena, row)
    asyncio.run(keys.look_up(secret))
    tokens, _ = known_tokens(arena, 1)
    benchmark.name = "identify: a known key"
    per_call(benchmark, step([call_of(secret)], keys, tokens), KEY_US * 1000)


@pytest.mark.parametrize(("key", "algorithm"), [("rsa", "RS256"), ("p256", "ES256"), ("ed", "EdDSA")])
def test_new_token(benchmark: Any, key: str, algorithm: str) -> None:
    """Reading, checking and judging a token that nobody has seen before: the price of a token's first use."""
    policy = issuer()
    found, _ = usable(key_set(jwk(key)), policy)
    proving = found[(key, algorithm)]
    said = token(key, algorithm, **FULL)
    now_us = wall_us()

    def verify() -> None:
        parts = read(said)
        check_signature(said, parts, proving, algorithm)
        person(parts.claims, policy, now_us)

    benchmark.name = f"a new token, {algorithm}"
    benchmark.pedantic(verify, rounds=500, warmup_rounds=20)
    if benchmark.stats is not None:
        print(f"\n{benchmark.name:<44} best {benchmark.stats.stats.min * 1e6:7.1f} us", end="")
