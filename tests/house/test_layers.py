"""Imports point down, every module has its floor, and pure modules stay pure."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from proxy.errors import KINDS

ROOT = Path(__file__).resolve().parents[2]

# The map of the house. A package stands for its modules unless one of them is named itself.
FLOORS: list[tuple[str, tuple[str, ...]]] = [
    ("words", ("call", "errors", "bounds", "clock", "failpoint", "exchange", "board", "_fastpath")),
    (
        "judgement",
        (
            "policy",
            "dialects",
            "tokens",
            "record",
            "route",
            "authorise",
            "flush.fold",
            "_scan",
            "settings",
            "identity.roles",
            "identity.tenancy",
            "identity.addresses",
            "audit",
        ),
    ),
    (
        "adapters",
        (
            "_journal",
            "journal",
            "epochs",
            "_wire",
            "_front",
            "store",
            "identity",
            "upstreams",
            "telemetry",
            "locks",
            "places",
            "audit.files",
        ),
    ),
    ("steps", ("accept", "identify", "admit", "stream", "meter", "answer", "tokenize", "running", "house")),
    ("stories", ("journey", "flush")),
    ("planes", ("front", "door", "control")),
    ("roots", ("worker", "wiring", "supervisor", "keeper", "keeping", "demo", "cli", "verbs", "parts", "__main__")),
]
AUDIT = ("audit.chain", "audit.anchor", "audit.verify")
FLOOR = {name: number for number, (_, names) in enumerate(FLOORS) for name in names}
PURE = (
    "policy",
    "dialects",
    "tokens",
    "record",
    "route",
    "authorise",
    "flush.fold",
    "identity.roles",
    "identity.tenancy",
    "identity.addresses",
    *AUDIT,
)
# The policy's loader reads files; nothing here waits, logs or asks for the time.
FORBIDDEN = {"aiohttp", "redis", "asyncio", "sqlalchemy", "logging", "time", "socket", "uvloop"}


def modules() -> dict[str, Path]:
    """Every module of the product, by its name below `proxy`."""
    found = {}
    for path in sorted((ROOT / "proxy").rglob("*.py*")):
        if path.suffix not in (".py", ".pyx") or "migrations" in path.parts:
            continue
        name = ".".join(path.relative_to(ROOT / "proxy").with_suffix("").parts)
        found[name.removesuffix(".__init__")] = path
    return found


def floor_of(name: str) -> int | None:
    """The floor of a module, by its own name or by that of a package it is in."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        floor = FLOOR.get(".".join(parts[:length]))
        if floor is not None:
            return floor
    return None


def imports(path: Path) -> set[str]:
    """Absolute names that a module imports when it runs; imports for types alone do not count."""
    if path.suffix == ".pyx":
        lines = path.read_text().splitlines()
        return {line.split()[1] for line in lines if line.startswith(("from proxy", "import proxy"))}
    tree = ast.parse(path.read_text())
    typing_only = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    names = set()
    for node in ast.walk(tree):
        if node in typing_only:
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("name", [name for name in modules() if name not in ("__init__", "proxy")])
def test_imports_point_down(name: str) -> None:
    """A module imports its own floor or one below, and stands in the table."""
    own = floor_of(name)
    assert own is not None, f"proxy/{name}: on no floor; add it to FLOORS in {__file__}"
    for imported in imports(modules()[name]):
        if not imported.startswith("proxy."):
            continue
        other = floor_of(imported.removeprefix("proxy."))
        assert other is None or other <= own, f"{name} ({FLOORS[own][0]}) imports {imported} ({FLOORS[other][0]})"


@pytest.mark.parametrize("name", [name for name in modules() if name.startswith(PURE)])
def test_judgement_is_pure(name: str) -> None:
    """Judgement waits for nothing, logs nothing and reads no clock."""
    if name == "policy.document":
        return  # writes documents; nothing of the journey imports it
    found = {imported.split(".")[0] for imported in imports(modules()[name])} & FORBIDDEN
    assert not found, f"{name} imports {', '.join(sorted(found))}"
    assert "proxy.clock" not in imports(modules()[name]), f"{name} reads the clock"


def test_only_the_clock_reads_time() -> None:
    """One module reads time; the compiled ones have their own reader in C."""
    for name, path in modules().items():
        if path.suffix == ".py" and name not in ("clock", "demo"):
            assert not {"time.time", "time.monotonic", "time"} & imports(path), f"{name} imports time"


def test_importing_the_package_imports_nothing() -> None:
    """`import proxy` is free: no module of ours or of others comes with it."""
    code = "import sys; before = set(sys.modules); import proxy; print(sorted(set(sys.modules) - before))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert shown.stdout.strip() == "['proxy']"


def test_flush_deploys_alone() -> None:
    """The flusher needs no front, no journal and no compiled part."""
    code = "import sys, proxy.verbs.flush; print(*sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    loaded = set(shown.stdout.split())
    assert not loaded & {"aiohttp", "uvloop", "httptools", "proxy.journal"}
    assert not [name for name in loaded if name.startswith("proxy._")]


@pytest.mark.parametrize("path", [str(path.relative_to(ROOT)) for path in modules().values()])
def test_files_stay_readable(path: str) -> None:
    """A file that passes 400 lines by much is split."""
    lines = (ROOT / path).read_text().count("\n")
    assert lines <= (800 if path.endswith(".pyx") else 440), f"{path} has {lines} lines"


def test_no_machine_in_the_tree() -> None:
    """No path of one machine stands in what is committed."""
    listed = subprocess.run(["git", "ls-files"], capture_output=True, text=True, cwd=ROOT)
    if listed.returncode:
        pytest.skip("not a git checkout")
    # Spelt in two halves, so that this file does not find itself.
    marks = tuple(f"/{name}/" for name in ("wo" + "rk", "ro" + "ot", "ho" + "me"))
    for name in listed.stdout.split():
        path = ROOT / name
        if path.suffix in (".py", ".pyx", ".pxi", ".md", ".yaml", ".toml", ".sh", ".c", ".h", ".json", ".yml"):
            text = path.read_text()
            assert not any(mark in text for mark in marks), f"{name} names a directory of one machine"


def sources(*roots: str) -> str:
    """Every source of the product, and of other folders, as one text; without the two tables themselves."""
    tables = {ROOT / "proxy" / "bounds.py", ROOT / "proxy" / "errors.py"}
    paths = [
        path for root in roots for path in (ROOT / root).rglob("*") if path.suffix in (".py", ".pyx", ".pxi", ".h")
    ]
    return "\n".join(path.read_text() for path in paths if path not in tables)


def test_every_bound_and_refusal_is_in_use() -> None:
    """A bound that bounds nothing and a refusal that nobody raises are gone from their tables."""
    bounds_text = (ROOT / "proxy" / "bounds.py").read_text()
    names = [line.split(" ")[0] for line in bounds_text.splitlines() if line[:1].isupper() and " = " in line]
    everything = sources("proxy", "tests") + bounds_text
    unused = [name for name in names if everything.count(name) < 2]
    product = sources("proxy")
    unused += [code for code in KINDS if f'"{code}"' not in product]
    assert not unused
