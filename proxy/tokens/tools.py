"""How many tokens a request's tool definitions are: shown to the model as TypeScript, counted as text. Pure.

The layout is that of recorded answers (see `families.yaml`). What they do not cover, such as unions, references and
schemas with more than names, types, descriptions and enums, is shown in the way that comes nearest, and the count is
then not documented. Whatever cannot be understood is counted as the text it is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from threading import Lock
from typing import Any, NamedTuple, Protocol

import msgspec

from proxy.bounds import TOOL_SCHEMAS_MAX, TOOLS_BYTES_MAX, TOOLS_CACHED_MAX
from proxy.tokens.families import Tools
from proxy.tokens.remembered import Remembered


class Counter(Protocol):
    """What counts a text's tokens: an `Encoding`."""

    def count(self, text: bytes) -> int: ...


class Count(NamedTuple):
    """`documented`: nothing in it but what recorded answers cover."""

    tokens: int
    documented: bool


class Unreadable(Exception):
    """A value that cannot be decoded, or has more in it than is decoded at once."""


class Unknown(Exception):
    """Definitions that were not counted before, where there is no time for it."""


class _TooLarge(Exception):
    """More than is written out: references can make a long text of a short one."""


def decoded(value: bytes) -> Any:
    """What a JSON value says. Raises Unreadable.

    No other thread runs meanwhile, the loop's neither: objects and arrays, which take the time, are counted before.
    """
    if len(value) > TOOLS_BYTES_MAX or value.count(b"{") + value.count(b"[") > TOOL_SCHEMAS_MAX:
        raise Unreadable
    try:
        return msgspec.json.decode(value)
    except (msgspec.DecodeError, RecursionError, UnicodeError):
        raise Unreadable from None


# Keys of a schema that recorded answers cover; those in the second line are not shown to the model.
_SHOWN = {"type", "description", "properties", "items", "enum"}
_SILENT = {"required", "additionalProperties", "strict"}
_WORDS = {"string": "string", "number": "number", "integer": "number", "boolean": "boolean", "null": "null"}


