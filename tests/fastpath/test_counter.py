"""The token counter's own rules: splits, joints, streams, damaged tables. Against tiktoken: tests/tokens."""

from __future__ import annotations

import gc
import os
import random
import threading
import tracemalloc
from pathlib import Path

import pytest

from proxy import bounds
from proxy._fastpath import BadTable, Encoding, TextStream
from proxy.tokens import ENCODINGS, encoding, tables

SEED = int(os.environ.get("WEIR_TEST_SEED", random.randrange(1 << 32)))
NAMES = ("o200k_base", "cl100k_base")
# What pieces are made of, so that their long runs meet each rule of the splitter.
RUNS = [
    "a",
    "A",
    "ab",
    " ",
    "\n",
    " \n",
    "\r\n",
    "\t",
    "!",
    "//",
    "-=",
    "ª",
    "中文字",
    "é",
    "É",
    "\u0301",
    "\u3000",
    "😀",
]
RUNS += ["ʰA", "Aª", "7", "'", "x'", "\u2003", "Ab", "\n/", "!\n", "ha"]


def drawn(draw: random.Random) -> str:
    """A few long runs, one after the other."""
    parts = [draw.choice(RUNS) * draw.choice([1, 2, 90, 300, 700]) for _ in range(draw.randrange(1, 4))]
    if draw.random() < 0.4:
        parts.append("".join(draw.choices(draw.choice(["abcdef", "aAbB", "?-=+*", " \n", "中文日本", "ªA"]), k=400)))
    return "".join(parts) + draw.choice(["", "x", " x", "'s", "\n", "!"])


@pytest.mark.parametrize(
    ("name", "text", "tokens"),
    [
        ("o200k_base", "", 0),
        ("o200k_base", "hello world", 2),
        ("o200k_base", "<|endoftext|>", 7),
        ("o200k_harmony", "<|start|>", 5),
        ("cl100k_base", "hello world", 2),
        ("cl100k_base", "<|endoftext|>", 7),
    ],
)
def test_known_counts(name: str, text: str, tokens: int) -> None:
    """Documented counts; what looks like a special token is text."""
    assert encoding(name).count(text.encode()) == tokens


def test_names() -> None:
    """Each name has its counter, one a process; another name is refused with those that there are."""
    assert encoding("o200k_harmony") is encoding("o200k_base")
    assert {encoding(name).name for name in ENCODINGS} == set(NAMES)
    with pytest.raises(LookupError, match=r"'p50k_base' is not known; o200k_base, o200k_harmony, cl100k_base are"):
        encoding("p50k_base")


@pytest.mark.parametrize("name", NAMES)
def test_long_pieces_in_parts(name: str) -> None:
    """A stream of long pieces counts like the whole text at every place, in the midst of characters too."""
    draw = random.Random(SEED)
    counter = encoding(name)
    for _ in range(120):
        text = drawn(draw).encode()
        stream, at = counter.stream(), 0
        step = draw.choice([3, 17, 60]) if len(text) < 2500 else 90
        while at < len(text):
            part = text[at : at + draw.randrange(1, 2 * step)]
            stream.feed(part)
            at += len(part)
            if draw.random() < 0.4:
                assert stream.count() == counter.count(text[:at]), f"seed {SEED}: {text[:at]!r}"
        assert stream.count() == counter.count(text), f"seed {SEED}: {text!r}"
        assert 0 <= stream.pending <= len(text)


@pytest.mark.parametrize("name", NAMES)
def test_any_bytes(name: str) -> None:
    """Bytes that are no UTF-8 are counted alike whole and in parts, and never as more tokens than bytes."""
    draw = random.Random(SEED)
    counter = encoding(name)
    for _ in range(2000):
        text = draw.randbytes(draw.randrange(1, 60))
        if draw.random() < 0.5:
            text = bytes(draw.choice(b"\xe4\xb8\xad\xe0\xa4\x80\xf0\x9f\xc3\xa9 a'\nA1\xff") for _ in text)
        stream = counter.stream()
        for at in range(len(text)):
            stream.feed(text[at : at + 1])
        tokens = counter.count(text)
        assert stream.count() == tokens, f"seed {SEED}: {text!r}"
        assert 1 <= tokens <= len(text)


