"""Pass 2, shape: a tree becomes the Struct of its file, as `schema` says; every deviation is a problem with its line.

Types are taken from what was written, not from YAML's guess: text where text is due, digits where a number is due.
A value that is wrong takes its mapping with it up to the next named entry, so that one mistake is one message.
"""

from __future__ import annotations

import re
from collections.abc import Mapping as Env
from decimal import Decimal
from functools import cache
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from msgspec import inspect

from proxy.policy import secrets
from proxy.policy.problems import Path, Problem, dotted, guess, instead, listed
from proxy.policy.text import Mapping, Node, Scalar, Sequence

_BAD: Any = object()  # already reported
_ABSENT: Any = object()  # as if the line were not there
_INTEGER = re.compile(r"-?(0|[1-9][0-9]{0,2}(_[0-9]{3})+|[1-9][0-9]*)")
_DECIMAL = re.compile(r"-?(0|[1-9][0-9]*|[1-9][0-9]{0,2}(_[0-9]{3})+)(\.[0-9]+)?")
_NOUNS = {
    inspect.IntType: "a whole number",
    inspect.FloatType: "a number",
    inspect.DecimalType: "a decimal number",
    inspect.BoolType: "true or false",
    inspect.StrType: "text",
    inspect.StructType: "a mapping",
    inspect.DictType: "a mapping",
    inspect.ListType: "a list",
}


class Shaped(NamedTuple):
    """`value` is None when a required part of the file is missing or wrong. `lines` and `names` follow the text."""

    value: Any
    lines: dict[Path, int]  # of every value: the line of its key, or of the list's item
    names: dict[Path, tuple[str, ...]]  # keys of every mapping, wrong ones too


def shape(file: str, tree: Node, schema: type, env: Env[str, str], problems: list[Problem]) -> Shaped:
    """Reads one file's tree as `schema`."""
    reader = _Reader(file, env, problems)
    kind = _kind(schema)
    reader.lines[()] = tree.line
    value = reader.struct(tree, kind, ())
    return Shaped(None if value is _BAD else value, reader.lines, reader.names)


@cache
def _kind(schema: type) -> inspect.StructType:
    """Once a schema: with thousands of tenants this would be most of the time of a reload."""
    kind = inspect.type_info(schema)
    assert isinstance(kind, inspect.StructType)
    return kind


