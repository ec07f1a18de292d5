"""The benchmark's own parts stay true to the product they measure."""

from __future__ import annotations

from benchmarks import steps
from benchmarks.measure import spread


def test_every_step_can_be_timed_by_itself() -> None:
    """Aim: the harness still calls each step as the journey does, through to the row's record."""
    found = steps.measure(2)
    assert list(found) == ["accept", "identify", "authorise", "count", "admit", "route", "meter"]
    assert all(us > 0 for us in found.values())


def test_a_spread_is_median_and_extremes() -> None:
    """Aim: the figure that is reported is the median of the rounds, and what lies around it is shown."""
    found = spread([3.0, 1.0, 2.0, 9.0, 2.5])
    assert (found.median, found.low, found.high, found.rounds) == (2.5, 1.0, 9.0, 5)
