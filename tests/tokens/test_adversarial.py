"""Texts made to hurt: a megabyte of one thing, pieces without an end, and what JSON allows and UTF-8 does not."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from proxy.tokens import encoding
from tests.tokens import oracle
from tests.tokens.judging import SEED, differs, shortest
from tests.tokens.oracle import NAMES

MEGABYTE = 1_000_000


def drawn(alphabet: str, size: int) -> str:
    """Random characters of an alphabet."""
    return "".join(random.Random(f"{alphabet} {SEED}").choices(alphabet, k=size))


# Each is up to a megabyte of UTF-8.
TEXTS: dict[str, Callable[[], str]] = {
    "one letter": lambda: "a" * MEGABYTE,
    "one capital": lambda: "A" * MEGABYTE,
    "spaces": lambda: " " * (MEGABYTE // 4),
    "spaces and a word": lambda: " " * (MEGABYTE // 4) + "x",
    "newlines": lambda: "\n" * MEGABYTE,
    "CRLF": lambda: "\r\n" * (MEGABYTE // 2),
    "newlines and spaces": lambda: "\n " * (MEGABYTE // 2),
    "tabs and a word": lambda: "\t" * (MEGABYTE // 4) + "x",
    "digits": lambda: "7" * MEGABYTE,
    "random digits": lambda: drawn("0123456789", MEGABYTE),
    "exclamation marks": lambda: "!" * MEGABYTE,
    "slashes": lambda: "/" * MEGABYTE,
    "equals signs": lambda: "=" * MEGABYTE,
    "apostrophes": lambda: "'" * MEGABYTE,
    "contractions": lambda: "a's" * (MEGABYTE // 3),
    "emoji": lambda: "\U0001f600" * (MEGABYTE // 4),
    "joined emoji": lambda: "\U0001f468\u200d\U0001f469\u200d\U0001f467" * (MEGABYTE // 18),
    "flags": lambda: "\U0001f1e9\U0001f1ea" * (MEGABYTE // 8),
    "marks": lambda: "a" + "\u0301" * (MEGABYTE // 2),
    "marks alone": lambda: "\u0301\u0327" * (MEGABYTE // 4),
    "zero width": lambda: "\u200b" * (MEGABYTE // 3),
    "byte order marks": lambda: "\ufeff" * (MEGABYTE // 3),
    "nothing printable": lambda: "\x00" * MEGABYTE,
    "no-break spaces": lambda: "\u00a0" * (MEGABYTE // 2),
    "two letters": lambda: "ab" * (MEGABYTE // 2),
    "capital and small": lambda: "Ab" * (MEGABYTE // 2),
    "random letters": lambda: drawn("abcdefghijklmnopqrstuvwxyz", MEGABYTE),
    "hex": lambda: drawn("0123456789abcdef", MEGABYTE),
    "hex letters": lambda: drawn("abcdef", MEGABYTE),
    "base64": lambda: drawn("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/", MEGABYTE),
    "base64 letters": lambda: drawn("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz", MEGABYTE),
    "one ideograph": lambda: "\u54c8" * (MEGABYTE // 3),
    "random ideographs": lambda: drawn("".join(map(chr, range(0x4E00, 0x9FA6))), MEGABYTE // 3),
    "random hangul": lambda: drawn("".join(map(chr, range(0xAC00, 0xD7A4))), MEGABYTE // 3),
    "random thai": lambda: drawn("".join(map(chr, range(0x0E01, 0x0E3B))), MEGABYTE // 3),
    "random arabic": lambda: drawn("".join(map(chr, range(0x0621, 0x064B))), MEGABYTE // 2),
    "random devanagari": lambda: drawn("".join(map(chr, range(0x0904, 0x0940))), MEGABYTE // 3),
    "random cyrillic": lambda: drawn("".join(map(chr, range(0x0430, 0x0450))), MEGABYTE // 2),
    "unassigned": lambda: "\u0378" * (MEGABYTE // 2),
    "specials as text": lambda: "<|endoftext|><|start|>assistant<|message|>" * 20_000,
}


@pytest.mark.parametrize("what", TEXTS)
@pytest.mark.parametrize("name", NAMES)
def test_a_megabyte(name: str, what: str) -> None:
    """Aim: the count of a megabyte of anything is tiktoken's, whole and as a stream of uneven deltas."""
    text = TEXTS[what]()
    raw, known, made = text.encode(), oracle.count(name, text), encoding(name)
    if made.count(raw) != known:
        pytest.fail(f"{name}: wrong from {shortest(text[:2000], lambda part: differs(name, part))!r} on, or only later")
    chance = random.Random(f"deltas {SEED}")
    for size_max in (300, 100_000):
        stream, at = made.stream(), 0
        while at < len(raw):
            end = at + chance.randrange(1, size_max)
            stream.feed(raw[at:end])
            at = end
        assert stream.count() == known


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("space", [" ", "\t", "\u00a0", "\u3000"])
def test_white_space_that_tiktoken_cannot_split(name: str, space: str) -> None:
    """Aim: a megabyte of white space, where tiktoken's splitter runs out of its stack: its merge is asked for the two
    pieces that it finds in shorter runs."""
    made, size = encoding(name), MEGABYTE // len(space.encode())
    for length in (1000, 50_000, size):
        alone, before = space * length, [space * (length - 1), f"{space}x"]
        if length < size:
            assert oracle.count(name, alone) == oracle.merged(name, [alone])
            assert oracle.count(name, alone + "x") == oracle.merged(name, before)
        assert made.count(alone.encode()) == oracle.merged(name, [alone])
        assert made.count((alone + "x").encode()) == oracle.merged(name, before)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("unit", ["a", " ", "\n", "=", "\u4e2d", "\u0301", "7", "ab"])
def test_each_length_of_a_run(name: str, unit: str) -> None:
    """Aim: runs of every length up to 600: no window's edge is off by one, alone or before and after a word."""
    made = encoding(name)
    for length in range(600):
        text = unit * length
        assert made.count(text.encode()) == oracle.count(name, text), length
        text = f"x{text} y"
        assert made.count(text.encode()) == oracle.count(name, text), length


@pytest.mark.parametrize("name", NAMES)
def test_each_byte_before_the_end(name: str) -> None:
    """Aim: a text may end anywhere, and nothing is read behind its end: the same count as a slice of a larger one."""
    made = encoding(name)
    text = "It's 2026: caf\u00e9, \u4e2d\u6587 \U0001f600\r\n\r\n  done'LL "
    raw = text.encode()
    for end in range(len(text) + 1):
        part = text[:end].encode()
        assert made.count(part) == oracle.count(name, text[:end])
        assert made.count(bytes(bytearray(raw))[: len(part)]) == oracle.count(name, text[:end])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("text", ["\ud800", "a\ud800b\udfff", "\ud83d\ude00 x", "\udc00\ud800", "\ud800" * 50_000])
def test_halves_of_surrogate_pairs(name: str, text: str) -> None:
    """Aim: what JSON can say and UTF-8 cannot counts as U+FFFD, as in tiktoken."""
    escaped = "".join(f"\\u{ord(character):04x}" for character in text).encode()
    stream = encoding(name).stream()
    stream.feed_json(escaped)
    assert stream.count() == oracle.count(name, text)
    assert encoding(name).count(oracle.utf8(text)) == oracle.count(name, text)


@pytest.mark.parametrize("name", NAMES)
def test_nothing(name: str) -> None:
    """Aim: no text has no tokens."""
    assert encoding(name).count(b"") == 0
