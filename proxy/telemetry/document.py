"""The table of metrics as Markdown, for docs/operating.md: `python -m proxy.telemetry.document` prints it."""

from __future__ import annotations

from proxy.telemetry.families import FAMILIES


def markdown() -> str:
    """One row a family: name, type, labels, what it says, and what to do when it rises."""
    lines = ["| metric | type | labels | what it says | what to do |", "|---|---|---|---|---|"]
    for family in FAMILIES.values():
        labels = ", ".join(f"`{label}`" for label in family.labels) or "none"
        lines.append(f"| `{family.name}` | {family.type} | {labels} | {family.help} | {family.advice} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(markdown(), end="")
