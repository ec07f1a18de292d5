"""One long piece that grows: asked at any moment, its count is that of the text so far, whatever it turns into."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from proxy.tokens import encoding
from tests.tokens import oracle, texts
from tests.tokens.judging import SEED
from tests.tokens.oracle import NAMES

LENGTHS = (0, 1, 2, 40, 200, 255, 256, 257, 300, 512, 700)


def run_of(chance: random.Random, alphabet: str, length: int | None = None) -> str:
    """Characters of an alphabet: one of them over and over, a few in uneven stretches, or all at random."""
    size = chance.choice(LENGTHS) if length is None else length
    match chance.randrange(3):
        case 0:
            return chance.choice(alphabet) * size
        case 1:
            parts, made = [], 0
            while made < size:
                parts.append(chance.choice(alphabet) * chance.randrange(1, 140))
                made += len(parts[-1])
            return "".join(parts)[:size]
    return "".join(chance.choices(alphabet, k=size))


def word(chance: random.Random) -> str:
    """Perhaps a first sign, then upper case, letters without case, lower case and marks in stretches, a contraction."""
    parts = [chance.choice(["", "", " ", "(", "\u0301", "\u2026", "\t", "1"])]
    for _ in range(chance.randrange(1, 5)):
        parts.append(
            run_of(
                chance,
                chance.choice(
                    ["ABC", "abc", "\u4e2d\u6587", "\u0301\u0327", "\u01c5\u00c9", "\u0439\u044f", "aA\u4e2d\u0301"]
                ),
            )
        )
    return "".join([*parts, chance.choice(["", "'s", "'LL", "'\u017f", "'", "'x", "\u2019s"])])


def signs(chance: random.Random) -> str:
    """Punctuation, symbols and marks, line ends, and what in o200k may follow these."""
    parts = [chance.choice(["", " ", "  ", "\n "]), run_of(chance, "=-_*#"), run_of(chance, "/.\u0301\U0001f600\u200d")]
    return "".join(
        [
            *parts,
            run_of(chance, "\n\r", chance.choice([0, 1, 3, 300])),
            run_of(chance, "/\n", chance.choice([0, 2, 300])),
        ]
    )


def blank(chance: random.Random) -> str:
    """White space of all kinds, with line ends at any place in it, and something after it or nothing."""
    parts = [
        run_of(chance, " \t\u00a0\u3000"),
        run_of(chance, "\n\r \t", chance.choice([0, 1, 5, 300])),
        run_of(chance, " \t"),
    ]
    return "".join([*parts, chance.choice(["", "x", ".", "1", "\u4e2d", "\u0301", " x"])])


def digits(chance: random.Random) -> str:
    """Numbers are pieces of three: nothing grows, but much is near."""
    return run_of(chance, "0123456789\u0663\u00bd")


KINDS: dict[Callable[[random.Random], str], int] = {
    word: 120,
    signs: 120,
    blank: 120,
    digits: 20,
    texts.rules: 60,
    texts.long_words: 30,
}


def feed(chance: random.Random, name: str, text: str, asked: float) -> None:
    """Feeds a text in small deltas, also cut inside of characters, and asks now and then."""
    stream, raw, at, known = encoding(name).stream(), text.encode(), 0, 0
    size_max = chance.choice([1, 3, 12, 60, 400])
    while at < len(raw):
        end = min(len(raw), at + chance.randrange(1, size_max + 1))
        stream.feed(raw[at:end])
        at = end
        if chance.random() < asked:
            found = stream.count()
            whole = raw[:at].decode("utf-8", "ignore")
            if len(whole.encode()) == at:
                known = oracle.count(name, whole)
                assert found == known, (SEED, text, at)
    assert stream.count() == oracle.count(name, text), (SEED, text)
    assert stream.pending <= len(raw)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("name", NAMES)
def test_a_long_piece(name: str, kind: Callable[[random.Random], str]) -> None:
    """Aim: long pieces of each kind, in deltas, asked rarely and often."""
    chance = random.Random(f"{kind.__name__} {SEED}")
    for number in range(KINDS[kind]):
        feed(chance, name, kind(chance), (0.02, 0.1, 0.5)[number % 3])


@pytest.mark.parametrize("name", NAMES)
def test_pieces_of_all_kinds_in_a_row(name: str) -> None:
    """Aim: what was remembered of a piece is forgotten with it."""
    chance = random.Random(f"row {SEED}")
    for _ in range(60):
        feed(chance, name, "".join(chance.choice(list(KINDS))(chance) for _ in range(4)), 0.03)


@pytest.mark.parametrize("name", NAMES)
def test_asked_after_every_byte(name: str) -> None:
    """Aim: a few pieces around the length at which a stream begins to follow them, asked after each byte."""
    made = encoding(name)
    for text in (
        "A" * 300 + "b",
        "a" * 300 + "'s",
        " " * 300 + "\n" + " " * 30 + "x",
        "=" * 300 + "\r\n/" + "x",
        "\n" * 280 + "  y",
    ):
        stream = made.stream()
        for end in range(1, len(text) + 1):
            stream.feed(text[end - 1 : end].encode())
            assert stream.count() == oracle.count(name, text[:end]), (text, end)


@pytest.mark.soak
@pytest.mark.parametrize("name", NAMES)
def test_a_long_piece_of_others(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Aim: the same with other texts, 30 times as many."""
    for _ in range(30):
        monkeypatch.setattr("tests.tokens.test_growing.SEED", random.randrange(2**32))
        for kind in KINDS:
            test_a_long_piece(name, kind)
        test_pieces_of_all_kinds_in_a_row(name)
