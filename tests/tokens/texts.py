"""Random texts that look for what a tokenizer gets wrong: each kind a different way of being unlike prose."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from functools import cache

from tests.tokens import oracle

Kind = Callable[[random.Random], str]

# What the patterns tell apart: line ends, spaces of all kinds, contractions and the letters that fold into them, title
# case, modifier letters, letters without case, marks alone and after others, numbers of all kinds, joiners, emoji,
# unassigned and private code points, the ends of the planes.
STRUCTURE = [
    *" \n\r\t'sStTrReEvVmMlLdD/aZ09.-_!|",
    *("\u017f", "\u212a", "\u00e9", "\u00c9", "\u00df", "\u0130", "\u01c5", "\u1fbc", "\u02b0", "\u00aa", "\u00ba"),
    *("\u3042", "\u4e2d", "\u0639", "\u0939", "\u094d", "\u0e01", "\u0e33", "\ud55c", "\u1100", "\u1161", "\u05d0"),
    *("\u0301", "\u0300", "\u20dd", "\u0903", "\u200d", "\ufe0f", "\u200b", "\u180e", "\ufeff", "\u00ad"),
    *("\u2167", "\u00bd", "\u00b2", "\u0663", "\u3007", "\u3021", "\U0001d7d8", "\U00010d40"),
    *("\u00a0", "\u2028", "\u2029", "\u0085", "\u3000", "\u2009", "\u202f", "\x0b", "\x0c", "\x1c", "\x1f"),
    *("\U0001f600", "\U0001f469", "\U0001f3fd", "\U0001f1e9", "\u2764", "\u2019", "\u201c", "\u20ac"),
    *("\x00", "\x7f", "\ue000", "\uffff", "\U0010ffff", "\U0001e900", "\U0001e922", "\U00010400", "\u0378"),
    *("'s", "'LL", "'\u017f", " '", "\r\n", "  ", "\n\n", "://", "...", "--"),
]
RANGES = [
    *((0x20, 0x7F), (0xA0, 0x250), (0x250, 0x300), (0x300, 0x370), (0x370, 0x530), (0x530, 0x700), (0x900, 0xA00)),
    *((0xA80, 0xD00), (0xE00, 0xF00), (0x1000, 0x1200), (0x1780, 0x1800), (0x1E00, 0x2000), (0x2000, 0x2070)),
    *((0x2070, 0x2300), (0x2460, 0x2500), (0x3000, 0x3100), (0x4E00, 0x9FFF), (0xAC00, 0xD7A4), (0xFB00, 0x10000)),
    *((0x10000, 0x11000), (0x11000, 0x12000), (0x16E00, 0x17000), (0x1D400, 0x1D800), (0x1E800, 0x1EA00)),
    *((0x1F100, 0x1FB00), (0x20000, 0x323B0), (0xE0000, 0xE0200)),
]


@cache
def words() -> list[str]:
    """Every token of both vocabularies that is text by itself."""
    found = set()
    for name in oracle.NAMES:
        for token in oracle.tokens(name):
            try:
                found.add(token.decode())
            except UnicodeDecodeError:
                continue
    return sorted(found)


def scalar(chance: random.Random, low: int = 0, high: int = 0x110000) -> str:
    """A random code point that is not a surrogate."""
    while True:
        code_point = int(chance.random() * (high - low)) + low
        if not 0xD800 <= code_point < 0xE000:
            return chr(code_point)


def structure(chance: random.Random) -> str:
    """What the pattern's alternatives turn on, close together."""
    return "".join(chance.choices(STRUCTURE, k=chance.randrange(1, 26)))


def uniform(chance: random.Random) -> str:
    """Any code points: most are not assigned."""
    return "".join([scalar(chance) for _ in range(chance.randrange(1, 32))])


def scripts(chance: random.Random) -> str:
    """A few scripts mixed, with structure in between."""
    ranges = chance.sample(RANGES, chance.randrange(1, 4))
    length = chance.randrange(1, 64)
    return "".join(
        [
            scalar(chance, *chance.choice(ranges)) if chance.random() < 0.8 else chance.choice(STRUCTURE)
            for _ in range(length)
        ]
    )


