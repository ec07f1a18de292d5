"""The cells' own C code, with a switch to another actor possible before every access to shared memory."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
PROXY = HERE.parents[1] / "proxy"
SEED = int(os.environ.get("WEIR_TEST_SEED", "0")) or random.randrange(1, 2**40)
SCHEDULES = {"charge": 2000, "charge-kill": 2000, "hold": 1500, "hold-kill": 1500}

# What each of them breaks is written in `_arena.h` and `_limits.h` beside the line it changes.
MUTANTS = {
    "a hole renews no cell behind it": (
        "charge",
        "_arena.h",
        "WEIR_CAS(&behind[0], &word, weir_retag(fresh, WEIR_FREE));",
        ";",
    ),
    "an inserter does not look again": ("charge", "_arena.h", "step < chosen && !again", "0"),
    "an inserter overlooks its key in the hole": (
        "charge",
        "_arena.h",
        "if (word == lo && weir_claim",
        "if (0 && weir_claim",
    ),
    "an inserter stops at the first free cell": (
        "charge",
        "_arena.h",
        "if (chosen == window) chosen = step, chosen_word = word;",
        "{ chosen = step, chosen_word = word; break; }",
    ),
    "the keeper leaves the amount as it was": (
        "charge",
        "_arena.h",
        "return WEIR_CAS(&cell->tat, &tat, unique);",
        "return 1;",
    ),
    "the keeper does not ask whether the cell was taken again": (
        "hold",
        "_arena.h",
        "if (!WEIR_CAS(&cell[1], &expected, hi)) return 0;",
        "WEIR_STORE(&cell[1], hi);",
    ),
    "a charge does not look at the key": (
        "charge",
        "_limits.h",
        "if (!weir_same(&cell->lo, &cell->hi, entry)) return WEIR_GONE;\n"
        "        int64_t next = (tat > now ? tat : now) + cost;\n        if (next - now > entry->burst_units) {",
        "int64_t next = (tat > now ? tat : now) + cost;\n        if (next - now > entry->burst_units) {",
    ),
    "an announcer does not look at the key": (
        "hold",
        "_limits.h",
        "if (!weir_same(&cell->lo, &cell->hi, entry)) {",
        "if (0) {",
    ),
    "an announcer does not look at the others": ("hold", "_limits.h", "if (sum <= entry->limit) {", "if (1) {"),
    "a refused announcer does not step back": (
        "hold",
        "_limits.h",
        "weir_store_column(own, before);\n                return WEIR_REFUSED;",
        "return WEIR_REFUSED;",
    ),
}


def build(headers: Path, into: Path) -> Path:
    """The actors with the cells' code of `headers`."""
    program = into / "interleave"
    command = ["gcc", "-O2", "-std=gnu11", f"-I{headers}", str(HERE / "interleave.c"), "-o", str(program)]
    subprocess.run(command, check=True, capture_output=True)
    return program


def run(program: Path, scenario: str, seed: int, schedules: int) -> subprocess.CompletedProcess[str]:
    command = [str(program), scenario, str(seed), str(schedules)]
    return subprocess.run(command, capture_output=True, text=True, timeout=3600, check=False)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(PROXY, tmp_path_factory.mktemp("interleave"))


@pytest.mark.parametrize("scenario", list(SCHEDULES))
def test_no_interleaving_breaks_a_rule(program: Path, scenario: str) -> None:
    """No double cell, no charge beyond the burst or short of it, no hold beyond the limit, nothing left behind."""
    result = run(program, scenario, SEED, SCHEDULES[scenario])
    assert result.returncode == 0, result.stdout
    assert " 0 steps" not in result.stdout


@pytest.mark.soak
@pytest.mark.parametrize("scenario", list(SCHEDULES))
def test_no_interleaving_breaks_a_rule_for_long(program: Path, scenario: str) -> None:
    """The same, five hundred thousand times."""
    result = run(program, scenario, SEED, 500_000)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("name", list(MUTANTS))
def test_each_rule_is_needed(tmp_path: Path, name: str) -> None:
    """The code without one of its steps is caught, so that the runs above mean something."""
    scenario, header, right, wrong = MUTANTS[name]
    for source in PROXY.glob("_*.h"):
        shutil.copy(source, tmp_path)
    text = (tmp_path / header).read_text()
    assert text.count(right) == 1, "the line that this mutant changes is gone"
    (tmp_path / header).write_text(text.replace(right, wrong))
    result = run(build(tmp_path, tmp_path), scenario, 1, 60_000)
    assert result.returncode == 1, result.stdout
    assert "seed" in result.stdout
