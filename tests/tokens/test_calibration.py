"""Bytes per token: learnt from what upstreams say, smoothed, bounded, and deaf to nonsense."""

from __future__ import annotations

import random

import pytest

from proxy.tokens.calibration import PRIOR_TOKENS, SAMPLE_TOKENS_MAX, SAMPLE_TOKENS_MIN, WINDOW_TOKENS, Ratio
from proxy.tokens.estimate import text_tokens


def test_it_begins_at_four_and_follows_what_is_said() -> None:
    """A model of 2.5 bytes a token is estimated within 2 % after a window's worth of its own figures."""
    ratio = Ratio()
    assert ratio.milli == 4000
    before = []
    for _ in range(2 * WINDOW_TOKENS // 200):
        ratio.learn(500, 200)
        before.append(ratio.milli)
    assert before == sorted(before, reverse=True)
    assert abs(ratio.milli - 2500) < 50
    assert text_tokens(10_000, ratio.milli) == -(-10_000 * 1000 // ratio.milli)


def test_one_call_is_one_voice() -> None:
    """However long its prompt, one call moves the ratio by at most SAMPLE_TOKENS_MAX tokens' worth."""
    long, capped = Ratio(), Ratio()
    long.learn(2_000_000, 1_000_000)
    capped.learn(2 * SAMPLE_TOKENS_MAX, SAMPLE_TOKENS_MAX)
    assert long.milli == capped.milli
    expected = (PRIOR_TOKENS * 4 + SAMPLE_TOKENS_MAX * 2) / (PRIOR_TOKENS + SAMPLE_TOKENS_MAX)
    assert long.milli == round(expected * 1000)


def test_old_samples_fade() -> None:
    """A model that is changed to another script is followed: what came before weighs less and less."""
    ratio = Ratio()
    for _ in range(1000):
        ratio.learn(4500, 1000)
    assert abs(ratio.milli - 4500) < 20
    for _ in range(1000):
        ratio.learn(1500, 1000)
    assert abs(ratio.milli - 1500) < 20


@pytest.mark.parametrize(
    ("text_bytes", "tokens"),
    [(0, 0), (0, 500), (100, SAMPLE_TOKENS_MIN - 1), (499, 500), (4001, 500), (-5, 20), (1 << 50, 20), (100, -20)],
)
def test_what_no_text_could_give_is_left_out(text_bytes: int, tokens: int) -> None:
    """Tiny samples, hidden thoughts, images, and figures that are lies change nothing."""
    ratio = Ratio()
    ratio.learn(text_bytes, tokens)
    assert ratio.milli == 4000


def test_it_stays_between_its_bounds() -> None:
    """Whatever an upstream says, the ratio is from 1 to 8 bytes a token."""
    seed = 20261122
    rng = random.Random(seed)
    ratio = Ratio()
    for _ in range(5000):
        ratio.learn(rng.randrange(-10, 1 << rng.randrange(1, 40)), rng.randrange(-10, 1 << rng.randrange(1, 40)))
        assert 1000 <= ratio.milli <= 8000, seed
    for tokens, milli in ((1, 1000), (8, 8000)):
        extreme = Ratio()
        for _ in range(3000):
            extreme.learn(1000 * tokens, 1000)
        assert abs(extreme.milli - milli) < 20
