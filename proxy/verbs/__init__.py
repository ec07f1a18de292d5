"""The verbs of `weir`, one a module, and what they have in common."""

from __future__ import annotations

import argparse
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
