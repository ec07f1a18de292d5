"""Writes the table of numbers in README.md from benchmarks/results/; `--check` says whether it is stale."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

BEGIN = "<!-- numbers: written by `make bench` -->"
END = "<!-- end of numbers -->"
RESULTS = Path(__file__).parent / "results" / "latest.json"
TOKENS = Path(__file__).parent / "results" / "tokens.json"
README = Path(__file__).parents[1] / "README.md"
ROWS = {
    "cpu_per_request_vs_nginx": "CPU of one request (1 KB in, 600 B out), ÷ nginx",
    "cpu_per_request_vs_envoy": "the same, ÷ Envoy",
    "cpu_per_chunk_vs_nginx": "CPU of one streamed chunk (200 streams, one each 10 ms), ÷ nginx",
    "mb_per_1000_streams": "MB of memory for 1,000 open streams",
    "added_p50_ms": "added median latency at 500 requests/s, ms",
}


def token_rows(found: dict[str, Any]) -> list[str]:
    """Speed of the token counter on each text, as a multiple of tiktoken's."""
    rows = []
    for name, one in found["encodings"]["o200k_base"].items():
        ratio, target = one["tiktoken"], one["target"]
        if target > 1:  # the others are shown by the command alone: nothing was asked of them
            missed = "" if ratio["ratio"] >= target else ", missed"
            rows.append(
                f"| tokens of {name}: speed ÷ tiktoken's | {ratio['ratio']:.1f} "
                f"| {ratio['low']:.1f} – {ratio['high']:.1f} | ≥ {target:g}{missed} |"
            )
    return rows


def render(found: dict[str, Any], counted: dict[str, Any]) -> str:
    """The table, with what it was measured against."""
    versions, setting = found["versions"], found["setting"]
    lines = [
        BEGIN,
        "",
        "| figure | median | lowest – highest | target |",
        "|---|---|---|---|",
    ]
    for key, words in ROWS.items():
        spread, target = found["spread"][key], found["targets"][key]
        met = "<" if key.endswith("envoy") else "≤"
        missed = "" if found[key] <= target else ", missed"
        lines.append(
            f"| {words} | {found[key]:.2f} | {spread['low']:.2f} – {spread['high']:.2f} | {met} {target:g}{missed} |"
        )
    lines += token_rows(counted)
    lines += [
        "",
        f"{setting['date']}, {setting['cores']} cores, Python {versions['python']}, "
        f"{versions['nginx']}, {versions['envoy']}, tiktoken {counted['versions']['tiktoken']}. "
        "Of tokens, lowest and highest are the tenths of the texts' parts.",
        "",
        END,
    ]
    return "\n".join(lines)


def main() -> int:
    """Writes, or with --check compares. 1 when the page is stale or has no place for the table."""
    parser = argparse.ArgumentParser(description="The numbers of README.md.")
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    text = README.read_text()
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        print(f"README.md: the lines {BEGIN!r} and {END!r} are missing", file=sys.stderr)
        return 1
    wanted = head + render(json.loads(RESULTS.read_text()), json.loads(TOKENS.read_text())) + tail
    if options.check:
        if wanted != text:
            print("README.md is stale: run `python -m benchmarks.report`", file=sys.stderr)
        return int(wanted != text)
    README.write_text(wanted)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
