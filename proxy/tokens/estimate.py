"""Tokens from bytes, for models whose tokenizer is not known. Pure, and always labelled `estimated`."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from proxy._scan import Peek

MILLI = 1000
BYTES_PER_TOKEN_MILLI = 4 * MILLI  # English prose in o200k_base; other scripts and code lie between 2 and 5
TOKENS_PER_MESSAGE = 4  # the three marks around each chat message, and its role
TOKENS_PER_IMAGE = 765  # one image of 1024 x 1024 in high detail by gpt-4o's tiles


def prompt_tokens(facts: Peek, bytes_per_token_milli: int = BYTES_PER_TOKEN_MILLI) -> int:
    """The prompt's estimated tokens. An image is a constant, whatever its bytes."""
    return text_tokens(facts.text_bytes, bytes_per_token_milli) + fixed_tokens(facts)


def fixed_tokens(facts: Peek) -> int:
    """What of an estimate is no text: token arrays, the marks around messages, images."""
    return facts.token_ids + facts.messages * TOKENS_PER_MESSAGE + facts.images * TOKENS_PER_IMAGE


def text_tokens(text_bytes: int, bytes_per_token_milli: int = BYTES_PER_TOKEN_MILLI) -> int:
    """The estimated tokens of so many bytes of UTF-8, rounded up."""
    return -(-text_bytes * MILLI // bytes_per_token_milli)
