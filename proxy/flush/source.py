"""Where entries come from: the streams of all data directories, and what dead flushers left behind in them.

Any number of flushers share the work; the consumer group gives each entry to one of them. What a flusher has read stays
pending under its name until it acknowledges; when it dies, another one claims it after `claim_idle_seconds`.
"""

from __future__ import annotations

from collections.abc import Iterable

from proxy import bounds, clock
from proxy.flush.notices import Notices
from proxy.store.redis import STREAMS, Entry, RedisTransport, WrongType

ENTRIES_MAX = max(1, bounds.FLUSH_RECORDS_MAX // bounds.SHIP_RECORDS_MAX)  # in one transaction
_REFRESH_NS = 1_000_000_000  # how often the list of streams is read: a new host waits no longer for its first flush


class Source:
    """Reads, acknowledges and trims. Raises RedisUnavailable; a name of another type is an alarm and is left alone."""

    def __init__(self, transport: RedisTransport, notices: Notices, claim_idle_seconds: float) -> None:
        self._transport = transport
        self._notices = notices
        self._idle_ms = int(claim_idle_seconds * 1000)
        self._claim_every_ns = int(claim_idle_seconds * 1e9) // 3
        self.streams: list[str] = []
        self._refreshed_ns = 0
        self._claimed_ns: dict[str, int] = {}
        self._unacknowledged: dict[str, list[str]] = {}
        self.vanished = 0  # entries that were deleted while they were pending

    async def read(self) -> list[Entry]:
        """The next entries, abandoned ones first; waits up to FLUSH_BLOCK_MS for one. Acknowledges leftovers before."""
        await self.acknowledge()
        await self._refresh()
        try:
            claimed = await self._claim()
            if claimed or not self.streams:
                return claimed
            # COUNT is for each stream: shared out, so that what is held in memory does not grow with the hosts.
            count = max(1, ENTRIES_MAX // len(self.streams))
            return await self._transport.read(self.streams, count, bounds.FLUSH_BLOCK_MS)
        except (KeyError, WrongType):
            # A group is missing (Redis forgot it) or a stream's name is taken: find out which, one by one.
            await self._repair()
            return []

    async def _refresh(self) -> None:
        now = clock.now_ns()
        if self._refreshed_ns and now - self._refreshed_ns < _REFRESH_NS:
            return
        try:
            names = await self._transport.streams()
            self._notices.well(STREAMS)
        except WrongType as error:
            self._notices.trouble(STREAMS, str(error))
            names = []
        usable = []
        for name in names:
            if name in self.streams or await self._usable(name):
                usable.append(name)
        self.streams = usable
        self._refreshed_ns = now

    async def _usable(self, name: str) -> bool:
        try:
            # A flusher that died between acknowledging and trimming left this to whoever comes next.
            await self._transport.trim(name)
        except WrongType as error:
            self._notices.trouble(name, str(error))
            return False
        self._notices.well(name)
        return True

    async def _repair(self) -> None:
        usable = []
        for name in self.streams:
            try:
                await self._transport.ensure_group(name)
                usable.append(name)
            except WrongType as error:
                self._notices.trouble(name, str(error))
        self.streams = usable

    async def _claim(self) -> list[Entry]:
        now = clock.now_ns()
        for name in self.streams:
            if now - self._claimed_ns.get(name, now - self._claim_every_ns) < self._claim_every_ns:
                continue
            entries, gone = await self._transport.claim(name, self._idle_ms, ENTRIES_MAX)
            if gone:
                self.vanished += gone
                self._notices.log.error(
                    "entries were deleted before they were flushed; the keeper sends them again",
                    stream=name,
                    entries=gone,
                )
            if len(entries) + gone < ENTRIES_MAX:
                self._claimed_ns[name] = now  # nothing more to claim for now
            if entries:
                return entries
        return []

    def done(self, entries: Iterable[Entry]) -> None:
        """Notes that these are in the database. They are acknowledged at the next occasion that Redis gives."""
        for entry in entries:
            self._unacknowledged.setdefault(entry.stream, []).append(entry.id)

    async def acknowledge(self) -> None:
        """Acknowledges what is done. What fails is kept and tried again."""
        for name in list(self._unacknowledged):
            try:
                await self._transport.acknowledge(name, self._unacknowledged[name])
            except WrongType as error:
                self._notices.trouble(name, str(error))
            del self._unacknowledged[name]

    async def trim(self, names: Iterable[str]) -> None:
        """Deletes what every flusher has acknowledged."""
        for name in names:
            try:
                await self._transport.trim(name)
            except WrongType:
                continue  # replaced meanwhile: the next read finds out

    async def leave(self) -> None:
        """Takes this flusher's name out of the groups."""
        for name in self.streams:
            try:
                await self._transport.leave(name)
            except WrongType:
                continue
