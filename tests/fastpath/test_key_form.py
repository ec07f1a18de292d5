"""A key's form and checksum are judged without a look-up."""

from __future__ import annotations

import string
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy._fastpath import key_well_formed

BASE62 = string.digits + string.ascii_uppercase + string.ascii_lowercase
envs = st.text(string.ascii_lowercase + string.digits, min_size=2, max_size=16)
randoms = st.text(BASE62, min_size=43, max_size=43)


def checksum(text: bytes) -> bytes:
    """Six base62 digits of zlib's CRC-32, the highest first."""
    number, digits = zlib.crc32(text), ""
    for _ in range(6):
        number, digit = divmod(number, 62)
        digits = BASE62[digit] + digits
    return digits.encode()


def key(env: str, random: str) -> bytes:
    text = f"wk_{env}_{random}".encode()
    return text + b"_" + checksum(text)


GOOD = key("live", "a" * 20 + "B" * 20 + "012")


@given(envs, randoms)
def test_a_made_key_is_well_formed(env: str, random: str) -> None:
    """Whatever is made by the description is accepted."""
    assert key_well_formed(key(env, random))


@given(envs, randoms, st.data())
def test_one_wrong_character_is_noticed(env: str, random: str, data: st.DataObject) -> None:
    """A CRC-32 finds every error of one character, and the form finds the rest."""
    good = key(env, random)
    at = data.draw(st.integers(0, len(good) - 1))
    wrong = data.draw(st.integers(0, 255).filter(lambda byte: byte != good[at]))
    assert not key_well_formed(good[:at] + bytes([wrong]) + good[at + 1 :])


@given(st.binary(max_size=100))
def test_any_bytes_are_judged(text: bytes) -> None:
    """Arbitrary bytes are refused without harm: none of them carries a right checksum by chance."""
    assert not key_well_formed(text)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"wk_",
        GOOD[:-1],
        GOOD + b"0",
        b" " + GOOD,
        GOOD + b"\n",
        GOOD.replace(b"wk_", b"WK_"),
        key("a", "x" * 43),
        key("a" * 17, "x" * 43),
        key("Live", "x" * 43),
        key("li_e", "x" * 43),
        key("live", "x" * 42),
        key("live", "x" * 44),
        key("live", "x" * 42 + "-"),
        key("live", "x" * 42 + "é"),
    ],
)
def test_wrong_forms_are_refused(text: bytes) -> None:
    """A right checksum does not excuse a wrong form."""
    assert text != GOOD
    assert not key_well_formed(text)


def test_a_small_checksum_keeps_its_leading_zeros() -> None:
    """Six digits always: a CRC-32 below 62**5 begins with 0, and without it the key is too short."""
    small = next(
        made for number in range(100_000) if (made := key("live", f"{number:043d}")).rsplit(b"_", 1)[1][:1] == b"0"
    )
    assert key_well_formed(small)
    head, tail = small.rsplit(b"_", 1)
    assert not key_well_formed(head + b"_" + tail.lstrip(b"0"))
