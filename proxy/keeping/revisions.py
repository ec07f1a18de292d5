"""The keeper's record of the policies it published: written after the fact, so that no database can hold one up."""

from __future__ import annotations

from collections import deque

from proxy import bounds
from proxy.store.revisions import Published
from proxy.store.store import BadData, Store, StoreUnavailable


class Recorder:
    """Call `note` from any thread, and `look` about every second."""

    def __init__(self, host: str, store: Store) -> None:
        self._host = host
        self._store = store
        # While the database is away the oldest are forgotten first, as they would be in the table.
        self._waiting: deque[Published] = deque(maxlen=bounds.POLICY_REVISIONS_MAX)
        self._next: Published | None = None  # taken out of the queue and not known to be in the database

    def __repr__(self) -> str:
        return f"[Recorder: {len(self._waiting) + (self._next is not None)} waiting]"

    def note(self, published: Published) -> None:
        """A policy is in use. Waits for nothing."""
        self._waiting.append(published)

    async def look(self) -> None:
        """Records what waits, in order. What cannot be recorded now is tried again at the next look."""
        while self._next is not None or self._waiting:
            if self._next is None:
                self._next = self._waiting.popleft()
            try:
                await self._store.record_revision(self._host, self._next)
            except (StoreUnavailable, BadData):
                return  # others say that the database is away
            self._next = None
