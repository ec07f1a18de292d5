"""Writes the table of metrics into docs/operating.md from `families.py`; `--check` says whether it is stale."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from proxy.telemetry.families import FAMILIES

BEGIN = "<!-- metrics: written by `make docs` -->"
END = "<!-- end of metrics -->"


def markdown() -> str:
    """One row a family: name, type, labels, what it says, and what to do when it rises."""
    lines = ["| metric | type | labels | what it says | what to do |", "|---|---|---|---|---|"]
    for family in FAMILIES.values():
        labels = ", ".join(f"`{label}`" for label in family.labels) or "none"
        lines.append(f"| `{family.name}` | {family.type} | {labels} | {family.help} | {family.advice} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Writes, or with --check compares. 1 when the document is stale or has no place for the table."""
    parser = argparse.ArgumentParser(description="The metrics of docs/operating.md.")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--path", type=Path, default=Path("docs/operating.md"))
    options = parser.parse_args()
    text = options.path.read_text()
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        print(f"{options.path}: the lines {BEGIN!r} and {END!r} are missing", file=sys.stderr)
        return 1
    wanted = f"{head}{BEGIN}\n\n{markdown()}\n{END}{tail}"
    if options.check:
        if wanted != text:
            print(f"{options.path} is stale: run `make docs`", file=sys.stderr)
        return int(wanted != text)
    options.path.write_text(wanted)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
