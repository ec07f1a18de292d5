"""An answer has the tokens of its texts, each by itself, however it is cut; what is not counted is said."""

from __future__ import annotations

import json
import random
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy import tokens
from proxy._scan import AnswerCounter, Frames, read_answer
from tests.scan.said_oracle import Said, heard
from tests.tokens import oracle

O200K, CL100K = "o200k_base", "cl100k_base"
WORDS = (
    *(
        "A weir stands",
        " in a stream,",
        " measures it",
        "\n\n",
        "   ",
        "don't",
        "I'LL",
        "HTTPServer",
        " naïve",
        "x" * 40,
    ),
    *(
        "敏捷的棕色狐狸",
        "こんにちは。",
        " Привет",
        "مرحبا",
        "नमस्ते",
        "🎉",
        "👩‍👩‍👧‍👦",
        "🇬🇧",
        "e\u0301",
        "\u200d",
        "1234567",
        "\r\n",
    ),
    *('{"city":"Paris"}', "\\n", '"', "\t", "\u2028", "\x00", "<|endoftext|>", "=" * 70, "/* */", "\ufffd"),
)


def frame(**choice: object) -> bytes:
    return chunk([choice])


def chunk(choices: object, ascii_only: bool = True, **more: object) -> bytes:
    return b"data: " + json.dumps({"choices": choices, **more}, ensure_ascii=ascii_only).encode() + b"\n\n"


def counter(name: str = O200K) -> AnswerCounter:
    return AnswerCounter(tokens.encoding(name))


def counted(made: AnswerCounter) -> int:
    """The tokens after the last look, all of them counted."""
    made.look(True)
    assert (made.backlog, made.rest, made.estimated) == (0, 0, False)
    return made.tokens


def text(chance: random.Random, words: int) -> str:
    return "".join(chance.choice(WORDS) for _ in range(words))


