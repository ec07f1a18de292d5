"""All Redis names and commands. Redis is transport, never the record: whatever it forgets, the journal still has.

One stream per data directory, `weir:usage:<its id>`; the set `weir:streams` lists them; flushers share the consumer
group `flush`. An entry holds many records: e (epoch, 16 bytes), f and l (first and last position, decimal), r (the
records, each after its length as four bytes, little end first).

Whoever has changed keys or people says so on the channel `weir:keys`. The message says no more than that: what has
changed, the database knows. It may be lost, so every keeper also asks by itself.

Facts that this file leans on (redis.io/docs, data types, streams; checked on 6.2 in the tests): a group created at `$`
misses what was there before, so it is created at 0; MAXLEN deletes unread entries in silence, so only MINID trims, and
never past an unacknowledged entry; XREADGROUP, XACK and XTRIM work on a Redis that is out of memory, XGROUP CREATE does
not, so the group is only created when it is missing.
"""

from __future__ import annotations

import asyncio
import os
import re
import secrets
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from msgspec import Struct
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, ResponseError

from proxy import bounds
from proxy.flush.fold import Batch

STREAMS = "weir:streams"
GROUP = "flush"
KEYS = "weir:keys"
_PREFIX = "weir:usage:"
_WRONG_TYPE = "{} holds another type: find out who uses this name, then delete the key."
_ID = re.compile(r"[0-9a-f]{16}")


class RedisUnavailable(Exception):
    """Redis cannot be reached, did not answer in time, or cannot take writes now. An XADD's fate is then unknown."""


class WrongType(Exception):
    """A name of Weir's holds something else. Only a person can put that right; the message says how."""


class Malformed(ValueError):
    """An entry that no keeper has written. `raw` is what it holds, as far as it goes."""

    def __init__(self, reason: str, raw: bytes) -> None:
        super().__init__(reason)
        self.raw = raw


class Entry(Struct, frozen=True):
    """One stream entry as it lies in Redis."""

    stream: str
    id: str
    fields: Mapping[bytes, bytes]


class StreamState(Struct, frozen=True):
    """A stream as the keeper asks for it. `drained`: the group has acknowledged everything that was ever added.

    When a stream does not exist or is drained, ask the database for the persisted positions *afterwards*: what they are
    short of is not in Redis any more and must be sent again.
    """

    exists: bool
    entries: int  # not trimmed yet
    pending: int  # delivered and not acknowledged
    drained: bool
    oldest_ms: int  # wall clock of the oldest entry, 0 when there is none


def directory_id(data_dir: Path) -> str:
    """The data directory's own name, 16 hex digits, made once: its stream and the origin of its epochs."""
    path = data_dir / "id"
    try:
        found = path.read_text(encoding="ascii").strip()
    except FileNotFoundError:
        temporary = data_dir / f"id.{secrets.token_hex(4)}"
        temporary.write_text(secrets.token_hex(8) + "\n", encoding="ascii")
        try:
            os.link(temporary, path)  # whoever links first decides; it is whole at once
        except FileExistsError:
            pass
        finally:
            temporary.unlink()
        found = path.read_text(encoding="ascii").strip()
    if not _ID.fullmatch(found):
        raise ValueError(f"{path} holds {found!r}, not 16 hexadecimal digits. Remove the file to get a new id.")
    return found


def stream_name(origin: str) -> str:
    """The stream of a data directory."""
    return _PREFIX + origin


def pack(records: Iterable[bytes]) -> bytes:
    """Records as an entry's field `r`."""
    return b"".join(part for record in records for part in (len(record).to_bytes(4, "little"), record))


def unpack(blob: bytes) -> list[bytes]:
    """The inverse of `pack`. Raises ValueError when a length leads past the end."""
    records = []
    at = 0
    while at < len(blob):
        size = int.from_bytes(blob[at : at + 4], "little")
        if at + 4 + size > len(blob):
            raise ValueError(f"a record of {size} bytes at {at} leads past the end, {len(blob)}")
        records.append(blob[at + 4 : at + 4 + size])
        at += 4 + size
    return records


def read_batch(entry: Entry) -> Batch:
    """An entry as the flusher wants it. Raises Malformed."""
    fields = entry.fields
    raw = b"".join(name + value for name, value in fields.items())[: 2 * bounds.SHIP_BYTES_MAX]
    try:
        epoch, blob = fields[b"e"], fields[b"r"]
        first, last = int(fields[b"f"]), int(fields[b"l"])
        records = unpack(blob)
    except KeyError as error:
        raise Malformed(f"entry {entry.id} of {entry.stream} has no field {error.args[0]!r}", raw) from error
    except ValueError as error:
        raise Malformed(f"entry {entry.id} of {entry.stream} cannot be read: {error}", raw) from error
    return Batch(epoch, first, last, records, entry.stream.removeprefix(_PREFIX))


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


