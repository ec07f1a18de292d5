"""Random calls of all of `_fastpath`, on sound and on damaged arenas; results are checked where they are known."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import random
import struct
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from proxy import _fastpath
from proxy._fastpath import Arena, ArenaFull, Limits

KINDS = (_fastpath.RATE_REQUESTS, _fastpath.RATE_TOKENS, _fastpath.CONCURRENCY)
ALPHABET = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz_-\xff\x00"


def any_number(chance: random.Random) -> int:
    return chance.choice(
        [0, 1, 2, 60, 2**31, 2**40, 2**57, 2**63 - 1, -1, chance.randrange(2**56), chance.randrange(1000)]
    )


def fuzz_keys(chance: random.Random) -> None:
    """Digests of any length; keys of about the right form."""
    secret = chance.randbytes(chance.choice([0, 1, 60, 127, 128, 129, 256, chance.randrange(2000)]))
    pepper = chance.randbytes(chance.randrange(80))
    try:
        digest = _fastpath.key_digest(secret, pepper)
    except ValueError:
        assert not 16 <= len(pepper) <= 64
    else:
        assert digest == hashlib.blake2b(secret, key=pepper, digest_size=32).digest()
    parts = (
        b"wk",
        *(bytes(chance.choices(ALPHABET, k=chance.choice(sizes))) for sizes in ((2, 4, 16, 0, 99), (43, 42), (6, 5))),
    )
    text = b"_".join(parts)
    _fastpath.key_well_formed(text[: chance.choice([len(text), chance.randrange(len(text) + 1)])])


def fuzz_limits(chance: random.Random, arena: Arena) -> None:
    """Any entries and any calls: they answer or raise what is documented, and headers stay headers."""
    entries = [
        (chance.choice(KINDS), b"%d" % chance.randrange(80), chance.randrange(1, 10**6), chance.randrange(10**6))
        for _ in range(chance.randrange(12))
    ]
    if chance.random() < 0.05:
        entries.append((chance.choice((*KINDS, 9)), chance.randbytes(300), any_number(chance), any_number(chance)))
    try:
        limited = Limits(arena, entries)
    except (ValueError, ArenaFull):
        return
    for _ in range(chance.randrange(20)):
        call: Callable[..., object]
        call, numbers = chance.choice(
            [(limited.acquire, 2), (limited.refund, 2), (limited.headers, 1), (limited.settle_tokens, 3)]
        )
        try:
            answer = call(*(any_number(chance) for _ in range(numbers)))
        except (ValueError, ArenaFull):
            continue
        if call is limited.acquire:
            assert isinstance(answer, int)
            assert 0 <= answer <= len(entries)
        if call is limited.headers:
            assert isinstance(answer, bytes)
            assert answer.count(b"\r\n") in (0, 3, 6)
    assert all(0 <= cell < 64 for cell in limited.holds)
    assert limited.wait_ns >= 0
    limited.token_burst()


def fuzz_arena(chance: random.Random, arena: Arena) -> None:
    """Any index and any time."""
    for call in (arena.word, arena.raise_word, arena.used, arena.overwrite_column):
        try:
            call(chance.choice([-1, 0, 31, 63, 64, 2**31, chance.randrange(64)]))
        except (IndexError, OverflowError):
            continue
    try:
        arena.set_column_word(chance.randrange(-2, 40), chance.randrange(-2, 40), any_number(chance))
        arena.column_word(chance.randrange(-2, 40), chance.randrange(-2, 40))
    except (IndexError, OverflowError):
        pass
    with contextlib.suppress(ValueError):
        arena.reclaim_idle(any_number(chance), any_number(chance))
    arena.held_total()
    used, cells, counts_used, counts = arena.usage()
    assert 0 <= used <= cells
    assert 0 <= counts_used <= counts


def damage(chance: random.Random, path: Path) -> None:
    """Random words over a few cells, the control values of `_arena.h` among them; sizes and key in the head stay."""
    with path.open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        for _ in range(chance.randrange(30)):
            file.seek(chance.randrange(4096 // 8, size // 8) * 8)
            word = chance.choice(
                [0, 1, 2, 3, chance.randrange(2**20), 2**63 + chance.randrange(2**20), chance.getrandbits(64)]
            )
            # Amounts far beyond any real one would only overflow arithmetic; they are no danger to memory.
            file.write(struct.pack("<Q", word if chance.random() < 0.7 else word >> 4))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--seed", type=int, default=random.randrange(2**32))
    chosen = parser.parse_args()
    print(f"fuzz_fastpath: seed {chosen.seed}, {_fastpath.__file__}")
    chance = random.Random(chosen.seed)
    end, rounds = time.monotonic() + chosen.seconds, 0
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "arena"
        arena = Arena(path, "boot-0", 0, rate_cells=64, count_cells=64)
        while time.monotonic() < end:
            rounds += 1
            for _ in range(20):
                fuzz_keys(chance)
            fuzz_limits(chance, arena)
            fuzz_arena(chance, arena)
            if chance.random() < 0.1:
                damage(chance, path)
            if chance.random() < 0.05:
                arena.close()
                boot = f"boot-{chance.randrange(3)}"
                arena = Arena(path, boot, chance.randrange(-1, 32), rate_cells=64, count_cells=64)
        arena.close()
    print(f"fuzz_fastpath: {rounds} rounds")


if __name__ == "__main__":
    main()