def deltas(chance: random.Random, whole: str) -> list[str]:
    """A text in pieces cut between UTF-16 units, as JavaScript cuts: surrogates may come apart."""
    units = whole.encode("utf-16-le")
    at = sorted(2 * chance.randrange(len(units) // 2 + 1) for _ in range(len(units) // 6))
    return [units[a:b].decode("utf-16-le", "surrogatepass") for a, b in pairwise([0, *at, len(units)])]


def said_in(chance: random.Random, kind: str, delta: str, call: int) -> dict[str, Any]:
    """One delta of a kind of text, in one of the shapes in which it comes."""
    match kind:
        case "call":
            key, inner = chance.choice((("function", "arguments"), ("custom", "input")))
            named = {"name": chance.choice(WORDS)} if chance.random() < 0.1 else {}
            return {"tool_calls": [{"index": call, key: {inner: delta, **named}}]}
        case "function_call":
            return {kind: {"arguments": delta}}
        case "reasoning":
            names = chance.choice((("reasoning_content",), ("reasoning",), ("reasoning_content", "reasoning")))
            return dict.fromkeys(names, delta)
        case "parts":
            half = len(delta) // 2
            return {"content": [{"type": "text", "text": delta[:half]}, {"type": "text", "text": delta[half:]}]}
        case "thinking":
            return {"content": [{"type": "thinking", "thinking": [{"type": "text", "text": delta}]}]}
    return {kind: delta}


def made_stream(chance: random.Random, words: int) -> list[bytes]:
    """Frames of one answer with several texts that come by turns."""
    kinds = ("content", "refusal", "call", "reasoning", "function_call", "parts", "thinking")
    texts = []
    for choice in range(chance.choice((1, 1, 2, 3))):
        for kind in chance.sample(kinds, chance.choice((1, 1, 2))):
            for call in range(chance.randrange(1, 3) if kind == "call" else 1):
                texts.append((choice, kind, call, deltas(chance, text(chance, words))[::-1]))
    frames = [b": hello\n\n"]
    while texts:
        turn = chance.choice(texts)
        choice, kind, call, left = turn
        if not left:
            texts.remove(turn)
            continue
        spoken = {"delta": said_in(chance, kind, left.pop(), call), "index": choice, "finish_reason": None}
        if chance.random() < 0.5:  # the index first, as OpenAI has it
            spoken = {"index": spoken.pop("index"), **spoken}
        raw = chunk([spoken], usage=None)
        if chance.random() < 0.3 and b"\\ud" not in raw:
            raw = chunk([spoken], ascii_only=False, usage=None)
        frames.append(raw)
        if chance.random() < 0.05:  # neither of these says anything
            frames.append(chance.choice((raw[:-4] + b"\n\n", b'data: {"choices":[],"usage":{"prompt_tokens":1}}\n\n')))
    return [*frames, b"data: [DONE]\n\n"]


@pytest.mark.parametrize("encoding", [O200K, CL100K])
def test_made_streams(encoding: str) -> None:
    """After each frame the count is tiktoken's for the texts so far, each of them joined."""
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    for _ in range(12):
        frames = made_stream(chance, 12)
        made = counter(encoding)
        scanner = Frames(made)
        for number, one in enumerate(frames, 1):
            scanner.feed(one)
            made.look(False)
            if chance.random() < 0.3:
                assert (made.tokens, made.estimated) == (heard(frames[:number]).tokens(encoding), False), seed
        assert counted(made) == heard(frames).tokens(encoding), seed


@pytest.mark.parametrize("way", ["feed", "take"])
def test_cut_at_every_byte(way: str) -> None:
    """Cuts change nothing, with hiding or without; nor does it matter how often one looks."""
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    frames = made_stream(chance, 3)
    frames.insert(2, chunk([], usage={"prompt_tokens": 3, "completion_tokens": 4}))
    stream = b"".join(frames)
    want = heard(frames).tokens(O200K)
    for at in range(len(stream) + 1):
        made = counter()
        scanner = Frames(made)
        for piece in (stream[:at], stream[at:]):
            getattr(scanner, way)(piece)
            if chance.random() < 0.5:
                made.look(False)
        scanner.rest()
        assert counted(made) == want, (seed, at)


def test_a_last_frame_without_its_end() -> None:
    """What the stream's end leaves counts when it can be read, as the SDKs read it; a torn frame says nothing."""
    whole, last = frame(delta={"content": "A weir"}), frame(delta={"content": " stands"})
    for cut, want in ((2, [whole, last]), (5, [whole])):
        made = counter()
        scanner = Frames(made)
        scanner.feed(whole + last[:-cut])
        scanner.rest()
        assert counted(made) == heard(want).tokens(O200K)


def test_surrogates_meet_across_frames() -> None:
    """The halves of a pair may come in two deltas of one text; in two texts they are two lone ones."""
    high, low = b"\\ud83c", b"\\udf89"
    raw = b'data: {"choices":[{"index":%d,"delta":{"content":"%b"}}]}\n\n'
    for second, want in ((0, oracle.count(O200K, "🎉")), (1, 2 * oracle.count(O200K, "\ufffd"))):
        made = counter()
        Frames(made).feed(raw % (0, high) + raw % (second, low))
        assert counted(made) == want


def test_texts_do_not_touch() -> None:
    """Words that would be one token beside each other are two in two choices, calls or kinds."""
    one = oracle.count(O200K, "weir")
    for first, second in (
        ({"index": 0, "delta": {"content": "we"}}, {"index": 1, "delta": {"content": "ir"}}),
        ({"delta": {"content": "we"}}, {"delta": {"refusal": "ir"}}),
        ({"delta": {"content": "we"}}, {"delta": {"reasoning": "ir"}}),
        ({"delta": {"tool_calls": [{"index": 0, "function": {"name": "we"}}]}},
         {"delta": {"tool_calls": [{"index": 1, "function": {"name": "ir"}}]}}),
        ({"delta": {"tool_calls": [{"index": 0, "function": {"name": "we"}}]}},
         {"delta": {"tool_calls": [{"index": 0, "function": {"arguments": "ir"}}]}}),
    ):  # fmt: skip
        for frames in ([chunk([first]), chunk([second])], [chunk([first, second])]):
            made = counter()
            Frames(made).feed(b"".join(frames))
            apart = first.keys() == second.keys() or len(frames) == 2
            assert counted(made) == heard(frames).tokens(O200K)
            assert made.lanes == 2 or not apart
    joined = counter()
    Frames(joined).feed(frame(delta={"content": "we"}) + frame(delta={"content": "ir"}))
    assert counted(joined) == one


@pytest.mark.parametrize("index", [7, 0, None, -1, 1.0, "1", True, 2**24 - 1, 2**24, 2**41, 10**30, [], {}])
def test_indexes(index: object) -> None:
    """An index is taken wherever it stands in its object; what is none leaves the element's place."""
    call = {"function": {"name": "f", "arguments": "{}"}, "index": index}
    choices: list[dict[str, Any]] = [
        {"delta": {"content": "we"}, "index": 0},
        {"delta": {"content": "ir", "tool_calls": [call, call]}},
    ]
    choices[1]["index"] = index
    made = counter()
    frames = [chunk(choices), chunk(choices[1:]), chunk(choices[::-1])]
    Frames(made).feed(b"".join(frames))
    assert counted(made) == heard(frames).tokens(O200K)
    assert made.lanes == len(heard(frames).texts)


@pytest.mark.parametrize(
    "raw",
    [
        b'{"choices":[{"delta":{"content":"a weir","content":"stands"}}]}',
        b'{"choices":[{"delta":{"content":"a weir","refusal":"in","content":null}}]}',
        b'{"choices":[{"delta":{"content":"a weir"},"delta":{"content":"in a stream"}}]}',
        b'{"choices":[{"delta":{"content":"a weir"}}],"choices":[{"text":"it"}]}',
        b'{"choices":[{"delta":{"content":"a weir"}}],"choices":null}',
        b'{"choices":[{"delta":{"reasoning":"one","reasoning":"two, three","reasoning_content":"four five"}}]}',
        b'{"choices":[{"delta":{"tool_calls":[{"function":{"name":"a","arguments":"b","name":"c"}}]}}]}',
        b'{"choices":[{"delta":{"tool_calls":[{"index":1,"function":{"name":"a"},"function":{},"index":2}]}}]}',
        b'{"choices":[{"delta":{"content":[{"text":"one","thinking":"two","text":["three",{"text":"four"}]}]}}]}',
    ],
)
def test_the_last_of_two_equal_keys_counts(raw: bytes) -> None:
    """As Python's json and the SDKs have it."""
    said = Said()
    said.hear(json.loads(raw))
    made = counter()
    scanner = Frames(made)
    scanner.feed(b"data: " + raw + b"\n\n")
    assert counted(made) == said.tokens(O200K)
    assert scanner.text_bytes == sum(len(text.encode()) for lane, text in said.texts.items() if lane[-1] != "name")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 3) | st.text(max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["content", "text", "thinking", "function", "name", "arguments", "index", "x"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)
MESSAGES = st.dictionaries(
    st.sampled_from(["content", "refusal", "reasoning", "reasoning_content", "tool_calls", "function_call", "x"]),
    VALUES,
)
CHOICES = st.lists(
    st.dictionaries(st.sampled_from(["delta", "message", "text", "index", "x"]), MESSAGES | VALUES) | VALUES, max_size=3
)


@given(st.lists(CHOICES | VALUES, max_size=4), st.booleans())
def test_made_answers(answers: list[Any], whole: bool) -> None:
    """Objects of any shape, as frames or whole, say what the plain reader hears."""
    made = counter()
    scanner = Frames(made)
    said = Said()
    for choices in answers:
        said.hear({"choices": choices})
        if whole:
            read_answer(json.dumps({"choices": choices}).encode(), made)
        else:
            scanner.feed(chunk(choices))
    assert counted(made) == said.tokens(O200K)


def test_a_whole_answer() -> None:
    """A whole answer is counted when it has no usage; what is no JSON has an unknown text."""
    answer = {"choices": [{"index": 0, "message": {"role": "assistant", "content": "A weir stands in a stream."}}]}
    usage = {"prompt_tokens": 1, "completion_tokens": 9}
    made = counter()
    read_answer(json.dumps(answer).encode(), made)
    assert counted(made) == oracle.count(O200K, "A weir stands in a stream.")
    made = counter()
    read_answer(json.dumps({**answer, "usage": usage}).encode(), made)
    assert counted(made) == 0
    read_answer(b"{", made)
    assert made.estimated


def test_misuse_is_refused() -> None:
    """There is no counter without an encoding; a scanner takes a counter or none."""
    with pytest.raises(TypeError):
        AnswerCounter.__new__(AnswerCounter)
    with pytest.raises(TypeError):
        AnswerCounter(None)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        Frames(3)  # type: ignore[arg-type]
