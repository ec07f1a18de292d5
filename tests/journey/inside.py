"""One worker's journey inside the test's own event loop, for what must be held still: the disk, and the front's bounds.

Everything is the product's own, put together as `wiring` does: front, journey, journal, limits, pool. Only the table of
keys is a function, and the journal syncs by whatever the test gives it.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

from proxy import settings
from proxy._fastpath import Arena
from proxy.clock import boot_id
from proxy.front import Front
from proxy.house import House
from proxy.identity import pepper
from proxy.identity.keys import Keys
from proxy.identity.tokens import Tokens
from proxy.journal import Epoch
from proxy.journey import serve
from proxy.policy.compile import compile_policy
from proxy.store.keys import KeyRow
from proxy.telemetry.calls import CallMetrics
from proxy.telemetry.log import Lines
from proxy.telemetry.metrics import Counters
from proxy.verbs.keys import new_row
from proxy.wiring import make_pool
from tests.world.gateway import Gateway
from tests.world.upstream import Upstream


class Inside(NamedTuple):
    """What the test holds: where to connect, and the parts it looks at. Works as a `Gateway` for `calling.Client`."""

    port: int
    key: str
    front: Front
    epoch: Epoch
    upstream: Upstream
    house: House
    row: KeyRow  # of its key


@asynccontextmanager
async def inside(
    directory: Path,
    *,
    strict: bool = False,
    fdatasync: Callable[[int], None] = os.fdatasync,
    tenant: Mapping[str, Any] | None = None,
    written: Mapping[str, Any] | None = None,
    table: Callable[[Sequence[bytes], KeyRow], Awaitable[Sequence[KeyRow]]] | None = None,
    tokens: Callable[[Arena], Tokens] | None = None,
) -> AsyncIterator[Inside]:
    """Serves until the block ends; then nothing may be open.

    written: laid over `weir.yaml`. table: answers for the table of keys; it is given the digests and the key's own row.
    """
    loop = asyncio.get_running_loop()
    async with Upstream() as upstream:
        # For its configuration; nothing of it is started.
        gateway = Gateway(directory, upstream.url, settings=written, tenant=tenant)
        process = settings.load(gateway.config)
        process.data_dir.mkdir(exist_ok=True)
        secret, row = new_row(process, "acme", "inside")

        async def look_up_all(digests: Sequence[bytes]) -> Sequence[KeyRow]:
            if table is not None:
                return await table(digests, row)
            return [row] if row.digest in digests else []

        epoch = Epoch.create(
            process.data_dir / "journal",
            str(process.data_dir / "arena"),
            boot_id(),
            slots=64,
            segment_bytes=1024 * 1024,
            max_bytes=1 << 28,
            sync_ms=50,
            fdatasync=fdatasync,
        )
        counters = Counters(process.data_dir / "metrics", epoch.column)
        keys = Keys(epoch.arena, pepper.of(process.data_dir, process.pepper), look_up_all)
        policy = compile_policy(gateway.config)
        house = House(
            loop,
            policy,
            keys,
            epoch,
            make_pool,
            CallMetrics(counters),
            Lines("off"),
            strict=strict,
            tokens=None if tokens is None else tokens(epoch.arena),
        )
        front = Front(loop, serve, house)
        listener = socket.create_server(("127.0.0.1", 0))
        server = await loop.create_server(front, sock=listener)
        try:
            yield Inside(listener.getsockname()[1], secret, front, epoch, upstream, house, row)
        finally:
            server.close()
            front.drain()
            await front.close()
            while house.sweeper.running() or front.requests:
                await asyncio.sleep(0.01)
            house.close()
            epoch.finish()
            counters.close()
            await server.wait_closed()
