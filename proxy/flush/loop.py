"""The flusher: Redis streams into the database, exactly once whatever dies, in five numbered steps.

Every promise below holds at any instant of a kill, of this process, of Redis or of the database.
"""

from __future__ import annotations

import asyncio
import random

from proxy import bounds, failpoint
from proxy.flush.fold import Folded, Quarantined, fold
from proxy.flush.notices import Notices
from proxy.flush.source import ENTRIES_MAX, Source
from proxy.store.redis import Entry, Malformed, RedisTransport, RedisUnavailable, read_batch
from proxy.store.store import Persisted, Store, StoreUnavailable
from proxy.telemetry.log import Log

_SPLIT_AFTER = 3  # failures of a batch, with the database in reach, until its entries are tried one by one


class Flusher:
    """One flusher. `run` returns when `stop` is set and the turn in hand is over."""

    def __init__(
        self,
        store: Store,
        transport: RedisTransport,
        log: Log,
        *,
        claim_idle_seconds: float = bounds.CLAIM_IDLE_SECONDS,
    ) -> None:
        self.store = store
        self.notices = Notices(log)
        self._log = log
        self.source = Source(transport, self.notices, claim_idle_seconds)
        self.totals = Persisted()
        self._held: list[Entry] = []  # read, and not yet in the database
        self._at_once = ENTRIES_MAX
        self._failures = 0

    async def run(self, stop: asyncio.Event) -> None:
        """Flushes until `stop`. Redis or the database away: waits, longer each time up to a bound, and goes on."""
        waits = 0
        while not stop.is_set():
            try:
                entries = await self.turn()
                waits = 0
                self.notices.well("Redis")
                delay = 0.0 if entries or self.source.streams else bounds.FLUSH_BLOCK_MS / 1000
            except RedisUnavailable as error:
                self.notices.trouble("Redis", f"Redis is away, usage waits in the journals: {error}")
                waits += 1
                delay = _backoff(waits)
            except StoreUnavailable as error:
                self.notices.trouble("database", f"The database is away, usage waits in Redis: {error}")
                waits += 1
                delay = _backoff(waits)
            if delay:
                try:
                    await asyncio.wait_for(stop.wait(), delay)
                except TimeoutError:
                    continue
        try:
            await self.source.acknowledge()
            await self.source.leave()
        except RedisUnavailable:
            self._log.warning("Redis is away; what is not acknowledged will be delivered to another flusher")

    async def turn(self) -> int:
        """One round of the five steps; returns how many entries reached the database. Raises what is away."""
        # 1 Read. Entries stay pending under this flusher's name: if it dies from here on, another one claims them.
        if not self._held:
            self._held = await self.source.read()
            if not self._held:
                return 0
        entries = self._held[: self._at_once]

        try:
            # 2 Fold. Pure: doubles inside the batch fall away, what cannot be read is set aside with its reason.
            folded = fold_entries(entries)
            failpoint.reach("flush.before_persist")

            # 3 Persist. One transaction: all of it is in the database, or nothing. A record that is there already
            #   changes neither rows nor roll-ups, so steps 1 to 3 may be repeated any number of times.
            persisted = await self.store.persist_folded(folded)
        except Exception as error:  # whatever it is: these entries must neither be lost nor stop the others
            await self._not_persisted(entries, error)
            return 0
        failpoint.reach("flush.after_commit")
        self._note(persisted)
        self._held = self._held[len(entries) :]

        # 4 Acknowledge. Only now: an acknowledged entry is in the database. Unacknowledged, it comes again as a double.
        self.source.done(entries)
        await self.source.acknowledge()
        failpoint.reach("flush.after_ack")

        # 5 Trim. Only what lies before the oldest entry that anyone has not acknowledged.
        await self.source.trim({entry.stream for entry in entries})
        failpoint.reach("flush.after_trim")
        return len(entries)

    def _note(self, persisted: Persisted) -> None:
        self._failures = 0
        self._at_once = ENTRIES_MAX
        self.notices.well("database")
        self.totals.new += persisted.new
        self.totals.doubles += persisted.doubles
        self.totals.conflicts += persisted.conflicts
        self.totals.quarantined += persisted.quarantined
        if persisted.conflicts:
            self._log.error("records contradict rows that exist; see `weir usage verify`", records=persisted.conflicts)
        if persisted.quarantined:
            self._log.error(
                "unreadable records are in quarantine; see `weir usage verify`", records=persisted.quarantined
            )

    async def _not_persisted(self, entries: list[Entry], error: Exception) -> None:
        """The database is away: raise, and wait. It is there and refuses these: never let one entry stop the others."""
        await self.store.ping()
        self._failures += 1
        if self._failures < _SPLIT_AFTER:
            raise StoreUnavailable(f"{type(error).__name__}: {error}") from error
        self._failures = 0
        if len(entries) > 1:
            self._at_once = 1
            return
        # It stays pending, so nothing is lost, and is claimed and tried again when its time has come.
        self._log.error(f"an entry is left in the stream: {error}", stream=entries[0].stream, entry=entries[0].id)
        self._held = self._held[1:]


def fold_entries(entries: list[Entry]) -> Folded:
    """Entries as rows. One that no keeper has written is set aside whole, under the position 0 of no epoch."""
    batches = []
    malformed = []
    for entry in entries:
        try:
            batches.append(read_batch(entry))
        except Malformed as error:
            malformed.append(Quarantined(b"", 0, error.raw, str(error)))
    folded = fold(batches)
    folded.quarantined.extend(malformed)
    return folded


def _backoff(waits: int) -> float:
    """Seconds before the next try: doubling from a twentieth, with jitter so that flushers do not come all at once."""
    return min(bounds.FLUSH_BACKOFF_SECONDS_MAX, 0.05 * 2.0 ** min(waits, 10)) * random.uniform(0.5, 1.0)
