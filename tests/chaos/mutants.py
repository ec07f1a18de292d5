"""Mutants of the product: copies with one promise broken by a textual replacement, for the driver to find out."""

from __future__ import annotations

import os
import py_compile
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from tests.world.gateway import ROOT


class Change(NamedTuple):
    """One replacement; `old` must stand in the file exactly once."""

    path: str
    old: str
    new: str


ACKNOWLEDGE_BEFORE_COMMIT = (
    Change(
        "proxy/flush/loop.py",
        "        entries = self._held[: self._at_once]\n",
        "        entries = self._held[: self._at_once]\n"
        "        self.source.done(entries)\n"
        "        await self.source.acknowledge()\n",
    ),
)
NO_PRIMARY_KEY = (
    Change(
        "proxy/store/migrations/versions/0001_first_schema.py",
        '        sa.PrimaryKeyConstraint("epoch", "call", name="usage_pkey"),\n',
        "",
    ),
    Change(
        "proxy/store/dialect.py",
        '"ON CONFLICT (epoch, call) DO NOTHING RETURNING epoch, call"',
        '"RETURNING epoch, call"',
    ),
)
PRUNE_AT_SHIP = (
    Change(
        "proxy/keeping/epochs.py",
        "                state.shipped = batch.last\n",
        "                state.shipped = batch.last\n"
        # An epoch with no more than its end has nothing to lose.
        "                if await asyncio.to_thread(prune, state.info.path, batch.last) and batch.last > 5:\n"
        "                    self._log.error('pruned at ship')\n",
    ),
)
# In both, workers die where it hurts the second alone: to hit a window of nanoseconds would need millions of kills.
# Who recovers has nothing to drop, and lives.
_CLOSE = "    jrn_append(j, slot->call, payload, size);\n    jrn_settle(slot, drop, context);\n}\n"
_DIE = "    static int closes = 0;\n    if (drop && ++closes % 40 == 0) __builtin_trap();\n"
DIED = "was ended by SIGILL"  # as the supervisor tells it
APPEND_DIE_FREE = (
    Change(
        "proxy/_journal.h",
        _CLOSE,
        "    jrn_append(j, slot->call, payload, size);\n" + _DIE + "    jrn_settle(slot, drop, context);\n}\n",
    ),
)
FREE_BEFORE_APPEND = (
    Change(
        "proxy/_journal.h",
        _CLOSE,
        "    uint64_t call = slot->call;\n    jrn_settle(slot, drop, context);\n"
        + _DIE
        + "    jrn_append(j, call, payload, size);\n}\n",
    ),
)


def make(directory: Path, changes: tuple[Change, ...]) -> Path:
    """A copy of the product with these changes, built where C was changed. Returns its root.

    AssertionError when a text does not stand there exactly once: the product has moved on, and the mutant must follow.
    """
    root = directory / "mutant"
    shutil.copytree(ROOT / "proxy", root / "proxy", ignore=shutil.ignore_patterns("__pycache__"))
    for path, old, new in changes:
        text = (root / path).read_text()
        assert text.count(old) == 1, f"{path}: the text to be changed stands there {text.count(old)} times:\n{old}"
        (root / path).write_text(text.replace(old, new))
        if path.endswith(".py"):
            py_compile.compile(str(root / path), doraise=True)  # a mutant that cannot run would prove nothing
    if any(change.path.endswith(".h") for change in changes):
        for name in ("setup.py", "pyproject.toml"):
            shutil.copy(ROOT / name, root / name)
        (root / "README.md").write_text("")
        for built in (root / "proxy").glob("_journal.*.so"):
            built.unlink()
        subprocess.run(
            [sys.executable, "setup.py", "-q", "build_ext", "--inplace"],
            cwd=root,
            env={**os.environ, "WEIR_EXT": "_journal"},
            check=True,
            capture_output=True,
            timeout=300,
        )
    return root
