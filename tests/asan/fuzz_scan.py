"""Random heads, bodies and streams through all of `_scan`: only the documented errors, and the same at every cut."""

from __future__ import annotations

import argparse
import json
import random
import time
from pathlib import Path

from proxy import _scan, bounds, tokens
from proxy._scan import AnswerCounter, BadBody, BadHead, Frames, peek, read_answer, read_head, with_model, with_usage
from proxy.errors import KINDS

ROOT = Path(__file__).resolve().parents[2]
VECTORS = ROOT / "tests" / "vectors" / "sse"
JSON_BYTES = b'{}[],:"\\/bfnrtu0123456789abcdefEe+-. \t\n\r\x00\x1f\x7f\x80\xc3\xa9\xed\xa0\xe2\x82\xf0\x9f\xf4\xff'
KEYS = (
    *(
        "model",
        "stream",
        "stream_options",
        "include_usage",
        "max_tokens",
        "max_completion_tokens",
        "n",
        "user",
        "Model",
    ),
    *("messages", "content", "text", "image_url", "tools", "prompt", "input", "choices", "delta", "usage", "error"),
    *(
        "prompt_tokens",
        "completion_tokens",
        "prompt_tokens_details",
        "cached_tokens",
        "reasoning_content",
        "\u017ftream",
    ),
)
NAMES = (
    *(
        b"Authorization",
        b"x-api-key",
        b"api-key",
        b"Host",
        b"Content-Length",
        b"Transfer-Encoding",
        b"Content-Encoding",
    ),
    *(b"Accept", b"Content-Type", b"tracestate", b"traceparent", b"Connection", b"X-Request-ID", b"Expect", b"X-Team"),
)
VALUES = (b"Bearer x", b"Bearer ", b"chunked", b"5", b"identity", b"close, tracestate", b"a.example:80", b"", b" \t ")


def tree(chance: random.Random, depth: int = 0) -> object:
    match chance.randrange(9 if depth < 5 else 6):
        case 0:
            return chance.choice([None, True, False])
        case 1:
            return chance.choice([0, -1, 1, 5, 129, 2**40, 2**40 + 1, 10**30, 1.5, 1e300, -0.0])
        case 2 | 3:
            return chance.choice(
                ["", "a", "é🎉", "\x00", "x" * chance.randrange(200), "\ud800", "😀" * chance.randrange(40)]
            )
        case 4 | 5:
            return chance.choice([[], {}, [[]], [{}]])
        case 6:
            return [tree(chance, depth + 1) for _ in range(chance.randrange(4))]
        case _:
            return {chance.choice(KEYS): tree(chance, depth + 1) for _ in range(chance.randrange(5))}


def damaged(chance: random.Random, text: bytes) -> bytes:
    """The text with bytes changed, lost, added or doubled, or none of it."""
    body = bytearray(text)
    for _ in range(chance.choice([0, 0, 1, 2, 5])):
        at, to = sorted((chance.randrange(len(body) + 1), chance.randrange(len(body) + 1)))
        match chance.randrange(5):
            case 0:
                body[at : at + 1] = bytes([chance.randrange(256)])
            case 1:
                del body[at:to]
            case 2:
                body[at:at] = bytes(chance.choices(JSON_BYTES, k=chance.randrange(1, 20)))
            case 3 if len(body) < 10_000:
                body[at:at] = body[at:to]
            case _:
                del body[at:]
    return bytes(body)


def made_json(chance: random.Random) -> bytes:
    """A JSON text with this program's keys, or something near one."""
    if chance.random() < 0.02:
        opening = chance.choice([b"[", b'{"a":', b'{"content":[', b'{"stream_options":{"x":'])
        return b'{"messages":' + opening * chance.choice([100, 127, 128, 129, 5000])
    if chance.random() < 0.1:
        return bytes(chance.choices(JSON_BYTES, k=chance.randrange(80)))
    value = {chance.choice(KEYS): tree(chance) for _ in range(chance.randrange(7))}
    text = json.dumps(value, ensure_ascii=chance.random() < 0.5, indent=chance.choice([None, None, 1]))
    return damaged(chance, text.encode("utf-8", "surrogatepass"))


def known(error: BadBody | BadHead) -> None:
    assert error.args[0] in KINDS, error


def fuzz_body(chance: random.Random) -> None:
    body = made_json(chance)
    counter = AnswerCounter(chance.choice(ENCODINGS))
    assert read_answer(body, counter) == read_answer(body)
    counter.look(chance.random() < 0.5)
    try:
        facts = peek(body)
    except BadBody as error:
        known(error)
        return
    json.loads(body)
    model = json.dumps(chance.choice(["m", "other" * 20])).encode()
    asked = with_usage(body, facts, None)
    assert peek(asked).usage_asked
    if facts.model is not None:
        json.loads(with_usage(body, facts, model))
        assert peek(with_model(body, facts, model)).model == json.loads(model)[: bounds.MODEL_BYTES_MAX + 4]
    other = made_json(chance)
    try:
        with_usage(other, facts, model)
        with_model(other, facts, model)
    except ValueError:
        pass


