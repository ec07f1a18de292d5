"""Pass 1, text: one YAML file becomes a tree in which every value knows its line.

YAML is read through libyaml's events, not into Python objects: PyYAML keeps the last of two equal keys without a word,
and turns `no` into False and `010` into 8 before anyone can ask what was written. Anchors, aliases, merge keys, tags
and second documents are refused: each would let a line decide that is not the one that is read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, NamedTuple, NoReturn

import yaml

from proxy.bounds import POLICY_DEPTH_MAX, POLICY_FILE_BYTES_MAX
from proxy.policy.problems import Path, Problem, dotted


class Scalar(NamedTuple):
    """`plain`: written without quotes, so that YAML would guess a type. `tag`: that guess: str, bool, int, float, …"""

    text: str
    plain: bool
    tag: str
    line: int


class Mapping(NamedTuple):
    """Keys are unique and in the order of the file."""

    entries: tuple[tuple[Scalar, Node], ...]
    line: int


class Sequence(NamedTuple):
    items: tuple[Node, ...]
    line: int


Node = Scalar | Mapping | Sequence

# What YAML 1.1 has no place for (c-printable, section 5.1).
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\ufffe\uffff]")
_REWORDED = {
    "mapping values are not allowed in this context": "a second `:` on this line, or an indentation that does not "
    "fit the line above; put text that holds `: ` in quotes",
    "did not find expected alphabetic or numeric character": "`*` or `&` here begins an alias or an anchor; put the "
    "text in quotes, or close a quote that is opened above",
    "found unexpected end of stream": "a quote that is opened is not closed",
    "could not find expected ':'": "a key without `:` after it",
    "did not find expected key": "an indentation that does not fit the lines above",
    "did not find expected '-' indicator": "a list item or the end of the list should stand here; indent the items "
    "of one list alike",
    "did not find expected ',' or ']'": "a `[` that is opened is not closed",
    "did not find expected ',' or '}'": "a `{` that is opened is not closed",
}
# These are noticed at the end of the file, or at the next key: the line where it began helps more.
_BEGUN_EARLIER = (
    "found unexpected end of stream",
    "could not find expected ':'",
    "did not find expected ',' or ']'",
    "did not find expected ',' or '}'",
)


class _Stop(Exception):
    """The rest of the file cannot be read."""


def parse(file: str, raw: bytes, problems: list[Problem]) -> Node | None:
    """The tree of one file; an empty file is an empty mapping. None when `problems` got one that ends the reading."""
    if len(raw) > POLICY_FILE_BYTES_MAX:
        problems.append(Problem(file, 1, "", f"larger than {POLICY_FILE_BYTES_MAX} bytes"))
        return None
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        problems.append(Problem(file, line, "", f"not UTF-8: byte 0x{raw[error.start]:02x}; save the file as UTF-8"))
        return None
    if (control := _CONTROL.search(text)) is not None:
        line = text.count("\n", 0, control.start()) + 1
        problems.append(Problem(file, line, "", f"control character U+{ord(control[0]):04X}; remove it"))
        return None
    try:
        return _Builder(file, text, problems).document()
    except _Stop:
        return None
    except yaml.MarkedYAMLError as error:
        problems.append(Problem(file, *_explain(error, text)))
        return None


def _explain(error: yaml.MarkedYAMLError, text: str) -> tuple[int, str, str]:
    """Line, empty path and sentence for what libyaml found."""
    mark = error.problem_mark or error.context_mark
    lines = text.splitlines()
    if error.problem in _BEGUN_EARLIER and error.context_mark is not None:
        mark = error.context_mark
    line = min(mark.line + 1, max(len(lines), 1)) if mark is not None else 1
    written = lines[line - 1] if lines else ""
    if "\t" in written[: len(written) - len(written.lstrip())]:
        return line, "", "a tab in the indentation; YAML takes spaces only"
    problem = error.problem or "cannot be read"
    if problem == "found character that cannot start any token" and mark is not None:
        character = written[mark.column : mark.column + 1]
        return line, "", f"text may not begin with {character or 'this character'}; put it in quotes"
    return line, "", f"not YAML: {_REWORDED.get(problem, problem)}"


class _Builder:
    def __init__(self, file: str, text: str, problems: list[Problem]) -> None:
        self._file = file
        self._problems = problems
        self._resolve: Any = yaml.SafeLoader("").resolve
        self._events: Iterator[yaml.Event] = yaml.parse(text, Loader=yaml.CSafeLoader)

    def document(self) -> Node:
        root: Node | None = None
        for event in self._events:
            if isinstance(event, yaml.DocumentStartEvent):
                if root is not None:
                    self._stop(event, (), "a second document; one file is one document, remove the line `---`")
                root = self._node(next(self._events), ())
        return Mapping((), 1) if root is None else root

    def _node(self, event: yaml.Event, path: Path) -> Node:
        line = _line(event)
        if isinstance(event, yaml.AliasEvent):
            self._stop(event, path, f"alias *{event.anchor}; aliases are not supported, write the value out")
        if len(path) > POLICY_DEPTH_MAX:
            self._stop(event, path[:3], f"nested deeper than {POLICY_DEPTH_MAX} levels")
        assert isinstance(event, yaml.MappingStartEvent | yaml.SequenceStartEvent | yaml.ScalarEvent)
        if event.anchor is not None:
            self._stop(event, path, f"anchor &{event.anchor}; anchors are not supported, remove it")
        if event.tag is not None:
            self._stop(event, path, f"tag {_short(event.tag)}; tags are not supported, remove it")
        if isinstance(event, yaml.MappingStartEvent):
            return self._mapping(line, path)
        if isinstance(event, yaml.SequenceStartEvent):
            items: list[Node] = []
            while not isinstance(inner := next(self._events), yaml.SequenceEndEvent):
                items.append(self._node(inner, (*path, len(items))))
            return Sequence(tuple(items), line)
        assert isinstance(event, yaml.ScalarEvent)
        plain = bool(event.implicit[0])
        tag: str = self._resolve(yaml.ScalarNode, event.value, event.implicit) if plain else "str"
        return Scalar(event.value, plain, tag.rpartition(":")[2], line)

    def _mapping(self, line: int, path: Path) -> Mapping:
        entries: list[tuple[Scalar, Node]] = []
        first: dict[str, int] = {}
        while not isinstance(inner := next(self._events), yaml.MappingEndEvent):
            key = self._node(inner, path)
            if not isinstance(key, Scalar):
                self._stop(inner, path, "a key must be one word, not a list or a mapping")
            if key.plain and key.tag == "merge":
                self._stop(inner, path, "merge key <<; merging is not supported, write the keys out")
            value = self._node(next(self._events), (*path, key.text))
            if key.text in first:
                where = f"{self._file}:{first[key.text]}"
                sentence = f"duplicate key; it already stands at {where}, keep one of the two"
                self._problems.append(Problem(self._file, key.line, dotted((*path, key.text)), sentence))
                continue
            first[key.text] = key.line
            entries.append((key, value))
        return Mapping(tuple(entries), line)

    def _stop(self, event: yaml.Event, path: Path, sentence: str) -> NoReturn:
        self._problems.append(Problem(self._file, _line(event), dotted(path), sentence))
        raise _Stop


def _line(event: yaml.Event) -> int:
    assert event.start_mark is not None
    return event.start_mark.line + 1


def _short(tag: str) -> str:
    """A tag as it was written."""
    return tag.replace("tag:yaml.org,2002:", "!!")
