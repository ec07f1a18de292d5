"""Where the token tables are, how they are built once, and how the supervisor checks them.

A table is a file that every worker maps read-only: `vocab/<name>.table`, made from the committed vocabulary by
`setup.py build_ext` and shipped in the wheel. Beside the tables stands `tables.sha256`, in the form of `sha256sum -c`:
the supervisor compares it once at its start, so that a worker need only look at a table's head. A build is the same
bytes on every machine; `tests/tokens/test_tables.py` holds the sums.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from proxy.tokens import vocabulary

__all__ = ["DIRECTORY", "MANIFEST", "NAMES", "DamagedTable", "build_all", "path", "verify"]

NAMES = tuple(vocabulary.SHA256)
DIRECTORY = vocabulary.DIRECTORY
MANIFEST = "tables.sha256"
_MADE_FROM = ("build.py", "vocabulary.py", "vocab/classes.txt", *(f"vocab/{name}.vocab" for name in NAMES))
_REMEDY = "install Weir again, or run `make build` in its source tree"


class DamagedTable(Exception):
    """A table is missing or not as it was built; the message is one sentence."""


def path(name: str, directory: Path | None = None) -> Path:
    """The file of an encoding's table."""
    return (directory or DIRECTORY) / f"{name}.table"


def verify(directory: Path | None = None) -> None:
    """Compares every table with what the build wrote down: 14 MB, some 20 ms. Raises DamagedTable."""
    directory = directory or DIRECTORY
    expected = _sums(directory)
    for name in NAMES:
        table = path(name, directory)
        try:
            found = hashlib.sha256(table.read_bytes()).hexdigest()
        except OSError as error:
            raise DamagedTable(f"The token table {table} cannot be read ({error.strerror}); {_REMEDY}.") from None
        if table.name not in expected:
            raise DamagedTable(f"{directory / MANIFEST} is missing or does not name {table.name}; {_REMEDY}.")
        if found != expected[table.name]:
            raise DamagedTable(
                f"The token table {table} is damaged: its sha256 is {found} and was {expected[table.name]} "
                f"when it was built; {_REMEDY}."
            )


def build_all(into: Path) -> list[str]:
    """Builds the tables in a directory unless they are there, whole and of these sources; returns what was built.

    Each file is put in place whole, so that who maps the old one keeps it. Raises BadVocabulary or OSError.
    """
    made_from = _made_from()
    try:
        if f"# made from {made_from}" in (into / MANIFEST).read_text().splitlines():
            verify(into)
            return []
    except (OSError, DamagedTable):
        pass  # whatever is wrong there, it is built anew
    # The build step alone needs this module; a running Weir never imports it.
    from proxy.tokens import build

    into.mkdir(parents=True, exist_ok=True)
    classes = vocabulary.classes()
    lines = [f"# made from {made_from}"]
    for name in NAMES:
        table = build.build(name, vocabulary.read(name), classes)
        _put(path(name, into), table)
        lines.append(f"{hashlib.sha256(table).hexdigest()}  {name}.table")
    _put(into / MANIFEST, "\n".join([*lines, ""]).encode())
    return list(NAMES)


def _sums(directory: Path) -> dict[str, str]:
    """The sums in the manifest by file name; none when it cannot be read."""
    try:
        lines = (directory / MANIFEST).read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return {}
    return {name: found for found, _, name in (line.partition("  ") for line in lines) if not found.startswith("#")}


def _made_from() -> str:
    """One sum over all that decides the tables' bytes."""
    whole = hashlib.sha256()
    for name in _MADE_FROM:
        whole.update(hashlib.sha256((DIRECTORY.parent / name).read_bytes()).digest())
    return whole.hexdigest()


def _put(target: Path, body: bytes) -> None:
    """Writes a file whole under its name or not at all."""
    beside = target.with_name(f".{target.name}.{os.getpid()}")
    beside.write_bytes(body)
    beside.replace(target)