def runs(chance: random.Random) -> str:
    """One thing many times: word and window lengths, and one more or less."""
    lengths = (1, 1, 2, 3, 5, 15, 16, 17, 33, 63, 64, 65, 127, 128, 129, 255, 257, 300)
    parts = []
    for _ in range(chance.randrange(1, 6)):
        unit = chance.choice(STRUCTURE) if chance.random() < 0.8 else scalar(chance, *chance.choice(RANGES))
        parts.append(unit * chance.choice(lengths))
    return "".join(parts)


def vocabulary(chance: random.Random) -> str:
    """Whole tokens side by side, as they would never stand."""
    return "".join(chance.choices(words(), k=chance.randrange(1, 28)))


@cache
def fragments() -> list[bytes]:
    """Every token of both vocabularies that holds a part of a character: where a merge may cross characters."""
    found = set()
    for name in oracle.NAMES:
        for token in oracle.tokens(name):
            if len(token) > 1 and token.decode("utf-8", "ignore").encode() != token:
                found.add(token)
    return sorted(found)


def completed(chance: random.Random, fragment: bytes) -> str:
    """A text around these bytes: what is missing of the characters at both ends is drawn."""
    start = next((at for at, byte in enumerate(fragment) if byte & 0xC0 != 0x80), len(fragment))
    while True:
        before = bytes(chance.choices(range(0x80, 0xC0), k=max(0, chance.choice([2, 3, 3, 3, 4]) - 1 - start)))
        lead = chance.choice([range(0xC2, 0xE0), range(0xE0, 0xF0), range(0xF0, 0xF5)])
        text = (bytes([chance.choice(lead)]) + before if start else b"") + fragment
        for _ in range(4):
            try:
                return text.decode()
            except UnicodeDecodeError as error:
                if error.reason != "unexpected end of data":
                    break
                text += bytes([chance.randrange(0x80, 0xC0)])


def crossings(chance: random.Random) -> str:
    """Tokens that begin or end inside of a character, with the rest of it, between characters that are like it."""
    parts = []
    for _ in range(chance.randrange(1, 5)):
        text = completed(chance, chance.choice(fragments()))
        parts.append(text)
        if chance.random() < 0.5:
            nearby = ord(text[-1]) ^ chance.randrange(1, 64)
            parts.append(chr(nearby) if nearby < 0x110000 and not 0xD800 <= nearby < 0xE000 else "")
    return "".join(parts)


def long_words(chance: random.Random) -> str:
    """Pieces of one class that are longer than any window: letters at random, or a few tokens over and over."""
    alphabet = chance.choice(["ab", "abcdef", "etaoinshrdlu", "ABC", "ab\u00e9", "\u4e2d\u6587", "-=_", "\u0301\u0300"])
    return "".join(chance.choices(alphabet, k=chance.choice([200, 255, 256, 257, 511, 700, 1500, 4100])))


def rules(chance: random.Random) -> str:
    """Long pieces of long tokens: lines drawn with signs, and white space of several kinds, in uneven lengths."""
    units = chance.choice(["=-_*#", "/.+~=", "-=", " \t", " \u00a0\t\u3000", "\n\r", "*-"])
    return "".join([chance.choice(units) * chance.randrange(1, chance.choice([3, 20, 140])) for _ in range(40)])


def alike(chance: random.Random) -> str:
    """Words that differ in one letter: what is remembered of one must not be said of another."""
    stem = "".join(chance.choices("abcdefghijklmnopqrstuvwxyz", k=chance.randrange(4, 30)))
    at = chance.choice([0, len(stem) // 2, len(stem)])
    return " ".join([stem[:at] + letter + stem[at:] for letter in "aeinorstlxzqj"])


# How many of 100,000 texts are of each kind; the long ones cost most.
KINDS: dict[Kind, int] = {
    structure: 40_000,
    uniform: 8_000,
    crossings: 10_000,
    scripts: 22_000,
    runs: 5_000,
    vocabulary: 12_000,
    long_words: 700,
    rules: 300,
    alike: 2_000,
}


def some(kind: Kind, number: int, seed: int) -> Iterator[str]:
    """So many texts of a kind; the same for the same seed."""
    chance = random.Random(f"{kind.__name__} {seed}")
    return (kind(chance) for _ in range(number))


def mixed(chance: random.Random) -> str:
    """A text of any kind."""
    return chance.choices(list(KINDS), weights=list(KINDS.values()))[0](chance)
