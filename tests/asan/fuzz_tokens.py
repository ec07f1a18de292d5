"""Random texts, cuts, escapes and damaged tables through the token counter: one count for a text however it comes."""

from __future__ import annotations

import argparse
import json
import os
import random
import tempfile
import time
from pathlib import Path

from proxy import _fastpath
from proxy._fastpath import BadTable, Encoding
from proxy.tokens import tables, vocabulary

UNITS = (
    *" \n\t'aA0/=\x00",
    *"\u00e9\u017f\u01c5\u0301\u094d\u4e2d\ud55c\u0e33\u00a0\u3000\U0001f600\u200d\ufe0f\u0663\u00bd\u0378\U0010ffff\u2028",
    *("  ", "\r\n", "'s", "'LL", "Ab", "zebra", "12345", "...", "<|end|>", "\u6587\u5b57"),
)
ODD_BYTES = b"\x00\x20\x41\x7f\x80\xbf\xc0\xc1\xc3\xe0\xe2\xed\xef\xf0\xf4\xf5\xf8\xff"
TORN = (b"", b"\\", b"\\u", b"\\u12", b"\\ud8", b"\\ud83d\\", b"\\x", b"\\u00g0")  # where an escape should be
SIZES = (0, 1, 7, 8, 15, 16, 17, 31, 33, 63, 64, 65, 127, 128, 129, 255, 256, 257, 300, 511, 513, 1025, 4097)


def made_text(chance: random.Random, words: list[str]) -> str:
    """Units, runs of them, tokens side by side, or any code points."""
    parts: list[str] = []
    for _ in range(chance.randrange(12)):
        match chance.randrange(5):
            case 0:
                parts.append(chance.choice(UNITS) * chance.choice(SIZES))
            case 1:
                parts += chance.choices(words, k=chance.randrange(20))
            case 2:
                parts += [chr(chance.randrange(0xD800)) for _ in range(chance.randrange(20))]
            case 3:
                parts.append("".join(chance.choices("abcdef", k=chance.choice(SIZES))))
            case _:
                parts += chance.choices(UNITS, k=chance.randrange(20))
    return "".join(parts)


def damaged(chance: random.Random, raw: bytes) -> bytes:
    """The bytes with some changed, lost or added, so that they are no UTF-8 any more."""
    body = bytearray(raw)
    for _ in range(chance.choice([0, 1, 3])):
        at = chance.randrange(len(body) + 1)
        match chance.randrange(3):
            case 0:
                body[at : at + 1] = bytes([chance.choice(ODD_BYTES)])
            case 1:
                del body[at : at + chance.randrange(5)]
            case _:
                body[at:at] = bytes(chance.choices(ODD_BYTES, k=chance.randrange(1, 6)))
    return bytes(body)


def fuzz_cuts(chance: random.Random, encoding: Encoding, raw: bytes) -> None:
    """Whole, in a few random pieces and in very small ones, asked in between or not: the same count."""
    whole = encoding.count(raw)
    assert (whole == 0) == (raw == b"")
    assert whole <= len(raw)
    for size_max in (max(1, len(raw) // 2), chance.choice([1, 2, 5, 300])):
        stream, at, asked = encoding.stream(), 0, chance.choice([0, 0.02])
        while at < len(raw):
            end = at + chance.randrange(1, size_max + 1)
            stream.feed(raw[at:end])
            at = end
            if chance.random() < asked:
                stream.count()
            assert stream.pending <= len(raw)
        assert stream.count() == whole, (raw, size_max)


def escaped(chance: random.Random, text: str) -> bytes:
    """The inside of a JSON string with some of its characters escaped, halves of pairs strewn in."""
    parts = []
    for character in text:
        if chance.random() < 0.02:
            parts.append(f"\\u{chance.choice([0xD800, 0xDBFF, 0xDC00, 0xDFFF, 0xD83D]):04x}")
        parts.append(json.dumps(character, ensure_ascii=chance.random() < 0.5)[1:-1])
    return "".join(parts).encode()


def fuzz_json(chance: random.Random, encoding: Encoding, text: str) -> None:
    """Escaped in several strings: the count of what json.loads makes of them together."""
    stream, meant = encoding.stream(), ""
    for _ in range(chance.randrange(1, 4)):
        raw = escaped(chance, text[: chance.randrange(200)])
        stream.feed_json(raw)
        meant += json.loads(b'"' + raw + b'"')
    utf8 = meant.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace").encode()
    assert stream.count() == encoding.count(utf8), (utf8, raw)
    # And what is no JSON: any cut, any byte after a backslash. It has some count, and nothing breaks.
    stream = encoding.stream()
    for _ in range(chance.randrange(1, 6)):
        raw = damaged(chance, escaped(chance, text[:100]))
        cut = chance.randrange(len(raw) + 1)
        stream.feed_json(raw[:cut] + chance.choice(TORN))
        if chance.random() < 0.3:
            stream.count()
        if chance.random() < 0.3:
            stream.feed(raw[cut:])
    assert stream.count() >= 0


def fuzz_table(chance: random.Random, path: Path, intact: bytes, texts: list[bytes]) -> None:
    """A table with some bytes changed, or cut, or added to: refused, or counted from without harm."""
    with path.open("r+b") as file:
        for _ in range(chance.choice([1, 1, 3, 200])):
            # The head decides most; the rest is far larger.
            at = chance.choice([chance.randrange(320), chance.randrange(len(intact))])
            size = min(chance.choice([1, 1, 4, 8]), len(intact) - at)
            file.seek(at)
            file.write(chance.choice([chance.randbytes(size), b"\xff" * size, b"\0" * size]))
        if chance.random() < 0.2:
            file.truncate(chance.choice([0, 1, 8, 4095, 4096, 4097, len(intact) - 1, len(intact) + 4096]))
    sentence = ""
    try:
        encoding = Encoding(os.fspath(path))
    except BadTable as error:
        sentence = str(error)
    else:
        for text in texts:
            encoding.count(text)
            stream = encoding.stream()
            stream.feed(text)
            stream.count()
    assert not sentence or (sentence.endswith(".") and "\n" not in sentence), sentence
    path.write_bytes(intact)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--seed", type=int, default=random.randrange(2**32))
    chosen = parser.parse_args()
    print(f"fuzz_tokens: seed {chosen.seed}, {_fastpath.__file__}")
    chance = random.Random(chosen.seed)
    encodings = [Encoding(os.fspath(tables.path(name))) for name in tables.NAMES]
    words = [token.decode("utf-8", "ignore") for token in vocabulary.read(tables.NAMES[0])[::11]]
    tables_intact = {name: tables.path(name).read_bytes() for name in tables.NAMES}
    end, rounds = time.monotonic() + chosen.seconds, 0
    with tempfile.TemporaryDirectory() as directory:
        copies = {name: Path(directory, name) for name in tables.NAMES}
        for name, path in copies.items():
            path.write_bytes(tables_intact[name])
        while time.monotonic() < end:
            rounds += 1
            texts = [made_text(chance, words) for _ in range(4)]
            for text in texts:
                encoding = chance.choice(encodings)
                fuzz_cuts(chance, encoding, text.encode())
                fuzz_cuts(chance, encoding, damaged(chance, text.encode()))
                fuzz_json(chance, encoding, text)
            name = chance.choice(tables.NAMES)
            fuzz_table(chance, copies[name], tables_intact[name], [text.encode() for text in texts])
    print(f"fuzz_tokens: {rounds} rounds")


if __name__ == "__main__":
    main()
