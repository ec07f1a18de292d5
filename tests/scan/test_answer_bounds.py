"""Counting an answer holds up nobody and stays small: what is put off is said, what is too much is estimated."""

from __future__ import annotations

import random
import sys
import threading
from itertools import pairwise

import pytest

from proxy._scan import Frames
from proxy.bounds import (
    ANSWER_BACKLOG_BYTES_MAX,
    ANSWER_LANES_MAX,
    ANSWER_STRINGS_MAX,
    FRAME_BYTES_PARSED_MAX,
    TEXT_BYTES_INLINE,
    WORD_BYTES_RECOUNTED,
)
from tests.scan.test_answer_counter import O200K, counted, counter, frame, text
from tests.tokens import oracle

WORDS = {
    "letters": "a" * 60_000,
    "spaces": " " * 40_000,
    "lines": "\n" * 30_000,
    "chinese": "測" * 12_000,
    "emoji": "🎉" * 9_000,
    "marks": "\u0301" * 20_000,
    "a word and prose": "x" * 20_000 + " weir. " * 3000,
}

# === what takes long ===


def test_much_text_at_once_waits() -> None:
    """Between two looks at most TEXT_BYTES_INLINE are counted; what waits is said, and counted at later looks."""
    whole = "The weir's crest, 1.5 m above the bed: «Überfall» 测量。 " * 1000
    made = counter()
    Frames(made).feed(frame(delta={"content": whole}) + frame(delta={"refusal": "No."}))
    left = [made.backlog]
    while left[-1]:
        made.look(False)
        left.append(made.backlog)
        assert made.estimated is (made.backlog > 0)
        assert made.rest == made.backlog
    size = len(whole.encode())
    assert left[0] == size + 3
    assert all(0 < before - after <= TEXT_BYTES_INLINE for before, after in pairwise(left))
    assert len(left) <= 2 * size / TEXT_BYTES_INLINE + 3
    assert made.tokens == oracle.count(O200K, whole) + oracle.count(O200K, "No.")


@pytest.mark.parametrize(
    "whole",
    [
        "a" * 60_000,
        " " * 40_000,
        "\n" * 30_000,
        "測" * 12_000,
        "🎉" * 9_000,
        "\u0301" * 20_000,
        "x" * 20_000 + " weir. " * 3000,
    ],
    ids=["letters", "spaces", "lines", "chinese", "emoji", "marks", "a word and prose"],
)
@pytest.mark.parametrize("delta_bytes", [7, 400, 50_000])
def test_long_words(whole: str, delta_bytes: int) -> None:
    """A word without an end is an estimate that says so, and never lets more wait than came; at the end it is exact."""
    made = counter()
    scanner = Frames(made)
    for start in range(0, len(whole), delta_bytes):
        scanner.feed(frame(delta={"content": whole[start : start + delta_bytes]}))
        made.look(False)
        done = len(whole[: start + delta_bytes].encode())
        assert made.backlog <= done
        if not made.estimated and done < 3 * WORD_BYTES_RECOUNTED:
            assert made.tokens == oracle.count(O200K, whole[: start + delta_bytes])
    made.finish()
    assert (made.backlog, made.estimated) == (0, False)
    assert made.tokens == oracle.count(O200K, whole)


