"""The verbs of `weir`, one a module, and what they have in common."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
from pathlib import Path


def config_argument(parser: argparse.ArgumentParser) -> None:
    """`--config`: the same for every verb."""
    parser.add_argument(
        "--config",
        type=Path,
        default=Path("config"),
        metavar="DIR",
        help="the directory of weir.yaml (default %(default)s)",
    )


def supervised_arguments(parser: argparse.ArgumentParser, *, required: bool = False) -> None:
    """What a supervisor gives to the parts that it starts: the settings, and a pipe that closes when it dies."""
    parser.add_argument("--settings-fd", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--lifeline-fd", type=int, required=required, help=argparse.SUPPRESS)


def end_of(lifeline: int | None) -> asyncio.Event:
    """Set by SIGTERM, by SIGINT, and when the supervisor at the other end of `lifeline` ends, however it does.

    Inside the running loop.
    """
    loop = asyncio.get_running_loop()
    end = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end.set)

    def look(descriptor: int) -> None:
        if not os.read(descriptor, 4096):
            loop.remove_reader(descriptor)
            end.set()

    if lifeline is not None:
        os.set_blocking(lifeline, False)
        loop.add_reader(lifeline, look, lifeline)
    return end
