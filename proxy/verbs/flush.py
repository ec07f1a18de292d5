"""`weir flush`: moves usage from the Redis streams into the database. Any number may run, on any host."""

from __future__ import annotations

import argparse
import asyncio
import sys

from proxy import bounds, settings
from proxy.flush.loop import Flusher
from proxy.policy.load import PolicyErrors
from proxy.store.redis import RedisTransport
from proxy.store.store import SchemaMismatch, Store, StoreUnavailable, migrate
from proxy.telemetry.log import Log
from proxy.verbs import config_argument, end_of, supervised_arguments


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `weir flush`."""
    config_argument(parser)
    parser.add_argument("--database", metavar="URL", help="instead of the configuration's")
    parser.add_argument("--redis", metavar="URL", help="instead of the configuration's")
    parser.add_argument("--migrate", action="store_true", help="bring the database to this version's schema first")
    parser.add_argument(
        "--claim-idle-seconds",
        type=float,
        default=bounds.CLAIM_IDLE_SECONDS,
        metavar="S",
        help="take over what another flusher left unfinished for so long (default %(default)s)",
    )
    supervised_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Flushes until SIGTERM, SIGINT or the end of the lifeline. 0 after that, 1 when it cannot start."""
    try:
        database, redis = _addresses(args)
        return asyncio.run(_flush(args, database, redis))
    except (PolicyErrors, SchemaMismatch, StoreUnavailable, ValueError) as error:
        print(f"weir flush: {error}", file=sys.stderr)
        return 1


def _addresses(args: argparse.Namespace) -> tuple[str, str]:
    if args.database and args.redis:
        return args.database, args.redis
    process = settings.of_part(args.config, args.settings_fd)
    redis = args.redis or process.redis
    if not redis:
        raise ValueError(
            "there is no Redis to read from: without `redis:` in weir.yaml the keeper writes to the database itself. "
            "Set it, or give --redis URL."
        )
    return args.database or process.database, redis


async def _flush(args: argparse.Namespace, database: str, redis: str) -> int:
    log = Log("flusher")
    store = Store.open(database)
    transport = RedisTransport(redis)
    stop = end_of(args.lifeline_fd)
    try:
        if not await _schema_fits(store, database if args.migrate else None, log, stop):
            return 0
        log.info("flushing", consumer=transport.consumer)
        flusher = Flusher(store, transport, log, claim_idle_seconds=args.claim_idle_seconds)
        await flusher.run(stop)
        totals = flusher.totals
        log.info("stopped", new=totals.new, doubles=totals.doubles, quarantined=totals.quarantined)
    finally:
        await transport.close()
        await store.close()
    return 0


async def _schema_fits(store: Store, migrated: str | None, log: Log, stop: asyncio.Event) -> bool:
    """Waits for a database that is away: it may start after the flusher. Raises SchemaMismatch. False: stopped.

    `migrated` is the URL of a database that is to be migrated first.
    """
    said = False
    while not stop.is_set():
        try:
            if migrated is not None:
                await migrate(migrated)
            await store.check_schema()
            return True
        except StoreUnavailable as error:
            if not said:
                log.error(f"The database is away, usage waits in Redis: {error}", topic="database")
            said = True
        try:
            await asyncio.wait_for(stop.wait(), 1)
        except TimeoutError:
            continue
    return False
