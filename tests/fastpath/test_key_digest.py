"""The key digest is BLAKE2b as RFC 7693 and hashlib have it."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy._fastpath import key_digest


def hashlib_digest(secret: bytes, pepper: bytes) -> bytes:
    return hashlib.blake2b(secret, key=pepper, digest_size=32).digest()


def selftest_sequence(length: int, seed: int) -> bytes:
    """The deterministic sequence of RFC 7693, appendix E."""
    a, b, out = (0xDEAD4BAD * seed) & 0xFFFFFFFF, 1, bytearray()
    for _ in range(length):
        a, b = b, (a + b) & 0xFFFFFFFF
        out.append(b >> 24)
    return bytes(out)


def test_rfc_selftest_comes_to_the_published_hash() -> None:
    """Appendix E's grand hash is right when the keyed 32-byte digests in it are ours."""
    grand = hashlib.blake2b(digest_size=32)
    for digest_bytes in (20, 32, 48, 64):
        for length in (0, 3, 128, 129, 255, 1024):
            message = selftest_sequence(length, length)
            grand.update(hashlib.blake2b(message, digest_size=digest_bytes).digest())
            key = selftest_sequence(digest_bytes, digest_bytes)
            if digest_bytes == 32:
                grand.update(key_digest(message, key))
            else:
                grand.update(hashlib.blake2b(message, key=key, digest_size=digest_bytes).digest())
    assert grand.hexdigest() == "c23a7800d98123bd10f506c61e29da5603d763b8bbad2e737f5e765a7bccd475"


@pytest.mark.parametrize("pepper_bytes", range(16, 65))
def test_every_length_agrees_with_hashlib(pepper_bytes: int) -> None:
    """All message lengths around one, two and three blocks, under all pepper lengths."""
    pepper = bytes(range(pepper_bytes))
    text = bytes(index * 7 & 0xFF for index in range(300))
    for length in range(301):
        assert key_digest(text[:length], pepper) == hashlib_digest(text[:length], pepper), (length, pepper_bytes)


@given(st.lists(st.tuples(st.binary(max_size=400), st.binary(min_size=16, max_size=64)), min_size=1, max_size=8))
def test_changing_peppers_agrees_with_hashlib(calls: list[tuple[bytes, bytes]]) -> None:
    """The state kept for the last pepper is never used for another one."""
    for secret, pepper in [*calls, *reversed(calls)]:
        assert key_digest(secret, pepper) == hashlib_digest(secret, pepper)


def test_peppers_that_differ_in_length_only_are_told_apart() -> None:
    """A pepper and the same one with zero bytes behind it are padded to the same block, yet are two keys."""
    short, long = b"p" * 16, b"p" * 16 + bytes(8)
    assert len({key_digest(b"secret", pepper) for pepper in (short, long, short[:16])}) == 2


@pytest.mark.parametrize("pepper_bytes", [0, 1, 15, 65, 128])
def test_a_pepper_of_the_wrong_length_is_refused(pepper_bytes: int) -> None:
    """Below 16 bytes a pepper is no secret, above 64 it is no BLAKE2b key."""
    with pytest.raises(ValueError, match=f"pepper has {pepper_bytes} bytes; 16 to 64"):
        key_digest(b"secret", bytes(pepper_bytes))


def test_only_bytes_are_digested() -> None:
    """Text would need an encoding that nobody has chosen."""
    with pytest.raises(TypeError):
        key_digest("secret", bytes(32))  # type: ignore[arg-type]