@pytest.mark.parametrize("name", NAMES)
def test_surroundings_of_short_texts(name: str) -> None:
    """A text counts the same alone and as part of a longer buffer: nothing is read beyond its end."""
    counter = encoding(name)
    whole = b" The quick brown fox's 12345 jumps;\n\n\tover {lazy} dogs don't"
    for end in range(len(whole) + 1):
        alone = counter.count(whole[:end])
        stream = counter.stream()
        stream.feed(whole[:end])
        assert stream.count() == alone


def test_escapes_are_decoded() -> None:
    """The inside of a JSON string counts like the text it stands for; surrogates pair over two strings."""
    counter = encoding("o200k_base")
    for parts, text in [
        ([rb"a\nb\t\"c\\d\/e\b\f\r"], 'a\nb\t"c\\d/e\b\f\r'),
        ([rb"\u00e9\u4e2d\uD83D\uDE00"], "é中😀"),
        ([rb"x\ud83d", rb"\ude00y"], "x😀y"),
        ([rb"x\ud83d", b"y"], "x\ufffdy"),
        ([rb"x\ud83d"], "x\ufffd"),
        ([rb"\ude00\ud83d\ud83d\ude00"], "\ufffd\ufffd😀"),
        ([rb"\ud83d\n"], "\ufffd\n"),
        (["中".encode(), rb" \u0041"], "中 A"),
        ([b"\\n" * 1000], "\n" * 1000),
        ([rb"\ud800" * 300], "\ufffd" * 300),
    ]:
        stream = counter.stream()
        for part in parts:
            stream.feed_json(part)
        assert stream.count() == counter.count(text.encode()), parts


def test_raw_text_after_half_a_pair() -> None:
    """A high surrogate followed by bytes that are no escape is one replacement character."""
    counter = encoding("o200k_base")
    stream = counter.stream()
    stream.feed_json(rb"a\ud83d")
    assert stream.pending == 4
    stream.feed(b"b")
    assert stream.count() == counter.count("a\ufffdb".encode())


def test_settled_text_is_forgotten() -> None:
    """A stream keeps what may still change and no more, however much went through it."""
    counter = encoding("o200k_base")
    stream = counter.stream()
    assert TextStream.__basicsize__ <= 512
    tracemalloc.start()
    for _ in range(2000):
        stream.feed(b"a sentence of some words, and one more ")
        assert stream.pending <= 8
    assert tracemalloc.get_traced_memory()[1] < 1 << 16
    tracemalloc.stop()
    stream.feed(b"a" * 100_000)
    assert stream.pending == 100_001  # with the space before it
    stream.feed(b"!")
    assert stream.pending == 1


