"""What each function of `_scan` costs by itself: `pytest benchmarks/micro_scan.py --benchmark-enable`.

Each benchmark runs its call in a loop and reports the time of one call, the loop's own cost included; the best of the
rounds is compared with the target, because a busy machine can only add to it. With `--benchmark-disable` the calls run
once, so that they stay right. The rivals, json and orjson, build the whole tree; they judge less.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from time import perf_counter_ns
from typing import Any

import orjson
import pytest

from proxy import tokens
from proxy._scan import AnswerCounter, Frames, peek, read_answer, read_head, with_usage
from proxy.tokens import chat, families

CALLS = 1000  # in one round
FRAMES = 1000  # in one long stream

# What the design asks for, in nanoseconds: a call, a frame.
HEAD_NS, PEEK_NS, FRAME_NS, COUNT_NS = 2000, 2500, 300, 500

SDK_HEADERS = (
    (b"Host", b"127.0.0.1:8080"),
    (b"Accept-Encoding", b"gzip, deflate"),
    (b"Connection", b"keep-alive"),
    (b"Accept", b"application/json"),
    (b"Content-Type", b"application/json"),
    (b"User-Agent", b"OpenAI/Python 1.54.0"),
    (b"X-Stainless-Lang", b"python"),
    (b"X-Stainless-Package-Version", b"1.54.0"),
    (b"X-Stainless-OS", b"Linux"),
    (b"X-Stainless-Arch", b"x64"),
    (b"X-Stainless-Async", b"false"),
    (b"x-stainless-retry-count", b"0"),
    (b"Authorization", b"Bearer wk_live_" + b"a1B2" * 10 + b"xyz_000000"),
    (b"Content-Length", b"1017"),
)
PROMPT = "A weir stands in a stream, measures it, and holds it to a level.\n" * 12
BODY = json.dumps(
    {
        "model": "gpt-4o-mini",
        "messages": [
            {"role": "system", "content": "You are a helpful assistant."},
            {"role": "user", "content": PROMPT},
        ],
        "stream": True,
        "temperature": 0.7,
        "max_tokens": 256,
        "user": "user-1234",
    },
    separators=(",", ":"),
).encode()
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": f"look_up_{number}",
            "description": "Looks a word up in the dictionary of that number",
            "parameters": {
                "type": "object",
                "properties": {
                    "word": {"type": "string", "description": "The word, as it is written in the text"},
                    "language": {"type": "string", "enum": ["en", "de", "fr"]},
                },
                "required": ["word"],
            },
        },
    }
    for number in range(10)
]
FRAME = (
    b'data: {"id":"chatcmpl-BfEQk2Yw7R9sT1uVx3Za5bCd","object":"chat.completion.chunk","created":1718345013,'
    b'"model":"gpt-4o-mini-2024-07-18","choices":[{"index":0,"delta":{"content":" weir"},"finish_reason":null}],'
    b'"usage":null}\n\n'
)
USAGE = (
    b'data: {"id":"chatcmpl-BfEQk2Yw7R9sT1uVx3Za5bCd","object":"chat.completion.chunk","created":1718345013,'
    b'"model":"gpt-4o-mini-2024-07-18","choices":[],"usage":{"prompt_tokens":19,"completion_tokens":3,"total_tokens":22,'
    b'"prompt_tokens_details":{"cached_tokens":8},"completion_tokens_details":{"reasoning_tokens":1}}}\n\n'
)
ANSWER = json.dumps(
    {
        "id": "chatcmpl-9",
        "model": "gpt-4o-mini",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "w" * 400}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 11, "completion_tokens": 100, "total_tokens": 111},
    }
).encode()


# What models say, in deltas of a token or two each, as they come.
SPEECH = {
    "english": (
        " weir",
        " stands",
        " in",
        " a",
        " stream",
        ",",
        " measures",
        " it",
        ".",
        " It's",
        " 1",
        ".5",
        " m",
        "\n",
    ),
    "code": (
        "def",
        " count",
        "(self",
        ",",
        " text",
        "):\n",
        "    ",
        "return",
        " len",
        "(text",
        ")",
        "\n\n",
        "#",
        " ok",
    ),
    "chinese": (
        "水坝",
        "立在",
        "溪流",
        "之中",
        "，",
        "测量",
        "水流",
        "，",
        "并",
        "将其",
        "保持",
        "在",
        "一定",
        "水位",
        "。",
    ),
    "russian": ("Пло", "тина", " сто", "ит", " в", " пото", "ке", ",", " изме", "ря", "ет", " его", ".", " "),
    "arguments": ('{"', "city", '":', ' "', "Paris", '",', ' "', "days", '":', " [", "1", ",", " 2", "]}"),
}


def per_call(
    benchmark: Any, call: Callable[[], object], target_ns: float | None = None, *, calls: int = CALLS, each: int = 1
) -> None:
    """Times `calls` calls a round and prints what one costs, divided by the `each` things it does."""

    def loop() -> None:
        for _ in range(calls):
            call()

    benchmark.pedantic(loop, rounds=50, warmup_rounds=2)
    if benchmark.stats is None:  # disabled: it ran, and that is all
        return
    best_ns = benchmark.stats.stats.min / calls / each * 1e9
    median_ns = benchmark.stats.stats.median / calls / each * 1e9
    benchmark.extra_info.update(best_ns=round(best_ns, 1), median_ns=round(median_ns, 1), target_ns=target_ns)
    target = f"  target {target_ns:g} ns" if target_ns else ""
    print(f"\n{benchmark.name:<36} best {best_ns:8.1f} ns  median {median_ns:8.1f} ns{target}", end="")
    assert target_ns is None or best_ns <= target_ns


def test_read_head(benchmark: Any) -> None:
    """The official SDK's 14 headers."""
    assert read_head(SDK_HEADERS).content_length == 1017
    per_call(benchmark, lambda: read_head(SDK_HEADERS), HEAD_NS)


