"""One proxy worker. The supervisor starts it; it is of no use alone."""

from __future__ import annotations

import argparse
import socket
import sys
from pathlib import Path

import uvloop

from proxy import settings
from proxy.policy.load import PolicyErrors
from proxy.policy.secrets import SecretMissing
from proxy.store.store import SchemaMismatch, StoreUnavailable
from proxy.telemetry.log import Log
from proxy.verbs import supervised_arguments
from proxy.wiring import CannotStart, work


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments that the supervisor gives."""
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--place", type=int, required=True)
    parser.add_argument("--listen-fd", type=int, required=True)
    supervised_arguments(parser, required=True)


def run(args: argparse.Namespace) -> int:
    """Serves until drained. 0 after a drain, 1 when it could not start."""
    listener = socket.socket(fileno=args.listen_fd)
    listener.setblocking(False)
    try:
        process = settings.of_part(args.config, args.settings_fd)
        Log(f"worker {args.place}", "summary" if process.log_requests == "summary" else "json").take_over()
        uvloop.run(work(process, args.place, listener, args.lifeline_fd))
    except (CannotStart, PolicyErrors, SecretMissing, SchemaMismatch, StoreUnavailable, OSError, ValueError) as error:
        print(f"weir worker: {error}", file=sys.stderr)
        return 1
    return 0
