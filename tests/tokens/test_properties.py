"""Properties that hold of any text, looked for by Hypothesis."""

from __future__ import annotations

import json

from hypothesis import example, given, settings
from hypothesis import strategies as st

from proxy.tokens import encoding
from tests.tokens import oracle
from tests.tokens.oracle import NAMES
from tests.tokens.texts import STRUCTURE

names = st.sampled_from(NAMES)
texts = st.one_of(
    st.text(), st.lists(st.sampled_from(STRUCTURE)).map("".join), st.text(" \n'sS\u0301\u4e2da1", max_size=40)
)
pieces = st.lists(texts, max_size=12)


@settings(max_examples=1500)
@example("o200k_base", "don'\u017f")
@example("o200k_base", "\u01c5x\u0301A's")
@example("cl100k_base", "x \n \n")
@given(names, texts)
def test_the_count_is_tiktokens(name: str, text: str) -> None:
    """Aim: any text, shrunk to the shortest that is wrong."""
    assert encoding(name).count(text.encode()) == oracle.count(name, text)


@settings(max_examples=700)
@given(names, pieces)
def test_pieces_are_the_whole(name: str, parts: list[str]) -> None:
    """Aim: feeding pieces, with a question after each, gives what tiktoken says of everything before."""
    stream, before = encoding(name).stream(), ""
    for part in parts:
        stream.feed(part.encode())
        before += part
        assert stream.count() == oracle.count(name, before)
        assert 0 <= stream.pending <= len(before.encode())


@settings(max_examples=700)
@given(names, st.lists(st.tuples(st.text(st.characters(exclude_categories=[])), st.booleans()), max_size=8))
def test_json_is_what_it_means(name: str, parts: list[tuple[str, bool]]) -> None:
    """Aim: any strings, with any code points, as Python's writer escapes them or leaves them."""
    stream, meant = encoding(name).stream(), ""
    for text, ascii_only in parts:
        raw = json.dumps(oracle.utf8(text).decode() if not ascii_only else text, ensure_ascii=ascii_only)
        stream.feed_json(raw[1:-1].encode())
        meant += json.loads(raw)
    assert stream.count() == oracle.count(name, meant)


@settings(max_examples=700)
@given(names, st.binary(max_size=60), st.integers(0, 60))
def test_bytes_are_counted_whatever_they_are(name: str, raw: bytes, cut: int) -> None:
    """Aim: what is no UTF-8 has a count too: at most its bytes, none only when empty, and the same in two pieces."""
    made = encoding(name)
    whole = made.count(raw)
    assert whole <= len(raw)
    assert (whole == 0) == (raw == b"")
    stream = made.stream()
    stream.feed(raw[:cut])
    stream.feed(raw[cut:])
    assert stream.count() == whole
