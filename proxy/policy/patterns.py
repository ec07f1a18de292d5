"""Patterns of texts, as every reader of them understands them. Pure."""

from __future__ import annotations

_BEGIN, _END = "^(?:", r")$(?!\n)"


def whole(pattern: str) -> str:
    """The pattern of a whole text, for `re.search` and for JSON Schema (ECMA 262) alike.

    In Python `$` also stands before a line's end that is the text's last letter, so that `^a$` would take `a\\n`; what
    follows it here refuses that, and says nothing new to a reader whose `$` is the end.
    """
    return f"{_BEGIN}{pattern}{_END}"


def plain(text: str) -> str:
    """A sentence that quotes such a pattern, as people write patterns."""
    return text.replace(_BEGIN, "^").replace(repr(_END)[1:-1], "$")
