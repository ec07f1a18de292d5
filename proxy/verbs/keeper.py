"""The keeper as a process: started by the supervisor, or alone for a data directory whose workers run elsewhere."""

from __future__ import annotations

import argparse
import asyncio
import sys

import msgspec

from proxy import settings
from proxy.keeper import CannotKeep, Keeper
from proxy.policy.problems import PolicyErrors
from proxy.telemetry.log import Log
from proxy.verbs import config_argument, supervised_arguments


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments that a supervisor gives; it can be started without one."""
    config_argument(parser)
    supervised_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Keeps until told to end: 0 after a last ship, 1 when it cannot work here."""

    async def keep() -> None:
        found = settings.of_part(args.config, args.settings_fd)
        log = Log("keeper", "summary" if found.log_requests == "summary" else "json")
        log.take_over()
        await Keeper(found, log, lifeline=-1 if args.lifeline_fd is None else args.lifeline_fd).run()

    try:
        asyncio.run(keep())
    except PolicyErrors as errors:
        for problem in errors.problems:
            print(problem, file=sys.stderr)
        return 1
    except (CannotKeep, ValueError, msgspec.ValidationError) as error:
        print(f"weir keeper: {error}", file=sys.stderr)
        return 1
    return 0