def fuzz_head(chance: random.Random) -> None:
    lines = tuple(
        (
            chance.choice(NAMES) if chance.random() < 0.8 else chance.randbytes(chance.randrange(20)),
            chance.choice(VALUES) if chance.random() < 0.7 else chance.randbytes(chance.choice([1, 15, 16, 17, 300])),
        )
        for _ in range(chance.randrange(chance.choice([6, 40])))
    )
    try:
        head = read_head(lines, chance.choice([b"", b"x-team", b"Authorization", chance.randbytes(4)]))
    except BadHead as error:
        known(error)
    else:
        assert head.forward == b"" or head.forward.endswith(b"\r\n")


ENCODINGS = [tokens.encoding(name) for name in ("o200k_base", "cl100k_base")]


def facts_of(stream: bytes, cuts: list[int], hide: bool, looks: int = 0) -> tuple[object, ...]:
    counter = AnswerCounter(ENCODINGS[hide])
    frames, forwarded = Frames(counter), b""
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        piece = stream[start:end]
        if hide:
            forwarded += frames.take(piece)
        else:
            frames.feed(piece)
        for _ in range(looks):
            counter.look(False)
    forwarded += frames.rest()
    if looks:
        counter.look(True)
    counter.finish()
    assert counter.backlog == 0
    return (
        *(counter.tokens, counter.lanes, counter.rest, counter.estimated),
        *(frames.frames, frames.text_bytes, frames.usage, frames.model, frames.done, frames.error),
        *((frames.hidden, forwarded) if hide else ()),
    )


def spoken(chance: random.Random) -> list[bytes]:
    """Frames of a few texts in pieces of any size, cut anywhere: in escapes' pairs, in words without an end."""
    frames = []
    alphabet = chance.choice(
        ["a", " ", "ab \n", "漢字。", "😀\u0301 ", 'x"\\/\t\x00', "\ud800\udc00\udfff", "aé漢😀 \n1"]
    )
    # Below ANSWER_BACKLOG_BYTES_MAX in all: above it the count depends on how often one looks.
    most, count = chance.choice([(1, 30), (5, 30), (300, 30), (12_000, 4)])
    for _ in range(chance.randrange(1, count)):
        said = "".join(chance.choices(alphabet, k=chance.randrange(most + 1)))
        message: dict[str, object] = {chance.choice(["content", "refusal", "reasoning", "reasoning_content"]): said}
        if chance.random() < 0.2:
            call = {"index": chance.choice([0, 1, 1.5, -1, 2**24, 2**70]), "function": {"name": "f", "arguments": said}}
            message = {"tool_calls": [call] * chance.randrange(3), "function_call": {"arguments": said}}
        index = chance.choice([0, 0, 0, 1, chance.randrange(300), None])
        choices = [{"delta": message, "index": index}] * chance.choice([1, 1, 1, 2])
        ascii_only = chance.random() < 0.5
        data = json.dumps({"choices": choices}, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
        frames.append(b"data: " + data + b"\n\n")
    return frames


def made_stream(chance: random.Random, corpus: list[bytes]) -> bytes:
    if chance.random() < 0.5:
        return damaged(chance, b"".join(chance.choices(corpus, k=chance.randrange(1, 3))))
    parts = []
    for _ in range(chance.randrange(12)):
        end = chance.choice([b"\n", b"\r\n", b"\r"])
        data = chance.choice([b"[DONE]", b'{"choices":[],"usage":{"prompt_tokens":1}}', b"", made_json(chance)])
        parts.append(
            chance.choice([b"data:", b"data: ", b":", b"event:", b""]) + data + end + end * chance.randrange(2)
        )
    if chance.random() < 0.3:
        parts.extend(spoken(chance))
    if chance.random() < 0.01:
        pad = chance.choice([bounds.FRAME_BYTES_HELD_MAX, bounds.FRAME_BYTES_PARSED_MAX]) + chance.randrange(-100, 3)
        parts.append(b'data: {"choices":[],"usage":{"prompt_tokens":1}' + b" " * pad + b"}\n\n")
    return b"".join(parts)


def fuzz_stream(chance: random.Random, corpus: list[bytes]) -> None:
    """Whole and at random cuts, shown and hidden: the same facts."""
    stream = made_stream(chance, corpus)
    hide = chance.random() < 0.7
    whole = facts_of(stream, [], hide)
    for _ in range(3):
        cuts = sorted(chance.randrange(len(stream) + 1) for _ in range(chance.randrange(10)))
        assert facts_of(stream, cuts, hide, chance.randrange(3)) == whole, (stream[:5000], cuts)
    if chance.random() < 0.1:  # dropped in the middle: the scanner frees what it holds
        Frames(AnswerCounter(ENCODINGS[0])).take(stream[: chance.randrange(len(stream) + 1)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--seed", type=int, default=random.randrange(2**32))
    chosen = parser.parse_args()
    print(f"fuzz_scan: seed {chosen.seed}, {_scan.__file__}")
    chance = random.Random(chosen.seed)
    corpus = [path.read_bytes() for path in sorted(VECTORS.glob("*.sse"))]
    end, rounds = time.monotonic() + chosen.seconds, 0
    while time.monotonic() < end:
        rounds += 1
        for _ in range(5):
            fuzz_body(chance)
            fuzz_head(chance)
        fuzz_stream(chance, corpus)
    print(f"fuzz_scan: {rounds} rounds")


if __name__ == "__main__":
    main()
