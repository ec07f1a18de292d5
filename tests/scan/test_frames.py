"""A stream is read the same wherever it is cut, and all but the usage frame reach a client that did not ask for it."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy._scan import Frames
from proxy.bounds import FRAME_BYTES_HELD_MAX, FRAME_BYTES_PARSED_MAX, MODEL_BYTES_MAX
from tests.scan import sse_oracle
from tests.scan.sse_oracle import Facts

VECTORS = Path(__file__).parents[1] / "vectors" / "sse"
NAMES = sorted(path.stem for path in VECTORS.glob("*.sse"))
CHUNK = b'data: {"model":"m","choices":[{"index":0,"delta":{"content":"hi"}}]}\n\n'
USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":7}}\n\n'


def facts(frames: Frames, forwarded: bytes) -> Facts:
    return Facts(
        frames.frames,
        frames.text_bytes,
        frames.usage,
        frames.model,
        frames.done,
        frames.error,
        frames.hidden,
        forwarded,
    )


def taken(pieces: Iterable[bytes]) -> Facts:
    """Through `take`: hidden frames are removed."""
    frames = Frames()
    forwarded = b"".join([frames.take(piece) for piece in pieces])
    forwarded += frames.rest()
    assert frames.held == 0
    return facts(frames, forwarded)


def seen(pieces: Iterable[bytes]) -> Facts:
    """Through `feed`: the caller forwards everything."""
    frames = Frames()
    forwarded = b""
    for piece in pieces:
        frames.feed(piece)
        forwarded += piece
    assert frames.rest() == b""
    return facts(frames, forwarded)


def cut(stream: bytes, *at: int) -> list[bytes]:
    edges = [0, *sorted(at), len(stream)]
    return [stream[a:b] for a, b in pairwise(edges)]


def expected(name: str) -> tuple[bytes, Facts]:
    """A vector and what its hand-written facts say."""
    stream = (VECTORS / f"{name}.sse").read_bytes()
    want = json.loads((VECTORS / f"{name}.json").read_text())
    forwarded, place = b"", 0
    for part in want["hidden"]:
        at = stream.index(part.encode(), place)
        forwarded += stream[place:at]
        place = at + len(part.encode())
    forwarded += stream[place:]
    text_bytes = len(want["text"].encode("utf-8", "surrogatepass"))
    usage = None if want["usage"] is None else tuple(want["usage"])
    return stream, Facts(
        want["frames"],
        text_bytes,
        usage,
        want["model"],
        want["done"],
        want["error"],
        len(want["hidden"]),
        forwarded,
    )


@pytest.mark.parametrize("name", NAMES)
def test_vector_at_every_cut(name: str) -> None:
    """Whole, byte by byte and cut at each offset, a vector gives its facts and forwards the same bytes."""
    stream, want = expected(name)
    unhidden = want._replace(hidden=0, forwarded=stream)
    every = [stream[i : i + 1] for i in range(len(stream))]
    for pieces in ([stream], every, *(cut(stream, at) for at in range(len(stream) + 1))):
        assert taken(pieces) == want, pieces
        assert seen(pieces) == unhidden, pieces


@pytest.mark.parametrize("name", NAMES)
def test_vector_in_small_reads(name: str) -> None:
    """In reads of every size up to 40 bytes, and at random cuts, a vector gives its facts."""
    stream, want = expected(name)
    rng = random.Random(name)
    for step in range(1, 41):
        assert taken([stream[i : i + step] for i in range(0, len(stream), step)]) == want, step
    for _ in range(50):
        pieces = cut(stream, *(rng.randrange(len(stream) + 1) for _ in range(rng.randrange(1, 9))))
        assert taken(pieces) == want, pieces


@pytest.mark.parametrize("name", NAMES)
def test_oracle_agrees_with_the_vectors(name: str) -> None:
    """The plain reader, the oracle of the random tests, finds the hand-written facts too."""
    stream, want = expected(name)
    assert sse_oracle.read(stream) == want


def test_corpus_is_there() -> None:
    """Every stream has its facts and every facts its stream, so that none is skipped in silence."""
    assert len(NAMES) >= 50
    assert sorted(path.stem for path in VECTORS.glob("*.json")) == NAMES


ENDS = st.sampled_from([b"\n", b"\r\n", b"\r"])
VALUES = st.sampled_from(
    [
        *("null", "[]", "{}", '""', "0", "-1", "2.5", '"a"', "[{}]", "NaN", "tru", '{"prompt_tokens":3}'),
        *('{"prompt_tokens":4,"completion_tokens":2}', '{"prompt_tokens":4,"completion_tokens":-2}'),
        *('[{"delta":{"content":"x\\u00e9"}}]', '[{"message":{"refusal":"no","reasoning":"hm"}},{"text":"t"}]'),
        *('{"prompt_tokens":9,"prompt_tokens_details":{"cached_tokens":12},"x":[[{}]]}', '"\\ud800"', '"é🎉"'),
        *('[{"delta":{"tool_calls":[{"function":{"name":"f","arguments":"{}"}}]}}]', '[{"text":"\\"usage\\""}]'),
    ]
)
KEYS = st.sampled_from(["usage", "choices", "model", "error", "id", "us\\u0061ge", "Usage", ""])
OBJECTS = st.lists(st.tuples(KEYS, VALUES), max_size=5).map(lambda m: "{" + ",".join(f'"{k}":{v}' for k, v in m) + "}")
DATA = st.one_of(OBJECTS, st.sampled_from(["[DONE]", "", "[]", "{", '{"usage":', "[DONE] "])).map(str.encode)
FIELDS = st.sampled_from(
    [b"data:", b"data: ", b"data:  ", b"event: ", b": ", b":", b"dat", b"data", b"\xef\xbb\xbfdata: "]
)
LINES = st.tuples(FIELDS, st.one_of(DATA, st.just(b"")), ENDS).map(b"".join)
FRAMES_OF = st.tuples(st.just(b"data: "), OBJECTS.map(str.encode), ENDS, ENDS).map(b"".join)
STREAMS = st.lists(st.one_of(FRAMES_OF, FRAMES_OF, LINES, ENDS), max_size=12).map(b"".join)


@given(stream=STREAMS, data=st.data())
def test_made_streams_agree_with_the_oracle(stream: bytes, data: st.DataObject) -> None:
    """Streams put together from odd lines give what the plain reader finds, at any cuts."""
    want = sse_oracle.read(stream)
    at = data.draw(st.lists(st.integers(0, len(stream)), max_size=6))
    assert taken(cut(stream, *at)) == want
    assert taken([stream]) == want
    assert seen(cut(stream, *at)) == want._replace(hidden=0, forwarded=stream)


@given(stream=st.binary(max_size=200), data=st.data())
def test_any_bytes_pass_unharmed(stream: bytes, data: st.DataObject) -> None:
    """Bytes that are no stream at all are forwarded as they came, and cuts change nothing."""
    at = data.draw(st.lists(st.integers(0, len(stream)), max_size=4))
    whole = taken([stream])
    assert taken(cut(stream, *at)) == whole
    assert whole.forwarded == stream


def test_nothing_is_copied_when_nothing_is_held_or_hidden() -> None:
    """A read of whole frames comes back as the same object."""
    frames = Frames()
    for data in (CHUNK, CHUNK * 3, b": ping\n\n", b"\n", b""):
        assert frames.take(data) is data


def test_keep_alive_comment_is_not_held() -> None:
    """A comment goes on at once, even in the middle of its line, so that a client's idle timer is fed."""
    frames = Frames()
    assert frames.take(CHUNK + b": pi") == CHUNK + b": pi"
    assert frames.take(b"ng\n") == b"ng\n"
    assert frames.held == 0


