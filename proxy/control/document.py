"""Makes docs/openapi.json from the table of operations. `--check` fails when it is stale."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from proxy.control.openapi import encode

PATH = Path(__file__).resolve().parents[2] / "docs" / "openapi.json"


def main() -> int:
    """Writes, or checks: then 1 when the document does not say what the code does."""
    parser = argparse.ArgumentParser(prog="python -m proxy.control.document")
    parser.add_argument("--check", action="store_true", help="write nothing; 1 when the document is stale")
    args = parser.parse_args()
    text = encode()
    if not args.check:
        PATH.write_bytes(text)
        return 0
    if PATH.exists() and PATH.read_bytes() == text:
        return 0
    print("docs/openapi.json is stale: run make docs", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
