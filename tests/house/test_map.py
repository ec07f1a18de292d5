"""tests/README.md is the map of the tests: what it names exists, and no promised fault is missing from it."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "tests" / "README.md").read_text(encoding="utf-8")
# The rows of the fault matrix that the first version answers for.
FAULTS = {*range(1, 8), *range(10, 14), 16, 17, *range(18, 22), *range(26, 37)}


def functions_of(path: Path) -> set[str]:
    """The names of a file's functions."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


def test_every_named_test_exists() -> None:
    """Each `path::test` on the page is a test of that file."""
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", TEXT)
    assert len(named) > 50
    known = {path: functions_of(ROOT / path) for path, _ in named if (ROOT / path).exists()}
    missing = sorted(f"{path}::{name}" for path, name in named if name not in known.get(path, ()))
    assert missing == []


def test_every_fault_has_its_line() -> None:
    """Each fault has one line, and each line names a test."""
    rows = re.findall(r"^\| (\d+) [^|]*\| (.*) \|$", TEXT, re.MULTILINE)
    assert sorted(int(number) for number, _ in rows) == sorted(FAULTS)
    assert [number for number, covered in rows if "::test_" not in covered] == []


def test_every_folder_is_on_the_map() -> None:
    """A folder of tests says on the page what it proves."""
    folders = {path.name for path in (ROOT / "tests").iterdir() if any(path.glob("*.py"))}
    assert folders - set(re.findall(r"^\| `(\w+)` \|", TEXT, re.MULTILINE)) == set()