def test_peek(benchmark: Any) -> None:
    """A chat body of 1 KB."""
    assert 900 < len(BODY) < 1100
    assert peek(BODY).text_bytes == 28 + len(PROMPT)
    per_call(benchmark, lambda: peek(BODY), PEEK_NS)


def test_peek_rival_orjson(benchmark: Any) -> None:
    """orjson, which builds the tree and judges no keys."""
    per_call(benchmark, lambda: orjson.loads(BODY))


def test_peek_rival_json(benchmark: Any) -> None:
    """The standard library."""
    per_call(benchmark, lambda: json.loads(BODY))


@pytest.mark.parametrize("text", ["The quick brown fox. ", "敏捷的棕色狐狸跳过懒狗。"], ids=["ascii", "chinese"])
def test_peek_of_a_megabyte(benchmark: Any, text: str) -> None:
    """A long prompt, per kilobyte: 1,000 ns are 1 GB/s."""
    body = json.dumps({"model": "m", "input": text * (10**6 // len(text.encode()))}, ensure_ascii=False).encode()
    assert 990 < len(body) // 1000 < 1010
    per_call(benchmark, lambda: peek(body), 1000, calls=3, each=len(body) // 1000)


def test_prompt_tokens(benchmark: Any) -> None:
    """The tokens of that body's prompt, with the arithmetic of its family."""
    family = families.find("gpt-4o-mini")
    assert family is not None
    counter, facts = tokens.encoding(family.encoding), peek(BODY)
    assert chat.prompt_tokens(family, counter, BODY, facts, "chat.completions", "acme")[1] == "counted"
    per_call(benchmark, lambda: chat.prompt_tokens(family, counter, BODY, facts, "chat.completions", "acme"))


def test_prompt_tokens_with_tools(benchmark: Any) -> None:
    """The same with an agent's tools, which were counted before."""
    family = families.find("gpt-4o-mini")
    assert family is not None
    body = BODY[:-1] + b',"tools":%s}' % json.dumps(TOOLS).encode()
    counter, facts = tokens.encoding(family.encoding), peek(body)
    assert chat.prompt_tokens(family, counter, body, facts, "chat.completions", "acme")[1] == "counted"
    per_call(benchmark, lambda: chat.prompt_tokens(family, counter, body, facts, "chat.completions", "acme"))


def test_with_usage(benchmark: Any) -> None:
    """Both edits."""
    facts = peek(BODY)
    per_call(benchmark, lambda: with_usage(BODY, facts, b'"other"'))


@pytest.mark.parametrize("way", ["feed", "take"])
def test_frame_by_itself(benchmark: Any, way: str) -> None:
    """One chunk frame of 240 bytes in a read of its own, the Python call included."""
    frames = Frames()
    call = getattr(frames, way)
    per_call(benchmark, lambda: call(FRAME), FRAME_NS)
    assert frames.text_bytes == frames.frames * 5


@pytest.mark.parametrize("way", ["feed", "take"])
def test_frame_of_many(benchmark: Any, way: str) -> None:
    """The same frame, many in one read: what the scan itself costs."""
    stream = FRAME * FRAMES
    per_call(benchmark, lambda: getattr(Frames(), way)(stream), FRAME_NS, calls=2, each=FRAMES)


@pytest.mark.parametrize("name", SPEECH)
def test_counting_of_a_frame(benchmark: Any, name: str) -> None:
    """What counting adds to a frame that is a read of its own, with the look before its write: the same stream with and
    without, by turns.
    """
    delta = "tool_calls" if name == "arguments" else "content"
    head, _, tail = FRAME.partition(b'"content":" weir"')
    frames = []
    for text in SPEECH[name] * 40:
        said = [{"index": 0, "function": {"arguments": text}}] if delta == "tool_calls" else text
        frames.append(b"%b%b%b" % (head, json.dumps({delta: said})[1:-1].encode(), tail))
    idle = AnswerCounter(tokens.encoding("o200k_base"))

    def stream(counter: AnswerCounter | None) -> float:
        look, feed = (counter or idle).look, Frames(counter).feed
        start = perf_counter_ns()
        for frame in frames:
            feed(frame)
            look(False)
        return (perf_counter_ns() - start) / len(frames)

    with_ns: list[float] = []
    added_ns: list[float] = []

    def turn() -> None:
        counter = AnswerCounter(tokens.encoding("o200k_base"))
        with_ns.append(stream(counter))
        added_ns.append(with_ns[-1] - stream(None))
        assert counter.tokens > 0
        assert not counter.estimated

    benchmark.pedantic(turn, rounds=100, warmup_rounds=2)
    if benchmark.stats is None:
        return
    added = statistics.median(added_ns)
    benchmark.extra_info.update(added_ns=round(added, 1), with_ns=round(min(with_ns), 1), target_ns=COUNT_NS)
    print(f"\n{benchmark.name:<36} adds {added:6.1f} ns a frame  with it {min(with_ns):.1f} ns", end="")
    assert added <= COUNT_NS


def test_frame_cut_in_two(benchmark: Any) -> None:
    """A frame that comes in two reads, held and joined."""
    frames = Frames()
    head, tail = FRAME[:100], FRAME[100:]

    def both() -> None:
        frames.take(head)
        frames.take(tail)

    per_call(benchmark, both)
    assert frames.held == 0


def test_usage_frame(benchmark: Any) -> None:
    """The frame that is read for its figures and hidden, once a stream."""
    frames = Frames()
    per_call(benchmark, lambda: frames.take(USAGE))
    assert frames.usage == (19, 8, 3, 1, 0)
    assert frames.hidden == frames.frames


def test_read_answer(benchmark: Any) -> None:
    """A whole answer of 600 bytes."""
    assert read_answer(ANSWER) == ((11, 0, 100, 0, 0), "gpt-4o-mini", 400)
    per_call(benchmark, lambda: read_answer(ANSWER))
