"""A text that comes in pieces has the count of the whole, wherever it is cut and whenever it is asked."""

from __future__ import annotations

import random

import pytest

from proxy.tokens import encoding
from tests.tokens import oracle, texts
from tests.tokens.judging import SEED
from tests.tokens.oracle import NAMES

STREAMS = 2000


def prefixes(name: str, text: str) -> dict[int, int]:
    """tiktoken's count of every prefix that ends between two characters, by its length in bytes."""
    found, size = {0: 0}, 0
    for at, character in enumerate(text, 1):
        size += len(character.encode())
        found[size] = oracle.count(name, text[:at])
    return found


def short_text(chance: random.Random) -> str:
    """A text short enough to be cut at each byte."""
    return texts.mixed(chance)[: chance.randrange(1, 60)]


def long_text(chance: random.Random) -> str:
    """Several kilobytes: more than a stream keeps waiting before it counts on its own."""
    parts = [texts.mixed(chance) for _ in range(chance.randrange(8, 80))]
    return chance.choice(["", " ", "\n", " and "]).join(parts)[:12_000]


@pytest.mark.parametrize("name", NAMES)
def test_every_split_in_two(name: str) -> None:
    """Aim: 2,000 texts, cut in two at each byte: both counts are tiktoken's, that of the first part wherever it is
    whole characters."""
    made = encoding(name)
    chance = random.Random(f"split {SEED}")
    for number in range(STREAMS):
        text = short_text(chance)
        raw, known = text.encode(), prefixes(name, text)
        for cut in range(len(raw) + 1):
            stream = made.stream()
            stream.feed(raw[:cut])
            if cut in known:
                assert stream.count() == known[cut], (SEED, number, text, cut)
            stream.feed(raw[cut:])
            assert stream.count() == known[len(raw)], (SEED, number, text, cut)
            assert stream.count() == known[len(raw)], "asking changes nothing"


@pytest.mark.parametrize("name", NAMES)
def test_a_byte_at_a_time(name: str) -> None:
    """Aim: 2,000 texts by single bytes, asked after each one, also inside of characters."""
    made = encoding(name)
    chance = random.Random(f"bytes {SEED}")
    for number in range(STREAMS):
        text = short_text(chance)
        raw, known = text.encode(), prefixes(name, text)
        stream = made.stream()
        for size in range(1, len(raw) + 1):
            stream.feed(raw[size - 1 : size])
            found = stream.count()
            if size in known:
                assert found == known[size], (SEED, number, text, size)


@pytest.mark.parametrize("name", NAMES)
def test_long_streams(name: str) -> None:
    """Aim: answers of kilobytes in deltas of every size: exact at the end, and where it was asked on the way."""
    made = encoding(name)
    chance = random.Random(f"long {SEED}")
    for number in range(150):
        text = long_text(chance)
        whole = oracle.count(name, text)
        for _ in range(4):
            stream, at = made.stream(), 0
            size_max = chance.choice([1, 3, 8, 40, 300, 5000])
            asked = chance.choice([0, 0, 5 / len(text)])
            while at < len(text):
                end = at + chance.randrange(1, size_max + 1)
                stream.feed(text[at:end].encode())
                at = end
                if chance.random() < asked:
                    assert stream.count() == oracle.count(name, text[:at]), (SEED, number, at)
            assert stream.count() == whole, (SEED, number, size_max)


@pytest.mark.parametrize("name", NAMES)
def test_long_streams_cut_inside_characters(name: str) -> None:
    """Aim: kilobytes cut without regard to characters."""
    made = encoding(name)
    chance = random.Random(f"inside {SEED}")
    for number in range(200):
        text = long_text(chance)
        raw, whole = text.encode(), oracle.count(name, text)
        stream, at = made.stream(), 0
        while at < len(raw):
            end = at + chance.choice([1, 1, 2, 3, 5, 7, 64, 1023, 1024, 1025])
            stream.feed(raw[at:end])
            at = end
        assert stream.count() == whole, (SEED, number)


@pytest.mark.parametrize("name", NAMES)
def test_many_streams_at_once(name: str) -> None:
    """Aim: 300 streams of one encoding, fed in turn, do not mix."""
    made = encoding(name)
    chance = random.Random(f"turns {SEED}")
    wanted = [long_text(chance)[: chance.randrange(1, 2500)] for _ in range(300)]
    streams = [made.stream() for _ in wanted]
    places = [0] * len(wanted)
    waiting = list(range(len(wanted)))
    while waiting:
        one = chance.choice(waiting)
        end = places[one] + chance.randrange(1, 120)
        streams[one].feed(wanted[one][places[one] : end].encode())
        made.count(wanted[one][:40].encode())
        places[one] = end
        if end >= len(wanted[one]):
            waiting.remove(one)
    for text, stream in zip(wanted, streams, strict=True):
        assert stream.count() == oracle.count(name, text), (SEED, text[:100])


@pytest.mark.parametrize("name", NAMES)
def test_what_is_not_utf8_is_counted_the_same_at_every_cut(name: str) -> None:
    """Aim: bytes that are no text have one count, whole or in pieces; tiktoken cannot be asked for it."""
    made = encoding(name)
    chance = random.Random(f"not text {SEED}")
    for number in range(400):
        raw = bytearray(short_text(chance).encode())
        for _ in range(chance.randrange(1, 5)):
            raw[chance.randrange(len(raw))] = chance.choice(b"\x80\xbf\xc0\xc3\xe2\xed\xf0\xf4\xf8\xff")
        whole = made.count(bytes(raw))
        assert 0 < whole <= len(raw)
        for cut in range(len(raw) + 1):
            stream = made.stream()
            stream.feed(bytes(raw[:cut]))
            stream.feed(bytes(raw[cut:]))
            assert stream.count() == whole, (SEED, number, bytes(raw), cut)


@pytest.mark.parametrize("name", NAMES)
def test_pending_is_what_may_still_change(name: str) -> None:
    """Aim: nothing is pending at first, never more than was fed, and ordinary prose leaves little of it waiting."""
    stream = encoding(name).stream()
    assert (stream.pending, stream.count()) == (0, 0)
    stream.feed(b"")
    assert (stream.pending, stream.count()) == (0, 0)
    prose = b"The weir holds the water back. " * 1000
    for at in range(0, len(prose), 5):
        stream.feed(prose[at : at + 5])
        assert stream.pending <= min(at + 5, 4096)
    assert stream.count() == oracle.count(name, prose.decode())


@pytest.mark.soak
@pytest.mark.parametrize("name", NAMES)
def test_every_split_of_others(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Aim: the same with other texts, 20 times as many."""
    for _ in range(20):
        monkeypatch.setattr("tests.tokens.test_streams.SEED", random.randrange(2**32))
        test_every_split_in_two(name)
        test_a_byte_at_a_time(name)
        test_long_streams(name)
        test_long_streams_cut_inside_characters(name)
