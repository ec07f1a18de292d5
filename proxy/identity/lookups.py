"""Questions to the key table: each digest asked for once at a time, many in one query, one query at a time.

However many keys are asked for, the database sees one connection; beyond a bound they are refused, and not queued.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from itertools import islice

from msgspec import Struct

from proxy import bounds
from proxy.errors import Refusal
from proxy.store.keys import KeyRow


class Words(Struct, frozen=True):
    """The words of the board under which a look at the table was made: they were read before it."""

    generation: int
    created: int


class Found(Struct, frozen=True):
    """What the table says of a digest. `row` None: it has none."""

    row: KeyRow | None
    words: Words


_Waiter = asyncio.Future[Found | None]  # None: the table could not be asked


class LookUps:
    """look_up_all: the rows of these digests. words: as they are now. waiting_max: digests that may wait."""

    def __init__(
        self,
        look_up_all: Callable[[Sequence[bytes]], Awaitable[Sequence[KeyRow]]],
        words: Callable[[], Words],
        waiting_max: int,
    ) -> None:
        self._look_up_all = look_up_all
        self._words = words
        self._waiting_max = waiting_max
        self._waiting: dict[bytes, _Waiter] = {}
        self._asked: dict[bytes, _Waiter] = {}  # by the query under way
        self._asked_under: Words | None = None
        self._running: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"[LookUps: {len(self._asked)} asked, {len(self._waiting)} waiting]"

    async def find(self, digest: bytes) -> Found:
        """What the table says now, or said after the last change that the board tells of.

        Raises Refusal store_unavailable: it cannot be asked, or too many are waiting, or it takes too long. Who stops
        waiting takes nothing from the others.
        """
        waiter = self._waiting.get(digest)
        if waiter is None and self._asked_under == self._words():
            waiter = self._asked.get(digest)  # nothing has changed since that query began: its answer is as good
        if waiter is None:
            if len(self._waiting) >= self._waiting_max:
                raise Refusal("store_unavailable", retry_after_ms=1000)
            waiter = self._waiting[digest] = asyncio.get_running_loop().create_future()
            if self._running is None or self._running.done():
                self._running = asyncio.create_task(self._run())
        try:
            async with asyncio.timeout(bounds.KEYS_WAIT_SECONDS_MAX):
                found = await asyncio.shield(waiter)
        except TimeoutError:
            found = None
        if found is None:
            raise Refusal("store_unavailable", retry_after_ms=1000)
        return found

    async def _run(self) -> None:
        while self._waiting:
            digests = list(islice(self._waiting, bounds.KEYS_RENEWED_AT_ONCE))
            self._asked = {digest: self._waiting.pop(digest) for digest in digests}
            # The words are read before the table: a change between the two makes what is found stale, never fresh.
            self._asked_under = words = self._words()
            rows: dict[bytes, KeyRow] | None = None
            try:
                rows = {row.digest: row for row in await self._look_up_all(digests)}
            except Exception:
                rows = None  # each that waits is told, and its client tries again
            finally:
                for digest, waiter in self._asked.items():
                    waiter.set_result(None if rows is None else Found(rows.get(digest), words))
                self._asked = {}