def test_long_texts_count_in_threads() -> None:
    """Texts above the inline bound are counted from several threads at once, each right."""
    counter = encoding("o200k_base")
    texts = [(f"word{number} and other {number} things\n" * 2000).encode() for number in range(12)]
    assert all(len(text) > bounds.TEXT_BYTES_INLINE for text in texts)
    expected = []
    for text in texts:
        stream = counter.stream()
        stream.feed(text)
        expected.append(stream.count())
    found: dict[int, int] = {}

    def count(number: int) -> None:
        found[number] = counter.count(texts[number])

    threads = [threading.Thread(target=count, args=(number,)) for number in range(len(texts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[number] for number in range(len(texts))] == expected


def test_damaged_tables(tmp_path: Path) -> None:
    """Each damage to a table's head has its sentence, and nothing stays open."""
    whole = tables.path("cl100k_base").read_bytes()
    damaged = tmp_path / "damaged.table"

    def put(offset: int, value: bytes) -> bytes:
        return whole[:offset] + value + whole[offset + len(value) :]

    before = len(os.listdir("/proc/self/fd"))
    for body, sentence in [
        (b"", "is shorter than a table's head"),
        (whole[:4095], "is shorter than a table's head"),
        (b"\0" * 5000, "does not begin with WEIRTOKN"),
        (put(8, b"\2"), "is of another version"),
        (whole[:-1], "was cut or added to"),
        (whole + b"\0", "was cut or added to"),
        (put(12, b"\7"), "names a way of splitting text"),
        (put(52, b"\0"), "has no name"),
        (put(52, b"x" * 32), "has no name"),
        (put(32, b"\xff\xff"), "numbers that no build writes"),
        (put(36, b"\x40"), "numbers that no build writes"),
        (put(88, b"\xff" * 8), "outside the file"),
        (put(96, b"\1"), "wrong size"),
    ]:
        damaged.write_bytes(body)
        with pytest.raises(BadTable) as refused:
            Encoding(damaged)
        assert sentence in str(refused.value)
        assert str(refused.value).endswith(".")
        assert str(damaged) in str(refused.value)
    with pytest.raises(BadTable, match="cannot be read: No such file"):
        Encoding(tmp_path / "absent.table")
    with pytest.raises(BadTable, match="cannot be"):
        Encoding(tmp_path)
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_damaged_body_is_survived(tmp_path: Path) -> None:
    """Whatever stands in the parts behind a good head, a count ends and is between one and the number of bytes."""
    draw = random.Random(SEED)
    whole = bytearray(tables.path("cl100k_base").read_bytes())
    damaged = tmp_path / "damaged.table"
    index, blocks = (int.from_bytes(whole[88 + part * 16 : 96 + part * 16], "little") for part in (8, 9))
    blocks_bytes = int.from_bytes(whole[96 + 9 * 16 : 104 + 9 * 16], "little")
    texts = [drawn(draw).encode()[:1500] for _ in range(15)] + [b"some English words here, in 1234 lines.\n" * 9]
    for _ in range(4):
        body = bytearray(whole)
        for _ in range(3000):
            at = draw.randrange(4096, len(body))
            if not index - 8 < at < blocks + blocks_bytes:  # those are checked when it is opened
                body[at : at + 8] = draw.randbytes(8)
        damaged.write_bytes(body[: len(whole)])
        counter = Encoding(damaged)
        for text in texts:
            assert 1 <= counter.count(text) <= len(text), f"seed {SEED}"


def test_a_table_is_shared(tmp_path: Path) -> None:
    """The mapping is read-only and shared: no page of it becomes this process's own."""
    path = tables.path("o200k_base")
    counter = Encoding(path)
    counter.count(b"touch some pages " * 500)
    lines = Path("/proc/self/smaps").read_text().splitlines()
    starts = [number for number, line in enumerate(lines) if line.endswith(str(path))]
    assert starts
    for number in starts:
        assert lines[number].split()[1] == "r--s"
        own = [line for line in lines[number + 1 : number + 25] if line.startswith("Private_Dirty:")]
        assert own[0].split()[1] == "0"


def test_closed_counters_leave_nothing() -> None:
    """A counter unmaps its table when it goes, after the streams that use it."""
    path = tables.path("o200k_base")
    mapped = Path("/proc/self/maps").read_text().count(str(path))
    stream = Encoding(path).stream()
    stream.feed(b"still counting")
    assert stream.count() == 2
    assert Path("/proc/self/maps").read_text().count(str(path)) == mapped + 1
    del stream
    gc.collect()
    assert Path("/proc/self/maps").read_text().count(str(path)) == mapped


def test_arguments() -> None:
    """Text is bytes."""
    counter = encoding("o200k_base")
    for call in (counter.count, counter.stream().feed, counter.stream().feed_json):
        with pytest.raises(TypeError):
            call("text")  # type: ignore[operator]
        with pytest.raises(TypeError):
            call(None)  # type: ignore[operator]
