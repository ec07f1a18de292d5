"""The gallery of configurations in tests/vectors/policy: a case holds the files in which it differs from good/base."""

from __future__ import annotations

import shutil
from pathlib import Path

VECTORS = Path(__file__).parent.parent / "vectors" / "policy"
BASE = VECTORS / "good" / "base"
EXAMPLE = Path(__file__).parent.parent.parent / "config"
NOTES = ("expected.txt", "warnings.txt", "environment.txt")  # of a case; not part of its configuration


def cases(kind: str) -> list[Path]:
    """The cases of `good` or `bad`, sorted."""
    return sorted(path for path in (VECTORS / kind).iterdir() if path != BASE)


def lay_out(case: Path, directory: Path) -> Path:
    """Makes `directory`/config of a case, with the certificate files that cases may name; returns it."""
    config = directory / "config"
    shutil.copytree(BASE, config)
    shutil.copytree(case, config, dirs_exist_ok=True, ignore=shutil.ignore_patterns(*NOTES))
    (directory / "tls").mkdir()
    for name in ("cert.pem", "key.pem"):
        (directory / "tls" / name).touch()
    return config


def note(case: Path, name: str) -> str:
    """The text of one of a case's notes, "" without it."""
    path = case / name
    return path.read_text("utf-8") if path.exists() else ""


def environment(case: Path) -> dict[str, str]:
    """The variables under which a case is read."""
    return dict(line.split("=", 1) for line in note(case, "environment.txt").splitlines())
