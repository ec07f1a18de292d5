"""Bad credentials, counted by where they come from, for all workers of a host together.

A site above the limit is told to wait where it would have been told that its credential is bad. That is all: a good
credential from there is served, so that one broken client behind a company's address shuts nobody out.
"""

from __future__ import annotations

from zlib import crc32

from proxy import bounds
from proxy._fastpath import RATE_REQUESTS, Arena, ArenaFull, Limits
from proxy.identity.addresses import Address, site_of

# Refusals of what is nobody's credential. One that has ended, or says too little, was somebody's.
COUNTED = frozenset(
    {
        "invalid_api_key",
        "token_too_large",
        "token_malformed",
        "token_issuer",
        "token_algorithm",
        "token_type",
        "token_key",
        "token_signature",
        "token_audience",
        "token_claim",
    }
)


class Failures:
    """`per_minute` of them from one site in any minute, and as many at once, are answered as what they are."""

    def __init__(self, arena: Arena, per_minute: int) -> None:
        self._arena = arena
        self._per_minute = per_minute
        self._cells: dict[int, Limits] = {}

    def note(self, address: Address | None, now_ns: int) -> int:
        """Counts one. 0 while the site is below the limit, else for how many milliseconds it is above it."""
        # Sites share a bounded number of cells: a flood from everywhere must not take those of the tenants' limits.
        number = crc32(site_of(address).encode()) % bounds.FAILURE_CELLS
        try:
            limits = self._cells.get(number)
            if limits is None:
                limits = Limits(self._arena, [(RATE_REQUESTS, b"failures/%d" % number, self._per_minute, 0)])
                self._cells[number] = limits
            if limits.acquire(now_ns, 0):
                return -(-limits.wait_ns // 1_000_000)
        except ArenaFull:
            return 0  # its answer is the plain one, which lets nobody in either
        return 0
