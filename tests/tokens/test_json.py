"""`feed_json`: the inside of JSON strings counted as what they mean, against json.loads and tiktoken."""

from __future__ import annotations

import json
import random

import pytest

from proxy.tokens import encoding
from tests.tokens import oracle, texts
from tests.tokens.judging import SEED
from tests.tokens.oracle import NAMES, utf8

SHORT = {"\b": "b", "\f": "f", "\n": "n", "\r": "r", "\t": "t", '"': '"', "\\": "\\", "/": "/"}
HALVES = ("\ud800", "\udbff", "\udc00", "\udfff", "\ud83d", "\ude00")


def written(chance: random.Random, text: str, escaped: float) -> bytes:
    """The inside of a JSON string for this text, with as many of its characters escaped as may be, or more."""
    parts = []
    for character in text:
        code_point = ord(character)
        must = code_point < 0x20 or character in '"\\' or 0xD800 <= code_point < 0xE000
        if not must and chance.random() >= escaped:
            parts.append(character)
        elif character in SHORT and chance.random() < 0.7:
            parts.append("\\" + SHORT[character])
        else:
            units = character.encode("utf-16-be", "surrogatepass").hex()
            digits = units if chance.random() < 0.5 else units.upper()
            parts += [f"\\u{digits[at : at + 4]}" for at in range(0, len(digits), 4)]
    return "".join(parts).encode()


def with_halves(chance: random.Random, text: str) -> str:
    """The text with halves of surrogate pairs strewn in; two in a row may make a whole."""
    for _ in range(chance.randrange(1, 5)):
        at = chance.randrange(len(text) + 1)
        text = text[:at] + "".join(chance.choices(HALVES, k=chance.choice([1, 1, 2, 3]))) + text[at:]
    return text


def test_the_writer_writes_json() -> None:
    """Aim: this file's own writer is believed only because json.loads reads the same text back."""
    chance = random.Random(f"writer {SEED}")
    for _ in range(2000):
        text = texts.mixed(chance)
        # Python's decoder pairs surrogates, as every reader of the answer does.
        assert json.loads(b'"' + written(chance, text, chance.random()) + b'"') == text


@pytest.mark.parametrize("name", NAMES)
def test_escapes_are_decoded(name: str) -> None:
    """Aim: 10,000 texts in every mixture of raw and escaped characters."""
    made = encoding(name)
    chance = random.Random(f"escapes {SEED}")
    for number in range(10_000):
        text = texts.mixed(chance)
        raw = written(chance, text, chance.choice([0, 0.05, 0.5, 1]))
        stream = made.stream()
        stream.feed_json(raw)
        assert stream.count() == oracle.count(name, json.loads(b'"' + raw + b'"')), (SEED, number, raw)


@pytest.mark.parametrize("name", NAMES)
def test_deltas_of_one_text(name: str) -> None:
    """Aim: many JSON strings make one text; a pair of surrogates may stand on both sides of a seam, and a half that
    stays alone is U+FFFD."""
    made = encoding(name)
    chance = random.Random(f"deltas {SEED}")
    for number in range(4_000):
        text = with_halves(chance, texts.mixed(chance)[:300])
        stream, meant = made.stream(), ""
        while text:
            size = chance.choice([0, 1, 1, 2, 3, 7, 40])
            raw = written(chance, text[:size], chance.choice([0, 0.3, 1]))
            meant += json.loads(b'"' + raw + b'"')
            stream.feed_json(raw)
            text = text[size:]
        assert stream.count() == oracle.count(name, utf8(meant).decode()), (SEED, number, meant)


@pytest.mark.parametrize("name", NAMES)
def test_asking_between_the_halves(name: str) -> None:
    """Aim: a count in between takes a half for U+FFFD and does not hinder the other half."""
    for text in ("a\U0001f600b", "\U0001f600", "x \U00010400"):
        stream = encoding(name).stream()
        before = ""
        for character in text:
            units = written(random.Random(0), character, 1).split(b"\\u")[1:] if ord(character) > 0xFFFF else None
            if units is None:
                stream.feed_json(character.encode())
            else:
                stream.feed_json(b"\\u" + units[0])
                assert stream.count() == oracle.count(name, before + "\ufffd")
                stream.feed_json(b"")
                stream.feed_json(b"\\u" + units[1])
            before += character
            assert stream.count() == oracle.count(name, before)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "raw",
    [
        rb"\ud800",
        rb"\udc00",
        rb"\ud800\ud800\udc00",
        rb"\udc00\ud800",
        rb"\ud83dx\ude00",
        rb"\ud83d\n\ude00",
        rb"\uD83D\uDE00",
        rb"\ud83d\u0041",
        rb"\u0000\u001f\u007f\u0080\u07ff\u0800\uffff",
        rb"\"\\\/\b\f\n\r\t",
        rb"don\u0027t \u0027\u017f",
        rb"a\\u0041",
        rb"\\\\ud800",
    ],
)
def test_known_cases(name: str, raw: bytes) -> None:
    """Aim: each rule of RFC 8259, section 7, by itself: halves alone, doubled, turned round, parted, and after a
    backslash that is itself escaped."""
    stream = encoding(name).stream()
    stream.feed_json(raw)
    assert stream.count() == oracle.count(name, utf8(json.loads(b'"' + raw + b'"')).decode())


@pytest.mark.parametrize("name", NAMES)
def test_json_and_bytes_in_one_stream(name: str) -> None:
    """Aim: both ways in lead to one text."""
    stream = encoding(name).stream()
    stream.feed(b"caf")
    stream.feed_json(rb"\u00e9 \ud83d\ude00")
    stream.feed(b" au lait")
    assert stream.count() == oracle.count(name, "caf\u00e9 \U0001f600 au lait")
    stream.feed_json(rb" \ud83d")
    stream.feed(b"\\ude00")  # no escape here, but six characters: the half before them stays alone
    assert stream.count() == oracle.count(name, "caf\u00e9 \U0001f600 au lait \ufffd\\ude00")
