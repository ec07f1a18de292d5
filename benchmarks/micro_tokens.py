"""What the token counter costs by itself: `pytest benchmarks/micro_tokens.py --benchmark-enable`.

Each benchmark runs its call in a loop and reports the time of one call, the loop's own cost included; the best of the
rounds is compared with the target, because a busy machine can only add to it. With `--benchmark-disable` the calls run
once, so that they stay right. These texts are seen again and again and therefore cached; what fresh text costs beside
tiktoken and fastokens is told by `python -m benchmarks.tokens`.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pydoc_data import topics
from typing import Any

import pytest

from proxy import tokens
from proxy._fastpath import Encoding
from proxy._scan import AnswerCounter, Frames, peek
from proxy.tokens import chat, tables
from proxy.tokens.tokenizer import Choice, tokenizer_of
from tests.tokens import oracle

FEEDS = 1000  # in one round
RUN_BYTES = 1_000_000

# What the design asks for: nanoseconds a feed, a frame with its count; milliseconds to open; MB/s of anything.
FEED_NS, FRAME_NS, OPEN_MS, LEAST_MB_PER_SECOND = 100, 500, 1, 15
# And the loop's patience: nothing that is counted on it takes longer.
LOOP_NS = 1e6

ENGLISH = "\n".join(topics.topics.values())
BASE64 = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
draw = random.Random(7)


def timed(benchmark: Any, call: Callable[[], object], calls: int, target_ns: float | None = None) -> None:
    """Times rounds of `calls` calls and prints one call's cost, with its target where there is one."""

    def loop() -> None:
        for _ in range(calls):
            call()

    benchmark.pedantic(loop, rounds=30, warmup_rounds=2)
    report(benchmark, calls, target_ns)


def report(benchmark: Any, calls: int, target_ns: float | None) -> None:
    """Prints the best and the median call."""
    if benchmark.stats is None:  # disabled: it ran, and that is all
        return
    best_ns = benchmark.stats.stats.min / calls * 1e9
    median_ns = benchmark.stats.stats.median / calls * 1e9
    benchmark.extra_info.update(best_ns=round(best_ns, 1), median_ns=round(median_ns, 1), target_ns=target_ns)
    target = f"  target {target_ns:g} ns" if target_ns else ""
    print(f"\n{benchmark.name:<44} best {best_ns:9.1f} ns  median {median_ns:9.1f} ns{target}", end="")
    assert target_ns is None or best_ns <= target_ns


@pytest.mark.parametrize("size", [200, 4096])
def test_count(benchmark: Any, size: int) -> None:
    """English that was seen before: what the splitter and the cache cost."""
    counter, text = tokens.encoding("o200k_base"), ENGLISH[:size].encode()
    assert counter.count(text) == oracle.count("o200k_base", text.decode())
    benchmark.name = f"count of {size} characters of English"
    timed(benchmark, lambda: counter.count(text), 200)


@pytest.mark.parametrize("size", [200, 4096])
def test_count_of_tiktoken(benchmark: Any, size: int) -> None:
    """The rival on the same text, at its best."""
    official, text = oracle.encoding("o200k_base"), ENGLISH[:size]
    benchmark.name = f"tiktoken: {size} characters of English"
    timed(benchmark, lambda: official.encode_ordinary(text), 20)


@pytest.mark.parametrize(("counting", "target_ns"), [(False, FEED_NS), (True, FRAME_NS)])
def test_feed(benchmark: Any, counting: bool, target_ns: float) -> None:
    """A delta of five bytes in a long stream, and the running count after it."""
    counter, raw = tokens.encoding("o200k_base"), ENGLISH.encode()
    parts = [raw[at : at + 5] for at in range(0, FEEDS * 5, 5)]

    def stream() -> int:
        opened = counter.stream()
        feed, count = opened.feed, opened.count
        if counting:
            for part in parts:
                feed(part)
                count()
        else:
            for part in parts:
                feed(part)
        return count()

    assert stream() == counter.count(raw[: FEEDS * 5])
    benchmark.name = "feed and count" if counting else "feed"
    benchmark.pedantic(stream, rounds=50, warmup_rounds=2)
    report(benchmark, FEEDS, target_ns)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a", "a" * RUN_BYTES),
        ("spaces", " " * RUN_BYTES),
        ("line ends", "\n" * RUN_BYTES),
        ("digits", "7" * RUN_BYTES),
        ("emoji", "😀" * (RUN_BYTES // 4)),
        ("marks", "\u0301" * (RUN_BYTES // 2)),
        ("a to f", "".join(draw.choices("abcdef", k=RUN_BYTES))),
        (
            "base64",
            "".join(draw.choices(BASE64, k=RUN_BYTES)),
        ),
    ],
)
@pytest.mark.parametrize("encoding", tables.NAMES)
def test_adversarial(benchmark: Any, encoding: str, name: str, text: str) -> None:
    """A megabyte of what tokenizers are slow at."""
    counter, raw = tokens.encoding(encoding), text.encode()
    benchmark.name = f"{encoding}: 1 MB of {name}"
    benchmark.pedantic(lambda: counter.count(raw), rounds=5, warmup_rounds=1)
    report(benchmark, 1, RUN_BYTES / LEAST_MB_PER_SECOND * 1e3)


# === what the loop waits for: the dearest that is still counted on it ===

LETTERS = "abcdefghijklmnopqrstuvwxyz"
WORD = "".join(draw.choices(LETTERS, k=20_000))
THREES = ["".join(draw.choices(LETTERS, k=3)) for _ in range(5000)]
CHINESE = "".join(chr(draw.randrange(0x4E00, 0x9FA5)) for _ in range(5000))
STRANGER = "".join(chr(draw.randrange(32, 127)) for _ in range(400_000)).encode()  # empties the caches
# A JPEG whose frame stands behind as many segments as are looked at, in base64 with its slashes escaped.
JPEG = "data:image\\/jpeg;base64,\\/9j" + "\\/4QAC" * 31 + "\\/8AACwgAEAAQ" + "A" * 64_000


def user(content: object) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content}]}


