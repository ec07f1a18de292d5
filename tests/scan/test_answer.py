"""A whole JSON answer is read for its usage, its model and its text."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy._scan import read_answer
from proxy.bounds import JSON_DEPTH_MAX
from tests.scan import sse_oracle

USAGE = {"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13, "prompt_tokens_details": {"cached_tokens": 3}}
CALL = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}

CASES: list[tuple[dict[str, Any], Any]] = [
    ({}, (None, "", 0)),
    (
        {"model": "m", "choices": [{"message": {"role": "assistant", "content": "Grüße"}}], "usage": USAGE},
        ((9, 3, 4, 0, 0), "m", 7),
    ),
    ({"choices": [{"message": {"content": None, "refusal": "no", "tool_calls": [CALL]}}]}, (None, "", 2 + 7)),
    ({"choices": [{"text": "Once"}, {"text": " upon"}], "usage": None}, (None, "", 9)),
    (
        {"object": "list", "data": [{"embedding": [0.1, -2e-5]}], "usage": {"prompt_tokens": 8, "total_tokens": 8}},
        ((8, 0, 0, 0, 0), "", 0),
    ),
    ({"usage": {"prompt_tokens": -8}}, (None, "", 0)),
    ({"choices": [{"message": {"content": '"usage":{"prompt_tokens":1}'}}]}, (None, "", 27)),
    ({"error": {"message": "x"}, "model": None}, (None, "", 0)),
]


@pytest.mark.parametrize(("answer", "want"), CASES)
def test_answers(answer: dict[str, Any], want: Any) -> None:
    """The shapes of chat, completions, embeddings and errors, compact, indented and escaped."""
    for text in (json.dumps(answer), json.dumps(answer, indent=2), json.dumps(answer, ensure_ascii=False)):
        assert read_answer(text.encode()) == want


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b"null", b"{", b'{"model":"m"} x', b'{"model":"m",}', b"<html>", b'{"usage":{"prompt_tokens":1}'],
)
def test_no_answer(body: bytes) -> None:
    """What is no JSON object says nothing, even where its beginning would."""
    assert read_answer(body) == (None, "", 0)


def test_deep_answer() -> None:
    """Nesting above the bound ends the reading, without recursion."""
    for levels, model in ((JSON_DEPTH_MAX - 1, "m"), (1_000_000, "")):
        assert read_answer(b'{"model":"m","x":' + b"[" * levels + b"]" * levels + b"}")[1] == model


TREES = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 50) | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["message", "content", "refusal", "text", "prompt_tokens", "completion_tokens", "reasoning", "x"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=10,
)
MESSAGES = st.dictionaries(
    st.sampled_from(["content", "refusal", "reasoning", "reasoning_content", "x"]), st.text(max_size=5)
)
CHOICES = st.lists(st.dictionaries(st.sampled_from(["message", "delta", "index"]), MESSAGES, max_size=3), max_size=3)
FIGURES = st.dictionaries(
    st.sampled_from(["prompt_tokens", "completion_tokens", "prompt_tokens_details", "completion_tokens_details"]),
    st.none()
    | st.integers(-1, 9)
    | st.dictionaries(st.sampled_from(["cached_tokens", "reasoning_tokens"]), st.integers(0, 9)),
)
ANSWERS = st.fixed_dictionaries(
    {},
    optional={
        "choices": CHOICES,
        "usage": FIGURES | st.none(),
        "model": st.text(max_size=9),
        "x": TREES,
        "error": TREES,
    },
)


@given(ANSWERS, st.booleans())
def test_made_answers(answer: dict[str, Any], ascii_only: bool) -> None:
    """Made answers give what the plain reader finds."""
    usage = answer.get("usage")
    want = (
        sse_oracle.figures(usage) if usage is not None else None,
        answer.get("model", ""),
        sse_oracle.text_bytes(answer),
    )
    assert read_answer(json.dumps(answer, ensure_ascii=ascii_only).encode()) == want
