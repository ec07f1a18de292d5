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
