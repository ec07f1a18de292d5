"""Where a prompt's strings stand, what they are and how many tokens they have, against a plain reader."""

from __future__ import annotations

import json
import random
import sys
from typing import Any, NamedTuple

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from proxy._scan import BadBody, peek
from proxy.bounds import PROMPT_STRINGS_MAX, TEXT_BYTES_INLINE
from proxy.tokens import encoding
from tests.scan.body_oracle import AUDIO_AND_FILES, FOLD, TEXT, Pairs
from tests.scan.test_peek import LEAVES, NAMES, spell

PARTS = ("tools", "functions", "tool_choice", "function_call", "response_format")


class String(NamedTuple):
    kind: str
    text: str
    message: int  # the element of `messages` it stands in


class Strings:
    """The strings of a prompt by the rule of `peek`, from the tree."""

    def __init__(self) -> None:
        self.found: list[String] = []
        self.message = 0

    def image(self, value: object) -> None:
        url, detail = "", "auto"
        if isinstance(value, str):
            url = value
        elif isinstance(value, Pairs):
            for key, inner in value:
                name = key.lower() if key.isascii() else key
                if name == "url" and isinstance(inner, str):
                    url = inner
                elif name == "detail" and isinstance(inner, str):
                    detail = inner if inner in ("auto", "low", "high", "original") else "other"
        if value is not None:
            self.found.append(String(f"image {detail}", url, self.message))

    def walk(self, value: object, kind: str | None, depth: int) -> None:
        """`kind` is what the value's key says of strings; None where they are nothing."""
        if isinstance(value, str) and kind is not None:
            if kind == "name" and depth != 2:
                kind = "function" if depth == 3 else "call"
            self.found.append(String(kind, value, self.message))
        elif isinstance(value, list) and not isinstance(value, Pairs):
            for number, inner in enumerate(value):
                self.message = number if depth == 0 else self.message
                self.walk(inner, kind, depth + 1)
        elif isinstance(value, Pairs):
            for key, inner in value:
                key = key.lower() if key.isascii() else key
                if key == "image_url":
                    self.image(inner)
                elif key not in AUDIO_AND_FILES:
                    known = key if key in ("role", "name", "arguments") else "text" if key in TEXT else None
                    self.walk(inner, known, depth + 1)


def strings_of(body: bytes) -> list[String]:
    strings = Strings()
    for key, value in json.loads(body, object_pairs_hook=Pairs):
        name = key.translate(FOLD)
        strings.message = 0
        if name in ("prompt", "suffix", "input", "instructions"):
            strings.walk(value, "text", 0)
        elif name == "messages":
            strings.walk(value, None, 0)
    return strings.found


def check(body: bytes) -> None:
    """Kinds, places, texts, calls and tokens are the plain reader's."""
    try:
        facts = peek(body)
    except BadBody:
        return
    want = strings_of(body)
    found = [(kind, json.loads(b'"%s"' % body[start:end])) for kind, start, end in facts.strings]
    assert found == [(string.kind, string.text) for string in want], body
    texts = [string.text.encode() for string in want if not string.kind.startswith("image")]
    assert facts.texts(body) == texts, body
    assert [detail for detail, _, _ in facts.image_urls()] == [s.kind[6:] for s in want if s.kind.startswith("image")]
    assert not facts.incomplete
    counter = encoding("o200k_base")
    names = sum(string.kind == "name" for string in want)
    assert facts.count(body, counter) == (sum(map(counter.count, texts)), names), body
    calls = [string for string in want if string.kind == "call"]
    assert facts.count_calls(body, counter, b"f.") == sum(counter.count(b"f." + call.text.encode()) for call in calls)
    roles = [string.text for string in want if string.kind == "role"]
    assert facts.calls(body)[::2] == (
        len(calls),
        len([s for s in want if s.kind == "function"]),
        roles.count("function"),
    )
    assert facts.calls(body)[3] == roles.count("tool"), body
    parts = [getattr(facts, f"{part}_span")[0] for part in PARTS]
    others = facts.images + facts.unread + sum(facts.calls(body)) - facts.calls(body)[1]
    assert facts.plain(body) == (others == 0 and max(parts) < 0), body
    marked = sum(map(counter.count, texts)) + 5 * facts.messages + 7 * names
    assert facts.count_plain(body, counter, 5, 7) == (marked if facts.plain(body) else None), body


