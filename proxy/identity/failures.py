"""Bad credentials, counted by where they come from, for all workers of a host together.

A site above the limit is told to wait where it would have been told that its credential is bad. A good credential from
there is served, so that one broken client behind a company's address shuts nobody out; only one that nobody here has
seen yet may have to wait its turn, since to find out that a credential is bad costs more than to say so.
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


_SECOND_NS = 1_000_000_000
_TURN_NS = _SECOND_NS // bounds.STRANGERS_PER_SECOND


class Failures:
    """`per_minute` of them from one site in any minute, and as many at once, are answered as what they are."""

    def __init__(self, arena: Arena, per_minute: int) -> None:
        self._arena = arena
        self._per_minute = per_minute
        self._cells: dict[int, Limits] = {}
        self._above: dict[int, int] = {}  # until when a cell's sites are above the limit, as far as this worker knows
        self._turn_ns = 0  # when the next look-up for such a site would be in step

    def note(self, address: Address | None, now_ns: int) -> int:
        """Counts one. 0 while the site is below the limit, else for how many milliseconds it is above it."""
        number = _cell(address)
        try:
            limits = self._cells.get(number)
            if limits is None:
                limits = Limits(self._arena, [(RATE_REQUESTS, b"failures/%d" % number, self._per_minute, 0)])
                self._cells[number] = limits
            if limits.acquire(now_ns, 0):
                self._above[number] = now_ns + limits.wait_ns
                return -(-limits.wait_ns // 1_000_000)
        except ArenaFull:
            return 0  # its answer is the plain one, which lets nobody in either
        return 0

    def hold(self, address: Address | None, now_ns: int) -> int:
        """For how many milliseconds a credential from there that is not known here must wait to be looked at; 0: none.

        Sites above the limit have STRANGERS_PER_SECOND turns together, in each worker, and as many at once.
        """
        if self._above.get(_cell(address), 0) <= now_ns:
            return 0
        turn_ns = max(self._turn_ns, now_ns)
        early_ns = turn_ns - now_ns - (_SECOND_NS - _TURN_NS)
        if early_ns > 0:
            return -(-early_ns // 1_000_000)
        self._turn_ns = turn_ns + _TURN_NS
        return 0


def _cell(address: Address | None) -> int:
    # Sites share a bounded number of cells: a flood from everywhere must not take those of the tenants' limits.
    return crc32(site_of(address).encode()) % bounds.FAILURE_CELLS
