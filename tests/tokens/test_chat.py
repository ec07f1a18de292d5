"""Prompt tokens of whole requests, by the path that admits them, against what providers documented and recorded.

`tests/vectors/chat` holds the requests, each file with its source. `error` is what Weir counts too many: 0 wherever the
arithmetic is documented, and stated where it is not.
"""

from __future__ import annotations

import json
import random
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy._scan import peek
from proxy.bounds import IMAGES_READ_MAX, PROMPT_STRINGS_MAX
from proxy.tokens import chat, encoding, families
from proxy.tokens.estimate import TOKENS_PER_IMAGE
from tests.scan.test_peek import Pairs, spell
from tests.tokens import oracle

VECTORS = Path(__file__).parents[1] / "vectors" / "chat"
FILES = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(VECTORS.glob("*.json"))}
CASES = [pytest.param(case, id=f"{name}: {case['id']}") for name, file in FILES.items() for case in file["cases"]]


def tokens(request: object, endpoint: str = "chat.completions", model: str = "") -> tuple[int, str]:
    """Counts a request, or its text, as admission does: peek, then the arithmetic."""
    body = request if isinstance(request, bytes) else json.dumps(request).encode()
    facts = peek(body)
    family = families.find(model or facts.model or "")
    assert family is not None
    return chat.prompt_tokens(family, encoding(family.encoding), body, facts, endpoint, "acme")


def pairs(value: object) -> object:
    """Objects as lists of their members, so that `spell` writes them."""
    if isinstance(value, dict):
        return Pairs((key, pairs(inner)) for key, inner in value.items())
    return [pairs(inner) for inner in value] if isinstance(value, list) else value


@pytest.mark.parametrize("case", CASES)
def test_vectors(case: dict[str, Any]) -> None:
    """The true figure, but for the stated error, however the request is spelt."""
    request = case["request"]
    want = (case["prompt_tokens"] + case["error"], case["says"])
    compact = json.dumps(request, ensure_ascii=False, separators=(",", ":")).encode()
    for body in (compact, json.dumps(request, indent=2).encode()):
        assert tokens(body, case["endpoint"]) == want
    if "tools" not in request and "functions" not in request and "response_format" not in request:
        for seed in range(3):
            assert tokens(spell(pairs(request), random.Random(seed)).encode(), case["endpoint"]) == want


def test_vectors_are_honest() -> None:
    """There are enough of them, every file names its source, and what is called counted has no error."""
    assert {name: len(file["cases"]) for name, file in FILES.items()} == {
        "cookbook": 12,
        "forum": 3,
        "hmarr": 19,
        "pamelafox": 44,
        "pydantic": 17,
        "reference": 6,
        "ruby_llm": 4,
    }
    counted = 0
    for file in FILES.values():
        assert len(file["about"]) > 40
        for case in file["cases"]:
            if case["says"] == "counted":
                assert case["error"] == 0, case["id"]
                counted += 1
    assert counted == 97


@cache
def count(name: str, text: str) -> int:
    return oracle.count(name, text)


ROLES = st.sampled_from(["system", "user", "assistant", "developer"])
TEXTS = st.text(st.characters(exclude_categories=("Cs",)), max_size=40) | st.sampled_from(
    ["", "\n", "  a", "<|im_end|>"]
)
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": ROLES, "content": TEXTS}, optional={"name": st.text("abc_-", min_size=1, max_size=9)}
    ),
    max_size=6,
)


@given(MESSAGES, st.sampled_from(["gpt-4", "gpt-4o", "o3-mini", "gpt-3.5-turbo-0301"]), st.integers(0, 2**32))
def test_messages_by_the_cookbook(messages: list[dict[str, str]], model: str, seed: int) -> None:
    """Any messages have what the cookbook's loop gives with tiktoken itself, and so does the text in parts."""
    family = families.find(model)
    assert family is not None
    assert family.chat is not None
    name = "cl100k_base" if family.encoding == "cl100k_base" else "o200k_base"
    want = family.chat.primer
    for message in messages:
        want += family.chat.message + sum(count(name, text) for text in message.values())
        want += family.chat.name if "name" in message else 0
    request = {"model": model, "messages": messages}
    assert tokens(spell(pairs(request), random.Random(seed)).encode()) == (max(0, want), "counted")
    parts = [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in messages]
    assert tokens({"model": model, "messages": parts}) == (max(0, want), "counted")


@given(st.lists(TEXTS, max_size=5))
def test_plain_text(texts: list[str]) -> None:
    """Prompts and inputs cost their tokens, alone or in an array."""
    want = sum(count("cl100k_base", text) for text in texts)
    assert tokens({"prompt": texts}, "completions", "gpt-3.5-turbo-instruct") == (want, "counted")
    assert tokens({"input": texts}, "embeddings", "text-embedding-3-small") == (want, "counted")
    for text in texts[:1]:
        one = (count("cl100k_base", text), "counted")
        assert tokens({"prompt": text}, "completions", "gpt-3.5-turbo-instruct") == one
        assert tokens({"input": text}, "embeddings", "text-embedding-3-small") == one


def test_token_arrays() -> None:
    """Prompts given as ids have as many tokens as ids, nested or not."""
    assert tokens({"prompt": [1, 2, 3]}, "completions", "gpt-3.5-turbo-instruct") == (3, "counted")
    assert tokens({"input": [[1, 2], [3], []]}, "embeddings", "text-embedding-3-large") == (3, "counted")


HELLO = {"role": "user", "content": "hello"}
IMAGE = {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}


