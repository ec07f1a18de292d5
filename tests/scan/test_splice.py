"""An edit of the body changes the bytes it is about and no others."""

from __future__ import annotations

import json
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy._scan import BadBody, Peek, peek, with_model, with_usage
from tests.scan.body_oracle import Pairs

MODEL = b'"other-model"'
OPTIONS = [
    None,
    "null",
    "{}",
    "{ }",
    '{"include_usage":true}',
    '{"include_usage" : false}',
    '{"x":[1],"include_usage":null}',
    '{"include_obfuscation":false}',
    ' {\n "x" : {"include_usage":true} } ',
]


def pairs(body: bytes) -> Pairs:
    return Pairs(json.loads(body, object_pairs_hook=Pairs))


def bodies() -> list[bytes]:
    """Every kind of stream_options before, after and between other keys, compact and spaced."""
    found = []
    for options, place, space in product(OPTIONS, range(3), ("", " ")):
        members = ['"model":"a\\u0062c"', f'"messages"{space}:{space}[{{"content":"stream_options"}}]']
        if options is not None:
            members.insert(place, f'"stream_options":{options}')
        found.append(f"{space}{{{space}{f'{space},'.join(members)}{space}}}{space}\n".encode())
    return [*found, b"{}", b"{ }\r\n", b'{"stream_options":null}', b'{"model":"m"}']


def common(a: bytes, b: bytes) -> tuple[int, int]:
    """How many bytes both begin with, and of the rest, end with."""
    head = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    tail, room = 0, min(len(a), len(b)) - head
    while tail < room and a[-1 - tail] == b[-1 - tail]:
        tail += 1
    return head, tail


@pytest.mark.parametrize("body", bodies())
def test_usage_is_asked_for(body: bytes) -> None:
    """include_usage becomes true, every other member stays, and all bytes outside one place are those of the client."""
    facts = peek(body)
    new = with_usage(body, facts, None)
    was, now = dict(pairs(body)), dict(pairs(new))
    options = dict(was.get("stream_options") or {})
    assert dict(now["stream_options"]) == {**options, "include_usage": True}
    assert len(now["stream_options"]) == len(options | {"include_usage": True})
    assert [pair for pair in pairs(new) if pair[0] != "stream_options"] == [
        pair for pair in pairs(body) if pair[0] != "stream_options"
    ]
    assert peek(new).usage_asked
    if facts.usage_asked:
        assert new is body
        return
    head, tail = common(body, new)
    removed, added = body[head : len(body) - tail], new[head : len(new) - tail]
    assert len(removed) <= len(b"false")
    assert len(added) <= len(b',"stream_options":{"include_usage":true}')


@pytest.mark.parametrize("body", [body for body in bodies() if b'"model"' in body])
def test_model_is_replaced(body: bytes) -> None:
    """Another model stands exactly where the client's stood."""
    facts = peek(body)
    start, end = facts.model_span
    assert with_model(body, facts, MODEL) == body[:start] + MODEL + body[end:]
    assert with_model(body, facts, body[start:end]) is body


@pytest.mark.parametrize("body", [body for body in bodies() if b'"model"' in body])
def test_both_edits_are_the_one_after_the_other(body: bytes) -> None:
    """Both edits at once give what each on its own gives, in whatever order the keys stand."""
    facts = peek(body)
    one = with_usage(body, facts, None)
    two = with_model(one, peek(one), MODEL)
    assert with_usage(body, facts, MODEL) == two
    again = peek(two)
    assert with_usage(two, again, MODEL) is two
    assert (again.model, again.usage_asked) == ("other-model", True)


def test_edits_need_their_place() -> None:
    """A body without a model has no place for one, and facts of another body are refused before a byte is read."""
    with pytest.raises(ValueError, match="names no model"):
        with_model(b"{}", peek(b"{}"), MODEL)
    with pytest.raises(ValueError, match="names no model"):
        with_usage(b"{}", peek(b"{}"), MODEL)
    with pytest.raises(ValueError, match="another body"):
        with_usage(b"}", Peek(), None)
    facts = peek(b'{"model":"m","x":[1,2,3]}')
    for other in (b"", b"{}", b'{"model":"m","x":[1,2,3] '):
        with pytest.raises(ValueError, match="another body"):
            with_model(other, facts, MODEL)
        with pytest.raises(ValueError, match="another body"):
            with_usage(other, facts, None)


KEYS = st.sampled_from(["model", "stream_options", "messages", "x", "y"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.text(max_size=5) | st.integers(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["include_usage", "a", "b"]), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(st.dictionaries(KEYS, VALUES, max_size=5), st.sampled_from([None, 1]), st.booleans())
def test_made_bodies(members: dict[str, object], indent: int | None, ascii_only: bool) -> None:
    """Whatever the other members are, the edited body parses to the same but for usage and model."""
    body = json.dumps(members, indent=indent, ensure_ascii=ascii_only).encode()
    try:
        facts = peek(body)
    except BadBody:
        return
    options = members.get("stream_options")
    want = {**members, "stream_options": {**(options if isinstance(options, dict) else {}), "include_usage": True}}
    assert json.loads(with_usage(body, facts, None)) == want
    if "model" in members:
        assert json.loads(with_usage(body, facts, MODEL)) == {**want, "model": "other-model"}
        assert json.loads(with_model(body, facts, MODEL)) == {**members, "model": "other-model"}
