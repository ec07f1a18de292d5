"""Bytes per token of one model and tenant, learnt from what the upstream says it counted. Pure.

The ratio is one of sums: bytes seen over tokens counted. It begins as PRIOR_TOKENS of 4 bytes each, so the first calls
move it and do not overthrow it. Once WINDOW_TOKENS are in the sums both are halved, so what came before fades.
"""

from __future__ import annotations

from proxy.tokens.estimate import BYTES_PER_TOKEN_MILLI, MILLI

PRIOR_TOKENS = 512
WINDOW_TOKENS = 65_536
SAMPLE_TOKENS_MIN = 16  # in fewer the marks around a message weigh more than its text
SAMPLE_TOKENS_MAX = 4_096  # what one call may weigh: one long prompt is still one voice
BYTES_PER_TOKEN_MIN = 1  # a text in a script that a vocabulary does not know: a token for each byte
BYTES_PER_TOKEN_MAX = 8  # long-worded prose in a large vocabulary stays below 6


class Ratio:
    """`milli` is the bytes of a thousand tokens, at any time between the two bounds."""

    __slots__ = ("_bytes", "_tokens", "milli")

    def __init__(self) -> None:
        self._tokens = float(PRIOR_TOKENS)
        self._bytes = self._tokens * BYTES_PER_TOKEN_MILLI / MILLI
        self.milli = BYTES_PER_TOKEN_MILLI

    def learn(self, text_bytes: int, tokens: int) -> None:
        """Takes one sample in. One that is tiny, or that no text could give, is left out: the tokens were not its."""
        if tokens < SAMPLE_TOKENS_MIN or not tokens * BYTES_PER_TOKEN_MIN <= text_bytes <= tokens * BYTES_PER_TOKEN_MAX:
            return
        weight = 1.0 if tokens <= SAMPLE_TOKENS_MAX else SAMPLE_TOKENS_MAX / tokens
        self._bytes += text_bytes * weight
        self._tokens += tokens * weight
        if self._tokens > WINDOW_TOKENS:
            self._bytes /= 2
            self._tokens /= 2
        self.milli = round(self._bytes * MILLI / self._tokens)