@pytest.mark.parametrize("letters", [300, 3000, 6200, 9900, 12_000])
def test_long_words_one_after_another(letters: int) -> None:
    """Words up to nearly TEXT_BYTES_INLINE are counted at the looks: little waits at the end."""
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    whole = " ".join("".join(chance.choices("abcdefgh", k=letters)) for _ in range(60_000 // letters))
    made = counter()
    scanner = Frames(made)
    for start in range(0, len(whole), 200):
        scanner.feed(frame(delta={"content": whole[start : start + 200]}))
        made.look(False)
        assert made.rest <= 2 * TEXT_BYTES_INLINE, (seed, start)
    assert made.backlog <= TEXT_BYTES_INLINE, seed
    made.finish()
    assert made.tokens == oracle.count(O200K, whole), seed


def test_finishing_beside_the_loop() -> None:
    """Answers are counted to their end in threads while the same encoding counts others."""
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    texts = ["".join(text(chance, 400) for _ in range(8)) for _ in range(6)]
    waiting = []
    for whole in texts:
        made = counter()
        Frames(made).feed(frame(delta={"content": whole}))
        waiting.append(made)
    threads = [threading.Thread(target=made.finish) for made in waiting]
    for thread in threads:
        thread.start()
    short = [text(chance, 5) for _ in range(50)]
    for _ in range(10):
        for one in short:
            made = counter()
            Frames(made).feed(frame(delta={"content": one}))
            assert counted(made) == oracle.count(O200K, one), seed
    for thread in threads:
        thread.join(120)
    assert [made.tokens for made in waiting] == [oracle.count(O200K, whole) for whole in texts], seed
    assert not any(made.estimated for made in waiting)


# === bounds: what is above them is estimated, and says so ===


@pytest.mark.parametrize(
    "said",
    [
        frame(delta={"audio": {"id": "a", "transcript": "weir"}}),
        frame(message={"images": [{"image_url": {"url": "data:"}}]}),
    ],
)
def test_what_is_no_text(said: bytes) -> None:
    """Audio and images have tokens that nobody can count, and the answer says so; the text beside them is counted."""
    for silent in (b"data: [DONE]\n\n", b"data: ping\n\n", frame(delta={"audio": None})):
        made = counter()
        Frames(made).feed(frame(delta={"content": "weir"}) + silent)
        assert counted(made) == oracle.count(O200K, "weir")
    made = counter()
    Frames(made).feed(said + frame(delta={"content": "weir"}))
    made.look(True)
    assert (made.tokens, made.estimated) == (oracle.count(O200K, "weir"), True)


def test_too_many_texts() -> None:
    """Above ANSWER_LANES_MAX texts the rest is bytes."""
    made = counter()
    frames = [frame(index=index, delta={"content": "weir"}) for index in range(ANSWER_LANES_MAX + 3)]
    Frames(made).feed(b"".join(frames))
    made.look(True)
    assert (made.lanes, made.rest, made.estimated) == (ANSWER_LANES_MAX, 3 * 4, True)
    assert made.tokens == ANSWER_LANES_MAX * oracle.count(O200K, "weir")


def test_many_texts_in_any_order() -> None:
    """As many texts as are told apart, cut into one another at random: each keeps its own tokens."""
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    texts = {(index, key): "" for index in range(ANSWER_LANES_MAX // 2) for key in ("content", "reasoning")}
    made = counter()
    frames = Frames(made)
    for number in range(4 * len(texts)):
        (index, key), part = chance.choice(list(texts)), chance.choice([" inter", "national", "1", "2", "\n", "é"])
        texts[index, key] += part
        frames.feed(frame(index=index, delta={key: part}))
        if number % 99 == 0:
            made.look(False)
    made.look(True)
    assert made.tokens == sum(oracle.count(O200K, whole) for whole in texts.values()), seed
    assert (made.lanes, made.rest) == (sum(map(bool, texts.values())), 0), seed


def test_too_many_strings() -> None:
    """Of more than ANSWER_STRINGS_MAX strings in one frame, those behind are bytes."""
    for extra in (0, 2):
        made = counter()
        Frames(made).feed(frame(delta={"content": ["weir "] * (ANSWER_STRINGS_MAX + extra)}))
        made.finish()
        assert (made.rest, made.estimated) == (extra * 5, extra > 0)
        assert made.tokens == oracle.count(O200K, "weir " * ANSWER_STRINGS_MAX)


def test_a_frame_too_long_to_be_read() -> None:
    """Nobody knows what it says, so the count is an estimate from then on; a long comment says nothing."""
    for start, estimated in ((b"data: ", True), (b"event: ", False)):
        made = counter()
        scanner = Frames(made)
        scanner.feed(frame(delta={"content": "A weir"}))
        scanner.feed(start + b"x" * FRAME_BYTES_PARSED_MAX)
        made.look(False)
        assert made.estimated is estimated
        scanner.feed(b"\n\n")
        made.look(True)
        assert (made.tokens, made.rest, made.estimated) == (oracle.count(O200K, "A weir"), 0, estimated)


def test_too_much_waits() -> None:
    """What is above ANSWER_BACKLOG_BYTES_MAX is bytes; memory stays bounded, and what waited is counted."""
    made = counter()
    scanner = Frames(made)
    for _ in range(5):
        scanner.feed(frame(delta={"content": "weir " * 60_000}))
    assert made.backlog <= ANSWER_BACKLOG_BYTES_MAX
    assert sys.getsizeof(made) <= 2 * ANSWER_BACKLOG_BYTES_MAX + 2000
    made.finish()
    waited = ANSWER_BACKLOG_BYTES_MAX // 300_000
    assert (made.rest, made.estimated) == ((5 - waited) * 300_000, True)
    assert made.tokens == oracle.count(O200K, "weir " * 60_000 * waited)
    assert sys.getsizeof(made) < 2000


def test_an_open_stream_is_small() -> None:
    """A thousand open streams must stay cheap: one counter of a short text, with its one lane."""
    made = counter()
    Frames(made).feed(frame(delta={"content": "A weir stands in a stream"}))
    made.look(False)
    assert made.lanes == 1
    assert sys.getsizeof(made) <= 768