class _Writer:
    """Writes definitions as TypeScript, and notes whether all of it is covered."""

    def __init__(self, style: Tools, value_bytes: int) -> None:
        self.characters_left = 2 * value_bytes + 1024  # as much as WEIR_COST_TOOL in _prompt.h allows for
        # The shortest schema that says anything has about 16 bytes; a text of others takes long to write out.
        self.schemas_left = min(TOOL_SCHEMAS_MAX, value_bytes // 16 + 1)
        self.inline = style.layout == "inline"
        self.indent = style.indent
        self.documented = True
        self.roots: list[dict[str, Any]] = []  # of the schema that is being written: where its references point
        self.open: list[str] = []  # references that are being written: a schema may contain itself

    def definitions(self, functions: list[dict[str, Any]]) -> str:
        """The whole section, as it stands in the prompt."""
        lines = ["namespace functions {", ""]
        for function in functions:
            lines += [*self.function(function), ""]
        return "\n".join([*lines, "} // namespace functions"])

    def function(self, function: dict[str, Any]) -> Iterator[str]:
        """One function's lines."""
        name = function.get("name")
        parameters = function.get("parameters")
        if not isinstance(name, str) or not function.keys() <= {"name", "description", "parameters", "strict"}:
            self.documented = False
        yield from self.comment(function)
        self.roots = [parameters] if isinstance(parameters, dict) else []
        shown = self.object(parameters, 0) if isinstance(parameters, dict) else None
        if parameters is not None and not isinstance(parameters, dict):
            self.documented = False
        yield f"type {name} = (_: {shown}) => any;" if shown else f"type {name} = () => any;"

    def spend(self, text: str) -> str:
        """Takes a text's length from what may still be written."""
        self.characters_left -= len(text)
        if self.characters_left < 0:
            raise _TooLarge
        return text

    def comment(self, schema: dict[str, Any]) -> Iterator[str]:
        """Its description, as a line in front of it."""
        text = schema.get("description")
        if isinstance(text, str) and text:
            if "\n" in text:
                self.documented = False
            yield self.spend(f"// {text}")

    def object(self, schema: dict[str, Any], depth: int) -> str | None:
        """An object's braces and what is between them; None for one without properties."""
        properties = schema.get("properties")
        if not isinstance(properties, dict) or not properties:
            return None
        required = schema.get("required")
        names = set(map(str, required)) if isinstance(required, list) else set()
        inner = {key: value if isinstance(value, dict) else {} for key, value in properties.items()}
        marks = {key: f"{key}{'' if key in names else '?'}: {self.type(inner[key], depth + 1)}" for key in inner}
        if self.inline and not any(value.get("description") for value in inner.values()):
            return self.spend(f"{{ {', '.join(marks.values())} }}")
        lines = []
        for key, value in inner.items():
            lines += [*self.comment(value), self.spend(f"{marks[key]},")]
        return "\n".join(["{", *(" " * (self.indent * depth) + line for line in lines), "}"])

    def type(self, schema: dict[str, Any], depth: int) -> str:
        """The type of a value."""
        self.schemas_left -= 1
        if self.schemas_left < 0:
            raise _TooLarge
        if not schema.keys() <= _SHOWN | _SILENT or depth > 2:
            self.documented = False
        for union in ("anyOf", "oneOf", "allOf"):
            if isinstance(schema.get(union), list):
                return " | ".join(self.type(one if isinstance(one, dict) else {}, depth) for one in schema[union])
        if isinstance(schema.get("$ref"), str):
            return self.reference(schema["$ref"], depth)
        if "const" in schema:
            return self.spend(_literal(schema["const"]))
        kind = schema.get("type")
        if isinstance(schema.get("enum"), list) and schema["enum"]:
            if kind not in ("string", "number", "integer"):
                self.documented = False
            return self.spend(" | ".join(map(_literal, schema["enum"])))
        if isinstance(kind, list):
            self.documented = False
            return " | ".join(_WORDS.get(str(one), "any") for one in kind)
        if kind == "object":
            return self.object(schema, depth) or "object"
        if kind == "array":
            items = schema.get("items")
            if not isinstance(items, dict):
                return "any[]"
            if self.inline and items.get("type") in ("object", "array"):
                self.documented = False
            return f"{self.type(items, depth)}[]"
        if kind is not None and kind not in _WORDS:
            self.documented = False
        return _WORDS.get(str(kind), "any")

    def reference(self, path: str, depth: int) -> str:
        """What a local reference points to; its last name where that is nowhere, or around it already."""
        found: Any = self.roots[0] if self.roots else None
        parts = path.split("/")
        for part in parts[1:] if parts[0] == "#" else ["?"]:
            found = found.get(part) if isinstance(found, dict) else None
        if not isinstance(found, dict) or path in self.open:
            return parts[-1] or "any"
        self.open.append(path)
        shown = self.type(found, depth)
        self.open.pop()
        return shown


def _literal(value: object) -> str:
    return f'"{value}"' if isinstance(value, str) else msgspec.json.encode(value).decode()


def _functions(value: object) -> list[dict[str, Any]] | None:
    """The functions of a `tools` or `functions` value; None where it holds anything else."""
    if not isinstance(value, list):
        return None
    functions = []
    for entry in value:
        function = entry
        if isinstance(entry, dict) and "function" in entry and entry.get("type") == "function":
            function = entry["function"]
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            return None
        functions.append(function)
    return functions


def count(style: Tools, value: bytes, counter: Counter) -> Count:
    """The tokens of a JSON value of `tools` or `functions`, the marks around it included. Never raises for content."""
    try:
        functions = _functions(decoded(value))
        if functions is not None:
            if not functions:
                return Count(0, False)
            writer = _Writer(style, len(value))
            text = writer.definitions(functions)
            return Count(counter.count(text.encode()) + style.section, writer.documented)
    except (Unreadable, _TooLarge, RecursionError, UnicodeError):
        pass
    return Count(counter.count(value), False)


def choice(style: Tools, value: bytes, counter: Counter) -> Count:
    """The tokens that a JSON value of `tool_choice` or `function_call` adds. Never raises for content."""
    try:
        said = decoded(value)
    except Unreadable:
        return Count(0, False)
    if said in (None, "auto", "required"):
        return Count(0, True)
    if said == "none":
        return Count(style.none, True)
    named = said.get("function", said) if isinstance(said, dict) else None
    name = named.get("name") if isinstance(named, dict) else None
    if not isinstance(name, str):
        return Count(0, False)
    return Count(style.named + counter.count(name.encode()), True)


class Cache:
    """Counts of tool definitions: an agent sends the same ones with each call. Safe between threads.

    A tenant's entries are its own, so that how fast an answer comes says nothing of another's tools. Only digests are
    kept, so an entry's size does not depend on the definitions'.
    """

    def __init__(self, each_max: int = TOOLS_CACHED_MAX) -> None:
        self._counts: Remembered[tuple[str, str, bytes], Count] = Remembered(each_max)
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._counts)

    def count(
        self, tenant: str, family: str, key: str, style: Tools, value: bytes, counter: Counter, *, anew: bool = True
    ) -> Count:
        """As `count`, by the request's key that the value stands under. Raises Unknown where it is not here already,
        unless it may be counted `anew`.
        """
        entry = (family, key, hashlib.blake2b(value, digest_size=16).digest())
        with self._lock:
            found = self._counts.get(tenant, entry)
        if found is not None:
            return found
        if not anew:
            raise Unknown
        found = count(style, value, counter)
        with self._lock:
            self._counts.put(tenant, entry, found)
        return found
