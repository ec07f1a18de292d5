"""tiktoken itself, over Weir's vocabulary files: nothing is downloaded, and the patterns are tiktoken's own."""

from __future__ import annotations

from functools import cache
from typing import Any
from unittest import mock

import tiktoken
from tiktoken_ext import openai_public

from proxy.tokens import vocabulary

NAMES = tuple(vocabulary.SHA256)


@cache
def tokens(name: str) -> list[bytes]:
    """All tokens of an encoding, in the order of their ids."""
    return vocabulary.read(name)


@cache
def official(name: str) -> dict[str, Any]:
    """What tiktoken's source says of an encoding: its constructor's arguments, and `sha256`, the pin of its ranks.

    The constructor runs as it stands; only the function that would fetch the ranks gives Weir's instead.
    """
    pins = []

    def ranks(url: str, expected_hash: str) -> dict[bytes, int]:
        pins.append(expected_hash)
        return {token: rank for rank, token in enumerate(tokens(url.rpartition("/")[2].removesuffix(".tiktoken")))}

    with mock.patch.object(openai_public, "load_tiktoken_bpe", ranks):
        arguments = openai_public.ENCODING_CONSTRUCTORS[name]()
    return {**arguments, "sha256": pins[0]}


@cache
def encoding(name: str) -> tiktoken.Encoding:
    """tiktoken's encoding without special tokens: all text is ordinary, as a user's text is."""
    said = official(name)
    return tiktoken.Encoding(name, pat_str=said["pat_str"], mergeable_ranks=said["mergeable_ranks"], special_tokens={})


def count(name: str, text: str) -> int:
    """How many tokens tiktoken makes of a text. A lone surrogate is U+FFFD, as in tiktoken."""
    return len(encoding(name).encode_ordinary(text))


def merged(name: str, pieces: list[str]) -> int:
    """How many tokens tiktoken's merge makes of pieces that are split already."""
    return sum(len(encoding(name)._encode_single_piece(piece)) for piece in pieces)


def utf8(text: str) -> bytes:
    """The UTF-8 of a text as a client would have meant it: surrogates paired, a lone one replaced by U+FFFD."""
    try:
        return text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace").encode()
