"""Which keys have ended: looks at the database for this host's workers, at once when told to and else by itself.

A look counts from its beginning: whatever was committed before is in the words that it raises. Whoever dies between
two steps here leaves the older time standing, and the next keeper begins by raising the words whatever it finds.
"""

from __future__ import annotations

import asyncio
import contextlib

from proxy import board, bounds, clock, failpoint
from proxy._fastpath import Arena
from proxy.store.redis import RedisTransport, RedisUnavailable
from proxy.store.store import BadData, KeysMark, Store, StoreUnavailable
from proxy.telemetry.log import Log


class KeyWatch:
    """One to a keeper. `store` is its alone: no other duty's long transaction stands in the way of a look."""

    def __init__(self, store: Store, transport: RedisTransport | None, arena: Arena, log: Log) -> None:
        self._store = store
        self._transport = transport
        self._arena = arena
        self._log = log
        self._mark: KeysMark | None = None
        self._told = asyncio.Event()
        self._joined = transport is None
        self._silent = False  # the loss of the channel has been logged
        self._reason = ""  # why the last look came to nothing
        self._stale = False
        self.ending: int | None = None  # keys that end within KEY_SOON_SECONDS; None: nobody has counted yet

    @property
    def joined(self) -> bool | None:
        """Whether this keeper hears what others announce; None without Redis."""
        return None if self._transport is None else self._joined

    async def watch(self) -> None:
        """A duty: one look, when something is announced and after KEYS_POLL_SECONDS in any case."""
        try:
            async with asyncio.timeout(bounds.KEYS_POLL_SECONDS):
                await self._told.wait()
        except TimeoutError:
            pass  # nobody may have been able to tell
        self._told.clear()  # before the look: what is announced while it goes on asks for another one
        await self.look()

    async def look(self) -> None:
        """Makes this host's workers ask again, where keys or people have changed since the last look."""
        began_ns = clock.now_ns()
        try:
            mark = await self._store.keys_mark()
        except (StoreUnavailable, BadData) as error:
            self._reason = str(error)
            return
        failpoint.reach("keys.before_words")
        known, self._mark = self._mark, mark
        if known is None or mark.made != known.made:
            self._arena.raise_word(board.KEYS_CREATED)
        # At the start too: nobody watched while there was no keeper. Fewer keys: an older copy was restored.
        if known is None or mark.changed != known.changed or mark.made < known.made:
            self._arena.raise_word(board.KEYS_GENERATION)
        failpoint.reach("keys.before_fresh")
        self._arena.set_word(board.KEYS_FRESH_NS, began_ns)

    async def count_ending(self, store: Store) -> None:
        """A duty: counts the keys that end soon. store: not the one that looks go by, for it may take its time."""
        now_us = clock.wall_us()
        with contextlib.suppress(StoreUnavailable, BadData):
            self.ending = await store.keys_ending(now_us, now_us + bounds.KEY_SOON_SECONDS * 1_000_000)

    async def listen(self) -> None:
        """A duty: hears announcements until the channel is lost; then it is called again."""
        assert self._transport is not None
        try:
            await self._transport.hear_keys(self._heard)
        except RedisUnavailable as error:
            self._joined = False
            if not self._silent:
                self._silent = True
                self._log.warning("changes of keys are no longer announced here; polling goes on", reason=str(error))

    def _heard(self) -> None:
        if not self._joined:
            self._joined = True
            if self._silent:
                self._silent = False
                self._log.info("changes of keys are announced here again")
        self._told.set()

    async def judge(self) -> None:
        """A duty: says once when the looks have become too old, and once when they are fresh again."""
        stale = board.keys_stale(self._arena, clock.now_ns())
        if stale == self._stale:
            return
        self._stale = stale
        refused = self._arena.word(board.KEYS_ON_STALE) == board.REFUSE
        if stale:
            self._log.error(
                "nobody knows which keys have been revoked of late",
                calls="refused" if refused else "served by what is known here",
                reason=self._reason,
            )
        else:
            self._log.info("it is known again which keys have been revoked")
