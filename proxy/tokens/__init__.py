"""How many tokens a text has: exactly where its tokenizer is known, estimated and labelled so where it is not. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from proxy._fastpath import Encoding

__all__ = ["ENCODINGS", "encoding"]

# What an encoding is called, and the table it is counted by. Harmony has other special tokens only, and what is counted
# here is text: <|end|> in a prompt is seven tokens, not one (tiktoken_ext/openai_public.py).
ENCODINGS = {"o200k_base": "o200k_base", "o200k_harmony": "o200k_base", "cl100k_base": "cl100k_base"}
_opened: dict[str, Encoding] = {}


def encoding(name: str) -> Encoding:
    """The counter of an encoding, the same one at each call in this process.

    Raises LookupError for a name that is not in ENCODINGS, `_fastpath.BadTable` when its table cannot be used.
    """
    table = ENCODINGS.get(name)
    if table is None:
        raise LookupError(f"encoding {name!r} is not known; {', '.join(ENCODINGS)} are")
    found = _opened.get(table)
    if found is None:
        # Not before it is needed: the flusher and the build import this package without any compiled part.
        from proxy._fastpath import BadTable, Encoding
        from proxy.tokens import tables

        found = Encoding(tables.path(table))
        if found.name != table:
            raise BadTable(f"The token table {found.path} is that of {found.name}, under the name of {table}.")
        _opened[table] = found
    return found
