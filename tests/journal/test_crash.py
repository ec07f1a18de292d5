"""Whole epochs die: SIGKILL to real workers and recoverers on real files."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def lives(directory: Path, count: int, timeout_seconds: int) -> dict[str, int]:
    """Runs so many pairs of lives; fails with the seed when the oracle disagrees. Returns what was met."""
    seed = random.SystemRandom().randrange(1 << 32)
    done = subprocess.run(
        [sys.executable, "-m", "tests.journal.crash_driver", str(directory), str(count), str(seed)],
        cwd=ROOT, capture_output=True, text=True, timeout=timeout_seconds, check=False,
    )  # fmt: skip
    assert done.returncode == 0, (seed, done.stderr)
    result = json.loads(done.stdout)
    assert not result["faults"], (seed, result, done.stderr)
    facts: dict[str, int] = result["facts"]
    return facts


def test_workers_and_recoverers_are_killed(tmp_path: Path) -> None:
    """Each call that a killed worker opened is one true row, nothing stays held, and nothing stays on the disk."""
    facts = lives(tmp_path, 20, 100)
    assert facts["lives"] == 40
    assert facts["recoverers killed"] > 0
    assert facts["crash"] > 20
    assert facts["complete"] > 100


@pytest.mark.soak
@pytest.mark.timeout(1200)
def test_many_lives(tmp_path: Path) -> None:
    """The same, long."""
    assert lives(tmp_path, 1000, 1100)["lives"] == 2000