class _Reader:
    def __init__(self, file: str, env: Env[str, str], problems: list[Problem]) -> None:
        self.lines: dict[Path, int] = {}
        self.names: dict[Path, tuple[str, ...]] = {}
        self._file = file
        self._env = env
        self._problems = problems

    def _wrong(self, line: int, path: Path, sentence: str) -> Any:
        self._problems.append(Problem(self._file, line, dotted(path), sentence))
        return _BAD

    def value(self, node: Node, kind: inspect.Type, path: Path, extra: dict[str, Any]) -> Any:
        if isinstance(kind, inspect.Metadata):
            return self.value(node, kind.type, path, {**(kind.extra or {}), **extra})
        if isinstance(kind, inspect.UnionType):
            (kind,) = (each for each in kind.types if not isinstance(each, inspect.NoneType))
            return self.value(node, kind, path, extra)
        if isinstance(node, Scalar) and node.plain and node.tag == "null":
            return self._wrong(node.line, path, "has no value; give one, or leave the line out")
        if isinstance(kind, inspect.StructType):
            return self.struct(node, kind, path)
        if isinstance(kind, inspect.DictType):
            return self._dict(node, kind, path)
        if isinstance(kind, inspect.ListType):
            return self._list(node, kind, path)
        return self._scalar(node, kind, path, extra)

    # --- mappings and lists ---

    def _entries(self, node: Node, path: Path, what: str) -> list[tuple[str, Scalar, Node]] | None:
        if not isinstance(node, Mapping):
            self._wrong(node.line, path, f"expected a mapping{what}, found {_found(node)}")
            return None
        self.names[path] = tuple(key.text for key, _ in node.entries)
        for key, _ in node.entries:
            self.lines[(*path, key.text)] = key.line
        return [(key.text, key, value) for key, value in node.entries]

    def struct(self, node: Node, kind: inspect.StructType, path: Path) -> Any:
        entries = self._entries(node, path, "")
        if entries is None:
            return _BAD
        fields = {each.encode_name: each for each in kind.fields}
        values: dict[str, Any] = {}
        wrong = False
        for name, key, inner in entries:
            if name not in fields:
                self._wrong(key.line, (*path, name), f"unknown key; {_key_instead(name, kind)}")
                # An unknown key spoils nothing else: the known ones are still judged for their meaning.
                continue
            value = self.value(inner, fields[name].type, (*path, name), {})
            if value is _BAD:
                wrong = True
            elif value is not _ABSENT:
                values[name] = value
        missing = [
            each.encode_name for each in kind.fields if each.required and each.encode_name not in self.names[path]
        ]
        for name in missing:
            line = self.lines[path]
            self._wrong(line, path, f"the key {name} is missing")
        required = [each.encode_name for each in kind.fields if each.required]
        if any(name not in values for name in required) or (wrong and path):
            return _BAD
        return kind.cls(**values)

    def _dict(self, node: Node, kind: inspect.DictType, path: Path) -> Any:
        entries = self._entries(node, path, "")
        if entries is None:
            return _BAD
        values: dict[str, Any] = {}
        for name, key, inner in entries:
            if key.plain and key.tag not in ("str", "value"):
                self._wrong(key.line, (*path, name), f"YAML reads this name as {_read_as(key)}; put it in quotes")
                continue
            if not self._name(name, key.line, kind.key_type, (*path, name)):
                continue
            value = self.value(inner, kind.value_type, (*path, name), {})
            if value is not _BAD:
                values[name] = value
        return values

    def _name(self, name: str, line: int, kind: inspect.Type, path: Path) -> bool:
        extra = kind.extra or {} if isinstance(kind, inspect.Metadata) else {}
        inner = kind.type if isinstance(kind, inspect.Metadata) else kind
        assert isinstance(inner, inspect.StrType)
        return self._text(name, line, inner, path, extra) is not _BAD

    def _list(self, node: Node, kind: inspect.ListType, path: Path) -> Any:
        if not isinstance(node, Sequence):
            return self._wrong(node.line, path, f"expected a list, found {_found(node)}")
        if kind.min_length and len(node.items) < kind.min_length:
            return self._wrong(node.line, path, "the list is empty; name at least one, or leave the line out")
        values: list[Any] = []
        wrong = False
        for index, item in enumerate(node.items):
            self.lines[(*path, index)] = item.line
            value = self.value(item, kind.item_type, (*path, index), {})
            if value is _BAD or value is _ABSENT:
                wrong = True
            elif value in values:
                self._wrong(item.line, (*path, index), "stands twice in this list; remove one")
                wrong = True
            else:
                values.append(value)
        return _BAD if wrong else values

    # --- scalars ---

    def _scalar(self, node: Node, kind: inspect.Type, path: Path, extra: dict[str, Any]) -> Any:
        if not isinstance(node, Scalar):
            return self._wrong(node.line, path, f"expected {_noun(kind)}, found {_found(node)}")
        if extra.get("secret"):
            sentence = secrets.complaint(node.text)
            return node.text if sentence is None else self._wrong(node.line, path, sentence)
        varied = secrets.has_variable(node.text)
        try:
            text = secrets.substitute(node.text, self._env)
        except secrets.Unset as error:
            return self._wrong(node.line, path, str(error))
        if "address" in extra:
            return self._address(node, text, path, extra["address"])
        # A value from the environment is not repeated in a message: it may be what it should not be.
        found = "the value of a variable" if varied else _shown(node)
        if isinstance(kind, inspect.StrType):
            if varied and text == "":
                return _ABSENT
            if not varied and node.plain and node.tag not in ("str", "value"):
                return self._wrong(
                    node.line,
                    path,
                    f"expected text, found {node.text}, which YAML reads as {_read_as(node)}; put it in quotes",
                )
            return self._text(text, node.line, kind, path, extra)
        if isinstance(kind, inspect.LiteralType):
            return self._literal(text, found, node, kind, path)
        if isinstance(kind, inspect.BoolType):
            if text in ("true", "false") and (node.plain or varied):
                return text == "true"
            return self._wrong(node.line, path, f"expected true or false, found {found}")
        return self._number(text, found, node, kind, path, quoted=not node.plain and not varied)

    def _literal(self, text: str, found: str, node: Scalar, kind: inspect.LiteralType, path: Path) -> Any:
        words = [str(word) for word in kind.values]
        if text in words:
            return text
        likely = guess(text, words)
        hint = f"; did you mean {likely}?" if likely else ""
        return self._wrong(node.line, path, f"expected {listed(words, 'or')}, found {found}{hint}")

    def _text(self, text: str, line: int, kind: inspect.StrType, path: Path, extra: dict[str, Any]) -> Any:
        if text == "":
            return self._wrong(line, path, "is empty")
        if kind.max_length is not None and len(text.encode()) > kind.max_length:
            return self._wrong(line, path, f"longer than {kind.max_length} bytes")
        if extra.get("path") and text.startswith("~"):
            return self._wrong(line, path, "~ is not expanded; write the path out")
        if kind.pattern is not None and re.search(kind.pattern, text) is None:
            return self._wrong(line, path, f"must be {extra['rule']}")
        return text

    def _address(self, node: Scalar, text: str, path: Path, schemes: list[str]) -> Any:
        if text == "":
            return _ABSENT
        if node.text.startswith("file:"):
            try:
                text = secrets.resolve(node.text, self._env).decode()
            except (secrets.SecretMissing, UnicodeDecodeError) as error:
                return self._wrong(node.line, path, str(error))
        scheme, separator, rest = text.partition("://")
        if not separator or scheme not in schemes or not rest:
            starts = listed([f"{each}://" for each in schemes], "or")
            return self._wrong(node.line, path, f"must begin with {starts}, and go on")
        try:
            _ = urlsplit(text).port  # reading it raises for one that is none
        except ValueError:
            return self._wrong(node.line, path, "its port is not a number from 0 to 65535")
        if secrets.holds_password(node.text):
            return self._wrong(node.line, path, "a password cannot stand in the file; write ${NAME} in its place")
        return text

    def _number(self, text: str, found: str, node: Scalar, kind: inspect.Type, path: Path, *, quoted: bool) -> Any:
        pattern = _INTEGER if isinstance(kind, inspect.IntType) else _DECIMAL
        good = pattern.fullmatch(text) is not None
        if not good or (quoted and not isinstance(kind, inspect.DecimalType)):
            hint = "; remove the quotes" if good else ""
            if not good and node.plain and (node.tag == "int" or (node.tag == "float" and "e" in text.lower())):
                hint = "; write plain digits"  # 010 is 8 to one YAML reader and 10 to another
            return self._wrong(node.line, path, f"expected {_noun(kind)}, found {found}{hint}")
        digits = text.replace("_", "")
        if isinstance(kind, inspect.DecimalType):
            return Decimal(digits)
        number = int(digits) if isinstance(kind, inspect.IntType) else float(digits)
        assert isinstance(kind, inspect.IntType | inspect.FloatType)
        if (kind.ge is not None and number < kind.ge) or (kind.le is not None and number > kind.le):
            return self._wrong(node.line, path, f"must be from {kind.ge} to {kind.le}, found {found}")
        if kind.multiple_of is not None and number % kind.multiple_of:
            return self._wrong(node.line, path, f"must be a multiple of {kind.multiple_of}, found {found}")
        return number