def test_spelt_out() -> None:
    """One body with every kind of string, and where each stands."""
    body = json.dumps(
        {
            "messages": [
                {"role": "user", "name": "bob", "content": "h\u00e9"},
                {"content": [{"text": "a"}, {"image_url": {"url": "u", "detail": "low"}}, {"image_url": "v"}]},
                {"role": "assistant", "function_call": {"name": "f", "arguments": "{}"}},
                {
                    "tool_calls": [
                        {"function": {"name": "g", "arguments": "[]"}},
                        {"custom": {"name": "h", "input": "i"}},
                    ]
                },
                {"role": "tool", "content": "t"},
            ],
            "prompt": ["p", "q"],
        }
    ).encode()
    assert strings_of(body) == [
        *(String("role", "user", 0), String("name", "bob", 0), String("text", "h\u00e9", 0)),
        *(String("text", "a", 1), String("image low", "u", 1), String("image auto", "v", 1)),
        *(String("role", "assistant", 2), String("function", "f", 2), String("arguments", "{}", 2)),
        *(String("call", "g", 3), String("arguments", "[]", 3), String("call", "h", 3), String("text", "i", 3)),
        *(String("role", "tool", 4), String("text", "t", 4), String("text", "p", 0), String("text", "q", 1)),
    ]
    check(body)
    assert peek(body).calls(body) == (2, 1, 1, 1, 0)


KEYS = st.sampled_from(
    [
        *("role", "name", "content", "text", "arguments", "function_call", "function", "tool_calls", "custom", "input"),
        *("image_url", "url", "detail", "file", "input_audio", "Name", "x", "\u017f"),
    ]
)
WORDS = st.sampled_from(
    ["user", "system", "tool", "function", "low", "high", "auto", "original", "", "\ud83c\udf89"[:0]]
)
TREES = st.recursive(
    LEAVES | WORDS,
    lambda inner: st.lists(inner, max_size=4) | st.lists(st.tuples(KEYS, inner), max_size=4).map(Pairs),
    max_leaves=16,
)
MESSAGES = st.lists(st.lists(st.tuples(KEYS, TREES), max_size=5).map(Pairs), max_size=4)


@given(MESSAGES, st.integers(0, 2**32))
@example([Pairs([("image_url", Pairs([("detail", "low"), ("detail", 1), ("url", "a"), ("url", "b")]))])], 0)
@example([Pairs([("role", "tool"), ("role", ["tool"]), ("name", ["a", Pairs([("name", "b")])])])], 0)
def test_made_messages(messages: list[Pairs], seed: int) -> None:
    """Messages of any shape, with doubles, escapes and spaces."""
    check(spell(Pairs([("messages", messages)]), random.Random(seed)).encode())


@given(st.lists(st.tuples(NAMES | st.sampled_from(PARTS), TREES), max_size=6), st.integers(0, 2**32))
def test_made_bodies(members: list[tuple[str, object]], seed: int) -> None:
    """Bodies of any shape, and the spans of the values that are wanted whole."""
    body = spell(Pairs(members), random.Random(seed)).encode()
    check(body)
    try:
        facts = peek(body)
    except BadBody:
        return
    last = {key.translate(FOLD): value for key, value in json.loads(body, object_pairs_hook=Pairs)}
    for part in PARTS:
        start, end = getattr(facts, f"{part}_span")
        assert (start >= 0) == (part in last), body
        if start >= 0:
            assert json.loads(body[start:end], object_pairs_hook=Pairs) == last[part], body


