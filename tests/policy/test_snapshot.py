"""The snapshot file: whole or refused, and its version says what is in it."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from proxy.policy.compile import compile_policy
from proxy.policy.snapshot import SNAPSHOT_FORMAT, Policy
from tests.policy.gallery import BASE, EXAMPLE, lay_out

PACKAGE = Path(__file__).parent.parent.parent / "proxy" / "policy"
FORBIDDEN = {"aiohttp", "redis", "asyncio", "sqlalchemy", "logging", "time", "datetime", "random", "threading"}


def test_the_version_follows_the_content(tmp_path: Path) -> None:
    """Should be equal for equal files and another one when any value, or its line, changes."""
    config = lay_out(BASE, tmp_path)
    before = compile_policy(config, {})
    assert compile_policy(config, {}).version == before.version
    path = config / "plans.yaml"
    text = path.read_text()
    versions = {before.version}
    for changed in (text.replace("concurrency: 20", "concurrency: 19"), "# a comment moves every line\n" + text):
        path.write_text(changed)
        versions.add(compile_policy(config, {}).version)
    assert len(versions) == 3


def test_damaged_snapshots_are_refused() -> None:
    """Should raise ValueError for every cut, every changed byte that changes the value, and another format."""
    policy = compile_policy(EXAMPLE, {})
    raw = policy.encode()
    for cut in range(0, len(raw), 7):
        with pytest.raises(ValueError):
            Policy.decode(raw[:cut])
    for place in range(0, len(raw), 3):
        with pytest.raises(ValueError):
            Policy.decode(raw[:place] + bytes([raw[place] ^ 0x01]) + raw[place + 1 :])
    newer = msgspec.structs.replace(policy, format=SNAPSHOT_FORMAT + 1)
    with pytest.raises(ValueError, match="format 3, this version reads 2"):
        Policy.decode(newer.encode())


def test_it_is_frozen() -> None:
    """Should refuse to be changed: one snapshot per request."""
    policy = compile_policy(EXAMPLE, {})
    with pytest.raises(AttributeError):
        policy.version = "other"  # type: ignore[misc]
    with pytest.raises(AttributeError):
        policy.tenants["demo"].plan = "free"  # type: ignore[misc]


def test_policy_is_pure() -> None:
    """Should import no clock, no log and no adapter, and load none of them by accident."""
    for path in PACKAGE.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                assert name.partition(".")[0] not in FORBIDDEN, f"{path.name} imports {name}"
                assert not name.startswith("proxy.") or name in ALLOWED or name.startswith("proxy.policy"), path.name
    found = "{'asyncio', 'aiohttp', 'redis'} & {*sys.modules}"
    code = f"import sys, proxy.policy.compile, proxy.policy.effective; print({found})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "set()"


ALLOWED = (
    "proxy.bounds",
    "proxy.call",
    "proxy.errors",
    "proxy.tokens",
    "proxy.tokens.families",
    "proxy.tokens.huggingface",
)
