"""How many tokens a text has, as far as it is known before the provider says so. Pure.

For now an estimate from the text's bytes, always labelled `estimated`; an exact counter takes the place of these two
functions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from proxy._scan import Peek

BYTES_PER_TOKEN = 4  # English prose in o200k_base; other scripts and code lie between 2 and 5
TOKENS_PER_MESSAGE = 4  # the three marks around each chat message, and its role
TOKENS_PER_IMAGE = 765  # one image of 1024 x 1024 in high detail by gpt-4o's tiles


def prompt_tokens(facts: Peek) -> int:
    """The prompt's estimated tokens. An image is a constant, whatever its bytes."""
    return (
        -(-facts.text_bytes // BYTES_PER_TOKEN)
        + facts.token_ids
        + facts.messages * TOKENS_PER_MESSAGE
        + facts.images * TOKENS_PER_IMAGE
    )


def text_tokens(text_bytes: int) -> int:
    """The estimated tokens of so many bytes of UTF-8."""
    return -(-text_bytes // BYTES_PER_TOKEN)
