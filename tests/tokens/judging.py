"""Compares Weir's counts with tiktoken's, and says the shortest text that is counted wrongly."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable

import pytest

from proxy.tokens import encoding
from tests.tokens import oracle

# The same texts in every `make test`, so that only a change can make it fail; WEIR_TEST_SEED draws others.
SEED = int(os.environ.get("WEIR_TEST_SEED", "0")) or 20_260_801


def differs(name: str, text: str) -> bool:
    """Whether the two counts of a text differ."""
    return encoding(name).count(oracle.utf8(text)) != oracle.count(name, text)


def shortest(text: str, wrong: Callable[[str], bool]) -> str:
    """A text that is still wrong and from which nothing more can be left out."""
    width = max(1, len(text) // 2)
    while width:
        at = 0
        while at < len(text):
            less = text[:at] + text[at + width :]
            if wrong(less):
                text = less
            else:
                at += width
        width //= 2
    return text


def judge(name: str, texts: Iterable[str], what: str) -> int:
    """Fails at the first text whose count is not tiktoken's; returns how many were compared."""
    count, encode, number = encoding(name).count, oracle.encoding(name).encode_ordinary, 0
    for text in texts:
        number += 1
        if count(oracle.utf8(text)) != len(encode(text)):
            short = shortest(text, lambda part: differs(name, part))
            pytest.fail(
                f"{name}: text {number} of {what} (WEIR_TEST_SEED={SEED}): {short!r} has "
                f"{oracle.count(name, short)} tokens and was counted {count(oracle.utf8(short))}"
            )
    return number
