"""Telling that keys or people have changed: this host's workers by shared memory, all others by Redis."""

from __future__ import annotations

import os
from pathlib import Path

from proxy._fastpath import Arena
from proxy.clock import boot_id
from proxy.store.redis import RedisTransport, RedisUnavailable


async def announce(data_dir: Path | None, redis: str | None, *words: int) -> None:
    """Makes every worker look again. After the commit: a word raised before it would announce nothing.

    words: of the board, of what has changed. data_dir: None where this process shares none with workers. Waits for
    Redis no longer than a call's bound, and raises nothing for its sake: keepers look by themselves as well.
    """
    if data_dir is not None:
        arena = Arena(os.fspath(data_dir / "arena"), boot_id())
        try:
            for word in words:
                arena.raise_word(word)
        finally:
            arena.close()
    if redis is not None:
        transport = RedisTransport(redis)
        try:
            await transport.announce_keys()
        except RedisUnavailable:
            return  # within KEYS_POLL_SECONDS and a look it is known all the same
        finally:
            await transport.close()
