"""Which family of models a name belongs to, and how that family turns a request into tokens: `families.yaml`. Pure."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import msgspec
import yaml
from msgspec import Meta, Struct

PATH = Path(__file__).with_name("families.yaml")

T = TypeVar("T")
Positive = Annotated[int, Meta(ge=1)]
Encodings = Literal["o200k_base", "cl100k_base", "o200k_harmony"]


class BadFamilies(Exception):
    """The file cannot be used; the message names the place and what would be right."""


class Chat(Struct, frozen=True, forbid_unknown_fields=True):
    """Tokens of a chat beside its text; the file says what each is."""

    message: int
    name: int
    primer: int
    call: int
    result: int
    call_prefix: str
    parallel: int
    function_call: int
    function_result: int
    schema: int
    schema_description: int
    documented: bool
    preamble: int = 0


class Tools(Struct, frozen=True, forbid_unknown_fields=True):
    """How tool definitions are shown, and what surrounds them, in tokens."""

    layout: Literal["inline", "lines"]
    indent: Annotated[int, Meta(ge=0, le=8)]
    section: int
    shared: int
    none: int
    named: int


class ToolStyles(Struct, frozen=True, forbid_unknown_fields=True):
    """By the key of the request that they stand under."""

    tools: Tools
    functions: Tools


class Tiles(Struct, frozen=True, forbid_unknown_fields=True, tag="tiles", tag_field="kind"):
    """Lengths in pixels, the rest in tokens."""

    base: Positive
    tile: Positive
    fit: Positive
    short: Positive
    square: Positive
    documented: bool = False


class Budget(Struct, frozen=True, forbid_unknown_fields=True):
    """`side`: of the longer side, in pixels. `patches`: None for no bound."""

    side: Positive
    patches: Positive | None = None


class Patches(Struct, frozen=True, forbid_unknown_fields=True, tag="patches", tag_field="kind"):
    """`square` in pixels. `details` has at least `auto`, which stands for those that are not there.

    `remote_tokens`: of an image that cannot be seen, where `details` have no bound.
    """

    square: Positive
    multiplier_milli: Positive
    details: dict[Literal["auto", "low", "high", "original"], Budget]
    remote_tokens: Positive | None = None
    documented: bool = False


Images = Tiles | Patches


class Entry(Struct, frozen=True, forbid_unknown_fields=True):
    """A family as it is written: `chat` and `images` are names."""

    models: Annotated[tuple[str, ...], Meta(min_length=1)]
    encoding: Encodings
    chat: str | None = None
    images: str | None = None
    tools_documented: bool = False
    calls_documented: bool = False
    reasoning: bool = False


class File(Struct, frozen=True, forbid_unknown_fields=True):
    prefixes: tuple[str, ...]
    boundaries: tuple[str, ...]
    chats: dict[str, Chat]
    tools: ToolStyles
    images: dict[str, Images]
    families: dict[str, Entry]


class Family(Struct, frozen=True):
    """A family as it is used. Without `chat` it has no messages: completions and embeddings."""

    name: str
    encoding: Encodings
    chat: Chat | None
    tools: ToolStyles
    images: Images | None
    tools_documented: bool
    calls_documented: bool
    reasoning: bool


class Families:
    """All families, and the patterns of the models' names."""

    def __init__(self, file: File) -> None:
        """Raises BadFamilies where an entry names what is not there, or a pattern stands twice."""
        self.by_name: dict[str, Family] = {}
        self._patterns: dict[str, Family] = {}
        self._prefixes = file.prefixes
        self._boundaries = file.boundaries
        for rule, images in file.images.items():
            if isinstance(images, Tiles):
                continue
            if "auto" not in images.details:
                raise BadFamilies(f"families.yaml: images.{rule}.details: `auto` is missing, which stands for the rest")
            if images.remote_tokens is None and any(budget.patches is None for budget in images.details.values()):
                raise BadFamilies(
                    f"families.yaml: images.{rule}.remote_tokens: must be there where a detail has no bound"
                )
        for name, entry in file.families.items():
            where = f"families.yaml: families.{name}"
            family = self.by_name[name] = Family(
                name,
                entry.encoding,
                _named(file.chats, entry.chat, f"{where}.chat"),
                file.tools,
                _named(file.images, entry.images, f"{where}.images"),
                entry.tools_documented,
                entry.calls_documented,
                entry.reasoning,
            )
            for pattern in entry.models:
                if pattern in self._patterns:
                    other = self._patterns[pattern].name
                    raise BadFamilies(f"{where}.models: {pattern} is a model of {other} already; remove one of the two")
                self._patterns[pattern] = family

    def find(self, model: str) -> Family | None:
        """The family of a model by its name, prefixes of providers aside; None when no pattern fits."""
        name = self._bare(model.lower())
        for end in range(len(name), 0, -1):
            if end == len(name) or name[end] in self._boundaries:
                family = self._patterns.get(name[:end])
                if family is not None:
                    return family
        return None

    def _bare(self, name: str) -> str:
        for prefix in self._prefixes:
            if name.startswith(prefix):
                return self._bare(name[len(prefix) :])
        return name


def _named(entries: dict[str, T], name: str | None, where: str) -> T | None:
    if name is None:
        return None
    if name not in entries:
        raise BadFamilies(f"{where}: there is no `{name}`; there are {', '.join(entries)}")
    return entries[name]


def read(text: str | bytes) -> Families:
    """The families that a file describes. Raises BadFamilies."""
    try:
        return Families(msgspec.convert(yaml.load(text, yaml.CSafeLoader), File))
    except yaml.YAMLError as error:
        raise BadFamilies(f"families.yaml: {str(error).replace(chr(10), ' ')}") from None
    except msgspec.ValidationError as error:
        raise BadFamilies(f"families.yaml: {error}") from None


@cache
def known() -> Families:
    """The families that come with Weir, read once. Raises BadFamilies, OSError."""
    return read(PATH.read_bytes())


def find(model: str) -> Family | None:
    """The family of a model, None for a model that is not known: its tokens can only be estimated."""
    return known().find(model)


def named(name: str) -> Family | None:
    """The family of that name, None without one."""
    return known().by_name.get(name)