def _noun(kind: inspect.Type) -> str:
    if isinstance(kind, inspect.LiteralType):
        return listed([str(word) for word in kind.values], "or")
    return _NOUNS[type(kind)]


def _shown(node: Scalar) -> str:
    text = node.text if len(node.text) <= 40 else node.text[:40] + "…"
    return text if node.plain else f'"{text}"'


def _found(node: Node) -> str:
    if isinstance(node, Mapping):
        return "a mapping"
    return "a list" if isinstance(node, Sequence) else _shown(node)


def _read_as(node: Scalar) -> str:
    """What a YAML 1.1 reader makes of a plain word that was meant as text."""
    if node.tag == "bool":
        return "true" if node.text.lower() in ("yes", "true", "on") else "false"
    return {"int": "a number", "float": "a number", "timestamp": "a date", "null": "no value"}.get(node.tag, node.tag)


def _key_instead(name: str, kind: inspect.StructType) -> str:
    """What an unknown key was likely meant to be: the same word one level below, a near word, or the list of keys."""
    names = [each.encode_name for each in kind.fields]
    if guess(name, names) is None:
        for each in kind.fields:
            inner = each.type
            while isinstance(inner, inspect.Metadata | inspect.UnionType):
                inner = inner.types[0] if isinstance(inner, inspect.UnionType) else inner.type
            if isinstance(inner, inspect.StructType) and name in [below.encode_name for below in inner.fields]:
                return f"did you mean {each.encode_name}.{name}?"
            item = inner.item_type if isinstance(inner, inspect.ListType) else None
            if isinstance(item, inspect.StructType) and name in [below.encode_name for below in item.fields]:
                return f"did you mean {each.encode_name}[0].{name}?"
    return instead(name, names, "no key is known here")