def test_incomplete_frame_is_held_until_it_is_whole() -> None:
    """The part of a frame that came is kept back, counted in `held`, and follows with the rest of it."""
    frames = Frames()
    assert frames.take(CHUNK + CHUNK[:10]) == CHUNK
    assert frames.held == 10
    assert frames.take(CHUNK[10:20]) == b""
    assert frames.held == 20
    assert frames.take(CHUNK[20:]) == CHUNK
    assert frames.held == 0


def test_line_feed_of_a_hidden_frame_is_hidden_too() -> None:
    """The CR LF that ends a hidden frame may be cut in two: its LF does not reach the client."""
    frames = Frames()
    assert frames.take(USAGE.replace(b"\n", b"\r\n")[:-1]) == b""
    assert frames.take(b"\n" + CHUNK) == CHUNK


def padded(frame: bytes, content_bytes: int) -> bytes:
    """The frame, made longer by white space: `content_bytes` of it stand before the empty line."""
    return frame[:-3] + b" " * (content_bytes - (len(frame) - 1)) + b"}\n\n"


@pytest.mark.parametrize("step", [1000, 4096, 65_536, 10**9])
@pytest.mark.parametrize(("over", "hidden"), [(0, 1), (1, 0), (5000, 0)])
def test_hold_is_bounded(step: int, over: int, hidden: int) -> None:
    """A usage frame is held and hidden up to the bound; a longer one is passed on, and the next one hidden again."""
    long = padded(USAGE, FRAME_BYTES_HELD_MAX + over)
    stream = CHUNK + long + CHUNK
    frames = Frames()
    forwarded = b""
    for i in range(0, len(stream), step):
        forwarded += frames.take(stream[i : i + step])
        assert frames.held <= FRAME_BYTES_HELD_MAX
    assert forwarded == (CHUNK + CHUNK if hidden else stream)
    assert frames.take(USAGE[:20]) + frames.take(USAGE[20:] + CHUNK) == CHUNK
    assert frames.hidden == hidden + 1
    assert frames.usage == (5, 0, 7, 0, 0)


