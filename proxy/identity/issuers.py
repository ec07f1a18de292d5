"""The issuers that the policy names, each with its keys: adopted whole, as the policy is."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol

from msgspec.structs import replace

from proxy.identity.claims import Json
from proxy.identity.jwks import KeySet, published
from proxy.identity.shelf import Shelf
from proxy.policy.snapshot import Issuer
from proxy.telemetry.metrics import Counters


class Tally(Protocol):
    """Who is told of what happens with an issuer, by the name it has in the policy."""

    def refreshed(self, issuer: str, good: bool) -> None: ...

    def retired(self, issuer: str) -> None: ...

    def groups_left_out(self, issuer: str) -> None: ...


class IssuerMetrics:
    """The tally in this worker's counters."""

    def __init__(self, counters: Counters) -> None:
        self._counters = counters

    def refreshed(self, issuer: str, good: bool) -> None:
        """Counts a fetch of an issuer's keys, and says whether this worker goes by older ones from now on."""
        counters = self._counters
        counters.add(counters.series("weir_issuer_refreshes_total", issuer, "ok" if good else "failed"))
        self._aged(issuer, 0 if good else 1)

    def retired(self, issuer: str) -> None:
        """An issuer that the policy no longer names has no aged keys."""
        self._aged(issuer, 0)

    def groups_left_out(self, issuer: str) -> None:
        """Counts a token whose issuer left its groups out."""
        self._counters.add(self._counters.series("weir_issuer_groups_left_out_total", issuer))

    def _aged(self, issuer: str, value: int) -> None:
        self._counters.cells[self._counters.series("weir_issuer_keys_aged", issuer)] = value


class Issuers:
    """Every issuer in use, by its `iss`. An issuer that a new policy does not change keeps its keys."""

    def __init__(
        self,
        tally: Tally,
        fetch: Callable[[Issuer], Awaitable[Json]] = published,
        shelf: Shelf | None = None,
    ) -> None:
        """shelf: where the last good keys of each are kept on this host."""
        self.tally = tally
        self._fetch = fetch
        self._shelf = shelf
        self._sets: dict[str, KeySet] = {}

    def __repr__(self) -> str:
        return f"[Issuers: {', '.join(keys.issuer.name for keys in self._sets.values()) or 'none'}]"

    @property
    def any(self) -> bool:
        """Whether the policy names one at all."""
        return bool(self._sets)

    def of(self, iss: object) -> KeySet | None:
        """The issuer of exactly that name; None for one that nobody trusts."""
        return self._sets.get(iss) if isinstance(iss, str) else None

    def adopt(self, issuers: Mapping[str, Issuer]) -> bool:
        """Takes the issuers of a new policy; whether anything changed. Call inside the running loop."""
        # Where in its file an issuer stands is no matter of its tokens.
        wanted = {issuer.issuer: replace(issuer, source="") for issuer in issuers.values()}
        if wanted == {iss: keys.issuer for iss, keys in self._sets.items()}:
            return False
        before, self._sets = self._sets, {}
        for iss, issuer in wanted.items():
            known = before.get(iss)
            if known is not None and known.issuer == issuer:
                self._sets[iss] = before.pop(iss)
                continue
            keys = self._sets[iss] = KeySet(issuer, self._fetch, self._told(issuer.name), self._shelf)
            if known is not None:
                keys.inherit(known)
            keys.start()
        for iss, keys in before.items():
            self._leave(keys)
            if iss not in wanted and self._shelf is not None:
                self._shelf.drop(keys.issuer)
        return True

    def _told(self, name: str) -> Callable[[bool], None]:
        return lambda good: self.tally.refreshed(name, good)

    def retire(self) -> None:
        """Ends every fetch; nothing is trusted from now on."""
        for keys in self._sets.values():
            self._leave(keys)
        self._sets = {}

    def _leave(self, keys: KeySet) -> None:
        keys.retire()
        self.tally.retired(keys.issuer.name)

    async def close(self) -> None:
        """The same, and waits until the last fetch has ended."""
        sets = list(self._sets.values())
        self.retire()
        await asyncio.gather(*(keys.close() for keys in sets))