@given(st.text(st.characters(exclude_categories=()), max_size=40), st.booleans())
def test_surrogates_are_refused_or_paired(text: str, ascii_only: bool) -> None:
    """What a lone surrogate would mean is never counted: such a body is refused, as orjson refuses it."""
    body = json.dumps({"prompt": text}, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    try:
        want = orjson.loads(body)["prompt"]
    except orjson.JSONDecodeError:
        with pytest.raises(BadBody):
            peek(body)
        return
    assert peek(body).texts(body) == [want.encode()]
    check(body)


@pytest.mark.parametrize("filler", ["plain words ", 'quoted "words"\n', "\u00e9\U0001f389", "\x01"])
@pytest.mark.parametrize("size", [0, 1, 2047, 2048, 2049, 5000, TEXT_BYTES_INLINE, 3 * TEXT_BYTES_INLINE])
def test_lengths(filler: str, size: int) -> None:
    """Strings around the lengths at which the way of counting changes, with and without escapes."""
    text = (filler * (size // len(filler) + 1))[:size]
    for ascii_only in (True, False):
        check(json.dumps({"messages": [{"role": "user", "content": text}]}, ensure_ascii=ascii_only).encode())
        check(
            json.dumps({"messages": [{"tool_calls": [{"function": {"name": text}}]}]}, ensure_ascii=ascii_only).encode()
        )


def test_a_system_message_is_found() -> None:
    """The last text of the first message in that role, in whatever order its keys stand, is what a line end joins."""
    cases: list[tuple[list[dict[str, Any]], bytes | None]] = [
        ([], None),
        ([{"role": "user", "content": "a"}], None),
        ([{"content": "a", "role": "system"}, {"role": "system", "content": "b"}], b"a"),
        ([{"content": "u", "role": "user"}, {"content": [{"text": "a"}, {"text": "b"}], "role": "developer"}], b"b"),
        ([{"role": "system"}, {"role": "user", "content": "a"}], None),
        ([{"role": "system"}, {"content": "a"}, {"role": "system", "content": "\n"}], b"\n"),
    ]
    for messages, want in cases:
        body = json.dumps({"messages": messages}).encode()
        for counter in map(encoding, ("cl100k_base", "o200k_base")):
            joined = None if want is None else counter.count(want + b"\n") - counter.count(want)
            assert peek(body).count_line_end(body, counter) == joined, messages


def test_calls_of_one_message_are_told_from_those_of_two() -> None:
    """Messages with more than one call are counted, whatever stands beside the calls."""
    call = {"function": {"name": "f", "arguments": "{}"}}
    for messages, parallel in (
        ([{"tool_calls": [call]}, {"tool_calls": [call], "role": "assistant"}], 0),
        ([{"tool_calls": [call, call, call]}, {"role": "tool", "content": ""}, {"tool_calls": [call, call]}], 2),
    ):
        body = json.dumps({"messages": messages}).encode()
        assert peek(body).calls(body)[1] == parallel


def test_parts_that_are_neither_text_nor_image() -> None:
    """Audio and files are counted as parts, not as text."""
    body = json.dumps({"messages": [{"content": [{"file": {"file": "x"}}, {"input_audio": {"data": "y"}}]}]}).encode()
    assert (peek(body).unread, peek(body).strings) == (2, [])


def test_what_is_not_known_is_unread() -> None:
    """Keys that nobody knows are noticed where they hold something; what SDKs send back of an answer is known."""
    said = {"role": "assistant", "content": "hi", "refusal": None, "annotations": [], "audio": None, "tool_calls": None}
    for known in (
        said,
        {
            "role": "tool",
            "tool_call_id": "1",
            "content": [{"type": "text", "text": "a", "cache_control": {"type": "e"}}],
        },
        {"role": "assistant", "tool_calls": [{"id": "1", "type": "custom", "custom": {"name": "a", "input": "b"}}]},
        {"prefix": True, "weight": 1, "thinking": "", "file": None, "input_audio": {}, "documents": []},
    ):
        assert peek(json.dumps({"messages": [known]}).encode()).unread == 0, known
    for strange in (
        {"content": [{"type": "video_url", "video_url": {"url": "v"}}]},
        {"content": [{"type": "thinking", "thinking": "hm"}]},
        {"audio": {"id": "1"}},
        {"documents": ["a"]},
    ):
        assert peek(json.dumps({"messages": [strange]}).encode()).unread > 0, strange
    assert peek(b'{"messages":[{"documents": [ \n]}],"web_search_options":null}').unread == 0
    assert peek(b'{"messages":[],"web_search_options":{}}').unread == 1


STRING, CALL, IMAGE, JSON, TOOL, TOOLS = 8, 32, 2048, 4, 6, 1024  # WEIR_COST_ in _prompt.h


def test_what_a_count_costs() -> None:
    """Every part of a prompt is charged, an empty one too: none may be long, or many, without being noticed."""
    call = {"function": {"name": "nn", "arguments": "aaa"}}
    system = {"role": "system", "content": "no way in here" + "x" * 50}
    calls = 2 * (STRING + 2 + STRING + 3)
    for body, text, more, tools in (
        ({"messages": [{"role": "r" * 500, "content": "c" * 70}]}, 570 + 2 * STRING, 0, 0),
        ({"messages": [{"role": "", "content": ""}] * 30}, 60 * STRING, 0, 0),
        ({"messages": [{"tool_calls": [call, call]}]}, calls, 2 * (2 + CALL), 0),
        ({"messages": [{"content": [{"image_url": {"url": "u" * 9000}}] * 3}]}, 0, 3 * IMAGE, 0),
        ({"prompt": "p", "response_format": "f", "tool_choice": "n" * 9}, 1 + STRING, JSON * (3 + 11), 0),
        ({"tools": ["t" * 96]}, 0, 0, TOOL * 100 + TOOLS),
        ({"tools": [], "functions": ["t"]}, 0, 0, TOOL * 2 + TOOL * 5 + 2 * TOOLS),
        ({"messages": [system], "tools": []}, 70 + 2 * STRING, 55, TOOL * 2 + TOOLS),
        ({"model": "m" * 90, "metadata": "n" * 99}, 0, 0, 0),
    ):
        raw = json.dumps(body, separators=(",", ":")).encode()
        facts = peek(raw)
        assert (facts.text_cost, facts.cost(raw), facts.tools_cost) == (text, text + more, tools), body


def test_which_prompts_a_body_has() -> None:
    """By their keys, as they are folded, and how their values begin; null is none, and the last of two counts."""
    for body, want in (
        (b'{"messages":[],"prompt":null,"input":1}', {"messages": "[", "input": "1"}),
        (b'{"Prompt": "a","suffix":"b","instructions":"c"}', {"prompt": '"'}),
        (b'{"input":"a","input":null}', {}),
        (b'{"input":null,"inpu\\u0074": [1]}', {"input": "["}),
        (b'{"messages":-1,"inputs":"a","promp":"b"}', {"messages": "-"}),
    ):
        assert peek(body).prompts == want


def test_too_many_strings() -> None:
    """Beyond the bound the rest is not noted, the memory stays bounded, and the facts say so."""
    for count in (PROMPT_STRINGS_MAX, PROMPT_STRINGS_MAX + 1, 3 * PROMPT_STRINGS_MAX):
        body = json.dumps({"input": ["a"] * count}).encode()
        facts = peek(body)
        assert facts.incomplete == (count > PROMPT_STRINGS_MAX)
        assert len(facts.strings) == min(count, PROMPT_STRINGS_MAX)
        assert facts.text_bytes == count
        assert facts.count(body, encoding("cl100k_base")) == (min(count, PROMPT_STRINGS_MAX), 0)
        assert sys.getsizeof(facts) < 8 * PROMPT_STRINGS_MAX + 2000


def test_facts_of_another_body() -> None:
    """A body of another length is refused: its strings would be read past its end."""
    facts = peek(b'{"prompt":"aaaaaaaa"}')
    for other in (b'{"prompt":"a"}', b"", b'{"prompt":"aaaaaaaaa"}', b'{"prompt":"aaaaaaaa"]'):
        counts = (
            lambda body, count=count: count(body, encoding("o200k_base"))
            for count in (facts.count, facts.count_line_end)
        )
        for ask in (facts.texts, facts.calls, facts.cost, *counts):
            with pytest.raises(ValueError):
                ask(other)