@pytest.mark.parametrize(("over", "hidden"), [(0, 1), (1, 0)])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_bound_does_not_depend_on_the_cut(end: str, over: int, hidden: int) -> None:
    """A frame at the bound is hidden and one above it is not, also when it is cut close to its end."""
    long = padded(USAGE, FRAME_BYTES_HELD_MAX + over - (len(end) - 1)).replace(b"\n", end.encode())
    for at in range(len(long) - 6, len(long) + 1):
        found = taken([long[:at], long[at:]])
        assert (found.hidden, found.forwarded) == (hidden, b"" if hidden else long), len(long) - at


def test_memory_is_given_back() -> None:
    """A frame's bytes are kept while it is incomplete; afterwards next to nothing, for streams are many."""
    frames = Frames()
    at_rest = sys.getsizeof(frames)
    assert at_rest < 1024
    frames.feed(b"data: " + b" " * 100_000)
    assert sys.getsizeof(frames) > 100_000
    frames.feed(b"{}\n\n")
    assert sys.getsizeof(frames) == at_rest
    frames.feed(CHUNK[:50])
    frames.rest()
    assert sys.getsizeof(frames) < at_rest + 4096


@pytest.mark.parametrize("step", [1000, 65_536, 10**9])
@pytest.mark.parametrize(("over", "usage"), [(0, (5, 0, 7, 0, 0)), (1, None)])
def test_a_frame_above_the_bound_is_counted_and_not_read(
    step: int, over: int, usage: tuple[int, int, int, int, int] | None
) -> None:
    """Memory stays flat: a huge frame goes by unread, and the frames behind it are read again."""
    stream = padded(USAGE, FRAME_BYTES_PARSED_MAX + over) + CHUNK
    pieces = [stream[i : i + step] for i in range(0, len(stream), step)]
    for way in (taken, seen):
        found = way(pieces)
        assert (found.frames, found.text_bytes, found.usage) == (2, 2, usage)
        assert found.forwarded == stream


def test_a_huge_block_without_data_is_no_frame() -> None:
    """Above the bound too, only blocks with a data line count; a data line behind the bound is not looked for."""
    stream = b"event: " + b"x" * FRAME_BYTES_PARSED_MAX + b"\ndata: {}\n\n" + CHUNK
    for pieces in ([stream], cut(stream, *range(0, len(stream), 50_000))):
        assert taken(pieces).frames == 1
        assert taken(pieces).forwarded == stream


def test_deep_nesting_ends_nothing() -> None:
    """A frame that is nested without end is a frame without facts: no recursion, no error."""
    deep = b'data: {"choices":' + b"[" * 100_000 + b"]" * 100_000 + b"}\n\n"
    assert seen([deep + CHUNK])[:2] == (2, 2)


def test_model_is_bounded() -> None:
    """A model's name is cut to whole characters: it is kept for the stream's life."""
    frames = Frames()
    frames.feed(b'data: {"model":"' + "é".encode() * 100 + b'"}\n\n')
    assert frames.model == "é" * (MODEL_BYTES_MAX // 2)
