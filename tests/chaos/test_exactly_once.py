"""Nothing lost, nothing twice: whole Weirs under mixed traffic, while every part of them is killed and frozen."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from tests.chaos.driver import CARDS, STORE_CARDS, Chaos, Variant


def seed_of(name: str) -> int:
    """WEIR_SEED repeats a run; without it every run is another one."""
    seed = int(os.environ.get("WEIR_SEED", "0")) or int(time.time() * 1000) % 1_000_000
    print(f"{name}: repeat with WEIR_SEED={seed}")
    return seed


@pytest.mark.timeout(900)
@pytest.mark.parametrize(("variant", "requests"), [("sqlite", 1800), ("redis", 1700), ("forgetful", 1700)])
def test_every_call_has_its_one_row(variant: Variant, requests: int, tmp_path: Path) -> None:
    """Aim: after kills and freezes of every part, in the middle of streams too, the books are exact."""
    report = Chaos(tmp_path, variant=variant, requests=requests, seed=seed_of(variant)).run()
    print(report)
    assert report.findings == []
    # The run must have been what it says: parts died, and calls ended in every way.
    assert set(CARDS | (STORE_CARDS if variant != "sqlite" else {})) <= set(report.blows), report
    assert {"complete", "client_gone", "crash", "upstream_error"} <= set(report.endings), report
    assert report.endings["crash in mid-stream"] > 0, report
    assert report.asked_upstream >= requests * 0.5, report


@pytest.mark.soak
@pytest.mark.parametrize(("variant", "requests"), [("sqlite", 170_000), ("redis", 170_000), ("forgetful", 160_000)])
def test_half_a_million_calls(variant: Variant, requests: int, tmp_path: Path) -> None:
    """Aim: the same for 500,000 requests."""
    report = Chaos(
        tmp_path, variant=variant, requests=requests, seed=seed_of(variant), workers=3, clients=2, concurrency=96
    ).run()
    print(report)
    assert report.findings == []
