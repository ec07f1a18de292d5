"""Tool definitions of any shape have a count, the same each time, and none takes long; what they are exactly is proved
with whole requests in test_chat.
"""

from __future__ import annotations

import json
import random
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.bounds import TOOL_SCHEMAS_MAX, TOOLS_BYTES_MAX
from proxy.tokens import encoding, families, tools

STYLES = families.known().by_name["gpt-4o"].tools


class Counter:
    """Counts as the real one, and remembers what."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def count(self, text: bytes) -> int:
        self.texts.append(text.decode("utf-8", "replace"))
        return encoding("o200k_base").count(text)


def shown(value: object, style: families.Tools = STYLES.tools) -> tuple[str, tools.Count]:
    """The text that is counted for a value, and the count."""
    counter = Counter()
    found = tools.count(style, json.dumps(value).encode(), counter)
    return counter.texts[-1], found


def tool(parameters: object = None, **more: object) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "f", "parameters": parameters, **more}}


def of(**properties: object) -> dict[str, Any]:
    return {"type": "object", "properties": properties}


FRAME = "namespace functions {{\n\n{}\n\n}} // namespace functions"
STRING = {"type": "string"}


@pytest.mark.parametrize(
    ("parameters", "text", "documented"),
    [
        (None, "type f = () => any;", True),
        (of(), "type f = () => any;", True),
        (of(a=STRING), "type f = (_: { a?: string }) => any;", True),
        (
            {**of(a=STRING, b={"type": "integer"}), "required": ["b"]},
            "type f = (_: { a?: string, b: number }) => any;",
            True,
        ),
        (of(a={"type": "string", "description": "An a"}), "type f = (_: {\n// An a\na?: string,\n}) => any;", True),
        (of(a={"type": "string", "enum": ["x", "y"]}), 'type f = (_: { a?: "x" | "y" }) => any;', True),
        (of(a={"type": "integer", "enum": [-1, 1]}), "type f = (_: { a?: -1 | 1 }) => any;", True),
        (of(a={"type": "array", "items": STRING}), "type f = (_: { a?: string[] }) => any;", True),
        (of(a={"type": "array"}), "type f = (_: { a?: any[] }) => any;", True),
        (of(a={"type": "null"}, b={}), "type f = (_: { a?: null, b?: any }) => any;", True),
        (of(a=of(b=STRING)), "type f = (_: { a?: { b?: string } }) => any;", True),
        (of(a={"type": "object"}), "type f = (_: { a?: object }) => any;", True),
        # From here on the nearest form, and not documented.
        (of(a=of(b=of(c=STRING))), "type f = (_: { a?: { b?: { c?: string } } }) => any;", False),
        (of(a={"type": ["string", "null"]}), "type f = (_: { a?: string | null }) => any;", False),
        (of(a={"anyOf": [STRING, {"type": "number"}]}), "type f = (_: { a?: string | number }) => any;", False),
        (of(a={"const": "x"}), 'type f = (_: { a?: "x" }) => any;', False),
        (of(a={"enum": ["x", None]}), 'type f = (_: { a?: "x" | null }) => any;', False),
        (of(a={"type": "string", "minLength": 1}), "type f = (_: { a?: string }) => any;", False),
        (of(a={"type": "array", "items": of(b=STRING)}), "type f = (_: { a?: { b?: string }[] }) => any;", False),
        ({**of(a={"$ref": "#/$defs/D"}), "$defs": {"D": STRING}}, "type f = (_: { a?: string }) => any;", False),
        (of(a={"$ref": "#/$defs/Gone"}), "type f = (_: { a?: Gone }) => any;", False),
        (of(a={"$ref": "elsewhere"}), "type f = (_: { a?: elsewhere }) => any;", False),
        ({"$ref": "#"}, "type f = () => any;", True),
        (of(a=1, b=None), "type f = (_: { a?: any, b?: any }) => any;", True),
        ([1], "type f = () => any;", False),
    ],
)
def test_shapes(parameters: object, text: str, documented: bool) -> None:
    """Each shape of a schema is written as one text."""
    written, found = shown([tool(parameters)])
    assert written == FRAME.format(text)
    assert found.documented == documented
    assert found.tokens == encoding("o200k_base").count(written.encode()) + STYLES.tools.section


def test_the_older_layout() -> None:
    """The same definitions under `functions` never stand on one line, and are indented."""
    function = {"name": "f", "description": "Do f", "parameters": of(a=of(b=STRING))}
    written, found = shown([function], STYLES.functions)
    assert written == FRAME.format("// Do f\ntype f = (_: {\na?: {\n  b?: string,\n},\n}) => any;")
    assert found.documented


@pytest.mark.parametrize(
    "value",
    [
        *(None, 1, "x", {}, {"type": "function"}, [1], [None], [[]], [{}], [{"type": "function"}]),
        *([{"type": "function", "function": 1}], [{"type": "function", "function": {"name": 1}}]),
        *([{"type": "custom", "custom": {"name": "f"}}], [{"type": "web_search"}], [tool(), 1]),
    ],
)
def test_what_is_no_definition_is_counted_as_text(value: object) -> None:
    """A value of another shape costs what its text costs, and is not documented."""
    text = json.dumps(value)
    assert tools.count(STYLES.tools, text.encode(), encoding("o200k_base")) == (
        encoding("o200k_base").count(text.encode()),
        False,
    )


def test_broken_json_is_counted_as_text() -> None:
    """What cannot be decoded is text too."""
    for value in (b"", b"[", b"\xff", b'[{"name":"\xff"}]', b'[{"name":"\\ud800"}]'):
        assert tools.choice(STYLES.tools, value, encoding("o200k_base")) == (0, False)
        assert tools.count(STYLES.tools, value, encoding("o200k_base")).documented is False


def test_references_cannot_blow_it_up() -> None:
    """References in a circle end; ones that double at every step, or repeat a long text, are counted as text."""
    circle = {**of(a={"$ref": "#"}, b={"$ref": "#/properties/b"}), "description": "d"}
    written, _ = shown([tool(circle)])
    assert len(written) < 200
    doubling = {f"d{i}": of(**{x: {"$ref": f"#/$defs/d{i + 1}"} for x in "ab"}) for i in range(40)}
    long = {**of(**{f"p{i}": {"$ref": "#/$defs/x"} for i in range(3000)})}
    long["$defs"] = {"x": of(y={"type": "string", "description": "word " * 1000})}
    for parameters in ({**of(a={"$ref": "#/$defs/d0"}), "$defs": doubling}, long):
        value = json.dumps([tool(parameters)])
        counter = Counter()
        assert not tools.count(STYLES.tools, value.encode(), counter).documented
        assert counter.texts == [value]


def test_long_definitions_are_counted_as_text() -> None:
    """More schemas, lists or bytes than the bounds are not decoded or not written out."""
    many = [tool(of(**{f"p{i}": STRING for i in range(TOOL_SCHEMAS_MAX + 1)}))]
    wide = [tool(None, description="d" * TOOLS_BYTES_MAX)]
    deep = [tool(of(a={"enum": [[]] * TOOL_SCHEMAS_MAX}))]
    for value in (many, wide, deep):
        written, found = shown(value)
        assert (written, found.documented) == (json.dumps(value), False)


def test_what_is_decoded_is_bounded() -> None:
    """A choice or a format is decoded under the same bounds as tools: no other thread runs meanwhile."""
    for value in (b'"%b"' % (b"n" * TOOLS_BYTES_MAX), b"[%b{}]" % (b"[]," * TOOL_SCHEMAS_MAX)):
        with pytest.raises(tools.Unreadable):
            tools.decoded(value)
        assert tools.choice(STYLES.tools, value, encoding("o200k_base")) == (0, False)
    assert len(tools.decoded(b"[%b{}]" % (b"[]," * (TOOL_SCHEMAS_MAX - 2)))) == TOOL_SCHEMAS_MAX - 1


def test_only_known_definitions_are_counted_where_there_is_no_time() -> None:
    """Then the cache says so, and counts nothing."""
    cache, counter, value = tools.Cache(), Counter(), json.dumps([tool()]).encode()
    with pytest.raises(tools.Unknown):
        cache.count("acme", "gpt-4o", "tools", STYLES.tools, value, counter, anew=False)
    assert (len(cache), counter.texts) == (0, [])
    found = cache.count("acme", "gpt-4o", "tools", STYLES.tools, value, counter)
    assert cache.count("acme", "gpt-4o", "tools", STYLES.tools, value, counter, anew=False) == found


SCHEMAS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=6),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                [
                    *("type", "properties", "items", "enum", "required", "description", "name", "function", "anyOf"),
                    *("$ref", "$defs", "parameters", "const", "a", "#"),
                ]
            ),
            inner | st.sampled_from(["object", "array", "string", "#", "#/a", "#/properties/a", "function"]),
            max_size=6,
        )
    ),
    max_leaves=30,
)


@given(SCHEMAS)
def test_nothing_raises(value: object) -> None:
    """Definitions of any shape have a count of at least nothing, the same each time."""
    for wrapped in (value, [value], [tool(value)], [{"name": "f", "parameters": value}]):
        text = json.dumps(wrapped).encode()
        for style in (STYLES.tools, STYLES.functions):
            found = tools.count(style, text, encoding("cl100k_base"))
            assert found.tokens >= 0
            assert found == tools.count(style, text, encoding("cl100k_base"))
        tools.choice(STYLES.tools, text, encoding("cl100k_base"))


def test_choices() -> None:
    """What each form of tool_choice adds."""
    named = encoding("o200k_base").count(b"get_it")
    for value, want in (
        (b'"auto"', (0, True)),
        (b'"required"', (0, True)),
        (b"null", (0, True)),
        (b'"none"', (1, True)),
        (b'{"type":"function","function":{"name":"get_it"}}', (7 + named, True)),
        (b'{"type":"allowed_tools","allowed_tools":{}}', (0, False)),
        (b'"other"', (0, False)),
        (b"[]", (0, False)),
        (b"{", (0, False)),
    ):
        assert tools.choice(STYLES.tools, value, encoding("o200k_base")) == want, value
    assert tools.choice(STYLES.functions, b'{"name":"get_it"}', encoding("o200k_base")) == (4 + named, True)


def test_the_cache() -> None:
    """The same definitions are counted once for each tenant, family and key; of too many a tenant forgets its oldest,
    and no other's."""
    cache = tools.Cache(each_max=2)
    counter = Counter()

    def ask(tenant: str, family: str = "a", key: str = "tools", name: str = "f") -> tools.Count:
        value = json.dumps([{"type": "function", "function": {"name": name}}]).encode()
        return cache.count(tenant, family, key, STYLES.tools, value, counter)

    first = ask("t")
    assert ask("t") == first
    assert len(counter.texts) == 1
    for again in ({"tenant": "u"}, {"tenant": "t", "family": "b"}):
        assert ask(**again) == first
    assert (len(counter.texts), len(cache)) == (3, 3)
    ask("t")  # now the youngest
    ask("t", name="g")
    assert (len(counter.texts), len(cache)) == (4, 3)
    ask("t")
    ask("u")
    assert len(counter.texts) == 4
    ask("t", family="b")
    assert len(counter.texts) == 5


def test_the_cache_between_threads() -> None:
    """Threads that ask for more than it holds get right counts, and it stays within its bound."""
    cache = tools.Cache(each_max=8)
    values = [json.dumps([{"type": "function", "function": {"name": "f" * n}}]).encode() for n in range(1, 20)]
    want = [tools.count(STYLES.tools, value, Counter()) for value in values]

    def run(seed: int) -> bool:
        chance = random.Random(seed)
        picks = [chance.randrange(len(values)) for _ in range(300)]
        return all(cache.count("t", "a", "tools", STYLES.tools, values[n], Counter()) == want[n] for n in picks)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(run, range(8)))
    assert len(cache) <= 8