def tool(**properties: object) -> dict[str, Any]:
    function = {"name": "f", "parameters": {"properties": properties}}
    return {"messages": [], "tools": [{"type": "function", "function": function}]}


def schema(value: object) -> dict[str, Any]:
    return {"messages": [], "response_format": {"json_schema": {"schema": value}}}


DEAREST: dict[str, Callable[[int], dict[str, Any]]] = {
    "one word": lambda n: user(WORD[:n]),
    "Chinese": lambda n: user(CHINESE[:n]),
    "short strings": lambda n: user(THREES[:n]),
    "empty messages": lambda n: {"messages": [{"role": "", "content": ""}] * n},
    "calls": lambda n: {"messages": [{"tool_calls": [{"function": {"name": name}} for name in THREES[:n]]}]},
    "nameless calls": lambda n: {"messages": [{"tool_calls": [{"function": {"name": ""}}] * n}]},
    "a system message beside tools": lambda n: {"messages": [{"role": "system", "content": WORD[:n]}], "tools": []},
    "images": lambda n: user([{"image_url": {"url": JPEG}}] * n),
    "properties": lambda n: tool(**{str(i): {} for i in range(n)}),
    "described properties": lambda n: tool(**{str(i): {"description": "a"} for i in range(n)}),
    "unions": lambda n: tool(a={"anyOf": [{}] * n}),
    "enums": lambda n: tool(a={"enum": [[]] * n}),
    "descriptions": lambda n: tool(a={"description": WORD[:n]}),
    "nameless functions": lambda n: {"messages": [], "functions": [{"name": ""}] * n},
    "a schema of numbers": lambda n: schema({str(i): 1 for i in range(n)}),
    "a schema of objects": lambda n: schema([{}] * n),
    "a format that is text": lambda n: {"messages": [], "response_format": WORD[:n]},
}


@pytest.mark.parametrize("name", DEAREST)
def test_dearest_prompt(benchmark: Any, name: str) -> None:
    """As much of one thing as a prompt may have to be counted on the loop, tools that nobody has counted yet, and
    caches that know nothing of it."""
    made, encode = tokenizer_of(Choice("o200k_base", family="gpt-4o")), json.JSONEncoder(separators=(",", ":")).encode

    def body(n: int) -> bytes:
        return encode(DEAREST[name](n)).replace("\\\\", "\\").encode()

    def now(raw: bytes) -> bool:
        chat._cache = type(chat._cache)()
        return made.prompt_now(raw, peek(raw), "chat.completions", "") is not None

    few, many = 0, 1
    while now(body(many)):
        few, many = many, 2 * many
    while many - few > 1:
        middle = (few + many) // 2
        few, many = (middle, many) if now(body(middle)) else (few, middle)
    raw = body(few)
    facts = peek(raw)

    def forget() -> None:
        chat._cache = type(chat._cache)()
        made.encoding.count(STRANGER)

    benchmark.name = f"{name}: {few}"
    benchmark.pedantic(lambda: made.prompt_now(raw, facts, "chat.completions", ""), setup=forget, rounds=30)
    report(benchmark, 1, LOOP_NS)


def answer(*choices: tuple[int, str]) -> bytes:
    """One frame that says something in each of these choices."""
    said = [{"index": index, "delta": {"content": text}} for index, text in choices]
    return b"data: " + json.dumps({"choices": said}, ensure_ascii=False).encode() + b"\n\n"


@pytest.mark.parametrize(
    ("name", "data", "before"),
    [
        ("one word", answer((0, WORD[:12_000])), 0),
        ("Chinese", answer((0, CHINESE[:4000])), 0),
        ("words for 256 choices", answer(*((index, WORD[40 * index : 40 * index + 40]) for index in range(256))), 5),
        ("letters for 256 choices", answer(*((draw.randrange(256), draw.choice(LETTERS)) for _ in range(4096))), 9),
        ("1,000 frames", b"".join(answer((draw.randrange(256), draw.choice(LETTERS))) for _ in range(1000)), 9),
    ],
)
def test_dearest_read(benchmark: Any, name: str, data: bytes, before: int) -> None:
    """Much of one thing in one read of an upstream, after so many of its kind, and the count after it."""
    counter = tokens.encoding("o200k_base")

    def read(frames: Frames, made: AnswerCounter) -> None:
        frames.feed(data)
        made.look(False)

    def begun() -> tuple[tuple[Frames, AnswerCounter], dict[str, Any]]:
        counter.count(STRANGER)
        made = AnswerCounter(counter)
        frames = Frames(made)
        for _ in range(before):
            read(frames, made)
        return (frames, made), {}

    benchmark.name = f"a read: {name}"
    benchmark.pedantic(read, setup=begun, rounds=30)
    report(benchmark, 1, LOOP_NS)


def test_open(benchmark: Any) -> None:
    """Mapping a table and making its caches, as a worker does once."""
    path = tables.path("o200k_base")
    timed(benchmark, lambda: Encoding(path), 5, OPEN_MS * 1e6)
