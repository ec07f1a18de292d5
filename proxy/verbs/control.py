"""`weir control`: the admin API. Runs alone, or as a part that `weir run` starts and watches."""

from __future__ import annotations

import argparse
import asyncio
import logging
import socket
import sys

from proxy import settings
from proxy.control.callers import Callers
from proxy.control.cursors import Cursors
from proxy.control.office import Office
from proxy.control.policies import Policies
from proxy.control.server import Port
from proxy.control.signing import SignIns
from proxy.identity import pepper
from proxy.identity.announce import announce
from proxy.identity.desk import Desk
from proxy.places import CannotListen, bind, context_of
from proxy.policy.problems import PolicyErrors
from proxy.policy.secrets import SecretMissing
from proxy.settings import Settings
from proxy.store.store import SchemaMismatch, Store, StoreUnavailable
from proxy.telemetry.log import Log
from proxy.verbs import config_argument, end_of, supervised_arguments


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `weir control`; what it inherits is the supervisor's."""
    config_argument(parser)
    parser.add_argument("--listen-fd", type=int, help=argparse.SUPPRESS)
    supervised_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Serves until told to end: 0 after that, 1 with a reason when it cannot work."""
    try:
        process = settings.of_part(args.config, args.settings_fd)
        asyncio.run(_control(args, process))
    except PolicyErrors as errors:
        for problem in errors.problems:
            print(problem, file=sys.stderr)
        return 1
    except (CannotListen, SchemaMismatch, StoreUnavailable, SecretMissing, ValueError, OSError) as error:
        print(f"weir control: {error}", file=sys.stderr)
        return 1
    return 0


def listener_of(process: Settings) -> socket.socket:
    """The control port, bound. Raises CannotListen."""
    try:
        return bind(process.control.host, process.control.port, 1)[0]
    except CannotListen as error:
        raise CannotListen(f"control: {error}") from None


def office_of(process: Settings, store: Store) -> Office:
    """Everything that the operations need. Raises PolicyErrors, SecretMissing, ValueError. Inside the running loop."""
    policies = Policies(process)
    secret = pepper.of(process.data_dir, process.pepper)
    desk = Desk(store, lambda: secret, lambda *words: announce(process.data_dir, process.redis, *words))
    callers = Callers(store, secret, policies.current)
    return Office(process, store, desk, policies, callers, Cursors(secret), SignIns(process, store, policies))


async def _control(args: argparse.Namespace, process: Settings) -> None:
    log = Log("control", "summary" if process.log_requests == "summary" else "json")
    log.take_over()
    # aiohttp writes a traceback for each malformed request: whoever sends them would fill the log.
    logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL + 1)
    tls = context_of(process.control.tls)
    store = Store.open(process.database)
    stop = end_of(args.lifeline_fd)
    try:
        try:
            await store.check_schema()
        except StoreUnavailable as error:
            log.warning("every request is told 503 until the database is there", reason=str(error))
        process.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        office = office_of(process, store)
        listener = listener_of(process) if args.listen_fd is None else socket.socket(fileno=args.listen_fd)
        listener.setblocking(False)
        port = Port(office, log)
        await port.open(listener, tls)
        try:
            if args.listen_fd is None:  # else the supervisor says so
                log.info("serving the admin API", port=listener.getsockname()[1])
            await stop.wait()
        finally:
            await port.close()
            await office.sign_ins.close()
    finally:
        await store.close()
