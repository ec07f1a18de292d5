"""`weir demo`: the built-in demo upstream alone."""

from __future__ import annotations

import argparse
import sys

from proxy import demo


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `weir demo`."""
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1)")
    parser.add_argument("--port", type=int, default=8081, help="port to listen on (default 8081)")


def run(args: argparse.Namespace) -> int:
    """Serves until it is told to end. 0 after that, 1 when the address cannot be had."""
    try:
        return demo.run(args.host, args.port)
    except OSError as error:
        print(f"weir demo: cannot listen on {args.host}:{args.port}: {error}", file=sys.stderr)
        return 1