@pytest.mark.parametrize(
    ("model", "more", "added"),
    [
        ("gpt-4o", {"messages": [{"role": "user", "content": [IMAGE]}]}, None),
        ("gpt-4o", {"messages": [HELLO], "response_format": {"type": "json_object"}}, None),
        ("gpt-4o", {"messages": [HELLO], "response_format": "x"}, None),
        ("gpt-4o", {"messages": [HELLO, {"content": [{"input_audio": {"data": "UklGR", "format": "wav"}}]}]}, 3),
        ("gpt-4o", {"messages": [HELLO, {"content": [{"type": "file", "file": {"file_data": "JVBER"}}]}]}, 3),
        ("gpt-4o", {"messages": [HELLO, {"content": [{"type": "video_url", "video_url": {"url": "v"}}]}]}, 3),
        ("gpt-4o", {"messages": [HELLO, {"role": "assistant", "audio": {"id": "a"}}]}, 3 + 1),
        ("gpt-4o", {"messages": [HELLO], "web_search_options": {}}, 0),
        ("gpt-4o", {"messages": [HELLO], "tools": "x"}, None),
        ("gpt-4o", {"messages": [HELLO, {"role": "tool", "content": ""}]}, 3 + 1 + 2),
        ("gpt-5", {"messages": [HELLO], "tools": [{"type": "function", "function": {"name": "f"}}]}, None),
        ("gpt-oss-20b", {"messages": [HELLO]}, 61 - 1),
        ("gpt-3.5-turbo-instruct", {"messages": [HELLO]}, None),
    ],
)
def test_what_is_not_documented_is_estimated(model: str, more: dict[str, Any], added: int | None) -> None:
    """A part without documented arithmetic makes the whole an estimate, and never fails."""
    found, says = tokens({"model": model, **more})
    assert says == "estimated"
    assert found > 0
    if added is not None:
        assert found == 8 + added


def test_what_adds_nothing() -> None:
    """Null and empty parts, and plain text as the format, are no parts."""
    for more in (
        {"tools": None, "functions": [], "response_format": None, "tool_choice": "auto"},
        {"response_format": {"type": "text"}, "temperature": 1},
        {"tools": [], "functions": None},
    ):
        assert tokens({"model": "gpt-4o", "messages": [HELLO], **more}) == (8, "counted")


def test_images() -> None:
    """A remote image counts as the worst case, details as the family has them, and too many are not looked at."""

    def of(model: str, *parts: object) -> tuple[int, str]:
        found, says = tokens({"model": model, "messages": [{"role": "user", "content": list(parts)}]})
        bare, _ = tokens({"model": model, "messages": [{"role": "user", "content": []}]})
        return found - bare, says

    low = {"image_url": {"url": "https://example.com/a.png", "detail": "low"}}
    assert of("gpt-4o", IMAGE) == (1445, "estimated")
    assert of("gpt-4o", low, low) == (170, "counted")
    assert of("gpt-4o", {"image_url": {"url": "x", "detail": "finest"}}) == (1445, "estimated")
    assert of("gpt-4o", {"image_url": 5}) == (1445, "estimated")
    assert of("gpt-5.6", IMAGE) == (12_000, "estimated")
    assert of("gpt-oss-20b", IMAGE) == (TOKENS_PER_IMAGE, "estimated")
    assert of("gpt-4o", *[low] * IMAGES_READ_MAX) == (85 * IMAGES_READ_MAX, "counted")
    assert of("gpt-4o", *[low] * (IMAGES_READ_MAX + 1)) == (1445 * (IMAGES_READ_MAX + 1), "estimated")


def test_too_many_strings_are_estimated() -> None:
    """Beyond the bound the count is not whole, and says so."""
    found, says = tokens({"input": ["a"] * (PROMPT_STRINGS_MAX + 1)}, "embeddings", "text-embedding-3-small")
    assert (found, says) == (PROMPT_STRINGS_MAX, "estimated")


WORDS = st.text(st.sampled_from(list("ab Z9.:\n\r\t\u00e9\u4f60'")), max_size=60)


@given(WORDS, st.integers(0, 1500), st.booleans(), st.sampled_from(["o200k_base", "cl100k_base"]))
def test_only_the_tail_of_a_system_message_is_read_twice(text: str, filler: int, ascii_only: bool, name: str) -> None:
    """What a line feed adds to a system message depends on its last words alone, and can be found from them."""
    whole = "some words " * (filler // 11) + text
    messages = [{"role": "system", "content": whole}]
    body = json.dumps({"messages": messages}, ensure_ascii=ascii_only).encode()
    facts = peek(body)
    assert facts.count_line_end(body, encoding(name)) == count(name, whole + "\n") - count(name, whole)
    said = {"messages": messages, "tools": []}
    again = json.dumps(said, ensure_ascii=ascii_only).encode()
    words = json.dumps(text, ensure_ascii=ascii_only)
    assert peek(again).cost(again) - facts.cost(body) <= len(words.encode()) + len("some words ")


def test_the_same_tools_are_counted_once() -> None:
    """An agent's second call finds its tools counted, with the same result."""
    function = {"name": "look", "description": f"Looks {random.random()}", "parameters": {"type": "object"}}
    request = {"model": "gpt-4o", "messages": [HELLO], "tools": [{"type": "function", "function": function}]}
    before = len(chat._cache)
    first = tokens(request)
    assert len(chat._cache) == before + 1
    assert tokens(request) == first
    assert len(chat._cache) == before + 1
