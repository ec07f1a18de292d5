"""100,000 random texts for each encoding, counted as tiktoken counts them; a million and more in `make soak`."""

from __future__ import annotations

import random

import pytest

from tests.tokens import texts
from tests.tokens.judging import SEED, judge
from tests.tokens.oracle import NAMES


@pytest.mark.parametrize("kind", texts.KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("name", NAMES)
def test_random_texts(name: str, kind: texts.Kind) -> None:
    """Aim: no text of any kind is counted otherwise than by tiktoken."""
    number = texts.KINDS[kind]
    assert judge(name, texts.some(kind, number, SEED), kind.__name__) == number


def test_a_hundred_thousand() -> None:
    """Aim: the kinds together are the 100,000 texts that are promised."""
    assert sum(texts.KINDS.values()) == 100_000


@pytest.mark.soak
@pytest.mark.parametrize("kind", texts.KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("name", NAMES)
def test_a_million(name: str, kind: texts.Kind) -> None:
    """Aim: the same of 1,000,000 texts that no run has seen."""
    number = texts.KINDS[kind] * 10
    seed = random.randrange(2**32)
    assert judge(name, texts.some(kind, number, seed), f"{kind.__name__}, seed {seed}") == number
