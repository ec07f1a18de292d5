"""`weir proxy`: supervisor, workers and keeper, on a database whose schema is there already."""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path

from proxy import settings
from proxy.identity import pepper
from proxy.policy.compile import examine
from proxy.policy.secrets import SecretMissing
from proxy.policy.snapshot import Policy
from proxy.settings import Settings
from proxy.store.store import SchemaMismatch, Store, StoreUnavailable
from proxy.supervisor import Helper, Plan, Refused, Supervisor
from proxy.telemetry.log import Log
from proxy.verbs import config_argument


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `weir proxy`."""
    config_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Serves until told to end: 0 after a drain, 1 with a sentence when it cannot start."""
    found = judged(args.config, "proxy")
    if found is None:
        return 1
    process = found[0]
    try:
        supervisor = Supervisor(plan(args.config, process, settings.hand_on(process)), log_of(process))
        pepper.of(process.data_dir, process.pepper)
        asyncio.run(_check_schema(process))
        return asyncio.run(supervisor.run())
    except (Refused, SchemaMismatch, StoreUnavailable, SecretMissing, ValueError, OSError) as error:
        print(f"weir proxy: {error}", file=sys.stderr)
        return 1


def judged(config: Path, verb: str) -> tuple[Settings, Policy] | None:
    """Settings and policy, or None after every problem has been printed.

    Secrets are the concern of the processes that serve: `weir reload` may well run without them.
    """
    examined = examine(config, serving=verb != "reload")
    for warning in examined.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    for problem in examined.problems:
        print(problem, file=sys.stderr)
    if examined.policy is None:
        print(f"weir {verb}: the configuration cannot be used; nothing was changed", file=sys.stderr)
        return None
    return settings.load(config), examined.policy


def plan(config: Path, process: Settings, handed: int, helpers: tuple[Helper, ...] = ()) -> Plan:
    """The supervisor's plan for these settings, which every part inherits as the descriptor `handed`."""
    return Plan(
        data_dir=process.data_dir,
        host=process.listen.host,
        port=process.listen.port,
        workers=process.workers,
        worker=part("worker", config, handed),
        keeper=part("keeper", config, handed),
        helpers=helpers,
        fds=(handed,),
        drain_seconds=process.drain_seconds,
        hangup_stops=sys.stdin is not None and sys.stdin.isatty(),
    )


def part(verb: str, config: Path, handed: int) -> tuple[str, ...]:
    """The command of one part, by the interpreter that runs this one."""
    return (sys.executable, "-m", "proxy", verb, "--config", str(config), "--settings-fd", str(handed))


def log_of(process: Settings) -> Log:
    """The supervisor's own log: plain where requests are shown as summaries."""
    return Log("supervisor", "summary" if process.log_requests == "summary" else "json")


async def _check_schema(process: Settings) -> None:
    store = Store.open(process.database)
    try:
        await store.check_schema()
    except StoreUnavailable as error:
        # A database may start later than what uses it. The keeper looks at its schema when it is there.
        print(f"weir proxy: {error}; /readyz is 503, and so is every call, until it is there", file=sys.stderr)
    finally:
        await store.close()