class RedisTransport:
    """One connection pool to Redis. No call waits longer than REDIS_SECONDS_MAX (beside its own `block_ms`).

    Every method raises RedisUnavailable, and WrongType where a name is taken by something else.
    """

    def __init__(self, url: str, *, consumer: str = "") -> None:
        self.consumer = consumer or secrets.token_hex(8)
        self._client: Redis = Redis.from_url(
            url,
            # The client's own ten retries would turn a stalled Redis into one that answers after many seconds.
            retry=Retry(NoBackoff(), 0),
            # `_bounded` bounds every call. The client's own bound is asyncio.wait_for, which on Python 3.11 loses a
            # cancellation that comes in the instant of success: then a duty would outlive its end.
            socket_timeout=None,
            socket_connect_timeout=bounds.REDIS_SECONDS_MAX,
            client_name="weir",
            protocol=2,
        )

    async def close(self) -> None:
        """Closes the connections."""
        await self._client.aclose()

    @asynccontextmanager
    async def _bounded(self, what: str, seconds: float = 0) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(bounds.REDIS_SECONDS_MAX + seconds):
                yield
        except ResponseError as error:
            if "WRONGTYPE" in str(error):
                raise WrongType(_WRONG_TYPE.format(what)) from error
            raise RedisUnavailable(f"{what}: {error}") from error
        except (RedisError, OSError, TimeoutError) as error:
            raise RedisUnavailable(f"{what}: {type(error).__name__}: {error}") from error

    async def ping(self) -> None:
        """Answers, or raises."""
        async with self._bounded("PING"):
            await self._client.ping()

    # === changes of keys ===

    async def announce_keys(self) -> None:
        """Tells every host that keys or people have changed. After the commit: who hears it asks the database."""
        async with self._bounded(KEYS):
            await self._client.publish(KEYS, b"1")

    async def hear_keys(self, heard: Callable[[], None]) -> None:
        """Calls `heard` once the channel is joined (what was said before is lost), and at each announcement.

        Returns never: raises RedisUnavailable when the channel is lost. One that has been silent must prove that it
        still stands, so that a connection which only seems to is found out within KEYS_CHANNEL_SECONDS and a call's
        bound.
        """
        channel = self._client.pubsub()
        try:
            async with self._bounded(KEYS):
                await channel.subscribe(KEYS)
                await channel.get_message(timeout=None)  # the answer to it
            heard()
            while True:
                async with self._bounded(KEYS, bounds.KEYS_CHANNEL_SECONDS):
                    message = await channel.get_message(timeout=bounds.KEYS_CHANNEL_SECONDS)
                if message is None:
                    async with self._bounded(KEYS):
                        await channel.ping()
                        message = await channel.get_message(timeout=None)
                if message is not None and message["type"] == "message":
                    heard()
        finally:
            await channel.aclose()  # type: ignore[no-untyped-call]

    # === the keeper's side ===

    async def ship(self, origin: str, epoch: bytes, first: int, last: int, records: bytes) -> int:
        """Adds one entry; `records` is what `pack` made. When it raises, the entry may be there: send it again.

        Returns the milliseconds of the entry's id: once the stream's `oldest_ms` is beyond it, it is gone.
        """
        stream = stream_name(origin)
        fields: Any = {"e": epoch, "f": str(first), "l": str(last), "r": records}
        async with self._bounded(stream):
            pipeline = self._client.pipeline(transaction=False)
            pipeline.sadd(STREAMS, origin)  # each time: a Redis that has forgotten everything must learn it again
            pipeline.xadd(stream, fields)
            results = await pipeline.execute(raise_on_error=False)
            for name, result in zip((STREAMS, stream), results, strict=True):
                if isinstance(result, ResponseError) and "WRONGTYPE" in str(result):
                    raise WrongType(_WRONG_TYPE.format(name))
                if isinstance(result, Exception):
                    raise result
            return int(_text(results[1]).split("-")[0])

    async def state(self, origin: str) -> StreamState:
        """What is in the stream of a data directory, and whether the flushers are done with it."""
        stream = stream_name(origin)
        async with self._bounded(stream):
            try:
                info: Any = await self._client.xinfo_stream(stream)
                groups: Any = await self._client.xinfo_groups(stream)
            except ResponseError as error:
                if _missing(error):
                    return StreamState(False, 0, 0, False, 0)
                raise
        first = info["first-entry"]
        oldest_ms = int(_text(first[0]).split("-")[0]) if first else 0
        for group in groups:
            if _text(group["name"]) == GROUP:
                # By the last entry that is still there: one that was deleted unread will never be delivered.
                last = info["last-entry"]
                done = not last or _order(_text(group["last-delivered-id"])) >= _order(_text(last[0]))
                pending = int(group["pending"])
                return StreamState(True, info["length"], pending, done and pending == 0, oldest_ms)
        # No flusher has ever been here. An empty stream holds nothing that could still arrive.
        return StreamState(True, info["length"], 0, info["length"] == 0, oldest_ms)

    # === the flusher's side ===

    async def streams(self) -> list[str]:
        """The streams that keepers have registered."""
        async with self._bounded(STREAMS):
            members: Any = await self._client.smembers(STREAMS)
        return sorted(stream_name(_text(member)) for member in members)

    async def ensure_group(self, stream: str) -> None:
        """Creates the group at 0, and the stream with it, unless it is there."""
        async with self._bounded(stream):
            try:
                await self._client.xgroup_create(stream, GROUP, id="0", mkstream=True)
            except ResponseError as error:
                if "BUSYGROUP" not in str(error):
                    raise

    async def read(self, streams: Sequence[str], count: int, block_ms: int) -> list[Entry]:
        """Up to `count` entries of each stream that no consumer has seen. Raises KeyError when a group is missing."""
        async with self._bounded(" ".join(streams), block_ms / 1000):
            try:
                found: Any = await self._client.xreadgroup(
                    GROUP, self.consumer, dict.fromkeys(streams, ">"), count=count, block=block_ms
                )
            except ResponseError as error:
                if _missing(error):
                    raise KeyError(str(error)) from error
                raise
        return [
            Entry(_text(stream), _text(entry_id), fields)
            for stream, entries in found or []
            for entry_id, fields in entries
        ]

    async def claim(self, stream: str, idle_ms: int, count: int) -> tuple[list[Entry], int]:
        """Takes over entries that another consumer left unacknowledged for `idle_ms`.

        Returns them, and how many had been deleted under the group's feet (those are acknowledged: nobody can deliver
        them any more, and the keeper sends again what the database lacks). Raises KeyError when the group is missing.
        """
        async with self._bounded(stream):
            try:
                answer: Any = await self._client.xautoclaim(
                    stream, GROUP, self.consumer, idle_ms, count=count, justid=True
                )
            except ResponseError as error:
                if _missing(error):
                    raise KeyError(str(error)) from error
                raise
            # 6.2 answers [next, ids], 7.0 also the ids it dropped; the client may or may not unwrap the list.
            ids = [_text(one) for one in _claimed_ids(answer)]
            if not ids:
                return [], 0
            pipeline = self._client.pipeline(transaction=False)
            for entry_id in ids:
                pipeline.xrange(stream, entry_id, entry_id)
            bodies = await pipeline.execute()
            entries = [Entry(stream, entry_id, body[0][1]) for entry_id, body in zip(ids, bodies, strict=True) if body]
            gone = [entry_id for entry_id, body in zip(ids, bodies, strict=True) if not body]
            if gone:
                await self._client.xack(stream, GROUP, *gone)
        return entries, len(gone)

    async def acknowledge(self, stream: str, ids: Sequence[str]) -> None:
        """Only after the commit. Repeating it does no harm."""
        async with self._bounded(stream):
            await self._client.xack(stream, GROUP, *ids)

    async def trim(self, stream: str) -> int:
        """Deletes entries older than the oldest unacknowledged one; returns how many. No group or stream: none."""
        async with self._bounded(stream):
            try:
                groups: Any = await self._client.xinfo_groups(stream)
            except ResponseError as error:
                if _missing(error):
                    return 0
                raise
            # Asked in this order: what is delivered later lies beyond `delivered` and is not touched.
            delivered = [_text(group["last-delivered-id"]) for group in groups if _text(group["name"]) == GROUP]
            if not delivered:
                return 0
            pending: Any = await self._client.xpending(stream, GROUP)
            oldest = _text(pending["min"]) if pending["pending"] else _next(delivered[0])
            trimmed: Any = await self._client.xtrim(stream, minid=oldest, approximate=False)
            return int(trimmed)

    async def leave(self, stream: str) -> None:
        """Takes this consumer out of the group when nothing is pending for it, so that names do not pile up."""
        async with self._bounded(stream):
            try:
                consumers: Any = await self._client.xinfo_consumers(stream, GROUP)
            except ResponseError as error:
                if _missing(error):
                    return
                raise
            for consumer in consumers:
                if _text(consumer["name"]) == self.consumer and not consumer["pending"]:
                    await self._client.xgroup_delconsumer(stream, GROUP, self.consumer)


def _missing(error: ResponseError) -> bool:
    """No such stream, no such group, or the stream was deleted while a read waited on it."""
    return any(words in str(error) for words in ("NOGROUP", "no such key", "UNBLOCKED"))


def _claimed_ids(answer: Any) -> list[Any]:
    if len(answer) >= 2 and isinstance(answer[1], list):
        return list(answer[1])
    return list(answer)


def _order(entry_id: str) -> tuple[int, int]:
    milliseconds, _, number = entry_id.partition("-")
    return int(milliseconds), int(number or 0)


def _next(entry_id: str) -> str:
    milliseconds, number = _order(entry_id)
    return f"{milliseconds}-{number + 1}"
